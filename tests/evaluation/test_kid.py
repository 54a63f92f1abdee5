import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import Misconfigured
from assay.evaluation.kid import excess, floor, mmd2, paired


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
    ):
        with pytest.raises(Misconfigured):
            call()


def twins(seed: int, n: int, d: int, spread: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, d))
    return shared + spread * rng.standard_normal((n, d)), shared + spread * rng.standard_normal((n, d)) + shift


@given(st.integers(0, 10**6), st.integers(4, 9), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_paired_is_the_mean_over_pairs_of_different_prompts(seed, n, d):
    x, y = twins(seed, n, d, 1.0, 0.3)
    groups = np.random.default_rng(seed).permutation(np.arange(n) % 4)

    def kernel(a, b):
        return (float(a @ b) / d + 1) ** 3

    pairs = [(i, j) for i in range(n) for j in range(n) if groups[i] != groups[j]]
    expected = np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(y[i], x[j]) for i, j in pairs])
    assert paired(x, y, groups, seed=0, draws=1).value == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_pairing_does_not_bring_samples_nearer():
    # Twins differ by a little noise: all of x against all of y pairs every row with its twin, whose similarity pulls the estimate below zero.
    # Without the pairs of twins, over 100 samples, the mean is within four standard errors of zero, which is the distance of the distributions.
    plain, across = [], []
    for repeat in range(100):
        x, y = twins(repeat, 24, 4, 1e-3, 0.0)
        plain.append(mmd2(x, y))
        across.append(paired(x, y, seed=repeat, draws=1).value)
    assert np.mean(plain) < -4 * np.std(plain) / 10
    assert abs(np.mean(across)) < 4 * np.std(across) / 10


def test_exchanges_find_a_shift_and_nothing_where_there_is_none():
    # A permutation test of 5 %: of 200 samples without a shift 4 to 18 exceed (binomial 0.05, 200: P(outside) < 2 %); a shift of 0.3 is always found.
    same, moved = [], []
    for repeat in range(200):
        found = paired(*twins(repeat, 60, 8, 0.6, 0.0), seed=repeat, draws=200)
        same.append(found.value > found.exchange)
    for repeat in range(20):
        found = paired(*twins(repeat, 60, 8, 0.6, 0.3), seed=repeat, draws=200)
        moved.append(found.value > found.exchange and found.p < 0.05)
    assert 4 <= sum(same) <= 18
    assert all(moved)


def test_the_jackknife_interval_covers():
    # Away from the null a U-statistic is normal: of 100 intervals of 95 % at least 88 hold the distance (binomial 0.95, 100: P(< 88) = 0.1 %).
    # d = 1, x ~ N(0, 1.36), y ~ N(0.5, 1.36): moments of x 0, 1.36, 0; of y 0.5, 1.61, 0.5 ** 3 + 3 * 0.5 * 1.36 = 2.165.
    truth = 3 * 0.5**2 + 3 * 0.25**2 + 2.165**2
    held = 0
    for repeat in range(100):
        found = paired(*twins(repeat, 400, 1, 0.6, 0.5), seed=0, draws=1)
        held += found.low <= truth <= found.high
    assert held >= 88


def test_pairing_needs_pairs():
    with pytest.raises(Misconfigured, match="same four"):
        paired(np.zeros((8, 2)), np.zeros((9, 2)), seed=0)
    with pytest.raises(Misconfigured, match="same four"):
        paired(np.zeros((8, 2)), np.zeros((8, 2)), [0, 0, 0, 0, 1, 1, 2, 2], seed=0)


def test_excess_is_the_difference_of_two_paired_distances_and_its_jackknife():
    """Expected: the estimate of `paired` twice, and of both without each prompt in turn."""
    rng = np.random.default_rng(5)
    base = rng.standard_normal((12, 3))
    near, far = (base + scale * rng.standard_normal((12, 3)) for scale in (0.1, 0.5))
    groups = [f"prompt {row // 2}" for row in range(12)]

    def apart(rows: list[int]) -> float:
        own = [groups[row] for row in rows]
        return paired(near[rows], base[rows], own, seed=0, draws=1).value - paired(far[rows], base[rows], own, seed=0, draws=1).value

    found = excess(near, far, base, groups)
    without = np.array([apart([row for row in range(12) if row // 2 != prompt]) for prompt in range(6)])
    deviation = np.sqrt(5 / 6 * ((without - without.mean()) ** 2).sum())
    assert found.value == pytest.approx(apart(list(range(12))), rel=1e-9)
    assert found.high - found.value == pytest.approx(1.959964 * deviation, rel=1e-6)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert excess(near, near, base, groups).value == pytest.approx(0, abs=1e-12)
