"""Exact p-values against enumeration by hand and against scipy's own exact test."""

import itertools

import numpy as np
import pytest
from scipy.stats import kendalltau, rankdata

from assay.errors import Misconfigured
from assay.evaluation.ranks import rank_correlation

FIVE = [11.27, 21.13, 76.05, 79.58, 97.89]


def test_one_ordering_twice_has_the_smallest_p():
    """Of 5! = 120 pairings one is as high: p = 2/120 for both."""
    found = rank_correlation(FIVE, [1, 2, 3, 4, 5])
    assert (found.rho, found.tau, found.n) == (pytest.approx(1), pytest.approx(1), 5)
    assert found.rho_p == found.tau_p == pytest.approx(2 / 120)
    assert rank_correlation(FIVE, [5, 4, 3, 2, 1])[:2] == (pytest.approx(-1), pytest.approx(2 / 120))


@pytest.mark.parametrize("other", [[0.2, 0.1, 0.5, 0.4, 0.3], [0.9, 0.1, 0.5, 0.8, 0.7], [3, 1, 2, 5, 4]])
def test_p_of_orderings_without_ties(other):
    """Kendall's is scipy's exact one; Spearman's is counted over all pairings of ranks, 1 - 6 sum d^2 / (n (n^2 - 1))."""
    found = rank_correlation(FIVE, other)
    exact = kendalltau(FIVE, other, method="exact")
    assert (found.tau, found.tau_p) == (pytest.approx(exact.statistic), pytest.approx(exact.pvalue))
    ranks = rankdata(other)
    rhos = np.array([1 - 6 * sum((a - b) ** 2 for a, b in zip(order, ranks, strict=True)) / 120 for order in itertools.permutations(range(1, 6))])
    rho = 1 - 6 * sum((np.arange(1, 6) - ranks) ** 2) / 120
    assert found.rho == pytest.approx(rho)
    assert found.rho_p == pytest.approx(min(1, 2 * min((rhos >= rho - 1e-9).mean(), (rhos <= rho + 1e-9).mean())))


def test_too_few_and_constant_orderings_say_nothing():
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([1, 2, 3, 4], [0.5] * 4) is None
    with pytest.raises(Misconfigured, match="not ordered together"):
        rank_correlation([1, 2], [1])
