"""Sampling rules: how the predictions for several prompts are combined into the one that a sampler follows.

A rule is data (a name, prompts and settings), so it can be part of a patch without code. Predictions are in the network's own view, as in diffusers:
at one step v is an affine map of epsilon that is the same for every prompt, so a combination whose weights sum to one means the same in both. Rules
with thresholds or momentum take differences of epsilon, whatever the network predicts. What a rule does to an image depends on that image alone.

A few rules change what the model is told before the first step instead, and then guide plainly: `retelling.py`.

Letters: u, p and c are the predictions for the empty prompt, the image's prompt and a prompt of the rule; g is the scale of guidance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from assay.errors import Misconfigured, Unsupported

Memory = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Predictions:
    """Predictions of one step, epsilon or v, each (b, c, h, w)."""

    empty: torch.Tensor
    """For the negative prompt, by default the empty one."""
    prompt: torch.Tensor
    """For the prompt."""
    concepts: tuple[torch.Tensor, ...]
    """For every prompt of the rule, in order."""
    step: int
    """Index of the step, counted from 0."""
    steps: int
    """Number of steps."""
    to_epsilon: float = 1.0
    """What a difference of predictions is multiplied by to be one of epsilon: 1, or a_t for v."""
    coins: torch.Tensor | None = None
    """One number in [0, 1) per image, which its seed decides: (b,)."""


@dataclass(frozen=True)
class Rule:
    """A sampling rule by name, prompts and settings."""

    name: str
    """One of `RULES`."""
    prompts: tuple[tuple[str, float], ...] = ()
    """The prompts that the rule predicts besides the image's own, each with its weight; one more pass a step for each."""
    settings: tuple[tuple[str, float], ...] = ()
    """Numbers of the rule, by name."""

    def check(self) -> None:
        """Raise unless this version knows the rule and its settings.

        Raises:
            Unsupported: no rule has this name, or it has no such setting.
        """
        if self.name not in RULES:
            raise Unsupported(f"There is no sampling rule `{self.name}`.", f"This version knows {', '.join(RULES)}.")
        defaults = RULES[self.name][1]
        if unknown := sorted(set(dict(self.settings)) - set(defaults)):
            raise Unsupported(
                f"The sampling rule `{self.name}` has no setting `{unknown[0]}`.", f"It has {', '.join(defaults) or 'none'}; is the version newer?"
            )

    @property
    def numbers(self) -> dict[str, float]:
        """Its settings, with the defaults of those not given."""
        return RULES[self.name][1] | dict(self.settings)

    def combine(self, predictions: Predictions, guidance: float, memory: Memory | None = None) -> torch.Tensor:
        """Combine the predictions of one step.

        Args:
            predictions: see `Predictions`.
            guidance: scale of classifier-free guidance.
            memory: what the rule keeps from step to step of one batch; empty at the first.

        Returns:
            The prediction to follow: (b, c, h, w).
        """
        self.check()
        weights = tuple(weight for _, weight in self.prompts)
        return RULES[self.name][0](predictions, guidance, weights, self.numbers, {} if memory is None else memory)


def check_scale(guidance: float) -> None:
    """Raise unless images can be sampled at this scale of guidance. Below 1 diffusers does not guide at all, and the formula would guide away.

    Raises:
        Misconfigured: it is below 1, or not finite.
    """
    if not 1 <= guidance < math.inf:
        raise Misconfigured(
            f"A scale of guidance is a finite number, 1 or more; got {guidance}.", "1 samples without guidance; the built-in model's is 4."
        )


