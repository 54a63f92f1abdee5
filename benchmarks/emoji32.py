"""Trainings of emoji32 on random halves of the works, and the loss of every work under each: what membership and attribution are measured against.

    python benchmarks/emoji32.py FOLDER [--processes 1] [--device cpu] [--look] [--models 24] [--steps N] [--out benchmarks]

One model a file in FOLDER; killed, the same command goes on within a training, from its last checkpoint. When all are there, the table is written to
`emoji32-pool.parquet` in the folder that `--out` names, and what it shows by itself to `emoji32.json`.

Halves are drawn from all works of the core, of every split, repeated works with their copies: steps are matched to the exposures of the half. Losses
are those of the averaged weights, in fp32, under each work's first caption, at timesteps and noises that are the same for all models. Autoencoder and
text encoder are those of emoji64 in every model, and were trained on its members.
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

import numpy as np
import torch

import assay
from assay.benches import pools
from assay.denoiser import Denoiser, tensor_digest, to_pictures
from assay.noise import derive, normal
from assay.record import digest_of
from assay.reports.pictures import grid
from assay.training.pool import Plan, Pool, fill, gather
from assay.training.precision import native
from assay.training.recipe import Recipe, untrained
from assay.training.selection import shown
from assay.training.unet import UNetSettings
from assay.training.world import EMOJI32, SIDE32

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


def trained(folder: Path, seeds: np.ndarray, settings: UNetSettings, options: argparse.Namespace, index: int, included: np.ndarray) -> np.ndarray:
    """Train a model on some of the works and return the losses of all under it: float32, (works, bands)."""
    torch.set_flush_denormal(True)
    if options.processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
    works = assay.builtin_works()
    denoiser = untrained(assay.load("emoji64", device=options.device), settings, side=SIDE32, name="emoji32")
    table, training = half(works, included), folder.with_name(f"{folder.name}-trainings") / f"{index:05d}-{settings.precision}"
    share = sum(shown(table).column("copies")) / sum(shown(works).column("copies"))
    recipe = Recipe(SEED, settings, table.digest, 0).lasting(round(settings.schedule.steps * share))
    denoiser.pipeline.unet, _ = recipe.retrain(denoiser, table, seed=int(seeds[index]), folder=training, progress=log(training, index))
    if options.look:
        picture(denoiser, training.with_suffix(".png"))
    found = losses(denoiser, works)
    shutil.rmtree(training, ignore_errors=True)
    return found


def main() -> None:
    """Fill the pool, and write the table when it is full."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=int, default=24, help="an even number, 12 at least: a work's own variance is of five models a side")
    parser.add_argument("--steps", type=int, default=EMOJI32.schedule.steps, help="of a training on all that the base is shown")
    parser.add_argument("--processes", type=int, default=1, help="trainings side by side, with as many threads each as are left")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--look", action="store_true", help="leave a picture of every model beside its losses")
    parser.add_argument("--out", type=Path, default=HERE, help="where the table goes")
    options = parser.parse_args()
    if options.models < 12:
        parser.error(f"{options.models} models are too few: 12 are needed.")
    works, settings = assay.builtin_works(), replace(EMOJI32, schedule=replace(EMOJI32.schedule, steps=options.steps))
    shape = {name: value for name, value in asdict(settings).items() if name != "precision"}  # is the machine's: one may go on where another stopped
    shared = {name: tensor_digest(weight) for name, weight in assay.load("emoji64").weights().items() if not name.startswith("unet.")}
    about = {"works": works.digest, "shared": digest_of(shared), "unet": shape, "bands": BANDS, "draws": DRAWS, "seed": SEED}
    plan = Plan.draw(options.models, len(works), seed=SEED, about=about)
    worker = partial(trained, options.folder, plan.seeds, replace(settings, precision=native(options.device)), options)
    fill(options.folder, plan, worker, processes=options.processes, progress=lambda done, of: print(f"{done} of {of} models", file=sys.stderr))
    file = gather(options.folder, plan, BANDS).write(options.out / "emoji32-pool.parquet")
    figures = pools.emoji32(Pool.read(file), works)  # of what is kept
    (options.out / "emoji32.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
