"""How alike two pictures are: tiled l2, perceptual hash, cosine of features; pair by pair and, within bounded memory, all against all.

Distances and similarities depend on the size they are taken at: a threshold for one size, or from one paper, is none for another.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.fft import dctn

from assay.errors import Misconfigured
from assay.evaluation.features import resized

MEMORY = 128 * 2**20
"""Bytes that an intermediate table may take."""


def tiled_l2(first: np.ndarray, second: np.ndarray, tiles: int = 4) -> np.ndarray:
    """Return the tiled l2 distance of pairs of images (n, 3, s, s), in [0, 1] or uint8: float64, (n,).

    The largest, over tiles x tiles equal tiles, of the root mean square difference within the tile (Carlini et al. 2023, Sec. 4.2; 16 tiles): a large
    common background cannot make two pictures alike.
    """
    difference = _tiles(first, tiles) - _tiles(second, tiles)
    return np.sqrt((difference**2).mean(2).max(1))


def tiled_l2_pairs(first: np.ndarray, second: np.ndarray, tiles: int = 4) -> np.ndarray:
    """Return the tiled l2 distances of all pairs of images (n, 3, s, s) and (m, 3, s, s), in [0, 1] or uint8: float64, (n, m).

    By |a - b|^2 = |a|^2 + |b|^2 - 2ab tile by tile; distances below about 1e-7 come out as rounding noise.
    """
    found = np.zeros((len(first), len(second)))
    if not found.size:
        return found
    rows = max(1, MEMORY // (8 * max(len(second), first[0].size)))
    columns = max(1, MEMORY // (8 * first[0].size))
    for right in range(0, len(second), columns):
        b = _tiles(second[right : right + columns], tiles).transpose(1, 0, 2)
        b_squares = (b**2).sum(2)
        for top in range(0, len(first), rows):
            a = _tiles(first[top : top + rows], tiles).transpose(1, 0, 2)
            a_squares = (a**2).sum(2)
            worst = np.zeros((a.shape[1], b.shape[1]))
            for tile in range(len(a)):
                squares = a_squares[tile][:, None] + b_squares[tile] - 2 * (a[tile] @ b[tile].T)
                np.maximum(worst, squares, out=worst)
            found[top : top + rows, right : right + columns] = np.sqrt(worst / a.shape[2])
    return found


def _tiles(images: np.ndarray, tiles: int) -> np.ndarray:
    """Cut images (n, c, s, s), in [0, 1] or uint8, into (n, tiles * tiles, values of a tile) float64 in [0, 1].

    Raises:
        Misconfigured: the tiles would not be equal.
    """
    count, channels, height, width = images.shape
    if height % tiles or width % tiles:
        raise Misconfigured(
            f"An image of {height}x{width} cannot be cut into {tiles}x{tiles} equal tiles.", "Resize it, or choose another number of tiles."
        )
    parts = images.reshape(count, channels, tiles, height // tiles, tiles, width // tiles).transpose(0, 2, 4, 1, 3, 5)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    return parts.reshape(count, tiles * tiles, -1) / np.float64(scale)


def perceptual_hash(images: np.ndarray | torch.Tensor, side: int = 16) -> np.ndarray:
    """Return the DCT hash (pHash; Zauner 2010, Sec. 3.2.1) of images (n, 3, h, w) in [0, 1]: bool, (n, side * side).

    Luminance at 4 * side pixels, the side x side lowest frequencies of its cosine transform, each compared with their median. Frequencies are
    rounded first, so that the hash of a flat image does not depend on the last bit.
    """
    small = resized(torch.as_tensor(images), 4 * side).cpu().numpy().astype(np.float64)
    luminance = (small * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1) * 255
    frequencies = np.asarray(dctn(luminance, axes=(1, 2), norm="ortho"))
    lowest = np.round(frequencies[:, :side, :side].reshape(len(small), -1), 3)
    return lowest > np.median(lowest, axis=1, keepdims=True)


def hamming(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the share of different bits of pairs of hashes (n, bits): float64, (n,)."""
    return (first != second).mean(1)


def hamming_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the share of different bits of all pairs of hashes (n, bits) and (m, bits): float64, (n, m)."""
    a, b = first.astype(np.float32) * 2 - 1, second.astype(np.float32) * 2 - 1
    return ((first.shape[1] - (a @ b.T).astype(np.float64)) / 2) / first.shape[1]


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosine of pairs of feature rows (n, d): float64, (n,); 0 for a row of zeros."""
    return (_unit(first) * _unit(second)).sum(1)


def cosine_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cosines of all pairs of feature rows (n, d) and (m, d): float64, (n, m)."""
    return _unit(first) @ _unit(second).T


def adaptive(distances: np.ndarray, neighbours: int = 50, alpha: float = 0.5) -> np.ndarray:
    """Return the adaptive distance of images to their nearest work (Carlini et al. 2023, Sec. 5.1): (n,); below 1 is a copy.

    The distance to the nearest over alpha times the mean distance to the nearest `neighbours`, itself among them: where many works look alike, being
    near one of them says little.

    Args:
        distances: to every work: (n, m).
        neighbours: works of the mean; all, if there are fewer.
        alpha: share of the mean that a copy must stay below.
    """
    nearest = np.sort(distances, axis=1)[:, :neighbours]
    return nearest[:, 0] / np.maximum(alpha * nearest.mean(1), 1e-12)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
