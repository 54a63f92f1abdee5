"""Dataset inference: was a collection used in training? One p-value for many works, from scores that are weak on each.

"CDI: Copyrighted Data Identification in Diffusion Models". Jan Dubinski, Antoni Kowalczuk, Franziska Boenisch, Adam Dziedzic. CVPR 2025, arXiv
2411.12858; code sprintml/copyrighted_data_identification. A suspect collection P and works U of the same kind that were surely not trained are each
divided into a control and a test half. On the control halves a logistic regression learns which membership scores tell P from U; its linear score is
then compared on the test halves by Welch's one-sided t-test, null hypothesis: P scores no higher than U. The division is repeated and the p-values
averaged.

Written from the paper. Different: the average of p-values is itself no p-value; twice the average is, however they depend on one another
(Rueschendorf 1982; Vovk and Wang 2020, "Combining p-values via averaging", Biometrika 107:791), so that is reported, and the average beside it.
Works serve in one half of a division only: the scores of several folds pooled into one test are no independent draws, because the folds' scoring
functions share works; in 4,000 simulations of the null hypothesis such a test rejected 2.4 % at a level of 1 %. The score is the regression's logit,
nearer to normal than its probability. Cost: no passes. Known failure: the test finds that P and U differ in their scores, whatever the reason and,
the regression being free in sign, whatever the direction. So U must come from where P came from, and the direction is returned as well.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import ttest_ind

from assay.errors import Misconfigured
from assay.noise import numpy_generator

LEAST = 8
"""Fewest works of either kind; an eighth of them says little, but a half has four to learn from and four to test."""
PENALTY = 1.0
STEPS = 30


class Inference(NamedTuple):
    """What is known of a collection."""

    p_value: float
    """Probability of scores as high as these were the collection not trained; valid at any number of divisions."""
    average: float
    """Mean of the divisions' p-values, the paper's figure."""
    shift: float
    """Mean over divisions of the difference of the test halves' mean scores, in pooled standard deviations."""
    direction: float
    """Mean over the scores as given, higher for members, of P's mean less U's in pooled deviations; below 0 P looks less trained on than U."""
    suspects: int
    """Works of the collection."""
    others: int
    """Works that were surely not trained."""


def infer(suspects: np.ndarray, others: np.ndarray, *, seed: int, divisions: int = 100) -> Inference:
    """Test whether a collection was trained on.

    Args:
        suspects: scores of the collection, a column a score: (n, scores).
        others: scores of works of the same kind that were not trained: (m, scores).
        seed: of the divisions.
        divisions: random halves to try.

    Raises:
        Misconfigured: there are fewer than 8 works of a kind, or no divisions.
    """
    if min(len(suspects), len(others)) < LEAST or divisions < 1:
        raise Misconfigured(f"{len(suspects)} works against {len(others)} are too few to test.", f"Give {LEAST} or more of each.")
    rng = numpy_generator(seed, "dataset inference")
    halves = [np.stack([rng.permutation(len(values)) for _ in range(divisions)]) for values in (suspects, others)]
    control, test = [], []
    for values, order in zip((suspects, others), halves, strict=True):
        drawn = np.asarray(values, np.float64)[order]
        control.append(drawn[:, : len(values) // 2])
        test.append(drawn[:, len(values) // 2 :])
    p_values, shifts = compare(control[0], control[1], test[0], test[1])
    average = float(p_values.mean())
    p_value = min(1.0, (2 if divisions > 1 else 1) * average)
    direction = float(_apart(np.asarray(suspects, np.float64), np.asarray(others, np.float64)).mean())
    return Inference(p_value, average, float(shifts.mean()), direction, len(suspects), len(others))


def compare(suspects: np.ndarray, others: np.ndarray, test_suspects: np.ndarray, test_others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learn a scoring function on control works and compare test works by it, many divisions at once.

    Args:
        suspects: control works of the collection: (divisions, n, scores).
        others: control works that were not trained: (divisions, m, scores).
        test_suspects: test works of the collection: (divisions, k, scores).
        test_others: test works that were not trained: (divisions, l, scores).

    Returns:
        One-sided p-values, and differences of the means in pooled standard deviations: float64, (divisions,) each.
    """
    weights = fit(suspects, others)
    first, second = (np.einsum("dns,ds->dn", values, weights) for values in (test_suspects, test_others))
    with np.errstate(invalid="ignore"):  # scores that do not differ at all have no t; that is no evidence
        p_values = np.nan_to_num(np.asarray(ttest_ind(first, second, axis=1, equal_var=False, alternative="greater")[1]), nan=1.0)
    return p_values, _apart(first.T, second.T)


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the difference of the means of every column in pooled standard deviations."""
    deviation = np.sqrt((first.var(0, ddof=1) + second.var(0, ddof=1)) / 2)
    return (first.mean(0) - second.mean(0)) / np.where(deviation > 0, deviation, 1.0)


def fit(suspects: np.ndarray, others: np.ndarray, penalty: float = PENALTY) -> np.ndarray:
    """Fit logistic regressions by Newton's method, one a division, on scores standardised over their control works.

    Args:
        suspects: (divisions, n, scores).
        others: (divisions, m, scores).
        penalty: half of it times the squared weights is added to the sum of the losses; the intercept is free.

    Returns:
        Weights of the scores as given, without the intercept, which no test sees: float64, (divisions, scores).
    """
    values = np.concatenate([suspects, others], 1).astype(np.float64)
    deviation = values.std(1, keepdims=True)
    deviation = np.where(deviation > 0, deviation, 1.0)
    scaled = (values - values.mean(1, keepdims=True)) / deviation
    scaled = np.concatenate([scaled, np.ones((*scaled.shape[:2], 1))], 2)
    labels = np.arange(values.shape[1]) < suspects.shape[1]
    ridge = np.diag([penalty] * values.shape[2] + [1e-9])
    weights = np.zeros((len(values), scaled.shape[2]))
    for _ in range(STEPS):
        chance = expit(np.einsum("dns,ds->dn", scaled, weights))
        gradient = np.einsum("dns,dn->ds", scaled, chance - labels) + weights @ ridge
        curvature = np.matmul(scaled.transpose(0, 2, 1) * (chance * (1 - chance))[:, None, :], scaled) + ridge
        weights -= np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        if np.abs(gradient).max() < 1e-8:
            break
    return weights[:, :-1] / deviation[:, 0]
