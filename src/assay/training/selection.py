"""Which works a training is shown: some left out, repeated ones shown once, members exchanged for works never shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assay.errors import Misconfigured
from assay.noise import numpy_generator
from assay.works import Works
from assay.works.filters import condition

Row = dict[str, Any]


@dataclass(frozen=True)
class Selection:
    """What a training's works differ in from those that the model was trained on. Expressions are those of `works/filters.py`."""

    keep: tuple[str, ...] = ()
    """Keep what fits any of these; everything, if none."""
    drop: tuple[str, ...] = ()
    """Leave out what fits any of these."""
    drop_ids: tuple[str, ...] = ()
    """Leave out these works, by id."""
    once: bool = False
    """Show every work once an epoch, however many copies it has."""
    swap: int = 0
    """Exchange this many works, drawn at random, for as many of the holdout."""

    def __str__(self) -> str:
        """Say it in words, for a manifest."""
        parts = [f"only on {', '.join(self.keep)}"] if self.keep else []
        left = [*self.drop, *([f"{len(self.drop_ids)} works by id"] if self.drop_ids else [])]
        parts += [f"without {', '.join(left)}"] if left else []
        parts += ["with every work shown once an epoch"] if self.once else []
        parts += [f"with {self.swap} works exchanged for {self.swap} of the holdout"] if self.swap else []
        return "; ".join(parts) or "on the same works"


def shown(works: Works) -> Works:
    """Return the works that a training is shown: members with copies."""
    return works.where(_is_shown)


def select(works: Works, selection: Selection, seed: int) -> Works:
    """Return `works` with `split` and `copies` changed, so that a training is shown what `selection` leaves.

    Only works without near-duplicates are exchanged, and no canaries: what is in one training is then wholly out of the other.

    Args:
        works: a table with the columns `split`, `copies` and `cluster`.
        selection: what to change.
        seed: of the exchange.

    Raises:
        Misconfigured: a condition cannot be read, nothing is left, or there are too few works to exchange.
        Missing: a condition fits none of the works shown.
    """
    trained = shown(works)
    keeps, drops = condition(selection.keep, trained), condition(selection.drop, trained)
    ids = set(selection.drop_ids)
    rows = works.rows()

    def wanted(row: Row) -> bool:
        return (not selection.keep or keeps(row)) and not drops(row) and row["id"] not in ids

    splits, copies = [row["split"] for row in rows], [row["copies"] for row in rows]
    for index, row in enumerate(rows):
        if _is_shown(row):
            copies[index] = 0 if not wanted(row) else 1 if selection.once else row["copies"]
    if selection.swap:
        kinds = {row["attributes"].get("subset") for row in rows if _is_shown(row)}
        alone = _without_duplicates(rows)
        ordinary = [
            index
            for index, row in enumerate(rows)
            if alone[index] and wanted(row) and "canary" not in row["attributes"] and row["attributes"].get("subset") in kinds
        ]
        leave = _draw([index for index in ordinary if copies[index] == 1 and splits[index] == "member"], selection.swap, seed, "leave")
        enter = _draw([index for index in ordinary if splits[index] == "holdout"], selection.swap, seed, "enter")
        for index in leave:
            copies[index] = 0
        for index in enter:
            splits[index], copies[index] = "member", 1
    chosen = works.with_columns(split=splits, copies=copies)
    if not any(_is_shown(row) for row in chosen.rows()):
        raise Misconfigured("No works are left to train on.", "Keep more, or drop fewer.")
    return chosen


def differences(before: Works, after: Works) -> list[dict[str, Any]]:
    """List every work that two tables of the same works show differently: id, title, style, and copies an epoch before and after."""
    found = []
    for old, new in zip(before.rows(), after.rows(), strict=True):
        counts = [row["copies"] if _is_shown(row) else 0 for row in (old, new)]
        if counts[0] != counts[1]:
            found.append({"id": old["id"], "title": old["title"], "style": old["style"], "before": counts[0], "after": counts[1]})
    return found


def _is_shown(row: Row) -> bool:
    return row["split"] == "member" and row["copies"] > 0


def _without_duplicates(rows: Sequence[Row]) -> list[bool]:
    sizes: dict[int, int] = {}
    for row in rows:
        sizes[row["cluster"]] = sizes.get(row["cluster"], 0) + 1
    return [row["cluster"] < 0 or sizes[row["cluster"]] == 1 for row in rows]  # -1: never compared with the others


def _draw(candidates: list[int], count: int, seed: int, name: str) -> list[int]:
    if count > len(candidates):
        raise Misconfigured(f"{count} works cannot be exchanged: only {len(candidates)} can {name}.", "Exchange fewer.")
    return numpy_generator(seed, "swap", name).permutation(candidates)[:count].tolist()
