"""Gradients against a loop over works in float64; noise against its deviation; draws against their definition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.noise import generator, normal, numpy_generator
from assay.testing import tiny
from assay.training import private
from assay.training.finetune import Student
from assay.training.loop import Schedule
from assay.training.low_rank import LowRank, matrices
from assay.training.precision import unfused_attention
from assay.training.private import Draws, Guarantee, Privacy, PrivateRun, clipped_sum, guarantee, sample_loss, train

PUBLIC = Privacy(epsilon=math.inf, delta=1e-3, clip=math.inf, multiplicity=3)
SCHEDULE = Schedule(steps=4, batch=3, learning_rate=1e-2, warmup=0, decay=0, weight_decay=0, clip=math.inf, ema=0)
KEPT = Guarantee(8.0, 1e-3, "rdp", 1.5, 0.5, 4, 0.7, 1, 6)


def toy(parameters, x, y):
    return (torch.tanh(x @ parameters["w"]) + parameters["b"] - y).square().sum()


def toy_data(count=7):
    weights = {"w": normal((3, 2), [1])[0].double(), "b": normal((2,), [2])[0].double()}
    x, y = normal((3,), list(range(10, 10 + count))).double(), normal((2,), list(range(30, 30 + count))).double()
    return weights, x, 3 * y


def by_hand(loss, weights, samples, clip):
    """The definition: one backward pass a sample, one norm over all parameters."""
    total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    scales = []
    for row in range(len(samples[0])):
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
        gradients = torch.autograd.grad(loss(leaves, *(tensor[row] for tensor in samples)), list(leaves.values()))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        scales.append(min(1.0, clip / norm))
        for name, gradient in zip(leaves, gradients, strict=True):
            total[name] += gradient * scales[-1]
    return total, scales


@pytest.mark.parametrize("clip", [8.0, math.inf])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_clipped_sum_is_that_of_a_loop(clip, chunk):
    weights, *samples = toy_data()
    expected, scales = by_hand(toy, weights, samples, clip)
    assert math.isinf(clip) or 0 < sum(scale < 1 for scale in scales) < len(scales)  # some are clipped, some are not
    found = clipped_sum(toy, weights, samples, clip, chunk)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-12)


def test_no_work_moves_the_sum_by_more_than_the_clip():
    weights, x, y = toy_data()
    y[3] = 1e6  # a work as far out as can be
    x[5] = math.nan  # one whose gradient is no number counts nothing
    whole = clipped_sum(toy, weights, [x, y], 0.5)
    for left in range(len(x)):
        rest = [row for row in range(len(x)) if row != left]
        part = clipped_sum(toy, weights, [x[rest], y[rest]], 0.5)
        moved = math.sqrt(sum(float((whole[name] - part[name]).square().sum()) for name in whole))
        assert moved == pytest.approx(0.0 if left == 5 else 0.5, abs=1e-9)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
@pytest.mark.parametrize("low_rank", [True, False])
def test_a_work_s_gradient_is_that_of_the_mean_over_its_draws(pipelines, kind, low_rank):
    """Clipped once, after the mean: against `Denoiser.loss` of its K draws one by one, by autograd through the student's weights."""
    denoiser = pipelines[kind]
    group = matrices(denoiser.group("cross_attention.kv"))
    student = LowRank(denoiser, group, 2, seed=1) if low_rank else Student(denoiser, group)
    with torch.no_grad():
        for name, master in student.masters.items():
            master += 0.05 * torch.randn(master.shape, generator=generator(0, name))
    texts = denoiser.conditioning(["", "a cat", "a dog"])
    draws = Draws(denoiser, normal(denoiser.latent_shape, [1, 2]), texts, [[1], [1, 2]], 3, 0.1)
    clean, t, noise, *told = samples = draws(torch.tensor([1, 0]), numpy_generator(0, "draws"))
    found = clipped_sum(sample_loss(student, list(texts.extra)), student.masters, samples, 0.005)
    expected = {name: torch.zeros_like(master) for name, master in student.masters.items()}
    for row in range(2):
        loss = 0
        for k in range(3):
            extra = {name: tensor[row, k : k + 1] for name, tensor in zip(texts.extra, told[1:], strict=True)}
            conditioning = Conditioning(told[0][row, k : k + 1], extra)
            loss = loss + student.run(denoiser.loss, clean[row : row + 1], t[row, k : k + 1], noise[row, k : k + 1], conditioning).sum() / 3
        assert isinstance(loss, torch.Tensor)
        gradients = torch.autograd.grad(loss, list(student.masters.values()))
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        assert norm > 0.005  # or the clip would not be seen
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient * (0.005 / norm)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=1e-6)


