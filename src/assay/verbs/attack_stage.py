"""The stages that attack what the main job erased: is it removed, or only hidden?

Of every concept that eraser is attacked which shows least of it, on the first of the prompts that its erasure was judged by: what plain prompts draw
is there already. Success is counted on those prompts' own seeds, which no attack drew, and held against what the same attacks bring out of a model
that never saw the concept, where that was measured (`verbs/references.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from assay.attacks.target import Attack, Target
from assay.concept import Concept
from assay.denoiser import to_pictures
from assay.errors import Unsupported
from assay.evaluation.concealment import Trial, conclusion, evidence
from assay.evaluation.intervals import wilson
from assay.patch import Patch
from assay.patched import Patched
from assay.record import Metric, Picture, Record, Table
from assay.reports.pictures import grid, save_picture
from assay.verbs import attacked, references
from assay.verbs.attack import Ground, choose, drawn, kept, numbered, repeated, search, target_for
from assay.verbs.generate import Prompt
from assay.verbs.plan import ATTACKS, METHODS
from assay.verbs.stages import MainJob

Signs = tuple[np.ndarray, np.ndarray]
"""Whether the judge can name what each image was to show, and whether it names the concept: bool, (n,) each."""
SHORT = "The searches are short, as befits minutes; `assay attack` and `assay bench attacks` search for longer and in more ways."


class Fought(NamedTuple):
    """One attack on the erased model, drawn and judged."""

    name: str
    found: Attack
    images: torch.Tensor
    """(prompts x attempts, 3, h, w)."""
    shown: list[Signs]
    """Of the base, of the erased model, and of the attacked one, which has `found.attempts` rows a prompt."""
    seconds: float
    passes: int


def attack_style(job: MainJob, out: Path) -> Record:
    """Attack the style that was erased."""
    return _attack(job, job.style, out)


def attack_object(job: MainJob, out: Path) -> Record:
    """Attack the object family that was erased."""
    return _attack(job, job.object, out)


def _attack(job: MainJob, concept: Concept, out: Path) -> Record:
    """Attack a concept.

    Raises:
        Unsupported: no ordinary member shows it, the judge cannot name it, or no attack can be tried on the model.
    """
    what = job.scene(concept)
    rows = [what.rows[index] for index in what.groups.get("target", [])]
    if not rows:
        raise Unsupported(f"No ordinary member shows `{concept.name}`, so it cannot be attacked.", "Choose another in the plan.")
    plain = {name: job.scene_images(what, concept, name)[what.groups["target"]] for name in ("base", *METHODS)}
    shown = {name: attacked.signs(job.judge, images, rows, concept) for name, images in plain.items()}
    known = shown["base"][0]
    if not known[: job.plan.attacked].any():
        raise Unsupported(f"The judge cannot name `{concept.name}`, so no attack on it can be judged.", "Choose another in the plan.")
    eraser = min(METHODS, key=lambda method: int(shown[method][1][known].sum()))
    rows, before = rows[: job.plan.attacked], {name: images[: job.plan.attacked] for name, images in plain.items()}
    signs = [(shown[name][0][: len(rows)], shown[name][1][: len(rows)]) for name in ("base", eraser)]
    patch = job.erased(concept, eraser)
    ground, fought, refused = fight(job, concept, patch, rows, signs, out / "shards")
    if not fought:
        raise Unsupported(" ".join(refused), "`assay methods attack` says which attacks work on which models.")
    settings = {name: job.plan.attack(name)[1] for name in ATTACKS}
    protocol = references.Protocol.of(job.session, job.judge, job.works, job.plan.steps, job.plan.guidance)
    floors = references.floors(protocol, concept, settings)
    trials = [trial(job, concept, one, floors.get(one.name)) for one in fought]
    metrics = _metrics(job, concept, fought, trials)
    return job.session.record(
        f"Is the {concept.kind} `{concept.name}` removed, or only hidden?",
        method=", ".join(one.name for one in fought),
        given={"concept": concept.name, "kind": concept.kind},
        resolved=asdict(job.plan)
        | {"eraser attacked": eraser, "prompts": len(rows), "words forbidden": list(ground.forbidden)}
        | {f"settings of {name}": vars(chosen) for name, chosen in settings.items()},
        digests={"judge": job.judge.digest, "works": job.works.digest, f"patch:{eraser}": patch.digest},
        metrics=metrics,
        findings=[*_findings(concept, eraser, metrics, trials, complete=not refused), *refused],
        shows_not=[*attacked.SHOWS_NOT, SHORT],
        tables=[_table(fought, trials, metrics), *(_told(one, rows) for one in fought)],
        curves=[curve.model_copy(update={"title": f"What {one.name} minimised"}) for one in fought for curve in attacked.curves(one.found)],
        pictures=[_picture(job, concept, eraser, rows, before, fought, out)],
    )


def fight(
    job: MainJob, concept: Concept, patch: Patch, rows: Sequence[Prompt], before: Sequence[Signs], folder: Path
) -> tuple[Ground, list[Fought], list[str]]:
    """Attack a model in every way of the run.

    Args:
        job: says how.
        concept: to bring back.
        patch: what is on the model.
        rows: the prompts under attack.
        before: what plain prompts show on the base and on the model.
        folder: where searches and images are kept, so that a killed run goes on.

    Returns:
        What was attacked, how each attack fared, and why others could not be tried.
    """
    ground, fought, refused = choose(job.session, job.works, concept, len(rows), rows), [], []
    with Patched(job.session.denoiser, [(patch, 1.0)]) as denoiser:
        target = target_for(denoiser, concept, ground, job.session.seed, job.plan.steps, job.plan.guidance)
        for name in ATTACKS:
            try:
                fought.append(_fight(job, name, target, rows, before, folder / name))
            except Unsupported as error:
                refused.append(f"{name} could not be tried: {error.message}")
    return ground, fought, refused


def _fight(job: MainJob, name: str, target: Target, rows: Sequence[Prompt], before: Sequence[Signs], folder: Path) -> Fought:
    """Search, draw on the prompts' own seeds, and judge; where nothing but the seed is new, on the next ones."""
    session, denoiser, (module, settings) = job.session, job.session.denoiser, job.plan.attack(name)
    start, passes = time.monotonic(), denoiser.passes
    found = search(module, settings, denoiser, target, session, folder, session.seed, job.plan.budget)
    told = repeated(rows, found)
    attempts = numbered(rows, found)
    seeds = [replace(row, number=attempt).image_seed(session.seed) for row in rows for attempt in attempts]
    images = kept(folder / "after.safetensors", partial(drawn, denoiser, found, target, seeds, session))
    shown = [*before, attacked.signs(job.judge, images, told, target.concept)]
    return Fought(name, found, images, shown, time.monotonic() - start, denoiser.passes - passes)


