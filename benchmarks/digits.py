"""The digits pool and what it shows: `benchmarks/digits-pool.parquet`, `benchmarks/digits.json`, `benchmarks/digits.png`.

    python benchmarks/digits.py [--folder out/digits] [--processes 2]

Trains 128 models on random halves (64 complementary pairs), and 24 of those subsets once more with another seed: 14 minutes on two busy cores,
and it goes on where it was; where the table is there nothing is trained. Then: do the models draw digits; can a model's members be told, by the
plain loss, by the likelihood ratio, and by the ratio's control, which scores every model against another pair's subset; how well do seeds agree, and
what do attributions score beside that ceiling.
Intervals of attacks are over pairs of models and works; those of scores of ranks are jackknifed over pairs of models, the queries staying the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC

from assay.benches.pools import figure, membership
from assay.denoiser import to_pictures
from assay.evaluation.datamodel import RIDGES, agreement, ceiling, fit, lds, predicted, unseen
from assay.evaluation.intervals import jackknife, wilson
from assay.noise import derive, numpy_generator
from assay.reports.pictures import grid, small_png
from assay.training import digits
from assay.training.pool import Pool

HERE = Path(__file__).parent
SEED = 20261124
SUBSETS, REPEATED, REPEATS = 128, 24, 2
DRAWN, EACH = 4, 50
"""Models asked to draw, and images of each digit."""
STEPS = 25
"""Of DDIM, with DDPM's noise (eta 1): without it an error of the first step, where the image is a hundredth of the noise, is never mended."""
LABELS = np.array([int(title) for title in digits.works().column("title")])
FLAT = digits.pixels()[:, 0].flatten(1).numpy()


