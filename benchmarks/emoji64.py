"""The bars of the built-in model, measured and written to `benchmarks/emoji64.json` and its pictures.

    python benchmarks/emoji64.py [--steps 20] [--images 4] [--prompts 200]

Prompts are drawn from members (trained pairs) and from holdout works whose title was trained in another style (pairs never trained), by a seed
that no tuning has used. Accuracies are ratios to the same judges' accuracy on the real works of the same titles and styles, which they never saw.
Intervals are bootstrapped by prompt, images and real work together.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

import assay
from assay.denoiser import to_pictures
from assay.evaluation.intervals import bootstrap, wilson
from assay.judge import CrossJudge
from assay.noise import derive, numpy_generator
from assay.reports.pictures import grid, small_png
from assay.verbs.session import zoo

HERE = Path(__file__).parent
SEED = 20261122
TEMPLATE = "{title}, {style} style"
GRID = ("cat face", "dog face", "red heart", "red apple", "automobile", "sun", "house", "guitar", "pizza", "grinning face")


def drawn(works: assay.Works, split: str, count: int, seed: int = SEED) -> assay.Works:
    """Draw ordinary works of a split whose title exists in all four styles and was trained in one."""
    titles = works.column("title")
    trained = set(works.where(lambda row: row["split"] == "member" and row["copies"] > 0).column("title"))

    def fits(row: dict[str, Any]) -> bool:
        return row["split"] == split and "canary" not in row["attributes"] and titles.count(row["title"]) >= 4 and row["title"] in trained

    rows = works.where(fits)
    return rows.take(sorted(numpy_generator(seed, split).permutation(len(rows))[:count].tolist()))


def judged(denoiser: assay.Denoiser, judge: CrossJudge, rows: assay.Works, images: int, steps: int) -> dict[str, object]:
    """Generate `images` for every row and return accuracies and ratios by head."""
    return scored(denoiser.generate(*asked(rows, images), steps=steps), judge, rows)


def asked(rows: assay.Works, images: int, seed: int = SEED) -> tuple[list[str], list[int]]:
    """Return the prompts and the seeds of `images` for every row."""
    pairs = zip(rows.column("title"), rows.column("style"), rows.column("id"), strict=True)
    jobs = [(TEMPLATE.format(title=title, style=style), derive(seed, work, number)) for title, style, work in pairs for number in range(images)]
    return [prompt for prompt, _ in jobs], [drawn_by for _, drawn_by in jobs]


def scored(made: torch.Tensor, judge: CrossJudge, rows: assay.Works) -> dict[str, Any]:
    """Return accuracies and ratios by head of images made for every row, one row's after another's."""
    titles, styles, images = rows.column("title"), rows.column("style"), len(made) // len(rows)
    ours = judge.score(made, [title for title in titles for _ in range(images)], [style for style in styles for _ in range(images)])
    real = judge.score(torch.from_numpy(rows.pixels(64)).permute(0, 3, 1, 2).float() / 255, titles, styles)
    result: dict[str, object] = {"prompts": len(rows), "images": len(made)}
    for head in ("style", "title", "group"):
        # Whether a title can be judged depends on its prompt alone, so that a prompt's images count together, beside its real work.
        known = real[head].known
        share = ours[head].right.reshape(len(rows), images).mean(1)[known]
        both = np.stack([share, real[head].right[known]], 1).astype(np.float64)
        result[head] = {
            "generated": [both[:, 0].mean(), *bootstrap(both[:, 0], seed=SEED)],
            "real": [both[:, 1].mean(), *wilson(int(both[:, 1].sum()), len(both))],
            "ratio": [ratio(both), *bootstrap(both, ratio, seed=SEED)],
            "chance": judge.chance(head),
            "prompts": len(both),
        }
    return result


def ratio(both: np.ndarray) -> float:
    """Return the accuracy on generated images over that on real works: columns of both, by prompt."""
    return float(both[:, 0].mean() / max(both[:, 1].mean(), 1e-9))


def psnr(denoiser: assay.Denoiser, works: assay.Works) -> dict[str, Any]:
    """Return the autoencoder's PSNR in dB on holdout works, by style."""
    rows = works.where(lambda row: row["split"] == "holdout")
    pixels = torch.from_numpy(rows.pixels(64)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        back = torch.cat([denoiser.images(denoiser.latents(pixels[i : i + 32])) for i in range(0, len(pixels), 32)])
    values = (-10 * torch.log10((back - pixels).square().mean((1, 2, 3)))).numpy()
    styles = np.array(rows.column("style"))
    by_style = {style: round(float(values[styles == style].mean()), 2) for style in sorted(set(styles))}
    return {"mean": round(float(values.mean()), 2), "n": len(values), "by_style": by_style}


def memorised(denoiser: assay.Denoiser, works: assay.Works) -> dict[str, Any]:
    """Return what the audit of nearest works, with its small preset, says of canaries by copies, and of works never shown."""
    with TemporaryDirectory() as folder:
        record = assay.audit(denoiser, works, method="nearest", out=folder, seed=SEED).record
    assert record is not None
    return {metric.name: [metric.value, metric.low, metric.high, metric.n] for metric in record.metrics} | {"settings": record.resolved}


def picture(denoiser: assay.Denoiser, steps: int) -> Image.Image:
    """Draw the grid of prompts and styles that the README shows."""
    styles = ("openmoji", "twemoji", "noto", "fluent")
    prompts = [TEMPLATE.format(title=title, style=style) for title in GRID for style in styles]
    made = to_pictures(denoiser.generate(prompts, [derive(SEED, prompt) for prompt in prompts], steps=steps))
    return grid([made[row * 4 : row * 4 + 4] for row in range(len(GRID))], GRID, styles, scale=2)


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=200)
    options = parser.parse_args()
    started = time.time()
    denoiser, works = assay.load("emoji64"), assay.builtin_works()
    judge = CrossJudge.load(zoo("judge"))
    result = {
        "model": denoiser.digest,
        "works": works.digest,
        "judge": judge.digest,
        "seed": SEED,
        "settings": vars(options),
        "vae_psnr_db_on_holdout": psnr(denoiser, works),
        "trained_pairs": judged(denoiser, judge, drawn(works, "member", options.prompts), options.images, options.steps),
        "untrained_pairs": judged(denoiser, judge, drawn(works, "holdout", options.prompts), options.images, options.steps),
    }
    result["nearest_audit"] = memorised(denoiser, works)
    (HERE / "emoji64-grid.png").write_bytes(small_png(picture(denoiser, options.steps)))
    result["seconds"] = round(time.time() - started, 1)
    (HERE / "emoji64.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
