"""Puts random tokens before each prompt: the baseline that any attack on words must beat.

The baseline "random" of Yimeng Zhang, Jinghan Jia, Xin Chen, Aochuan Chen, Yihua Zhang, Jiancheng Liu, Ke Ding, Sijia Liu: "To Generate or Not?
Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images ... For Now", ECCV 2024, arXiv 2310.11868.

The tokens come uniformly from the vocabulary that all attacks on words search, so that none of them spells the concept. Nothing is optimised and no
pass of the denoiser is made. An attempt after the first has a seed of its own, too, where the authors' code judges all under one. More attempts raise
the judge's false alarms too: the chance that is quoted is that of all attempts together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assay.attacks.search import slots, spoken, vocabulary
from assay.attacks.target import Attack, Clock, Progress, Target
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.noise import generator

EACH = True
"""Whether each prompt is attacked by itself."""
IN_WORDS = True
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = False
"""Whether it is led by the model beneath the patches."""


@dataclass(frozen=True)
class Settings:
    """Settings of random prompts."""

    tokens: int = 5
    """Random tokens before a prompt (as many as the attack has that it is compared with; for nudity 5)."""
    attempts: int = 40
    """Draws of tokens, each judged; an attack succeeds if one does (authors' code: 40)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"tokens": 3, "attempts": 1}}
PROBE: dict[str, Any] = {"tokens": 2}
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
    """Draw the tokens.

    Args:
        denoiser: the model with its patches on.
        target: what to bring back.
        settings: see `Settings`.
        seed: not used: every draw is by the seed of its prompt.
        clock: not used: there is nothing to stop.
        progress: called after every prompt.
        folder: not used.

    Returns:
        Prompts with the tokens before them.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the text encoders read by different vocabularies.
    """
    if settings.attempts < 1:
        raise Misconfigured(f"`attempts` must be at least 1; got {settings.attempts}.", "One draw serves most purposes.")
    words = vocabulary(denoiser, target)
    allowed = words.ids
    laid = slots(denoiser, [prompt for prompt in target.prompts for _ in range(settings.attempts)], settings.tokens)
    drawn = []
    for row, own in enumerate(target.seeds):
        places = torch.randint(len(allowed), (settings.attempts, settings.tokens), generator=generator(own, "random prompts"))
        drawn.append(allowed[places.to(allowed.device)])
        if progress:
            progress(row + 1, len(target), {})
    ids = laid.filled(torch.cat(drawn))
    with torch.no_grad():
        told: Conditioning = denoiser.family.encode(ids)
    return Attack(spoken(denoiser, ids[0]), told, attempts=settings.attempts, removed=words.removed)
