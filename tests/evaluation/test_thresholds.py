import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from assay.errors import Misconfigured
from assay.evaluation.thresholds import allowed, bound, joint_threshold, threshold_at


def test_threshold_is_the_order_statistic():
    # 39 negatives at 5 %: floor(0.05 * 40) - 1 = 1 may be flagged, so the threshold is the second largest.
    found = threshold_at(np.arange(39.0), 0.05)
    assert found.value == 37
    assert found.achieved == pytest.approx(1 / 39)
    assert found.n == 39


def test_too_few_negatives_flag_nothing():
    # 18 negatives cannot promise 5 %: even above all of them a new one falls with probability 1 / 19.
    assert allowed(18, 0.05) == -1
    assert threshold_at(np.arange(18.0), 0.05).value == math.inf
    assert allowed(19, 0.05) == 0


def test_a_new_negative_is_flagged_at_most_at_the_rate():
    # Exchangeability: exactly floor(0.1 * 51) / 51 = 5 / 51 for continuous scores. 4000 repeats: standard error 0.0047.
    rng = np.random.default_rng(0)
    hits = [rng.standard_normal() > threshold_at(rng.standard_normal(50), 0.1).value for _ in range(4000)]
    assert np.mean(hits) == pytest.approx(5 / 51, abs=4 * 0.0047)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.01, 0.5))
def test_ties_never_raise_the_rate(scores, rate):
    found = threshold_at(np.array(scores, float), rate)
    flagged = sum(score > found.value for score in scores)
    assert flagged <= max(0, allowed(len(scores), rate))
    assert found.achieved == flagged / len(scores)


def test_bound_is_the_exact_binomial_bound():
    # P(the (k+1)-th largest of n exceeds the (1-r) quantile) = P(Binomial(n, r) > k): at the 95 % bound r it is 95 %.
    rate = bound(100, 4)
    assert binom.sf(4, 100, rate) == pytest.approx(0.95, abs=1e-9)
    assert bound(3, 3) == 1


def test_rates_outside_the_unit_interval_are_refused():
    for rate in (0.0, 1.0, -1):
        with pytest.raises(Misconfigured):
            threshold_at([1.0], rate)


def joint_by_hand(scores: np.ndarray, rate: float, least: int) -> tuple[float, ...]:
    # Try every rung j from the strictest and keep the last before the count first exceeds what is allowed.
    most = math.floor(rate * (len(scores) + 1) + 1e-9) - 1
    best = (math.inf,) * scores.shape[1]
    for j in range(len(scores)):
        values = tuple(sorted(column, reverse=True)[j] for column in scores.T.tolist())
        if sum(sum(s > v for s, v in zip(row, values)) >= least for row in scores.tolist()) > most:
            break
        best = values if most >= 0 else best
    return best


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.02, 0.05, 0.2]), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_joint_threshold_is_the_laxest_that_holds(seed, n, rate, least):
    scores = np.random.default_rng(seed).integers(0, 12, (n, 3)).astype(float)
    found = joint_threshold(scores, rate, least)
    assert found.values == joint_by_hand(scores, rate, least)
    assert found.flags(scores).sum() == round(found.achieved * n)
    assert found.achieved <= rate


def test_joint_rule_holds_its_rate_on_new_negatives():
    # Correlated measures, 200 calibration works, 5 %: over 60 repeats the mean rate on 500 new works is below 5 % plus 4 standard errors.
    rng = np.random.default_rng(0)

    def draw(count):
        return rng.standard_normal((count, 1)) + rng.standard_normal((count, 3))

    rates = [joint_threshold(draw(200), 0.05).flags(draw(500)).mean() for _ in range(60)]
    assert 0.03 < np.mean(rates) < 0.05 + 4 * np.std(rates) / math.sqrt(60)
