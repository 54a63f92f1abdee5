"""All pairs of points closer than a radius: exactly those, without comparing every pair.

The first stage compares codes: a point's coordinates along a few orthonormal directions, and the length of what they leave out. Neither can be
farther apart than the points are (Bessel's inequality, the triangle inequality), so that whatever the directions no pair is lost; those along
which the points vary most let the fewest pairs through. Codes are sorted into the leaves of a k-d tree (Bentley 1975); leaves whose boxes are
apart are skipped, and the rest are compared by matrix products. The second stage computes the distances of what got through, in float64.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from assay.errors import Unsupported

DIRECTIONS = 24
LEAF = 512
SAMPLE = 4096
ROWS = 4096
COLUMNS = 2048
MOST = 100_000_000
"""Pairs that are listed at most: 2.4 GB."""
CORES = min(8, os.cpu_count() or 1)


class Points(Protocol):
    """Points in rows, in memory or on disk: float32, (n, d)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points and of dimensions."""
        ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """Return some points."""
        ...


def near(
    points: Points, limit: float, *, known: int = 0, leaf: int = LEAF, progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of points whose squared distance is below `limit`, but not those of which both are among the first `known`.

    Args:
        points: n points of d dimensions. A pass over all of them reads slices in order; what the first stage lets through is read by rows.
        limit: squared Euclidean distance that pairs are below.
        known: leave out pairs of which both points are among this many first ones: they were compared before.
        leaf: points in a leaf of the tree at most. The result does not depend on it.
        progress: called with leaves done and leaves in all.

    Returns:
        Pairs (i, j), i < j, sorted: int64, (pairs, 2). And their squared distances: float64, (pairs,). Besides them, 400 bytes a point are held.

    Raises:
        Unsupported: there are more pairs than memory should hold.
    """
    count = points.shape[0]
    found, distances, total = [np.zeros((0, 2), np.int64)], [np.zeros(0)], 0
    for candidates in batched(possible(points, limit, known, leaf, progress) if known < count else iter(())):
        squares = ((points[candidates[:, 0]].astype(np.float64) - points[candidates[:, 1]]) ** 2).sum(1)
        found.append(np.sort(candidates[squares < limit], axis=1))
        distances.append(squares[squares < limit])
        total += len(found[-1])
        bounded(total)
    pairs, squares = np.concatenate(found), np.concatenate(distances)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], squares[order]


def bounded(pairs: int) -> None:
    """Stop before a list of pairs outgrows the memory, as it does where thousands of works are the same.

    Raises:
        Unsupported: there are more than `MOST`.
    """
    if pairs > MOST:
        raise Unsupported(f"There are more than {MOST:,} pairs of near-duplicates.", "Lower the threshold, or remove works that are all the same.")


