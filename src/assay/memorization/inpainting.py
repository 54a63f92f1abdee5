"""Hides a part of each work and lets the model fill it in: what it fills in as it was, without having been shown, it has kept.

"Extracting Training Data from Diffusion Models". Nicholas Carlini, Jamie Hayes, Milad Nasr, Matthew Jagielski, Vikash Sehwag, Florian Tramer, Borja
Balle, Daphne Ippolito, Eric Wallace. USENIX Security 2023, arXiv 2301.13188, Sec. 5.3; no code was released. "RePaint: Inpainting using Denoising
Diffusion Probabilistic Models". Andreas Lugmayr, Martin Danelljan, Andres Romero, Fisher Yu, Radu Timofte, Luc Van Gool. CVPR 2022, arXiv 2201.09865.
Written here from the papers.

With M = 1 where a latent is visible, every DDIM step from t to s ends in

    x_s = M (a_s x_0 + s_s n) + (1 - M) x_s,        n fresh noise (RePaint, Eq. 8)

so that at the end the visible part is x_0 itself. With `resample` > 1 a step is taken again after noising x_s back to t (RePaint, Sec. 4.2, jumps of
one step). A work is filled in `draws` times under its caption and as often under none. As in the attack, the draws of least denoising loss are kept,
which knows the work no more than the model does: the score is the root mean square distance, over the hidden pixels, of the nearest of them to the
work. The nearest of all draws is a bound on what any choice could find; the distance is also held against that of the nearest other training work.

Works never trained set the threshold (calibration) and check it (holdout). Different from the paper: it compares with models trained without the work
and fills in many more times; here the model is one. At the mask's edge the autoencoder's latents see a few hidden pixels, for all works alike. Cost:
2 x draws x (steps x resample + 1) passes a work, and half as many again under guidance; pictures of `kept` draws a work are held while a shard is
filled in, for the nearest of them is known only at its end. Known failure: what is symmetrical, empty or drawn after a
known pattern is filled in without any memory of the work: calibration works carry that, and raise the threshold.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.judge import JudgeLike
from assay.memorization.groups import Audit, choose, completed
from assay.memorization.looks import strip
from assay.memorization.reconstruction import Seen, witness
from assay.memorization.verdicts import Evidence
from assay.noise import derive, normal
from assay.patched import standing
from assay.record import digest_of, kept_tensors, write_atomically
from assay.works import Works
from assay.works.clusters import declared

WAYS = ("caption", "nothing")
"""What the model is told while it fills in."""


@dataclass(frozen=True)
class Settings:
    """Settings of the inpainting audit."""

    hidden: Literal["bottom", "top", "left", "right", "centre"] = "bottom"
    """What is hidden: a half, or the middle quarter. Left and right give each other away where pictures are symmetrical."""
    draws: int = 64
    """Times each work is filled in under its caption, and under none (preset paper: 5,000, as summaries of Sec. 5.3 have it)."""
    kept: int = 10
    """Draws of least loss that count (Sec. 5.3, by the same summaries: 10)."""
    steps: int = 50
    """DDIM steps."""
    resample: int = 1
    """Times a step is taken (RePaint: 10); 1 takes each once."""
    guidance: float = 1.0
    """Scale of classifier-free guidance under the caption; 1 samples without."""
    timestep: int = 100
    """Of the loss that chooses among the draws (100 is what their membership attack takes)."""
    false_positive_rate: float = 0.05
    """Probability that a work the model never saw is flagged."""
    members: int = 200
    """Ordinary members to fill in, at most."""
    calibration: int = 400
    """Calibration works to fill in, at most."""
    holdout: int = 400
    """Holdout works to fill in, at most."""
    copies: int = 16
    """Copies from which canaries count as what must be found."""
    matches: int = 8
    """Reconstructions to show."""
    batch: int = 64
    """Samples a pass."""
    shard: int = 8
    """Works a file."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"draws": 5000, "false_positive_rate": 0.01},
    "small": {"draws": 6, "kept": 2, "steps": 10, "members": 40, "calibration": 100, "holdout": 40},
}
PROBE: dict[str, Any] = {"draws": 2, "kept": 1, "steps": 2, "members": 4, "matches": 2, "false_positive_rate": 0.4}


