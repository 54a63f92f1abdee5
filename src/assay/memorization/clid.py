"""CLiD: how much better a model denoises a work under its whole caption than under pieces of it.

"Membership Inference on Text-to-Image Diffusion Models via Conditional Likelihood Discrepancy". Shengfang Zhai, Huanran Chen, Yinpeng Dong, Jiajun
Li, Qingni Shen, Yansong Gao, Hang Su, Yang Liu. NeurIPS 2024, arXiv 2405.14800. With L(c) the mean loss over timesteps and draws (the same noise for
every wording) and C the reduced captions, the empty one among them:

    D = mean over c* in C of L(c*) - L(c)
    CLiD_th = alpha S(D) + (1 - alpha) S(-L(c))

S subtracts the median and divides by the interquartile range. Paper: four reduced captions cut short by words, three draws, fifteen queries,
alpha = 0.9. Written from the paper. Different: S is fitted on calibration works, which are known not to be members, where the authors' is fitted on
shadow data of both kinds. Not done: CLiD_vec, trees on the vector of differences. Known failures: a model that overfits captions rather than pairs
scores high on anything it has a caption for; the control is the work under another's caption. A caption cut short may name another thing ("snowman
without snow"). And a work memorised so well that it comes out without its caption has little left to gain: D falls again with many copies, where the
ratio of `loss.calibrated` does not. Higher for members.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from assay.memorization.tape import CAPTION, EMPTY, Tape

ALPHA = 0.9


def reduced(caption: str, count: int) -> list[str]:
    """Return `count` captions cut short, shortest first: i / count of the words, rounded down, for i from 0, the empty one."""
    words = caption.split()
    return [" ".join(words[: index * len(words) // count]) for index in range(count)]


def names(count: int) -> list[str]:
    """Return the names that those wordings have on a tape; the first is the empty prompt's."""
    return [EMPTY, *(f"reduced {index}" for index in range(1, count))]


def discrepancy(tape: Tape, wording: str = CAPTION, pieces: Sequence[str] = (EMPTY,)) -> np.ndarray:
    """Return D of every work under a wording: float64, (n,)."""
    there = np.mean([tape.errors(name).mean((1, 2)).cpu().numpy() for name in pieces], 0)
    return there - tape.errors(wording).mean((1, 2)).cpu().numpy()


def combined(discrepancies: np.ndarray, losses: np.ndarray, reference: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """Return CLiD_th.

    Args:
        discrepancies: D of every work: (n,).
        losses: minus the loss under the caption: (n,).
        reference: which works the scales are fitted on: bool, (n,).
        alpha: weight of D.

    Returns:
        Scores: float64, (n,).
    """

    def scaled(values: np.ndarray) -> np.ndarray:
        low, middle, high = np.quantile(values[reference], [0.25, 0.5, 0.75])
        return (values - middle) / (high - low if high > low else 1.0)

    return alpha * scaled(discrepancies) + (1 - alpha) * scaled(losses)
