"""Near-duplicate clusters: works closer than a threshold in root mean square error of small thumbnails, joined transitively.

Exact: every pair is compared, in blocks, by the expansion |a - b|^2 = |a|^2 + |b|^2 - 2ab; pairs near the threshold are compared again directly.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

THRESHOLD = 0.05
SIDE = 16


def thumbnails(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Average uint8 images (n, s, s, 3) over blocks to (n, side * side * 3) float32 in [0, 1]; `side` must divide s."""
    count, size = pixels.shape[:2]
    blocks = pixels.reshape(count, side, size // side, side, size // side, 3).astype(np.float32)
    return (blocks.mean(axis=(2, 4)) / 255).reshape(count, -1)


def close_pairs(features: np.ndarray, threshold: float = THRESHOLD, block: int = 2048) -> np.ndarray:
    """Return the pairs (i, j), i < j, with root mean square difference below `threshold`: int64, (pairs, 2), sorted."""
    count, dimensions = features.shape
    limit = threshold**2 * dimensions
    squares = (features.astype(np.float64) ** 2).sum(1)
    slack = 4 * dimensions * 2.0**-24 * squares.max(initial=0.0)  # twice the worst rounding of 2ab in float32
    found = [np.zeros((0, 2), np.int64)]
    for first in range(0, count, block):
        rows = features[first : first + block]
        for second in range(first, count, block):
            products = rows @ features[second : second + block].T
            distances = squares[first : first + block, None] + squares[None, second : second + block] - 2.0 * products
            candidates = np.argwhere(distances < limit + slack) + np.array([first, second])
            candidates = candidates[candidates[:, 0] < candidates[:, 1]]
            for part in np.array_split(candidates, max(1, len(candidates) // 8192)):
                exact = ((features[part[:, 0]].astype(np.float64) - features[part[:, 1]]) ** 2).sum(1)
                found.append(part[exact < limit])
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def join(count: int, pairs: np.ndarray) -> np.ndarray:
    """Label `count` works by the component of `pairs` they belong to: int32, (count,); labels count up in order of first appearance."""
    graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int32)


def clusters(features: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Label works by near-duplicate cluster: int32, (n,); labels count up in order of first appearance."""
    return join(len(features), close_pairs(features, threshold))