def batched(candidates: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Regroup pairs, some or many at a time, into `ROWS` at a time."""
    held, count = [np.zeros((0, 2), np.int64)], 0
    for pairs in candidates:
        held.append(pairs)
        count += len(pairs)
        if count >= ROWS:
            whole = np.concatenate(held)
            full = count - count % ROWS
            yield from (whole[start : start + ROWS] for start in range(0, full, ROWS))
            held, count = [whole[full:]], count - full
    yield np.concatenate(held)


def possible(points: Points, limit: float, known: int, leaf: int, progress: Callable[[int, int], None] | None) -> Iterator[np.ndarray]:
    """Yield the pairs that the first stage lets through, in no order."""
    codes = encode(points, *directions(points))
    # What rounding can do, for M^2 the largest squared length, k coordinates, and 2^-24 a step of float32: the products in `apart` are off by at most
    # 4 (k + 3) M^2 steps, the codes themselves and the length of the rest by less than as much again.
    limit += 8 * (codes.shape[1] + 4) * 2.0**-24 * float(np.einsum("ij,ij->i", codes, codes).max())
    new = grow(codes[known:], np.arange(known, len(codes)), leaf)
    sides = [new] if known == 0 else [new, grow(codes[:known], np.arange(known), leaf)]
    del codes
    for turn, those in enumerate(sides):
        for done, pairs in meet(new, those, limit):
            yield pairs
            if progress and not len(pairs):
                progress(turn * len(new.cuts) + done, len(sides) * len(new.cuts))


def directions(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre of a sample and orthonormal directions along which it varies most: float64, (d,) and (d, k).

    Subspace iteration from random directions (Halko, Martinsson and Tropp 2011, Algorithm 4.4). That they are orthonormal makes the first stage
    lossless; that they are the best only makes it quick, so a few iterations do.
    """
    count, dimensions = points.shape
    sample = points[np.arange(0, count, -(-count // SAMPLE))].astype(np.float64)
    centre = sample.mean(0)
    sample -= centre
    start = np.random.default_rng(0).standard_normal((dimensions, min(DIRECTIONS, dimensions)))
    for _ in range(4):
        start = np.linalg.qr(sample.T @ (sample @ start))[0]
    return centre, start


def encode(points: Points, centre: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return coordinates along the directions and the length of the rest: float32, (n, k + 1)."""
    count = points.shape[0]
    codes = np.empty((count, directions.shape[1] + 1), np.float32)

    def some(start: int) -> None:
        rows = points[slice(start, start + ROWS)].astype(np.float64) - centre
        along = rows @ directions
        rest = np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", along, along)
        codes[start : start + ROWS, :-1] = along
        codes[start : start + ROWS, -1] = np.sqrt(rest.clip(0))

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(some, range(0, count, ROWS)))
    return codes


@dataclass(frozen=True)
class Leaves:
    """Points sorted into boxes."""

    rows: np.ndarray
    """Which points, leaf after leaf: int64, (n,)."""
    codes: np.ndarray
    """Their codes: float32, (n, k)."""
    cuts: np.ndarray
    """Where leaves begin: int64, (leaves,)."""
    low: np.ndarray
    """Lowest corners of their boxes: float32, (leaves, k)."""
    high: np.ndarray
    """Highest corners."""


def grow(codes: np.ndarray, rows: np.ndarray, size: int) -> Leaves:
    """Halve points at the median of the coordinate that varies most until at most `size` are together."""
    codes, rows = codes.copy(), rows.copy()
    cuts, parts = [], [(0, len(codes))]
    while parts:
        start, stop = parts.pop()
        if stop - start <= size:
            cuts.append(start)
            continue
        middle = (stop - start) // 2
        order = np.argpartition(codes[start:stop, codes[start:stop].var(0).argmax()], middle)
        codes[start:stop], rows[start:stop] = codes[start:stop][order], rows[start:stop][order]
        parts += [(start + middle, stop), (start, start + middle)]
    return Leaves(rows, codes, np.array(cuts), np.minimum.reduceat(codes, cuts), np.maximum.reduceat(codes, cuts))


def meet(these: Leaves, those: Leaves, limit: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yield pairs of these with those whose codes are closer than the root of `limit`, after the number of leaves done; none at a leaf's end.

    Where both are the same, each pair comes once.
    """
    ends, others = np.append(these.cuts[1:], len(these.rows)), np.append(those.cuts[1:], len(those.rows))
    for leaf, (start, stop) in enumerate(zip(these.cuts.tolist(), ends.tolist(), strict=True)):
        first = leaf if these is those else 0
        low, high = these.low[leaf], these.high[leaf]
        close = first + np.flatnonzero(gap(those.low[first:], those.high[first:], low, high) < limit)
        spots = np.concatenate([np.zeros(0, np.int64), *map(np.arange, those.cuts[close].tolist(), others[close].tolist())])
        codes = those.codes[spots]
        inside = gap(codes, codes, low, high) < limit
        spots, codes = spots[inside], codes[inside]
        for column in range(0, len(spots), COLUMNS):
            one, other = apart(these.codes[start:stop], codes[column : column + COLUMNS], limit)
            one, other = start + one, spots[column + other]
            if these is those:
                one, other = one[one < other], other[one < other]
            if len(one):
                yield leaf, np.stack([these.rows[one], those.rows[other]], axis=1)
        yield leaf + 1, np.zeros((0, 2), np.int64)


def gap(low: np.ndarray, high: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Return the squared distances of boxes (n, k) from one box (k,): float32, (n,)."""
    apart = np.maximum(low - highest, lowest - high).clip(0)
    return np.einsum("ij,ij->i", apart, apart)


def apart(these: np.ndarray, those: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return which codes of these and of those are closer than the root of `limit`, by |a|^2 + |b|^2 - 2ab as one product."""
    one, other = (np.einsum("ij,ij->i", codes, codes)[:, None] for codes in (these, those))
    left = np.concatenate([these, one, np.ones_like(one)], axis=1)
    right = np.concatenate([-2 * those, np.ones_like(other), other], axis=1)
    hits = np.flatnonzero((left @ right.T) < np.float32(limit))
    return np.divmod(hits, len(those))
