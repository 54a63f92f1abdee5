"""Concept Ablation against its loss by hand, plain gradients and the exact zero where target and anchor are one."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.concept import Concept, together
from assay.erasure import concept_ablation as ca
from assay.errors import Misconfigured, Mismatch
from assay.noise import generator
from assay.patched import Patched
from assay.testing import KINDS, tiny
from assay.training import finetune
from assay.training.finetune import Student

pytestmark = pytest.mark.portable

CAT = Concept("cat", anchor="dog", preserve=("sun",))
QUICK: dict[str, Any] = {"steps": 3, "batch": 2, "images": 4, "image_steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> ca.Settings:
    return ca.Settings(**(QUICK | changes))


def start(denoiser, pairs, **changes):
    chosen = quick(**changes)
    student = Student(denoiser, denoiser.group(ca.GROUPS[chosen.group]))
    latents = torch.randn(4, *denoiser.latent_shape, generator=generator(0, "latents"))
    return ca.Training(student, latents, pairs, CAT.preserved(), chosen)


def rng():
    return generator(0, "step")


def drawn(training):
    """The draws of a step, in the order in which the method makes them."""
    source, settings = rng(), training.settings
    rows = torch.randint(4, (settings.batch,), generator=source)
    t = torch.randint(1000, (settings.batch,), generator=source)
    clean = training.latents[rows]
    noise = torch.randn(clean.shape, generator=source)
    return clean, t, noise, training.denoiser.noised(clean, t, noise)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", ca.GROUPS)
def test_the_loss_is_exactly_zero_where_target_and_anchor_are_one(kind, group):
    model = tiny(kind)
    training = start(model, [("cat", "cat")] * 4, group=group)
    loss = training.loss(0, rng())
    loss.backward()
    assert float(loss.detach()) == 0
    gradients = [master.grad for master in training.student.masters.values()]
    assert all(gradient is None or gradient.abs().max() == 0 for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_known(kind):
    """At the start the student is the base: by hand from plain predictions and from the denoiser's own loss."""
    model = tiny(kind)
    training = start(model, [("cat", "dog")] * 4, prior=0.5, preserve_scale=2.0)
    clean, t, noise, x_t = drawn(training)
    cat, dog = (model.predict(x_t, t, model.conditioning([prompt] * 2), model.view) for prompt in ("cat", "dog"))
    ordinary = model.loss(clean, t, noise, model.conditioning(["dog"] * 2)).mean()
    expected = (cat - dog).square().mean() + 0.5 * ordinary  # what is preserved has not moved yet
    assert float(training.loss(0, rng()).detach()) == pytest.approx(float(expected), rel=1e-4)
    noisy = start(model, [("cat", "dog")] * 4, variant="noise")
    expected = model.loss(clean, t, noise, model.conditioning(["cat"] * 2)).mean()
    assert float(noisy.loss(0, rng()).detach()) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_preserved_counts_by_how_far_it_moved(kind):
    """Once the weights have moved: by hand, |e'(x_t, p) - e(x_t, p)|^2 between two models of their own, for preserved prompts p of the same draws."""
    before, after, training = tiny(kind), tiny(kind), start(tiny(kind), [("cat", "dog")] * 4, preserve_scale=2.0)
    source = rng()
    clean, t, _, x_t = drawn(training)
    for skipped in ((4, (2,)), (1000, (2,))):
        torch.randint(*skipped, generator=source)
    torch.randn(clean.shape, generator=source)
    kept = [CAT.preserved()[int(row)] for row in torch.randint(len(CAT.preserved()), (2,), generator=source)]
    with torch.no_grad():
        for name, master in training.student.masters.items():
            after.weights()[name].mul_(1.5)
            master.mul_(1.5)
        one, other = (model.predict(x_t, t, model.conditioning(kept), model.view) for model in (before, after))
    bare = ca.Training(training.student, training.latents, training.pairs, CAT.preserved(), quick())
    moved = float(training.loss(0, rng()).detach() - bare.loss(0, rng()).detach())
    assert moved > 1e-4
    assert moved == pytest.approx(2.0 * float((one - other).square().mean()), rel=1e-3)


