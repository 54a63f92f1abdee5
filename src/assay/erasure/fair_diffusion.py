"""Deals out attributes among images in declared shares, by a coin for each image and semantic guidance; changes no weight and trains nothing.

"Fair Diffusion: Instructing Text-to-Image Generation Models on Fairness". Felix Friedrich, Manuel Brack, Lukas Struppek, Dominik Hintersdorf,
Patrick Schramowski, Sasha Luccioni, Kristian Kersting. 2023, arXiv 2302.10893. Authors' code: github.com/ml-research/Fair-Diffusion, Apache-2.0.
Written here from the papers' mathematics.

Every image draws one attribute with the declared share and is sampled by semantic guidance (see `sega`) towards it and away from the others:

    u + g (p - u) + gamma,   gamma = sum over attributes of sign x scale x psi + momentum x nu,   sign = 1 if drawn, else -1 / (attributes - 1).

What is erased is thus the model's own preference among the attributes. They are the members of the concept or, where it has none, the concept and
its anchor: "twemoji style" and "noto style", "male person" and "female person". The coin comes from the image's seed alone.

Faithful: the coin, the two directions of a pair, the defaults. Different: more than two attributes, whose directions away share the weight of one;
no table of occupations says for which prompts the rule holds: it holds for all that are sampled under it; how `sega` differs.

Cost: one more pass a step and attribute than guidance; nothing to make. Known failure: an attribute that does not apply to an image is drawn into it
all the same; shares are those of the draws, not of what a judge sees.
"""

from __future__ import annotations

import math
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
    """Settings of Fair Diffusion."""

    attributes: tuple[str, ...] = ()
    """What to deal out, separated by commas; empty takes the concept's members, or the concept and its anchor, in words."""
    shares: tuple[float, ...] = ()
    """Share of the images that each attribute gets, in the same order; empty is equal shares."""
    scale: float = 4.0
    """How far to edit (authors' code: 4); 0 is plain guidance."""
    threshold: float = 0.95
    """Share of the elements of each channel that are left alone (authors' code: 0.95)."""
    warmup: int = 5
    """Steps without it at the start (authors' code: 5)."""
    momentum: float = 0.5
    """Weight of the momentum (authors' code: 0.5)."""
    beta: float = 0.6
    """How much of the momentum is kept a step (authors' code: 0.6)."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"scale": 2.0, "threshold": 0.5, "warmup": 0, "momentum": 0.3},
}
PROBE: dict[str, Any] = {}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that it takes: none; the sampler takes one more a step and attribute."""
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
    """Make the patch that deals out attributes among images.

    Args:
        denoiser: not used: the rule holds for every model.
        concept: its members, or itself and its anchor, are the attributes.
        settings: see `Settings`.
        seed: changes nothing: an image's coin comes from its own seed.
        progress: called once.
        folder: not used: there is nothing to resume.

    Returns:
        One sampling rule.

    Raises:
        Misconfigured: a setting is out of range, or there are not two attributes.
    """
    attributes = check(concept, settings)
    if progress:
        progress(1, 1, {})
    return Patch.by_rule("fair_diffusion", settings, f"balance {', '.join(name for name, _ in attributes)}", attributes)


def check(concept: Concept, settings: Settings) -> tuple[tuple[str, float], ...]:
    """Return the attributes with their shares, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or there are not two attributes.
    """
    if not (settings.scale >= 0 and 0 <= settings.threshold <= 1 and settings.warmup >= 0 and 0 <= settings.momentum <= 1 and 0 <= settings.beta < 1):
        raise Misconfigured(
            "`scale` and `warmup` must not be negative, `threshold` and `momentum` in [0, 1] and `beta` in [0, 1).",
            "The authors' code has 4, 5, 0.95, 0.5 and 0.6.",
        )
    names = [concept.phrase(name) for name in concept.members] if len(concept.members) > 1 else list(concept.alone()[0])
    attributes = settings.attributes or tuple([phrase for phrase, _ in concept.alone()] if concept.parts else names)
    if len(set(attributes)) != len(attributes) or len(attributes) < 2 or "" in attributes:
        raise Misconfigured("Fair Diffusion needs two or more different attributes.", "Give them with `--attributes`, or give an anchor.")
    shares = settings.shares or (1.0,) * len(attributes)
    if len(shares) != len(attributes) or not all(0 <= share < math.inf for share in shares) or not sum(shares) > 0:
        raise Misconfigured(f"There are {len(attributes)} attributes and {len(shares)} shares.", "Give one share, not negative, for each attribute.")
    return tuple((name, share / sum(shares)) for name, share in zip(attributes, shares, strict=True))
