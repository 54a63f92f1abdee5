"""Fine-tunes the erased model for a few steps, by adapters of low rank, on works of the concept: how soon does it come back?

That fine-tuning brings erased concepts back is shown in "Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion Models". Vinith M.
Suriyakumar, Rohan Alur, Ayush Sekhari, Manish Raghavan, Ashia C. Wilson. 2024, arXiv 2410.08074. There the fine-tuning is on other pictures; here it
is on the concept's own, the strongest case. The adapters are those of Hu et al. 2022 (arXiv 2106.09685). The `paper` preset has rates and ranks that
are usual for adapters of Stable Diffusion; no paper prescribes them.

With D pictures of the concept and their captions c, the up and down of every matrix of the group are trained on the model's own denoising loss,

    min E | e(x_t, t, c) - noise |^2,

by Adam from the erased model as it is. The adapter is a patch on top of the patches that erase. Pictures are not those that the judged prompts name,
where the works hold others.

A concept that returns in fewer steps than a model that never saw it needs was hidden; relearning alone proves nothing, since enough steps teach
anything. So quote the same attack, with the same steps, on a model that never saw the concept.

Cost: `steps` x `batch` passes with gradient. Known failure: a sampling rule is not touched by any training of weights, so that rules resist for a
reason that has nothing to do with what the model knows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.attacks.target import Attack, Clock, Progress, Target
from assay.denoiser import Denoiser, tensor_digest
from assay.errors import Misconfigured
from assay.patch import Manifest, Patch
from assay.patched import standing
from assay.record import digest_of
from assay.training.finetune import Noised, schedule
from assay.training.loop import Run
from assay.training.low_rank import LowRank, matrices

EACH = False
"""Whether each prompt is attacked by itself."""
IN_WORDS = False
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = False
"""Whether it is led by the model beneath the patches."""


@dataclass(frozen=True)
class Settings:
    """Settings of relearning."""

    rank: int = 4
    """Rank of the adapters."""
    group: Literal["cross_attention", "attention", "unet"] = "attention"
    """Which matrices have adapters."""
    steps: int = 500
    """Optimiser steps."""
    batch: int = 4
    """Samples a step."""
    learning_rate: float = 1e-4
    """Learning rate of Adam (usual for adapters: 1e-4)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"steps": 60, "batch": 8, "learning_rate": 2e-3}}
PROBE: dict[str, Any] = {"rank": 1, "steps": 1, "batch": 1}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings, prompts: int, steps: int) -> dict[str, int]:
    """Return the passes that an attack on so many prompts takes, in samples: `passes` without gradients and `training_passes` with."""
    return {"passes": 8 * prompts, "training_passes": settings.steps * settings.batch}


def attack(
    denoiser: Denoiser,
    target: Target,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    clock: Clock | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Attack:
    """Train the adapters.

    Args:
        denoiser: the model with its patches on, in float32 or bfloat16; its weights are read, never written.
        target: what to bring back; its examples and their captions are learned from.
        settings: see `Settings`.
        seed: of every draw.
        clock: stops the training when its budget is spent.
        progress: called after every step with the loss.
        folder: keeps a checkpoint every 20 steps or more often, from which an interrupted training goes on; removed at the end.

    Returns:
        The prompts as they are, the adapters as a patch, and the loss of every step.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the model is in float16, or has no such group.
    """
    check(settings)
    student = LowRank(denoiser, matrices(denoiser.group(settings.group)), settings.rank, seed)
    told = list(target.captions)

    def loss(_: int, draws: torch.Generator) -> torch.Tensor:
        noised = Noised.draw(denoiser, target.examples, settings.batch, draws)
        return student.losses(noised, [told[row] for row in noised.rows]).mean()

    belongs = digest_of([asdict(settings), told, tensor_digest(target.examples), seed, student.base(), standing(denoiser)])
    run = Run(student.masters, loss, schedule(settings), seed=seed, folder=folder, plan=belongs)
    before = target.measure(denoiser, denoiser.conditioning(target.prompts))
    while run.step < settings.steps and not (clock is not None and clock.over):
        run.run(run.step + 10 if clock is not None else None, every=20, progress=progress)
    if folder is not None:
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    after = student.run(target.measure, denoiser, denoiser.conditioning(target.prompts))
    manifest = Manifest(method="relearning", settings=asdict(settings), made_for=f"relearn {target.concept.name}", base=student.base())
    figures = {"loss.before": before.tolist(), "loss.after": after.tolist()}
    made = Patch(manifest, student.changes())
    return Attack(target.prompts, patch=made, curves={"loss": run.losses}, figures=figures, early=run.step < settings.steps)


def check(settings: Settings) -> None:
    """Raise unless everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if settings.group not in ("cross_attention", "attention", "unet"):
        raise Misconfigured(f"There is no `group` {settings.group}.", "Choose cross_attention, attention or unet.")
    if min(settings.rank, settings.steps, settings.batch) < 1 or not settings.learning_rate > 0:
        raise Misconfigured("`rank`, `steps` and `batch` must be at least 1, and `learning_rate` positive.", "Usual are 4, 500, 4 and 1e-4.")
