"""Attribution against retraining: the linear datamodeling score, how high it can go, and a datamodel fitted to the trainings themselves.

Ilyas, Park, Engstrom, Leclerc and Madry, "Datamodels" (ICML 2022): an output of a model is predicted by a linear function of which works it was
trained on. Park, Georgiev, Ilyas, Leclerc and Madry, "TRAK" (ICML 2023, arXiv 2303.14186), Sec. 3: an attribution tau of an output predicts, for a
subset S, the sum of tau over S, and its linear datamodeling score is the rank correlation of that sum with the output after training on S.
Outputs are losses here: a work that helps has a negative attribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import rankdata

from assay.errors import Misconfigured

RIDGES = tuple(10.0**power for power in range(-1, 7))


def predicted(attribution: np.ndarray, included: np.ndarray) -> np.ndarray:
    """Return what attributions (queries, works) say of models trained on `included` (models, works): their sums, float64, (models, queries)."""
    return np.asarray(included, np.float64) @ np.asarray(attribution, np.float64).T


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of every column of two arrays (n, ...): float64, (...); 0 where a column is constant.

    Raises:
        Misconfigured: the shapes differ, or there are fewer than two rows.
    """
    if np.shape(first) != np.shape(second) or len(first) < 2:
        raise Misconfigured(f"Ranks of shapes {np.shape(first)} and {np.shape(second)} cannot be compared.", "Give two rows or more of one shape.")
    x, y = (rankdata(values, axis=0) - (len(values) + 1) / 2 for values in (first, second))
    scale = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    return np.divide((x * y).sum(0), scale, out=np.zeros_like(scale), where=scale > 0)


def lds(sums: np.ndarray, outputs: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Return the linear datamodeling score of every query: float64, (queries,).

    Args:
        sums: what an attribution predicts, from `predicted`: (models, queries).
        outputs: what the models gave: (models, queries).
        rows: models to use for each query, (n, queries), as from `unseen`; all by default.
    """
    if rows is not None:
        sums, outputs = np.take_along_axis(sums, rows, 0), np.take_along_axis(outputs, rows, 0)
    return spearman(sums, outputs)


def unseen(included: np.ndarray) -> np.ndarray:
    """Return for every work the models that did not see it: int64, (models that did not, works).

    A query's own place in the training set moves its loss more than all other works. Over these models it is the same, so that the score is of them.

    Raises:
        Misconfigured: works were seen by different numbers of models.
    """
    counts = (~included).sum(0)
    if len(np.unique(counts)) != 1 or not counts[0]:
        raise Misconfigured("Works were seen by different numbers of models.", "Take complementary pairs of subsets, whole.")
    return np.argsort(included, axis=0, kind="stable")[: counts[0]]


def fit(
    included: np.ndarray, outputs: np.ndarray, groups: np.ndarray | None = None, ridges: Sequence[float] = RIDGES
) -> tuple[np.ndarray, float, np.ndarray]:
    """Fit a linear datamodel to trainings: outputs = intercept + included @ attribution, by ridge regression with one penalty for all queries.

    The penalty is the one with the least squared error of outputs left out, a group at a time, in closed form: with the hat matrix H of the fit with
    its intercept, the error of left-out rows g is (I - H_gg)^-1 (y - H y)_g. All is done in the dual, as there are fewer models than works.

    Args:
        included: which works each model saw: bool, (models, works).
        outputs: what the models gave: (models, queries).
        groups: label of every model, whole groups being left out together: complementary subsets and repeats are not independent.
        ridges: penalties to choose from.

    Returns:
        Attribution (queries, works), the penalty chosen, and the left-out squared error of every penalty over that of the mean alone (ridges,).

    Raises:
        Misconfigured: there are fewer than three groups, or the shapes do not fit.
    """
    x, y = np.asarray(included, np.float64), np.asarray(outputs, np.float64)
    labels = np.arange(len(x)) if groups is None else np.asarray(groups)
    parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if len(x) != len(y) or len(labels) != len(x) or len(parts) < 3:
        raise Misconfigured(f"{len(y)} outputs of {len(x)} models in {len(parts)} groups make no datamodel.", "Train three groups or more.")
    x, y = x - x.mean(0), y - y.mean(0)
    values, vectors = np.linalg.eigh(x @ x.T)
    values = values.clip(0.0)

    def left_out(shrunk: np.ndarray) -> float:
        hat = (vectors * shrunk) @ vectors.T + 1 / len(x)
        residual = y - hat @ y
        return sum(float(np.square(np.linalg.solve(np.eye(len(rows)) - hat[np.ix_(rows, rows)], residual[rows])).sum()) for rows in parts)

    alone = left_out(np.zeros(len(x)))
    errors = np.array([left_out(values / (values + ridge)) for ridge in ridges]) / alone
    ridge = float(ridges[int(errors.argmin())])
    dual = (vectors / (values + ridge)) @ (vectors.T @ y)
    return dual.T @ x, ridge, errors


def agreement(outputs: np.ndarray) -> np.ndarray:
    """Return how well one seed's outputs over subsets rank another's, a mean over the pairs of seeds: float64, (queries,).

    Args:
        outputs: of trainings repeated with other seeds: (subsets, seeds, queries).

    Raises:
        Misconfigured: there are fewer than two seeds.
    """
    seeds = np.shape(outputs)[1]
    if seeds < 2:
        raise Misconfigured("One seed agrees with itself.", "Train every subset with two seeds or more.")
    pairs = [(one, other) for one in range(seeds) for other in range(one)]
    return np.mean([spearman(outputs[:, one], outputs[:, other]) for one, other in pairs], axis=0)


def ceiling(between_seeds: float, seeds: int = 1, *, subsets: int | None = None, scored: int | None = None) -> float:
    """Return the linear datamodeling score that a perfect prediction of the expected output would have.

    Outputs are the expectation over seeds plus what the seed adds. The correlation of two seeds is the share r of variance that is not the seed's; of
    the mean of s seeds it is s r / (1 + (s - 1) r) (Spearman 1910, Brown 1910); and the expectation correlates with it by the square root. Ranks are
    turned into correlations and back as for Gaussians, see `ranked`.

    Args:
        between_seeds: mean rank correlation of two seeds' outputs, from `agreement`; a mean over queries makes it the ceiling of a typical query.
        seeds: over which the measured outputs are averaged.
        subsets: how many the agreement was measured on; many if None.
        scored: models that predictions are scored on; many if None.
    """
    inside = 0 < between_seeds < 1
    root: Any = brentq(lambda r: ranked(r, subsets) - between_seeds, 0.0, 1.0) if inside else min(max(between_seeds, 0.0), 1.0)
    r = float(root)
    return ranked(float(np.sqrt(seeds * r / (1 + (seeds - 1) * r))), scored)


def ranked(correlation: float, n: int | None = None) -> float:
    """Return the expected rank correlation of n draws of two Gaussians (Moran 1948, Biometrika 35:203); of many if None (Pearson 1907)."""
    half = float(np.arcsin(correlation / 2))
    return 6 / np.pi * (half if n is None else (float(np.arcsin(correlation)) + (n - 2) * half) / (n + 1))
