"""EraseFlow: the flow of a model that matches the forward process, known by Bayes' rule; the sampler's own trajectories; the loss by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from assay.concept import Concept, together
from assay.denoiser import Denoiser
from assay.erasure import eraseflow
from assay.errors import Misconfigured, Mismatch, Unsupported
from assay.noise import derive, generator
from assay.patched import Patched
from assay.testing import KINDS, tiny
from assay.testing.pipelines import tiny_pipeline
from assay.training import finetune
from assay.training.low_rank import matrices

CAT = Concept("cat", anchor="dog")
QUICK: dict[str, Any] = {"rank": 2, "steps": 3, "batch": 2, "ddim_steps": 5, "early": 2, "late": 1, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> eraseflow.Settings:
    return eraseflow.Settings(**(QUICK | changes))


def start(denoiser, concept=CAT, **changes: Any) -> eraseflow.Training:
    settings = quick(**changes)
    return eraseflow.Training(denoiser, concept, settings, eraseflow.check(denoiser, concept, settings), seed=0)


def log_normal(x: torch.Tensor, mean: torch.Tensor, variance: float) -> torch.Tensor:
    return (-0.5 * math.log(2 * math.pi * variance) - (x - mean).square() / (2 * variance)).mean((1, 2, 3))


def column(value: float) -> torch.Tensor:
    return torch.full((4, 1, 1, 1), value, dtype=torch.float64)


@given(st.integers(0, 10**6), st.floats(0.01, 0.98), st.floats(0.01, 0.99))
def test_a_model_of_one_image_balances_by_bayes_rule(seed, after, share):
    """If all data is one x_0, the best epsilon is known and p is the exact posterior, so log p - log q = log q(x_next | x_0) - log q(x_t | x_0)."""
    alpha = after * share
    x_0, x_t, x_next = torch.randn(3, 4, 2, 3, 3, generator=generator(seed, "one image"), dtype=torch.float64)
    epsilon = (x_t - alpha**0.5 * x_0) / (1 - alpha) ** 0.5
    made = eraseflow.log_ratio(x_t, x_next, epsilon, column(alpha), column(after))
    expected = log_normal(x_next, after**0.5 * x_0, 1 - after) - log_normal(x_t, alpha**0.5 * x_0, 1 - alpha)
    torch.testing.assert_close(made, expected, rtol=1e-7, atol=1e-7)


def test_what_balance_is_expected_of_stable_diffusion_s_schedule(denoiser):
    """Half the sum of log (1 - a) / (1 - a'): 2.77 over the last 10 of 50 steps, 3.53 over all, which telescope to the first and last alpha-bar."""
    steps = eraseflow.noisy_steps(denoiser, 50)
    alphas = denoiser.alphas_cumprod.double()
    assert len(steps) == 50
    assert eraseflow.balanced(steps) == pytest.approx(0.5 * math.log((1 - float(alphas[981])) / (1 - float(alphas[0]))), rel=1e-6)
    assert eraseflow.balanced(steps[-10:]) == pytest.approx(2.77, abs=0.005)
    assert eraseflow.balanced(steps) == pytest.approx(3.53, abs=0.005)


def test_the_model_of_one_image_is_balanced_on_average(denoiser):
    """Trajectories of the exact model from pure noise: the mean over 2,000 one-element latents within 5 standard errors of `balanced`.

    From a start that is exactly q(x_T | x_0) every x_t is distributed as q(x_t | x_0), of which log q has the mean -1/2 log(2 pi e (1 - a)).
    """
    steps = eraseflow.noisy_steps(denoiser, 10)
    x_0 = torch.tensor(0.7, dtype=torch.float64)
    rng = generator(0, "balance")
    x_t = steps[0][1] ** 0.5 * x_0 + (1 - steps[0][1]) ** 0.5 * torch.randn(2000, 1, 1, 1, generator=rng, dtype=torch.float64)
    total = torch.zeros(2000, dtype=torch.float64)
    for _, alpha, after in steps:
        a, b = (torch.full((2000, 1, 1, 1), value, dtype=torch.float64) for value in (alpha, after))
        epsilon = (x_t - alpha**0.5 * x_0) / (1 - alpha) ** 0.5
        mean, variance = eraseflow.reverse_step(x_t, epsilon, a, b)
        x_next = mean + variance.sqrt() * torch.randn(x_t.shape, generator=rng, dtype=torch.float64)
        total += eraseflow.log_ratio(x_t, x_next, epsilon, a, b)
        x_t = x_next
    assert abs(float(total.mean()) - eraseflow.balanced(steps)) < 5 * float(total.std()) / 2000**0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_trajectories_are_the_sampler_s_own_under_the_anchor(kind, guidance):
    """`Denoiser.sample` with eta 1 draws the same noise from the same seeds and steps by diffusers' scheduler."""
    model = tiny(kind)
    trajectories, prompts = start(model, guidance=guidance).sample(4)
    assert prompts == ["cat", "cat"]
    assert trajectories.shape == (2, 6, *model.latent_shape)
    seeds = [derive(0, "eraseflow", 4, row) for row in range(2)]
    for taken in (0, 2, 5):
        expected = model.sample(["dog", "dog"], seeds, steps=5, guidance=guidance, eta=1.0, stop=taken)
        torch.testing.assert_close(trajectories[:, taken], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_beta", [2.5, None])
def test_the_first_loss_by_hand(kind, log_beta):
    """From plain predictions, in float64, with every normal density written out."""
    model = tiny(kind)
    training = start(model, log_beta=log_beta)
    value = float(training.loss(0, generator(3, "scored")).detach())
    assert training.drawn is not None
    trajectories, _ = training.drawn
    places = training.scored(generator(3, "scored"))
    residuals = torch.full((2,), -0.1953, dtype=torch.float64)
    for place in places:
        t, alpha, after = training.steps[place]
        x_t, x_next, times = trajectories[:, place], trajectories[:, place + 1], torch.full((2,), t)
        with torch.no_grad():
            concept, empty = (model.predict(x_t, times, model.conditioning([prompt] * 2)).double() for prompt in ("cat", ""))
        epsilon, x_t, x_next = empty + 5.0 * (concept - empty), x_t.double(), x_next.double()
        beta = 1 - alpha / after
        variance = beta * (1 - after) / (1 - alpha)
        clean = (x_t - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5
        mean = after**0.5 * clean + (1 - after - variance) ** 0.5 * epsilon
        residuals += log_normal(x_next, mean, variance) - log_normal(x_t, (1 - beta) ** 0.5 * x_next, beta)
    goal = log_beta if log_beta else sum(0.5 * math.log((1 - training.steps[p][1]) / (1 - training.steps[p][2])) for p in places) - 0.1953
    assert value == pytest.approx(float((residuals - goal).square().mean()), rel=2e-3, abs=1e-4)


def test_the_gradient_does_not_depend_on_how_many_are_taken_at_once(denoiser, monkeypatch):
    """Against autograd through the whole mean of squares; log_z's is twice the mean residual."""
    training = start(denoiser, batch=3)
    with torch.no_grad():
        for name, master in training.student.masters.items():
            if name.endswith("/up"):
                master.copy_(0.05 * torch.randn(master.shape, generator=generator(0, name)))
    training.loss(0, generator(1, "scored"))
    assert training.drawn is not None
    residual = training.residual(*training.drawn, training.scored(generator(1, "scored")))
    masters = training.student.masters
    expected = dict(zip(masters, torch.autograd.grad(residual.square().mean(), list(masters.values())), strict=True))
    assert float(expected["log_z"]) == pytest.approx(2 * float(residual.detach().mean()), rel=1e-4)
    for at_once in (1, 6, 100):
        monkeypatch.setattr(eraseflow, "AT_ONCE", at_once)
        value = training.loss(0, generator(1, "scored"))
        assert float(value.detach()) == pytest.approx(float(residual.square().mean().detach()), rel=1e-4)
        for name, slope in zip(masters, torch.autograd.grad(value, list(masters.values())), strict=True):
            torch.testing.assert_close(slope, expected[name], rtol=1e-3, atol=1e-4)


def test_scores_the_last_steps_and_some_of_the_others(denoiser):
    training = start(denoiser, ddim_steps=10, early=3, late=2)
    drawn = [training.scored(generator(seed, "scored")) for seed in range(40)]
    assert all(len(set(places)) == 5 and places[-2:] == [8, 9] and places == sorted(places) for places in drawn)
    assert {place for places in drawn for place in places} == set(range(10))


def test_a_step_without_noise_is_not_scored():
    """With alpha-bar 1 at the end the last step is deterministic, and from timestep 0 to the first alpha-bar it is none: p or q has no density."""
    for final, offset in ((1.0, 1), (None, 0)):
        model = tiny("sd-epsilon")
        model.scheduler.register_to_config(steps_offset=offset)
        if final is not None:
            model.scheduler.final_alpha_cumprod = torch.tensor(final)
        assert len(eraseflow.noisy_steps(model, 5)) == 4
        assert all(bool(tensor.isfinite().all()) for tensor in eraseflow.erase(model, CAT, quick(steps=1)).tensors.values())


@pytest.mark.long
def test_comes_nearer_to_balance(denoiser):
    """From outside: the loss of the patched model, on trajectories and steps never drawn, is below the base's."""
    settings = quick(rank=4, steps=20, learning_rate=1e-2, log_z=0.0, resample=2)
    patch = eraseflow.erase(denoiser, CAT, settings)

    def outside():
        training = eraseflow.Training(denoiser, CAT, quick(batch=16, early=4, log_z=0.0), matrices(denoiser.group("attention")), seed=9)
        return float(training.loss(0, generator(9, "scored")).detach())

    before = outside()
    with Patched(denoiser, [(patch, 1.0)]):
        assert outside() < 0.5 * before


def test_a_style_has_a_learning_rate_of_its_own(denoiser):
    """The same prompts as a style and as plain words: the same change at the same rate, each by its own setting."""
    style, words = Concept("red", "style", anchor="blue"), Concept("red style", anchor="blue style")
    assert style.pairs() == words.pairs()

    def made(concept, rate, style_rate):
        return eraseflow.erase(denoiser, concept, quick(steps=1, learning_rate=rate, style_learning_rate=style_rate)).tensors

    one, other, slower = made(style, 1.0, 1e-2), made(words, 1e-2, 1.0), made(words, 1e-3, 1.0)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], slower[name]) for name in one)
    for parts in ([style, CAT], [CAT, style]):  # a first step of Adam is as large as the rate, and ups begin at zero
        ups = [tensor for name, tensor in made(together(parts), 1e-3, 1.0).items() if name.endswith("/up")]
        assert 0 < max(float(up.abs().max()) for up in ups) < 2e-3


