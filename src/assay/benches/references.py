"""The chapter of references: models trained without something, asked for it beside the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assay.record import Metric, Record, Table

QUESTION = "What does a model draw when asked for what it was never shown, and which families can such a model speak for?"


def read(figures: Mapping[str, Any]) -> Record:
    """Make the chapter from what `benchmarks/references.py` wrote.

    Args:
        figures: its JSON file.
    """
    metrics, findings, admitted, kept, copies, alone = [], [], [], [], [], []
    base = figures.get("base", {"canaries": []})["canaries"]
    copies += [["base", row["name"].removeprefix("memorised."), _share(row), row["n"]] for row in base if row["value"] is not None]
    metrics += [Metric.model_validate(row | {"name": f"base.{row['name']}"}) for row in base]
    for name, reference in figures["references"].items():
        stays = {row["name"]: row for row in reference["shown to both"]}
        kept.append([name, reference["training"]["steps"], *(_share(stays.get(column)) for column in KEPT), *_distance(stays)])
        copies += [[name, row["name"].removeprefix("memorised."), _share(row), row["n"]] for row in reference["canaries"] if row["value"] is not None]
        metrics += [Metric.model_validate(row | {"name": f"{name}.{row['name']}"}) for row in (*reference["shown to both"], *reference["canaries"])]
        rows = reference.get("families", [])
        for row in rows:
            fall = f"{row['fall']:.2f} ({row['interval'][0]:.2f} to {row['interval'][1]:.2f})"
            admitted.append([name, row["family"], row["images"][0], row["base"], row["reference"], fall, "yes" if row["admitted"] else "no"])
            ends = {"low": row["interval"][0], "high": row["interval"][1]}
            metrics.append(Metric(name=f"{name}.fall.{row['family'].replace(' ', '_')}", value=row["fall"], n=row["images"][0], **ends))
        if rows:
            names = [row["family"] for row in rows if row["admitted"]]
            findings.append(
                f"{name}: {len(names)} of {len(rows)} families fall by at least 40 points and can be targets: {', '.join(names) or 'none'}."
            )
        exchanged = {row["name"]: row for row in reference.get("exchanged", [])}
        if exchanged:
            auc, sides = exchanged["exchanged.auc"], [exchanged[f"exchanged.rise.{side}_alone"] for side in ("base", "reference")]
            metrics += [Metric.model_validate(row | {"name": f"{name}.{row['name']}"}) for row in exchanged.values()]
            alone.append([name, *(f"{row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}), n = {row['n']}" for row in sides), _area(auc)])
            findings.append(
                f"{name}: works that the base alone was shown, once an epoch, are told from works that this model alone was shown by the difference "
                f"of their losses with AUC {_area(auc)}; chance is 0.5."
            )
    if figures["not trained"]:
        findings.append(f"Not trained, so nothing here speaks of them: {', '.join(figures['not trained'])}.")
    return Record(
        command="bench",
        question=QUESTION,
        metrics=metrics,
        findings=findings,
        tables=[
            Table(
                title="Families: share of images that show any of them",
                columns=["reference", "family", "images", "base", "reference's", "fall", "admitted"],
                rows=admitted,
            ),
            Table(
                title="Pairs that both were shown once",
                columns=["reference", "steps", "style, base", "style", "title, base", "title", "KID to the base", "beside"],
                rows=kept,
            ),
            Table(title="Works that come out of the model, by copies in the base", columns=["model", "works", "share", "n"], rows=copies),
            *([Table(title="Rise of log loss from base to reference, of works that one of both saw", columns=ALONE, rows=alone)] if alone else []),
        ],
        shows_not=[
            "More than one seed of each training: intervals are over prompts or works.",
            "That a concept is gone from the text encoder, which all trainings share.",
            "Families whose titles the judge does not know; they are left out of the table.",
            "Whether ordinary works are memorised more than in the base: thresholds are set anew on what a reference draws for calibration "
            "works, and it draws those of families that it never saw badly.",
        ],
    )


ALONE = ["reference", "the base alone saw", "the reference alone saw", "AUC"]
KEPT = ("base.shown.style", "shown.style", "base.shown.title", "shown.title")


def _share(row: Mapping[str, Any] | None) -> str:
    if row is None or row.get("value") is None:
        return ""
    return f"{row['value']:.0%} ({row['low']:.0%} to {row['high']:.0%})"


def _area(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _distance(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    distance, floor = rows.get("kid.judge"), rows.get("kid.judge.floor")
    if distance is None or floor is None:
        return ["", ""]
    return [f"{distance['value']:.2g}", f"halves of the base: {floor['value']:.2g} ({floor['low']:.2g} to {floor['high']:.2g})"]
