"""A fixed feature space that no one trained: colours of blocks at three scales and strengths of edges by direction at two.

Features: block means of RGB in [-1, 1] on 8x8, 4x4 and 1x1 grids; and, on 8x8 and 4x4 grids, block means of max(0, g . u) for the gradient g of the
luminance (Sobel) and eight directions u, as in histograms of oriented gradients (Dalal and Triggs 2005) but unnormalised and without bins.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch.nn import functional as F

SIZE = 64
DIRECTIONS = 8
RECIPE = (
    "fixed features 1: 64x64 bilinear antialiased; RGB*2-1 means 8,4,1; Sobel/4 of 0.299,0.587,0.114 replicate, 8 half-wave directions *4, means 8,4"
)
DIGEST = hashlib.sha256(RECIPE.encode()).hexdigest()
"""Identifies the space: figures in spaces of different digests cannot be compared."""


def resized(images: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Bring images (n, 3, h, w) in [0, 1] to (n, 3, size, size), antialiased."""
    images = images.float()
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


@torch.no_grad()
def fixed_features(images: torch.Tensor, batch: int = 512) -> np.ndarray:
    """Return fixed features of images (n, 3, h, w) in [0, 1]: float32, (n, 883)."""
    return np.concatenate(
        [_features(resized(images[start : start + batch])) for start in range(0, len(images), batch)]
        or [_features(images.new_zeros(0, 3, SIZE, SIZE))]
    )


def _features(images: torch.Tensor) -> np.ndarray:
    colours = images * 2 - 1
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    luminance = (images * weights[:, None, None]).sum(1, keepdim=True)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=images.device) / 4
    gradient = F.conv2d(F.pad(luminance, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    angles = torch.arange(DIRECTIONS, device=images.device) * (2 * math.pi / DIRECTIONS)
    edges = 4 * F.relu(torch.einsum("nchw,kc->nkhw", gradient, torch.stack([angles.cos(), angles.sin()], 1)))
    parts = [F.adaptive_avg_pool2d(colours, grid) for grid in (8, 4, 1)] + [F.adaptive_avg_pool2d(edges, grid) for grid in (8, 4)]
    return torch.cat([part.flatten(1) for part in parts], 1).cpu().numpy()
