"""Trains a low-rank change that knows the concept, turns its sign, and teaches it the concept's surroundings; what is taken out is a plug-in.

"©Plug-in Authorization for Human Copyright Protection in Text-to-Image Model". Chao Zhou, Huishuai Zhang, Jiang Bian, Weiming Zhang, Nenghai Yu.
TMLR 2025, arXiv 2404.11962: the operation "extraction", there Inverse (first: Reverse) LoRA. Authors' code:
github.com/zc1023/-Plug-in-Authorization, no licence. Written here from its description.

A change up down of every attention matrix is trained in two stages by the plain denoising loss on images that the model as it was draws:

    1. images of the concept's prompts, under captions that leave a style out ("a cat" for a cat in that style; an object's captions stay);
    2. up becomes -up: what was learned is unlearned. Training goes on with images of the anchor's prompts under the same captions, so that the
       surroundings come back and the concept does not.

The patch L takes the concept out; -L, the plug-in, brings it back: base + L - L is the base, bit for bit, whatever was trained.

Faithful: the two stages, their order, their captions; rank, rate and steps of the authors' code. Different: gradients are clipped by one norm of all
(there by one of self- and one of cross-attention); latents are trained on as sampled, without a trip through the autoencoder; timesteps are drawn
from all of the schedule (the authors' code draws from the first 48 of 1000); `images` are drawn once a stage; Adam's moments live through the turn of
the sign; with `captions` target a style's captions stay too.

Cost: 2 x images x image_steps passes, twice with guidance, and steps + surroundings training passes of a batch. Known failure: the sign is turned of
all that stage 1 changed, also of what other concepts share; no neighbour is preserved but the anchor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.noise import derive
from assay.patch import Patch
from assay.training.finetune import Noised, finetune, following, own_latents, schedule, spread
from assay.training.low_rank import LowRank, matrices


@dataclass(frozen=True)
class Settings:
    """Settings of Inverse LoRA."""

    rank: int = 40
    """Rank of the change (authors' code: 40 for styles, 80 for characters)."""
    steps: int = 400
    """Optimiser steps of the first stage, which learns the concept (authors' code: 400)."""
    surroundings: int = 400
    """Optimiser steps of the second stage, which learns the surroundings (authors' code: 400); 0 leaves it at the turned sign."""
    batch: int = 1
    """Samples a step (authors' code: 1)."""
    learning_rate: float = 1e-5
    """Learning rate of Adam (authors' code: 1e-5 for styles, 5e-5 for characters)."""
    images: int = 40
    """Latents that each stage draws to train on (authors' code: 40)."""
    image_steps: int = 50
    """DDIM steps of each (authors' code: 50)."""
    image_guidance: float = 7.5
    """Scale of guidance of each (authors' code: 7.5)."""
    captions: Literal["content", "target"] = "content"
    """What they are trained under: the prompt without the style (authors' code), or the concept's whole prompt."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "rank": 16,
        "steps": 20,
        "surroundings": 80,
        "batch": 16,
        "learning_rate": 5e-3,
        "images": 64,
        "image_steps": 15,
        "image_guidance": 4.0,
        "captions": "target",
    },
}
PROBE: dict[str, Any] = {"steps": 2, "surroundings": 2, "images": 2, "image_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, in samples: `passes` without gradients and `training_passes` with."""
    stages = 2 if settings.surroundings else 1
    sampled = stages * settings.images * settings.image_steps * (1 if settings.image_guidance == 1 else 2)
    return {"passes": sampled, "training_passes": (settings.steps + settings.surroundings) * settings.batch}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch that takes a concept out; the model's weights are read, never written.

    Args:
        denoiser: the model, in float32 or bfloat16.
        concept: what to take out; its anchor's prompts are the surroundings.
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every batch of images and every step.
        folder: keeps the latents and a checkpoint every 25 steps, from which an interrupted erasing goes on; removed at the end.

    Returns:
        A low-rank change of every attention matrix; its negative is the plug-in.

    Raises:
        Misconfigured: a setting is out of range, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, settings)
    training = Training(denoiser, concept, settings, weights, seed)
    batches = training.draw(folder, progress)
    plan = replace(schedule(settings, clip=1.0), steps=settings.steps + settings.surroundings)
    return finetune(
        training.student,
        training.loss,
        plan,
        method="inverse_lora",
        settings=settings,
        concept=concept,
        seed=seed,
        strength=settings.strength,
        folder=folder,
        progress=following(progress, batches, batches + plan.steps),
    )


def check(denoiser: Denoiser, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the matrices to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    counts = (settings.steps, settings.batch, settings.images, settings.image_steps)
    if min(counts) < 1 or settings.surroundings < 0 or settings.image_steps > len(denoiser.alphas_cumprod):
        raise Misconfigured("`steps`, `batch`, `images` and `image_steps` must be at least 1.", "`surroundings` can be 0.")
    if not settings.learning_rate > 0:
        raise Misconfigured("`learning_rate` must be positive.", "The authors' code has 1e-5.")
    if settings.captions not in ("content", "target"):
        raise Misconfigured(f"There are no captions `{settings.captions}`.", "Choose content or target.")
    return matrices(denoiser.group("attention"))


class Training:
    """What one step of either stage does.

    Args:
        denoiser: the model; its weights stay, as tensors stand in for them.
        concept: what to take out.
        settings: see `Settings`.
        weights: the matrices to train.
        seed: of every draw.
    """

    def __init__(self, denoiser: Denoiser, concept: Concept, settings: Settings, weights: dict[str, torch.Tensor], seed: int) -> None:
        """Choose the prompts of every image."""
        self.denoiser = denoiser
        self.settings = settings
        self.seed = seed
        self.student = LowRank(denoiser, weights, settings.rank, seed)
        self.student.sign = -1.0  # whenever training ends, its inverse is what is handed over
        pairs, contents = spread(concept.pairs(), settings.images, seed, "inverse_lora"), concept.contents()
        self.prompts = [[pair[stage] for pair in pairs] for stage in (0, 1)]
        self.captions = [contents[target] if settings.captions == "content" else target for target in self.prompts[0]]
        self.latents: list[torch.Tensor] = []

    def draw(self, folder: Path | None, progress: Callable[[int, int, dict[str, float]], None] | None) -> int:
        """Sample what each stage trains on from the model as it was, and return the number of batches that took."""
        settings, stages = self.settings, 2 if self.settings.surroundings else 1
        each = -(-settings.images // 16)
        total = stages * each + settings.steps + settings.surroundings
        for stage in range(stages):
            seeds = [derive(self.seed, "inverse_lora", stage, index) for index in range(settings.images)]
            told = following(progress, stage * each, total)
            options = {"steps": settings.image_steps, "guidance": settings.image_guidance}
            self.latents.append(own_latents(self.denoiser, self.prompts[stage], seeds, folder=folder, batch=16, progress=told, **options))
        return stages * each

    def loss(self, step: int, rng: torch.Generator) -> torch.Tensor:
        """Return the loss of a step: a scalar."""
        stage = int(step >= self.settings.steps)
        self.student.sign = -1.0 if stage else 1.0
        noised = Noised.draw(self.denoiser, self.latents[stage], self.settings.batch, rng)
        value = self.student.losses(noised, [self.captions[row] for row in noised.rows]).mean()
        self.student.sign = -1.0
        return value
