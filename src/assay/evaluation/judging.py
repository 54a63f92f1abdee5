"""How far a judge can be trusted: whether its confidence is its accuracy, and whether two judges agree beyond chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from assay.errors import Misconfigured
from assay.evaluation.intervals import wilson


class Bin(NamedTuple):
    """Verdicts of about the same confidence."""

    confidence: float
    """Mean probability of the class named first."""
    accuracy: float
    """Share of them that are right."""
    low: float
    """Lower end of its interval (Wilson's, 95 %)."""
    high: float
    """Upper end."""
    n: int
    """How many."""


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> list[Bin]:
    """Return the points of a reliability diagram, in bins of equally many verdicts (Niculescu-Mizil and Caruana 2005; Nguyen and O'Connor 2015).

    Args:
        confidence: probability of the class named first: (n,).
        right: whether it is the true one: bool, (n,).
        bins: how many, at most one a verdict.

    Raises:
        Misconfigured: the two differ in length, or there are no verdicts.
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, bool)
    if confidence.shape != right.shape or not len(right):
        raise Misconfigured(f"There are {len(confidence)} confidences for {len(right)} verdicts.", "Give one for each, and at least one.")
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(right)))
    return [Bin(float(confidence[rows].mean()), float(right[rows].mean()), *wilson(int(right[rows].sum()), len(rows)), len(rows)) for rows in parts]


def calibration_error(points: list[Bin]) -> float:
    """Return the expected calibration error: |accuracy - confidence|, weighted by the verdicts in each bin (Guo et al. 2017, Eq. 3)."""
    return sum(point.n * abs(point.accuracy - point.confidence) for point in points) / sum(point.n for point in points)


def kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Return Cohen's kappa of two judges' namings (Cohen 1960): 1 where they always name the same, 0 where no more often than by chance.

    Args:
        first: what one judge names: (n,).
        second: what the other names: (n,).

    Raises:
        Misconfigured: the two differ in length, or there are none.
    """
    one, other = (np.array([str(name) for name in names]) for names in (first, second))
    if one.shape != other.shape or not len(one):
        raise Misconfigured(f"There are {len(one)} and {len(other)} namings.", "Give both judges the same images, at least one.")
    same = float((one == other).mean())
    chance = sum(float((one == name).mean() * (other == name).mean()) for name in np.union1d(one, other))
    return 1.0 if chance == 1 else (same - chance) / (1 - chance)