@pytest.mark.parametrize("teacher", ["student", "base"])
def test_no_gradient_passes_through_the_teacher(denoiser, teacher):
    """The gradient is that of the distance to a constant."""
    training = start(denoiser, [("cat", "dog")] * 4, teacher=teacher, spare_begin=False)
    training.loss(0, rng()).backward()
    other = start(denoiser, [("cat", "dog")] * 4)
    _, t, _, x_t = drawn(training)
    with torch.no_grad():
        constant = denoiser.predict(x_t, t, denoiser.conditioning(["dog"] * 2))
    (other.predict(x_t, t, ["cat"] * 2) - constant).square().mean().backward()
    for name, master in training.student.masters.items():
        assert torch.allclose(master.grad, other.student.masters[name].grad, rtol=1e-4, atol=1e-8)


def test_the_student_teaches_what_it_has_become(denoiser):
    """Once the weights have moved, the student's own prediction for the anchor differs from that of the base."""
    _, t, _, x_t = drawn(start(denoiser, [("cat", "dog")] * 4))
    taught = {}
    for teacher in ("student", "base"):
        training = start(denoiser, [("cat", "dog")] * 4, teacher=teacher)
        with torch.no_grad():
            for master in training.student.masters.values():
                master.mul_(2)
        taught[teacher] = training.teach(x_t, t, ["dog"] * 2)
    assert torch.equal(taught["base"], denoiser.predict(x_t, t, denoiser.conditioning(["dog"] * 2)))
    assert not torch.allclose(taught["student"], taught["base"], atol=1e-3)


def test_nothing_flows_through_the_begin_token(denoiser):
    """A conditioning of the begin token alone gives keys and values no gradient, and the same prediction."""
    student = Student(denoiser, denoiser.group("cross_attention.kv"))
    states = denoiser.conditioning(["cat"])
    states = type(states)(states.states[:, :1], states.extra)
    x_t, t = torch.randn(1, *denoiser.latent_shape, generator=rng()), torch.tensor([500])
    plain = student.run(denoiser.predict, x_t, t, states)
    plain.sum().backward()
    assert any(master.grad.abs().max() > 0 for master in student.masters.values())
    for master in student.masters.values():
        master.grad = None
    with ca.begin_detached(denoiser.unet):
        spared = student.run(denoiser.predict, x_t, t, states)
        spared.sum().backward()
    assert torch.equal(plain, spared)
    assert all(master.grad is None or master.grad.abs().max() == 0 for master in student.masters.values())
    assert not any(module._forward_hooks for module in denoiser.unet.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prior": 1.0},
        {"prior": 1.0, "teacher": "base"},
        {"preserve_scale": 1.0},
        {"variant": "noise"},
        {"variant": "noise", "image_guidance": 1.0},
    ],
)
def test_takes_the_passes_it_says(denoiser, changes):
    before = denoiser.passes
    ca.erase(denoiser, CAT, quick(**changes))
    assert denoiser.passes - before == sum(ca.cost(quick(**changes)).values())


@pytest.mark.parametrize(("group", "names"), ca.GROUPS.items())
def test_trains_the_group_alone(denoiser, group, names):
    patch = ca.erase(denoiser, CAT, quick(group=group))
    assert set(patch.names) == set(denoiser.group(names))
    assert any(tensor.abs().max() > 0 for tensor in patch.tensors.values())


@pytest.mark.parametrize("kind", KINDS)
def test_of_the_token_embeddings_the_concept_s_own_words_train(kind):
    """By hand: the tokenizers of the tiny pipelines have one token a letter, so that of a style's name, "at style", two rows move and no other."""
    model = tiny(kind)
    patch = ca.erase(model, Concept("at", "style", anchor="flat", subjects=("sun",)), quick(group="embedding", preserve_scale=1.0))
    for (tokenizer, encoder), tensor in zip(model.family.encoders, patch.tensors.values(), strict=True):
        assert tensor.shape == encoder.get_input_embeddings().weight.shape
        moved = tensor.abs().amax(1).nonzero().flatten().tolist()
        assert moved == sorted(tokenizer("at").input_ids[1:3])


