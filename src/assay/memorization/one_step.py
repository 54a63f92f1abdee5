"""How far one step takes a prompt from its noise: what was memorised stands out at once, where other prompts hardly leave the noise.

"A Reproducible Extraction of Training Images from Diffusion Models". Ryan Webster. 2023, arXiv 2305.08694. Authors' code:
github.com/ryanwebster90/onestep-extraction, no licence. Written here from the definition that the code states, for the paper itself was not at hand;
nothing was copied. Its denoising confidence score is the mean square difference of the noise x = sigma z, in the convention without a_t, and of what
one guided step from it to no noise gives, x - sigma e:

    DCS = mean (x - D(x))^2 = sigma^2 mean e^2,        e = e(x, T, empty) + guidance (e(x, T, c) - e(x, T, empty))

Here without sigma^2, which is the same for all prompts, and at the sampler's first timestep, where the trace has been already; theirs is the last of
the schedule. Theirs reads one seed a caption. Not done: their black-box attack by consistent edges, and the retrieval that labels what was found.
Known failure: a model that predicts v at a last timestep without any signal gives e = x whatever the prompt.
"""

from __future__ import annotations

import numpy as np

from assay.memorization.trace import Trace


def confidence(trace: Trace) -> np.ndarray:
    """Return DCS over sigma^2, averaged over draws: float64, (n,)."""
    return trace.leap.double().mean(1).numpy()