def check(settings: Settings, timesteps: int | None = None) -> None:
    """Raise if a setting is out of range, for a model of so many timesteps where that is known.

    Raises:
        Misconfigured: one is.
    """
    least = (settings.draws, settings.steps, settings.resample, settings.calibration, settings.copies, settings.batch, settings.shard)
    if min(least) < 1 or not 1 <= settings.kept <= settings.draws or settings.timestep < 0:
        raise Misconfigured("Numbers of draws, steps, works and samples are at least 1, and `kept` between 1 and `draws`.", "Use a preset.")
    if min(settings.members, settings.holdout, settings.matches) < 0 or not 1 <= settings.guidance < math.inf:
        raise Misconfigured("`members`, `holdout` and `matches` cannot be negative, and `guidance` is finite and at least 1.", "Use a preset.")
    if settings.hidden not in ("bottom", "top", "left", "right", "centre"):
        raise Misconfigured(f"`hidden` is bottom, top, left, right or centre; got {settings.hidden}.", "Use bottom.")
    if not 0 < settings.false_positive_rate < 1:
        raise Misconfigured(f"`false_positive_rate` lies between 0 and 1; got {settings.false_positive_rate}.", "Use 0.05.")
    if timesteps is not None and max(settings.steps - 1, settings.timestep) >= timesteps:
        raise Misconfigured(f"The model has {timesteps} timesteps, fewer than `steps` or `timestep` ask for.", "Take fewer.")


def cost(works: Works, settings: Settings) -> dict[str, int]:
    """Return the passes that an audit takes, and the images it decodes."""
    asked = sum(len(group.works) for group in choose(works, settings, 0))
    a_draw = settings.steps * settings.resample * (2 if settings.guidance == 1 else 3) + 2
    return {"passes": asked * settings.draws * a_draw, "images": asked * settings.draws * len(WAYS)}


def visible(hidden: str, side: int) -> torch.Tensor:
    """Return the mask M of a square of that side: bool, (side, side), True where it is visible."""
    mask = torch.ones(side, side, dtype=torch.bool)
    half, quarter = side // 2, side // 4
    place = {
        "bottom": (slice(half, None), slice(None)),
        "top": (slice(0, half), slice(None)),
        "left": (slice(None), slice(0, half)),
        "right": (slice(None), slice(half, None)),
        "centre": (slice(quarter, side - quarter), slice(quarter, side - quarter)),
    }[hidden]
    mask[place] = False
    return mask


@torch.no_grad()
def fill(
    denoiser: Denoiser,
    clean: torch.Tensor,
    mask: torch.Tensor,
    told: Conditioning,
    seeds: Sequence[int],
    *,
    steps: int = 50,
    resample: int = 1,
    guidance: float = 1.0,
) -> torch.Tensor:
    """Fill in the hidden part of latents, each with its own seed.

    Args:
        denoiser: the model.
        clean: x_0: (b, c, h, w); what is hidden of it is never read.
        mask: True where it is visible: (h, w).
        told: conditioning of batch b.
        seeds: one a row.
        steps: DDIM steps.
        resample: times each step is taken.
        guidance: scale of classifier-free guidance; 1 samples without.

    Returns:
        Latents that equal `clean` wherever `mask` is True: float32, (b, c, h, w).
    """
    scheduler, count = copy.deepcopy(denoiser.scheduler), len(seeds)
    scheduler.set_timesteps(steps)
    draws = iter(normal((1 + 2 * steps * resample, *clean.shape[1:]), seeds).to(clean).unbind(1))
    known = torch.where(mask, clean, torch.zeros_like(clean))
    x = next(draws) * scheduler.init_noise_sigma
    pair = told if guidance == 1 else Conditioning.cat([told, denoiser.conditioning([""]).expand(count)])
    times = [int(t) for t in scheduler.timesteps]

    def level(t: int | None) -> torch.Tensor:
        return torch.ones((), device=clean.device) if t is None else denoiser.alphas_cumprod[t]

    for t, after in zip(times, [*times[1:], None], strict=True):
        now, then = level(t), level(after)
        for turn in range(resample):
            copies = 1 if guidance == 1 else 2
            raw = denoiser.predict(x.repeat(copies, 1, 1, 1), torch.full((copies * count,), t, device=clean.device), pair, denoiser.view).chunk(
                copies
            )
            combined = raw[0] if guidance == 1 else raw[1] + guidance * (raw[0] - raw[1])
            x = scheduler.step(combined, t, x).prev_sample
            x = torch.where(mask, then.sqrt() * known + (1 - then).sqrt() * next(draws), x)  # Eq. 8
            if turn + 1 < resample:
                x = (now / then).sqrt() * x + (1 - now / then).sqrt() * next(draws)
    return torch.where(mask, clean, x)


