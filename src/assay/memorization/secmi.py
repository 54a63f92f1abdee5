"""SecMI: how far a work, carried up by deterministic steps, comes back from one step further.

"Are Diffusion Models Vulnerable to Membership Inference Attacks?". Jinhao Duan, Fei Kong, Shiqi Wang, Xiaoshuang Shi, Kaidi Xu. ICML 2023,
arXiv 2302.01316; code jinhaoduan/SecMI. Score SecMI_stat: -|| psi(phi(x_t)) - x_t ||^2, where x_t is x_0 carried up to t by the steps
phi in intervals of k, phi goes from t to t + k and psi back:

    phi, psi:  x -> a_u (x - s_t e(x, t)) / a_t + s_u e(x, t)     from t to u.

Paper: t = 100, k = 10, twelve queries. Written from the paper. Not done: SecMI_NNs, a network trained on the maps of error. Higher for members.
"""

from __future__ import annotations

import numpy as np

from assay.memorization.tape import Tape


def stat(tape: Tape) -> np.ndarray:
    """Return minus the squared distance between where the way up ended and where one step further and back did: float64, (n,)."""
    return -(tape.returned.double() - tape.inverted.double()).square().sum((1, 2, 3)).cpu().numpy()
