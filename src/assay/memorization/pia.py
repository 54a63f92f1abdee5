"""PIA and PIAN: whether a model predicts the same noise again where its own first prediction was the noise.

"An Efficient Membership Inference Attack for the Diffusion Model by Proximal Initialization". Fei Kong, Jinhao Duan, RuiPeng Ma, Heng Tao Shen,
Xiaoshuang Shi, Xiaofeng Zhu, Kaidi Xu. ICLR 2024, arXiv 2305.18355; code kong13661/PIA. With e_0 = e(x_0, 0):

    PIA:   -|| e_0 - e(a_t x_0 + s_t e_0, t) ||_p
    PIAN:  the same with e_0 scaled to the mean absolute value of a standard normal.

Paper: p = 4; t = 200 for pixel models, t = 500 for Stable Diffusion; two queries. Written from the paper. The scale of PIAN is sqrt(2 / pi), the mean
absolute value of a standard normal, as in the authors' code. Known failure: e(x_0, 0) is far from normal where a model is precise at t = 0, and PIAN
then measures its rounding; the paper finds it to fail on Stable Diffusion. Higher for members.
"""

from __future__ import annotations

import numpy as np

from assay.memorization.tape import Tape, normalised

POWER = 4.0


def pia(tape: Tape, power: float = POWER) -> np.ndarray:
    """Return minus the p-norm between the first prediction and the one it leads to: float64, (n,)."""
    return -(tape.first.double() - tape.proximal.double()).flatten(1).norm(power, 1).cpu().numpy()


def pian(tape: Tape, power: float = POWER) -> np.ndarray:
    """Return the same, the first prediction brought to the size of true noise: float64, (n,)."""
    return -(normalised(tape.first.double()) - tape.proximal_normalised.double()).flatten(1).norm(power, 1).cpu().numpy()
