import hashlib
import math

import numpy as np
import torch

from assay.evaluation.features import DIGEST, DIRECTIONS, RECIPE, fixed_features
from assay.noise import generator


def by_hand(image: np.ndarray) -> np.ndarray:
    # The recipe with explicit loops in float64, for one image (3, 64, 64).
    found = []
    for grid in (8, 4, 1):
        side = 64 // grid
        for channel in range(3):
            found += [2 * image[channel, y * side : (y + 1) * side, x * side : (x + 1) * side].mean() - 1 for y in range(grid) for x in range(grid)]
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    padded = np.pad(grey, 1, mode="edge")
    across, down = np.zeros((64, 64)), np.zeros((64, 64))
    for y in range(64):
        for x in range(64):
            patch = padded[y : y + 3, x : x + 3]
            across[y, x] = (patch[:, 2] - patch[:, 0]) @ [1, 2, 1] / 4
            down[y, x] = (patch[2] - patch[0]) @ [1, 2, 1] / 4
    for grid in (8, 4):
        side = 64 // grid
        for direction in range(DIRECTIONS):
            angle = 2 * math.pi * direction / DIRECTIONS
            edges = 4 * np.maximum(0, across * math.cos(angle) + down * math.sin(angle))
            found += [edges[y * side : (y + 1) * side, x * side : (x + 1) * side].mean() for y in range(grid) for x in range(grid)]
    return np.array(found)


def test_features_are_the_recipe():
    images = torch.rand(2, 3, 64, 64, generator=generator("features"))
    found = fixed_features(images)
    assert found.shape == (2, 883)  # 3 * (64 + 16 + 1) + 8 * (64 + 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [by_hand(image) for image in images.double().numpy()], atol=2e-6)


def test_features_do_not_depend_on_the_batch():
    images = torch.rand(5, 3, 32, 32, generator=generator("batch"))
    np.testing.assert_allclose(fixed_features(images, batch=2), fixed_features(images), atol=1e-6)


def test_a_flat_image_has_its_colour_and_no_edges():
    found = fixed_features(torch.full((1, 3, 100, 80), 0.75))
    np.testing.assert_allclose(found[0, :243], 0.5, atol=1e-6)  # 0.75 * 2 - 1
    np.testing.assert_allclose(found[0, 243:], 0.0, atol=1e-5)


def test_the_digest_names_the_recipe():
    assert hashlib.sha256(RECIPE.encode()).hexdigest() == DIGEST


def test_no_images_have_no_features():
    assert fixed_features(torch.zeros(0, 3, 64, 64)).shape == (0, 883)
