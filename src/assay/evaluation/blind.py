"""A blind baseline: how well members can be told by what they are, with no model asked.

Where members and non-members differ in style, date or subject, an attack can score by that alone, and its figures say nothing of the model (Das,
Zhang and Tramer, "Blind Baselines Beat Membership Inference Attacks for Foundation Models", 2024, arXiv 2406.16201). Here: ridge regression of
membership on features of the works, out of fold. The prediction is linear in the labels, so that a permutation of them costs one matrix product, and
what chance would give is known for this many works and these features. Areas are taken within folds, whose predictions have different offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from assay.errors import Misconfigured
from assay.noise import numpy_generator

FOLDS = 5
RIDGE = 1.0


class Blind(NamedTuple):
    """What a blind baseline reaches."""

    auc: float
    """Area under the curve, mean over pairs of a fold."""
    chance: tuple[float, float]
    """Where 95 % of the areas lie when labels are permuted."""
    p_value: float
    """Share of the permutations, the labels as they are among them, that reach the area."""


def kernel(features: np.ndarray) -> np.ndarray:
    """Return the products of works' standardised features (n, d), the mean of its diagonal being 1: float64, (n, n)."""
    values = np.asarray(features, np.float64)
    deviation = values.std(0)
    scaled = (values - values.mean(0))[:, deviation > 0] / deviation[deviation > 0]
    return scaled @ scaled.T / max(1, scaled.shape[1])


def words(captions: Sequence[str]) -> np.ndarray:
    """Return how often each caption has each word, how many words and how many letters: float64, (n, words + 2)."""
    texts = [caption.lower().replace(",", " ").split() for caption in captions]
    place = {word: index for index, word in enumerate(sorted({word for text in texts for word in text}))}
    counts = np.zeros((len(texts), len(place) + 2))
    for row, text in enumerate(texts):
        for word in text:
            counts[row, place[word]] += 1
        counts[row, -2:] = len(text), len(captions[row])
    return counts


def baseline(similarity: np.ndarray, members: np.ndarray, *, seed: int, permutations: int = 500) -> Blind:
    """Tell members out of fold by their features, and by chance.

    Args:
        similarity: from `kernel`, or a mean of several: (n, n).
        members: which are: bool, (n,).
        seed: of folds and permutations.
        permutations: of the labels.

    Raises:
        Misconfigured: there are not two works of either kind.
    """
    members, count = np.asarray(members, bool), len(members)
    if min(members.sum(), (~members).sum()) < 2:
        raise Misconfigured("A baseline needs two works or more of either kind.", "Score more works.")
    rng = numpy_generator(seed, "blind baseline")
    fold = rng.permutation(count) % min(FOLDS, count // 2)
    linear = np.zeros((count, count))
    for left in range(fold.max() + 1):
        rest, out = np.flatnonzero(fold != left), np.flatnonzero(fold == left)
        centred = np.eye(len(rest)) - 1 / len(rest)
        solved = np.linalg.solve(similarity[np.ix_(rest, rest)] + RIDGE * np.eye(len(rest)), centred)
        linear[np.ix_(out, rest)] = similarity[np.ix_(out, rest)] @ solved
    labels = np.stack([members, *(rng.permutation(members) for _ in range(permutations))], 1)
    areas = _areas(linear @ labels, labels, fold)
    low, high = np.quantile(areas[1:], [0.025, 0.975]) if permutations else (0.0, 1.0)
    return Blind(float(areas[0]), (float(low), float(high)), float((areas >= areas[0] - 1e-12).mean()))


def _areas(scores: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the share of pairs of a fold in which the member scores higher, ties counting half, for every column."""
    won, pairs = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for left in range(fold.max() + 1):
        ranks, inside = rankdata(scores[fold == left], axis=0), labels[fold == left]
        count = inside.sum(0)
        won += (ranks * inside).sum(0) - count * (count + 1) / 2
        pairs += count * (len(inside) - count)
    return np.where(pairs > 0, won / np.maximum(pairs, 1), 0.5)
