"""UCE's closed form for many concepts at once, on matrices shaped as Stable Diffusion 1.5's: `benchmarks/uce-scale.json`.

    python benchmarks/uce_scale.py [--quality | --reach]

"loop" is the order of work of the public code, written here from its mathematics (Eq. 7 of the paper): for every key and value matrix, one concept at
a time, two sums of outer products, then an explicit inverse. "batched" is the same matrix by matrix, with one product for all concepts. "ours" is
`assay.erasure.uce.solve`, once for all matrices, and one product for each. All get the same random states. The other two are timed in float32, as the
public code runs; in float64 all three must agree. One row a concept, erased or preserved: its last token, as in the authors' code of 2025. About a
quarter of an hour on two cores.

With `--quality`, 1 to 100 titles of the built-in world are erased at once, each state of theirs weighing 1, 10 or 100 times as much as one that is
preserved, and it is measured how far the states move and what is left of the titles and of everything else: about ten minutes on two cores.

With `--reach`, how far the states move of every concept of the bench of erasers, and of those that erasers are tuned on, beside what is left of them
in `benchmarks/erasure.json` and `benchmarks/erasure-tuning.json`: no picture is drawn, a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from assay.benches.erasure import Results, Settings, Subject, subjects
from assay.concept import together
from assay.erasure import uce
from assay.evaluation.intervals import wilson
from assay.judge import JudgeLike
from assay.loading import load
from assay.noise import generator, numpy_generator
from assay.patched import Patched
from assay.verbs.erase import text_vectors
from assay.verbs.erasure_scenes import ask
from assay.verbs.erasures import counted
from assay.verbs.evaluate import Scene, images_of, judge_for, scene
from assay.verbs.session import Session, builtin_works
from assay.works import concepts as known
from erasure_tuning import FILE as TRIALS
from erasure_tuning import SUBJECTS as TUNED

HERE = Path(__file__).parent
SEED = 20261125
WIDTH = 768
OUTPUTS = [320] * 5 + [640] * 5 + [1280] * 6
"""Of the 16 layers of cross-attention: two, two, two and one down and in the middle, three, three and three up."""
CONCEPTS = (1, 10, 50, 100, 300, 1000)
QUALITY = (1, 10, 50, 100)
WEIGHTS = (1.0, 10.0, 100.0)
"""The paper's, and two more."""
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


def quality(each: int = 48) -> list[dict[str, Any]]:
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
        what = scene(session, works, concept, each=each)
        targets, anchors = (side.double() for side in uce.paired_states(session.denoiser, concept.pairs(), settings.tokens))
        preserved = uce.preserved_states(session.denoiser, concept.preserved(), settings.tokens).double()
        states = {"erased": len(targets), "preserved": len(preserved)}
        row: dict[str, Any] = {"concepts": count, "states": states, "base": shares(session, judge, what)}
        for weight in WEIGHTS:
            start = time.perf_counter()
            patch = uce.erase(session.denoiser, concept, replace(settings, erase_scale=weight))
            seconds = round(time.perf_counter() - start, 2)
            with Patched(session.denoiser, [(patch, 1.0)]):
                found = shares(session, judge, what)
            row.setdefault("erased", []).append({"erase_scale": weight, "seconds": seconds, **moved(targets, anchors, preserved, weight), **found})
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def reach() -> list[dict[str, Any]]:
    """Say how far UCE's small preset moves the states of every concept, at three weights, and what the bench and the trials count at the first."""
    session, works = Session("bench", load("emoji64"), "out", 0), builtin_works()  # the seed of the bench and of the trials
    bench, trials = Results.model_validate_json((HERE / "erasure.json").read_bytes()), json.loads(TRIALS.read_text())["trials"]
    plain = {"base": {}, "uce": asdict(replace(uce.Settings(), **uce.PRESETS["small"]))}

    def shown(subject: Subject) -> dict[str, list[int]]:
        """Return pictures that show the concept, and of how many: with the base and with UCE."""
        head = f"target.{subject.target_head}"
        cells = {row: cell.shares[head] for row, cell in bench.of(subject.name).items() if row in plain}
        own = [trial for trial in trials if trial["concept"] == subject.name and plain.get(trial["method"]) == trial["settings"]]
        return {row: [share.hits, share.n] for row, share in cells.items()} | {trial["method"]: trial["shares"][head] for trial in own}

    rows = []
    for subject in [*subjects(works), *TUNED.values()]:
        concept = ask(session, works, subject, Settings().each).concept
        targets, anchors = (side.double() for side in uce.paired_states(session.denoiser, concept.pairs(), "all"))
        preserved = uce.preserved_states(session.denoiser, concept.preserved(), "all").double()
        states = {"erased": len(targets), "preserved": len(preserved)}
        ways = [{"erase_scale": weight, **moved(targets, anchors, preserved, weight)} for weight in WEIGHTS]
        rows.append({"concept": subject.name, "anchor": concept.anchor, "states": states, "ways": ways, "shown": shown(subject)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def shares(session: Session, judge: JudgeLike, what: Scene) -> dict[str, Any]:
    """Return in how many pictures what was asked for is named: of the titles that go, and of everything else."""
    found, said = counted(judge, images_of(session.denoiser, what.rows, seed=SEED, steps=20, guidance=4.0), what), {}
    for name in ("target.title", "target.five", "rest.title", "rest.five", "rest.style"):
        low, high = wilson(found[name].hits, found[name].n)
        said[name] = {"value": found[name].value, "low": low, "high": high, "n": found[name].n, "chance": found[name].chance}
    return said


def moved(targets: torch.Tensor, anchors: torch.Tensor, preserved: torch.Tensor, weight: float) -> dict[str, float]:
    """Return which share of the way to their anchors the states go, and how far the preserved ones go in parts of their length."""
    small = uce.PRESETS["small"]
    change = uce.solve(targets, anchors, preserved, erase_scale=weight, lam=small["lam"], scale_lam=small["scale_lam"]).T
    way = anchors - targets
    share = float((targets @ change * way).sum() / (way**2).sum())
    return {"moved": round(share, 4), "preserved_moved": round(float((preserved @ change).norm() / preserved.norm()), 4)}


def main() -> None:
    """Measure and write; what is not measured now stays as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", action="store_true", help="measure what is left of titles erased together, in place of the speed")
    parser.add_argument("--reach", action="store_true", help="measure how far the states of the bench's concepts move, in place of the speed")
    parser.add_argument("--most", type=int, default=max(CONCEPTS), help="time no more concepts than this")
    options = parser.parse_args()
    file = HERE / "uce-scale.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if options.quality:
        result["quality"] = quality()
    elif options.reach:
        result["reach"] = reach()
    else:
        result["speed"] = {"matrices": 2 * len(OUTPUTS), "width": WIDTH, "threads": torch.get_num_threads(), "rows": speed(options.most)}
        result["speed"]["processor"] = torch.cpu.get_capabilities().get("cpu_name")
    file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
