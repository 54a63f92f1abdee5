"""What happens to pictures on their way, in strengths that leave them the same picture to a person: cut, shifted, blurred, recoded, darkened.

Each takes and returns images (n, 3, h, w) in [0, 1], float32; drawings stand on white.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

Perturbation = Callable[[torch.Tensor], torch.Tensor]


def crop(images: torch.Tensor, share: float = 0.9) -> torch.Tensor:
    """Cut out the middle, `share` of each side, and bring it back to size (bilinear, antialiased)."""
    height, width = images.shape[2:]
    rows, columns = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    cut = images[:, :, rows : height - rows, columns : width - columns]
    return F.interpolate(cut, (height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def shift(images: torch.Tensor, down: int = 3, right: int = 3) -> torch.Tensor:
    """Move the picture by whole pixels; white comes in."""
    height, width = images.shape[2:]
    moved = F.pad(images, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), value=1.0)
    return moved[:, :, max(-down, 0) :, max(-right, 0) :][:, :, :height, :width]


def jpeg(images: torch.Tensor, quality: int = 50) -> torch.Tensor:
    """Encode as JPEG and decode."""
    done = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        done.append(np.asarray(Image.open(buffer).convert("RGB")))
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2).float() / 255 if done else images


def blur(images: torch.Tensor, deviation: float = 0.8) -> torch.Tensor:
    """Convolve with a Gaussian of so many pixels."""
    reach = max(1, round(3 * deviation))
    kernel = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * deviation**2)).to(images)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[:, None, :, None], groups=3), kernel[:, None, None, :], groups=3).clamp(0, 1)


def darken(images: torch.Tensor, factor: float = 0.85) -> torch.Tensor:
    """Multiply every value."""
    return images * factor


PERTURBATIONS: dict[str, Perturbation] = {
    "cut to 90 %": crop,
    "shifted by 3 pixels": shift,
    "JPEG at quality 50": jpeg,
    "blurred by 0.8 pixels": blur,
    "darkened to 85 %": darken,
}
"""Those that judges and detectors are tried with, by name."""
