"""SimA: the size of the noise that a model sees in a work to which none was added.

"Score-based Membership Inference on Diffusion Models". Mingxing Rao, Bowen Qu, Daniel Moyer. 2025, arXiv 2509.25003; code mx-ethan-rao/SimA.
A denoiser points towards a local mean of the training works, so that its output is small where a training work lies:

    SimA:     -|| e(x_0, t) ||_4            one query, no noise added
    SimA-MC:  -E || e(x_t, t) ||_4          mean over timesteps and draws of noise

Written from the paper. Different from the authors' code: the timestep is a setting, chosen beforehand, where theirs prints the best of all timesteps
on the very works that are judged. Higher for members.
"""

from __future__ import annotations

import numpy as np

from assay.memorization.tape import CAPTION, Tape

POWER = 4.0


def sima(tape: Tape, power: float = POWER) -> np.ndarray:
    """Return minus the p-norm of the noise predicted for the work as it is: float64, (n,)."""
    return -tape.unnoised.double().flatten(1).norm(power, 1).cpu().numpy()


def monte_carlo(tape: Tape, power: float = POWER) -> np.ndarray:
    """Return minus the mean p-norm of the noise predicted for the noised work: float64, (n,)."""
    return -tape.noised[CAPTION].double().flatten(3).norm(power, 3).mean((1, 2)).cpu().numpy()
