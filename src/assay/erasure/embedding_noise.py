"""Adds Gaussian noise to what the text encoder says of every prompt, so that no caption is met exactly; changes no weight and trains nothing.

"Understanding and Mitigating Copying in Diffusion Models". Gowthami Somepalli, Vasu Singla, Micah Goldblum, Jonas Geiping, Tom Goldstein. NeurIPS
2023, arXiv 2305.20086, Sec. 6. Authors' code: github.com/somepago/DCR, Apache-2.0. Written here from the paper.

The denoiser reads e + scale x noise in place of the encoder's states e; the noise is of the image's seed and stays through the sampling.

Faithful: the mitigation of inference time GNI. Different: pooled embeddings of pipelines that have them stay; the empty prompt of guidance stays.

Cost: nothing. Known failure: the scale has no unit: states of another encoder want another; all prompts lose alignment alike, whether memorised or
not; who samples without the rule has the whole model.
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
    """Settings of noise on the states of prompts."""

    scale: float = 0.1
    """Standard deviation of the noise (paper's lambda: 0.1); 0 is plain sampling."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"scale": 1.0}}
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
    return Patch.by_rule("embedding_noise", settings, "keep copies from coming out")


def check(settings: Settings) -> None:
    """Raise if a setting is out of range.

    Raises:
        Misconfigured: one is.
    """
    if not 0 <= settings.scale < float("inf"):
        raise Misconfigured(f"`scale` must not be negative or infinite; got {settings.scale:g}.", "The paper's value is 0.1.")
