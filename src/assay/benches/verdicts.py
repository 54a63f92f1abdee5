"""What a bench of erasers concludes from its shares: who comes as near to retraining as the bar asks, and who ranks first on average.

Shares are of images: `target` of those asked for the concept that still show it, `rest` of those asked for anything else that show what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

NEAR = 0.10
"""The target may stay this far above the reference's, in shares."""
COST = 0.05
"""Everything else may fall by this much below the base's."""
ROUNDING = 1e-9
"""Shares that meet a bar exactly meet it."""


class Shares(NamedTuple):
    """Of one model."""

    target: float
    """Of images asked for the concept: those that show it."""
    rest: float
    """Of images asked for anything else: those that show what was asked."""
    other: float | None = None
    """Of the same images, judged by the other of title and style, where that is judged beside."""


class Rank(NamedTuple):
    """Mean ranks of one eraser; 1 is best."""

    method: str
    """Its name."""
    target: float
    """By what is left of the target; less is better."""
    rest: float
    """By what is left of everything else; more is better."""
    concepts: int
    """How many concepts the means are over."""


def like_retraining(
    erasers: Mapping[str, Shares | None], base: Shares, reference: Shares, *, near: float = NEAR, cost: float = COST
) -> dict[str, tuple[bool, bool]]:
    """Say of every eraser whether it reaches the reference on the target, and whether it spares everything else.

    Below the reference counts as reaching it: less of the target is left than where it was never learned.

    Args:
        erasers: method -> shares; None where it failed, which meets neither bar.
        base: of the model as it is.
        reference: of the model trained without the concept.
        near: how far above the reference the target may stay.
        cost: how far below the base everything else may fall.

    Returns:
        Method -> (the target is at most `near` above the reference's, everything else, in title and in style, at most `cost` below the base's).
    """
    return {
        method: (False, False) if shares is None else (shares.target - reference.target <= near + ROUNDING, fall(base, shares) <= cost + ROUNDING)
        for method, shares in erasers.items()
    }


def fall(base: Shares, shares: Shares) -> float:
    """Return by how much everything else is below the base's: the larger fall of title and style."""
    return max(base.rest - shares.rest, -1.0 if base.other is None or shares.other is None else base.other - shares.other)


def comparable(concepts: Mapping[str, Mapping[str, Shares | None]]) -> dict[str, dict[str, Shares | None]]:
    """Return the largest part in which every eraser was measured on every concept, by erasers times concepts, then by concepts.

    Ranks and means over other concepts are no comparison: an eraser that met only easy ones, or few rivals, would come out first.

    Args:
        concepts: concept -> method -> shares; None where the method failed, which counts as measured.

    Returns:
        The same, of that part; empty where no two erasers share a concept.
    """
    sets: set[frozenset[str]] = set()
    for erasers in concepts.values():
        own = frozenset(erasers)
        sets |= {own, *(own & other for other in sets)}
    blocks = [(methods, [name for name, erasers in concepts.items() if methods <= set(erasers)]) for methods in sets if len(methods) > 1]
    if not blocks:
        return {}
    methods, names = max(blocks, key=lambda block: (len(block[0]) * len(block[1]), len(block[1]), sorted(block[0])))
    return {name: {method: shares for method, shares in concepts[name].items() if method in methods} for name in names}


def mean_ranks(concepts: Mapping[str, Mapping[str, Shares | None]]) -> list[Rank]:
    """Rank the erasers on every concept and average.

    Equal shares share the mean of their ranks. An eraser that failed on a concept ranks last on it, beside others that failed. Means compare where
    all were measured on the same concepts (`comparable`).

    Args:
        concepts: concept -> method -> shares; None where the method failed. Methods that were not measured are left out.

    Returns:
        A row a method, by the sum of its two mean ranks.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for erasers in concepts.values():
        left = [np.inf if shares is None else round(shares.target, 9) for shares in erasers.values()]
        lost = [np.inf if shares is None else -round(shares.rest, 9) for shares in erasers.values()]
        for method, *ranks in zip(erasers, rankdata(left), rankdata(lost), strict=True):
            found.setdefault(method, []).append((float(ranks[0]), float(ranks[1])))
    rows = [Rank(method, float(np.mean(ranks, 0)[0]), float(np.mean(ranks, 0)[1]), len(ranks)) for method, ranks in found.items()]
    return sorted(rows, key=lambda row: (row.target + row.rest, row.method))


def normalised(distance: float, floor: float | None, ceiling: float | None) -> float | None:
    """Return (distance - floor) / (ceiling - floor): 0 at the floor, 1 at the ceiling; None where either is unknown or nothing lies between them."""
    if floor is None or ceiling is None or ceiling - floor <= ROUNDING:
        return None
    return (distance - floor) / (ceiling - floor)
