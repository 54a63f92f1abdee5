"""One tape of denoiser passes over works, from which every membership score is computed.

A score of membership is a function of what a model predicts for a work; most of the known ones ask for the same predictions. Here those are made
once. Letters as in `assay.denoiser`: x_0 is the work's latent (the mean of the encoder's distribution), e(x, t, c) the predicted noise. For every
work:

- noised: e(x_t, t, c) at x_t = a_t x_0 + s_t n for every timestep, draw of n and wording c (the caption, none, others): one noise for all wordings;
- first: e(x_0, 0, caption), without noise: the first step of SecMI and the start of PIA;
- proximal: e(a_t x_0 + s_t first, t, caption), and the same with `first` brought to the size of true noise (PIA, PIAN);
- unnoised: e(x_0, t, caption) at a later timestep (SimA);
- gradient: norm of the gradient of the mean squared error of the noised predictions under the caption, where it is asked for (GSA);
- inverted, returned: x_0 carried up to a timestep by deterministic steps, and once further up and back (SecMI).

Wordings x timesteps x draws + 4 + inverted / interval + 1 passes a work, and timesteps x draws with gradients. Latents are encoded once, wordings
once, and rows of all works of a shard fill every batch. A shard of works is written as one file, so that a killed audit goes on, and held in memory
one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save

from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.noise import derive, normal
from assay.patched import standing
from assay.record import digest_of, kept_tensors, write_atomically
from assay.works import Works

CAPTION, EMPTY = "caption", "empty"
"""Names of the wordings that every tape has."""
WEIGHTS = "cross_attention"
"""Group of weights whose gradient is taken."""


@dataclass(frozen=True)
class Passes:
    """Which predictions are made for every work."""

    timesteps: tuple[int, ...]
    """Of the noised predictions."""
    draws: int
    """Noises at each of those."""
    proximal: int
    """Timestep of PIA."""
    unnoised: int
    """Timestep of SimA."""
    inverted: int
    """Timestep up to which SecMI inverts; a multiple of the interval."""
    interval: int
    """Timesteps a step of SecMI."""
    gradient: bool = False
    """Whether the gradient's norm is taken."""

    @property
    def backward(self) -> int:
        """How many passes with gradients a work takes."""
        return len(self.timesteps) * self.draws if self.gradient else 0

    def each(self, wordings: int) -> int:
        """Return how many passes without gradients a work takes under so many wordings."""
        return wordings * len(self.timesteps) * self.draws + 4 + self.inverted // max(1, self.interval) + 1


@dataclass(frozen=True)
class Tape:
    """Predictions for n works; latents are (c, h, w)."""

    clean: torch.Tensor
    """x_0: (n, c, h, w)."""
    noise: torch.Tensor
    """What was added: (n, timesteps, draws, c, h, w)."""
    noised: dict[str, torch.Tensor]
    """Name of a wording -> predicted noise: (n, timesteps, draws, c, h, w)."""
    first: torch.Tensor
    """e(x_0, 0): (n, c, h, w)."""
    proximal: torch.Tensor
    """Prediction where `first` was the noise: (n, c, h, w)."""
    proximal_normalised: torch.Tensor
    """Prediction where `first`, brought to the size of true noise, was the noise: (n, c, h, w)."""
    unnoised: torch.Tensor
    """e(x_0, t): (n, c, h, w)."""
    inverted: torch.Tensor
    """x_0 carried up: (n, c, h, w)."""
    returned: torch.Tensor
    """`inverted` carried one step further up and back: (n, c, h, w)."""
    gradient: torch.Tensor | None = None
    """Norm of the gradient, where it was taken: (n,)."""

    def errors(self, wording: str = CAPTION) -> torch.Tensor:
        """Return the mean squared error of the predicted noise, by timestep and draw: float64, (n, timesteps, draws)."""
        return (self.noised[wording].double() - self.noise.double()).square().mean((-3, -2, -1))


def check(passes: Passes, schedule: int | None = None) -> None:
    """Raise if a pass cannot be made, on a schedule of so many timesteps where that is known.

    Raises:
        Misconfigured: one cannot.
    """
    times = (*passes.timesteps, passes.proximal, passes.unnoised, passes.inverted)
    if passes.draws < 1 or not passes.timesteps or min(times) < 1 or passes.interval < 1:
        raise Misconfigured("A tape needs timesteps and draws, each at least 1.", "Use a preset.")
    if passes.inverted % passes.interval:
        raise Misconfigured(f"`inverted` {passes.inverted} is no multiple of `interval` {passes.interval}.", "Take an interval that divides it.")
    if schedule is not None and max(*times, passes.inverted + passes.interval) >= schedule:
        raise Misconfigured(f"The model has {schedule} timesteps, and a pass lies beyond them.", "Choose earlier timesteps.")


def play(
    denoiser: Denoiser,
    works: Works,
    rows: Sequence[int],
    wordings: Mapping[str, Sequence[str]],
    passes: Passes,
    *,
    seed: int,
    batch: int = 32,
    shard: int = 16,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tape]:
    """Make the predictions, or read those that are there, shard by shard.

    Args:
        denoiser: the model.
        works: the table.
        rows: which works, in order.
        wordings: name -> a prompt for each of `rows`; `caption` and `empty` are always among them.
        passes: which predictions.
        seed: of the noise; a work's depends on seed, id, timestep and draw alone.
        batch: samples a pass.
        shard: works a file.
        folder: where shards are kept; None keeps nothing.
        progress: called with works done and works in all.

    Yields:
        The tape of each shard of works.
    """
    check(passes, len(denoiser.alphas_cumprod))
    ids = works.column("id")
    plan = digest_of([standing(denoiser), [ids[row] for row in rows], wordings, asdict(passes), seed, batch, shard])
    for first in range(0, len(rows), shard):
        file = None if folder is None else folder / f"tape-{plan[:12]}-{first:06d}.safetensors"
        kept = None if file is None else kept_tensors(file)
        part = slice(first, first + shard)
        if kept is not None:
            tape = _unpacked(kept)
        else:
            chosen = works.take(list(rows[part]))
            pixels = torch.from_numpy(chosen.pixels(denoiser.image_size)).permute(0, 3, 1, 2).float() / 255
            words = {name: list(prompts[part]) for name, prompts in wordings.items()}
            tape = record(denoiser, denoiser.latents(pixels), chosen.column("id"), words, passes, seed=seed, batch=batch)
            if file is not None:
                write_atomically(file, save(_packed(tape)))
        yield tape
        if progress:
            progress(min(first + shard, len(rows)), len(rows))


