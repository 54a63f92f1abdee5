"""Copies are told from other pictures by a rule that is set on works never seen."""

import numpy as np
import pytest

from assay.evaluation.centroid import CentroidJudge
from assay.memorization.copies import calibrate, copied
from assay.testing import tiny_works


@pytest.fixture(scope="module")
def world():
    works = tiny_works()
    pixels = np.ascontiguousarray(works.pixels(32).transpose(0, 3, 1, 2))
    return CentroidJudge(works), pixels


def test_a_copy_is_one_and_another_work_is_not(world):
    """The rule is set on pictures that are every time another work: what is the work itself exceeds it, what they were does not."""
    judge, pixels = world
    rule = calibrate(np.roll(pixels, 10, axis=0), pixels, judge, false_positives=0.05, agreement=2)
    assert rule.achieved <= 0.05
    own, other = pixels[7], pixels[17]
    faint = np.clip(own.astype(int) + 3, 0, 255).astype(np.uint8)
    assert copied(np.stack([own, other, faint]), own, judge, rule).tolist() == [True, False, True]


def test_few_works_hold_a_rate_no_smaller_than_they_can(world):
    """Four works allow one in five: none of the four is flagged then, and the thresholds are finite."""
    judge, pixels = world
    rule = calibrate(np.roll(pixels[:4], 1, axis=0), pixels[:4], judge, false_positives=0.01, agreement=2)
    assert rule.achieved == 0
    assert np.isfinite(rule.values).all()
