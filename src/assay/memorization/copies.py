"""Whether a picture is a copy of one given work: three measures of likeness, with thresholds set on works that the model never saw.

The rule is that of the nearest-work audit (`nearest.py`), for single pictures: one picture is asked of the model for each calibration work by its
caption and compared with that work. A picture is a copy where at least `agreement` measures exceed thresholds at which a work never trained on is
called copied at the stated rate.
"""

from __future__ import annotations

import numpy as np

from assay.evaluation.thresholds import Joint, joint_threshold
from assay.judge import JudgeLike
from assay.memorization.looks import compare, looks


def calibrate(pictures: np.ndarray, works: np.ndarray, judge: JudgeLike, *, false_positives: float, agreement: int) -> Joint:
    """Set the thresholds.

    Args:
        pictures: drawn for the calibration works, in their order: uint8, (n, 3, h, w).
        works: the works themselves: uint8, (n, 3, h, w).
        judge: gives the third measure.
        false_positives: rate at which a picture of a work never trained on may be called its copy; at least 1 / (n + 1) can be held.
        agreement: how many measures must agree.

    Returns:
        The rule, with the rate that it achieves on these works.
    """
    similarity, _ = compare(looks(pictures, judge), looks(works, judge), np.arange(len(works)))
    return joint_threshold(similarity, max(false_positives, 1 / (len(works) + 1)), agreement)


def copied(pictures: np.ndarray, work: np.ndarray, judge: JudgeLike, rule: Joint) -> np.ndarray:
    """Say which pictures are copies of a work: bool, (n,).

    Args:
        pictures: uint8, (n, 3, h, w).
        work: uint8, (3, h, w).
        judge: the one that the rule was set with.
        rule: from `calibrate`.
    """
    similarity, _ = compare(looks(pictures, judge), looks(work[None], judge), np.zeros(len(pictures), np.int64))
    return rule.flags(similarity)
