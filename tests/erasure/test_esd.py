"""ESD against its loss in closed form, a finite difference, and its own base."""

from typing import Any

import pytest
import torch

from assay.concept import Concept
from assay.erasure import esd
from assay.errors import Misconfigured, Mismatch, Unsupported
from assay.noise import derive, generator
from assay.patched import Patched
from assay.testing import tiny
from assay.training import finetune

CAT = Concept("cat", anchor="dog")
QUICK: dict[str, Any] = {"steps": 3, "batch": 2, "ddim_steps": 4, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> esd.Settings:
    return esd.Settings(**(QUICK | changes))


def start(denoiser, concept=CAT, seed=0, **changes):
    settings = quick(**changes)
    return esd.Training(denoiser, concept, settings, esd.check(denoiser, concept, settings), seed)


def point(denoiser, count=2):
    rng = generator(0, "point", count)
    return torch.randn(count, *denoiser.latent_shape, generator=rng), torch.randint(1000, (count,), generator=rng)


@torch.no_grad()
def epsilon(denoiser, x_t, t, prompt):
    return denoiser.predict(x_t, t, denoiser.conditioning([prompt] * len(x_t)))


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_the_first_loss_is_known(kind, eta):
    """At the start e = e0, so e(c) - [e0(0) - eta (e0(c) - e0(0))] = (1 + eta) (e0(c) - e0(0)); here with e0 from plain predictions."""
    model = tiny(kind)
    training = start(model, eta=eta)
    value = float(training.loss(0, generator(0)).detach())
    assert training.drawn is not None
    x_t, (low, high), _ = training.drawn
    t = torch.randint(low, high, (2,), generator=generator(0, "esd", 0))
    expected = (1 + eta) ** 2 * (epsilon(model, x_t, t, "cat") - epsilon(model, x_t, t, "")).square().mean()
    assert value == pytest.approx(float(expected), rel=1e-3)
    assert value > 0


def test_the_target_with_another_source_and_with_an_anchor(denoiser):
    """By hand from plain predictions: e0(f) - eta (e0(c) - e0(0)), and e0(c*) - eta (e0(c) - e0(c*))."""
    x_t, t = point(denoiser)
    cat, dog, empty, animal = (epsilon(denoiser, x_t, t, prompt) for prompt in ("cat", "dog", "", "animal"))
    for changes, expected in (
        ({"erase_from": "animal", "eta": 2.0}, animal - 2 * (cat - empty)),
        ({"toward_anchor": True, "eta": 2.0}, dog - 2 * (cat - dog)),
    ):
        training = start(denoiser, **changes)
        parts = training.prompts([training.pairs[0]] * 2)
        assert torch.allclose(training.target(x_t, t, *parts), expected, atol=1e-5)


def test_the_gradient_agrees_with_a_finite_difference(denoiser):
    """Along the unit gradient g / |g| of one matrix the loss rises at the rate |g|: central difference of step h, error of order h^2."""
    training = start(denoiser)
    x_t, t = point(denoiser)
    concept, away, source = training.prompts([training.pairs[0]] * 2)
    target = training.target(x_t, t, concept, away, source)
    name = max((name for name in training.student.masters if ".to_v." in name), key=lambda name: training.student.masters[name].numel())
    master = training.student.masters[name]
    (gradient,) = torch.autograd.grad(training.distance(x_t, t, concept, target), [master])
    kept, step = master.detach().clone(), 0.05
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            master.copy_(kept + sign * step * gradient / gradient.norm())
            values.append(float(training.distance(x_t, t, concept, target)))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02)


def test_lowers_its_loss_within_30_steps(denoiser):
    """Measured from outside: base predictions before, predictions under the patch after, at noise that the training never drew."""
    x_t, t = point(denoiser, 16)
    cat, empty = (epsilon(denoiser, x_t, t, prompt) for prompt in ("cat", ""))
    goal = empty - (cat - empty)
    patch = esd.erase(denoiser, CAT, esd.Settings(steps=30, batch=4, ddim_steps=3, learning_rate=1e-2, resample=5))
    with Patched(denoiser, [(patch, 1.0)]):
        after = epsilon(denoiser, x_t, t, "cat")
    assert (after - goal).square().mean() < 0.7 * (cat - goal).square().mean()


def test_x_t_is_the_sampler_s_own_and_fits_its_timesteps(denoiser):
    """Before training the student is the base: x_t is what `Denoiser.sample` returns when stopped, whose timestep starts its bucket.

    15 does not divide 1000: the sampler's timesteps are 66 apart, and the first stands for all above it.
    """
    for latents, steps in (("student", 10), ("base", 10), ("student", 15)):
        training = start(denoiser, latents=latents, ddim_steps=steps)
        timesteps = denoiser.timesteps(steps).tolist()
        for step in range(4):
            x_t, (low, high), pairs = training.sample(step)
            taken = timesteps.index(low)
            assert high == (timesteps[taken - 1] if taken else 1000)
            seeds = [derive(0, "esd", step, row) for row in range(2)]
            assert torch.equal(x_t, denoiser.sample([target for target, _ in pairs], seeds, steps=steps, guidance=3.0, stop=taken))


