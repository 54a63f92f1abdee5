"""How near pictures are to works when they may be shifted, scaled and made darker or paler: the least tiled l2 distance over a grid of alignments.

A copy that was moved by three pixels, or cut to nine tenths, is far from its work pixel by pixel. So every picture, brought to one mean and contrast
(all its values less their mean, over their standard deviation, times a quarter), is first held against the works as thumbnails, then brought into a
coarse grid of positions and scales and compared with the nearest of them by tiled l2 (Carlini et al. 2023, Sec. 4.2), then moved by single pixels and
small changes of scale around the best of the grid for the few works that are nearest.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from assay.evaluation.features import resized

SIZE, THUMBNAIL, TILES = 64, 16, 4
SHIFTS, SCALES = (-4, -2, 0, 2, 4), (0.9, 1.0, 1 / 0.9)
"""Of the coarse grid: pixels of 64, and factors of the side."""
NEAR_SHIFTS, NEAR_SCALES = (-1, 0, 1), (0.97, 1.0, 1 / 0.97)
"""Around the best of the coarse grid."""
CLOSEST = 4
"""Works that are aligned finely."""
CONTRAST, FLAT = 0.25, 0.05
"""Standard deviation that pictures are brought to, and the least that theirs is taken for, so that noise on a flat picture stays small."""


class Aligned(NamedTuple):
    """The works nearest to each picture."""

    works: np.ndarray
    """Their rows, nearest first: int64, (n, k)."""
    distances: np.ndarray
    """Tiled l2 at the best alignment, of pictures with the standard deviation `CONTRAST`: float64, (n, k)."""


class Aligner:
    """Works that pictures are aligned with.

    Args:
        works: uint8, (m, 3, 64, 64).
        shortlist: works that a picture is aligned with, the nearest as thumbnails.
    """

    def __init__(self, works: np.ndarray, shortlist: int = 48) -> None:
        """Make the thumbnails."""
        self.works, self.shortlist = works, min(shortlist, len(works))
        self.thumbnails = torch.cat([_thumbnails(torch.from_numpy(works[start : start + 512]) / 255) for start in range(0, len(works), 512)])

    @torch.no_grad()
    def nearest(self, images: torch.Tensor) -> Aligned:
        """Return the works nearest to images (n, 3, h, w) in [0, 1], of which the middle square is looked at."""
        side = min(images.shape[2:])
        top, left = ((length - side) // 2 for length in images.shape[2:])
        images = resized(images.detach().cpu()[:, :, top : top + side, left : left + side])
        found = [self._one(image) for image in images]
        shape = (len(found), self.shortlist)
        rows, distances = (np.array(part).reshape(shape) for part in (zip(*found, strict=True) if found else ([], [])))
        return Aligned(rows.astype(np.int64), distances.astype(np.float64))

    def _one(self, image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        near = torch.cdist(_thumbnails(image[None]), self.thumbnails)[0].topk(self.shortlist, largest=False).indices
        works = torch.from_numpy(self.works[near.numpy()]) / 255
        table = _tiled(_sampled(image, _coarse()), works)  # (alignments, works)
        distances = table.amin(0)
        for place in distances.topk(min(CLOSEST, len(works)), largest=False).indices.tolist():
            scale, down, right = COARSE[int(table[:, place].argmin())]
            around = [(scale * more, down + low, right + far) for more, low, far in product(NEAR_SCALES, NEAR_SHIFTS, NEAR_SHIFTS)]
            distances[place] = torch.minimum(distances[place], _tiled(_sampled(image, _grid(around)), works[[place]]).min())
        order = distances.argsort(stable=True)
        return near[order].numpy(), distances[order].numpy()


COARSE = list(product(SCALES, SHIFTS, SHIFTS))


def _thumbnails(images: torch.Tensor) -> torch.Tensor:
    return _normalised(resized(images, THUMBNAIL)).flatten(1)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    deviation = images.std((1, 2, 3), keepdim=True).clamp(min=FLAT)
    return (images - images.mean((1, 2, 3), keepdim=True)) / deviation * CONTRAST


@cache
def _coarse() -> torch.Tensor:
    return _grid(COARSE)


def _grid(alignments: list[tuple[float, int, int]]) -> torch.Tensor:
    """Return where every (scale, down, right) samples an image: (a, s, s, 2)."""
    half = SIZE / 2
    maps = torch.tensor([[[scale, 0, right / half], [0, scale, down / half]] for scale, down, right in alignments])
    return F.affine_grid(maps, [len(alignments), 3, SIZE, SIZE], align_corners=False)


def _sampled(image: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Return one image (3, s, s) at every alignment of a grid, bilinear, its border continued: (a, 3, s, s)."""
    return F.grid_sample(image.expand(len(grid), -1, -1, -1), grid, padding_mode="border", align_corners=False)


def _tiled(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the tiled l2 distances of all pairs of images (n, 3, s, s) and (m, 3, s, s): float32, (n, m)."""
    a, b = _tiles(_normalised(first)), _tiles(_normalised(second))
    squares = (a**2).sum(2)[:, :, None] + (b**2).sum(2)[:, None] - 2 * a @ b.transpose(1, 2)
    return (squares.clamp(min=0) / a.shape[2]).amax(0).sqrt()


def _tiles(images: torch.Tensor) -> torch.Tensor:
    side = SIZE // TILES
    return images.reshape(len(images), 3, TILES, side, TILES, side).permute(2, 4, 0, 1, 3, 5).reshape(TILES * TILES, len(images), -1)