def audit(
    denoiser: Denoiser,
    works: Works,
    settings: Settings = Settings(),
    *,
    judge: JudgeLike,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Audit:
    """Fill in hidden parts of works and say which come out as they were.

    Args:
        denoiser: the model.
        works: with calibration works; canaries and holdout works where there are any.
        settings: see `Settings`.
        judge: not asked; every audit is given one.
        seed: of the choice of works and of every draw.
        progress: called with works done and works in all.
        folder: where shards of distances are kept, so that a killed audit goes on.

    Returns:
        The record, with pictures of the nearest reconstructions.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the works have no calibration works, or no members.
    """
    check(settings, len(denoiser.alphas_cumprod))
    start, before = time.monotonic(), denoiser.passes
    groups = choose(works, settings, seed)
    asked = [index for group in groups for index in group.works]
    ids, captions = works.column("id"), [texts[0] for texts in works.column("captions")]
    plan = digest_of([standing(denoiser), [ids[index] for index in asked], [captions[index] for index in asked], asdict(settings), seed])
    parts = []
    for first in range(0, len(asked), settings.shard):
        rows = asked[first : first + settings.shard]
        file = None if folder is None else folder / f"inpainting-{plan[:12]}-{first:06d}.safetensors"
        part = None if file is None else kept_tensors(file)
        if part is None:
            part = reconstruct(denoiser, works.take(rows), [captions[row] for row in rows], settings, seed)
            if file is not None:
                write_atomically(file, save(part))
        parts.append(part)
        if progress:
            progress(min(first + settings.shard, len(asked)), len(asked))
    made = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    neighbour, gap = neighbours(works, asked, visible(settings.hidden, denoiser.image_size).numpy())
    scores = {}
    for way in WAYS:
        scores |= {way: -made[f"{way}.kept"], f"{way}.any": -made[f"{way}.any"], f"{way}.nearer": -made[f"{way}.kept"] / gap}
    evidence = Evidence(groups, asked, scores)
    seen = Seen(made["caption.kept"], made["nothing.kept"], gap, neighbour)
    record, chosen = witness(works, evidence, seen, asdict(settings), bool(denoiser.rules))
    pictures = _pictures(works, asked, chosen, made, neighbour, visible(settings.hidden, denoiser.image_size).numpy())
    return Audit(completed(record, denoiser, works, seed=seed, started=start, passes=before), pictures)


class Draw(NamedTuple):
    """One time that a work was filled in."""

    loss: float
    """Denoising loss of what came out."""
    number: int
    """Which time it was."""
    distance: float
    """From the work, over the hidden pixels."""
    picture: torch.Tensor
    """uint8, (3, h, w)."""


@torch.no_grad()
def reconstruct(denoiser: Denoiser, works: Works, captions: Sequence[str], settings: Settings, seed: int) -> dict[str, torch.Tensor]:
    """Fill in works and measure: for both ways, distances of the nearest draw that was kept and of the nearest of all, and the former's picture.

    Returns:
        `WAY.kept` and `WAY.any`: float64, (n,); `WAY.picture`: uint8, (n, h, w, 3).
    """
    pixels = torch.from_numpy(works.pixels(denoiser.image_size)).permute(0, 3, 1, 2).float() / 255
    clean = denoiser.latents(pixels)
    mask, shown = visible(settings.hidden, clean.shape[-1]).to(clean.device), visible(settings.hidden, denoiser.image_size)
    jobs = [(row, draw) for row in range(len(works)) for draw in range(settings.draws)]
    ids, found = works.column("id"), {}
    noise = normal(denoiser.latent_shape, [derive(seed, "loss", id_) for id_ in ids]).to(clean)  # one for all draws of a work
    for way in WAYS:
        texts = captions if way == "caption" else [""] * len(works)
        every: list[list[Draw]] = [[] for _ in ids]
        nearest = [math.inf] * len(ids)
        for start in range(0, len(jobs), settings.batch):
            some = jobs[start : start + settings.batch]
            rows = torch.tensor([row for row, _ in some])
            told = denoiser.conditioning([texts[row] for row, _ in some])
            seeds = [derive(seed, "inpainting", ids[row], draw) for row, draw in some]
            options = {"steps": settings.steps, "resample": settings.resample, "guidance": settings.guidance if way == "caption" else 1.0}
            filled = fill(denoiser, clean[rows.to(clean.device)], mask, told, seeds, **options)
            times = torch.full((len(some),), settings.timestep, device=clean.device)
            losses = denoiser.loss(filled, times, noise[rows.to(clean.device)], told).tolist()
            drawn = torch.cat([denoiser.images(part).cpu() for part in filled.split(denoiser.at_once)])
            apart = distance(drawn, pixels[rows], shown).tolist()
            for (row, draw), loss, away, picture in zip(some, losses, apart, (drawn * 255).round().to(torch.uint8), strict=True):
                nearest[row] = min(nearest[row], away)
                every[row] = sorted([*every[row], Draw(loss, draw, away, picture.clone())], key=lambda one: one[:2])[: settings.kept]
        best = [min(draws, key=lambda one: one.distance) for draws in every]
        found |= {
            f"{way}.kept": torch.tensor([one.distance for one in best], dtype=torch.float64),
            f"{way}.any": torch.tensor(nearest, dtype=torch.float64),
        }
        found[f"{way}.picture"] = torch.stack([one.picture for one in best]).permute(0, 2, 3, 1)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def distance(images: torch.Tensor, others: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the root mean square distance of images (b, 3, h, w) where the mask (h, w) is False: float64, (b,)."""
    return (images.double() - others.double()).square()[:, :, ~mask].mean((1, 2)).sqrt()


def neighbours(works: Works, asked: Sequence[int], mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every work asked, the training work nearest to it where the mask is False, and how far it is: (n,) each.

    Itself and the near-duplicates that the works declare are left out.
    """
    training = np.array([row for row, (split, k) in enumerate(zip(works.column("split"), works.column("copies"))) if split == "member" and k])
    size = len(mask)
    parts = works.pixels(size)[:, ~mask].reshape(len(works), -1).astype(np.float32) / 255
    squares = (parts**2).sum(1)
    table = squares[asked, None] + squares[training] - 2 * parts[asked] @ parts[training].T
    labels = declared(works.column("cluster"))
    table[labels[asked, None] == labels[training]] = np.inf
    nearest = table.argmin(1)
    return training[nearest], np.sqrt(np.maximum(table.min(1), 0) / parts.shape[1]).clip(min=1 / 255)


def _pictures(
    works: Works, asked: Sequence[int], chosen: Sequence[int], made: dict[str, np.ndarray], neighbour: np.ndarray, mask: np.ndarray
) -> dict[str, Image.Image]:
    pictures, lead = {}, []
    for place, row in enumerate(chosen, start=1):
        work = works.image(asked[row]).convert("RGB").resize(mask.shape[::-1], Image.Resampling.BILINEAR)
        shown = Image.fromarray(np.where(mask[:, :, None], np.asarray(work), np.uint8(128)))
        filled = [Image.fromarray(made[f"{way}.picture"][row]) for way in WAYS]
        row_of = {"work": work, "shown": shown, "caption": filled[0], "nothing": filled[1], "neighbour": works.image(int(neighbour[row]))}
        pictures |= {f"filled-{place}-{name}.png": image for name, image in row_of.items()}
        lead += list(row_of.values()) if place == 1 else []
    return ({"nearest.png": strip(lead)} if lead else {}) | pictures
