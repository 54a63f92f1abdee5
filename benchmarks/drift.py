"""Twenty concepts erased one after another: what each erasure does to those before it and to everything else. `benchmarks/drift.json`, `drift.png`.

    python benchmarks/drift.py [--method esd] [--concepts 20] [--folder out/drift]

Titles of the built-in world are drawn by lot and erased in that order, each by the preset `small` on top of the patches before it; beside that, UCE
erases the same titles in turn, and at once. The same prompts are drawn on the base and after 1, 5, 10, 15 and 20 erasures: those of the titles erased
so far, those of the titles still to be erased, and everything else, whose distance from the base (KID) stands beside what it would stay below in 95 %
of exchanges if the two models were one.
Killed, the same command goes on with the next title. A quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot

from assay.concept import Concept, together
from assay.erasure import uce
from assay.evaluation.intervals import wilson
from assay.jobs.folder import OutFolder
from assay.loading import load
from assay.noise import derive, numpy_generator
from assay.patch import Patch
from assay.patched import Patched
from assay.verbs.erase import text_vectors
from assay.verbs.evaluate import distances, images_of, judge_for, scene
from assay.verbs.session import Session, builtin_works
from assay.works import concepts as known

HERE = Path(__file__).parent
SEED, STEPS, GUIDANCE = 20261128, 20, 4.0
EACH = {"target": 80, "neighbours": 0, "rest": 96}
STOPS = (0, 1, 5, 10, 15, 20)


def titles(session: Session, works: Any, count: int) -> list[Concept]:
    """Draw titles that ordinary members show, with anchors that are not among them."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        return text_vectors(session.denoiser, texts)

    names = known.titles(works.where(lambda row: row["split"] == "member" and row["copies"] == 1))
    gone = [names[place] for place in numpy_generator(SEED, "titles").permutation(len(names))[:count].tolist()]
    others = [name for name in names if name not in gone]
    anchors = [known.nearest(name, others, embed)[0] for name in gone]
    found = zip(gone, anchors, strict=True)
    return [known.find(works, name, kind="object", anchor=anchor, members=[name], embed=embed, seed=SEED) for name, anchor in found]


def share(hits: np.ndarray, chance: float) -> dict[str, Any]:
    """Return a share with Wilson's interval; nothing of none."""
    if not len(hits):
        return {"value": None, "n": 0, "chance": round(chance, 5)}
    low, high = wilson(int(hits.sum()), len(hits))
    return {"value": round(float(hits.mean()), 4), "low": round(low, 4), "high": round(high, 4), "n": len(hits), "chance": round(chance, 5)}


