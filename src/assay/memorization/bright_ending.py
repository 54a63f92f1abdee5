"""Bright ending: at the last step a memorised region attends to the end token; the map tells where, and weights the magnitude of guidance.

"Exploring Local Memorization in Diffusion Models via Bright Ending Attention". Chen Chen, Daochang Liu, Mubarak Shah, Chang Xu. ICLR 2025, arXiv
2410.21665. Authors' code: github.com/chenchen-usyd/BE-PRSS. Written here from its mathematics.

With m the attention to the end token at the last step, in the finest cross-attention layers on the way down, averaged over heads:

    LD = 1/T sum_t | g_t . m |_2 / mean(m)

which is Wen et al.'s magnitude where m is even. The mean of m itself is the simplest score. Theirs is 64 x 64 on Stable Diffusion; a UNet whose
finest cross-attention is coarser than its latents gives a coarse map, repeated to their size. Pads that are end tokens, too, are not counted: the map
is that of the first.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from assay.memorization.trace import Trace

COLOUR = (220, 30, 30)


def brightness(trace: Trace) -> np.ndarray:
    """Return the mean attention to the end token at the last step: float64, (n,)."""
    return trace.ending.double().mean((1, 2, 3)).numpy()


def masked(trace: Trace) -> np.ndarray:
    """Return LD: float64, (n,)."""
    mask = trace.ending.double()[:, :, None, None]
    weighed = (trace.guidance.double() * mask).flatten(-3).norm(dim=-1)
    return (weighed / mask.mean((-3, -2, -1)).clamp(min=1e-12)).mean((1, 2)).numpy()


def region(ending: torch.Tensor) -> torch.Tensor:
    """Return a map (h, w) from 0 to 1, the brightest place being 1; an even map is 0 everywhere."""
    low, high = float(ending.min()), float(ending.max())
    return (ending - low) / (high - low) if high - low > 1e-6 * max(high, 1e-12) else torch.zeros_like(ending)


def overlay(image: Image.Image, ending: torch.Tensor) -> Image.Image:
    """Lay the map over an image in grey: the brighter an ending, the redder."""
    mask = Image.fromarray((region(ending) * 200).round().to(torch.uint8).numpy()).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, COLOUR), image.convert("L").convert("RGB"), mask)
