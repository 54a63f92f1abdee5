"""Norm of the guidance where noise is high, and its alignment with the empty prompt's prediction where noise is low, both on pure noise.

"Detecting and Mitigating Memorization in Diffusion Models through Anisotropy of the Log-Probability". Rohan Asthana, Vasileios Belagiannis. ICLR
2026, arXiv 2601.20642. Authors' code: github.com/rohanasthana/memorization-anisotropy, MIT. Written here from its mathematics.

    m = gamma_1 |g_T|_2 + gamma_2 cos(e(x_T, late, empty), g_late)

with both predictions made for the same pure noise x_T: at the first timestep, and at a late one, the third from the end of the sampler's. The cosine
is taken over channels in every place and averaged over places. The authors choose the weights by model (1 and 2 on Stable Diffusion 1.4, 1 and 0.1
on 2.0), on prompts with known labels; here the norm's is 1 and the other a setting, not chosen on what is judged. The scores of the paper are -e / s,
and s is 1 to a few thousandths in the first term and cancels in the second. A model that predicts v is read in epsilon.
"""

from __future__ import annotations

import numpy as np
from torch.nn.functional import cosine_similarity

from assay.memorization.trace import Trace


def alignment(trace: Trace) -> np.ndarray:
    """Return the mean cosine between unconditional prediction and guidance at the late timestep: float64, (n,)."""
    empty = trace.late_empty.double()
    return cosine_similarity(empty, trace.late.double() - empty, dim=2).mean((1, 2, 3)).numpy()


def combined(trace: Trace, weight: float) -> np.ndarray:
    """Return m with gamma_1 = 1 and gamma_2 = weight: float64, (n,)."""
    return trace.magnitudes[:, :, 0].mean(1).numpy() + weight * alignment(trace)
