"""What the copy filter refuses, at what rate and cost: `benchmarks/copy_filter.json` and its picture.

    python benchmarks/copy_filter.py [--rate 0.02] [--works 200] [--steps 20]

Thresholds are set on the calibration split and checked on the holdout, which they have not seen. Copies are made of members: through what happens
to pictures on their way (`assay.evaluation.perturbations`), and drawn anew by the model itself in another style (noise to a share of the way, then
denoised under a prompt with the other style's name: the bypass). What must pass: works of the same title in another style, and what the model draws
for pairs that it never saw.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import assay
from assay.denoiser import Denoiser, to_pictures
from assay.evaluation.intervals import wilson
from assay.evaluation.perturbations import PERTURBATIONS
from assay.memorization.copy_filter import CopyFilter
from assay.noise import derive, normal, numpy_generator
from assay.reports.pictures import grid, small_png
from assay.works import Works

HERE = Path(__file__).parent
SEED = 20261126
STYLES = ("openmoji", "twemoji", "noto", "fluent")
NOISED = (0.25, 0.5, 0.75)
"""Shares of the way to noise from which a work is drawn anew."""


def images(works: Works) -> torch.Tensor:
    """Return the pictures of works: (n, 3, 64, 64) in [0, 1]."""
    return torch.from_numpy(works.pixels(64)).permute(0, 3, 1, 2).float() / 255


def share(copies: CopyFilter, made: torch.Tensor, own: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the share of images that are refused, and of those that name their own work where they have one."""
    matches = copies.matches(made)
    refused = [match is not None for match in matches]
    low, high = wilson(sum(refused), len(refused))
    found: dict[str, Any] = {"value": round(sum(refused) / len(refused), 4), "low": round(low, 4), "high": round(high, 4), "n": len(refused)}
    if own is not None:
        right = sum(match is not None and match.id == work for match, work in zip(matches, own, strict=True))
        found["of_these_its_own_work"] = round(right / max(1, sum(refused)), 4)
    return found


@torch.no_grad()
def redrawn(denoiser: Denoiser, made: torch.Tensor, prompts: Sequence[str], seeds: Sequence[int], noised: float, steps: int) -> torch.Tensor:
    """Noise pictures a share of the way and denoise them under prompts (Meng et al. 2022, SDEdit), by DDIM with guidance 4."""
    scheduler: Any = copy.deepcopy(denoiser.scheduler)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[round((1 - noised) * steps) :]
    done = []
    for start in range(0, len(made), 32):
        rows = slice(start, start + 32)
        clean = denoiser.latents(made[rows])
        count = len(clean)
        x = denoiser.noised(clean, times[:1].expand(count), normal(denoiser.latent_shape, seeds[rows]))
        told, empty = denoiser.conditioning(prompts[rows]), denoiser.conditioning([""]).expand(count)
        for t in times:
            now = t.expand(count)
            asked, plain = denoiser.predict(x, now, told, denoiser.view), denoiser.predict(x, now, empty, denoiser.view)
            x = scheduler.step(plain + 4 * (asked - plain), t, x).prev_sample
        done.append(denoiser.images(x))
    return torch.cat(done)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--works", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    denoiser, works = assay.load("emoji64"), assay.builtin_works()
    started = time.monotonic()
    copies = CopyFilter.calibrated(works, rate=options.rate)
    calibrating = time.monotonic() - started
    titles = works.column("title")
    members = copies.works.where(lambda row: row["copies"] == 1 and titles.count(row["title"]) >= 4 and bool(row["style"]))
    members = members.take(sorted(numpy_generator(SEED, "members").permutation(len(members))[: options.works].tolist()))
    ids, own = members.column("id"), images(members)
    others = [next(style for style in STYLES[STYLES.index(now) + 1 :] + STYLES if style != now) for now in members.column("style")]
    prompts = [f"{title}, {style} style" for title, style in zip(members.column("title"), others, strict=True)]
    seeds = [derive(SEED, id_) for id_ in ids]
    result: dict[str, Any] = {
        "model": denoiser.digest,
        "works": works.digest,
        "filter": copies.digest,
        "protected": len(copies.works),
        "rate": options.rate,
        "threshold": copies.threshold,
        "calibration_works": 0 if copies.calibration is None else copies.calibration.n,
    }
    holdout = works.where(lambda row: row["split"] == "holdout")
    unseen = holdout.take(sorted(numpy_generator(SEED, "holdout").permutation(len(holdout))[: options.works].tolist()))
    asked = [f"{title}, {style} style" for title, style in zip(unseen.column("title"), unseen.column("style"), strict=True)]
    drawn = denoiser.generate(asked, [derive(SEED, id_) for id_ in unseen.column("id")], steps=options.steps)
    result["passes"] = {
        "works of the holdout": share(copies, images(holdout)),
        "drawn by the model for pairs never shown": share(copies, drawn),
    }
    result["the same title in another style"] = between_styles(copies)
    made = {"as they are": own} | {name: change(own) for name, change in PERTURBATIONS.items()}
    made |= {f"drawn anew in another style from {part:.0%} noise": redrawn(denoiser, own, prompts, seeds, part, options.steps) for part in NOISED}
    result["copies"] = {name: share(copies, pictures, ids) for name, pictures in made.items()}
    started = time.monotonic()
    copies.matches(own)
    result["milliseconds_an_image"] = round(1000 * (time.monotonic() - started) / len(own), 2)
    result["seconds_to_calibrate"] = round(calibrating, 1)
    shown = list(range(0, len(own), max(1, len(own) // 8)))[:8]
    columns = list(made)
    rows = [to_pictures(torch.stack([made[name][row] for name in columns])) for row in shown]
    sheet = grid(rows, [members.column("title")[row] for row in shown], columns, scale=1)
    (HERE / "copy_filter.png").write_bytes(small_png(sheet))
    (HERE / "copy_filter.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def between_styles(copies: CopyFilter) -> dict[str, Any]:
    """Hold works against all protected ones but themselves, and count who is taken for a copy of the same title in another style."""
    members = copies.works
    title, style = (dict(zip(members.column("id"), members.column(name), strict=True)) for name in ("title", "style"))
    chosen = sorted(numpy_generator(SEED, "styles").permutation(len(members))[:200].tolist())
    refused = 0
    for half in (0, 1):  # the other half is protected, so that no work meets itself
        others = CopyFilter(members.take([row for row in range(len(members)) if row % 2 != half]), copies.threshold)
        asked = members.take([row for row in chosen if row % 2 == half])
        for id_, match in zip(asked.column("id"), others.matches(images(asked)), strict=True):
            refused += match is not None and title[match.id] == title[id_] and style[match.id] != style[id_]
    low, high = wilson(refused, len(chosen))
    return {"value": round(refused / len(chosen), 4), "low": round(low, 4), "high": round(high, 4), "n": len(chosen)}


if __name__ == "__main__":
    main()
