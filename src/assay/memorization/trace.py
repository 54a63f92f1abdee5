"""Traces of prompts: what a model does from pure noise under a prompt, made once and read by every detector.

A detector asks whether a prompt brings out a copy, without the work. Letters as in `assay.denoiser`; c is the prompt, e(x, t, c) the predicted noise
and g_t = e(x_t, t, c) - e(x_t, t, empty) the guidance. For every prompt and draw of noise x_T:

- along the DDIM steps of guided sampling: g_t, and the probabilities of every cross-attention layer, averaged over heads and places;
- at the last step: attention to the end token, place by place, in the finest layers on the way down (Chen et al. 2025 read those);
- how far one guided step from x_T to no noise goes (Webster 2023);
- e at a late timestep, with and without the prompt, for x_T itself: pure noise where little is expected (Asthana and Belagiannis 2026).

2 x steps + 2 passes a prompt and draw. Sampling follows plain classifier-free guidance: a rule that the model carries acts on it no more than on the
predictions themselves. The pair of passes is one batch; attention is reduced as soon as a pass is over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import interpolate

from assay.attention import cross_layers, exposed
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.noise import derive, normal


@dataclass(frozen=True)
class Course:
    """How prompts are sampled."""

    draws: int
    """Noises of a prompt."""
    steps: int
    """DDIM steps."""
    guidance: float
    """Scale of classifier-free guidance."""
    late: int
    """Which step, from the last, gives the late timestep: 1 is the last."""

    @property
    def each(self) -> int:
        """How many passes a prompt takes."""
        return self.draws * (2 * self.steps + 2)


@dataclass(frozen=True)
class Trace:
    """What happened under n prompts; latents are (c, h, w)."""

    guidance: torch.Tensor
    """g_t: (n, draws, steps, c, h, w)."""
    attention: torch.Tensor
    """Probability of every token, averaged over heads and places: (n, draws, steps, layers, tokens); layers in the order of a pass."""
    ending: torch.Tensor
    """Attention to the end token at the last step, at the size of latents: (n, draws, h, w)."""
    late: torch.Tensor
    """e(x_T, late, c): (n, draws, c, h, w)."""
    late_empty: torch.Tensor
    """e(x_T, late, empty): (n, draws, c, h, w)."""
    ends: torch.Tensor
    """Place of the end token: int64, (n,)."""
    latents: torch.Tensor
    """What was drawn: (n, draws, c, h, w)."""
    leap: torch.Tensor
    """Mean square of the guided e at the first step: (n, draws)."""

    @property
    def magnitudes(self) -> torch.Tensor:
        """Euclidean norm of g_t: float64, (n, draws, steps)."""
        return self.guidance.double().flatten(-3).norm(dim=-1)


def check(course: Course, denoiser: Denoiser | None = None) -> None:
    """Raise if prompts cannot be sampled so, by this model where it is given.

    Raises:
        Misconfigured: they cannot.
    """
    if min(course.draws, course.steps) < 1 or not 1 <= course.late <= course.steps or not 1 <= course.guidance < math.inf:
        raise Misconfigured("`draws`, `steps` and `guidance` are finite and at least 1, and `late` lies between 1 and `steps`.", "Use a preset.")
    if denoiser is not None and course.steps > len(denoiser.alphas_cumprod):
        raise Misconfigured(f"`steps` exceeds the model's {len(denoiser.alphas_cumprod)} timesteps.", "Take fewer steps.")


def ends_of(denoiser: Denoiser, prompts: Sequence[str]) -> torch.Tensor:
    """Return at which place every prompt's end token stands, the first of them where pads are end tokens, too: int64, (n,)."""
    tokenizer, _ = denoiser.family.encoders[0]
    rows = denoiser.family.tokenize(prompts)[0].tolist()
    return torch.tensor([row.index(tokenizer.eos_token_id, 1) for row in rows])


