"""Trains the model to predict, for the concept's prompts, noise guided away from the concept; needs no images.

"Erasing Concepts from Diffusion Models". Rohit Gandikota, Joanna Materzynska, Jaden Fiotto-Kaufman, David Bau. ICCV 2023, arXiv 2303.07345.
Authors' code: github.com/rohitgandikota/erasing, MIT. Written here from the paper's mathematics.

With e0 the model as it was, e the one in training, c the concept's prompt and 0 the empty one, each step minimises

    mean | e(x_t, c) - [ e0(x_t, 0) - eta (e0(x_t, c) - e0(x_t, 0)) ] |^2

over x_t sampled by e itself under c: DDIM with `guidance`, left off after a random step, t then uniform among the timesteps that this step stands
for. At the start the loss is (1 + eta)^2 mean | e0(x_t, c) - e0(x_t, 0) |^2. The authors' code of 2025 writes the target as e0(c) - eta (e0(c) -
e0(0)): its eta is ours + 1. With `erase_from` f the prompt of e and of the sampling is f and the target e0(x_t, f) - eta (e0(x_t, c) - e0(x_t, 0)):
"glasses" from "scientist".

Faithful: the objective, the on-policy latents, the weight groups, Adam. Different: several prompts and samples a step share one partial sampling,
which can be used for `resample` steps; esd-u and esd-all are the groups `not_cross_attention` (weights of linear and convolution layers, no biases)
and `unet` (all of it, norms too); a model in bfloat16 is trained through float32 masters; v-prediction models are trained in terms of epsilon.

Cost a step, in passes of one latent: batch x (1 with gradient + 2 without + on average `ddim_steps` / `resample`). Known failure: neighbours of the
concept lose detail or turn into each other (authors' issue 13), as nothing is preserved explicitly; the erased concept turns into no particular
thing unless `toward_anchor`; prompts found by attack bring it back. The paper's learning rate moves a small model hardly at all. A style that x_t
shows already is predicted almost alike under the empty prompt, so that the paper's objective hardly trains on it. Toward the anchor,
another style, it takes 8 of 19 pictures of twemoji and 6 of 20 of noto off emoji64 (`benchmarks/erasure.json`). Hence the preset `small`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.noise import derive, generator
from assay.patch import Patch
from assay.training.finetune import Student, finetune, left_off, schedule

GROUPS = {"esd-x": "cross_attention", "esd-x-strict": "cross_attention.kv", "esd-u": "not_cross_attention", "esd-all": "unet"}


@dataclass(frozen=True)
class Settings:
    """Settings of ESD."""

    group: Literal["esd-x", "esd-x-strict", "esd-u", "esd-all"] = "esd-x"
    """Which weights to train: cross-attention (for styles), its keys and values, all else (for what must vanish under every prompt), or all."""
    eta: float = 1.0
    """How far to guide away from the concept (the paper's experiments: 1)."""
    steps: int = 1000
    """Optimiser steps (authors' first code: 1000)."""
    batch: int = 1
    """Samples a step (authors' first code: 1)."""
    learning_rate: float = 1e-5
    """Learning rate of Adam (authors' first code: 1e-5)."""
    guidance: float = 3.0
    """Scale of guidance while sampling x_t (authors' first code: 3)."""
    ddim_steps: int = 50
    """Steps of the sampling that is left off at random (authors' first code: 50)."""
    latents: Literal["student", "base"] = "student"
    """Which model samples x_t: the one in training (paper), or the one as it was (authors' code of 2025)."""
    resample: int = 1
    """For how many steps one set of x_t is used (paper: 1)."""
    erase_from: str = ""
    """Prompt to erase the concept from, leaving the concept alone elsewhere; empty erases it from its own prompts."""
    toward_anchor: bool = False
    """Use the concept's anchor, if it has one, in place of the empty prompt (paper: no)."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"steps": 80, "batch": 8, "learning_rate": 2e-4, "ddim_steps": 15, "resample": 3, "toward_anchor": True},
}
PROBE: dict[str, Any] = {"steps": 2, "ddim_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, in samples: `passes` without gradients and `training_passes` with."""
    sampled = settings.steps * settings.batch * (settings.ddim_steps - 1) * (1 if settings.guidance == 1 else 2) // (2 * max(1, settings.resample))
    return {"passes": sampled + 2 * settings.steps * settings.batch, "training_passes": settings.steps * settings.batch}


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
        concept: what to erase; its anchor is used if `toward_anchor` is set.
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every step with steps done, steps in all and the loss.
        folder: keeps a checkpoint every 25 steps, from which an interrupted erasing goes on; removed at the end.

    Returns:
        A dense change of every weight of the group.

    Raises:
        Misconfigured: a setting is out of range, the anchor is the concept itself or one of its members, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, concept, settings)
    training = Training(denoiser, concept, settings, weights, seed)
    return finetune(
        training.student,
        training.loss,
        schedule(settings),
        method="esd",
        settings=settings,
        concept=concept,
        seed=seed,
        strength=settings.strength,
        resample=settings.resample,
        folder=folder,
        progress=progress,
    )


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or the anchor is the concept itself or one of its members.
    """
    if settings.group not in GROUPS or settings.latents not in ("student", "base"):
        raise Misconfigured(
            f"There is no `group` {settings.group} with `latents` {settings.latents}.", f"Groups: {', '.join(GROUPS)}; latents: student, base."
        )
    if min(settings.steps, settings.batch, settings.resample, settings.ddim_steps) < 1 or settings.ddim_steps > len(denoiser.alphas_cumprod):
        raise Misconfigured(
            "`steps`, `batch`, `resample` and `ddim_steps` must be at least 1.", "`ddim_steps` can be as large as the model's timesteps."
        )
    if not (settings.learning_rate > 0 and math.isfinite(settings.eta)):
        raise Misconfigured("`learning_rate` must be positive and `eta` finite.", "The paper's values are 1e-5 and 1.")
    if settings.toward_anchor and any(target == anchor for target, anchor in concept.pairs()):
        raise Misconfigured("`toward_anchor` needs an anchor other than the concept.", "Give another, or leave the setting off.")
    return denoiser.group(GROUPS[settings.group])


class Training:
    """What one step of ESD does.

    Args:
        denoiser: the model; its weights stay, as tensors stand in for them.
        concept: what to erase.
        settings: see `Settings`.
        weights: the weights to train.
        seed: of every draw.
    """

    def __init__(self, denoiser: Denoiser, concept: Concept, settings: Settings, weights: dict[str, torch.Tensor], seed: int) -> None:
        """Copy the weights to float32 and encode the prompts."""
        self.denoiser = denoiser
        self.settings = settings
        self.seed = seed
        self.student = Student(denoiser, weights)
        self.pairs = [(target, anchor if settings.toward_anchor else "") for target, anchor in concept.pairs()]
        denoiser.conditioning([settings.erase_from, *(prompt for pair in self.pairs for prompt in pair)])
        self.drawn: tuple[torch.Tensor, tuple[int, int], list[tuple[str, str]]] | None = None

    def loss(self, step: int, _: torch.Generator) -> torch.Tensor:
        """Return the loss of a step: a scalar."""
        if self.drawn is None or step % self.settings.resample == 0:
            self.drawn = self.sample(step)
        x_t, (low, high), pairs = self.drawn
        t = torch.randint(low, high, (len(pairs),), generator=generator(self.seed, "esd", step)).to(x_t.device)
        concept, away, source = self.prompts(pairs)
        return self.distance(x_t, t, concept if source is None else source, self.target(x_t, t, concept, away, source))

    def sample(self, step: int) -> tuple[torch.Tensor, tuple[int, int], list[tuple[str, str]]]:
        """Sample x_t part of the way, all to the same step: (batch, c, h, w); with the timesteps it stands for, from and below, and its prompts."""
        settings = self.settings
        draws = generator(self.seed, "esd", "latents", step)
        taken = int(torch.randint(settings.ddim_steps, (), generator=draws))
        pairs = [self.pairs[index] for index in torch.randint(len(self.pairs), (settings.batch,), generator=draws).tolist()]
        concept, _, source = self.prompts(pairs)
        seeds = [derive(self.seed, "esd", step, row) for row in range(settings.batch)]
        sampler = partial(self.student.run, self.denoiser.sample) if settings.latents == "student" else self.denoiser.sample
        told = concept if source is None else source
        return *left_off(self.denoiser, sampler, told, seeds, taken, steps=settings.ddim_steps, guidance=settings.guidance), pairs

    def prompts(self, pairs: list[tuple[str, str]]) -> tuple[Conditioning, Conditioning, Conditioning | None]:
        """Return the conditioning of the concept, of what it is guided to, and of `erase_from` if there is one."""
        encode, source = self.denoiser.conditioning, self.settings.erase_from
        return encode([target for target, _ in pairs]), encode([anchor for _, anchor in pairs]), encode([source] * len(pairs)) if source else None

    @torch.no_grad()
    def target(self, x_t: torch.Tensor, t: torch.Tensor, concept: Conditioning, away: Conditioning, source: Conditioning | None) -> torch.Tensor:
        """Return what the model as it was says should be predicted: epsilon, (b, c, h, w)."""
        parts = [concept, away] if source is None else [concept, away, source]
        times = len(parts)
        epsilon = self.denoiser.predict(x_t.repeat(times, 1, 1, 1), t.repeat(times), Conditioning.cat(parts)).chunk(times)
        return epsilon[-1] - self.settings.eta * (epsilon[0] - epsilon[1])  # the paper's negatively guided target

    def distance(self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, target: torch.Tensor) -> torch.Tensor:
        """Return the mean squared distance of the trained model's prediction from a target: a scalar."""
        return (self.student.run(self.denoiser.predict, x_t, t, conditioning) - target).square().mean()