def test_draws_are_a_work_s_own(sd):
    texts = sd.conditioning(["", "a cat", "a dog", "an owl"])
    draws = Draws(sd, normal(sd.latent_shape, [1, 2, 3]), texts, [[1], [2, 3], [3]], 8, 0.25)
    rows = torch.tensor([0, 1, 1, 2]).repeat(100)
    clean, t, noise, states = draws(rows, numpy_generator(1, "draws"))
    assert torch.equal(clean[:4], normal(sd.latent_shape, [1, 2, 2, 3]))
    assert (t * 8 // 1000 == torch.arange(8)).all()  # one draw in each eighth
    assert noise.flatten(2).shape == (400, 8, math.prod(sd.latent_shape))
    assert len(noise.flatten(2)[:, :, 0].unique()) == 3200  # none used twice
    told = (states[:, :, None] == texts.states).flatten(3).all(3)  # (rows, draws, texts)
    assert (told.sum(2) == 1).all()
    # Of 3,200 captions a quarter is empty, half of work 1's others are 2: within five deviations.
    assert float(told[:, :, 0].float().mean()) == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 3200))
    assert not told[rows == 0][:, :, 2:].any()
    assert not told[rows == 1][:, :, 1].any()
    share = float(told[rows == 1][:, :, 2].sum() / told[rows == 1][:, :, 2:].sum())
    assert share == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 1200))
    with pytest.raises(Misconfigured, match="caption"):
        Draws(sd, normal(sd.latent_shape, [1, 2]), texts, [[1], []], 1, 0.1)


def zero_run(count=6, size=20000, **changes):
    """A loss that does not depend on its parameters, so that gradients are noise alone."""
    weights = {"w": torch.zeros(size, requires_grad=True)}
    return PrivateRun(
        weights, lambda p, x: 0 * p["w"].sum() + x, lambda rows, _: [rows.float()], SCHEDULE, replace(KEPT, works=count, **changes), seed=1
    )


def test_the_noise_has_its_deviation():
    """sigma C / (q n) = 1.5 * 0.7 / (0.5 * 6) = 0.35; a sample deviation of 20,000 is within 5 / sqrt(40,000) of it."""
    for rate in (0.5, 1e-9):  # also where no work is drawn
        run = zero_run(sampling_rate=rate)
        norm = run.gradients(generator(1, "step", 0))
        gradient = run.parameters["w"].grad
        assert gradient is not None
        assert float(gradient.std()) == pytest.approx(1.5 * 0.7 / (rate * 6), rel=0.025)
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_the_noise_hangs_on_the_whole_secret():
    """Seeds that agree in their low 32 bits, and in 64, draw other noise; one seed and step draw the same again, whatever else is drawn."""
    found = []
    for seed, step in ((1, 0), (1 + (1 << 32), 0), (1 + (1 << 64), 0), (1, 1), (1, 0)):
        run = zero_run()
        run.seed, run.step = seed, step
        run.gradients(generator(len(found)))
        found.append(run.parameters["w"].grad)
    assert torch.equal(found[0], found[-1])
    first = found[0]
    assert all(abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 5 / math.sqrt(20000) for other in found[1:-1])


def test_works_are_drawn_independently():
    """Poisson sampling: the number of works in a step is binomial."""
    sizes = []
    run = zero_run(count=40, size=1)
    run.draw = lambda rows, _: sizes.append(rows.tolist()) or [rows.float()]
    for run.step in range(400):
        run.gradients(generator(1, "step", run.step))
    counts = torch.tensor([len(rows) for rows in sizes]).float()
    assert float(counts.mean()) == pytest.approx(20, abs=5 * math.sqrt(10 / 400))
    assert float(counts.var()) == pytest.approx(10, rel=5 * math.sqrt(2 / 400))
    each = torch.bincount(torch.tensor([row for rows in sizes for row in rows]), minlength=40) / 400
    assert each.sub(0.5).abs().max() < 5 * math.sqrt(0.25 / 400)


