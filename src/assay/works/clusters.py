"""Near-duplicate clusters: works closer than a threshold in root mean square error of small thumbnails, joined transitively.

Exact: the pairs are those that comparing every two works would give; `neighbours` says why most need not be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from assay.works.neighbours import LEAF, near

THRESHOLD = 0.05
SIDE = 16


def sums(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Add up uint8 images (n, s, s, 3) over blocks: the narrowest unsigned integers that hold it, (n, side * side * 3); `side` must divide s."""
    count, size = pixels.shape[:2]
    each = size // side
    rows = pixels.reshape(count, side, each, size * 3)
    kind = np.min_scalar_type(255 * each**2)
    lines = reduce(np.add, (rows[:, :, row].astype(kind) for row in range(each))).reshape(count, side, side, each, 3)
    return reduce(np.add, (lines[:, :, :, column] for column in range(each))).reshape(count, side * side * 3)


def thumbnails(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Average uint8 images (n, s, s, 3) over blocks to (n, side * side * 3) float32 in [0, 1]; `side` must divide s."""
    return means(sums(pixels, side), pixels.shape[1] // side)


def means(sums: np.ndarray, each: int) -> np.ndarray:
    """Return the means in [0, 1] of blocks of `each` x `each` bytes from their sums: float32."""
    return sums.astype(np.float32) / each**2 / 255


def close_pairs(features: np.ndarray, threshold: float = THRESHOLD, block: int = LEAF) -> np.ndarray:
    """Return the pairs (i, j), i < j, with root mean square difference below `threshold`: int64, (pairs, 2), sorted.

    Raises:
        Unsupported: there are more pairs than memory should hold.
    """
    return near(features, threshold**2 * features.shape[1], leaf=block)[0]


def join(count: int, pairs: np.ndarray) -> np.ndarray:
    """Label `count` works by the component of `pairs` they belong to: int32, (count,); labels count up in order of first appearance."""
    graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int32)


def declared(clusters: Sequence[int | None]) -> np.ndarray:
    """Label works by the cluster that they declare, each that declares none by itself: int64, (n,)."""
    return np.array([-1 - row if cluster is None or cluster < 0 else cluster for row, cluster in enumerate(clusters)], np.int64)


def firsts(labels: np.ndarray) -> np.ndarray:
    """Return the first place of every label, ascending: of near-duplicates, which are no independent works, one each."""
    return np.sort(np.unique(labels, return_index=True)[1])


def averaged(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the means of rows (n, ...) with the same label, in order of labels: float64, (labels, ...)."""
    _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    total = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(total, places, values)
    return total / counts.reshape(-1, *[1] * (values.ndim - 1))


def clusters(features: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Label works by near-duplicate cluster: int32, (n,); labels count up in order of first appearance."""
    return join(len(features), close_pairs(features, threshold))
