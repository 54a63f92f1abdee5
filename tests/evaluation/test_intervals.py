import math
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom

from assay.errors import AssayError
from assay.evaluation.intervals import bootstrap, jackknife, ratio_interval, wilson


def test_wilson_of_all_successes_is_n_over_n_plus_z_squared():
    # With x = n the two ends are n / (n + z^2) and 1: put p = 1 into the formula. The reference page's "16 of 16 has a lower bound of 81 %" is this.
    low, high = wilson(16, 16)
    assert low == pytest.approx(16 / (16 + 1.959963984540054**2), abs=1e-12)
    assert low == pytest.approx(0.81, abs=0.005)
    assert high == 1


def test_wilson_against_a_published_value():
    # Newcombe 1998 (Statistics in Medicine 17:857), Table I, method 3: 81 of 263 gives 0.2553 to 0.3662, 15 of 148 gives 0.0624 to 0.1605.
    assert [round(end, 4) for end in wilson(81, 263)] == [0.2553, 0.3662]
    assert [round(end, 4) for end in wilson(15, 148)] == [0.0624, 0.1605]


@cache
def two_sided_quantile(level: float) -> float:
    # P(|Z| > z) = erfc(z / sqrt 2) = 1 - level, solved without scipy.stats.
    return float(brentq(lambda z: math.erfc(z / math.sqrt(2)) - (1 - level), 0, 10, xtol=1e-15))


@given(st.integers(1, 200), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_ends_solve_the_score_equation(n, data, level):
    # By definition an end p solves (x / n - p)^2 = z^2 p (1 - p) / n.
    x = data.draw(st.integers(0, n))
    z = two_sided_quantile(level)
    for end in wilson(x, n, level):
        assert (x / n - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-9)


@given(st.integers(0, 50), st.integers(0, 50))
def test_wilson_is_symmetric_and_holds_the_estimate(x, y):
    n = x + y
    low, high = wilson(x, n)
    other_low, other_high = wilson(y, n)
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low))  # successes and failures exchanged
    assert n == 0 or low <= x / n <= high


def test_ratio_interval_against_a_published_value():
    # Koopman 1984, as quoted by Gart and Nam 1988 (Biometrics 44:323), Table 1: 36 of 40 over 16 of 80 gives 2.94 to 7.15.
    assert [round(end, 2) for end in ratio_interval(36, 40, 16, 80)] == [2.94, 7.15]


@given(st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_ratio_interval_inverts_when_the_groups_are_exchanged(x, y):
    # p / q in [low, high] says the same as q / p in [1 / high, 1 / low].
    low, high = ratio_interval(x, 30, y, 30)
    other_low, other_high = ratio_interval(y, 30, x, 30)
    assert low == pytest.approx(0.0 if math.isinf(other_high) else 1 / other_high, rel=1e-6)
    assert math.isinf(high) if other_low == 0 else high == pytest.approx(1 / other_low, rel=1e-6)
    if x and y:
        assert low <= x / y <= high


def test_ratio_interval_covers_at_about_its_level():
    # Exact coverage by enumeration of all outcomes of two binomials; a score interval's coverage swings around 95 % and stays above 92 % here.
    n = 20
    cache = {pair: ratio_interval(pair[0], n, pair[1], n) for pair in product(range(n + 1), repeat=2)}
    for p, q in [(0.5, 0.5), (0.3, 0.6), (0.9, 0.45)]:
        weights = np.outer(binom.pmf(range(n + 1), n, p), binom.pmf(range(n + 1), n, q))
        coverage = sum(weights[pair] for pair, (low, high) in cache.items() if low <= p / q <= high)
        assert 0.92 < coverage < 0.99


def test_bootstrap_of_the_mean_agrees_with_the_normal_approximation():
    # For 400 draws of N(0, 1) the interval of the mean is about +-1.96 * s / 20; the bootstrap's own error is under 10 % of that width.
    values = np.random.default_rng(0).standard_normal(400)
    low, high = bootstrap(values, seed=0)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_by_cluster_is_wider_when_clusters_agree_within():
    # 20 prompts, 10 equal values each: there are 20 independent observations, so the interval is sqrt(10) as wide as by single values.
    prompts = np.repeat(np.arange(20), 10)
    values = np.random.default_rng(1).standard_normal(20)[prompts]
    low, high = bootstrap(values, clusters=prompts.tolist(), seed=0)
    single_low, single_high = bootstrap(values, seed=0)
    assert (high - low) / (single_high - single_low) == pytest.approx(math.sqrt(10), rel=0.15)


def test_bootstrap_takes_any_statistic_and_depends_on_its_seed_alone():
    values = np.arange(50.0)
    assert bootstrap(values, np.median, seed=3, draws=200) == bootstrap(values, np.median, seed=3, draws=200)
    assert bootstrap(values, np.median, seed=3, draws=200) != bootstrap(values, np.median, seed=4, draws=200)


@pytest.mark.parametrize(
    "call", [lambda: wilson(3, 2), lambda: wilson(1, 2, 1.0), lambda: bootstrap([], seed=0), lambda: ratio_interval(-1, 2, 1, 2)]
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(AssayError):
        call()


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_the_jackknife_of_a_mean_is_its_standard_error(values):
    # Leaving out x_i moves the mean by (mean - x_i) / (n - 1), so that the jackknife's variance is s^2 / n.
    low, high = jackknife(np.array(values), lambda left: float(left.mean()))
    assert (low + high) / 2 == pytest.approx(np.mean(values), abs=1e-9)
    assert (high - low) / 2 == pytest.approx(1.959963984540054 * np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-6)


def test_the_jackknife_leaves_out_whole_clusters():
    values = np.arange(6.0)
    assert jackknife(values, np.sum, ["b", "b", "a", "a", "c", "c"]) == pytest.approx(jackknife(values.reshape(3, 2), np.sum))
    for wrong in (lambda: jackknife(values, np.sum, ["a"] * 6), lambda: jackknife(values, np.sum, level=1.0)):
        with pytest.raises(AssayError):
            wrong()
