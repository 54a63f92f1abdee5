"""Kernel Inception Distance: the unbiased MMD^2 of Binkowski et al. 2018 (Sec. 4, App. A) with k(x, y) = (x.y / d + 1)^3, in any feature space.

Exact over all pairs, without subsets. Being unbiased it may fall below zero; quote it beside `floor`. Samples that share prompts and seeds are
compared by `paired`, independent ones by `mmd2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from assay.errors import Misconfigured
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


class Paired(NamedTuple):
    """A distance between two models on the same prompts."""

    value: float
    """Unbiased estimate of MMD^2; it may be negative."""
    low: float
    """Lower end of its interval."""
    high: float
    """Upper end."""
    exchange: float
    """What the estimate stays below, at the interval's level, if the two models are one."""
    p: float
    """Share of exchanges that give at least the estimate."""


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


def paired(
    first: np.ndarray, second: np.ndarray, groups: Sequence[object] | None = None, *, seed: int, level: float = 0.95, draws: int = 1000
) -> Paired:
    """Return KID between two models on the same prompts and seeds, with its interval and what chance alone would give.

    Row i of one sample is no independent draw beside row i of the other, so all of one against all of the other would come out too near. With
    phi the kernel's feature map, h_ij = <phi(x_i) - phi(y_i), phi(x_j) - phi(y_j)> has the expectation MMD^2 for any two prompts: the estimate is
    the mean of h over pairs of different prompts (a U-statistic; Gretton et al. 2012, Lemma 6, without the terms that share a prompt). Its interval
    is the jackknife's over prompts. If the models were the same, the images of a prompt could be exchanged, which changes the sign of its row and
    column of h: `exchange` is the quantile over random exchanges, a permutation test.

    Args:
        first: features (n, d).
        second: features of the same prompts and seeds (n, d).
        groups: the prompt of every row, where several rows share one.
        seed: of the exchanges.
        level: of the interval and of the exchanges' quantile.
        draws: exchanges.

    Raises:
        Misconfigured: the samples differ in length, or have fewer than four prompts.
    """
    sums, sizes = _by_prompt(first, second, groups)
    pairs = sizes.sum() ** 2 - (sizes**2).sum()
    value, half = sums.sum() / pairs, _half(_left_out(sums, sizes), level)
    signs = numpy_generator(seed, "exchange").choice([-1.0, 1.0], (draws, len(sums)))
    null = ((signs @ sums) * signs).sum(1) / pairs
    share = (1 + int((null >= value).sum())) / (1 + draws)
    return Paired(float(value), float(value) - half, float(value) + half, float(np.quantile(null, level)), share)


def excess(first: np.ndarray, other: np.ndarray, second: np.ndarray, groups: Sequence[object] | None = None, *, level: float = 0.95) -> Estimate:
    """Return by how much KID between `first` and `second` exceeds that between `other` and `second`, all three on the same prompts and seeds.

    Both are estimated as by `paired`. The interval is the jackknife's over prompts of their difference, which what the prompts share does not widen.

    Args:
        first: features (n, d).
        other: features of the same prompts and seeds (n, d).
        second: features of the same prompts and seeds (n, d).
        groups: the prompt of every row, where several rows share one.
        level: of the interval.

    Raises:
        Misconfigured: the samples differ in length, or have fewer than four prompts.
    """
    sums, sizes = _by_prompt(first, second, groups)
    sums = sums - _by_prompt(other, second, groups)[0]
    value, half = float(sums.sum() / (sizes.sum() ** 2 - (sizes**2).sum())), _half(_left_out(sums, sizes), level)
    return Estimate(value, value - half, value + half)


def floor(features: np.ndarray, *, seed: int, repeats: int = 50) -> Estimate:
    """Return mean and 95 % range of KID between two disjoint random halves of one sample: how far apart images of one model are found.

    Args:
        features: features (n, d).
        seed: of the splits.
        repeats: random splits; the range is that of single splits.
    """
    features = _checked(features)
    half = len(features) // 2
    rng = numpy_generator(seed, "halves")
    orders = [rng.permutation(len(features)) for _ in range(repeats)]
    found = [mmd2(features[order[:half]], features[order[half : 2 * half]]) for order in orders]
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(np.mean(found)), float(low), float(high))


def _by_prompt(first: np.ndarray, second: np.ndarray, groups: Sequence[object] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of h over the rows of each two prompts, those of one prompt left out: (prompts, prompts), and how many rows each prompt has.

    Raises:
        Misconfigured: the samples differ in length, or have fewer than four prompts.
    """
    first, second = _checked(first), _checked(second)
    labels = np.unique([str(name) for name in (range(len(first)) if groups is None else groups)], return_inverse=True)[1]
    prompts = int(labels.max()) + 1
    if first.shape != second.shape or len(labels) != len(first) or prompts < 4:
        raise Misconfigured(f"Pairing needs two samples of the same four or more prompts; got {len(first)} and {len(second)} rows.", "Pair them.")
    between = _kernel(first, second)
    table = _kernel(first, first) + _kernel(second, second) - between - between.T
    member = np.equal.outer(np.arange(prompts), labels).astype(np.float64)  # (prompts, n)
    sums = member @ table @ member.T
    np.fill_diagonal(sums, 0.0)
    return sums, member.sum(1)


def _left_out(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the estimate without each prompt in turn: (prompts,)."""
    pairs = sizes.sum() ** 2 - (sizes**2).sum()
    return (sums.sum() - 2 * sums.sum(1)) / (pairs - 2 * sizes * (sizes.sum() - sizes))


def _half(without: np.ndarray, level: float) -> float:
    """Return half the width of the jackknife's interval."""
    deviation = np.sqrt((len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum())
    return float(norm.ppf((1 + level) / 2)) * float(deviation)


def _checked(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise Misconfigured(f"KID needs features of at least two images as rows; got shape {features.shape}.", "Generate more images.")
    return features


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _kernel_sum(first: np.ndarray, second: np.ndarray) -> float:
    return float(sum(((first[start : start + BLOCK] @ second.T / first.shape[1] + 1) ** 3).sum() for start in range(0, len(first), BLOCK)))


def _diagonal(features: np.ndarray) -> float:
    return float((((features**2).sum(1) / features.shape[1] + 1) ** 3).sum())