def draw(pool: Pool) -> dict[str, object]:
    """Make some models again and let them draw; a judge is trained on the half its model never saw. Writes the sheet."""
    told: dict[str, list[bool]] = {"real": [], "guidance 1": [], "guidance 2": []}
    nearest: dict[str, list[bool]] = {"guidance 1": [], "guidance 2": []}
    seconds: dict[str, list[float]] = {"training": [], "losses": []}
    wanted = np.repeat(np.arange(10), EACH)
    same, rows, labels = [], [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for model in range(0, 2 * DRAWN, 2):
        included = pool.plan.included[model]
        start = time.monotonic()
        denoiser = digits.train(included, seed=int(pool.plan.seeds[model]))
        middle = time.monotonic()
        again = digits.losses(denoiser)
        seconds["training"].append(middle - start)
        seconds["losses"].append(time.monotonic() - middle)
        same.append(bool((np.abs(again / pool.losses[model] - 1) < 2**-10).all()))  # the table's losses are rounded to float16
        judge = SVC(gamma="scale", C=10.0).fit(FLAT[~included], LABELS[~included])
        told["real"] += (judge.predict(FLAT[included]) == LABELS[included]).tolist()
        for guidance in (1, 2):
            seeds = [derive(SEED, "drawn", model, number) for number in range(len(wanted))]
            images = denoiser.generate([str(digit) for digit in wanted], seeds, steps=STEPS, guidance=float(guidance), eta=1.0, batch=500)
            flat = images.mean(1).flatten(1).numpy()
            told[f"guidance {guidance}"] += (judge.predict(flat) == wanted).tolist()
            found = np.square(flat[:, None] - FLAT[None]).sum(2).argmin(1)
            nearest[f"guidance {guidance}"] += included[found].tolist()
            if model == 0:
                rows += [to_pictures(images[row::EACH]) for row in range(4)]
                labels += [f"drawn, guidance {guidance}"] * 4
        if model == 0:
            real = [np.flatnonzero(included & (digit == LABELS))[:4] for digit in range(10)]
            rows += [[to_pictures(digits.pixels()[places[row] : places[row] + 1])[0] for places in real] for row in range(4)]
            labels += ["real"] * 4
    torch.set_num_threads(threads)
    (HERE / "digits.png").write_bytes(small_png(grid(rows, labels, [str(digit) for digit in range(10)], scale=4)))
    return {
        "models": DRAWN,
        "images_of_each": len(wanted),
        "sampler": {"steps": STEPS, "eta": 1.0},
        "judged_as_asked": {name: figure(float(np.mean(hits)), wilson(sum(hits), len(hits)), 0.1, n=len(hits)) for name, hits in told.items()},
        "nearest_work_was_trained_on": {
            name: figure(float(np.mean(hits)), wilson(sum(hits), len(hits)), 0.5, n=len(hits)) for name, hits in nearest.items()
        },
        "losses_made_again_are_the_pool's": all(same),
        "seconds_on_one_core": {name: {"each": [round(value, 2) for value in values]} for name, values in seconds.items()},
    }


def attribution(pool: Pool) -> dict[str, object]:
    """Score attributions on the second half of the pairs, beside the ceiling that seeds set: over all models, and over those without the query."""
    weights = digits.DigitsSettings().widths
    outputs, once, repeats = pool.loss(weights), pool.once, pool.repeats
    half = len(once) // 2 - len(once) // 2 % 2
    fitted, scored = once[:half], once[half:]
    datamodel, ridge, errors = fit(pool.plan.included[fitted], outputs[fitted], pool.pairs[fitted])
    distances = np.square(FLAT[:, None] - FLAT[None]).sum(2)
    scale = np.median(np.sort(distances, axis=1)[:, 1])
    attributions = {
        "datamodel": datamodel,
        "its own place alone": -np.eye(len(FLAT)),
        "datamodel without its own place": datamodel * ~np.eye(len(FLAT), dtype=bool),
        "pixel similarity": -np.exp(-distances / (2 * scale)),
        "random": numpy_generator(SEED, "random").normal(size=datamodel.shape),
    }
    included, subsets = pool.plan.included[scored], pool.plan.included[repeats[:, 0]]
    sums = {label: predicted(each, included) for label, each in attributions.items()}
    rows, repeat_rows = unseen(included), unseen(subsets)
    apart = {label: np.take_along_axis(each, rows, 0) for label, each in sums.items()}
    seeds = outputs[repeats]  # (subsets, seeds, queries)
    return {
        "output": "mean loss over all timesteps",
        "queries": included.shape[1],
        "fitted_on": len(fitted),
        "ridge": ridge,
        "left_out_error_over_mean_alone": {f"{value:g}": round(float(error), 4) for value, error in zip(RIDGES, errors, strict=True)},
        "seed_to_seed_by_timesteps": {
            name: round(float(agreement(pool.losses[repeats][..., place]).mean()), 4) for place, name in enumerate(pool.names)
        },
        "all models": scores(sums, outputs[scored], seeds, np.arange(len(scored)) // 2, np.arange(len(seeds)) // 2),
        "models that did not see the query": scores(
            apart,
            np.take_along_axis(outputs[scored], rows, 0),
            np.take_along_axis(seeds, repeat_rows[:, None], 0),
            np.arange(len(rows)),
            np.arange(len(repeat_rows)),
        ),
    }


def scores(sums: dict[str, np.ndarray], measured: np.ndarray, seeds: np.ndarray, pairs: np.ndarray, repeat_pairs: np.ndarray) -> dict[str, object]:
    """Return the ceiling of a set of models and the mean score of every attribution's sums under it."""
    between = float(agreement(seeds).mean())
    ends = jackknife(seeds, lambda left: float(agreement(left).mean()), repeat_pairs.tolist())
    sizes = {"subsets": len(seeds), "scored": len(measured)}
    top = ceiling(between, **sizes)
    result: dict[str, object] = {
        "models": len(measured),
        "seed_to_seed": figure(between, ends, 0.0, subsets=len(seeds), seeds=seeds.shape[1]),
        "ceiling": figure(top, (ceiling(ends[0], **sizes), ceiling(ends[1], **sizes))),
    }
    for label, each in sums.items():
        both = np.stack([each, measured], 1)
        ends = jackknife(both, lambda left: float(lds(left[:, 0], left[:, 1]).mean()), pairs.tolist())
        value = float(lds(each, measured).mean())
        result[label] = figure(value, ends, 0.0, of_ceiling=round(value / top, 3) if top else None)
    return result


def main() -> None:
    """Fill, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/digits"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    start = time.monotonic()

    def progress(done: int, total: int) -> None:
        print(f"{done} of {total} models, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)

    plan = digits.plan_pool(SUBSETS, seed=SEED, repeated=REPEATED, repeats=REPEATS)
    file = HERE / "digits-pool.parquet"
    if not file.exists() or Pool.read(file).plan.digest != plan.digest:
        digits.fill_pool(options.folder, plan, processes=options.processes, progress=progress).write(file)
    pool = Pool.read(file)  # all figures are of what is kept
    result = {
        "plan": {"digest": plan.digest, "models": len(plan), "subsets": SUBSETS, "repeated": REPEATED, "repeats": REPEATS, **plan.about},
        "drawing": draw(pool),
        "membership": membership(pool, digits.DigitsSettings().widths),
        "attribution": attribution(pool),
    }
    (HERE / "digits.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
