"""Membership: whether scores tell works a model was trained on from works it was not, and the likelihood-ratio attack.

Carlini, Chien, Nasr, Song, Terzis and Tramer, "Membership Inference Attacks From First Principles" (IEEE S&P 2022, arXiv 2112.03570): an attack is
judged by its true-positive rate at a low false-positive rate, and the strongest is the ratio of the likelihoods of a work's losses under Gaussians
fitted to models that saw it and to models that did not (LiRA, Alg. 1, the online attack). Here every model is the target once, the others being its
shadow models. Scores are higher for members; losses as an attack are `-losses`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from assay.errors import Misconfigured
from assay.evaluation.intervals import Interval

Variance = Literal["global", "work"]


class Roc:
    """The receiver operating characteristic of scores pooled over whatever axes they have; sorted once, so that a bootstrap is quick.

    Args:
        scores: higher for members; any shape.
        members: which are: bool, the same shape.
    """

    def __init__(self, scores: np.ndarray, members: np.ndarray) -> None:
        """Sort the scores.

        Raises:
            Misconfigured: the shapes differ, a score is not a number, or there are no members or nothing but members.
        """
        scores, members = np.asarray(scores, np.float64), np.asarray(members, bool)
        if scores.shape != members.shape or members.all() or not members.any() or np.isnan(scores).any():
            raise Misconfigured("Scores need members and non-members to compare, one number for each.", "Give both in arrays of one shape.")
        self.shape = scores.shape
        self.order = np.argsort(-scores.ravel(), kind="stable")
        ordered = scores.ravel()[self.order]
        self.members = members.ravel()[self.order]
        self.last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of every run of equal scores: a threshold cannot divide it

    def curve(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return false- and true-positive rates at every threshold, from (0, 0) to (1, 1).

        Args:
            weights: how much each score counts, broadcast to their shape; a bootstrap gives the number of times each was drawn.
        """
        each = np.ones(len(self.order)) if weights is None else np.broadcast_to(weights, self.shape).ravel()[self.order].astype(np.float64)
        true, false = np.cumsum(each * self.members), np.cumsum(each * ~self.members)
        return np.append(0.0, false[self.last] / false[-1]), np.append(0.0, true[self.last] / true[-1])

    def auc(self, weights: np.ndarray | None = None) -> float:
        """Return the area under the curve: the probability that a member scores above a non-member, ties counting half."""
        false, true = self.curve(weights)
        return float(np.trapezoid(true, false))

    def tpr(self, false_positive_rate: float, weights: np.ndarray | None = None) -> float:
        """Return the largest true-positive rate of a threshold whose false-positive rate is at most the one given; nothing is interpolated."""
        false, true = self.curve(weights)
        return float(true[np.searchsorted(false, false_positive_rate + 1e-12, side="right") - 1])


def auc_interval(auc: float, members: int, others: int, level: float = 0.95) -> Interval:
    """Return the score interval of an area under the curve (Newcombe 2006, Stat. Med. 25:559, method 5).

    It holds every area A that lies within z deviations of the one seen, with the variance that exponential scores would have at A (Hanley and McNeil
    1982), both counts in it replaced by their mean:

        A (1 - A) (1 + N (1 - A) / (2 - A) + N A / (1 + A)) / (m n),   N = (m + n) / 2 - 1.

    Unlike a bootstrap it keeps its width where members and others do not overlap at all.

    Args:
        auc: the area seen.
        members: how many there were.
        others: how many non-members.
        level: of the interval.

    Raises:
        Misconfigured: there is nothing to compare.
    """
    if members < 1 or others < 1 or not 0 <= auc <= 1:
        raise Misconfigured(f"{members} members and {others} others have no area of {auc}.", "Score at least one of each.")
    z, more = float(ndtri((1 + level) / 2)), (members + others) / 2 - 1

    def excess(area: float) -> float:
        spread = area * (1 - area) * (1 + more * (1 - area) / (2 - area) + more * area / (1 + area)) / (members * others)
        return (auc - area) ** 2 - z * z * spread

    inside = min(max(auc, 1e-9), 1 - 1e-9)  # at 0 and 1 the variance is nothing, and the area seen would be its own end

    def end(limit: float) -> float:
        return limit if auc == limit else float(brentq(excess, *sorted((inside, limit)), xtol=1e-12))  # pyright: ignore[reportArgumentType]

    return end(0.0), end(1.0)


def gaussian_auc(distance: float) -> float:
    """Return the AUC of the best attack on two Gaussians of one variance whose means are `distance` deviations apart: Phi(d / sqrt 2)."""
    return float(ndtr(distance / np.sqrt(2)))


def gaussian_tpr(distance: float, false_positive_rate: float) -> float:
    """Return that attack's true-positive rate: Phi(d + Phi^-1(rate)), by Neyman and Pearson the largest there is."""
    return float(ndtr(distance + ndtri(false_positive_rate)))


def likelihood_ratio(losses: np.ndarray, included: np.ndarray, groups: np.ndarray | None = None, *, variance: Variance = "global") -> np.ndarray:
    """Return the logarithm of the likelihood ratio of every model and work: float64, (models, works), higher for members.

    For model m and work w the Gaussians of w's loss, seen and unseen, are fitted to the other models (Alg. 1; with k losses, to their vectors). With
    `variance` "global" they have the means of w and the covariance pooled over all works, one for seen and one for unseen, which takes few models;
    with "work" the covariance of w alone.

    Args:
        losses: (models, works) or (models, works, k), as near to Gaussian as can be: logarithms of losses are nearer than losses.
        included: which works each model saw: bool, (models, works).
        groups: label of every model; a model's whole group is left out of its fits. Models that differ in seed alone, or whose subsets are
            complements, belong together.
        variance: global or work.

    Raises:
        Misconfigured: the shapes do not fit, or some work has too few models left that saw it, or that did not, to fit a Gaussian.
    """
    values, included = np.asarray(losses, np.float64), np.asarray(included, bool)
    values = values[:, :, None] if values.ndim == 2 else values
    models, works, k = values.shape
    if included.shape != (models, works) or variance not in ("global", "work"):
        raise Misconfigured(
            f"Losses of shape {losses.shape} do not fit inclusions of shape {included.shape}.", "Give one of each per model and work."
        )
    labels = np.unique(np.arange(models) if groups is None else groups, return_inverse=True)[1]
    values = values - values.mean(0)  # sums of squares lose no digits to the works' means
    ratio = np.zeros((models, works))
    for member, sign in ((included, 1.0), (~included, -1.0)):
        kept = member[:, :, None] * values
        outer = kept[:, :, :, None] * kept[:, :, None, :]
        for label in range(labels.max() + 1):
            rest = labels != label
            count = member[rest].sum(0)
            least = 2 if variance == "global" else k + 1
            if count.min() < least:
                raise Misconfigured(f"A work has {count.min()} models to fit a Gaussian to; {least} are needed.", "Train more models.")
            mean = kept[rest].sum(0) / count[:, None]
            scatter = outer[rest].sum(0) - count[:, None, None] * mean[:, :, None] * mean[:, None, :]
            if variance == "global":
                covariance = np.broadcast_to(scatter.sum(0) / (count - 1).sum(), scatter.shape)
            else:
                covariance = scatter / (count - 1)[:, None, None]
            away = values[~rest] - mean
            solved = np.linalg.solve(covariance, away.transpose(1, 2, 0)).transpose(2, 0, 1)
            ratio[~rest] -= sign * 0.5 * ((away * solved).sum(2) + np.linalg.slogdet(covariance)[1])
    return ratio
