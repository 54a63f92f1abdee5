"""Confidence intervals: Wilson's for a proportion, Koopman's for a ratio of two; bootstrap and jackknife, by prompt where images share one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from assay.errors import Misconfigured
from assay.noise import numpy_generator

Interval = tuple[float, float]


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval for a proportion (Wilson 1927); (0, 1) where nothing was observed."""
    _check(successes, n, level)
    if n == 0:
        return 0.0, 1.0
    z = float(norm.isf((1 - level) / 2))
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if successes == 0 else max(0.0, middle - half)), (1.0 if successes == n else min(1.0, middle + half))


def bootstrap(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,  # pyright: ignore[reportArgumentType]
    clusters: Sequence[object] | None = None,
    *,
    level: float = 0.95,
    seed: int,
    draws: int = 2000,
) -> Interval:
    """Return the percentile bootstrap interval of a statistic (Efron 1979).

    Args:
        values: observations; rows, where there are several dimensions.
        statistic: rows in, a number out.
        clusters: what each observation belongs to, such as its prompt; whole clusters are drawn (Davison and Hinkley 1997, Sec. 3.8).
        level: of the interval.
        seed: of the draws.
        draws: how many.

    Raises:
        Misconfigured: there are no values, or the level is not between 0 and 1.
    """
    values = np.asarray(values)
    _check(0, len(values), level)
    if not len(values):
        raise Misconfigured("There is nothing to draw from: no values were given.", "Evaluate at least one image.")
    labels = np.arange(len(values)) if clusters is None else np.unique(np.array([str(name) for name in clusters]), return_inverse=True)[1]
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    rng = numpy_generator(seed, "bootstrap")
    found = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(len(members), size=len(members))
        rows = order[chosen] if clusters is None else np.concatenate([members[index] for index in chosen])
        found[draw] = statistic(values[rows])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def crossed(
    statistic: Callable[[np.ndarray], float],
    rows: Sequence[object] | np.ndarray,
    columns: Sequence[object] | np.ndarray,
    *,
    level: float = 0.95,
    seed: int,
    draws: int = 2000,
) -> Interval:
    """Return the percentile interval of a statistic of a table whose rows and columns are both samples, such as models and works.

    The pigeonhole bootstrap (Owen 2007, Ann. Appl. Stat. 1:386): rows and columns are drawn anew, independently of each other. Its variance is that
    from rows and that from columns, and counts what is neither's more than once: it errs to the wide side.

    Args:
        statistic: how often each cell was drawn, (rows, columns), in, a number out.
        rows: what each row belongs to; whole clusters are drawn.
        columns: likewise.
        level: of the interval.
        seed: of the draws.
        draws: how many.

    Raises:
        Misconfigured: rows or columns are of fewer than two clusters, or the level is not between 0 and 1.
    """
    _check(0, 0, level)
    labels = [np.unique(np.asarray(each), return_inverse=True)[1] for each in (rows, columns)]
    sizes = [int(each.max(initial=-1)) + 1 for each in labels]
    if min(sizes) < 2:
        raise Misconfigured(f"A table of {sizes[0]} by {sizes[1]} clusters cannot be drawn anew.", "Observe two or more of each.")
    rng = numpy_generator(seed, "crossed")
    found = np.empty(draws)
    for draw in range(draws):
        down, across = (np.bincount(rng.integers(size, size=size), minlength=size)[each] for size, each in zip(sizes, labels, strict=True))
        found[draw] = statistic(down[:, None] * across)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def jackknife(
    values: np.ndarray, statistic: Callable[[np.ndarray], float], clusters: Sequence[object] | None = None, *, level: float = 0.95
) -> Interval:
    """Return the jackknife's normal interval of a statistic (Efron and Stein 1981), leaving out a cluster at a time.

    For statistics of ranks: rows that a bootstrap draws twice tie, which lowers every rank correlation.

    Args:
        values: observations; rows, where there are several dimensions.
        statistic: rows in, a number out.
        clusters: what each observation belongs to; whole clusters are left out, best of equal size.
        level: of the interval.

    Raises:
        Misconfigured: there are fewer than two clusters, or the level is not between 0 and 1.
    """
    values = np.asarray(values)
    _check(0, len(values), level)
    labels = np.arange(len(values)) if clusters is None else np.unique(np.array([str(name) for name in clusters]), return_inverse=True)[1]
    count = len(np.unique(labels))
    if count < 2:
        raise Misconfigured(f"{count} clusters leave nothing when one is left out.", "Observe two or more.")
    without = np.array([statistic(values[labels != label]) for label in range(count)])
    half = float(norm.isf((1 - level) / 2) * np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))
    value = float(statistic(values))
    return value - half, value + half


