"""UCE's closed form for many concepts at once, on matrices shaped as Stable Diffusion 1.5's: `benchmarks/uce-scale.json`.

    python benchmarks/uce_scale.py [--quality]

"loop" is the order of work of the public code, written here from its mathematics (Eq. 7 of the paper): for every key and value matrix, one concept at
a time, two sums of outer products, then an explicit inverse. "batched" is the same matrix by matrix, with one product for all concepts. "ours" is
`assay.erasure.uce.solve`, once for all matrices, and one product for each. All get the same random states. The other two are timed in float32, as the
public code runs; in float64 all three must agree. One row a concept, erased or preserved: its last token, as in the authors' code of 2025. About a
quarter of an hour on two cores.

With `--quality`, 1 to 100 titles of the built-in world are erased at once, and it is measured what is left of them and of everything else: about ten
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from assay.concept import together
from assay.erasure import uce
from assay.loading import load
from assay.noise import generator, numpy_generator
from assay.patched import Patched
from assay.verbs.erase import text_vectors
from assay.verbs.evaluate import accuracies, images_of, judge_for, scene
from assay.verbs.session import Session, builtin_works
from assay.works import concepts as known

HERE = Path(__file__).parent
SEED = 20261125
WIDTH = 768
OUTPUTS = [320] * 5 + [640] * 5 + [1280] * 6
"""Of the 16 layers of cross-attention: two, two, two and one down and in the middle, three, three and three up."""
CONCEPTS = (1, 10, 50, 100, 300, 1000)
QUALITY = (1, 10, 50, 100)
KEPT = 20
LAM = 0.5
"""The authors' code of 2025."""
NORM = 27.0
"""Of one state of CLIP ViT-L/14's text encoder, roughly; the results compared do not depend on it."""
TOLERANCE = 1e-8
"""Largest relative difference of the two results in float64."""


def drawn(shape: tuple[int, ...], *name: str | int) -> torch.Tensor:
    """Draw normal numbers by name."""
    return torch.randn(shape, generator=generator(SEED, *name))


def states(count: int, name: str) -> torch.Tensor:
    """Draw states of one norm: float32, (count, 768)."""
    return torch.nn.functional.normalize(drawn((count, WIDTH), name), dim=1) * NORM


def matrices() -> list[torch.Tensor]:
    """Draw the 32 key and value matrices, with the spread of an untrained linear layer."""
    return [drawn((height, WIDTH), "matrix", layer, part) / WIDTH**0.5 for layer, height in enumerate(OUTPUTS) for part in ("key", "value")]


def loop(weights: list[torch.Tensor], targets: torch.Tensor, anchors: torch.Tensor, preserved: torch.Tensor) -> list[torch.Tensor]:
    """Solve matrix by matrix, concept by concept."""
    found = []
    for weight in weights:
        right = LAM * torch.eye(WIDTH, dtype=weight.dtype)
        left = LAM * weight.clone()
        for concept, guide in zip(targets, anchors, strict=True):
            left += torch.outer(weight @ guide, concept)
            right += torch.outer(concept, concept)
        for concept in preserved:
            left += torch.outer(weight @ concept, concept)
            right += torch.outer(concept, concept)
        found.append(left @ torch.linalg.inv(right))
    return found


def batched(weights: list[torch.Tensor], targets: torch.Tensor, anchors: torch.Tensor, preserved: torch.Tensor) -> list[torch.Tensor]:
    """Solve matrix by matrix, all concepts at once."""
    found = []
    for weight in weights:
        right = LAM * torch.eye(WIDTH, dtype=weight.dtype) + targets.T @ targets + preserved.T @ preserved
        left = LAM * weight + (weight @ anchors.T) @ targets + (weight @ preserved.T) @ preserved
        found.append(left @ torch.linalg.inv(right))
    return found