def main() -> None:
    """Erase, draw, judge and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="esd")
    parser.add_argument("--concepts", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("out/drift"))
    options = parser.parse_args()
    session, works = Session("bench", load("emoji64"), "out", SEED), builtin_works()
    denoiser, judge = session.denoiser, judge_for(session, works)
    method = import_module(f"assay.erasure.{options.method}")
    settings = replace(method.Settings(), **method.PRESETS["small"])
    concepts = titles(session, works, options.concepts)
    what = scene(session, works, together(concepts), each=EACH)
    asked = [row.title for row in what.rows]
    plan = {"model": denoiser.digest, "works": works.digest, "judge": judge.digest, "method": options.method, "settings": asdict(settings)}
    closed_form, closed = replace(uce.Settings(), **uce.PRESETS["small"]), list[tuple[Patch, float]]()
    plan |= {"concepts": [concept.name for concept in concepts], "seed": SEED, "steps": STEPS, "guidance": GUIDANCE, "each": EACH}
    plan |= {"uce": asdict(closed_form)}
    folder = OutFolder(options.folder, plan)
    chance = judge.chance("title")

    def measured(label: str, done: int, stack: list[tuple[Patch, float]], base: Any = None) -> tuple[dict[str, Any], Any]:
        with Patched(denoiser, stack):
            images = images_of(denoiser, what.rows, seed=SEED, steps=STEPS, guidance=GUIDANCE, folder=folder / f"images/{label}")
        verdict = judge.score(images, asked, [row.style for row in what.rows])["title"]
        erased = {concept.name for concept in concepts[:done]}
        parts: dict[str, list[int]] = {"erased": [], "to be erased": [], "everything else": []}
        for name, rows in what.groups.items():
            for row in rows:
                where = "everything else" if name != "target" else "erased" if asked[row] in erased else "to be erased"
                if verdict.known[row]:
                    parts[where].append(row)
        row: dict[str, Any] = {"erased": done, "title_among_first_five": {}, "title": {}}
        for name, rows in parts.items():
            row["title_among_first_five"][name] = share(verdict.among_five[rows], 5 * chance)
            row["title"][name] = share(verdict.right[rows], chance)
        for metric in [] if base is None else distances(judge, images, base, what, SEED):
            row[metric.name] = {
                key: None if value is None else round(value, 7) for key in ("value", "low", "high", "chance") for value in [getattr(metric, key)]
            }
        print(json.dumps(row), file=sys.stderr, flush=True)
        return row, images

    before, base = measured("base", 0, [])
    rows, stack, seconds = [before], [], []
    for number, concept in enumerate(concepts, 1):
        file = folder / f"patches/{number:02d}.safetensors"
        start = time.monotonic()
        if not file.exists():
            with Patched(denoiser, stack):
                patch = method.erase(denoiser, concept, settings, seed=derive(SEED, number), folder=folder / "training")
            patch.save(file)
            seconds.append(time.monotonic() - start)
            print(f"{number} of {len(concepts)}: {concept.name} -> {concept.anchor}, {seconds[-1]:.0f} s", file=sys.stderr, flush=True)
        stack.append((Patch.load(file), 1.0))
        if number in STOPS or number == len(concepts):
            rows.append(measured(f"{options.method}-{number:02d}", number, stack, base)[0])
    for number, concept in enumerate(concepts, 1):
        with Patched(denoiser, closed):
            closed.append((uce.erase(denoiser, concept, closed_form, seed=derive(SEED, number)), 1.0))
    in_turn = measured("uce-in-turn", len(concepts), closed, base)[0]
    start = time.monotonic()
    patch = uce.erase(denoiser, together(concepts), closed_form)
    took = time.monotonic() - start
    at_once = measured("uce-at-once", len(concepts), [(patch, 1.0)], base)[0] | {"seconds": round(took, 1)}
    result = plan | {"sequential": rows, "uce, in turn": in_turn, "uce, all at once": at_once}
    result |= {"seconds_an_erasure": round(float(np.median(seconds)), 1)} if seconds else {}
    (HERE / "drift.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result)


def draw(result: dict[str, Any]) -> None:
    """Draw what is named and how far the rest moved, against how many were erased."""
    rows, lasts = result["sequential"], {"uce in turn": ("+", result["uce, in turn"]), "uce at once": ("x", result["uce, all at once"])}
    plot = Plot(figsize=(9, 4.4), layout="constrained")
    left, right = plot.subplots(1, 2)
    for colour, part in zip(("#c33", "#888", "#36c"), ("erased", "to be erased", "everything else"), strict=True):
        points = [(row["erased"], row["title_among_first_five"][part]) for row in rows if row["title_among_first_five"][part]["value"] is not None]
        middle = np.array([each["value"] for _, each in points])
        ends = np.abs(np.array([[each["low"], each["high"]] for _, each in points]).T - middle)
        left.errorbar([done for done, _ in points], middle, ends, color=colour, marker="o", capsize=2, label=f"{part}, {result['method']} in turn")
        for name, (marker, last) in lasts.items():
            alone = last["title_among_first_five"][part]
            if alone["value"] is not None:
                left.plot([last["erased"] + 0.7], [alone["value"]], color=colour, marker=marker, linestyle="", label=f"{part}, {name}")
    left.axhline(rows[0]["title_among_first_five"]["everything else"]["chance"], color="0.4", linestyle=":", label="chance")
    left.set(title="title among the first five named", xlabel="titles erased", ylim=(0, None))
    left.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2)
    moved = [(row["erased"], row["kid.judge"]) for row in rows if "kid.judge" in row]
    right.errorbar(
        [done for done, _ in moved],
        [kid["value"] for _, kid in moved],
        np.abs(np.array([[kid["low"] - kid["value"], kid["high"] - kid["value"]] for _, kid in moved]).T),
        marker="o",
        capsize=2,
        label=f"{result['method']} in turn",
    )
    for name, (marker, last) in lasts.items():
        right.plot([last["erased"] + 0.7], [last["kid.judge"]["value"]], marker, label=name)
    right.plot([done for done, _ in moved], [kid["chance"] for _, kid in moved], color="0.4", linestyle=":", label="were the models one, 95 %")
    right.set(title="KID to the base on everything else", xlabel="titles erased")
    right.legend(fontsize=7)
    plot.savefig(HERE / "drift.png", dpi=80)


if __name__ == "__main__":
    main()