def ratio_interval(successes: int, n: int, reference_successes: int, reference_n: int, level: float = 0.95) -> Interval:
    """Return the score interval for the ratio of two independent proportions (Koopman 1984, Biometrics 40:513).

    It holds every ratio r for which the hypothesis p = r * p_reference is not rejected by Pearson's chi-squared with one degree of freedom, and is
    recommended at small counts (Fagerland, Lydersen and Laake 2015); unlike the logarithmic method it is sound at 0 and n successes.

    Args:
        successes: of the numerator.
        n: observations of the numerator.
        reference_successes: of the denominator.
        reference_n: observations of the denominator.
        level: of the interval.

    Returns:
        Lower and upper end; the upper end is infinite where the denominator had no success.
    """
    _check(successes, n, level)
    _check(reference_successes, reference_n, level)
    if n == 0 or reference_n == 0:
        return 0.0, math.inf
    limit = float(norm.isf((1 - level) / 2)) ** 2

    def excess(log_ratio: float) -> float:
        return _chi_squared(successes, n, reference_successes, reference_n, math.exp(log_ratio)) - limit

    pseudo = math.log((successes + 0.5) / (n + 0.5)) - math.log((reference_successes + 0.5) / (reference_n + 0.5))
    low = 0.0 if successes == 0 else math.exp(_root(excess, _inside(successes, n, reference_successes, reference_n, pseudo), -1))
    high = math.inf if reference_successes == 0 else math.exp(_root(excess, _inside(successes, n, reference_successes, reference_n, pseudo), 1))
    return low, high


def _inside(x: int, n: int, y: int, m: int, pseudo: float) -> float:
    """Return the logarithm of a ratio that is surely not rejected: the estimate, or one near it where that is 0 or infinite."""
    return math.log((x / n) / (y / m)) if x and y else pseudo


def _root(excess: Callable[[float], float], start: float, direction: int) -> float:
    step = 0.5
    while excess(start + direction * step) < 0:
        step *= 2
    return float(brentq(excess, *sorted((start, start + direction * step)), xtol=1e-12))  # pyright: ignore[reportArgumentType]


def _chi_squared(x: int, n: int, y: int, m: int, ratio: float) -> float:
    """Return Koopman's statistic, his Eq. 2: squared residuals over variances at the maximum-likelihood proportions under p = ratio * q."""
    a, b, c = (n + m) * ratio, n * ratio + x + m + y * ratio, x + y
    q = 2 * c / (b + math.sqrt(max(0.0, b * b - 4 * a * c)))
    p = ratio * q
    total = 0.0
    for count, size, share in ((x, n, p), (y, m, q)):
        variance = size * share * (1 - share)
        residual = (count - size * share) ** 2
        total += residual / variance if variance > 1e-300 else 0.0 if residual < 1e-18 else math.inf
    return total


def _check(successes: int, n: int, level: float) -> None:
    if not 0 <= successes <= n:
        raise Misconfigured(f"{successes} successes out of {n} make no proportion.", "Count again.")
    if not 0 < level < 1:
        raise Misconfigured(f"A confidence level lies between 0 and 1; got {level}.", "Use 0.95.")
