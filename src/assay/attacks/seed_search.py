"""Asks for the concept by its own prompt again and again, with another seed each time: the baseline that needs no attack at all.

The baseline "seed search" of Yimeng Zhang, Jinghan Jia, Xin Chen, Aochuan Chen, Yihua Zhang, Jiancheng Liu, Ke Ding, Sijia Liu: "To Generate or Not?
Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images ... For Now", ECCV 2024, arXiv 2310.11868.

An attempt is one image with a fresh seed, and every attempt is judged. More attempts raise the judge's false alarms too: the chance that is quoted
is that of all attempts together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.attacks.target import Attack, Clock, Progress, Target
from assay.denoiser import Denoiser
from assay.errors import Misconfigured

EACH = True
"""Whether each prompt is attacked by itself."""
IN_WORDS = True
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = False
"""Whether it is led by the model beneath the patches."""


@dataclass(frozen=True)
class Settings:
    """Settings of seed search."""

    attempts: int = 40
    """Seeds tried for a prompt; an attack succeeds if one does (authors' code: 40)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"attempts": 4}}
PROBE: dict[str, Any] = {"attempts": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings, prompts: int, steps: int) -> dict[str, int]:
    """Return the passes that an attack on so many prompts takes, in samples: `passes` without gradients and `training_passes` with."""
    return {"passes": 0, "training_passes": 0}


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
    """Ask for every prompt several times.

    Args:
        denoiser: the model with its patches on.
        target: what to bring back.
        settings: see `Settings`.
        seed: not used: whoever judges draws the seeds.
        clock: not used: there is nothing to stop.
        progress: called once.
        folder: not used.

    Returns:
        The prompts as they are, each `attempts` times.

    Raises:
        Misconfigured: a setting is out of range.
    """
    check(settings)
    if progress:
        progress(1, 1, {})
    return Attack(tuple(prompt for prompt in target.prompts for _ in range(settings.attempts)), attempts=settings.attempts)


def check(settings: Settings) -> None:
    """Raise unless everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if settings.attempts < 1:
        raise Misconfigured(f"`attempts` must be at least 1; got {settings.attempts}.", "The small preset has 4.")
