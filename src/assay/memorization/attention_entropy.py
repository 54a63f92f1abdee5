"""Entropy of cross-attention: memorised prompts look at many tokens to the end, where others have come to look at the beginning token.

"Unveiling and Mitigating Memorization in Text-to-image Diffusion Models through Cross Attention". Jie Ren, Yaxin Li, Shenglai Zeng, Han Xu, Lingjuan
Lyu, Yue Xing, Jiliang Tang. ECCV 2024, arXiv 2403.11052. Authors' code: github.com/renjie3/MemAttn. Written here from its mathematics.

With a_i the probability of token i, averaged over heads, places and layers, E_t = - sum_i a_i log a_i, and S_t the same sum over the summary tokens,
the end token and the pads, alone:

    D = mean of E_t over the last steps + (mean of S_t over the last steps - S_T),        E = E_T of one layer at the first step.

D takes a whole sampling, E a single pass. The paper and its figures also follow the beginning token; its attention over the last steps, negated, and
the change of S_t are scores of their own here. The change is signed, as in the authors' code. On Stable Diffusion 1.4 the last 10 of 50 steps count,
and E reads the fourth of 16 layers.
"""

from __future__ import annotations

import numpy as np
import torch

from assay.memorization.trace import Trace


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return - sum p log p over the last axis, with 0 log 0 = 0; over a part of the tokens it is that part of the sum."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def whole(trace: Trace, last: int) -> np.ndarray:
    """Return the mean of E_t over the last steps: float64, (n,)."""
    return entropy(_averaged(trace)[:, :, -last:]).mean((1, 2)).numpy()


def summary(trace: Trace, last: int) -> np.ndarray:
    """Return by how much the summary tokens' part of the entropy has changed from the first step to the last ones: float64, (n,)."""
    averaged = _averaged(trace)
    places = torch.arange(averaged.shape[-1])
    part = entropy(averaged * (places >= trace.ends[:, None])[:, None, None, :])
    return (part[:, :, -last:].mean(2) - part[:, :, 0]).mean(1).numpy()


def d(trace: Trace, last: int) -> np.ndarray:
    """Return D: float64, (n,)."""
    return whole(trace, last) + summary(trace, last)


def e(trace: Trace, layer: int) -> np.ndarray:
    """Return E: the entropy of one layer at the first step: float64, (n,)."""
    return entropy(trace.attention[:, :, 0, layer].double()).mean(1).numpy()


def beginning(trace: Trace, last: int) -> np.ndarray:
    """Return the attention to the beginning token over the last steps, negated: float64, (n,)."""
    return -_averaged(trace)[:, :, -last:, 0].mean((1, 2)).numpy()


def _averaged(trace: Trace) -> torch.Tensor:
    return trace.attention.double().mean(3)
