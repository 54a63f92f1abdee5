import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import Misconfigured
from assay.evaluation.kid import crossed, floor, kid, mmd2


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    # Gretton et al. 2012, Eq. 3, with explicit loops over all pairs.
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def samples(seed: int, n: int, m: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.standard_normal((m, d)) + 0.3


@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(2, 8), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_mmd2_is_the_sum_over_pairs(seed, n, m, d):
    x, y = samples(seed, n, m, d)
    assert mmd2(x, y) == pytest.approx(by_hand(x, y), rel=1e-9, abs=1e-9)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_mmd2_is_symmetric_and_ignores_order(seed):
    x, y = samples(seed, 9, 7, 4)
    order = np.random.default_rng(seed).permutation(9)
    assert mmd2(x, y) == pytest.approx(mmd2(y, x), abs=1e-9)
    assert mmd2(x[order], y) == pytest.approx(mmd2(x, y), abs=1e-9)


def test_mmd2_is_unbiased():
    # Same distribution: the expectation is 0. Over 400 independent repeats the mean lies within 4 standard errors of it.
    rng = np.random.default_rng(0)
    found = np.array([mmd2(rng.standard_normal((10, 3)), rng.standard_normal((14, 3))) for _ in range(400)])
    assert abs(found.mean()) < 4 * found.std() / 20


def test_mmd2_of_shifted_normals_has_the_closed_form():
    # d = 1, k = (xy + 1)^3 = sum_i C(3, i) x^i y^i, so MMD^2 = sum_i C(3, i) (E x^i - E y^i)^2. N(0,1) moments 0, 1, 0; N(1,1) moments 1, 2, 4:
    # 3 * 1 + 3 * 1 + 1 * 16 = 22.
    rng = np.random.default_rng(0)
    found = [mmd2(rng.standard_normal((200, 1)), rng.standard_normal((200, 1)) + 1) for _ in range(40)]
    assert np.mean(found) == pytest.approx(22, abs=4 * np.std(found) / np.sqrt(40))


def test_interval_holds_the_estimate_and_separates_what_differs():
    x, y = samples(0, 200, 200, 8)
    far, near = kid(x, y, seed=0), kid(x, samples(1, 200, 1, 8)[0], seed=0)
    assert far.low < far.value < far.high
    assert far.value == mmd2(x, y)
    assert far.low > 0  # a shift of 0.3 in 8 dimensions
    assert near.low < 0 < near.high
    assert far == kid(x, y, seed=0)


def test_interval_covers():
    # 100 repeats of equal distributions: a conservative 95 % interval holds 0 in at least 90 of them (binomial 0.95, 100: P(< 90) = 1 %).
    rng = np.random.default_rng(2)
    held = 0
    for repeat in range(100):
        found = kid(rng.standard_normal((80, 3)), rng.standard_normal((80, 3)), seed=repeat, block=10, draws=300)
        held += found.low <= 0 <= found.high
    assert held >= 90


def test_floor_is_about_zero_and_below_a_real_difference():
    x, y = samples(3, 200, 200, 8)
    noise = floor(x, seed=0)
    assert noise.low < 0 < noise.high
    assert mmd2(x, y) > noise.high
    assert noise == floor(x, seed=0)


def test_what_cannot_be_compared_is_refused():
    for call in (
        lambda: mmd2(np.zeros((1, 3)), np.zeros((5, 3))),
        lambda: mmd2(np.zeros((5, 3)), np.zeros((5, 4))),
        lambda: kid(np.zeros((4, 3)), np.zeros((9, 3)), seed=0),
    ):
        with pytest.raises(Misconfigured):
            call()


def test_crossed_halves_of_one_sample_are_its_floor():
    x, _ = samples(4, 41, 1, 6)
    assert crossed(x, x, seed=3) == floor(x, seed=3)


def test_pairing_does_not_bring_samples_nearer():
    # y is x with a little noise: all of x against all of y pairs every row with its twin, whose similarity pulls the estimate below zero.
    # Crossed halves do not; over 100 samples their mean is within four standard errors of zero, which is the distance of the distributions.
    rng = np.random.default_rng(5)
    paired, across = [], []
    for repeat in range(100):
        x = rng.standard_normal((24, 4))
        y = x + 1e-3 * rng.standard_normal(x.shape)
        paired.append(mmd2(x, y))
        across.append(crossed(x, y, seed=repeat, repeats=4).value)
    assert np.mean(paired) < -4 * np.std(paired) / 10
    assert abs(np.mean(across)) < 4 * np.std(across) / 10


def test_crossed_halves_need_pairs():
    with pytest.raises(Misconfigured, match="same four"):
        crossed(np.zeros((8, 2)), np.zeros((9, 2)), seed=0)
