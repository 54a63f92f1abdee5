"""Moves the embedding of every prompt, before its first step, until the prompt's pull away from the empty one is small; changes no weight.

"Detecting, Explaining, and Mitigating Memorization in Diffusion Models". Yuxin Wen, Yuchen Liu, Chen Chen, Lingjuan Lyu. ICLR 2024, arXiv 2407.21720,
Sec. 4. Authors' code: github.com/YuxinWenRick/diffusion_memorization, no licence. Written here from the paper's mathematics.

With x_T the noise that an image starts from, e the encoder's states of its prompt and e0 those of the empty one,

    e <- argmin | eps(x_T, e) - eps(x_T, e0) |_2     by AdamW, until at most `target`, for at most `steps` steps

and the whole sampling follows the moved e; the state of the begin token stays. A memorised prompt is one whose magnitude is large, so that others
are below the target and left alone.

Faithful: the objective, its optimiser, steps, rate and early stop. Different: each image is moved and left off by itself; the difference is taken in
the network's own view (v at the noisiest timestep, where epsilon is known). Magnitudes grow with the root of the latent's size: the authors' target
is for 4 x 64 x 64.

Cost: one pass and up to `steps` with gradient more for every image. Known failure: the target is a threshold without a unit; where
unmemorised prompts pull as hard as memorised ones, as in small models, all lose alignment; who samples without the rule has the whole model.
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
    """Settings of prompts with a lower magnitude."""

    target: float = 3.0
    """Magnitude below which a prompt is left alone (authors' code: 3, for latents of 4 x 64 x 64)."""
    learning_rate: float = 0.05
    """Learning rate of AdamW (authors' code: 0.05)."""
    steps: int = 10
    """Steps at most (authors' code: 10)."""
    strength: float = 1.0
    """How much of the way the embedding goes; 0 is plain sampling."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"target": 1.0}}
PROBE: dict[str, Any] = {}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that it takes to make: none; the sampler takes one more and up to `steps` with gradient for every image."""
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
    return Patch.by_rule("lower_magnitude", settings, "keep copies from coming out")


def check(settings: Settings) -> None:
    """Raise if a setting is out of range.

    Raises:
        Misconfigured: one is.
    """
    if not (settings.target >= 0 and 0 < settings.learning_rate < float("inf") and settings.steps >= 1 and 0 <= settings.strength <= 1):
        raise Misconfigured(
            "`target` and `learning_rate` are positive, `steps` at least 1, `strength` in [0, 1].", "The authors' are 3, 0.05, 10 and 1."
        )
