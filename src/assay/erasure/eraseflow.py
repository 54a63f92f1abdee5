"""Teaches the concept's prompt the ways by which its anchor is drawn, by balancing the flow along whole sampling trajectories; needs no images.

"EraseFlow: Learning Concept Erasure Policies via GFlowNet-Driven Alignment". Abhiram Kusumba, Maitreya Patel, Kyle Min, Changhoon Kim, Chitta Baral,
Yezhou Yang. NeurIPS 2025, arXiv 2511.00804. Authors' code: github.com/Abhiramkns/EraseFlow, Apple's licence in a part. Written here from the
mathematics.

Trajectories x_T, ..., x_0 are sampled under the anchor's prompt by the model in training (DDIM with eta 1 and guidance), and scored under the
concept's c:

    ( log_z + sum over steps of [ log p(x_t-1 | x_t, c) - log q(x_t | x_t-1) ] - log_beta )^2

with p the normal distribution of a DDIM step (mean by the guided prediction under c, gradient through both of its parts, variance sigma_t^2), q the
forward process, log densities averaged over the elements of a latent, log_z a trained number. A step of alpha-bar a after a' has sigma^2 = (1 - a')
/ (1 - a) (1 - a / a').

A model that matches the forward process on its trajectories has E [ log p - log q ] = 1/2 log((1 - a) / (1 - a')) at every step, so that the loss is
zero at log_beta = the sum of these over the scored steps plus log_z. That is what `log_beta` none means: it is calculated from the scheduler and the
steps. A smaller one pushes the anchor's trajectories away where the model has learned them; the paper's 2.5 fits 50 steps of Stable Diffusion, of
which the authors score the last 10 and 10 others (2.96 by the sum alone).

Faithful: the loss, the elementwise means, guidance in both directions, low rank, the choice of steps. Different: one update takes `batch`
trajectories, each with its own pair of prompts (authors: one); a step without noise is not scored; `resample` stands for the authors' switch epoch.

Cost an update: batch x (2 x ddim_steps / resample without gradient + 2 x (early + late) with), half of it at guidance 1. Known failure: with few
elements in a latent the balance is noisy, and one trajectory is not enough; nothing preserves what is neither concept nor anchor. In the built-in
model a family takes other objects along: half of them or more at the rate that takes a style out (3e-3), a fifth to a third at 1e-3, the rate of
`small`; at 6e-4 fruit is still there (7 of 10), monkey faces are not (0 of 3; `benchmarks/erasure-tuning.json`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured, Unsupported
from assay.families.sd import Conditioning
from assay.noise import derive, generator, normal
from assay.patch import Patch
from assay.training.finetune import finetune, schedule
from assay.training.low_rank import LowRank, matrices

AT_ONCE = 64
"""Scored states whose graphs are held at once, if a trajectory has no more."""


@dataclass(frozen=True)
class Settings:
    """Settings of EraseFlow."""

    rank: int = 4
    """Rank of the change (authors' code: 4)."""
    steps: int = 20
    """Updates (authors' code: 20)."""
    batch: int = 1
    """Trajectories an update (authors' code: 1)."""
    learning_rate: float = 3e-4
    """Learning rate of AdamW, of the change and of log_z (authors' code: 3e-4)."""
    style_learning_rate: float = 5e-4
    """The same where all that is erased are styles (authors' code: 5e-4)."""
    ddim_steps: int = 50
    """Steps of a trajectory (authors' code: 50)."""
    early: int = 10
    """Scored steps drawn at random from all but the last `late` (authors' code: 10)."""
    late: int = 10
    """Scored steps at the end (authors' code: 10)."""
    guidance: float = 5.0
    """Scale of guidance, in sampling and in scoring (authors' code: 5)."""
    log_beta: float | None = 2.5
    """Logarithm of the constant reward (authors' code: 2.5); none calculates it from the scheduler and the scored steps."""
    log_z: float = -0.1953
    """What log_z starts at (authors' code: -0.1953)."""
    resample: int = 1
    """For how many updates one set of trajectories is used (authors' code: 1 for nudity, all 20 for styles)."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper-style": {"resample": 20},
    "small": {
        "rank": 8,
        "steps": 40,
        "batch": 16,
        "learning_rate": 1e-3,
        "style_learning_rate": 3e-3,
        "ddim_steps": 15,
        "early": 4,
        "late": 2,
        "guidance": 3.0,
        "log_beta": None,
        "log_z": 0.0,
        "resample": 4,
    },
}
PROBE: dict[str, Any] = {"steps": 2, "ddim_steps": 3, "early": 1, "late": 1}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, in samples: `passes` without gradients and `training_passes` with."""
    each = settings.batch * (1 if settings.guidance == 1 else 2)
    sets = -(-settings.steps // max(1, settings.resample))
    return {"passes": sets * each * settings.ddim_steps, "training_passes": settings.steps * each * (settings.early + settings.late)}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch that erases a concept; the model's weights are read, never written.

    Args:
        denoiser: the model, in float32 or bfloat16.
        concept: what to erase, and the anchor that takes its place.
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every update with updates done, updates in all and the loss.
        folder: keeps a checkpoint about every 25 updates, from which an interrupted erasing goes on; removed at the end.

    Returns:
        A low-rank change of every attention matrix.

    Raises:
        Misconfigured: a setting is out of range, the anchor is the concept, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, concept, settings)
    styles = all(part.kind == "style" for part in concept.parts or (concept,))
    rate = settings.style_learning_rate if styles else settings.learning_rate
    training = Training(denoiser, concept, settings, weights, seed)
    return finetune(
        training.student,
        training.loss,
        schedule(replace(settings, learning_rate=rate), clip=1.0, weight_decay=0.01),
        method="eraseflow",
        settings=settings,
        concept=concept,
        seed=seed,
        strength=settings.strength,
        resample=settings.resample,
        folder=folder,
        progress=progress,
    )


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the matrices to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or the anchor is the concept.
        Unsupported: the model's noise ends in pure noise, from which no step can be scored.
    """
    if min(settings.steps, settings.batch, settings.ddim_steps, settings.resample) < 1 or settings.ddim_steps > len(denoiser.alphas_cumprod):
        raise Misconfigured("`steps`, `batch`, `ddim_steps` and `resample` must be at least 1.", "`ddim_steps` is at most the model's timesteps.")
    scored = noisy_steps(denoiser, settings.ddim_steps)
    if any(alpha <= 0 for _, alpha, _ in scored):
        raise Unsupported(
            f"The schedule of {denoiser.name} ends in pure noise, which holds nothing of an image: its first step cannot be balanced.",
            "Use another method, or a schedule without `rescale_betas_zero_snr`.",
        )
    noisy = len(scored)
    if min(settings.early, settings.late) < 0 or not 1 <= settings.early + settings.late <= noisy:
        raise Misconfigured(
            f"{settings.early} + {settings.late} of {noisy} steps cannot be scored.", "Lower `early` or `late`, or raise `ddim_steps`."
        )
    finite = all(map(math.isfinite, (settings.guidance, settings.log_z, settings.log_beta or 0.0)))
    if not (min(settings.learning_rate, settings.style_learning_rate) > 0 and finite):
        raise Misconfigured(
            "The learning rates must be positive, and `guidance`, `log_z` and `log_beta` finite.", "The authors' code has 3e-4, 5 and 2.5."
        )
    if all(target == anchor for target, anchor in concept.pairs()):
        raise Misconfigured("The concept and its anchor are the same prompts, so there is nothing to erase.", "Give another anchor.")
    return matrices(denoiser.group("attention"))


def noisy_steps(denoiser: Denoiser, steps: int) -> list[tuple[int, float, float]]:
    """Return (timestep, alpha-bar there, alpha-bar after the step) of those DDIM steps that add noise, noisy to clean."""
    scheduler, found = denoiser.scheduler, []
    for t in denoiser.timesteps(steps).tolist():
        before = t - len(denoiser.alphas_cumprod) // steps
        after = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
        found.append((t, float(scheduler.alphas_cumprod[t]), after))
    return [step for step in found if step[1] < step[2] < 1]


def balanced(steps: Sequence[tuple[int, float, float]]) -> float:
    """Return what the sum of log p - log q over steps is expected to be for a model that matches the forward process."""
    return sum(0.5 * math.log((1 - alpha) / (1 - after)) for _, alpha, after in steps)


def reverse_step(x_t: torch.Tensor, epsilon: torch.Tensor, alpha: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of p(x_next | x_t), the DDIM step with eta 1 (Song et al. 2021, Eqs. 12 and 16); arguments as in `log_ratio`."""
    variance = (1 - after) / (1 - alpha) * (1 - alpha / after)
    clean = (x_t - (1 - alpha).sqrt().to(x_t) * epsilon) / alpha.sqrt().to(x_t)
    return after.sqrt().to(x_t) * clean + (1 - after - variance).clamp(min=0).sqrt().to(x_t) * epsilon, variance.to(x_t)


def log_ratio(x_t: torch.Tensor, x_next: torch.Tensor, epsilon: torch.Tensor, alpha: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return log p(x_next | x_t) - log q(x_t | x_next) of DDIM steps with eta 1, averaged over elements.

    Args:
        x_t: latents before the step: (n, c, h, w).
        x_next: latents after it: (n, c, h, w).
        epsilon: the prediction at x_t: (n, c, h, w).
        alpha: alpha-bar before the step: float64, (n, 1, 1, 1).
        after: alpha-bar after it: float64, (n, 1, 1, 1).

    Returns:
        Log ratios: (n,).
    """
    mean, reverse = reverse_step(x_t, epsilon, alpha, after)
    forward = (1 - alpha / after).to(x_t)
    log_p = -0.5 * reverse.log() - (x_next - mean).square() / (2 * reverse)
    log_q = -0.5 * forward.log() - (x_t - (alpha / after).sqrt().to(x_t) * x_next).square() / (2 * forward)
    return (log_p - log_q).mean((1, 2, 3))


class Training:
    """What one update of EraseFlow does.

    Args:
        denoiser: the model; its weights stay, as tensors stand in for them.
        concept: what to erase, and its anchor.
        settings: see `Settings`.
        weights: the matrices to train.
        seed: of every draw.
    """

    def __init__(self, denoiser: Denoiser, concept: Concept, settings: Settings, weights: dict[str, torch.Tensor], seed: int) -> None:
        """Start at no change."""
        self.denoiser = denoiser
        self.settings = settings
        self.seed = seed
        self.pairs = concept.pairs()
        self.student = LowRank(denoiser, weights, settings.rank, seed)
        self.student.masters["log_z"] = torch.tensor(settings.log_z, device=denoiser.device, requires_grad=True)
        self.steps = noisy_steps(denoiser, settings.ddim_steps)
        self.drawn: tuple[torch.Tensor, list[str]] | None = None

    def loss(self, step: int, rng: torch.Generator) -> torch.Tensor:
        """Return the loss of an update: a scalar. Its gradient is summed over trajectories a few at a time, so that few graphs are held at once."""
        if self.drawn is None or step % self.settings.resample == 0:
            self.drawn = self.sample(step)
        trajectories, prompts = self.drawn
        scored = self.scored(rng)
        masters = list(self.student.masters.values())
        total, slopes = torch.zeros((), device=trajectories.device), [torch.zeros_like(master) for master in masters]
        few = max(1, AT_ONCE // len(scored))
        for start in range(0, len(prompts), few):
            rows = slice(start, start + few)
            part = self.residual(trajectories[rows], prompts[rows], scored).square().sum() / len(prompts)
            for slope, new in zip(slopes, torch.autograd.grad(part, masters), strict=True):
                slope += new
            total += part.detach()
        # A value whose gradient is the sum of those taken above.
        return total + sum(((master - master.detach()) * slope).sum() for master, slope in zip(masters, slopes, strict=True))

    def scored(self, rng: torch.Generator) -> list[int]:
        """Draw the places of the steps to be scored, in order."""
        last = len(self.steps) - self.settings.late
        early = torch.randperm(last, generator=rng)[: self.settings.early].tolist()
        return [*sorted(early), *range(last, len(self.steps))]

    @torch.no_grad()
    def sample(self, step: int) -> tuple[torch.Tensor, list[str]]:
        """Sample trajectories under anchors: (batch, steps + 1, c, h, w), noisy to clean, with the concept's prompts they are to be scored under."""
        settings = self.settings
        draws = generator(self.seed, "eraseflow", "pairs", step)
        pairs = [self.pairs[index] for index in torch.randint(len(self.pairs), (settings.batch,), generator=draws).tolist()]
        noise = normal(
            (len(self.steps) + 1, *self.denoiser.latent_shape), [derive(self.seed, "eraseflow", step, row) for row in range(settings.batch)]
        )
        noise = noise.to(self.denoiser.device)
        told = self.told([anchor for _, anchor in pairs])
        states = [noise[:, 0] * self.denoiser.scheduler.init_noise_sigma]
        for place, (t, alpha, after) in enumerate(self.steps):
            epsilon = self.guided(states[-1], torch.full((len(pairs),), t, device=noise.device), told)
            mean, variance = reverse_step(states[-1], epsilon, *torch.tensor([alpha, after], dtype=torch.float64))
            states.append(mean + variance.sqrt() * noise[:, place + 1])
        return torch.stack(states, 1), [target for target, _ in pairs]

    def residual(self, trajectories: torch.Tensor, prompts: Sequence[str], scored: Sequence[int]) -> torch.Tensor:
        """Return how far each trajectory is from balance under its prompt: (b,)."""
        count, places = len(trajectories), list(scored)
        x_t, x_next = trajectories[:, places].flatten(0, 1), trajectories[:, [place + 1 for place in places]].flatten(0, 1)
        t = torch.tensor([self.steps[place][0] for place in places], device=x_t.device).repeat(count)
        alpha, after = torch.tensor([self.steps[place][1:] for place in places], dtype=torch.float64).T.repeat(1, count)[..., None, None, None]
        epsilon = self.guided(x_t, t, self.told([prompt for prompt in prompts for _ in places]))
        ratios = log_ratio(x_t, x_next, epsilon, alpha, after).view(count, -1).sum(1)
        settings = self.settings
        goal = balanced([self.steps[place] for place in places]) + settings.log_z if settings.log_beta is None else settings.log_beta
        return self.student.masters["log_z"] + ratios - goal

    def told(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts, followed by that of as many empty ones if there is guidance."""
        return self.denoiser.conditioning([*prompts, *([] if self.settings.guidance == 1 else [""] * len(prompts))])

    def guided(self, x_t: torch.Tensor, t: torch.Tensor, told: Conditioning) -> torch.Tensor:
        """Return the student's guided prediction: epsilon, (n, c, h, w)."""
        times = len(told) // len(x_t)
        parts = self.student.run(self.denoiser.predict, x_t.repeat(times, 1, 1, 1), t.repeat(times), told).chunk(times)
        return parts[-1] + self.settings.guidance * (parts[0] - parts[-1]) if times > 1 else parts[0]
