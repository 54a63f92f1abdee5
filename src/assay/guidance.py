"""Sampling rules: how the predictions for several prompts are combined into the one that a sampler follows.

A rule is data (a name and settings), so it can be part of a patch without code. Predictions are in the network's own view, as in diffusers: at one
step v is an affine map of epsilon that is the same for every prompt, so a combination whose weights sum to one means the same in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from assay.errors import Unsupported


@dataclass(frozen=True)
class Predictions:
    """Predictions of one step, epsilon or v, each (b, c, h, w)."""

    empty: torch.Tensor
    """For the negative prompt, by default the empty one."""
    prompt: torch.Tensor
    """For the prompt."""
    concept: torch.Tensor
    """For the rule's own prompt; the same as `empty` for a rule without one."""
    step: int
    """Index of the step, counted from 0."""
    steps: int
    """Number of steps."""


@dataclass(frozen=True)
class Rule:
    """A sampling rule by name and settings."""

    name: str
    """`classifier_free` or `negative_prompt`."""
    prompt: str = ""
    """The prompt that the rule predicts besides the image's own."""
    settings: tuple[tuple[str, float], ...] = ()
    """Numbers of the rule, by name."""

    def check(self) -> None:
        """Raise unless this version knows the rule.

        Raises:
            Unsupported: no rule has this name.
        """
        if self.name not in RULES:
            raise Unsupported(f"There is no sampling rule `{self.name}`.", f"This version knows {', '.join(RULES)}.")

    def combine(self, predictions: Predictions, guidance: float) -> torch.Tensor:
        """Combine the predictions of one step: (b, c, h, w)."""
        self.check()
        return RULES[self.name](predictions, guidance, dict(self.settings))


def classifier_free(predictions: Predictions, guidance: float, settings: dict[str, float]) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, Eq. 6, with w = guidance - 1)."""
    return predictions.empty + guidance * (predictions.prompt - predictions.empty)


def negative_prompt(predictions: Predictions, guidance: float, settings: dict[str, float]) -> torch.Tensor:
    """Guide away from the rule's prompt instead of the empty one; strength 0 is plain guidance, 1 replaces the empty prompt."""
    away = predictions.empty + settings.get("strength", 1.0) * (predictions.concept - predictions.empty)
    return away + guidance * (predictions.prompt - away)


RULES = {"classifier_free": classifier_free, "negative_prompt": negative_prompt}
