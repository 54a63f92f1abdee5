"""Searches what the denoiser is told, from several starts, for anything that draws a work again: found, it was hidden; not found, perhaps removed.

"Finding DoRI: Discovery of Retained Images in Diffusion Models". Antoni Kowalczuk, Dominik Hintersdorf, Lukas Struppek, Kristian Kersting, Adam
Dziedzic, Franziska Boenisch. ICML 2026, arXiv 2507.16880. Authors' code: github.com/sprintml/finding_dori, not seen. Written here from the paper's
mathematics.

With e the erased model, x_0 the work that a prompt asks for and y the text embedding that the denoiser reads (all positions of the encoder's states),

    y = argmin E | e(x_t, t, y) - noise |^2        over timesteps and noise, by Adam,

from several starts: attempt 0 from the prompt's own embedding, the others from those of random tokens. A memorised work needs few steps; one that a
model never memorised needs ten times as many (paper: 50 against more than 500). So with few steps success says that the work, or what the judge sees
of it, is still in the model and only the way to it was closed. That every start fails says that this search found no way.

Faithful: what is searched, loss, optimiser, rate, steps, samples a step. Different: starts but the first are encodings of random tokens, where the
paper has Gaussian noise and other prompts; success is what the judge sees in fresh images, not the similarity to the work; the loss of the base under
the plain prompt is measured beside, as what there is to regain; pooled embeddings of pipelines that have them stay those of the start. Where a
sampling rule erases, the loss goes through the rule.

Cost a prompt: `attempts` x `steps` x `samples` passes with gradient and 4 x `attempts` + 8 without; times 2 or more under a rule. Known failure: an
embedding of all positions has thousands of numbers, so that with many steps it spells out a picture that the model never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from assay.attacks.search import body
from assay.attacks.target import Attack, Clock, Progress, Target, as_loaded, by_rule, losses
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.guidance import Rule
from assay.noise import derive, generator

EACH = True
"""Whether each prompt is attacked by itself."""
IN_WORDS = False
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = False
"""Whether it is led by the model beneath the patches."""


@dataclass(frozen=True)
class Settings:
    """Settings of the search."""

    attempts: int = 5
    """Starts of the search, each judged; the first is the prompt's own embedding."""
    steps: int = 50
    """Optimiser steps (paper: 50)."""
    samples: int = 8
    """Timesteps and noises a step (paper: 8)."""
    learning_rate: float = 0.1
    """Learning rate of Adam (paper: 0.1)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"attempts": 2, "steps": 30, "samples": 2, "learning_rate": 0.05}}
PROBE: dict[str, Any] = {"attempts": 2, "steps": 1, "samples": 1}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings, prompts: int, steps: int) -> dict[str, int]:
    """Return the passes that an attack on so many prompts takes, in samples: `passes` without gradients and `training_passes` with."""
    rows = prompts * settings.attempts
    return {"passes": 4 * (rows + 2 * prompts), "training_passes": rows * settings.steps * settings.samples}


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
    """Search for an embedding of every prompt's work from every start.

    Args:
        denoiser: the model with its patches on.
        target: what to bring back.
        settings: see `Settings`.
        seed: not used: every draw is by the seed of its prompt.
        clock: stops the search when its budget is spent.
        progress: called after every step with the mean loss.
        folder: not used.

    Returns:
        What the denoiser is to be told, and the loss of every step; the loss on fixed noise before (the prompt with patches on), after (the best
        start) and of the base under the plain prompt.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if min(settings.attempts, settings.steps, settings.samples) < 1 or not settings.learning_rate > 0:
        raise Misconfigured(
            "`attempts`, `steps` and `samples` must be at least 1, and `learning_rate` positive.", "The paper has 50 steps of 8 samples, at 0.1."
        )
    whole = repeated(target, settings.attempts)
    begun = starts(denoiser, target, settings.attempts)
    states = begun.states.float().clone().requires_grad_()
    optimizer = torch.optim.Adam([states], lr=settings.learning_rate)
    curve: list[float] = []
    for step in range(settings.steps):
        if clock is not None and clock.over:
            break
        optimizer.zero_grad()
        total = torch.zeros((), device=denoiser.device)
        for sample in range(settings.samples):  # one after another: the memory of one
            t, noise = whole.draw(denoiser, "hidden or removed", step, sample)
            told = Conditioning(states.to(begun.states.dtype), begun.extra)
            loss = losses(denoiser, whole, whole.latents, t, noise, told).sum() / settings.samples
            loss.backward()
            total += loss.detach()
        optimizer.step()
        curve.append(float(total) / len(whole))
        if progress:
            progress(step + 1, settings.steps, {"loss": sum(curve[-10:]) / len(curve[-10:])})
    told = Conditioning(states.detach().to(begun.states.dtype), begun.extra)
    same = replace(whole, seeds=tuple(own for own in target.seeds for _ in range(settings.attempts)))  # the noise of every other figure
    after = same.measure(denoiser, told).reshape(-1, settings.attempts).amin(1)
    before = target.measure(denoiser, denoiser.conditioning(target.prompts))
    guided = by_rule(denoiser) is not None
    with torch.no_grad(), as_loaded(denoiser):
        if guided:  # like is compared with like
            denoiser.rules.append(Rule("classifier_free"))
        base = target.measure(denoiser, denoiser.conditioning(target.prompts))
    figures = {"loss.before": before.tolist(), "loss.after": after.tolist(), "loss.base": base.tolist()}
    return Attack(whole.prompts, told, attempts=settings.attempts, curves={"loss": curve}, figures=figures, early=len(curve) < settings.steps)


def repeated(target: Target, attempts: int) -> Target:
    """Return the target with every prompt as often as it is attempted, each with a seed of its own."""
    rows = [row for row in range(len(target)) for _ in range(attempts)]
    seeds = tuple(derive(target.seeds[row], "attempt", place % attempts) for place, row in enumerate(rows))
    return replace(target, prompts=tuple(target.prompts[row] for row in rows), latents=target.latents[rows], seeds=seeds)


@torch.no_grad()
def starts(denoiser: Denoiser, target: Target, attempts: int) -> Conditioning:
    """Return what the search begins with: for every prompt its own encoding, and those of as many random tokens."""
    rows = []
    for prompt, own in zip(target.prompts, target.seeds, strict=True):
        rows.append(denoiser.conditioning([prompt]))
        for attempt in range(1, attempts):
            rows.append(denoiser.family.encode(scrambled(denoiser, prompt, derive(own, "start", attempt))))
    return Conditioning.cat(rows)


def scrambled(denoiser: Denoiser, prompt: str, own: int) -> Sequence[torch.Tensor]:
    """Return token ids like those of a prompt, every token between begin and end exchanged for a random one: (1, tokens) for each text encoder."""
    ids = denoiser.family.tokenize([prompt])
    for (coder, _), row in zip(denoiser.family.encoders, ids, strict=True):
        count = min(len(body(coder, prompt)), row.shape[1] - 2)
        allowed = torch.tensor(sorted(set(range(len(coder))) - set(coder.all_special_ids)))
        drawn = torch.randint(len(allowed), (count,), generator=generator(own, "scrambled"))
        row[0, 1 : 1 + count] = allowed[drawn].to(row.device)
    return ids