@torch.no_grad()
def follow(denoiser: Denoiser, prompts: Sequence[str], ids: Sequence[str], course: Course, *, seed: int, batch: int = 32) -> Trace:
    """Sample prompts and record their traces.

    Args:
        denoiser: the model.
        prompts: n of them.
        ids: what each is about; a draw's noise depends on seed, id and its number alone.
        course: how to sample.
        seed: of the noise.
        batch: samples a pass; each is asked with and without its prompt.

    Raises:
        Misconfigured: the model cannot be sampled so.
    """
    check(course, denoiser)
    ends = ends_of(denoiser, prompts)
    seeds = [derive(seed, "trace", id_, draw) for id_ in ids for draw in range(course.draws)]
    rows = torch.arange(len(prompts)).repeat_interleave(course.draws)
    parts = []
    with exposed(denoiser.unet) as maps:
        for first in range(0, len(seeds), max(1, batch // 2)):
            part = slice(first, first + max(1, batch // 2))
            told = denoiser.conditioning([prompts[int(row)] for row in rows[part]])
            parts.append(_follow(denoiser, told, seeds[part], ends[rows[part]], course, maps))
    joined = [torch.cat(tensors).unflatten(0, (len(prompts), course.draws)) for tensors in zip(*parts, strict=True)]
    guidance, attention, ending, late, late_empty, latents, leap = joined
    return Trace(guidance, attention, ending, late, late_empty, ends, latents, leap)


def _follow(
    denoiser: Denoiser, told: Conditioning, seeds: Sequence[int], ends: torch.Tensor, course: Course, maps: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    count, scheduler = len(seeds), copy.deepcopy(denoiser.scheduler)
    scheduler.set_timesteps(course.steps)
    x = normal(denoiser.latent_shape, seeds).to(denoiser.device) * scheduler.init_noise_sigma
    pair = Conditioning.cat([told, denoiser.conditioning([""]).expand(count)])

    def ask(at: Any, view: Any) -> tuple[torch.Tensor, torch.Tensor]:
        maps.clear()
        times = torch.full((2 * count,), int(at), device=denoiser.device)
        one, other = denoiser.predict(x.repeat(2, 1, 1, 1), times, pair, view).chunk(2)
        return one, other

    late = ask(scheduler.timesteps[-course.late], "epsilon")
    guidance, attention, leaps = [], [], []
    for t in scheduler.timesteps:
        asked, empty = ask(t, denoiser.view)
        to_epsilon = 1.0 if denoiser.view == "epsilon" else denoiser.alphas_cumprod[t].sqrt()  # e = a v + s x: the difference of e is a that of v
        guidance.append((asked - empty) * to_epsilon)
        attention.append(torch.stack([probabilities[:count].float().mean((1, 2)) for probabilities in maps], 1))
        guided = empty + course.guidance * (asked - empty)
        if not leaps:
            a, s = denoiser.scales(t[None])
            leaps.append((guided if denoiser.view == "epsilon" else a * guided + s * x).square().mean((1, 2, 3)))
        x = scheduler.step(guided, t, x).prev_sample
    ending = end_map([probabilities[:count] for probabilities in maps], cross_layers(denoiser.unet), ends, denoiser.latent_shape[-1])
    maps.clear()
    found = (torch.stack(guidance, 1), torch.stack(attention, 1), ending, *late, x, *leaps)
    return tuple(tensor.cpu() for tensor in found)


def end_map(maps: Sequence[torch.Tensor], layers: Sequence[str], ends: torch.Tensor, side: int) -> torch.Tensor:
    """Return the attention to the end token, averaged over heads and over the finest layers on the way down: float32, (b, side, side).

    Args:
        maps: probabilities of every layer: (b, heads, places, tokens) each.
        layers: their names.
        ends: place of each row's end token: (b,).
        side: of latents; coarser maps are repeated to it.
    """
    down = [probabilities for name, probabilities in zip(layers, maps, strict=True) if name.startswith("down_blocks")] or list(maps)
    finest = max(probabilities.shape[2] for probabilities in down)
    rows = torch.arange(len(ends), device=maps[0].device)
    found = [probabilities.float().mean(1)[rows, :, ends.to(rows)] for probabilities in down if probabilities.shape[2] == finest]
    edge = math.isqrt(finest)
    return interpolate(torch.stack(found).mean(0).unflatten(1, (edge, edge))[:, None], size=(side, side), mode="nearest")[:, 0]