def test_without_noise_and_clip_it_is_plain_training(monkeypatch):
    """AdamW by hand on the sum of losses over the batch by its expected size."""
    denoiser = tiny("sd-epsilon")
    texts, latents = denoiser.conditioning(["", "a cat"]), normal(denoiser.latent_shape, range(6))
    seen = []
    original = Draws.__call__
    monkeypatch.setattr(Draws, "__call__", lambda self, rows, rng: seen.append(original(self, rows, rng)) or seen[-1])
    student, other = (Student(denoiser, matrices(denoiser.group("cross_attention.kv"))) for _ in range(2))
    kept = train(student, latents, texts, [[1]] * 6, PUBLIC, SCHEDULE, seed=3)
    assert kept.epsilon == math.inf
    assert kept.noise_multiplier == 0
    optimizer = torch.optim.AdamW(other.masters.values(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0)
    for clean, t, noise, states in seen:
        optimizer.zero_grad()
        total = sum(
            other.run(denoiser.loss, clean[[row]].expand(3, -1, -1, -1), t[row], noise[row], Conditioning(states[row])).mean()
            for row in range(len(clean))
        )
        assert isinstance(total, torch.Tensor)
        (total / SCHEDULE.batch).backward()
        optimizer.step()
    moved = 0.0
    for name, master in student.masters.items():
        # AdamW divides by the gradient's size: where that is rounding noise the sign may differ, but not the size of a step.
        difference = (master - other.masters[name]).detach().abs()
        assert float((difference > 1e-4).float().mean()) < 0.01
        moved = max(moved, float((master - student.weights[name]).detach().abs().max()))
    assert moved > 0.01


def test_goes_on_where_it_was(sd, tmp_path):
    texts, latents = sd.conditioning(["", "a cat"]), normal(sd.latent_shape, range(6))
    privacy = Privacy(epsilon=1.0, delta=1e-3, clip=0.1, multiplicity=1, accountant="rdp")
    group = matrices(sd.group("cross_attention.kv"))
    whole, broken, again = (LowRank(sd, group, 1, seed=1) for _ in range(3))
    figures = []
    kept = train(whole, latents, texts, [[1]] * 6, privacy, SCHEDULE, seed=3, progress=lambda *told: figures.append(told))
    assert [step for step, _, _ in figures] == [1, 2, 3, 4]
    assert set(figures[0][2]) == {"gradient"}  # the loss would tell of the works
    draws = Draws(sd, latents, texts, [[1]] * 6, 1, 0.1)
    with unfused_attention(sd.unet):
        PrivateRun(broken.masters, sample_loss(broken, []), draws, SCHEDULE, kept, seed=3, folder=tmp_path).run(2)
    later = []
    train(again, latents, texts, [[1]] * 6, privacy, SCHEDULE, seed=3, folder=tmp_path, progress=lambda step, *_: later.append(step))
    assert later == [3, 4]
    assert all(torch.equal(master, again.masters[name]) for name, master in whole.masters.items())


@pytest.mark.parametrize(("side", "chunk"), [(8, 100), (16, 100), (32, 6), (64, 1)])
def test_large_latents_are_learnt_a_few_at_a_time(sd, monkeypatch, side, chunk):
    """Of a map of side^2 by side^2 places: twice the side is 16 times the memory."""
    texts, latents, seen = sd.conditioning(["", "a cat"]), torch.zeros(6, 4, side, side), []

    def nothing(loss, parameters, samples, clip, chunk):
        seen.append(chunk)
        return {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}

    monkeypatch.setattr(private, "clipped_sum", nothing)
    student = LowRank(sd, matrices(sd.group("cross_attention.kv")), 1, seed=1)
    train(student, latents, texts, [[1]] * 6, replace(PUBLIC, multiplicity=1), replace(SCHEDULE, batch=6), seed=3, chunk=100)
    assert set(seen) == {chunk}


def test_a_guarantee_is_what_its_accountant_says():
    kept = guarantee(Privacy(epsilon=1.0, delta=1e-4, accountant="rdp"), works=800, batch=80, steps=50)
    assert (kept.sampling_rate, kept.steps, kept.works) == (0.1, 50, 800)
    assert 0.98 < kept.epsilon <= 1.0
    assert private.Mechanism(kept.noise_multiplier, 0.1, 50).epsilon(1e-4, "rdp") == kept.epsilon


@pytest.mark.parametrize(
    ("privacy", "batch", "match"),
    [
        (PUBLIC, 0, "no training"),
        (PUBLIC, 101, "no training"),
        (replace(PUBLIC, multiplicity=0), 10, "no training"),
        (replace(PUBLIC, epsilon=1.0), 10, "clipped"),
        (replace(PUBLIC, clip=0.0), 10, "clipped"),
        (replace(PUBLIC, epsilon=-1.0, clip=1.0), 10, "clipped"),
        (replace(PUBLIC, delta=0.01), 10, "published outright"),
    ],
)
def test_refuses_what_promises_nothing(privacy, batch, match):
    with pytest.raises(Misconfigured, match=match):
        guarantee(privacy, works=100, batch=batch, steps=10)