@pytest.mark.parametrize("kind", KINDS)
def test_at_first_nothing_that_is_preserved_has_moved(kind):
    """Also of the empty prompt, which SDXL's guidance encodes as zeros: the loss is that without `preserve_scale`, to the bit."""
    training, bare = (start(tiny(kind), [("cat", "")] * 4, group="embedding", **more) for more in ({"preserve_scale": 1.0}, {}))
    assert "" in training.preserved
    assert float(training.loss(0, rng())) == float(bare.loss(0, rng()))


@pytest.mark.long
def test_the_concept_is_predicted_as_the_anchor(denoiser):
    """Measured from outside, at noise that the training never drew; what is preserved moves less."""
    x_t, t = torch.randn(16, *denoiser.latent_shape, generator=rng()), torch.randint(1000, (16,), generator=rng())

    def look(prompt):
        return denoiser.predict(x_t, t, denoiser.conditioning([prompt] * 16))

    before = {prompt: look(prompt) for prompt in ("cat", "dog", "sun")}
    patch = ca.erase(denoiser, CAT, quick(steps=40, batch=4, learning_rate=5e-3, preserve_scale=1.0, teacher="base"))
    with torch.no_grad(), Patched(denoiser, [(patch, 1.0)]):
        after = {prompt: look(prompt) for prompt in before}
    gap = (before["cat"] - before["dog"]).norm()
    assert (after["cat"] - before["dog"]).norm() < 0.6 * gap
    assert (after["sun"] - before["sun"]).norm() < (after["cat"] - before["cat"]).norm()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "cat", "on", "red"]), min_size=1, max_size=8), st.floats(0.05, 0.95), st.integers(0, 10**6))
def test_paraphrases_leave_words_out_and_change_nothing_else(words, leave_out, seed):
    caption = " ".join(words)
    made = ca.paraphrases(caption, 5, leave_out, seed)
    assert made == ca.paraphrases(caption, 5, leave_out, seed)
    assert made[:3] == ca.paraphrases(caption, 3, leave_out, seed)
    for other in made:
        remaining = iter(words)
        assert all(word in remaining for word in other.split())  # a subsequence
        assert len(other.split()) < len(words)


def test_copies_of_a_memorised_work_are_dropped(denoiser):
    """The images kept are those whose hash bits, compared one by one, never agree with a reference's beyond the threshold."""
    work = Concept("grinning cat, noto style", "work")
    chosen = quick(images=12)
    pairs = ca.anchored(work, chosen, 0)
    assert len({anchor for _, anchor in pairs}) > 1
    assert {target for target, _ in pairs} == {work.name}
    everything, everyone = ca.draw(denoiser, work, pairs, quick(images=12, copy_threshold=1.0), 0)
    assert sorted(everyone) == sorted(pairs)
    assert len(everything) == 12
    references = denoiser.sample(
        [work.name] * ca.REFERENCES,
        [ca.derive(0, "concept_ablation", "reference", number) for number in range(ca.REFERENCES)],
        steps=2,
        guidance=6.0,
        eta=1.0,
    )
    with torch.no_grad():
        hashes = [ca.perceptual_hash(denoiser.images(side)) for side in (everything, references)]
    agreement = np.array([max(2 * (one == other).mean() - 1 for other in hashes[1]) for one in hashes[0]])
    threshold = float(np.unique(agreement.round(6))[:2].mean())  # between two values, away from rounding
    kept, kept_pairs = ca.draw(denoiser, work, pairs, quick(images=12, copy_threshold=threshold), 0)
    expected = np.flatnonzero(agreement <= threshold)
    assert torch.equal(kept, everything[expected])
    assert kept_pairs == [everyone[number] for number in expected]
    with pytest.raises(Misconfigured, match="copies"):
        ca.draw(denoiser, work, pairs, quick(images=12, copy_threshold=-1.0), 0)


