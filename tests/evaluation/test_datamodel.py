"""Expected values: scipy column by column, least squares written out, refits with rows left out, and Gaussians whose correlations are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import spearmanr

from assay.errors import Misconfigured
from assay.evaluation.datamodel import agreement, ceiling, fit, lds, predicted, ranked, spearman, unseen
from assay.noise import numpy_generator
from assay.training.pool import halves

RNG = numpy_generator(20261124, "datamodel")
TRUTH = RNG.normal(size=(5, 12))


@given(arrays.arrays(np.int64, st.tuples(st.just(2), st.integers(2, 20), st.integers(1, 3)), elements=st.integers(0, 5)))
def test_spearman_is_scipys(pair):
    found = spearman(*pair)
    for column in range(pair.shape[2]):
        one, other = pair[0, :, column], pair[1, :, column]
        constant = len(set(one.tolist())) == 1 or len(set(other.tolist())) == 1
        assert found[column] == pytest.approx(0.0 if constant else spearmanr(one, other).statistic, abs=1e-12)


def test_the_truth_scores_one_whatever_the_scale():
    included = halves(30, 12, 1)
    sums = predicted(TRUTH, included)
    assert sums[3, 2] == pytest.approx(sum(TRUTH[2, work] for work in range(12) if included[3, work]))
    assert lds(sums, np.exp(sums)) == pytest.approx(np.ones(5))
    assert lds(-sums, np.exp(sums)) == pytest.approx(-np.ones(5))


def test_a_random_attribution_scores_nothing():
    # Spearman's rho of 200 independent rows has the deviation 1 / sqrt(199) = 0.07; the mean over 400 nearly independent queries 0.0035.
    included = halves(200, 400, 1)
    sums = predicted(RNG.normal(size=(400, 400)), included)
    assert abs(lds(sums, RNG.normal(size=(200, 400))).mean()) < 5 * 0.0036


@given(st.integers(1, 10), st.integers(2, 30))
def test_unseen_models_did_not_see_the_work(pairs, works):
    included = halves(2 * pairs, works, 3)
    rows = unseen(included)
    assert rows.shape == (pairs, works)
    assert not np.take_along_axis(included, rows, 0).any()
    assert all(len(set(rows[:, work].tolist())) == pairs for work in range(works))
    assert (rows // 2 == np.arange(pairs)[:, None]).all()  # one of every pair


def test_a_query_is_scored_over_its_own_rows():
    included = halves(20, 12, 2)
    outputs = RNG.normal(size=(20, 12))
    sums = RNG.normal(size=(20, 12))
    rows = unseen(included)
    expected = [spearmanr(sums[~included[:, work], work], outputs[~included[:, work], work]).statistic for work in range(12)]
    assert lds(sums, outputs, rows) == pytest.approx(np.array(expected))


def test_with_more_models_than_works_the_truth_is_found():
    included = np.concatenate([halves(40, 12, 4), np.eye(12, dtype=bool)])  # of halves alone the sum over all works is unknown
    attribution, _, errors = fit(included, predicted(TRUTH, included) + 3, ridges=[1e-9])
    assert attribution == pytest.approx(TRUTH, abs=1e-6)
    assert errors[0] < 1e-12


def test_the_ridge_and_its_left_out_errors_are_those_of_refits():
    included = halves(16, 30, 5)
    outputs = predicted(RNG.normal(size=(3, 30)), included) + RNG.normal(size=(16, 3))
    groups, ridges = np.arange(16) // 2, [0.5, 5.0, 50.0]

    def solved(rows: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        x, y = included[rows].astype(float), outputs[rows]
        x_mean, y_mean = x.mean(0), y.mean(0)
        weights = np.linalg.solve((x - x_mean).T @ (x - x_mean) + ridge * np.eye(30), (x - x_mean).T @ (y - y_mean))
        return weights, y_mean - x_mean @ weights

    def left_out(ridge: float) -> float:
        total = 0.0
        for group in range(8):
            weights, intercept = solved(groups != group, ridge)
            total += ((included[groups == group] @ weights + intercept - outputs[groups == group]) ** 2).sum()
        return total

    attribution, ridge, errors = fit(included, outputs, groups, ridges)
    assert errors == pytest.approx(np.array([left_out(each) for each in ridges]) / left_out(1e12), rel=1e-6)
    assert ridge == ridges[int(errors.argmin())]
    assert attribution == pytest.approx(solved(np.ones(16, bool), ridge)[0].T, abs=1e-9)


@pytest.mark.parametrize(("share", "seeds"), [(0.2, 1), (0.5, 1), (0.5, 3), (0.9, 2)])
def test_the_ceiling_is_the_score_of_the_expectation(share, seeds):
    # Outputs are a signal of variance `share` and a seed's part of variance 1 - share. Over 400 subsets and 100 queries the means below have
    # deviations of at most 1 / sqrt(400 x 100) = 0.005; through the square root of a share of 0.2 it doubles. Four of those are allowed.
    rng = numpy_generator(seeds, "ceiling", str(share))
    signal = np.sqrt(share) * rng.normal(size=(400, 1, 100))
    outputs = signal + np.sqrt(1 - share) * rng.normal(size=(400, 3, 100))
    between = agreement(outputs).mean()
    assert between == pytest.approx(6 / np.pi * np.arcsin(share / 2), abs=0.02)
    score = spearman(signal[:, 0], outputs[:, :seeds].mean(1)).mean()
    assert ceiling(between, seeds) == pytest.approx(score, abs=0.04)


@pytest.mark.parametrize("n", [4, 12])
def test_ranks_of_few_draws_agree_less(n):
    """Against draws: the mean of 40,000 rank correlations of n pairs of Gaussians, which deviates by at most 1 / sqrt(40,000 (n - 1)) = 0.003."""
    x, y = np.moveaxis(numpy_generator(n, "ranked").multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=(n, 40_000)), 2, 0)
    assert ranked(0.6, n) == pytest.approx(spearman(x, y).mean(), abs=0.012)
    assert ranked(0.6, 10**9) == pytest.approx(ranked(0.6))
    assert ceiling(ranked(0.6, n), 3, subsets=n, scored=n) == pytest.approx(ranked(np.sqrt(1.8 / 2.2), n))


@given(st.floats(-1, 1), st.integers(1, 10))
def test_ceilings_rise_with_agreement_and_seeds(between, seeds):
    assert 0 <= ceiling(between, seeds) <= 1 + 1e-12
    assert ceiling(between, seeds + 1) >= ceiling(between, seeds) - 1e-12
    assert ceiling(between, seeds) >= max(0.0, between) - 1e-12
    assert ceiling(1.0, seeds) == pytest.approx(1.0)


def test_what_cannot_be_scored():
    with pytest.raises(Misconfigured):
        spearman(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(Misconfigured):
        agreement(np.zeros((4, 1, 2)))
    with pytest.raises(Misconfigured):
        unseen(np.array([[True, False], [True, True]]))
    with pytest.raises(Misconfigured):
        fit(halves(4, 5, 1), np.zeros((4, 1)), np.arange(4) // 2)
