"""Which families a reference can speak for: those that a model which never saw them cannot draw.

Perfect erasure of a family is known from a model trained without it, and only if that model then fails where the base succeeds: where few works are
left out, works like them and what the text encoder knows make up for them. A family is admitted where accuracy falls by a least amount; the interval
of the fall is Newcombe's hybrid score interval, which holds at few images and at none right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from assay.errors import Misconfigured
from assay.evaluation.intervals import Interval, wilson

LEAST = 0.4
"""Fall of accuracy, in shares, from which a family is admitted."""


@dataclass(frozen=True)
class Admission:
    """What is found of one family."""

    family: str
    """Its name."""
    base: float
    """Share of the base's images that show what was asked for."""
    reference: float
    """The same of the reference, which never saw the family."""
    fall: float
    """Base less reference."""
    interval: Interval
    """Of the fall."""
    images: tuple[int, int]
    """Images of the base and of the reference."""
    admitted: bool
    """Whether the fall reaches the least."""


def difference_interval(successes: int, n: int, other_successes: int, other_n: int, level: float = 0.95) -> Interval:
    """Return the interval for the difference of two independent proportions, first less other (Newcombe 1998, Stat. Med. 17:873, method 10).

    With Wilson's intervals (l, u) of the first proportion p and (m, v) of the other q it is

        d - sqrt((p - l)^2 + (v - q)^2)   to   d + sqrt((u - p)^2 + (q - m)^2),   d = p - q.

    Raises:
        Misconfigured: a proportion has no observations.
    """
    if not n or not other_n:
        raise Misconfigured("A share of no images has no difference to another.", "Generate at least one image.")
    p, q = successes / n, other_successes / other_n
    (low, high), (other_low, other_high) = wilson(successes, n, level), wilson(other_successes, other_n, level)
    return p - q - float(np.hypot(p - low, other_high - q)), p - q + float(np.hypot(high - p, q - other_low))


def admit(
    base: Mapping[str, Sequence[bool]], reference: Mapping[str, Sequence[bool]], *, least: float = LEAST, level: float = 0.95
) -> list[Admission]:
    """Say of every family whether the reference fails where the base succeeds.

    Args:
        base: family -> for every image of the base, whether the judge saw in it what was asked for.
        reference: the same of the reference.
        least: fall from which a family is admitted.
        level: of the intervals.

    Returns:
        A row a family, the largest fall first.

    Raises:
        Misconfigured: the two do not speak of the same families, or one has no images.
    """
    if base.keys() != reference.keys():
        odd = ", ".join(sorted(base.keys() ^ reference.keys()))
        raise Misconfigured(f"Base and reference were not asked for the same families: {odd}.", "Judge both on all of them.")
    rows = []
    for family in base:
        counts = [(int(sum(right)), len(right)) for right in (base[family], reference[family])]
        interval = difference_interval(*counts[0], *counts[1], level)
        shares = [right / n for right, n in counts]
        fall = counts[0][0] * counts[1][1] - counts[1][0] * counts[0][1]  # whole numbers, so that a fall of exactly the least is admitted
        admitted = fall >= least * counts[0][1] * counts[1][1] - 1e-9
        rows.append(Admission(family, shares[0], shares[1], shares[0] - shares[1], interval, (counts[0][1], counts[1][1]), admitted))
    return sorted(rows, key=lambda row: (-row.fall, row.family))
