"""Rank correlation of two orderings, Spearman's rho and Kendall's tau-b, with p-values over all ways to pair the one with the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, permutation_test, spearmanr

from assay.errors import Misconfigured

FEWEST = 4
"""Pairs below which no ordering can be told from chance: of three, even the best two-sided p is 1/3."""
MOST = 8
"""Pairs up to which all pairings are gone through; beyond, p-values are scipy's own."""


class Correlation(NamedTuple):
    """How alike two orderings are."""

    rho: float
    """Spearman's."""
    rho_p: float
    """Two-sided, that of independent orderings."""
    tau: float
    """Kendall's tau-b."""
    tau_p: float
    """Two-sided, that of independent orderings."""
    n: int
    """Pairs."""


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> Correlation | None:
    """Correlate two orderings (Spearman 1904; Kendall 1938; tau-b, for ties: Kendall 1945).

    A p-value is twice the smaller share of all n! pairings that are as far out on one side, and at most 1.

    Args:
        first: a value for each thing ordered.
        second: the other ordering's values, of the same things.

    Returns:
        The correlations; None where fewer than `FEWEST` things are ordered, or one ordering has but one value.

    Raises:
        Misconfigured: they are not of the same things.
    """
    if len(first) != len(second):
        raise Misconfigured(f"{len(first)} and {len(second)} things are not ordered together.", "Give two values for each.")
    if len(first) < FEWEST or len(set(first)) == 1 or len(set(second)) == 1:
        return None

    def test(statistic: Any) -> tuple[float, float]:
        if len(first) > MOST:
            found = statistic(first, second)
        else:
            values = (np.asarray(first, float),)
            found = permutation_test(
                values,
                lambda order: statistic(order, second).statistic,
                permutation_type="pairings",
                vectorized=False,
                n_resamples=math.factorial(MOST),
            )
        return float(found.statistic), float(found.pvalue)

    return Correlation(*test(spearmanr), *test(kendalltau), len(first))