@pytest.mark.parametrize("changes", [{}, {"guidance": 1.0}, {"resample": 2}, {"early": 0}])
def test_takes_the_passes_that_it_says(denoiser, changes):
    before = denoiser.passes
    eraseflow.erase(denoiser, CAT, quick(**changes))
    assert denoiser.passes - before == sum(eraseflow.cost(quick(**changes)).values())


def test_an_interrupted_erasing_goes_on_to_the_same_bytes(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "EVERY", 3)
    settings = quick(steps=7, batch=1, ddim_steps=2, early=1, resample=2)
    whole = eraseflow.erase(denoiser, CAT, settings, folder=tmp_path / "whole")

    def stop(done, total, figures):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eraseflow.erase(denoiser, CAT, settings, folder=tmp_path / "part", progress=stop)
    with pytest.raises(Mismatch):
        eraseflow.erase(denoiser, Concept("dog"), settings, folder=tmp_path / "part")
    steps = []
    resumed = eraseflow.erase(denoiser, CAT, settings, folder=tmp_path / "part", progress=lambda done, *_: steps.append(done))
    assert steps == [5, 6, 7]
    assert resumed.digest == whole.digest
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    "bad",
    [
        {"rank": 0},
        {"steps": 0},
        {"batch": 0},
        {"ddim_steps": 0},
        {"resample": 0},
        {"early": -1},
        {"late": 4},
        {"early": 0, "late": 0},
        {"learning_rate": 0.0},
        {"style_learning_rate": 0.0},
        {"log_beta": float("inf")},
        {"guidance": float("nan")},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    passes = denoiser.passes
    with pytest.raises(Misconfigured):
        eraseflow.erase(denoiser, CAT, quick(**bad))
    assert denoiser.passes == passes


def test_refuses_an_anchor_that_is_the_concept(denoiser):
    with pytest.raises(Misconfigured, match="same"):
        eraseflow.erase(denoiser, Concept("cat", anchor="cat"), quick())


def test_refuses_a_schedule_that_ends_in_pure_noise():
    """There alpha-bar is 0, and the image that a prediction of noise implies is 0 / 0."""
    pipeline = tiny_pipeline("sd-v")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(Unsupported, match="pure noise"):
        eraseflow.erase(Denoiser(pipeline), CAT, quick())


def test_refuses_float16():
    model = tiny("sd-epsilon")
    model.pipeline.to(torch.float16)
    with pytest.raises(Unsupported, match="float16"):
        eraseflow.erase(model, CAT, quick())
