"""Finds tokens to put before each prompt under which the erased model predicts the noise of a picture of the concept again.

"To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images ... For Now" (UnlearnDiffAtk). Yimeng Zhang,
Jinghan Jia, Xin Chen, Aochuan Chen, Yihua Zhang, Jiancheng Liu, Ke Ding, Sijia Liu. ECCV 2024, arXiv 2310.11868. Authors' code:
github.com/OPTML-Group/Diffusion-MU-Attack, MIT. The search over tokens is that of "TextGrad" (Bairu Hou, Jinghan Jia, Yihua Zhang, Guanhua Zhang,
Yang Zhang, Sijia Liu, Shiyu Chang. ICLR 2023, arXiv 2212.09254). Written here from the papers' mathematics.

With e the erased model, x_0 a picture of what the prompt c asks for and p tokens before it, the model's own denoising loss is minimised; no other
model and no judge is needed:

    min E | e(x_t, t, p + c) - noise |^2.

Each of the tokens is a distribution u over the vocabulary, a point of the simplex. A step draws tokens z from u, takes the gradient at z as if it
were that at u (straight through), moves u by AdamW, and projects it back onto the simplex: clip(u - m, 0, 1), with m found by bisection so that the
entries sum to one. At the end the likeliest tokens, some drawn from u, and those it began with are compared on fixed noise, and the best are kept.

Faithful: loss, variables, projection. Different: weight decay is AdamW's, apart from the gradient, where the authors' code has Adam and adds it to
the gradient; u begins at random, sparse once projected, not uniform; timesteps go from noisy to clean, not from clean to noisy; the gradient is not
clipped to [-1, 1] (hardtanh); all prompts of a batch are attacked at once, each by itself; the vocabulary leaves out what could spell the concept; no
judge stops the search early, so that judged images stay unseen. Where a sampling rule erases, the loss goes through the rule.

Cost a prompt: rounds x steps passes with gradient, then 4 passes for each of the tokens compared; times 2 or more under a rule. Known failure: a
prefix is read by the text encoder, so where that was trained against prefixes the attack finds little, although the concept may be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assay.attacks.search import Slots, Vocabulary, slots, spoken, vocabulary
from assay.attacks.target import Attack, Clock, Progress, Target, losses
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.noise import derive, generator, normal

EACH = True
"""Whether each prompt is attacked by itself."""
IN_WORDS = True
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = False
"""Whether it is led by the model beneath the patches."""


@dataclass(frozen=True)
class Settings:
    """Settings of UnlearnDiffAtk."""

    tokens: int = 3
    """Tokens before the prompt (paper: 3 for styles and objects, 5 for nudity)."""
    rounds: int = 50
    """Timesteps attacked in turn, noisy to clean (authors' code: 50)."""
    steps: int = 40
    """Optimiser steps at each timestep (authors' code: 40)."""
    learning_rate: float = 0.01
    """Learning rate of AdamW on the simplex (authors' code: 0.01, weight decay 0.1)."""
    drawn: int = 4
    """Tokens drawn at the end, to be compared with the likeliest ones."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"rounds": 8, "steps": 8, "learning_rate": 0.05}}
PROBE: dict[str, Any] = {"rounds": 1, "steps": 1, "drawn": 1}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings, prompts: int, steps: int) -> dict[str, int]:
    """Return the passes that an attack on so many prompts takes, in samples: `passes` without gradients and `training_passes` with."""
    return {"passes": prompts * 4 * (settings.drawn + 2), "training_passes": prompts * settings.rounds * settings.steps}


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
    """Search for the tokens of every prompt.

    Args:
        denoiser: the model with its patches on.
        target: what to bring back.
        settings: see `Settings`.
        seed: not used: every draw is by the seed of its prompt.
        clock: stops the search when its budget is spent.
        progress: called after every step with the mean loss.
        folder: not used.

    Returns:
        Prompts with the tokens before them, and the loss of every step.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the text encoders read by different vocabularies.
    """
    check(settings)
    if settings.rounds > len(denoiser.alphas_cumprod):
        raise Misconfigured(f"`rounds` can be at most the model's {len(denoiser.alphas_cumprod)} timesteps.", "The paper has 50.")
    words = vocabulary(denoiser, target)
    laid = slots(denoiser, target.prompts, settings.tokens)
    u = simplex(uniform_start(target, settings.tokens, len(words.ids)).to(denoiser.device)).requires_grad_()
    began = u.detach().argmax(-1)
    optimizer = torch.optim.AdamW([u], lr=settings.learning_rate, weight_decay=0.1)
    times = denoiser.timesteps(settings.rounds).tolist()
    curve: list[float] = []
    total = settings.rounds * settings.steps
    for step in range(total):
        if clock is not None and clock.over:
            break
        t = torch.full((len(target),), times[step // settings.steps], device=denoiser.device)
        noise = normal(denoiser.latent_shape, [derive(own, "unlearn diff atk", step) for own in target.seeds]).to(denoiser.device)
        optimizer.zero_grad()
        chosen = drawn(u.detach(), [generator(own, "unlearn diff atk", "tokens", step) for own in target.seeds])
        one_hot = torch.nn.functional.one_hot(chosen, len(words.ids)) + u - u.detach()
        loss = losses(denoiser, target, target.latents, t, noise, laid.encode(denoiser, [one_hot @ table for table in words.tables]))
        loss.sum().backward()
        optimizer.step()
        with torch.no_grad():
            u.copy_(simplex(u))
        curve.append(float(loss.detach().mean()))
        if progress:
            progress(step + 1, total, {"loss": sum(curve[-20:]) / len(curve[-20:])})
    found = [began, u.detach().argmax(-1)]
    found += [drawn(u.detach(), [generator(own, "unlearn diff atk", "end", n) for own in target.seeds]) for n in range(settings.drawn)]
    best, figures = compared(denoiser, target, laid, words, found)
    ids = laid.filled(words.ids[best])
    with torch.no_grad():
        told = denoiser.family.encode(ids)
    return Attack(spoken(denoiser, ids[0]), told, curves={"loss": curve}, figures=figures, removed=words.removed, early=len(curve) < total)


def check(settings: Settings) -> None:
    """Raise unless everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if min(settings.tokens, settings.rounds, settings.steps) < 1 or settings.drawn < 0 or not settings.learning_rate > 0:
        raise Misconfigured("`tokens`, `rounds` and `steps` must be at least 1, and `learning_rate` positive.", "The paper's are 3, 50, 40 and 0.01.")


def uniform_start(target: Target, tokens: int, size: int) -> torch.Tensor:
    """Return where the distributions begin, drawn by each prompt's own seed, uniformly in [0, 1): (n, tokens, size)."""
    return torch.stack([torch.rand((tokens, size), generator=generator(own, "unlearn diff atk", "start")) for own in target.seeds])


def simplex(u: torch.Tensor, halvings: int = 40) -> torch.Tensor:
    """Project the last axis onto the probability simplex: clip(u - m, 0, 1), m by bisection so that it sums to one."""
    low, high = u.amin(-1, keepdim=True) - 1.0, u.amax(-1, keepdim=True)
    for _ in range(halvings):
        middle = (low + high) / 2
        heavy = (u - middle).clamp(0, 1).sum(-1, keepdim=True) > 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    return (u - (low + high) / 2).clamp(0, 1)


def drawn(u: torch.Tensor, draws: list[torch.Generator]) -> torch.Tensor:
    """Draw a token from each distribution, (n, tokens), the rows' own generators deciding."""
    return torch.stack([torch.multinomial(row.cpu() + 1e-12, 1, generator=own)[:, 0] for row, own in zip(u, draws, strict=True)]).to(u.device)


def compared(
    denoiser: Denoiser, target: Target, laid: Slots, words: Vocabulary, found: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """Return the tokens (n, k) with the lowest loss on fixed noise for each prompt, and that loss before (the first found) and after."""
    with torch.no_grad():
        measured = torch.stack([target.measure(denoiser, denoiser.family.encode(laid.filled(words.ids[tokens]))) for tokens in found])
    least = measured.argmin(0)
    best = torch.stack(found)[least, torch.arange(len(target), device=least.device)]
    return best, {"loss.before": measured[0].tolist(), "loss.after": measured.amin(0).tolist()}
