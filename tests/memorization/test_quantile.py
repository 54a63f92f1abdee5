"""Expected values: the conditional quantiles of a Gaussian whose mean is known, and eigenvectors of a kernel made by hand."""

import numpy as np
import pytest
from scipy.stats import norm

from assay.errors import Misconfigured
from assay.evaluation.membership import Roc
from assay.memorization.quantile import components, margins
from assay.noise import numpy_generator


def drawn(count=400, slope=3.0, shift=2.0):
    """Calibration works, then as many others of which every second was trained and lies `shift` higher; what works are like moves scores far more."""
    rng = numpy_generator(0, "quantile")
    features = rng.normal(size=(2 * count, 2))
    members = np.arange(2 * count) >= count
    members &= np.arange(2 * count) % 2 == 0
    return features, slope * features[:, 0] + rng.normal(size=2 * count) + shift * members, members, np.arange(2 * count) < count


def test_margins_are_over_the_conditional_quantile():
    # The 0.8 quantile of N(3 f, 1) is 3 f + 0.842. Its estimate from 400 works errs by about sqrt(d q (1 - q) / n) / density(0.842) = 0.12.
    features, scores, _, calibration = drawn()
    found = margins(scores, features, calibration, seed=0, level=0.8, bags=24)
    expected = scores - 3 * features[:, 0] - norm.ppf(0.8)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.25
    assert (found[calibration] > 0).mean() == pytest.approx(0.2, abs=0.06)  # 400 works: a deviation of 0.02


def test_what_works_are_like_no_longer_hides_membership():
    features, scores, members, calibration = drawn()
    found = margins(scores, features, calibration, seed=0, bags=8)
    rest = ~calibration
    assert Roc(scores[rest], members[rest]).auc() < 0.75  # 2 against a spread of sqrt(1 + 9): Phi(2 / sqrt(20)) = 0.67
    assert Roc(found[rest], members[rest]).auc() > 0.88  # against 1 alone: Phi(sqrt 2) = 0.92


def test_calibration_works_are_judged_by_strangers():
    # One calibration work of 20 lies a million above: those who drew it would predict it. Its own margin must not be small.
    features = np.zeros((20, 1))
    scores = np.append(np.zeros(19), 1e6)
    assert margins(scores, features, np.ones(20, bool), seed=0, level=0.99, bags=1)[-1] == pytest.approx(1e6)


def test_components_are_the_kernel_s_directions():
    axes = np.linalg.qr(numpy_generator(1, "axes").normal(size=(6, 6)))[0]
    found = components(axes @ np.diag([5.0, 3, 0, 0, 0, 0]) @ axes.T, 3)
    for place in range(2):
        assert abs(found[:, place] @ axes[:, place]) == pytest.approx(6**0.5)
    assert np.square(found).mean(0) == pytest.approx([1, 1, 0])


def test_too_few_calibration_works_are_refused():
    with pytest.raises(Misconfigured, match="20 works or more"):
        margins(np.zeros(30), np.zeros((30, 1)), np.arange(30) < 19, seed=0)
