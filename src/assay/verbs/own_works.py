"""Somebody's own works beside works of known standing: one table, as an audit asks for it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from assay.errors import BadInput, Missing
from assay.memorization.mine import MARK
from assay.noise import derive
from assay.record import Record, Table
from assay.works import Works
from assay.works.clusters import close_pairs, clusters, firsts, thumbnails
from assay.works.importing import import_works

LICENCE = "All rights reserved"
"""Of own works that state none."""
SIDE = 64
"""Side in pixels at which works are compared."""


class Gathered(NamedTuple):
    """Own works and others in one table."""

    works: Works
    """Others first; own works declare `mine`."""
    aside: list[tuple[str, str]]
    """Names and reasons of what could not be read."""
    untitled: int
    """Own works whose caption is their file's name."""
    twins: int
    """Others left out, because an own work is the same picture or nearly so."""
    alike: int = 0
    """Works given as never seen that were left out, because another of them is nearly the same."""


def gathered(mine: str | Path | Works, world: Works | None, unseen: str | Path | Works | None) -> Gathered:
    """Put own works beside works that a model never saw and, where they are known, its members.

    Args:
        mine: a folder of pictures or whatever `assay works import` reads; a work without a caption takes its file's name.
        world: works of declared standing: members, calibration and holdout.
        unseen: works that the model never saw; they take the place of the world's, one half as calibration, one of each set of near-duplicates.

    Raises:
        Missing: nothing says which works the model never saw.
        BadInput: nothing can be read.
    """
    own, aside = _own(mine)
    alike, others = 0, [] if world is None else [row | {"attributes": sorted(row["attributes"].items())} for row in world]
    if unseen is not None:
        others = [_without_subset(row) for row in others if row["split"] == "member" and row["copies"]]
        never = Works.read(unseen) if isinstance(unseen, str | Path) else unseen
        single = firsts(clusters(thumbnails(never.pixels(SIDE)))).tolist()
        alike = len(never) - len(single)
        for place, index in enumerate(sorted(single, key=lambda index: derive("never trained", never.column("id")[index]))):
            row = never[index]
            others.append(
                _without_subset(row | {"attributes": sorted(row["attributes"].items()), "split": ("calibration", "holdout")[place % 2], "copies": 0})
            )
    if not any(row["split"] == "calibration" for row in others):
        raise Missing(
            "Nothing says which works this model never saw, so that no likeness can be called suspicious.",
            "Give such works, of the same kind as yours, with `--unseen`; `assay works import` makes them from a folder.",
        )
    rest = Works.from_rows(others)
    features = thumbnails(np.concatenate([rest.pixels(SIDE), own.pixels(SIDE)]))
    pairs = close_pairs(features)
    twins = {int(one) for one, other in pairs if one < len(rest) <= other}
    left = [row for index, row in enumerate(others) if index not in twins]
    rows = [*left, *(row | {"attributes": sorted({**row["attributes"], MARK: "yes"}.items()), "split": None, "copies": None} for row in own)]
    untitled = sum(row["attributes"].get("caption") == "from the file name" for row in own)
    return Gathered(Works.from_rows(rows), aside, untitled, len(twins), alike)


def noted(record: Record, own: Gathered) -> dict[str, Any]:
    """Return what a record gains that says how own works were read."""
    told = []
    if own.aside:
        told.append(f"Set aside because they could not be read, each with its reason: {len(own.aside)}.")
    if own.untitled:
        told.append(f"Asked for by their files' names, because they have no caption: {own.untitled}.")
    if own.twins:
        told.append(f"Works of known standing left out, because a work of yours is the same picture or nearly so: {own.twins}.")
    if own.alike:
        told.append(f"Works never seen left out, because another of them is the same picture or nearly so: {own.alike}.")
    aside = [Table(title="Set aside", columns=["work", "reason"], rows=[list(row) for row in own.aside[:200]])] if own.aside else []
    return {"findings": [*record.findings, *told], "tables": [*record.tables, *aside], "quarantined": len(own.aside)}


def _own(mine: str | Path | Works) -> tuple[Works, list[tuple[str, str]]]:
    if isinstance(mine, Works):
        return mine, []
    with TemporaryDirectory() as folder:
        try:
            report = import_works(Path(mine), Path(folder) / "works", license=LICENCE, titled=True)
        except BadInput as error:
            hint = "Give a folder of pictures, or works that `assay works import` made, which says of each why it cannot be read."
            raise BadInput(error.message, hint) from error
        works = Works.read(Path(folder) / "works")
    ids = works.column("id")
    return works.take([index for index, name in enumerate(ids) if ids.index(name) == index]), list(report.reasons)


def _without_subset(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"attributes": [pair for pair in row["attributes"] if pair[0] != "subset"]}
