"""From scores of prompts to a record: areas, rates at thresholds from captions of calibration works, and what that does and does not say."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from assay.evaluation.intervals import wilson
from assay.evaluation.thresholds import threshold_at
from assay.memorization.verdicts import Evidence, area, canaries
from assay.record import Curve, Metric, Record, Table
from assay.works import Works

NAMES = {
    "magnitude": "noise difference, all steps",
    "magnitude_first": "noise difference, first step",
    "entropy_d": "attention entropy D",
    "entropy_e": "attention entropy E",
    "summary": "change of the summary tokens' entropy",
    "beginning": "attention away from the beginning token",
    "bright_ending": "bright ending",
    "masked_magnitude": "noise difference within the bright ending",
    "anisotropy": "anisotropy: norm and alignment",
    "alignment": "alignment at low noise",
}
"""Scores: as metrics name them -> as people do."""

SHOWS_NOT = [
    "A detector tells captions that act strongly on the model from others. Whether a picture comes out as a copy is a matter of comparing pictures: "
    "see the methods nearest and extraction.",
    "Captions never trained are of the same kind and length here. Published figures compare captions of web images with prompts for art, where the "
    "kind of text alone tells much.",
    "Of several detectors the best is named; its interval is not widened for that choice.",
    "With varied captions, the caption asked is one of those trained: what another caption of the same work does was not asked.",
    "A threshold holds for this model, this sampler and captions like those it was set on.",
    "Where pads are end tokens, too, as in small text encoders, summary tokens fill most of a caption, and entropies are mostly those of pads.",
]


class Shown(NamedTuple):
    """A caption that the report shows."""

    row: int
    """Its place among the captions asked."""
    marked: str
    """With its triggering tokens in brackets."""
    heaviest: str
    """The three heaviest tokens, with their shares."""


def witness(works: Works, evidence: Evidence, shown: list[Shown], settings: dict[str, Any], ruled: bool) -> Record:
    """Write the record.

    Args:
        works: the table.
        evidence: groups, works and scores.
        shown: the most suspicious captions.
        settings: as used.
        ruled: whether the model carries a rule of guidance.
    """
    evidence = evidence._replace(known=NAMES)
    calibration, holdout, members = (evidence.rows(kind) for kind in ("calibration", "holdout", "members"))
    doses = [group for group in evidence.groups if group.kind == "canary"]
    heavy = [evidence.rows("canary", arm=group.arm, dose=group.dose) for group in doses if group.dose >= settings["copies"]]
    found = np.concatenate(heavy) if heavy else np.empty(0, np.int64)
    withheld = [evidence.rows("canary", arm=group.arm, dose=0) for group in doses if group.dose == 0]
    passed = np.concatenate([holdout, *withheld])  # never trained, and no part of setting thresholds
    never = np.concatenate([calibration, passed])
    rate = max(settings["false_positive_rate"], 1 / (len(calibration) + 1))
    metrics, rows, thresholds = [], [], {}
    for name, words in evidence.names.items():
        scores = evidence.scores[name]
        limit = thresholds[name] = threshold_at(scores[calibration], rate).value
        line: list[Any] = [words]
        for suffix, places in (("auc", found), ("members.auc", members)):
            if not len(places):
                continue
            value, low, high = area(scores, places, never)
            about: dict[str, Any] = {"n": len(places) + len(never), "chance": 0.5, "better": "lower"}
            metrics.append(Metric(name=f"{name}.{suffix}", value=value, low=low, high=high, **about))
            line.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
        for suffix, places in (("tpr", found), ("members.flagged", members), ("false_positives", passed)):
            if not len(places):
                continue
            count = int((scores[places] > limit).sum())
            low, high = wilson(count, len(places))
            about = {"n": len(places), "chance": rate, "better": "lower"}
            metrics.append(Metric(name=f"{name}.{suffix}", value=count / len(places), low=low, high=high, **about))
            line.append(f"{count} of {len(places)} ({low:.0%} to {high:.0%})")
        rows.append(line)
    heads = ["detector"]
    heads += [f"AUC, at least {settings['copies']} copies"] if len(found) else []
    heads += ["AUC, ordinary members"] if len(members) else []
    heads += [f"captions of at least {settings['copies']} copies flagged"] if len(found) else []
    heads += ["members flagged"] if len(members) else []
    heads += ["never trained flagged"] if len(passed) else []
    tables = [Table(title=f"Captions against {len(never)} never trained, flagged at a rate of {rate:.1%}", columns=heads, rows=rows)]
    by_dose, table, curve = canaries(evidence, never)
    curves: list[Curve] = [curve] if curve else []
    tables += [table] if table else []
    tables += [_captions(works, evidence, shown, thresholds)] if shown else []
    return Record(
        command="audit",
        method="detectors",
        question="Which captions bring out copies, by what they do to the model, without looking at the works?",
        given=settings,
        resolved=settings | {"rate": round(rate, 6)},
        metrics=metrics + by_dose,
        findings=findings(evidence, metrics, settings, rate, ruled),
        shows_not=SHOWS_NOT,
        tables=tables,
        curves=curves,
    )


def findings(evidence: Evidence, metrics: list[Metric], settings: dict[str, Any], rate: float, ruled: bool) -> list[str]:
    """Say in words what was found: copied works' captions, ordinary members, the rate that holds, and what was not seen."""
    by = {metric.name: metric for metric in metrics}
    said = []
    for suffix, kind, flagged in (
        ("auc", f"Captions of canaries with at least {settings['copies']} copies", "tpr"),
        ("members.auc", "Captions of ordinary members", "members.flagged"),
    ):
        areas = {name: by[f"{name}.{suffix}"].value or 0.0 for name in evidence.names if f"{name}.{suffix}" in by}
        if not areas:
            continue
        best, worst = max(areas, key=areas.__getitem__), min(areas, key=areas.__getitem__)
        metric, called = by[f"{best}.{suffix}"], by[f"{best}.{flagged}"]
        said.append(
            f"{kind} against captions never trained: of {len(areas)} scores {NAMES[best]} tells most, AUC {areas[best]:.3f} (95 % interval "
            f"{metric.low:.3f} to {metric.high:.3f}), and {NAMES[worst]} least, {areas[worst]:.3f}; chance is 0.5. At a false-positive rate of "
            f"{rate:.1%} it flags {_of(called)}."
        )
    held = [by[f"{name}.false_positives"] for name in evidence.names if f"{name}.false_positives" in by]
    if held:
        most = max(held, key=lambda metric: metric.value or 0.0)
        said.append(
            f"Of captions never trained that set no threshold, {NAMES[most.name.split('.')[0]]} flags most, {_of(most)}; {rate:.1%} was aimed at."
        )
    if rate > settings["false_positive_rate"]:
        least = int(np.ceil(1 / settings["false_positive_rate"])) - 1
        said.append(f"The calibration captions cannot hold a rate of {settings['false_positive_rate']:.1%}: {least} are needed.")
    if ruled:
        said.append("The model carries a rule of guidance; prompts were sampled by plain guidance, and detectors do not see the rule.")
    return said


