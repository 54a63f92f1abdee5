"""Kernel Inception Distance: the unbiased MMD^2 of Binkowski et al. 2018 (Sec. 4, App. A) with k(x, y) = (x.y / d + 1)^3, in any feature space.

Exact over all pairs, without subsets. Being unbiased it may fall below zero; quote it beside `floor`. Samples that share prompts and seeds are
compared by `crossed`, independent ones by `kid`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from assay.errors import Misconfigured
from assay.evaluation.intervals import bootstrap
from assay.noise import numpy_generator

BLOCK = 2048


class Estimate(NamedTuple):
    """A distance and its range."""

    value: float
    """Unbiased estimate of MMD^2; it may be negative."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def mmd2(first: np.ndarray, second: np.ndarray) -> float:
    """Return the unbiased MMD^2 between features (n, d) and (m, d).

    Raises:
        Misconfigured: a sample has fewer than two rows, or the dimensions differ.
    """
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise Misconfigured(f"Features of {first.shape[1]} and of {second.shape[1]} dimensions cannot be compared.", "Use the same judge for both.")
    n, m = len(first), len(second)
    within = (_kernel_sum(first, first) - _diagonal(first)) / (n * (n - 1)) + (_kernel_sum(second, second) - _diagonal(second)) / (m * (m - 1))
    return within - 2 * _kernel_sum(first, second) / (n * m)


def kid(first: np.ndarray, second: np.ndarray, *, seed: int, block: int = 50, level: float = 0.95, draws: int = 2000) -> Estimate:
    """Return `mmd2(first, second)` with a block bootstrap interval.

    Rows are shuffled and cut into disjoint blocks; each pair of blocks gives an independent unbiased estimate (the block test of Zaremba et al.
    2013), and the spread of their bootstrapped mean is laid around the exact estimate. Conservative: the mean of blocks varies more than the
    estimate over all pairs.

    Args:
        first: features (n, d).
        second: features (m, d).
        seed: of shuffle and draws.
        block: rows a block; smaller samples are cut into at least four blocks.
        level: of the interval.
        draws: of the bootstrap.

    Raises:
        Misconfigured: a sample has fewer than eight rows.
    """
    first, second = _checked(first), _checked(second)
    smaller = min(len(first), len(second))
    if smaller < 8:
        raise Misconfigured(f"An interval needs at least 8 rows in both samples; got {smaller}.", "Generate more images.")
    blocks = max(4, smaller // block)
    rng = numpy_generator(seed, "blocks")
    parts = [np.array_split(sample[rng.permutation(len(sample))], blocks) for sample in (first, second)]
    estimates = np.array([mmd2(a, b) for a, b in zip(*parts)])
    low, high = bootstrap(estimates - estimates.mean(), level=level, seed=seed, draws=draws)
    exact = mmd2(first, second)
    return Estimate(exact, exact + low, exact + high)


def crossed(first: np.ndarray, second: np.ndarray, *, seed: int, repeats: int = 50) -> Estimate:
    """Return mean and 95 % range of KID between a random half of the rows of `first` and the other half of `second`.

    For two models on the same prompts and seeds: row i of one is no independent draw beside row i of the other, and all of one against all of the
    other would come out too near. Crossed halves share no prompt and no seed. With one sample in both places this is `floor`.

    Args:
        first: features (n, d).
        second: features of the same prompts and seeds (n, d).
        seed: of the splits.
        repeats: random splits; the range is that of single splits.

    Raises:
        Misconfigured: the samples differ in length, or have fewer than four rows.
    """
    first, second = _checked(first), _checked(second)
    half = len(first) // 2
    if len(first) != len(second) or half < 2:
        raise Misconfigured(f"Crossed halves need two samples of the same four or more prompts; got {len(first)} and {len(second)}.", "Pair them.")
    rng = numpy_generator(seed, "halves")
    found = []
    for _ in range(repeats):
        order = rng.permutation(len(first))
        found.append(mmd2(first[order[:half]], second[order[half : 2 * half]]))
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(np.mean(found)), float(low), float(high))


def floor(features: np.ndarray, *, seed: int, repeats: int = 50) -> Estimate:
    """Return mean and 95 % range of KID between two random halves of one sample: the noise below which a distance means nothing."""
    return crossed(features, features, seed=seed, repeats=repeats)


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise Misconfigured(f"KID needs features of at least two images as rows; got shape {features.shape}.", "Generate more images.")
    return features


def _kernel_sum(first: np.ndarray, second: np.ndarray) -> float:
    return float(sum(((first[start : start + BLOCK] @ second.T / first.shape[1] + 1) ** 3).sum() for start in range(0, len(first), BLOCK)))


def _diagonal(features: np.ndarray) -> float:
    return float((((features**2).sum(1) / features.shape[1] + 1) ** 3).sum())
