"""Guides an image away from the concept only where its own prompt leads there, with momentum; changes no weight and trains nothing.

"Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models". Patrick Schramowski, Manuel Brack, Björn Deiseroth, Kristian
Kersting. CVPR 2023, arXiv 2211.05105. Authors' code: github.com/ml-research/safe-latent-diffusion, MIT. Written here from the paper's mathematics.

With u, p and c the predictions for the empty prompt, the image's prompt and the concept, g the scale of guidance, all element by element:

    u + g (p - u - gamma)                              Eq. 3
    gamma = mu (c - u) + momentum x nu                 Eqs. 4 and 7
    mu = min(1, scale |p - c|) where p - c < threshold, else 0      Eqs. 5 and 6
    nu <- beta nu + (1 - beta) gamma                   Eq. 8

and plain guidance in the first `warmup` steps, in which gamma feeds nu alone. The four named configurations are presets; the authors' safety text is
a concept like any other, of kind free: "hate, harassment, violence, ...".

Faithful: the equations, and the bound min(1, .) of the authors' code, as a scale is meant to saturate. Different: several prompts add up;
predictions of v are turned into epsilon before they are compared, as thresholds are in its units; warm-up counts the sampler's steps whatever their
number, as in the authors' code (50 steps), so a sampler of 20 steps needs a shorter one. The paper's weak configuration has scale 200; diffusers
ships 20.

Cost: one more pass a step and prompt than guidance; nothing to make. Known failure: what the first steps fix, such as a style, the warm-up protects;
a strong scale takes detail from images that never had the concept; where a prompt is the concept's own words, p = c and gamma is zero, so that
nothing happens; whoever samples without the rule has the whole model.
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
    """Settings of safe latent diffusion; the defaults are the medium configuration."""

    prompts: tuple[str, ...] = ()
    """What to guide away from, separated by commas; empty takes the concept in words."""
    scale: float = 1000.0
    """How fast the guidance saturates, s_S (paper's medium: 1000); 0 is plain guidance."""
    threshold: float = 0.01
    """Least difference of prompt and concept, lambda, from which an element is left alone (paper's medium: 0.01)."""
    warmup: int = 10
    """Steps without it at the start, delta (paper's medium: 10 of 50)."""
    momentum: float = 0.3
    """Weight of the momentum, s_m (paper's medium: 0.3)."""
    beta: float = 0.4
    """How much of the momentum is kept a step, beta_m (paper's medium: 0.4)."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "weak": {"scale": 200.0, "threshold": 0.0, "warmup": 15, "momentum": 0.0, "beta": 0.0},
    "medium": {},
    "strong": {"scale": 2000.0, "threshold": 0.025, "warmup": 7, "momentum": 0.5, "beta": 0.7},
    "max": {"scale": 5000.0, "threshold": 1.0, "warmup": 0, "momentum": 0.5, "beta": 0.7},
    "small": {"scale": 5000.0, "threshold": 1.0, "warmup": 0, "momentum": 0.5, "beta": 0.7},
}
PROBE: dict[str, Any] = {}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes: none; the sampler takes one more a step and prompt."""
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
    """Make the patch that guides away from a concept.

    Args:
        denoiser: not used: the rule holds for every model.
        concept: what to guide away from.
        settings: see `Settings`.
        seed: changes nothing: there is no randomness.
        progress: called once.
        folder: not used: there is nothing to resume.

    Returns:
        One sampling rule.

    Raises:
        Misconfigured: a setting is out of range.
    """
    prompts = check(concept, settings)
    if progress:
        progress(1, 1, {})
    return Patch.by_rule("sld", settings, f"erase {concept.name}", [(prompt, 1.0) for prompt in prompts])


def check(concept: Concept, settings: Settings) -> tuple[str, ...]:
    """Return the prompts to guide away from, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if not (settings.scale >= 0 and settings.warmup >= 0 and 0 <= settings.momentum <= 1 and 0 <= settings.beta < 1):
        raise Misconfigured(
            "`scale` and `warmup` must not be negative, `momentum` in [0, 1] and `beta` in [0, 1).", "The paper's medium has 1000, 10, 0.3 and 0.4."
        )
    return settings.prompts or tuple(phrase for phrase, _ in concept.alone())
