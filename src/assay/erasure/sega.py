"""Edits the parts of an image that its concept moves most, away from it and towards its anchor; changes no weight and trains nothing.

"SEGA: Instructing Text-to-Image Models using Semantic Guidance". Manuel Brack, Felix Friedrich, Dominik Hintersdorf, Lukas Struppek, Patrick
Schramowski, Kristian Kersting. NeurIPS 2023, arXiv 2301.12247. Authors' code: github.com/ml-research/semantic-image-editing, MIT. Written here from
the paper's mathematics.

With u, p and c the predictions for the empty prompt, the image's prompt and a concept, g the scale of guidance:

    u + g (p - u) + gamma,   gamma = sum over concepts of (+ or -) scale x psi + momentum x nu,   nu <- beta nu + (1 - beta) gamma

where psi is c - u in those elements of each channel in which |c - u| is at least its quantile `threshold`, else 0; and plain guidance in the first
`warmup` steps, in which gamma feeds nu alone. The concept's prompts are guided away from (-), its anchor's, if `toward_anchor` is set, to (+).

Faithful: the equations, the quantile by channel. Different: one warm-up for all concepts, and none cools down; all weigh the same; predictions of v
are turned into epsilon before they are compared, so that momentum adds up what is alike. The paper has no one setting: scale, threshold and warm-up
are chosen by edit; the defaults are those of the authors' examples.

Cost: one more pass a step and prompt than guidance; nothing to make. Known failure: a concept that fills the image, such as a style, needs a low
threshold; whoever samples without the rule has the whole model.
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
    """Settings of semantic guidance."""

    prompts: tuple[str, ...] = ()
    """What to guide away from, separated by commas; empty takes the concept in words."""
    toward_anchor: bool = False
    """Guide to the concept's anchor as well."""
    scale: float = 5.0
    """How far to edit, s_e (authors' examples: 4 to 5); 0 is plain guidance."""
    threshold: float = 0.95
    """Share of the elements of each channel that are left alone, lambda (authors' examples: 0.925 to 0.99)."""
    warmup: int = 10
    """Steps without it at the start, delta (authors' examples: 10 of 50)."""
    momentum: float = 0.3
    """Weight of the momentum, s_m (authors' examples: 0.3)."""
    beta: float = 0.6
    """How much of the momentum is kept a step, beta_m (authors' examples: 0.6)."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"toward_anchor": True, "scale": 3.0, "threshold": 0.5, "warmup": 0},
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
    """Make the patch that edits a concept out of every image.

    Args:
        denoiser: not used: the rule holds for every model.
        concept: what to guide away from; its anchor is guided to if `toward_anchor` is set.
        settings: see `Settings`.
        seed: changes nothing: there is no randomness.
        progress: called once.
        folder: not used: there is nothing to resume.

    Returns:
        One sampling rule.

    Raises:
        Misconfigured: a setting is out of range, or there is no anchor to go toward.
    """
    directions = check(concept, settings)
    if progress:
        progress(1, 1, {})
    return Patch.by_rule("sega", settings, f"erase {concept.name}", directions)


def check(concept: Concept, settings: Settings) -> tuple[tuple[str, float], ...]:
    """Return the prompts with their directions, -1 away and +1 to, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or there is no anchor to go toward.
    """
    if not (settings.scale >= 0 and 0 <= settings.threshold <= 1 and settings.warmup >= 0 and 0 <= settings.momentum <= 1 and 0 <= settings.beta < 1):
        raise Misconfigured(
            "`scale` and `warmup` must not be negative, `threshold` and `momentum` in [0, 1] and `beta` in [0, 1).",
            "The authors' examples have 5, 10, 0.95, 0.3 and 0.6.",
        )
    alone = concept.alone()
    if settings.toward_anchor and any(anchor in ("", phrase) for phrase, anchor in alone):
        raise Misconfigured("`toward_anchor` needs an anchor other than the concept.", "Give one, or leave the setting off.")
    away = [(prompt, -1.0) for prompt in settings.prompts or [phrase for phrase, _ in alone]]
    to = [(anchor, 1.0) for anchor in dict.fromkeys(anchor for _, anchor in alone)] if settings.toward_anchor else []
    return (*away, *to)
