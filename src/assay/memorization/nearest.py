"""Compares what a model draws from works' own captions with those works, against works it never saw; recall by number of copies.

"Extracting Training Data from Diffusion Models". Nicholas Carlini, Jamie Hayes, Milad Nasr, Matthew Jagielski, Vikash Sehwag, Florian Tramer, Borja
Balle, Daphne Ippolito, Eric Wallace. USENIX Security 2023, arXiv 2301.13188; no code was released. Written here from the paper.

Every work in question, canaries by copies k and arm, ordinary members, calibration and holdout works, is asked for by its first caption. An output is
compared with its own work and with the nearest of all works in three measures: tiled l2 (their Sec. 4.2), a DCT hash, and the judge's features. A
work's score is its best output's. It counts as memorised where at least `agreement` measures exceed thresholds set together on calibration works, so
that a work the model never saw is flagged at most at the stated rate; the rate is measured again on holdout works.

Different from the paper: their attack knows no training captions' copies and looks for cliques among 500 outputs; here the works are known, and the
threshold is calibrated instead of fixed at 0.15, because a distance at 64 pixels is none at 512. Cost: images x works samples. Known failure: a
model that draws well what it never saw raises the thresholds, and a faint copy is then missed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from assay.denoiser import to_pictures
from assay.errors import Misconfigured
from assay.evaluation.features import resized
from assay.judge import JudgeLike
from assay.memorization.groups import Audit, Sampler, check_sizes, choose, completed, state
from assay.memorization.looks import SIZE, compare, looks, strip
from assay.memorization.testimony import witness
from assay.noise import derive
from assay.record import digest_of, kept_tensors, write_atomically
from assay.works import Works


@dataclass(frozen=True)
class Settings:
    """Settings of the nearest-work audit."""

    images: int = 4
    """Images per work; its score is the best of them (Sec. 4.2: 500)."""
    steps: int = 20
    """DDIM steps."""
    guidance: float = 4.0
    """Scale of classifier-free guidance."""
    false_positive_rate: float = 0.05
    """Probability that a work the model never saw is called memorised."""
    agreement: int = 2
    """How many of the three measures must exceed their thresholds."""
    members: int = 200
    """Ordinary members to ask for, at most."""
    calibration: int = 400
    """Calibration works to ask for, at most."""
    holdout: int = 400
    """Holdout works to ask for, at most."""
    matches: int = 8
    """Matches to show."""
    batch: int = 32
    """Images a pass, and a shard."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"images": 500, "steps": 50, "guidance": 7.5, "members": 1000, "calibration": 1000, "holdout": 1000, "false_positive_rate": 0.01},
    "small": {"images": 2, "steps": 15, "members": 60, "calibration": 200, "holdout": 100, "false_positive_rate": 0.02},
}

PROBE: dict[str, Any] = {"images": 1, "steps": 2, "members": 4, "batch": 8}


def check(settings: Settings) -> None:
    """Raise if a setting is out of range.

    Raises:
        Misconfigured: one is.
    """
    if min(settings.images, settings.steps, settings.batch) < 1 or settings.agreement not in (2, 3):
        # One measure alone would flag at more than the rate: its thresholds come from the works that it is then counted on.
        raise Misconfigured("`images`, `steps` and `batch` must be at least 1, and `agreement` 2 or 3.", "Use a preset.")
    check_sizes(settings)
    if settings.matches < 0 or not 1 <= settings.guidance < math.inf:
        raise Misconfigured("`matches` cannot be negative, and `guidance` is finite and at least 1.", "Use a preset.")
    if not 0 < settings.false_positive_rate < 1:
        raise Misconfigured(f"`false_positive_rate` lies between 0 and 1; got {settings.false_positive_rate}.", "Use 0.05.")


def cost(works: Works, settings: Settings) -> dict[str, int]:
    """Return the passes and images that an audit takes."""
    images = settings.images * sum(len(group.works) for group in choose(works, settings, 0)) + settings.images + settings.matches
    return {"passes": images * settings.steps * (1 if settings.guidance == 1 else 2), "images": images}


def audit(
    denoiser: Sampler,
    works: Works,
    settings: Settings = Settings(),
    *,
    judge: JudgeLike,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Audit:
    """Ask a model for works by their captions and say which it has memorised.

    Args:
        denoiser: the model; any that draws images from captions and seeds.
        works: with calibration works; canaries and holdout works where there are any.
        settings: see `Settings`.
        judge: gives the third measure.
        seed: of the choice of works and of every image.
        progress: called with images done and images in all.
        folder: where shards of images are kept, so that a killed audit goes on.

    Returns:
        The record and its pictures.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the works have no calibration works, or no members.
    """
    check(settings)
    start, passes = time.monotonic(), denoiser.passes
    groups = choose(works, settings, seed)
    asked = [index for group in groups for index in group.works]
    ids, prompts = works.column("id"), [captions[0] for captions in works.column("captions")]
    own = np.repeat(asked, settings.images)
    seeds = [derive(seed, ids[index], number) for index in asked for number in range(settings.images)]
    plan = digest_of([state(denoiser), [prompts[index] for index in own], seeds, settings.steps, settings.guidance, settings.batch])
    options: dict[str, Any] = {"steps": settings.steps, "guidance": settings.guidance}
    originals = looks(np.ascontiguousarray(works.pixels(SIZE).transpose(0, 3, 1, 2)), judge)
    compared = []
    for first in range(0, len(own), settings.batch):
        file = None if folder is None else folder / f"nearest-{plan[:12]}-{first:06d}.safetensors"
        rows = slice(first, first + settings.batch)
        kept = None if file is None else kept_tensors(file)
        if kept is not None:
            made = kept["images"]
        else:
            images = denoiser.generate([prompts[index] for index in own[rows]], seeds[rows], batch=settings.batch, **options)
            made = (resized(images.cpu()) * 255).round().to(torch.uint8)
            if file is not None:
                write_atomically(file, save({"images": made.contiguous()}))
        compared.append(compare(looks(made.numpy(), judge), originals, own[rows]))
        if progress:
            progress(min(first + settings.batch, len(own)), len(own))
    similarity, rank = (np.concatenate(parts) for parts in zip(*compared))
    testimony = witness(works, groups, similarity.reshape(len(asked), -1, 3), rank.reshape(len(asked), -1, 3), asdict(settings), judge)
    pictures: dict[str, Image.Image] = {}
    shown = [(asked[place], number) for place, number in testimony.matches]
    if shown:
        again = [(shown[0][0], number) for number in range(settings.images)][:6] + shown
        made = denoiser.generate([prompts[i] for i, _ in again], [derive(seed, ids[i], n) for i, n in again], batch=settings.batch, **options)
        drawn = to_pictures(made)
        pictures["clearest.png"] = strip([works.image(shown[0][0]), *drawn[: -len(shown)]])
        for place, ((index, _), picture) in enumerate(zip(shown, drawn[-len(shown) :]), start=1):
            pictures |= {f"match-{place}-output.png": picture, f"match-{place}-work.png": works.image(index)}
    return Audit(completed(testimony.record, denoiser, works, seed=seed, started=start, passes=passes, judge=judge.digest), pictures)