def classifier_free(
    predictions: Predictions, guidance: float, weights: tuple[float, ...], settings: dict[str, float], memory: Memory
) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, Eq. 6, with w = guidance - 1): u + g (p - u)."""
    return predictions.empty + guidance * (predictions.prompt - predictions.empty)


def negative_prompt(
    predictions: Predictions, guidance: float, weights: tuple[float, ...], settings: dict[str, float], memory: Memory
) -> torch.Tensor:
    """Guide away from n = u + strength x sum of weight (c - u) instead of u; strength 0 is plain guidance; 1, with one prompt, replaces u."""
    away = predictions.empty
    for weight, concept in zip(weights, predictions.concepts, strict=True):
        away = away + settings["strength"] * weight * (concept - predictions.empty)
    return away + guidance * (predictions.prompt - away)


def sld(predictions: Predictions, guidance: float, weights: tuple[float, ...], settings: dict[str, float], memory: Memory) -> torch.Tensor:
    """Safe latent diffusion (Schramowski et al. 2023, Sec. 3): u + g (p - u - gamma), gamma = sum of weight mu (c - u) + momentum x nu.

    mu = min(1, scale |p - c|) where p - c < threshold, else 0; nu becomes beta nu + (1 - beta) gamma. In the first `warmup` steps gamma feeds nu
    alone. All of it element by element, in epsilon.
    """
    u, p = predictions.empty, predictions.prompt
    gamma = torch.zeros_like(p)
    for weight, concept in zip(weights, predictions.concepts, strict=True):
        gap = predictions.to_epsilon * (p - concept)
        mu = torch.where(gap < settings["threshold"], (settings["scale"] * gap.abs()).clamp(max=1.0), 0.0)
        gamma = gamma + weight * mu * predictions.to_epsilon * (concept - u)
    gamma = _with_momentum(gamma, settings, memory)
    return u + guidance * (p - u - gamma / predictions.to_epsilon) if predictions.step >= settings["warmup"] else u + guidance * (p - u)


def sega(predictions: Predictions, guidance: float, weights: tuple[float, ...], settings: dict[str, float], memory: Memory) -> torch.Tensor:
    """Semantic guidance (Brack et al. 2023, Sec. 3): u + g (p - u) + gamma; a weight's sign says away (-) or towards (+)."""
    return _semantic(predictions, guidance, [predictions.empty.new_tensor(weight) for weight in weights], settings, memory)


def fair_diffusion(predictions: Predictions, guidance: float, weights: tuple[float, ...], settings: dict[str, float], memory: Memory) -> torch.Tensor:
    """Fair Diffusion (Friedrich et al. 2023): semantic guidance towards one prompt, drawn per image by its share, and away from the others."""
    assert predictions.coins is not None
    shares = torch.tensor(weights, dtype=torch.float64)
    chosen = torch.searchsorted((shares / shares.sum()).cumsum(0), predictions.coins.double().cpu(), right=True).clamp(max=len(weights) - 1)
    signs = [torch.where(chosen == index, 1.0, -1.0 / max(1, len(weights) - 1)) for index in range(len(weights))]
    return _semantic(predictions, guidance, [sign.to(predictions.empty)[:, None, None, None] for sign in signs], settings, memory)


def _semantic(predictions: Predictions, guidance: float, signs: list[torch.Tensor], settings: dict[str, float], memory: Memory) -> torch.Tensor:
    """Semantic guidance: gamma = sum of sign x scale x psi + momentum x nu.

    psi is c - u in epsilon where its size is among the largest: at least the quantile `threshold` of its own image and channel, else 0. nu becomes
    beta nu + (1 - beta) gamma. In the first `warmup` steps gamma feeds nu alone.
    """
    u = predictions.empty
    gamma = torch.zeros_like(u)
    for sign, concept in zip(signs, predictions.concepts, strict=True):
        psi = predictions.to_epsilon * (concept - u)
        least = psi.abs().flatten(2).quantile(settings["threshold"], -1)[:, :, None, None]
        gamma = gamma + sign * settings["scale"] * torch.where(psi.abs() >= least, psi, 0.0)
    gamma = _with_momentum(gamma, settings, memory)
    plain = u + guidance * (predictions.prompt - u)
    return plain + gamma / predictions.to_epsilon if predictions.step >= settings["warmup"] else plain


def _with_momentum(gamma: torch.Tensor, settings: dict[str, float], memory: Memory) -> torch.Tensor:
    nu = memory.get("nu", torch.zeros_like(gamma))
    gamma = gamma + settings["momentum"] * nu
    memory["nu"] = settings["beta"] * nu + (1 - settings["beta"]) * gamma
    return gamma


_SEGA = {"scale": 5.0, "threshold": 0.95, "warmup": 10.0, "momentum": 0.3, "beta": 0.6}
RULES: dict[str, tuple[Callable[..., torch.Tensor], dict[str, float]]] = {
    "classifier_free": (classifier_free, {}),
    "negative_prompt": (negative_prompt, {"strength": 1.0}),
    "sld": (sld, {"scale": 1000.0, "threshold": 0.01, "warmup": 10.0, "momentum": 0.3, "beta": 0.4}),
    "sega": (sega, _SEGA),
    "fair_diffusion": (fair_diffusion, _SEGA),
    "random_tokens": (classifier_free, {"probability": 0.0, "inserted": 4.0}),
    "embedding_noise": (classifier_free, {"scale": 0.1}),
    "lower_magnitude": (classifier_free, {"target": 3.0, "learning_rate": 0.05, "steps": 10.0, "strength": 1.0}),
}
"""Rule name -> how it combines predictions, and the settings it has where none are given."""
TELLING = ("random_tokens", "embedding_noise", "lower_magnitude")
"""Rules that change what the model is told before the first step (`retelling.py`), and combine predictions as plain guidance does."""
