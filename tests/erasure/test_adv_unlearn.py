"""AdvUnlearn: the first loss in closed form, the attack against gradients taken by hand, and both levels measured from outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from assay.concept import Concept
from assay.erasure import adv_unlearn, uce
from assay.errors import Misconfigured, Mismatch, Unsupported
from assay.noise import generator
from assay.patched import Patched
from assay.testing import tiny
from assay.training import finetune

CAT = Concept("cat", anchor="dog", preserve=("sun", "red hat"))
QUICK: dict[str, Any] = {
    "steps": 3,
    "warmup": 0,
    "batch": 2,
    "learning_rate": 1e-3,
    "attack_steps": 2,
    "attack_rate": 0.1,
    "retain_batch": 3,
    "ddim_steps": 4,
}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> adv_unlearn.Settings:
    return adv_unlearn.Settings(**(QUICK | changes))


def start(denoiser, concept=CAT, **changes: Any) -> adv_unlearn.Training:
    settings = quick(**changes)
    return adv_unlearn.Training(denoiser, concept, settings, adv_unlearn.check(denoiser, settings), seed=0)


def point(denoiser, count=2):
    rng = generator(0, "point", count)
    return torch.randn(count, *denoiser.latent_shape, generator=rng), torch.randint(1000, (count,), generator=rng)


@torch.no_grad()
def epsilon(denoiser, x_t, t, prompt):
    return denoiser.predict(x_t, t, denoiser.conditioning([prompt] * len(x_t)))


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_first_loss_without_attack_is_known(kind, eta):
    """At the start the encoders agree: (1 + eta)^2 mean |e0(c) - e0(0)|^2, as for ESD, and nothing for what is retained."""
    model = tiny(kind)
    training = start(model, eta=eta, attack_steps=0)
    value = float(training.loss(0, generator(0)).detach())
    (x_t, (low, high), prompts), _ = training.drawn
    assert prompts == ["cat", "cat"]
    t = torch.randint(low, high, (2,), generator=generator(0, "adv_unlearn", 0))
    expected = (1 + eta) ** 2 * (epsilon(model, x_t, t, "cat") - epsilon(model, x_t, t, "")).square().mean()
    assert value == pytest.approx(float(expected), rel=1e-3)
    assert value > 0


@pytest.mark.parametrize("kind", ["sd-epsilon", "sdxl"])
def test_a_prefix_of_a_word_s_own_embedding_is_that_word(kind):
    """ "x cat" has one token more than "cat", directly behind the begin token; at full length the end token falls off and comes last."""
    model = tiny(kind)
    training = start(model)
    for prompt in ("cat", "a very long prompt that fills the whole context"):
        told = training.encode([f"x {prompt}"])
        prefix = [embedding[:, 1:2] for embedding in model.family.embed(model.family.tokenize(["x"]))]
        made = training.encode([prompt], prefix)
        assert torch.equal(made.states, told.states)
        assert all(torch.equal(made.extra[name], told.extra[name]) for name in told.extra)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sdxl"])
def test_one_step_of_the_attack_goes_against_the_sign_of_the_gradient(kind):
    """The slope of every number by central differences of the objective, where it is large enough to be told from rounding."""
    model = tiny(kind)
    x_t, t = point(model)
    goal = epsilon(model, x_t, t, "cat")
    begin, end = (start(model, attack_steps=steps).attack(x_t, t, ["cat", "cat"], goal, step=5) for steps in (0, 1))
    training = start(model)

    @torch.no_grad()
    def gap(prefix):
        return (model.predict(x_t, t, training.encode(["cat", "cat"], prefix)) - goal).square().mean((1, 2, 3))

    for encoder, (before, after) in enumerate(zip(begin, end, strict=True)):
        moves = (before - after) / 0.1
        torch.testing.assert_close(moves.abs(), torch.ones_like(moves), rtol=0, atol=1e-5)
        slopes = torch.zeros_like(before)
        for column in range(before.shape[-1]):
            values = []
            for sign in (1, -1):
                moved = [part.clone() for part in begin]
                moved[encoder][:, 0, column] += sign * 0.02
                values.append(gap(moved))
            slopes[:, 0, column] = (values[0] - values[1]) / 0.04
        sure = slopes.abs() > 0.2 * slopes.abs().amax(-1, keepdim=True)
        assert sure.sum() >= 4
        assert (moves[sure].sign() == slopes[sure].sign()).all()


def test_more_steps_of_the_attack_come_nearer_to_what_the_model_drew(denoiser):
    x_t, t = point(denoiser, 8)
    goal = epsilon(denoiser, x_t, t, "cat")
    gaps = []
    for steps in (0, 5, 30):
        training = start(denoiser, attack_steps=steps, attack_rate=0.01)
        prefix = training.attack(x_t, t, ["dog"] * 8, goal, step=0)
        with torch.no_grad():
            gaps.append(float((denoiser.predict(x_t, t, training.encode(["dog"] * 8, prefix)) - goal).square().mean()))
    assert gaps[2] < gaps[1] < gaps[0]


def test_erases_also_behind_a_prefix_and_retains(denoiser):
    """From outside, at noise never drawn: predictions for the concept, plain and behind a token, near the goal; what is kept, near the base."""
    x_t, t = point(denoiser, 16)
    before = {prompt: epsilon(denoiser, x_t, t, prompt) for prompt in ("cat", "x cat", "", "sun")}
    goal = 2 * before[""] - before["cat"]
    patch = adv_unlearn.erase(denoiser, CAT, quick(steps=25, warmup=5, learning_rate=5e-3, ddim_steps=2, resample=5))
    with Patched(denoiser, [(patch, 1.0)]):
        after = {prompt: epsilon(denoiser, x_t, t, prompt) for prompt in before}
    for prompt in ("cat", "x cat"):
        assert (after[prompt] - goal).square().mean() < 0.7 * (before[prompt] - goal).square().mean()
    assert (after["sun"] - before["sun"]).norm() < 0.7 * (after["cat"] - before["cat"]).norm()


@pytest.mark.long
def test_a_weight_on_what_is_retained_keeps_it_nearer(denoiser):
    """By half or more, over what the concept preserves and the empty prompt together."""
    x_t, t = point(denoiser, 16)
    kept = ("sun", "red hat", "")
    before = {prompt: epsilon(denoiser, x_t, t, prompt) for prompt in kept}
    moved = []
    for weight in (0.0, 10.0):
        settings = quick(steps=30, attack_steps=0, learning_rate=3e-3, retain_batch=6, retain_weight=weight, ddim_steps=2, resample=5)
        with Patched(denoiser, [(adv_unlearn.erase(denoiser, CAT, settings), 1.0)]):
            moved.append(sum(float((epsilon(denoiser, x_t, t, prompt) - before[prompt]).norm()) for prompt in kept))
    assert moved[1] < 0.5 * moved[0]


def test_the_student_samples_by_its_own_reading_and_leaves_no_trace(denoiser):
    """With another text encoder in training the latents differ, and the model still reads prompts as it did."""
    told = denoiser.conditioning(["cat", ""]).states.clone()
    draws = []
    for factor in (1.0, 2.0):
        training = start(denoiser, ddim_steps=10)
        with torch.no_grad():
            for master in training.student.masters.values():
                master.mul_(factor)
        draws.append(training.sample(1, "erase")[0])
        assert torch.equal(denoiser.conditioning(["cat", ""]).states, told)
    assert not torch.equal(*draws)


@pytest.mark.parametrize("changes", [{}, {"warmup": 2}, {"attack_steps": 0}, {"attack_tokens": 3, "resample": 2}])
def test_takes_the_passes_that_it_says(denoiser, changes):
    """With one step of sampling there is nothing to sample, so that every pass is known."""
    settings = quick(ddim_steps=1, **changes)
    before = denoiser.passes
    adv_unlearn.erase(denoiser, CAT, settings)
    assert denoiser.passes - before == sum(adv_unlearn.cost(settings).values())


def test_a_short_training_leaves_no_prompt_and_no_step_out(denoiser):
    """9 prompts in 5 sets of 2: each once, one twice. 4 steps of sampling in 5 sets: each at least once. The empty prompt is retained in each set."""
    concept = Concept("cat", "object", "dog", members=("cat", "kitten", "tiger"), preserve=("sun", "moon"), styles=("noto",))
    training = start(denoiser, concept, steps=10, resample=2)
    sets = [(training.sample(step, "erase"), training.sample(step, "retain")) for step in range(0, 10, 2)]
    prompts = [prompt for erased, _ in sets for prompt in erased[2]]
    assert len(prompts) == 10
    assert set(prompts) == {target for target, _ in concept.pairs()}
    assert all("" in kept[2] and len(kept[2]) == 3 for _, kept in sets)
    for place in (0, 1):
        assert len({both[place][1] for both in sets}) == 4
    levels = adv_unlearn.dealt(4, 40, 0, "levels")
    assert all(sorted(levels[turn : turn + 4]) == [0, 1, 2, 3] for turn in range(0, 40, 4))
    assert len(set(levels[::4])) > 1  # what comes round every fourth time is not always at one level


@pytest.mark.long
def test_an_interrupted_erasing_goes_on_to_the_same_bytes(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "EVERY", 3)
    settings = quick(steps=7, warmup=3, ddim_steps=2, resample=2, attack_steps=1)
    whole = adv_unlearn.erase(denoiser, CAT, settings, folder=tmp_path / "whole")

    def stop(done, total, figures):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adv_unlearn.erase(denoiser, CAT, settings, folder=tmp_path / "part", progress=stop)
    with pytest.raises(Mismatch):
        adv_unlearn.erase(denoiser, Concept("dog"), settings, folder=tmp_path / "part")
    below = uce.erase(denoiser, Concept("dog", anchor="sun"))  # another model to learn from, of the same text encoder
    with Patched(denoiser, [(below, 1.0)]), pytest.raises(Mismatch):
        adv_unlearn.erase(denoiser, CAT, settings, folder=tmp_path / "part")
    steps = []
    resumed = adv_unlearn.erase(denoiser, CAT, settings, folder=tmp_path / "part", progress=lambda done, *_: steps.append(done))
    assert steps == [5, 6, 7]
    assert resumed.digest == whole.digest
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"warmup": -1},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"eta": float("nan")},
        {"attack_steps": -1},
        {"attack_rate": -1.0},
        {"attack_tokens": 0},
        {"attack_tokens": 23},
        {"retain_batch": 0},
        {"retain_weight": -1.0},
        {"resample": 0},
        {"ddim_steps": 0},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    passes = denoiser.passes
    with pytest.raises(Misconfigured):
        adv_unlearn.erase(denoiser, CAT, quick(**bad))
    assert denoiser.passes == passes


def test_refuses_float16():
    model = tiny("sd-epsilon")
    model.pipeline.to(torch.float16)
    with pytest.raises(Unsupported, match="float16"):
        adv_unlearn.erase(model, CAT, quick())
