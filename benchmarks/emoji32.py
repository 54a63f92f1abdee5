"""Trainings of emoji32 on random halves of the works, and the loss of every work under each: what membership and attribution are measured against.

    python benchmarks/emoji32.py FOLDER [--subsets 24] [--repeated 4] [--repeats 2] [--steps N] [--processes 1]
        [--device cpu] [--look]

One model a file in FOLDER; killed, the same command goes on within a training, from its last checkpoint. When all are there, the table is written to
`benchmarks/emoji32-pool.parquet`, and what it shows by itself to `benchmarks/emoji32.json`.

Halves are drawn from all works of the core, of every split, repeated works with their copies: steps are matched to the exposures of the half. Losses
are those of the averaged weights, in fp32, under each work's first caption, at timesteps and noises that are the same for all models.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import assay
from assay.denoiser import Denoiser, to_pictures
from assay.noise import derive, normal
from assay.reports.pictures import grid
from assay.training.pool import Plan, Pool, fill, gather
from assay.training.precision import native
from assay.training.recipe import Recipe, untrained
from assay.training.selection import shown
from assay.training.unet import UNetSettings
from assay.training.world import EMOJI32, SIDE32
from digits import membership

HERE = Path(__file__).parent
SEED = 20261124
BANDS = ("t0", "t250", "t500", "t750")
"""First timesteps of the ranges that losses are averaged over."""
DRAWS = 4
"""Timesteps and noises per work and range."""
BATCH = 256


def losses(denoiser: Denoiser, works: assay.Works) -> np.ndarray:
    """Return the loss of every work in every range of timesteps: float32, (works, bands)."""
    pixels = torch.from_numpy(works.pixels(denoiser.image_size)).permute(0, 3, 1, 2)
    latents = torch.cat([denoiser.latents(pixels[start : start + BATCH].float() / 255) for start in range(0, len(pixels), BATCH)])
    conditioning = denoiser.conditioning([texts[0] for texts in works.column("captions")])
    width = 1000 // len(BANDS)
    found = np.zeros((len(works), len(BANDS)), np.float32)
    for band in range(len(BANDS)):
        for draw in range(DRAWS):
            seeds = [derive(SEED, "loss", work, band, draw) for work in works.column("id")]
            noise = normal(denoiser.latent_shape, seeds).to(denoiser.device)
            t = torch.tensor([band * width + (draw * width + seed % width) // DRAWS for seed in seeds])
            for start in range(0, len(works), BATCH):
                rows = slice(start, start + BATCH)
                with torch.no_grad():
                    part = denoiser.loss(latents[rows], t[rows].to(denoiser.device), noise[rows], conditioning[rows])
                found[rows, band] += part.cpu().numpy() / DRAWS
    return found


def half(works: assay.Works, included: np.ndarray) -> assay.Works:
    """Return the works as a training on some of them is shown them: what was never shown to the base counts once."""
    copies = [max(1, count) if chosen else 0 for count, chosen in zip(works.column("copies"), included, strict=True)]
    return works.with_columns(split=["member"] * len(works), copies=copies)


def log(folder: Path, index: int):
    """Return a callback that prints and logs a line every 50 steps."""
    started, first = time.monotonic(), []
    folder.mkdir(parents=True, exist_ok=True)

    def show(step: int, total: int, numbers: dict[str, float]) -> None:
        first.append(step - 1) if not first else None
        if step % 50 == 0 or step == total:
            pace = (time.monotonic() - started) / (step - first[0])
            line = json.dumps({"model": index, "step": step, "total": total, "seconds_per_step": round(pace, 4), "loss": round(numbers["loss"], 5)})
            print(line, file=sys.stderr, flush=True)
            with (folder.parent / f"{folder.name}.log").open("a") as file:
                file.write(line + "\n")

    return show


def picture(denoiser: Denoiser, path: Path) -> None:
    """Draw what a model makes of a few prompts."""
    titles = ("cat face", "red heart", "dog", "red apple", "automobile", "sun", "guitar", "grinning face")
    styles = ("openmoji", "twemoji", "noto", "fluent")
    prompts = [f"{title}, {style} style" for title in titles for style in styles]
    made = to_pictures(denoiser.generate(prompts, [derive(SEED, prompt) for prompt in prompts]))
    grid([made[row * 4 : row * 4 + 4] for row in range(len(titles))], titles, styles, scale=3).save(path)


def summary(pool: Pool, works: assay.Works) -> dict[str, Any]:
    """Say how far the losses of works in a model and out of it lie apart, by copies an epoch, and how often the lower half of models had the work.

    Then every model is attacked, the other pairs being its shadow models: works that are shown once an epoch apart from those repeated.
    """
    loss, included = pool.loss()[pool.once], pool.plan.included[pool.once]
    ours, out = (np.where(side, loss, np.nan) for side in (included, ~included))
    gap = np.nanmean(out, 0) - np.nanmean(ours, 0)
    lower = loss < np.median(loss, 0, keepdims=True)
    right = (lower == included).mean(0)
    copies = np.maximum(1, np.array(works.column("copies")))
    rows = {}
    for count in sorted(set(copies.tolist())):
        of = copies == count
        rows[str(count)] = {
            "works": int(of.sum()),
            "gap": float(gap[of].mean()),
            "gap/loss": float((gap[of] / loss.mean(0)[of]).mean()),
            "right": float(right[of].mean()),
        }
    attacked = {
        name: membership(pool, rates={"tpr_at_1%": 0.01}, works=np.flatnonzero(of))
        for name, of in (("works shown once", copies == 1), ("works repeated", copies > 1))
    }
    return {"plan": pool.plan.digest, "about": pool.plan.about, "models": len(pool.plan), "by_copies": rows, "membership": attacked}


def trained(folder: Path, seeds: np.ndarray, settings: UNetSettings, options: argparse.Namespace, index: int, included: np.ndarray) -> np.ndarray:
    """Train a model on some of the works and return the losses of all under it: float32, (works, bands)."""
    torch.set_flush_denormal(True)
    if options.processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
    works = assay.builtin_works()
    denoiser = untrained(assay.load("emoji64", device=options.device), settings, side=SIDE32, name="emoji32")
    table, training = half(works, included), folder.with_name(f"{folder.name}-trainings") / f"{index:05d}"
    share = sum(shown(table).column("copies")) / sum(shown(works).column("copies"))
    recipe = Recipe(SEED, settings, table.digest, 0).lasting(round(settings.schedule.steps * share))
    denoiser.pipeline.unet, _ = recipe.retrain(denoiser, table, seed=int(seeds[index]), folder=training, progress=log(training, index))
    if options.look:
        picture(denoiser, training.with_suffix(".png"))
    found = losses(denoiser, works)
    shutil.rmtree(training)
    return found


def main() -> None:
    """Fill the pool, and write the table when it is full."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subsets", type=int, default=24)
    parser.add_argument("--repeated", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=EMOJI32.schedule.steps, help="of a training on all that the base is shown")
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side, with as many threads each as are left")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--look", action="store_true", help="leave a picture of every model beside its losses")
    options = parser.parse_args()
    works, settings = assay.builtin_works(), replace(EMOJI32, schedule=replace(EMOJI32.schedule, steps=options.steps))
    shape = {name: value for name, value in asdict(settings).items() if name != "precision"}  # is the machine's: one may go on where another stopped
    about = {"works": works.digest, "unet": shape, "bands": BANDS, "draws": DRAWS, "seed": SEED}
    plan = Plan.draw(options.subsets, len(works), seed=SEED, repeated=options.repeated, repeats=options.repeats, about=about)
    worker = partial(trained, options.folder, plan.seeds, replace(settings, precision=native(options.device)), options)
    fill(options.folder, plan, worker, processes=options.processes, progress=lambda done, of: print(f"{done} of {of} models", file=sys.stderr))
    pool = gather(options.folder, plan, BANDS)
    pool.write(HERE / "emoji32-pool.parquet")
    (HERE / "emoji32.json").write_text(json.dumps(summary(pool, works), indent=1) + "\n")


if __name__ == "__main__":
    main()