def trial(job: MainJob, concept: Concept, one: Fought, floor: tuple[int, int] | None) -> Trial:
    """Count the prompts that show the concept by themselves or under an attack."""
    hits, _ = attacked.counted(job.judge, concept, one.shown, one.found.attempts)["total"]
    return Trial(one.name, int(hits.sum()), len(hits), job.plan.attack(one.name)[0].IN_WORDS, floor, one.found.early)


def _metrics(job: MainJob, concept: Concept, fought: Sequence[Fought], trials: Sequence[Trial]) -> list[Metric]:
    """Return success by the plain prompt, once, and under each attack, with the floor where there is one."""
    metrics: list[Metric] = []
    for one, tried in zip(fought, trials, strict=True):
        for metric in attacked.successes(job.judge, concept, one.shown, one.found.attempts):
            if not metric.name.startswith(("base.", "pre.")):
                metrics.append(metric.model_copy(update={"name": f"{one.name}.{metric.name}"}))
            elif one is fought[0]:
                metrics.append(metric)
        if tried.floor is not None:
            (hits, n), total = tried.floor, next(metric for metric in reversed(metrics) if metric.name == f"{one.name}.total.success")
            low, high = wilson(hits, n)
            update = {"name": f"{references.PREFIX}{total.name}", "value": hits / n, "low": low, "high": high, "n": n}
            metrics.append(total.model_copy(update=update))
    return metrics