def test_a_work_with_an_anchor_keeps_it():
    assert ca.anchored(Concept("cat, noto style", "work", "dog, noto style"), quick(), 0) == [("cat, noto style", "dog, noto style")]


def test_a_work_of_several_captions_has_anchors_and_references_of_each(denoiser, monkeypatch):
    """Its title is no caption of it, and is asked for nowhere."""
    work = Concept("The Cat", "work", members=("red cat, noto style", "a cat"))
    pairs = ca.anchored(work, quick(), 0)
    assert [target for target, _ in pairs] == ["red cat, noto style"] * 2 + ["a cat"] * 2
    assert all(set(anchor.split()) < set(target.split()) for target, anchor in pairs)
    asked, own = [], ca.own_latents
    monkeypatch.setattr(ca, "own_latents", lambda model, prompts, *more, **options: asked.append(prompts) or own(model, prompts, *more, **options))
    ca.draw(denoiser, work, pairs, quick(copy_threshold=1.0), 0)
    assert asked[1] == ["red cat, noto style"] * ca.REFERENCES + ["a cat"] * ca.REFERENCES


def test_of_several_works_each_has_anchors_and_references_of_its_own(denoiser, monkeypatch):
    """Half of the anchors are each work's, which are compared with pictures of both captions and of nothing else."""
    works, chosen = together([Concept("red cat, noto style", "work"), Concept("a dog", "work")]), quick(images=6)
    pairs = ca.anchored(works, chosen, 0)
    assert [target for target, _ in pairs] == ["red cat, noto style"] * 3 + ["a dog"] * 3
    assert all(len(anchor.split()) < len(target.split()) for target, anchor in pairs)
    asked, own = [], ca.own_latents
    monkeypatch.setattr(ca, "own_latents", lambda model, prompts, *more, **options: asked.append(prompts) or own(model, prompts, *more, **options))
    ca.draw(denoiser, works, pairs, quick(images=6, copy_threshold=1.0), 0)
    assert asked[1] == ["red cat, noto style"] * ca.REFERENCES + ["a dog"] * ca.REFERENCES


def test_an_interrupted_erasing_goes_on_to_the_same_bytes(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "EVERY", 2)
    chosen = quick(steps=5)
    whole = ca.erase(denoiser, CAT, chosen, folder=tmp_path / "whole")

    def stop(done, total, figures):
        if done == 1 + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ca.erase(denoiser, CAT, chosen, folder=tmp_path / "part", progress=stop)
    with pytest.raises(Mismatch):
        ca.erase(denoiser, Concept("sun", anchor="dog"), chosen, folder=tmp_path / "part")
    before, steps = denoiser.passes, []
    resumed = ca.erase(denoiser, CAT, chosen, folder=tmp_path / "part", progress=lambda done, *_: steps.append(done))
    assert steps == [1, 4, 5, 6]  # the images are read, and the steps go on from the second
    assert denoiser.passes - before == 3 * 2 * 2
    assert resumed.digest == whole.digest
    assert not list(tmp_path.glob("*/*.safetensors"))


@pytest.mark.parametrize(
    "bad",
    [
        {"variant": "both"},
        {"group": "xattn"},
        {"teacher": "nobody"},
        {"steps": 0},
        {"batch": 0},
        {"images": 0},
        {"image_steps": 0},
        {"image_steps": 1001},
        {"learning_rate": 0.0},
        {"prior": -1.0},
        {"preserve_scale": -1.0},
        {"leave_out": 1.0},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    with pytest.raises(Misconfigured):
        ca.erase(denoiser, CAT, ca.Settings(**bad))


def test_refuses_to_train_a_work_s_token_embeddings(denoiser):
    with pytest.raises(Misconfigured, match="words of its own"):
        ca.erase(denoiser, Concept("cat, noto style", "work"), quick(group="embedding"))


def test_refuses_an_anchor_that_is_the_concept(denoiser):
    with pytest.raises(Misconfigured, match="same prompts"):
        ca.erase(denoiser, Concept("cat", anchor="cat"))
