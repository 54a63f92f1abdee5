"""Quantile regression: a work's score against what works like it, never trained, would reach.

"Membership Inference Attacks on Diffusion Models via Quantile Regression". Shuai Tang, Zhiwei Steven Wu, Sergul Aydore, Michael Kearns, Aaron Roth.
ICML 2024, arXiv 2312.05140; no code was released. A regressor learns, on works that were surely not trained, a high quantile of the score as a
function of the work alone; a work that scores above its own quantile is called a member. Several weak regressors, each on a bootstrap sample, are
bagged. No shadow model is trained.

Written from the paper. Different: regressors are linear in the leading principal components of pixels and caption words, fitted exactly (Koenker and
Bassett 1978), where the paper's are small convolutional networks: a few hundred works fit no network. The score regressed is SecMI's error, as in the
paper, in logarithms, under which quantiles keep their places. Instead of a vote of the bag the mean margin over it is returned, which has no ties, so
that a threshold can be set on calibration works; those are judged only by regressors that did not draw them. Higher for members. Cost: no passes.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import QuantileRegressor

from assay.errors import Misconfigured
from assay.noise import numpy_generator

COMPONENTS = 4
LEAST = 20
"""Fewest calibration works: five a component."""


def components(similarity: np.ndarray, count: int = COMPONENTS) -> np.ndarray:
    """Return works' coordinates along the leading directions of a kernel (n, n), each of mean square 1 or all 0: float64, (n, count)."""
    values, vectors = np.linalg.eigh(similarity)
    order = np.argsort(-values)[:count]
    found = vectors[:, order] * np.where(values[order] > 1e-9, np.sqrt(len(similarity)), 0.0)
    return found * np.where(np.take_along_axis(found, np.abs(found).argmax(0)[None], 0) < 0, -1, 1)  # eigenvectors have no sign of their own


def margins(scores: np.ndarray, features: np.ndarray, calibration: np.ndarray, *, seed: int, level: float = 0.9, bags: int = 32) -> np.ndarray:
    """Return by how much each work's score exceeds the quantile predicted for it, mean over the bag: float64, (n,).

    Args:
        scores: of every work, higher for members: (n,).
        features: of every work: (n, d).
        calibration: which were surely not trained: bool, (n,).
        seed: of the bootstrap samples.
        level: of the quantile.
        bags: regressors; every calibration work is left out by about a third of them.

    Raises:
        Misconfigured: there are fewer than 20 calibration works, or no bags, or the level is not between 0 and 1.
    """
    known = np.flatnonzero(calibration)
    if len(known) < LEAST or bags < 1 or not 0 < level < 1:
        raise Misconfigured(f"{len(known)} calibration works and {bags} bags give no quantiles.", f"Give {LEAST} works or more.")
    rng = numpy_generator(seed, "quantile regression")
    total, judged = np.zeros(len(scores)), np.zeros(len(scores))
    while judged.min() == 0 or bags > 0:  # until every calibration work was left out once
        drawn = rng.choice(known, len(known))
        model = QuantileRegressor(quantile=level, alpha=0.0, solver="highs").fit(features[drawn], scores[drawn])
        unseen = np.ones(len(scores), bool)
        unseen[drawn] = False
        total[unseen] += (scores - model.predict(features))[unseen]
        judged += unseen
        bags -= 1
    return total / judged
