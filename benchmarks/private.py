"""What privacy costs and buys on the digits: `benchmarks/private.json`, `benchmarks/private.png`.

    python benchmarks/private.py [--folder out/private] [--processes 2]

Trains models on complementary random halves of the digits by DP-SGD, from scratch, for several epsilon and noise multiplicities K, and asks of each:
can its members be told by their loss, pooled over the models, and by the likelihood ratio with the other pairs as shadow models; what is its loss on
digits it never saw; do its images pass for the digit asked for (a judge trained on the half it never saw); how far are they from that half in the
features of a classifier trained on it (KID). About ten minutes on two cores when nothing else runs; it goes on where it was.

What it does not show: rates and the clip were chosen by hand on one half, which costs privacy that is not reckoned; the bound is on the best attack
there could be, while these are two; 898 works are few for DP-SGD, whose noise shrinks with their number; and no public model is begun with.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Plot
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from assay.benches.pools import RATES
from assay.evaluation.intervals import bootstrap, wilson
from assay.evaluation.kid import mmd2
from assay.evaluation.membership import Roc, likelihood_ratio
from assay.noise import derive
from assay.record import digest_of, write_atomically
from assay.training import digits
from assay.training.loop import Schedule
from assay.training.pool import halves
from assay.training.private import Privacy

HERE = Path(__file__).parent
SEED = 20261125
DELTA, CLIP = 1e-4, 0.1
EACH = 30
"""Images of each digit that a model draws."""
SCHEDULE = Schedule(steps=400, batch=128, learning_rate=3e-3, warmup=40, decay=0.5, weight_decay=0.0, clip=math.inf, ema=0.98)
SETTINGS = digits.DigitsSettings(width=128, layers=1, schedule=SCHEDULE)
CASES: dict[str, tuple[Privacy, int]] = {"inf, nothing clipped, K 4": (Privacy(math.inf, DELTA, math.inf, 4, "rdp"), 3)}
"""Name -> what is promised, and how many pairs of models are trained."""
CASES |= {f"{epsilon:g}, K 4": (Privacy(epsilon, DELTA, CLIP, 4, "prv"), 3) for epsilon in (math.inf, 50, 10, 3, 1)}
CASES |= {
    f"{epsilon:g}, K {draws}": (Privacy(epsilon, DELTA, math.inf if math.isinf(epsilon) else CLIP, draws, "prv"), 2)
    for epsilon in (math.inf, 10, 1)
    for draws in (1, 8)
}
LABELS = np.array([int(title) for title in digits.works().column("title")])
FLAT = digits.pixels()[:, 0].flatten(1).numpy()


def features(images: np.ndarray, classifier: MLPClassifier) -> np.ndarray:
    """Return the hidden layer of a classifier for images (n, 64): (n, 64)."""
    return np.maximum(images @ classifier.coefs_[0] + classifier.intercepts_[0], 0)


def quality(images: np.ndarray, wanted: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """Judge images (n, 64) by the works that a model never saw, and those works by each other."""
    judge = SVC(gamma="scale", C=10.0).fit(FLAT[unseen], LABELS[unseen])
    classifier = MLPClassifier((64,), max_iter=300, random_state=SEED % 2**31).fit(FLAT[unseen], LABELS[unseen])
    real, kept = features(FLAT[unseen], classifier), features(FLAT[~unseen], classifier)
    return {
        "as_asked": int((judge.predict(images) == wanted).sum()),
        "images": len(images),
        "kid": mmd2(features(images, classifier), real),
        "kid_of_members": mmd2(kept, real),
    }


def train(folder: Path, name: str, model: int) -> None:
    """Train, attack and judge one model, unless that was done."""
    privacy, _ = CASES[name]
    path = folder / f"{digest_of([name, asdict(privacy), asdict(SETTINGS), model, EACH, SEED])[:24]}.json"
    if path.exists():
        return
    torch.set_num_threads(1)
    included = halves(model // 2 * 2 + 2, len(FLAT), SEED)[model]
    start = time.monotonic()
    denoiser, kept = digits.train_privately(included, privacy, seed=derive(SEED, name, model), settings=SETTINGS)
    seconds = time.monotonic() - start
    losses = digits.losses(denoiser, SETTINGS)
    wanted = np.repeat(np.arange(10), EACH)
    seeds = [derive(SEED, "drawn", name, model, number) for number in range(len(wanted))]
    images = denoiser.generate([str(digit) for digit in wanted], seeds, steps=25, guidance=1.0, eta=1.0, batch=500).mean(1).flatten(1).numpy()
    found = {"case": name, "model": model, "seconds": seconds, "guarantee": asdict(kept), "losses": losses.tolist()}
    write_atomically(path, json.dumps(found | quality(images, wanted, ~included)).encode())


def rates(scores: np.ndarray, members: np.ndarray) -> dict[str, object]:
    """Return AUC and true-positive rates pooled over models (models, works), with intervals over works; a work's models stay together.

    The models are too few to be drawn anew: how another draw of models would do is not in the intervals. A rate that allows less than one false
    alarm is left out.
    """
    roc = Roc(scores, members)

    def figure(statistic: str, *rate: float) -> dict[str, float]:
        def drawn(chosen: np.ndarray) -> float:
            return getattr(roc, statistic)(*rate, np.bincount(chosen, minlength=scores.shape[1])[None])

        low, high = bootstrap(np.arange(scores.shape[1]), drawn, seed=SEED, draws=200)
        value = getattr(roc, statistic)(*rate)
        return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4), "chance": rate[0] if rate else 0.5}

    allowed = {name: rate for name, rate in RATES.items() if rate * (~members).sum() >= 1}
    return {"auc": figure("auc"), **{name: figure("tpr", rate) for name, rate in allowed.items()}}


def conclude(name: str, models: list[dict]) -> dict[str, object]:
    """Write up one case."""
    included = np.stack([halves(each["model"] // 2 * 2 + 2, len(FLAT), SEED)[each["model"]] for each in models])
    losses = np.array([each["losses"] for each in models])
    mean = np.average(losses, axis=2, weights=SETTINGS.widths)
    pairs = np.array([each["model"] // 2 for each in models])
    attacks = {"loss": rates(-mean, included)}
    if len(models) >= 6:
        attacks["likelihood ratio"] = rates(likelihood_ratio(np.log(mean), included, pairs), included)
    hits, images = sum(each["as_asked"] for each in models), sum(each["images"] for each in models)
    low, high = wilson(hits, images)
    kids, unseen = np.array([each["kid"] for each in models]), np.array([mean[row][~included[row]].mean() for row in range(len(models))])
    return {
        "models": len(models),
        "guarantee": written(models[0]["guarantee"]),
        "attacks": attacks,
        "loss_on_unseen": spread(unseen),
        "judged_as_asked": {"value": round(hits / images, 4), "low": round(low, 4), "high": round(high, 4), "chance": 0.1, "n": images},
        "kid": spread(kids),
        "kid_of_members": round(float(np.mean([each["kid_of_members"] for each in models])), 4),
        "seconds": round(float(np.median([each["seconds"] for each in models])), 1),
    }


def written(guarantee: dict[str, Any]) -> dict[str, Any]:
    """Return a guarantee as JSON can say it, which has no infinity."""
    return {key: value if not isinstance(value, float) or math.isfinite(value) else "inf" for key, value in guarantee.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    """Return mean and range over models."""
    return {"value": round(float(values.mean()), 4), "low": round(float(values.min()), 4), "high": round(float(values.max()), 4)}


def draw(cases: dict[str, dict]) -> None:
    """Draw leakage and quality against epsilon; baselines and chance as lines."""
    plot = Plot(figsize=(11, 3.4), layout="constrained")
    panels = plot.subplots(1, 3)
    shown = {
        "AUC of the loss attack": ("attacks", "loss", "auc"),
        "loss on digits never seen": ("loss_on_unseen",),
        "judged as asked": ("judged_as_asked",),
    }
    for panel, (title, keys) in zip(panels, shown.items(), strict=True):

        def told(name: str, keys: tuple[str, ...] = keys) -> dict[str, float]:
            found = cases[name]
            for key in keys:
                found = found[key]
            return found

        for draws, mark in ((1, "v"), (4, "o"), (8, "^")):
            points = [(epsilon, told(name)) for epsilon in (1, 3, 10, 50) if (name := f"{epsilon:g}, K {draws}") in cases]
            place = [epsilon * (1 + 0.06 * (mark != "o") * (1 if mark == "^" else -1)) for epsilon, _ in points]
            middle = np.array([each["value"] for _, each in points])
            ends = np.abs(np.array([[each["low"], each["high"]] for _, each in points]).T - middle) if points else np.empty((2, 0))
            panel.errorbar(place, middle, ends, marker=mark, capsize=2, label=f"K {draws}")
        if (name := "inf, nothing clipped, K 4") in cases:
            panel.axhspan(told(name)["low"], told(name)["high"], color="0.8", label="no privacy, K 4")
        chance = told(next(iter(cases))).get("chance")
        if chance is not None:
            panel.axhline(chance, color="0.4", linestyle=":", label="chance")
        panel.set(title=title, xscale="log", xlabel="epsilon (delta 1e-4)")
        panel.set_xticks([1, 3, 10, 50], ["1", "3", "10", "50"])
    panels[0].legend(fontsize=7)
    plot.savefig(HERE / "private.png", dpi=80)


def main() -> None:
    """Train what is missing, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/private"))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    todo = [(name, 2 * pair + side) for pair in range(3) for name, (_, pairs) in CASES.items() if pair < pairs for side in (0, 1)]
    spread_out(train, options.folder, todo, options.processes)
    write(options.folder)


def spread_out(train: Callable[[Path, str, int], None], folder: Path, todo: Sequence[tuple[str, int]], processes: int) -> None:
    """Train every (case, model) in processes of their own, and say how far it is."""
    start = time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(train, folder, name, model) for name, model in todo]
        for count, future in enumerate(as_completed(running), 1):
            future.result()
            print(f"{count} of {len(todo)} models, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def write(folder: Path) -> None:
    """Write up what is in the folder."""
    found = sorted((json.loads(path.read_text()) for path in folder.glob("*.json")), key=lambda each: each["model"])
    models = {name: [each for each in found if each["case"] == name] for name in CASES}
    cases = {name: conclude(name, each) for name, each in models.items() if each}
    about = {"works": len(FLAT), "settings": json.loads(json.dumps(asdict(SETTINGS)).replace("Infinity", '"inf"')), "clip": CLIP}
    (HERE / "private.json").write_text(json.dumps(about | {"cases": cases}, indent=1) + "\n")
    draw(cases)


if __name__ == "__main__":
    main()
