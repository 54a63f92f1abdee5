"""Aligned distances on pictures moved by known amounts."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from assay.evaluation.alignment import CONTRAST, Aligner, _tiled
from assay.evaluation.perturbations import blur, shift
from assay.evaluation.similarity import tiled_l2, tiled_l2_pairs
from assay.noise import numpy_generator


@pytest.fixture(scope="module")
def works():
    """Twelve smooth random pictures on white, uint8."""
    rng = numpy_generator(5)
    coarse = torch.from_numpy(rng.random((12, 3, 8, 8))).float()
    inner = F.interpolate(coarse, (44, 44), mode="bicubic", align_corners=False).clamp(0, 1)
    return (F.pad(inner, (10, 10, 10, 10), value=1.0) * 255).round().to(torch.uint8).numpy()


def as_images(works):
    return torch.from_numpy(works).float() / 255


def test_a_work_lies_on_itself_however_bright(works):
    found = Aligner(works).nearest(torch.cat([as_images(works), as_images(works) * 0.7, 0.2 + 0.8 * as_images(works)]))
    assert found.works[:, 0].tolist() == [*range(12)] * 3
    assert found.distances[:, 0] == pytest.approx(0, abs=2e-3)  # float32: the root of a rounding error


@pytest.mark.parametrize(("down", "right"), [(0, 3), (3, 0), (-3, 5), (2, -1), (5, 5)])
def test_whole_pixels_are_found_again(works, down, right):
    """Up to 4 + 1 pixels each way the picture comes back onto its work but for the border, which is white on both."""
    found = Aligner(works).nearest(shift(as_images(works), down, right))
    assert found.works[:, 0].tolist() == list(range(12))
    assert found.distances[:, 0].max() < 2e-3


def test_without_need_of_moving_it_is_tiled_l2_of_normalised_pictures(works):
    """A picture with no better alignment: distances at the identity, from the definition in float64, are never less."""
    made = blur(as_images(works), 2.0)
    found = Aligner(works).nearest(made)

    def normalised(images):
        images = images.astype(np.float64)
        return (images - images.mean((1, 2, 3), keepdims=True)) / images.std((1, 2, 3), keepdims=True, ddof=1) * CONTRAST

    own = tiled_l2(normalised(made.numpy()), normalised(works / 255))
    for row in range(12):
        aligned = found.distances[row][found.works[row].tolist().index(row)]
        assert aligned <= own[row] + 1e-4
        assert aligned > 0.2 * own[row]


def test_order_and_company_do_not_matter(works):
    images = shift(as_images(works), 1, 2)
    together, alone = Aligner(works).nearest(images), Aligner(works).nearest(images[[7]])
    np.testing.assert_allclose(together.distances[7], alone.distances[0], atol=1e-6)
    assert (np.diff(together.distances, axis=1) >= 0).all()
    assert Aligner(works).nearest(images[:0]).works.shape == (0, 12)


def test_pairs_are_apart_by_the_largest_of_their_tiles(works):
    """Against the definition in float64, over normalised pictures: twelve by their blurred selves, and by one that differs in a single tile."""
    first, second = as_images(works), blur(as_images(works), 2.0)
    second[3] = first[3]
    second[3, :, :16, :16] = 0.0

    def normalised(images: torch.Tensor) -> np.ndarray:
        made = images.numpy().astype(np.float64)
        return (made - made.mean((1, 2, 3), keepdims=True)) / made.std((1, 2, 3), keepdims=True, ddof=1) * CONTRAST

    expected = tiled_l2_pairs(normalised(first), normalised(second))
    np.testing.assert_allclose(_tiled(first, second).numpy(), expected, atol=2e-3)
