"""Trains the model to be as wrong as it can about its own images of the concept: the baseline that is known to fail.

Gradient ascent on the denoising loss. As unlearning: "Unrolling SGD: Understanding Factors Influencing Machine Unlearning". Anvith Thudi, Gabriel
Deza, Varun Chandrasekaran, Nicolas Papernot. EuroS&P 2022, arXiv 2109.13398. As a baseline for diffusion models: "SalUn". Chongyu Fan, Jiancheng Liu,
Yihua Zhang, Eric Wong, Dennis Wei, Sijia Liu. ICLR 2024, arXiv 2310.12508, whose code (github.com/OPTML-Group/Unlearn-Saliency, MIT) gives the
settings of `paper`. Written here from the mathematics.

With x_t a noised image that the model made of the concept c, and x_t' one of what is preserved, p, each step minimises

    - min(mean | e(x_t, c) - noise |^2, margin) + retain x mean | e(x_t', p) - noise |^2

Faithful: both terms, Adam. Different: images are the model's own, as latents; the `margin`, off in `paper`, bounds a loss that otherwise has no end.

Cost: `images` x `image_steps` x 2 passes to sample, twice if `retain` is set; a step costs batch x 1 pass with gradient, x 2 with `retain`. Known
failure: the loss has no maximum, so that noise takes the concept's place and soon everything's; stopped early, nothing is erased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.patch import Patch
from assay.training.finetune import Noised, Student, finetune, own_pictures, schedule, trained


@dataclass(frozen=True)
class Settings:
    """Settings of gradient ascent."""

    group: Literal["cross-attention", "full"] = "full"
    """Which weights to train: cross-attention, or the whole UNet."""
    steps: int = 1000
    """Optimiser steps (SalUn's code: 10 epochs of 800 images)."""
    batch: int = 8
    """Samples of the concept a step, and as many of what is preserved (SalUn's code: 8)."""
    learning_rate: float = 1e-5
    """Learning rate of Adam (SalUn's code: 1e-5)."""
    retain: float = 0.1
    """Weight of the ordinary loss of what is preserved (SalUn's code: 0.1)."""
    margin: float = 0.0
    """Loss beyond which the concept is left alone; 0 is none. A prediction of zero for unit noise has loss 1."""
    images: int = 800
    """Images of the concept, and as many of what is preserved (SalUn's code: 800)."""
    image_steps: int = 50
    """DDIM steps of an image."""
    image_guidance: float = 7.5
    """Scale of guidance of an image."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "group": "cross-attention",
        "steps": 60,
        "learning_rate": 1e-3,
        "retain": 1.0,
        "margin": 1.0,
        "images": 48,
        "image_steps": 15,
        "image_guidance": 4.0,
    },
}
PROBE: dict[str, Any] = {"steps": 2, "batch": 2, "images": 4, "image_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, in samples: `passes` without gradients and `training_passes` with."""
    sides = 2 if settings.retain else 1
    sampled = settings.images * settings.image_steps * (1 if settings.image_guidance == 1 else 2)
    return {"passes": sides * sampled, "training_passes": sides * settings.steps * settings.batch}


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
        concept: what to erase and what must stay; the anchor is not used.
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every batch of images and every step with those done, all of them and the loss.
        folder: keeps images and a checkpoint, from which an interrupted erasing goes on; emptied at the end.

    Returns:
        A dense change of every weight of the group.

    Raises:
        Misconfigured: a setting is out of range, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, concept, settings)
    student = Student(denoiser, weights)
    sides = [[target for target, _ in concept.pairs()], concept.preserved()][: 2 if settings.retain else 1]
    options = {"steps": settings.image_steps, "guidance": settings.image_guidance}
    pools, advance = own_pictures(
        denoiser, sides, settings.images, seed=seed, method="maximise_loss", folder=folder, progress=progress, then=settings.steps, **options
    )

    def loss(_: int, rng: torch.Generator) -> torch.Tensor:
        values = []
        for latents, prompts in pools:
            drawn = Noised.draw(denoiser, latents, settings.batch, rng)
            values.append(student.losses(drawn, [prompts[row] for row in drawn.rows]))
        away = values[0].clamp(max=settings.margin or math.inf).mean()
        return settings.retain * values[1].mean() - away if settings.retain else -away

    about: dict[str, Any] = {"method": "maximise_loss", "settings": settings, "concept": concept, "seed": seed, "strength": settings.strength}
    return finetune(student, loss, schedule(settings), **about, folder=folder, progress=advance)


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    weights = trained(denoiser, settings)
    if not (settings.learning_rate > 0 and settings.retain >= 0 and settings.margin >= 0):
        raise Misconfigured("`learning_rate` must be positive, `retain` and `margin` not negative.", "SalUn's code has 1e-5, 0.1 and no margin.")
    return weights
