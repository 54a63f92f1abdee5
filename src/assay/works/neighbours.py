"""All pairs of points closer than a radius: exactly those, without comparing every pair.

The first stage compares codes: a point's coordinates along a few orthonormal directions, and the length of what they leave out. Neither can be
farther apart than the points are (Bessel's inequality, the triangle inequality), so that whatever the directions no pair is lost; those along
which the points vary most let the fewest pairs through. Codes are sorted into the leaves of a k-d tree (Bentley 1975); leaves whose boxes are
apart are skipped, and the rest are compared by matrix products. The second stage computes the distances of what got through, in float64.

Trees can be kept: points that come later are coded along the same directions and compared with the trees alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from assay.errors import Unsupported

DIRECTIONS = 24
LEAF = 512
TREES = 8
"""Trees of a forest at most; one more, and all are grown into one."""
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


@dataclass(frozen=True)
class Forest:
    """Points that were compared with each other, as trees of codes along the same directions."""

    centre: np.ndarray
    """Origin of the codes: float64, (d,)."""
    directions: np.ndarray
    """Orthonormal: float64, (d, k)."""
    trees: Sequence[Leaves] = ()
    """Together they hold the first points, each once."""

    @property
    def count(self) -> int:
        """How many points they hold."""
        return sum(len(tree.rows) for tree in self.trees)


def near(
    points: Points,
    limit: float,
    *,
    forest: Forest | None = None,
    leaf: int = LEAF,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray, Forest]:
    """Return all pairs of points whose squared distance is below `limit`, but not those of which both are in the forest.

    Args:
        points: n points of d dimensions. A pass over the new ones reads slices in order; what the first stage lets through is read by rows.
        limit: squared Euclidean distance that pairs are below.
        forest: the first points, if any were compared before; it stays as it is.
        leaf: points in a leaf of a tree at most. The result does not depend on it.
        progress: called with leaves done and leaves in all.

    Returns:
        Pairs (i, j), i < j, sorted: int64, (pairs, 2). Their squared distances: float64, (pairs,). And the forest of all points, 110 bytes a point;
        besides the pairs, 400 bytes a point are held meanwhile.

    Raises:
        Unsupported: there are more pairs than memory should hold.
    """
    found, distances, total = [np.zeros((0, 2), np.int64)], [np.zeros(0)], 0
    grown, known = planted(points, forest, leaf), 0 if forest is None else forest.count
    for candidates in batched(possible(grown, limit, progress) if known < grown.count else iter(())):
        squares = ((points[candidates[:, 0]].astype(np.float64) - points[candidates[:, 1]]) ** 2).sum(1)
        found.append(np.sort(candidates[squares < limit], axis=1))
        distances.append(squares[squares < limit])
        total += len(found[-1])
        bounded(total)
    pairs, squares = np.concatenate(found), np.concatenate(distances)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return pairs[order], squares[order], thinned(grown, leaf)


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


def planted(points: Points, forest: Forest | None, leaf: int) -> Forest:
    """Return a forest with a last tree of the points that `forest` does not hold; itself, if it holds all.

    Where it holds less than half of them all trees are grown anew, along directions that suit all points.
    """
    (count, dimensions), known = points.shape, 0 if forest is None else forest.count
    if known == count:
        return forest or Forest(np.zeros(dimensions), np.zeros((dimensions, 0)))
    if forest is not None and 2 * known > count:
        codes = encode(points, forest.centre, forest.directions, known)
        return Forest(forest.centre, forest.directions, [*forest.trees, grow(codes, np.arange(known, count), leaf)])
    centre, along = directions(points)
    codes = encode(points, centre, along)
    parts = [(0, known), (known, count)] if known else [(0, count)]
    return Forest(centre, along, [grow(codes[start:stop], np.arange(start, stop), leaf) for start, stop in parts])


def thinned(forest: Forest, leaf: int) -> Forest:
    """Return a forest of few trees with the same points: of more than `TREES`, one."""
    if len(forest.trees) <= TREES:
        return forest
    codes, rows = (np.concatenate(parts) for parts in zip(*((tree.codes, tree.rows) for tree in forest.trees)))
    return Forest(forest.centre, forest.directions, [grow(codes, rows, leaf)])


def possible(forest: Forest, limit: float, progress: Callable[[int, int], None] | None) -> Iterator[np.ndarray]:
    """Yield the pairs that the first stage lets through, in no order: of points in the last tree with each other and with all others."""
    *others, new = forest.trees
    # What rounding can do, for M^2 the largest squared length, k coordinates, and 2^-24 a step of float32: the products in `apart` are off by at most
    # 4 (k + 3) M^2 steps, the codes themselves and the length of the rest by less than as much again.
    longest = max(float(np.einsum("ij,ij->i", tree.codes, tree.codes).max()) for tree in forest.trees)
    limit += 8 * (new.codes.shape[1] + 4) * 2.0**-24 * longest
    met = [sorted((new, those), key=lambda tree: -len(tree.rows)) for those in [new, *others]]  # the boxes of the larger tree let less through
    total, before = sum(len(larger.cuts) for larger, _ in met), 0
    for larger, smaller in met:
        for done, pairs in meet(larger, smaller, limit):
            yield pairs
            if progress and not len(pairs):
                progress(before + done, total)
        before += len(larger.cuts)


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


def encode(points: Points, centre: np.ndarray, directions: np.ndarray, first: int = 0) -> np.ndarray:
    """Return coordinates along the directions, and the length of the rest, of all points but the first ones: float32, (n - first, k + 1)."""
    count = points.shape[0] - first
    codes = np.empty((count, directions.shape[1] + 1), np.float32)

    def some(start: int) -> None:
        rows = points[slice(first + start, first + start + ROWS)].astype(np.float64) - centre
        along = rows @ directions
        rest = np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", along, along)
        codes[start : start + ROWS, :-1] = along
        codes[start : start + ROWS, -1] = np.sqrt(rest.clip(0))

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(some, range(0, count, ROWS)))
    return codes


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
