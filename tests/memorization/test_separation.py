"""Scores planted by hand, so that every figure is known."""

import numpy as np
import pytest

from assay.memorization.groups import Group
from assay.memorization.separation import findings, separate
from assay.memorization.verdicts import Evidence

GROUPS = [
    Group("calibration", None, 0, list(range(19))),
    Group("holdout", None, 0, [19, 20]),
    Group("members", None, 1, [21, 22]),
    Group("canary", "one", 0, [23, 24]),
    Group("canary", "one", 4, [25]),
    Group("canary", "one", 16, [26]),
    Group("canary", "varied", 64, [27]),
]
ABOUT = {"copies": 16, "rate": 0.1, "what": "captions"}


def evidence():
    scores = np.arange(28, dtype=float)
    scores[19:21] = 0.5, 18.5  # holdout: one below nearly all calibration scores, one above all
    scores[21:23] = 9.5, 30.0  # members
    scores[23:25] = -1.0, -2.0  # canaries withheld
    scores[25:28] = 0.0, 40.0, 17.5  # k = 4 counts nowhere
    return Evidence(GROUPS, list(range(28)), {"planted": scores}, known={"planted": "planted by hand"})


def test_every_figure_by_hand():
    """19 calibration scores 0 to 18 at 10 %: floor(0.1 x 20) - 1 = 1 may be flagged, so the threshold is the second largest, 17."""
    found = separate(evidence(), **ABOUT)
    assert found.thresholds == {"planted": 17.0}
    by = {metric.name: metric for metric in found.metrics}
    assert by["planted.tpr"].value == 1.0  # 40 and 17.5
    assert by["planted.tpr"].n == 2
    assert by["planted.members.flagged"].value == 0.5
    assert by["planted.false_positives"].value == 0.25  # of holdout and withheld canaries, 18.5 alone
    # 40 beats all 23 never trained; 17.5 beats all but 18 and 18.5.
    assert by["planted.auc"].value == pytest.approx((23 + 21) / 46)
    # 9.5 beats 0 to 9, 0.5, -1 and -2; 30 all.
    assert by["planted.members.auc"].value == pytest.approx((13 + 23) / 46)
    assert by["planted.auc"].n == 25


def test_the_rate_is_what_so_few_works_can_hold():
    """19 works hold 1 / 20 at best; asked for 1 %, the finding says how many are needed: 1 / 0.01 - 1."""
    found = separate(evidence(), **(ABOUT | {"rate": 0.01}))
    assert found.rate == 1 / 20
    assert any("99 are needed" in sentence for sentence in findings(evidence(), found, **(ABOUT | {"rate": 0.01})))


def test_without_canaries_members_are_told_of():
    only = Evidence(GROUPS[:3], list(range(23)), {"planted": evidence().scores["planted"][:23]}, known={"planted": "planted by hand"})
    found = separate(only, **ABOUT)
    assert {metric.name for metric in found.metrics} == {"planted.members.auc", "planted.members.flagged", "planted.false_positives"}
    assert all("canaries" not in sentence for sentence in findings(only, found, **ABOUT))
