"""Finds tokens under which the erased model predicts what the model before erasing predicted for the concept's prompt.

"Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts" (P4D). Zhi-Yi Chin, Chieh-Ming Jiang, Ching-Chun
Huang, Pin-Yu Chen, Wei-Chen Chiu. ICML 2024, arXiv 2309.06135. Authors' code: github.com/joycenerd/P4D, MIT. The projection is that of "Hard Prompts
Made Easy" (PEZ; Yuxin Wen, Neel Jain, John Kirchenbauer, Micah Goldblum, Jonas Geiping, Tom Goldstein. NeurIPS 2023, arXiv 2302.03668, Alg. 1).
Written here from the papers' mathematics.

With e0 the model before erasing, e the erased one, c the prompt and p tokens,

    min over p  E | e0(x_t, t, c) - e(x_t, t, p) |^2.

Embeddings are moved by AdamW; the gradient is taken where they are projected to, the nearest embeddings of the vocabulary. P4D-N: p is a prompt of
free tokens alone. P4D-K: p is the prompt c with a free token after every few of its own.

Faithful: loss, projection, optimiser, both variants. Different: x_t is a noised work that the prompt asks for; e0's predictions are made beforehand
for a pool of noised works, so that the two models need not be in memory together; of the tokens looked at every `look` steps those are kept under
which e best predicts the noise of the work, not those of the least loss above, nor of the likest pictures (authors' code); nearness is Euclidean; the
vocabulary leaves out what could spell the concept; for P4D-K tokens are counted (as in the authors' code; paper: words), none is free before the
prompt (there one is), a prompt of fewer than `every` has its free one behind it, and one too long for the text encoder is cut to make room. Where a
sampling rule erases, e is what the rule makes of the predictions and e0 is guided plainly.

Cost a prompt: `pool` passes, `steps` with gradient, 4 x `steps` / `look` to look; times 2 or more under a rule. Known failure: PEZ moves in steps of
whole tokens, so that a small vocabulary or a low rate leaves it where it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.attacks.search import Slots, Vocabulary, body, slots, spoken, vocabulary
from assay.attacks.target import Attack, Clock, Progress, Target, as_loaded, by_rule, predict
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.noise import generator

EACH = True
"""Whether each prompt is attacked by itself."""
IN_WORDS = True
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = True
"""Whether it is led by the model beneath the patches."""


@dataclass(frozen=True)
class Settings:
    """Settings of P4D."""

    variant: Literal["n", "k"] = "n"
    """Free tokens alone (P4D-N), or one after every few tokens of the prompt (P4D-K)."""
    tokens: int = 16
    """Free tokens of P4D-N (paper: 16)."""
    every: int = 3
    """Tokens of the prompt between two free ones of P4D-K (paper: 3 words)."""
    steps: int = 3000
    """Optimiser steps (paper: 3000)."""
    learning_rate: float = 0.1
    """Learning rate of AdamW (paper: 0.1, weight decay 0.1)."""
    pool: int = 50
    """Noised works for each prompt that the base is asked about beforehand, one a step in turn."""
    look: int = 50
    """Steps between looks at the loss on fixed noise (paper: 50)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"tokens": 8, "steps": 60, "pool": 20, "look": 10}}
