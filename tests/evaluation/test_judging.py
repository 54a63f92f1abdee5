import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import Misconfigured
from assay.evaluation.judging import calibration_error, kappa, reliability
from assay.noise import numpy_generator


def test_reliability_by_hand():
    # Four verdicts in two bins: confidences (.2, .4) with one right, (.6, 1.0) with both right.
    points = reliability(np.array([1.0, 0.2, 0.6, 0.4]), np.array([True, False, True, True]), bins=2)
    assert [(point.confidence, point.accuracy, point.n) for point in points] == [(pytest.approx(0.3), 0.5, 2), (pytest.approx(0.8), 1.0, 2)]
    assert calibration_error(points) == pytest.approx((2 * 0.2 + 2 * 0.2) / 4)


def test_a_judge_that_is_right_as_often_as_it_says_has_no_calibration_error():
    rng = numpy_generator(0, "calibrated")
    confidence = rng.uniform(0.2, 1, 40_000)
    right = rng.uniform(size=len(confidence)) < confidence
    # A bin's accuracy has a deviation of at most 0.5 / sqrt(4000) = 0.008; the mean of ten absolute ones is below that.
    assert calibration_error(reliability(confidence, right)) < 0.012
    assert calibration_error(reliability(confidence, rng.permutation(right))) > 0.1


def test_every_verdict_is_in_one_bin():
    points = reliability(np.linspace(0, 1, 23), np.ones(23, bool), bins=10)
    assert sum(point.n for point in points) == 23
    assert max(point.n for point in points) - min(point.n for point in points) <= 1


def test_kappa_by_hand():
    # A table by hand: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no.
    # Observed .7; chance .5 * .6 + .5 * .4 = .5; kappa = .2 / .5 = .4.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert kappa(np.array(first), np.array(second)) == pytest.approx(0.4)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_a_judge_agrees_with_itself_and_agreement_is_mutual(names):
    one = np.array(names)
    assert kappa(one, one) == pytest.approx(1)
    assert kappa(one, one[::-1]) == pytest.approx(kappa(one[::-1], one))


def test_lengths_must_agree():
    with pytest.raises(Misconfigured):
        reliability(np.ones(2), np.ones(3, bool))
    with pytest.raises(Misconfigured):
        kappa(np.array([]), np.array([]))
