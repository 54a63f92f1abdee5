"""Guides every image away from the concept instead of the empty prompt; changes no weight and trains nothing.

Negative prompts came with the first Stable Diffusion interfaces in 2022 and have no paper; as a way to erase they are the baseline of "Safe Latent
Diffusion" (Schramowski et al., CVPR 2023, arXiv 2211.05105). With u, p and c the predictions for the empty prompt, the image's prompt and the
concept, and g the scale of guidance, the sampler follows

    n + g (p - n),   n = u + strength x mean (c - u).

At strength 1 with one prompt c takes the place of u, which is what diffusers' `negative_prompt` does; at 0 this is plain guidance. Different from
it: several prompts are averaged, and an image's own negative prompt stays, in u.

Cost: one more pass a step and prompt than guidance; nothing to make. Known failure: what pushes away from the concept also pushes images that never
had it; whoever samples without the rule has the whole model.
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
    """Settings of a negative prompt."""

    prompts: tuple[str, ...] = ()
    """What to guide away from, separated by commas; empty takes the concept in words."""
    strength: float = 1.0
    """How much of the empty prompt it replaces: 0 nothing, 1 all of it; more goes on beyond."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"strength": 2.0},
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
        Misconfigured: the strength is negative or infinite.
    """
    prompts = check(concept, settings)
    if progress:
        progress(1, 1, {})
    return Patch.by_rule("negative_prompt", settings, f"erase {concept.name}", [(prompt, 1 / len(prompts)) for prompt in prompts])


def check(concept: Concept, settings: Settings) -> tuple[str, ...]:
    """Return the prompts to guide away from, if everything is in order.

    Raises:
        Misconfigured: the strength is negative or infinite.
    """
    if not 0 <= settings.strength < float("inf"):
        raise Misconfigured(f"`strength` must not be negative or infinite; got {settings.strength:g}.", "1 replaces the empty prompt.")
    return settings.prompts or tuple(phrase for phrase, _ in concept.alone())