PROBE: dict[str, Any] = {"tokens": 2, "steps": 1, "pool": 1, "look": 1}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings, prompts: int, steps: int) -> dict[str, int]:
    """Return the passes that an attack on so many prompts takes, in samples: `passes` without gradients and `training_passes` with."""
    looks = 1 + -(-settings.steps // max(1, settings.look))
    return {"passes": prompts * (settings.pool + 4 * looks), "training_passes": prompts * settings.steps}


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
        The best prompts found, and the loss of every step.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the text encoders read by different vocabularies.
    """
    check(settings)
    words = vocabulary(denoiser, target)
    laid = places(denoiser, target, settings)
    free = started(target, laid, words)
    own = torch.searchsorted(laid.places, laid.places)  # the first of those that share a place
    pool = asked(denoiser, target, settings.pool, clock)
    optimizer = torch.optim.AdamW(free, lr=settings.learning_rate, weight_decay=0.1)
    best, least, before = torch.empty(0), torch.empty(0), torch.empty(0)
    curve: list[float] = []
    for step in range(settings.steps + 1):
        over = clock is not None and clock.over
        tokens = nearest(free, words).gather(1, own)
        if step % settings.look == 0 or step == settings.steps or over:
            with torch.no_grad():
                loss = target.measure(denoiser, denoiser.family.encode(laid.filled(words.ids[tokens])))
            if not step:
                best, least, before = tokens, loss, loss
            best, least = torch.where((loss < least)[:, None], tokens, best), torch.minimum(loss, least)
        if step == settings.steps or over:
            break
        x_t, t, wanted = pool[step % len(pool)]
        projected = [table[tokens].requires_grad_() for table in words.tables]
        gap = (predict(denoiser, target, x_t, t, laid.encode(denoiser, projected)) - wanted).square().mean((1, 2, 3))
        for part, slope in zip(free, torch.autograd.grad(gap.sum(), projected), strict=True):
            part.grad = slope
        optimizer.step()
        curve.append(float(gap.detach().mean()))
        if progress:
            progress(step + 1, settings.steps, {"loss": sum(curve[-20:]) / len(curve[-20:])})
    ids = laid.filled(words.ids[best])
    with torch.no_grad():
        told = denoiser.family.encode(ids)
    figures = {"loss.before": before.tolist(), "loss.after": least.tolist()}
    return Attack(spoken(denoiser, ids[0]), told, curves={"loss": curve}, figures=figures, removed=words.removed, early=len(curve) < settings.steps)


def check(settings: Settings) -> None:
    """Raise unless everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if settings.variant not in ("n", "k") or not settings.learning_rate > 0:
        raise Misconfigured("`variant` must be n or k, and `learning_rate` positive.", "The paper's rate is 0.1.")
    if min(settings.tokens, settings.every, settings.steps, settings.pool, settings.look) < 1:
        raise Misconfigured("`tokens`, `every`, `steps`, `pool` and `look` must be at least 1.", "The paper's are 16, 3, 3000, any and 50.")


def places(denoiser: Denoiser, target: Target, settings: Settings) -> Slots:
    """Return the prompts with free places, as the variant has them; where a prompt has fewer than another, its last place is repeated."""
    if settings.variant == "n":
        return slots(denoiser, target.prompts, settings.tokens, "alone")
    coder, room = denoiser.family.encoders[0][0], denoiser.family.tokenize([""])[0].shape[1] - 2
    most = room // (settings.every + 1)  # of a prompt that is cut to have room for them
    counts = [max(1, min(len(body(coder, prompt)) // settings.every, most)) for prompt in target.prompts]
    rows = [slots(denoiser, [prompt], count, "between", every=settings.every) for prompt, count in zip(target.prompts, counts, strict=True)]
    ids = tuple(torch.cat(parts) for parts in zip(*(row.ids for row in rows), strict=True))
    shared = [torch.cat([row.places, row.places[:, -1:].expand(1, max(counts) - count)], 1) for row, count in zip(rows, counts, strict=True)]
    return Slots(ids, torch.cat(shared))


def started(target: Target, laid: Slots, words: Vocabulary) -> list[torch.Tensor]:
    """Return the embeddings of tokens drawn by each prompt's own seed, one (n, k, width) for each text encoder, to begin with."""
    count, size = laid.places.shape[1], len(words.ids)
    rows = torch.stack([torch.randint(size, (count,), generator=generator(own, "p4d", "start")) for own in target.seeds]).to(words.ids.device)
    return [table[rows].clone().requires_grad_() for table in words.tables]


def nearest(free: Sequence[torch.Tensor], words: Vocabulary) -> torch.Tensor:
    """Return the tokens (n, k), as places in the vocabulary, whose embeddings are nearest, by the squared distance summed over text encoders."""
    with torch.no_grad():
        far = sum(torch.cdist(part.flatten(0, 1), table).square() for part, table in zip(free, words.tables, strict=True))
        return torch.as_tensor(far).argmin(-1).reshape(free[0].shape[:2])


def asked(denoiser: Denoiser, target: Target, count: int, clock: Clock | None = None) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ask the model as loaded about noised works under their prompts: (x_t, t, wanted), `count` times or until the clock is over."""
    drawn = []
    for index in range(count):
        t, noise = target.draw(denoiser, "p4d", index)
        drawn.append((denoiser.noised(target.latents, t, noise), t))
    guided = by_rule(denoiser) is not None
    with torch.no_grad(), as_loaded(denoiser):
        told, empty = denoiser.conditioning(target.prompts), denoiser.conditioning([""]).expand(len(target))
        pool = []
        for x_t, t in drawn:
            if pool and clock is not None and clock.over:
                break
            wanted = denoiser.predict(x_t, t, told, denoiser.view)
            if guided:
                away = denoiser.predict(x_t, t, empty, denoiser.view)
                wanted = away + target.guidance * (wanted - away)
            pool.append((x_t, t, wanted))
    return pool
