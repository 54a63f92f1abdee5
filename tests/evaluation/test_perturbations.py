import pytest
import torch

from assay.evaluation.perturbations import PERTURBATIONS, blur, crop, darken, jpeg, shift
from assay.noise import generator


def pictures(count=3, size=32):
    return torch.rand(count, 3, size, size, generator=generator("pictures"))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_shape_and_range_are_kept_and_each_image_is_treated_alone(name):
    images = pictures()
    done = PERTURBATIONS[name](images)
    assert done.shape == images.shape
    assert done.dtype == torch.float32
    assert 0 <= float(done.min()) <= float(done.max()) <= 1
    torch.testing.assert_close(PERTURBATIONS[name](images[1:2]), done[1:2], atol=1e-6, rtol=0)
    assert float((done - images).abs().max()) > 0.01


def test_a_white_picture_stays_white_but_where_it_is_darkened():
    white = torch.ones(1, 3, 32, 32)
    for change in (crop, shift, jpeg, blur):
        torch.testing.assert_close(change(white), white, atol=1e-5, rtol=0)
    torch.testing.assert_close(darken(white), 0.85 * white)


def test_a_shift_moves_pixels_by_whole_steps():
    images = pictures()
    moved = shift(images, down=2, right=-5)
    torch.testing.assert_close(moved[:, :, 2:, :-5], images[:, :, :-2, 5:])
    assert (moved[:, :, :2] == 1).all()
    assert (moved[:, :, :, -5:] == 1).all()


def test_a_crop_of_everything_changes_nothing():
    torch.testing.assert_close(crop(pictures(), 1.0), pictures(), atol=1e-6, rtol=0)
    # The corner pixel goes, the middle is enlarged: a black frame disappears.
    framed = torch.ones(1, 3, 40, 40)
    framed[:, :, [0, -1]] = framed[:, :, :, [0, -1]] = 0
    torch.testing.assert_close(crop(framed, 0.9), torch.ones(1, 3, 40, 40))


def test_blur_keeps_the_mean_of_a_periodic_pattern_and_evens_it_out():
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[:, :, :, ::2] = 1
    evened = blur(stripes, 1.5)[:, :, :, 8:24]
    # A Gaussian of 1.5 pixels damps the frequency pi by exp(-(1.5 pi)^2 / 2) < 1e-4; truncation at three deviations adds less than 1 %.
    torch.testing.assert_close(evened, torch.full_like(evened, 0.5), atol=0.01, rtol=0)