def _captions(works: Works, evidence: Evidence, shown: list[Shown], thresholds: dict[str, float]) -> Table:
    of = {row: group for group in evidence.groups for row in evidence.rows(group.kind, arm=group.arm, dose=group.dose)}
    lines = []
    for place, (row, marked, heaviest) in enumerate(shown, start=1):
        flags = sum(float(evidence.scores[name][row]) > limit for name, limit in thresholds.items())
        pictures = [{"picture": f"prompt-{place}-{what}.png"} for what in ("output", "region", "work")]
        scores = [round(float(evidence.scores[name][row]), 3) for name in ("masked_magnitude", "magnitude", "entropy_d", "bright_ending")]
        work = works[evidence.asked[row]]
        lines.append([*pictures, marked, heaviest, of[row].words, work["creator"] or "", *scores, f"{flags} of {len(thresholds)}"])
    heads = ["output", "bright ending", "work", "caption, triggers in brackets", "heaviest tokens", "of", "creator"]
    heads += [NAMES[name] for name in ("masked_magnitude", "magnitude", "entropy_d", "bright_ending")] + ["flagged by"]
    return Table(title="The most suspicious captions, by noise difference within the bright ending", columns=heads, rows=lines)


def _of(metric: Metric) -> str:
    return f"{round((metric.value or 0) * metric.n)} of {metric.n} (95 % interval {metric.low or 0:.0%} to {metric.high or 0:.0%})"
