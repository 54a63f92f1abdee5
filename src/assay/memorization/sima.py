"""SimA: the size of the noise that a model sees in a work to which none was added.

"Score-based Membership Inference on Diffusion Models". Mingxing Rao, Bowen Qu, Daniel Moyer. 2025, arXiv 2509.25003; code mx-ethan-rao/SimA.
A denoiser points towards a local mean of the training works, so that its output is small where a training work lies:

    SimA:     -|| e(x_0, t) ||_4            one query, no noise added
    SimA-MC:  -|| E e(x_t, t) ||_4          the expectation over noise n, before the norm

Written from the paper. Different: the noise that was added is known and has mean zero, so E e is estimated by the mean of e - n, whose expectation is
the same and whose variance is far smaller; without that, a few draws measure the size of their own noise. With one draw the score is the 4-norm of
the error, a loss. Norms are averaged over timesteps, which are chosen beforehand; the authors' code prints the best of all timesteps on the very
works that are judged. Higher for members.
"""

from __future__ import annotations

import numpy as np

from assay.memorization.tape import CAPTION, Tape

POWER = 4.0


def sima(tape: Tape, power: float = POWER) -> np.ndarray:
    """Return minus the p-norm of the noise predicted for the work as it is: float64, (n,)."""
    return -tape.unnoised.double().flatten(1).norm(power, 1).cpu().numpy()


def monte_carlo(tape: Tape, power: float = POWER) -> np.ndarray:
    """Return minus the p-norm of the expected prediction for the noised work, mean over timesteps: float64, (n,)."""
    expected = (tape.noised[CAPTION].double() - tape.noise.double()).mean(2)
    return -expected.flatten(2).norm(power, 2).mean(1).cpu().numpy()