@torch.no_grad()
def record(
    denoiser: Denoiser, clean: torch.Tensor, ids: Sequence[str], wordings: Mapping[str, Sequence[str]], passes: Passes, *, seed: int, batch: int = 32
) -> Tape:
    """Make the predictions for latents.

    Args:
        denoiser: the model.
        clean: x_0: (n, c, h, w).
        ids: of the works, for their noise.
        wordings: name -> n prompts.
        passes: which predictions.
        seed: of the noise.
        batch: samples a pass.
    """

    def ask(x: torch.Tensor, t: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        parts = [slice(start, start + batch) for start in range(0, len(x), batch)]
        return torch.cat([denoiser.predict(x[part], t[part], denoiser.conditioning(prompts[part])) for part in parts])

    def at(t: int) -> torch.Tensor:
        return torch.full((len(clean),), t, device=clean.device)

    def carried(x: torch.Tensor, predicted: torch.Tensor, t: int, to: int) -> torch.Tensor:
        a, s = denoiser.scales(at(t))
        return denoiser.noised((x - s * predicted) / a, at(to), predicted)

    places = [(row, t, draw) for row in range(len(clean)) for t in passes.timesteps for draw in range(passes.draws)]
    noise = normal(clean.shape[1:], [derive(seed, "tape", ids[row], t, draw) for row, t, draw in places]).to(clean)
    which = torch.tensor([row for row, _, _ in places], device=clean.device)
    times = torch.tensor([t for _, t, _ in places], device=clean.device)
    prompts = [texts[row] for texts in wordings.values() for row, _, _ in places]
    x_t = denoiser.noised(clean[which], times, noise)
    found = ask(x_t.repeat(len(wordings), 1, 1, 1), times.repeat(len(wordings)), prompts)
    shape = (len(clean), len(passes.timesteps), passes.draws, *clean.shape[1:])
    noised = {name: part.reshape(shape) for name, part in zip(wordings, found.chunk(len(wordings)), strict=True)}

    captions = list(wordings[CAPTION])
    gradient = _gradients(denoiser, x_t, times, noise, captions, len(x_t) // len(clean)) if passes.gradient else None
    first = ask(clean, at(0), captions)
    later, up = passes.proximal, passes.inverted + passes.interval
    pair = torch.cat([denoiser.noised(clean, at(later), start) for start in (first, normalised(first))])
    proximal, proximal_normalised = ask(pair, at(later).repeat(2), captions * 2).chunk(2)
    x, predicted = clean, first
    for t in range(0, passes.inverted, passes.interval):
        x = carried(x, predicted, t, t + passes.interval)
        predicted = ask(x, at(t + passes.interval), captions)
    above = carried(x, predicted, passes.inverted, up)
    returned = carried(above, ask(above, at(up), captions), up, passes.inverted)
    unnoised = ask(clean, at(passes.unnoised), captions)
    return Tape(clean, noise.reshape(shape), noised, first, proximal, proximal_normalised, unnoised, x, returned, gradient)


def normalised(noise: torch.Tensor) -> torch.Tensor:
    """Scale each row so that its mean absolute value is a standard normal's, sqrt(2 / pi) (Kong et al. 2024, PIAN)."""
    return noise / noise.abs().mean((1, 2, 3), keepdim=True) * math.sqrt(2 / math.pi)


def _gradients(denoiser: Denoiser, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, prompts: Sequence[str], each: int) -> torch.Tensor:
    """Return the norm of the gradient of every work's mean error with respect to the cross-attention weights: (n,); `each` rows are a work's."""
    weights = list(denoiser.group(WEIGHTS).values())
    before = [weight.requires_grad for weight in weights]
    found = []
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for place, prompt in enumerate(prompts):
            rows = slice(place * each, (place + 1) * each)
            with torch.enable_grad():
                predicted = denoiser.predict(x_t[rows], t[rows], denoiser.conditioning([prompt]).expand(each))
                gradients = torch.autograd.grad((predicted - noise[rows]).square().mean(), weights)
            found.append(torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt())
    finally:
        for weight, was in zip(weights, before, strict=True):
            weight.requires_grad_(was)
    return torch.stack(found)


def _packed(tape: Tape) -> dict[str, torch.Tensor]:
    plain = {field.name: getattr(tape, field.name) for field in fields(tape) if field.name != "noised"}
    plain = {name: tensor for name, tensor in plain.items() if tensor is not None}
    named = plain | {f"noised.{name}": tensor for name, tensor in tape.noised.items()}
    return {name: tensor.cpu().contiguous().clone() for name, tensor in named.items()}


def _unpacked(tensors: dict[str, torch.Tensor]) -> Tape:
    noised = {name.removeprefix("noised."): tensor for name, tensor in tensors.items() if name.startswith("noised.")}
    return Tape(noised=noised, **{name: tensor for name, tensor in tensors.items() if not name.startswith("noised.")})