def test_the_student_samples_with_its_own_weights(denoiser):
    draws = {}
    for latents in ("student", "base"):
        training = start(denoiser, latents=latents, ddim_steps=10)
        with torch.no_grad():
            for master in training.student.masters.values():
                master.mul_(3)
        draws[latents] = training.sample(1)[0]
    assert not torch.equal(draws["student"], draws["base"])


def test_x_t_serves_as_many_steps_as_asked(denoiser):
    """Passes of a whole erasing, by hand: sampling takes 2 passes a latent and step, a training step 2 (base) + 1 (student) a latent."""
    for resample in (1, 3):
        training = start(denoiser, resample=resample)
        taken = [3 - training.sample(step)[1][0] // 250 for step in range(0, 6, resample)]  # bucket 3 is pure noise
        before = denoiser.passes
        esd.erase(denoiser, CAT, quick(steps=6, resample=resample))
        assert denoiser.passes - before == 2 * (2 * sum(taken) + 3 * 6)


@pytest.mark.parametrize(("group", "names"), esd.GROUPS.items())
def test_trains_the_group_alone(denoiser, group, names):
    patch = esd.erase(denoiser, CAT, quick(group=group, steps=1))
    assert set(patch.names) == set(denoiser.group(names))
    assert any(tensor.abs().max() > 0 for tensor in patch.tensors.values())


def test_an_interrupted_erasing_goes_on_to_the_same_bytes(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "EVERY", 3)
    settings = esd.Settings(steps=7, batch=1, ddim_steps=2, learning_rate=1e-3, resample=2)
    whole = esd.erase(denoiser, CAT, settings, folder=tmp_path / "whole")

    def stop(done, total, figures):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        esd.erase(denoiser, CAT, settings, folder=tmp_path / "part", progress=stop)
    assert (tmp_path / "part" / "checkpoint.safetensors").exists()
    with pytest.raises(Mismatch):
        esd.erase(denoiser, Concept("dog"), settings, folder=tmp_path / "part")
    steps = []
    resumed = esd.erase(denoiser, CAT, settings, folder=tmp_path / "part", progress=lambda done, *_: steps.append(done))
    assert steps == [5, 6, 7]  # from the first step past the third at which new x_t are due
    assert resumed.digest == whole.digest
    assert not list(tmp_path.glob("*/checkpoint*"))


def test_a_model_in_bfloat16_is_trained_through_float32(denoiser):
    """A step of Adam is the learning rate, 1e-4: in bfloat16 it would be lost beside weights of 0.1, whose spacing is 5e-4."""
    model = tiny("sd-epsilon")
    model.pipeline.to(torch.bfloat16)
    patch = esd.erase(model, CAT, quick(learning_rate=1e-4, steps=1))
    largest = max(float(tensor.abs().max()) for tensor in patch.tensors.values())
    assert largest == pytest.approx(1e-4, rel=0.01)


def test_refuses_float16():
    model = tiny("sd-epsilon")
    model.pipeline.to(torch.float16)
    with pytest.raises(Unsupported, match="float16"):
        esd.erase(model, CAT)


@pytest.mark.parametrize(
    "bad",
    [
        {"group": "xattn"},
        {"latents": "both"},
        {"steps": 0},
        {"batch": 0},
        {"resample": 0},
        {"ddim_steps": 0},
        {"ddim_steps": 1001},
        {"learning_rate": 0.0},
        {"eta": float("inf")},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    with pytest.raises(Misconfigured):
        esd.erase(denoiser, CAT, esd.Settings(**bad))


def test_refuses_to_go_toward_the_concept(denoiser):
    """A family's name is no member of it: what is called so may take its place."""
    for members in ((), ("black cat", "cat")):
        with pytest.raises(Misconfigured, match="anchor"):
            esd.erase(denoiser, Concept("cat", "object", anchor="cat", members=members), esd.Settings(toward_anchor=True))
    esd.check(denoiser, Concept("cat", "object", anchor="cat", members=("black cat",)), esd.Settings(toward_anchor=True))


def test_without_an_anchor_goes_toward_the_empty_prompt(denoiser):
    """What the paper does; so a preset can go toward an anchor and still take a concept that has none."""
    made = [esd.erase(denoiser, Concept("cat"), quick(toward_anchor=toward)).digest for toward in (True, False)]
    assert made[0] == made[1]


def test_says_when_training_diverged(denoiser):
    with pytest.raises(Misconfigured, match="diverged"):
        esd.erase(denoiser, CAT, quick(learning_rate=1e30))
