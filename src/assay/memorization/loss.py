"""Denoising loss as a score of membership: plain, and calibrated by what the same model does without the caption.

Plain: -L(c), L(c) = mean over timesteps and draws of ||e(x_t, t, c) - n||^2 / d ("Extracting Training Data from Diffusion Models", Carlini et al.
2023, arXiv 2301.13188, who read one timestep; here the mean, and each timestep apart).
Calibrated: mean over timesteps of log L_t(empty) - log L_t(c). What is hard to draw for anyone is hard without its caption too and cancels ("On the
Importance of Difficulty Calibration in Membership Inference Attacks", Watson, Guo, Cormode, Sablayrolles 2022, arXiv 2111.08440; there the
reference is another model, here the same one without the caption). A ratio, where CLiD takes a difference: no timestep outweighs the others.

Written from the papers. Errors are of the noise for every model, whatever it was trained to predict. Higher for members.
"""

from __future__ import annotations

import numpy as np

from assay.memorization.tape import CAPTION, EMPTY, Tape

TINY = 1e-12


def plain(tape: Tape, wording: str = CAPTION) -> np.ndarray:
    """Return minus the mean loss under a wording: float64, (n,)."""
    return -tape.errors(wording).mean((1, 2)).cpu().numpy()


def by_timestep(tape: Tape, wording: str = CAPTION) -> np.ndarray:
    """Return minus the loss at each timestep: float64, (n, timesteps)."""
    return -tape.errors(wording).mean(2).cpu().numpy()


def calibrated(tape: Tape, wording: str = CAPTION, reference: str = EMPTY) -> np.ndarray:
    """Return by how much the logarithm of the loss falls from one wording to another, mean over timesteps: float64, (n,)."""
    there, here = (tape.errors(name).mean(2).clamp_min(TINY).log() for name in (reference, wording))
    return (there - here).mean(1).cpu().numpy()
