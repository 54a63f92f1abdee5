"""GSA: how much a model would still change to fit a work; the norm of the loss's gradient.

"White-box Membership Inference Attacks against Diffusion Models". Yan Pang, Tianhao Wang, Xuhui Kang, Mengdi Huai, Yang Zhang. PoPETs 2025, arXiv
2308.06405. GSA_1: the loss is averaged over a few timesteps first, and one backward pass taken: score -log || grad L(c) ||_2.

Written from the paper. Different: the gradient is of the cross-attention weights alone, not of every layer, and its norm is a score by itself, where
the paper trains gradient-boosted trees on the norms of layers, with shadow models for their labels. Needs the weights, where all other scores need
predictions only. Higher for members. Cost: a backward pass for every noised prediction under the caption.
"""

from __future__ import annotations

import numpy as np

from assay.errors import Misconfigured
from assay.memorization.tape import Tape

TINY = 1e-30


def norm(tape: Tape) -> np.ndarray:
    """Return minus the logarithm of the gradient's norm: float64, (n,).

    Raises:
        Misconfigured: the tape was made without gradients.
    """
    if tape.gradient is None:
        raise Misconfigured("The tape was made without gradients.", "Ask for them: `gradient` true.")
    return -tape.gradient.double().clamp_min(TINY).log().cpu().numpy()
