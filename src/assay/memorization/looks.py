"""Images as three measures of similarity see them, and every output compared with every work in all three."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from assay.evaluation.features import resized
from assay.evaluation.similarity import cosine_pairs, hamming_pairs, perceptual_hash, tiled_l2_pairs
from assay.judge import JudgeLike

SIZE = 64
BLOCK = 512


class Looks(NamedTuple):
    """Images as the three measures see them."""

    pixels: np.ndarray
    """uint8, (n, 3, 64, 64)."""
    hashes: np.ndarray
    """bool, (n, bits)."""
    features: np.ndarray
    """float32, (n, d)."""


def looks(pixels: np.ndarray, judge: JudgeLike) -> Looks:
    """Describe uint8 images (n, 3, h, w), a block at a time."""
    small, hashes, features = [], [], []
    for start in range(0, len(pixels), BLOCK):
        images = resized(torch.from_numpy(pixels[start : start + BLOCK]) / 255)
        small.append((images * 255).round().to(torch.uint8).numpy())
        hashes.append(perceptual_hash(images))
        features.append(judge.features(images))
    return Looks(np.concatenate(small), np.concatenate(hashes), np.concatenate(features))


def compare(outputs: Looks, works: Looks, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare every output with every work.

    Args:
        outputs: what was generated.
        works: all works.
        own: index of the work whose caption each output was asked by: (n,).

    Returns:
        Similarity to the own work in three measures, higher is more alike, (n, 3); and how many works are at least as near, itself included, (n, 3).
    """
    similarity, rank = np.zeros((len(own), 3)), np.zeros((len(own), 3), np.int64)
    for start in range(0, len(own), BLOCK // 2):
        rows = slice(start, start + BLOCK // 2)
        tables = (
            -tiled_l2_pairs(outputs.pixels[rows], works.pixels),
            1 - hamming_pairs(outputs.hashes[rows], works.hashes),
            cosine_pairs(outputs.features[rows], works.features),
        )
        for measure, table in enumerate(tables):
            mine = table[np.arange(len(table)), own[rows]]
            similarity[rows, measure] = mine
            rank[rows, measure] = (table >= mine[:, None]).sum(1)
    return similarity, rank


def strip(images: list[Image.Image], height: int = 128, gap: int = 8) -> Image.Image:
    """Lay images out in a row on white at one height."""
    scaled = [image.resize((round(image.width * height / image.height), height), Image.Resampling.NEAREST) for image in images]
    canvas = Image.new("RGB", (sum(image.width + gap for image in scaled) - gap, height), "white")
    left = 0
    for image in scaled:
        canvas.paste(image, (left, 0))
        left += image.width + gap
    return canvas