def ours(weights: list[torch.Tensor], targets: torch.Tensor, anchors: torch.Tensor, preserved: torch.Tensor) -> list[torch.Tensor]:
    """Solve once for all."""
    left, right = uce.factors(targets, anchors, preserved, lam=LAM)
    return [weight.double() + uce.applied(weight, left, right) for weight in weights]


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return the median of some runs with the fastest and the slowest."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return {"seconds": round(statistics.median(seconds), 4), "low": round(min(seconds), 4), "high": round(max(seconds), 4), "repeats": repeats}


def speed(most: int) -> list[dict[str, object]]:
    """Time all side by side, for every number of concepts up to the most.

    Raises:
        SystemExit: they do not agree.
    """
    weights, rows = matrices(), []
    preserved = states(KEPT, "preserved")
    for count in (count for count in CONCEPTS if count <= most):
        targets, anchors = states(count, "targets"), states(count, "anchors")
        repeats = 5 if count <= 100 else 3
        given = (weights, targets, anchors, preserved)
        double = ([weight.double() for weight in weights], targets.double(), anchors.double(), preserved.double())
        mine = ours(*given)
        apart = max(float((one - other).norm() / one.norm()) for work in (loop, batched) for one, other in zip(work(*double), mine, strict=True))
        if apart > TOLERANCE:
            raise SystemExit(f"The results differ by {apart:.1e} at {count} concepts: one of them is wrong.")
        row = {name: timed(partial(work, *given), repeats) for name, work in (("ours", ours), ("batched", batched), ("loop", loop))}
        faster = {name: round(float(row[name]["seconds"]) / float(row["ours"]["seconds"]), 1) for name in ("batched", "loop")}
        rows.append({"concepts": count, "relative_difference": float(f"{apart:.2g}"), **row, "times_faster_than": faster})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def quality(each: int = 48) -> list[dict[str, object]]:
    """Erase many titles at once from the built-in model, and judge what is left of them and of everything else."""
    session, works = Session("bench", load("emoji64"), "out", SEED), builtin_works()
    judge, names = judge_for(session, works), known.titles(works.where(lambda row: row["split"] == "member" and row["copies"] == 1))
    order = numpy_generator(SEED, "titles").permutation(len(names)).tolist()
    settings = replace(uce.Settings(), **uce.PRESETS["small"])

    def embed(texts: Sequence[str]):
        return text_vectors(session.denoiser, texts)

    rows = []
    for count in QUALITY:
        gone = [names[place] for place in order[:count]]
        others = [name for name in names if name not in gone]
        anchors = [known.nearest(name, others, embed)[0] for name in gone]
        parts = [
            known.find(works, name, kind="object", anchor=anchor, members=[name], embed=embed, seed=SEED)
            for name, anchor in zip(gone, anchors, strict=True)
        ]
        concept = together(parts)
        start = time.perf_counter()
        patch = uce.erase(session.denoiser, concept, settings)
        seconds = time.perf_counter() - start
        what = scene(session, works, concept, each=each)
        row: dict[str, object] = {"concepts": count, "seconds": round(seconds, 2)}
        for label, stack in (("base", []), ("erased", [(patch, 1.0)])):
            with Patched(session.denoiser, stack):
                images = images_of(session.denoiser, what.rows, seed=SEED, steps=20, guidance=4.0)
            found = {metric.name: metric for metric in accuracies(judge, images, what)}
            row[label] = {
                name: {"value": metric.value, "low": metric.low, "high": metric.high, "n": metric.n, "chance": metric.chance}
                for name in ("target.title", "rest.title", "rest.style")
                if (metric := found.get(name)) is not None
            }
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Measure and write; what is not measured now stays as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", action="store_true", help="measure what is left of titles erased together, in place of the speed")
    parser.add_argument("--most", type=int, default=max(CONCEPTS), help="time no more concepts than this")
    options = parser.parse_args()
    file = HERE / "uce-scale.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    if options.quality:
        result["quality"] = quality()
    else:
        result["speed"] = {"matrices": 2 * len(OUTPUTS), "width": WIDTH, "threads": torch.get_num_threads(), "rows": speed(options.most)}
        result["speed"]["processor"] = torch.cpu.get_capabilities().get("cpu_name")
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
