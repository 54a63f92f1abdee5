"""Puts random tokens into every prompt, or exchanges some of its tokens for random ones, so that no caption is met exactly; changes no weight.

"Understanding and Mitigating Copying in Diffusion Models". Gowthami Somepalli, Vasu Singla, Micah Goldblum, Jonas Geiping, Tom Goldstein. NeurIPS
2023, arXiv 2305.20086, Sec. 6. Authors' code: github.com/somepago/DCR, Apache-2.0. Written here from the paper.

A prompt's tokens between begin and end are each exchanged for a random one with a probability, then random ones are inserted at random places; which,
the image's seed decides. What falls off the end of the encoder's context is lost.

Faithful: the mitigations of inference time RT (a random token in place of one, or among them). Different: tokens are drawn from the tokenizer's whole
vocabulary but its special ones, not from its first 49400.

Cost: one encoding a sample. Known failure: alignment falls with every token; an attack that searches embeddings never meets the rule, as it uses no
words; who samples without the rule has the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.patch import Patch


@dataclass(frozen=True)
class Settings:
    """Settings of random tokens in prompts."""

    probability: float = 0.0
    """Probability with which each token is exchanged for a random one."""
    inserted: int = 4
    """Random tokens put in at random places (paper: 4)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {}}
PROBE: dict[str, Any] = {}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that it takes to make: none."""
    return {"passes": 0}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch: one sampling rule, for every prompt.

    Args:
        denoiser: not used: the rule holds for every model.
        concept: not used: the rule holds for every prompt.
        settings: see `Settings`.
        seed: changes nothing: what the rule draws depends on the seeds of images.
        progress: called once.
        folder: not used: there is nothing to resume.

    Returns:
        One sampling rule.

    Raises:
        Misconfigured: a setting is out of range.
    """
    check(settings)
    if progress:
        progress(1, 1, {})
    return Patch.by_rule("random_tokens", settings, "keep copies from coming out")


def check(settings: Settings) -> None:
    """Raise if a setting is out of range.

    Raises:
        Misconfigured: one is.
    """
    if not 0 <= settings.probability <= 1 or settings.inserted < 0:
        raise Misconfigured("`probability` lies in [0, 1] and `inserted` is not negative.", "The paper inserts 4 tokens.")
