"""Thresholds from negatives: the order statistic that keeps a false-positive rate for a new negative, and what is known of the rate it really has.

Calibrated on n negatives, a new negative exchangeable with them is flagged with probability at most the stated rate (split conformal prediction;
Vovk et al. 2005, Prop. 4.1), whatever the distribution of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import beta

from assay.errors import Misconfigured


class Threshold(NamedTuple):
    """A score is flagged where it is greater than `value`."""

    value: float
    """The threshold; infinite where so few negatives cannot hold the rate."""
    achieved: float
    """Share of the negatives that are flagged."""
    bound: float
    """Upper 95 % confidence bound of the rate among all negatives."""
    n: int
    """Negatives it was set on."""


def allowed(n: int, false_positive_rate: float) -> int:
    """Return how many of n negatives may be flagged so that a new one is flagged at most at the rate: floor(rate * (n + 1)) - 1; -1 if not even none.

    Raises:
        Misconfigured: the rate is not between 0 and 1.
    """
    if not 0 < false_positive_rate < 1:
        raise Misconfigured(f"A false-positive rate lies between 0 and 1; got {false_positive_rate}.", "Use 0.05.")
    return math.floor(false_positive_rate * (n + 1) + 1e-9) - 1


def bound(n: int, flagged: int, level: float = 0.95) -> float:
    """Return the upper bound of the rate of a threshold that was put at the (flagged + 1)-th largest of n negatives.

    The rate of that order statistic is Beta(flagged + 1, n - flagged) for continuous scores, and smaller where scores tie.
    """
    return float(beta.ppf(level, flagged + 1, n - flagged)) if flagged < n else 1.0


def threshold_at(negatives: Sequence[float] | np.ndarray, false_positive_rate: float) -> Threshold:
    """Return the smallest threshold that flags a new negative at most at the rate.

    Args:
        negatives: scores of what must not be flagged; higher is more suspicious.
        false_positive_rate: probability of flagging a new one.
    """
    scores = np.sort(np.asarray(negatives, np.float64))[::-1]
    most = allowed(len(scores), false_positive_rate)
    if most < 0:
        return Threshold(math.inf, 0.0, 0.0, len(scores))
    value = float(scores[most])
    return Threshold(value, float((scores > value).mean()), bound(len(scores), most), len(scores))


class Joint(NamedTuple):
    """A negative is flagged where at least `least` of its scores are greater than their thresholds."""

    values: tuple[float, ...]
    """One threshold per measure."""
    least: int
    """How many measures must agree."""
    achieved: float
    """Share of the negatives that are flagged."""
    n: int
    """Negatives it was set on."""

    def flags(self, scores: np.ndarray) -> np.ndarray:
        """Return which of scores (..., measures) are flagged: bool, (...)."""
        return (np.asarray(scores) > np.array(self.values)).sum(-1) >= self.least


def joint_threshold(negatives: np.ndarray, false_positive_rate: float, least: int = 2) -> Joint:
    """Return thresholds, equally strict in every measure, that together flag a new negative at most at about the rate.

    Every measure's threshold is its (j + 1)-th largest negative, for one and the same j: the largest at which the agreement of `least` measures still
    flags no more negatives than `allowed` (risk control by the largest safe setting; Angelopoulos et al. 2022, Sec. 2). Because the ladder of
    thresholds comes from the same negatives, the rate is to be checked on others.

    Args:
        negatives: scores of what must not be flagged, (n, measures); higher is more suspicious.
        false_positive_rate: probability of flagging a new one.
        least: how many measures must agree.
    """
    scores = np.asarray(negatives, np.float64)
    ladder = -np.sort(-scores, axis=0)
    most = allowed(len(scores), false_positive_rate)
    chosen = Joint((math.inf,) * scores.shape[1], least, 0.0, len(scores))
    for values in ladder if most >= 0 else ():
        flagged = int(((scores > values).sum(1) >= least).sum())
        if flagged > most:
            break
        chosen = Joint(tuple(values.tolist()), least, flagged / len(scores), len(scores))
    return chosen