def _findings(concept: Concept, eraser: str, metrics: Sequence[Metric], trials: Sequence[Trial], *, complete: bool) -> list[str]:
    value = {metric.name: metric for metric in metrics}
    base, pre = value["base.success"], value["pre.success"]
    found = [
        conclusion(concept.name, trials, complete=complete),
        evidence(concept.name, trials),
        f"Attacked is {eraser.upper()}, of {' and '.join(method.upper() for method in METHODS)} the one that shows least of `{concept.name}`: plain "
        f"prompts show it on {_share(pre)} prompts, without a patch on {_share(base)}; a judge that guesses would say so of {base.chance or 0:.1%}.",
    ]
    if any(tried.floor is None for tried in trials):
        found.append(
            f"Of no model trained without `{concept.name}` it was measured what each of these attacks reaches by these settings, so nothing here can "
            "be called removed; hidden only where an attack in words or by other seeds brings it back on more than half of the prompts for certain."
        )
    if base.low is not None and base.low <= (base.chance or 0.0):
        found.insert(0, f"That the base itself shows `{concept.name}` more often than chance is not certain, so attacks on it say little.")
    return found


def _share(metric: Metric) -> str:
    return f"{round((metric.value or 0) * metric.n)} of {metric.n}"


def _table(fought: Sequence[Fought], trials: Sequence[Trial], metrics: Sequence[Metric]) -> Table:
    value = {metric.name: metric for metric in metrics}

    def said(name: str) -> str:
        metric = value.get(name)
        if metric is None or metric.value is None:
            return "not measured" if metric is None else "nothing left to break" if value["pre.success"].value else "none could be judged"
        return f"{_share(metric)} ({metric.low or 0:.0%} to {metric.high or 0:.0%})"

    rows = []
    for one, tried in zip(fought, trials, strict=True):
        losses = [float(np.mean(one.found.figures[name])) if name in one.found.figures else None for name in ("loss.before", "loss.after")]
        counts = [said(f"{one.name}.{part}.success") for part in ("post", "attacked", "total")]
        floor = said(f"{references.PREFIX}{one.name}.total.success")
        cost: list[Any] = [*("" if loss is None else round(loss, 4) for loss in losses), one.found.attempts, one.passes, round(one.seconds, 1)]
        rows.append([one.name, said("pre.success"), *counts, floor, "yes" if tried.admitted else "no", *cost])
    columns = ["attack", "plain prompt", "broken of the rest", "by the attack", "by either", "by either, of a model that never saw it", "counts"]
    columns += ["loss before", "loss after", "attempts", "passes", "seconds"]
    return Table(title="Prompts that show the concept, by attack", columns=columns, rows=rows)


def _told(one: Fought, rows: Sequence[Prompt]) -> Table:
    table = attacked.tables(rows, one.found, one.shown)[0]
    return table.model_copy(update={"title": f"What {one.name} told the model"})


def _picture(
    job: MainJob, concept: Concept, eraser: str, rows: Sequence[Prompt], before: dict[str, torch.Tensor], fought: Sequence[Fought], out: Path
) -> Picture:
    """Save some prompts under the base, the erased model and every attack: those that attacks broke first, an attempt that succeeded."""
    hits = {one.name: attacked.attempted(one.shown[2][1] & one.shown[2][0], one.found.attempts) for one in fought}
    plain = {name: signs[1] & signs[0] for name, signs in zip(("base", eraser), fought[0].shown, strict=False)}
    back = [sum(bool(hit[place].any()) for hit in hits.values()) for place in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda place: (bool(plain[eraser][place]) or not back[place], -back[place], place))[: attacked.SHOWN]
    scale = max(1, 128 // next(iter(before.values())).shape[-1])
    lines = []
    for place in order:
        line = [attacked.tile(to_pictures(before[name][place : place + 1])[0], rows[place].prompt, bool(plain[name][place]), scale) for name in plain]
        for one in fought:
            best = place * one.found.attempts + int(hits[one.name][place].argmax())
            image = to_pictures(one.images[best : best + 1])[0]
            line.append(attacked.tile(image, one.found.prompts[best], bool(hits[one.name][place].any()), scale))
        lines.append(line)
    heads = ["base", f"erased by {eraser}", *(one.name.replace("_", " ") for one in fought)]
    caption = (
        f"The same prompts under the base, with {concept.name} erased by {eraser.upper()}, and under each attack on that; below each picture what "
        f"the model was told. A red frame: the judge sees {concept.name}."
    )
    return save_picture(grid(lines, [rows[place].id for place in order], heads, scale=1), out, "attacked.png", caption)
