"""How well scores tell what was copied in training from what was never trained: areas, rates at thresholds from calibration, and both in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from assay.evaluation.intervals import wilson
from assay.evaluation.thresholds import threshold_at
from assay.memorization.verdicts import Evidence, area
from assay.record import Metric, Table


class Separation(NamedTuple):
    """What every score tells."""

    metrics: list[Metric]
    """By score: `NAME.auc`, `.tpr` of canaries with many copies; `.members.auc`, `.members.flagged`; `.false_positives`."""
    table: Table
    """The same, a row a score."""
    thresholds: dict[str, float]
    """Name of a score -> above what it flags."""
    rate: float
    """The false-positive rate aimed at; more than was asked where calibration works are too few."""
    never: np.ndarray
    """Places of all that was never trained."""


def limits(scores: Mapping[str, np.ndarray], calibration: np.ndarray, rate: float) -> tuple[dict[str, float], float]:
    """Return above what every score flags, by the places of calibration works, and the rate that so few of them can hold."""
    rate = max(rate, 1 / (len(calibration) + 1))
    return {name: threshold_at(values[calibration], rate).value for name, values in scores.items()}, rate


def separate(evidence: Evidence, *, copies: int, rate: float, what: str) -> Separation:
    """Compare canaries with at least so many copies, and ordinary members, with what was never trained.

    Thresholds are set on calibration works; the rate that they keep is counted on holdout works and on canaries withheld, which set none.

    Args:
        evidence: groups and scores.
        copies: from which canaries count.
        rate: of false positives.
        what: is scored, in the plural: captions, works.
    """
    calibration, holdout, members = (evidence.rows(kind) for kind in ("calibration", "holdout", "members"))
    canaries = [(group.dose, evidence.rows("canary", arm=group.arm, dose=group.dose)) for group in evidence.groups if group.kind == "canary"]
    none = np.empty(0, np.int64)
    heavy = np.concatenate([none, *(rows for dose, rows in canaries if dose >= copies)])
    passed = np.concatenate([holdout, *(rows for dose, rows in canaries if dose == 0)])
    never = np.concatenate([calibration, passed])
    thresholds, rate = limits({name: evidence.scores[name] for name in evidence.names}, calibration, rate)
    metrics, rows = [], []
    heads = {
        "auc": (heavy, f"AUC, at least {copies} copies"),
        "members.auc": (members, "AUC, ordinary members"),
        "tpr": (heavy, f"flagged, at least {copies} copies"),
        "members.flagged": (members, "flagged, ordinary members"),
        "false_positives": (passed, "flagged, never trained"),
    }
    heads = {suffix: (places, head) for suffix, (places, head) in heads.items() if len(places)}
    for name, words in evidence.names.items():
        scores, limit = evidence.scores[name], thresholds[name]
        line: list[Any] = [words]
        for suffix, (places, _) in heads.items():
            if suffix.endswith("auc"):
                value, low, high = area(scores, places, never)
                n, chance = len(places) + len(never), 0.5
                line.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
            else:
                count, n, chance = int((scores[places] > limit).sum()), len(places), rate
                value, (low, high) = count / n, wilson(count, n)
                line.append(f"{count} of {n} ({low:.0%} to {high:.0%})")
            metrics.append(Metric(name=f"{name}.{suffix}", value=value, low=low, high=high, n=n, chance=chance, better="lower"))
        rows.append(line)
    title = f"{what.capitalize()} against {len(never)} never trained, flagged at a rate of {rate:.1%}"
    return Separation(metrics, Table(title=title, columns=["score", *(head for _, head in heads.values())], rows=rows), thresholds, rate, never)


def findings(evidence: Evidence, found: Separation, *, copies: int, rate: float, what: str) -> list[str]:
    """Say what the scores tell: of canaries with many copies, of ordinary members, and the rate that holds; arguments as of `separate`."""
    by, said = {metric.name: metric for metric in found.metrics}, []
    kinds = {"": ("tpr", f"canaries with at least {copies} copies"), "members.": ("members.flagged", "ordinary members")}
    for prefix, (flagged, kind) in kinds.items():
        areas = {name: by[f"{name}.{prefix}auc"].value or 0.0 for name in evidence.names if f"{name}.{prefix}auc" in by}
        if not areas:
            continue
        best, worst = max(areas, key=areas.__getitem__), min(areas, key=areas.__getitem__)
        metric = by[f"{best}.{prefix}auc"]
        said.append(
            f"{what.capitalize()}, {kind}, against {what} never trained: of {len(areas)} scores, `{evidence.known[best]}` tells most, AUC "
            f"{areas[best]:.3f} (95 % interval {metric.low:.3f} to {metric.high:.3f}), and `{evidence.known[worst]}` least, {areas[worst]:.3f}; "
            f"chance is 0.5. At a false-positive rate of {found.rate:.1%} the former flags {_of(by[f'{best}.{flagged}'])}."
        )
    held = {name: by[f"{name}.false_positives"] for name in evidence.names if f"{name}.false_positives" in by}
    if held:
        most = max(held, key=lambda name: held[name].value or 0.0)
        said.append(
            f"Of {what} never trained that set no threshold, `{evidence.known[most]}` flags most, {_of(held[most])}; {found.rate:.1%} was aimed at."
        )
    if found.rate > rate:
        said.append(f"So few calibration works cannot hold a rate of {rate:.1%}: {int(np.ceil(1 / rate)) - 1} are needed.")
    return said


def _of(metric: Metric) -> str:
    return f"{round((metric.value or 0) * metric.n)} of {metric.n} (95 % interval {metric.low or 0:.0%} to {metric.high or 0:.0%})"
