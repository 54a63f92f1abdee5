"""Expected values: scikit-learn's regression, scipy's test division by division, uniform p-values under the null hypothesis, power by Gaussians."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, ttest_ind
from sklearn.linear_model import LogisticRegression

from assay.errors import Misconfigured
from assay.memorization.dataset_inference import compare, fit, infer
from assay.noise import numpy_generator


@given(st.integers(0, 99), st.floats(0, 3), st.sampled_from([1e-6, 1.0, 1e4]))
def test_weights_are_the_ridge_logistic_regression_s(seed, shift, scale):
    rng = numpy_generator(seed, "fit")
    suspects, others = scale * (rng.normal(size=(2, 15, 3)) + shift), scale * rng.normal(size=(2, 20, 3))
    for weights, ours, theirs in zip(fit(suspects, others), suspects, others, strict=True):
        both = np.concatenate([ours, theirs])
        model = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000).fit((both - both.mean(0)) / both.std(0), np.arange(35) < 15)
        np.testing.assert_allclose(weights * both.std(0), model.coef_[0], atol=1e-4)


def test_p_values_are_welch_s():
    rng = numpy_generator(0, "welch")
    parts = [rng.normal(size=(4, n, 2)) for n in (12, 15, 13, 18)]
    p_values, shifts = compare(*parts)
    for row, weights in enumerate(fit(parts[0], parts[1])):
        ours, theirs = parts[2][row] @ weights, parts[3][row] @ weights
        assert p_values[row] == pytest.approx(ttest_ind(ours, theirs, equal_var=False, alternative="greater").pvalue)
        assert shifts[row] == pytest.approx((ours.mean() - theirs.mean()) / np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / 2))


def test_p_values_are_uniform_under_the_null_hypothesis():
    # 2000 collections of works no different from the others, one division each, scores correlated as those of one tape are.
    rng = numpy_generator(1, "null")
    drawn = rng.normal(size=(2000, 90, 1)) + rng.normal(size=(2000, 90, 4))
    p_values, _ = compare(drawn[:, :20], drawn[:, 20:45], drawn[:, 45:65], drawn[:, 65:])
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_twice_the_average_never_rejects_too_often():
    # Of 300 collections that were not trained, at most a share L and 3 deviations may fall below L, whatever L. The average itself gathers about one
    # half, so that it falls below 0.65 far oftener.
    rng = numpy_generator(2, "null")
    found = [infer(rng.normal(size=(24, 3)), rng.normal(size=(30, 3)), seed=index, divisions=10) for index in range(300)]
    p_values, averages = (np.array([getattr(result, name) for result in found]) for name in ("p_value", "average"))
    levels = np.linspace(0.05, 0.95, 19)
    allowed = levels + 3 * np.sqrt(levels * (1 - levels) / 300)
    assert ((p_values[:, None] <= levels).mean(0) <= allowed).all()
    assert ((averages[:, None] <= levels).mean(0) > allowed)[levels > 0.6].any()
    assert p_values == pytest.approx(np.minimum(1.0, 2 * averages))


def test_a_planted_shift_is_found_and_grows_with_the_collection():
    # Half a deviation in each of four independent scores is one deviation along their sum: 60 against 60 test works have z = 5.5.
    rng = numpy_generator(3, "planted")
    suspects, others = rng.normal(size=(120, 4)) + 0.5, rng.normal(size=(120, 4))
    large = infer(suspects, others, seed=0)
    small = infer(suspects[:20], others[:20], seed=0)
    assert large.p_value < 1e-4
    assert large.p_value < small.p_value
    assert large.shift == pytest.approx(1.0, abs=0.25)
    assert large.direction == pytest.approx(0.5, abs=0.15)
    turned = infer(others, suspects, seed=0)
    assert turned.shift > 0.7  # the regression learns the sign: the test says that they differ,
    assert turned.direction == pytest.approx(-large.direction)  # and this which way


def test_a_division_depends_on_the_seed_alone():
    rng = numpy_generator(4, "seed")
    suspects, others = rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    assert infer(suspects, others, seed=1) == infer(suspects, others, seed=1)
    assert infer(suspects, others, seed=1).average != infer(suspects, others, seed=2).average


def test_scores_without_any_difference_are_no_evidence():
    assert infer(np.ones((20, 2)), np.ones((20, 2)), seed=0).p_value == 1


def test_too_few_works_are_refused():
    with pytest.raises(Misconfigured, match="too few"):
        infer(np.zeros((7, 2)), np.zeros((20, 2)), seed=0)
