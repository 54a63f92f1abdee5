"""From scores of prompts to a record: what every detector tells, the most suspicious captions, and what that does and does not say."""

from __future__ import annotations

from typing import Any, NamedTuple

from assay.memorization.separation import findings, separate
from assay.memorization.verdicts import Evidence, canaries
from assay.record import Record, Table
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
    "one_step": "distance of one step from its noise",
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
    about: dict[str, Any] = {"copies": settings["copies"], "rate": settings["false_positive_rate"], "what": "captions"}
    found = separate(evidence, **about)
    by_dose, table, curve = canaries(evidence, found.never)
    tables = [found.table, *([table] if table else []), *([_captions(works, evidence, shown, found.thresholds)] if shown else [])]
    said = findings(evidence, found, **about)
    if ruled:
        said.append("The model carries a rule of guidance; prompts were sampled by plain guidance, and detectors do not see the rule.")
    return Record(
        command="audit",
        method="detectors",
        question="Which captions bring out copies, by what they do to the model, without looking at the works?",
        given=settings,
        resolved=settings | {"rate": round(found.rate, 6)},
        metrics=found.metrics + by_dose,
        findings=said,
        shows_not=SHOWS_NOT,
        tables=tables,
        curves=[curve] if curve else [],
    )


def _captions(works: Works, evidence: Evidence, shown: list[Shown], thresholds: dict[str, float]) -> Table:
    of = {row: group for group in evidence.groups for row in evidence.rows(group.kind, arm=group.arm, dose=group.dose)}
    lines = []
    for place, (row, marked, heaviest) in enumerate(shown, start=1):
        flags = sum(float(evidence.scores[name][row]) > limit for name, limit in thresholds.items())
        pictures = [{"picture": f"prompt-{place}-{what}.png"} for what in ("output", "region", "work")]
        scores = [round(float(evidence.scores[name][row]), 3) for name in ("entropy_d", "magnitude", "masked_magnitude", "bright_ending")]
        work = works[evidence.asked[row]]
        lines.append([*pictures, marked, heaviest, of[row].words, work["creator"] or "", *scores, f"{flags} of {len(thresholds)}"])
    heads = ["output", "bright ending", "work", "caption, triggers in brackets", "heaviest tokens", "of", "creator"]
    heads += [NAMES[name] for name in ("entropy_d", "magnitude", "masked_magnitude", "bright_ending")] + ["flagged by"]
    return Table(title="The most suspicious captions: flagged by most detectors, then by attention entropy D", columns=heads, rows=lines)
