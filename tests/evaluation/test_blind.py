"""Expected values: scikit-learn's ridge regression fold by fold, pairs counted out, and permutations of labels that mean nothing."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from assay.errors import Misconfigured
from assay.evaluation.blind import FOLDS, RIDGE, baseline, kernel, words
from assay.noise import numpy_generator


def test_predictions_are_ridge_regression_s_out_of_fold():
    # With features Z, K = Z Z' / d, the dual (K + r)^-1 is the primal penalty r d. Pairs of one fold are counted out.
    rng = numpy_generator(0, "blind")
    features, members = rng.normal(size=(30, 4)) * [1, 2, 5, 0.1] + 3, rng.random(30) < 0.5
    scaled = (features - features.mean(0)) / features.std(0)
    fold = numpy_generator(7, "blind baseline").permutation(30) % FOLDS
    won, pairs = 0.0, 0
    for left in range(FOLDS):
        model = Ridge(alpha=RIDGE * 4, fit_intercept=False).fit(scaled[fold != left], members[fold != left] - members[fold != left].mean())
        scores, inside = model.predict(scaled[fold == left]), members[fold == left]
        won += sum(high > low for high in scores[inside] for low in scores[~inside])
        pairs += inside.sum() * (~inside).sum()
    found = baseline(kernel(features), members, seed=7, permutations=20)
    assert found.auc == pytest.approx(won / pairs)


def test_a_difference_in_kind_is_seen_and_none_is_not():
    rng = numpy_generator(1, "blind")
    features, members = rng.normal(size=(80, 6)), np.arange(80) < 40
    nothing = baseline(kernel(features), members, seed=0, permutations=200)
    assert nothing.chance[0] < nothing.auc < nothing.chance[1]
    assert nothing.p_value > 0.05
    shifted = baseline(kernel(features + 1.5 * members[:, None]), members, seed=0, permutations=200)
    assert shifted.auc > 0.95
    assert shifted.p_value == pytest.approx(1 / 201)


def test_p_values_hold_their_level():
    # 200 data sets without any difference: at most 10 % + 3 deviations (2.1 %) have p <= 0.1, and about as many do.
    rng = numpy_generator(2, "blind")
    p_values = [baseline(kernel(rng.normal(size=(24, 3))), np.arange(24) < 12, seed=index, permutations=59).p_value for index in range(200)]
    assert 0.03 <= np.mean(np.array(p_values) <= 0.1) <= 0.165


def test_words_are_counted_by_hand():
    # Columns: cat, red, style; then words and letters.
    np.testing.assert_array_equal(words(["red red cat", "Cat, style"]), [[1, 2, 0, 3, 11], [1, 0, 1, 2, 10]])


def test_kernel_has_a_mean_diagonal_of_one_and_forgets_what_never_varies():
    features = numpy_generator(3, "kernel").normal(size=(9, 5))
    products = kernel(np.column_stack([features, np.full(9, 4.0)]))
    assert np.trace(products) / 9 == pytest.approx(1)
    np.testing.assert_allclose(products, kernel(features))
    np.testing.assert_allclose(kernel(np.ones((3, 2))), 0)


def test_one_kind_alone_is_refused():
    with pytest.raises(Misconfigured, match="either kind"):
        baseline(np.eye(4), np.ones(4, bool), seed=0)
