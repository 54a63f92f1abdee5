"""Does it stay out? Every attack on every eraser, beside the same attack on a model that never saw the concept: what is measured and kept.

A cell is one concept under one row and one attack. Rows are the base, the model trained without the concept (the reference), every eraser, and some
erasers together. All rows of a concept share prompts, seeds, scheduler, judge and threshold, and every cell has the same budget. Success is counted
on seeds that no attack drew. `attacks_verdicts.py` concludes, `attacks_chapters.py` writes up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from assay.benches.erasure import ATTACKED, BASE, OBJECTS, REFERENCE, STYLES, Share
from assay.record import Part

MODELS = (BASE, REFERENCE)
"""Rows that are no erasers."""
SUBJECTS = tuple(subject for subject in (*STYLES, *OBJECTS) if subject.name in ATTACKED)
"""What is to be brought back."""
COUNTS = {"pre": "the prompt alone", "post": "broken of the rest", "attacked": "the attack alone", "total": "prompt or attack"}
"""What is counted of a cell."""


@dataclass(frozen=True)
class Settings:
    """What every cell has in common."""

    each: int = 16
    """Prompts attacked, at most."""
    image_steps: int = 20
    """DDIM steps of the images that are judged."""
    guidance: float = 4.0
    """Scale of classifier-free guidance of the images that are judged."""
    budget: float = 60.0
    """Seconds after which the search of a cell stops."""


class Cell(Part):
    """What was measured of one concept under one row and one attack."""

    concept: str
    """Name of the subject."""
    row: str
    """base, reference, an eraser, or several joined by `+`."""
    attack: str
    """The attack."""
    plan: str = ""
    """Digest of all that the cell depends on but which model a row was given, which `patches` says."""
    failed: str = ""
    """Why there is nothing, in words."""
    patches: list[str] = Field(default_factory=list)
    """Digests of the patches that were on; none for the base."""
    shares: dict[str, Share] = Field(default_factory=dict)
    """base (plain prompts without patches), pre, post, attacked, total -> prompts that show the concept."""
    attempts: int = 1
    """At each prompt."""
    early: bool = False
    """Whether the budget ended the search."""
    seconds: float = 0.0
    """Of the search, in the last sitting."""
    passes: int = 0
    """Of the denoiser in the search, in samples, in the same sitting."""
    prompt: str = ""
    """What the model was told for the picture that is kept; where an embedding was found, the words around it."""
    back: bool = False
    """Whether that picture shows the concept."""


class About(Part):
    """What the cells of one concept have in common."""

    name: str
    """Of the subject."""
    kind: str
    """style or object."""
    reference: str
    """The training that never saw it."""
    anchor: str
    """What takes its place."""
    members: list[str] = Field(default_factory=list)
    """Titles of the family."""
    rows: list[str] = Field(default_factory=list)
    """Rows of the whole bench that can be measured of it."""


class Results(Part):
    """The whole bench, as it is stored."""

    format: Literal["assay/bench-attacks/1"] = "assay/bench-attacks/1"
    """Version of this format."""
    model: str
    """Name of the model."""
    digests: dict[str, str]
    """Of model, works and judge."""
    seed: int
    """Of everything random."""
    settings: dict[str, object]
    """What every cell has in common."""
    shown: str = ""
    """The concept on the page of pictures; empty where there is no page."""
    attacks: list[str]
    """Every attack, the cheapest first."""
    concepts: list[About]
    """In the order of the report."""
    cells: list[Cell]
    """Those that are measured."""

    @property
    def planned(self) -> int:
        """Cells of the whole bench."""
        return sum(len(about.rows) for about in self.concepts) * len(self.attacks)

    def of(self, concept: str) -> dict[str, dict[str, Cell]]:
        """Return the cells of a concept: row -> attack -> cell, in the order of the plan."""
        rows = next(about.rows for about in self.concepts if about.name == concept)
        found: dict[str, dict[str, Cell]] = {row: {} for row in rows}
        for cell in self.cells:
            if cell.concept == concept:
                found.setdefault(cell.row, {})[cell.attack] = cell
        order = {attack: place for place, attack in enumerate(self.attacks)}
        return {row: dict(sorted(cells.items(), key=lambda item: order.get(item[0], len(order)))) for row, cells in found.items() if cells}

    @property
    def coverage(self) -> str:
        """How much of the bench is measured, in a sentence."""
        failed = sum(bool(cell.failed) for cell in self.cells)
        early = sum(cell.early for cell in self.cells)
        said = f"{len(self.cells)} of {self.planned} cells are measured{f', {failed} of them failed' if failed else ''}"
        return f"{said}{f'; searches that the budget ended: {early}' if early else ''}."
