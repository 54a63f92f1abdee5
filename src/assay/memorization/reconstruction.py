"""From distances of what was filled in to a record: what every score tells, the nearest reconstructions, and what that does and does not say."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from assay.memorization.separation import findings, separate
from assay.memorization.verdicts import Evidence, canaries
from assay.record import Record, Table
from assay.works import Works

NAMES = {
    "caption": "under the caption",
    "caption.any": "under the caption, nearest of all draws",
    "caption.nearer": "under the caption, over the nearest other work",
    "nothing": "under no caption",
    "nothing.any": "under no caption, nearest of all draws",
    "nothing.nearer": "under no caption, over the nearest other work",
}
"""Scores: as metrics name them -> as people do."""

SHOWS_NOT = [
    "A hidden part that symmetry, an empty ground or a known pattern tells is filled in without memory of the work. Calibration works carry that "
    "too, so it raises thresholds; for one work it is no proof.",
    "What a model that never saw the work would fill in is not part of this audit: there is no counterfactual.",
    "The nearest of all draws is chosen with the work in hand: a bound on what an attacker could find, not what one finds.",
    "Distances are of pixels in the hidden part, after the autoencoder; they hold for this mask, these works and this size.",
    "A work that is not filled in may still be memorised: other masks and more draws were not tried.",
    "Of several scores the best is named; its interval is not widened for that choice.",
]


class Seen(NamedTuple):
    """Of every work asked, how near what was filled in came."""

    caption: np.ndarray
    """Distance under the caption, of the nearest draw that was kept: (n,)."""
    nothing: np.ndarray
    """The same under no caption: (n,)."""
    gap: np.ndarray
    """Distance of the nearest other training work: (n,)."""
    neighbour: np.ndarray
    """Its row in the table: (n,)."""


def witness(works: Works, evidence: Evidence, seen: Seen, settings: dict[str, Any], ruled: bool) -> tuple[Record, list[int]]:
    """Write the record.

    Args:
        works: the table.
        evidence: groups, works and scores.
        seen: distances behind the scores.
        settings: as used.
        ruled: whether the model carries a rule of guidance.

    Returns:
        The record, and the places of the works whose pictures its table shows, the nearest first.
    """
    evidence = evidence._replace(known=NAMES)
    about: dict[str, Any] = {"copies": settings["copies"], "rate": settings["false_positive_rate"], "what": "works"}
    found = separate(evidence, **about)
    by_dose, table, curve = canaries(evidence, found.never)
    of = {row: group for group in evidence.groups for row in evidence.rows(group.kind, arm=group.arm, dose=group.dose)}
    order = np.argsort(-evidence.scores["caption.nearer"], kind="stable").tolist()
    chosen = [row for row in order if of[row].kind != "calibration"][: settings["matches"]]
    lines = []
    for place, row in enumerate(chosen, start=1):
        work, other = works[evidence.asked[row]], works[int(seen.neighbour[row])]
        pictures = [{"picture": f"filled-{place}-{name}.png"} for name in ("work", "shown", "caption", "nothing", "neighbour")]
        flags = [name for name, limit in found.thresholds.items() if evidence.scores[name][row] > limit]
        distances = [round(float(values[row]), 4) for values in (seen.caption, seen.nothing, seen.gap)]
        about_work = [work["title"] or work["id"][:12], work["creator"] or "", of[row].words, other["title"] or other["id"][:12]]
        lines.append([*pictures, *about_work, *distances, f"{len(flags)} of {len(found.thresholds)}"])
    heads = ["work", "shown to the model", "filled in under its caption", "filled in under none", "nearest other work", "title", "creator", "of"]
    heads += ["the other's title", "distance, caption", "distance, none", "distance of the other work", "flagged by"]
    said = findings(evidence, found, **about)
    nearer = seen.caption[evidence.rows("calibration")] < seen.nothing[evidence.rows("calibration")]
    said.append(f"The caption brings what is filled in nearer for {nearer.sum()} of {len(nearer)} calibration works, which the model never saw.")
    if ruled:
        said.append("The model carries a rule of guidance; works were filled in by plain sampling, which does not see the rule.")
    record = Record(
        command="audit",
        method="inpainting",
        question="Which works does the model fill in as they were, when a part of them is hidden from it?",
        given=settings,
        resolved=settings | {"rate": round(found.rate, 6)},
        metrics=found.metrics + by_dose,
        findings=said,
        shows_not=SHOWS_NOT,
        tables=[
            found.table,
            *([table] if table else []),
            *([Table(title="The nearest reconstructions, against the nearest other work", columns=heads, rows=lines)] if lines else []),
        ],
        curves=[curve] if curve else [],
    )
    return record, chosen
