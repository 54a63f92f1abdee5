import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import Misconfigured
from assay.evaluation import similarity
from assay.evaluation.similarity import cosine, cosine_pairs, hamming, hamming_pairs, perceptual_hash, tiled_l2, tiled_l2_pairs


def images(seed: int, count: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, side, side))


def tiled_by_hand(a: np.ndarray, b: np.ndarray, tiles: int) -> float:
    # Carlini et al. 2023, Sec. 4.2, with loops: the largest tile distance, sqrt(sum of squares / values).
    side = a.shape[1] // tiles
    worst = 0.0
    for y in range(tiles):
        for x in range(tiles):
            tile = (slice(None), slice(y * side, (y + 1) * side), slice(x * side, (x + 1) * side))
            worst = max(worst, math.sqrt(float(((a[tile] - b[tile]) ** 2).sum()) / a[tile].size))
    return worst


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=25, deadline=None)
def test_tiled_l2_is_the_definition_pair_by_pair_and_all_against_all(seed, tiles):
    a, b = images(seed, 3), images(seed + 1, 4)
    by_hand = np.array([[tiled_by_hand(x, y, tiles) for y in b] for x in a])
    np.testing.assert_allclose(tiled_l2_pairs(a, b, tiles), by_hand, atol=1e-9)
    np.testing.assert_allclose(tiled_l2(a, b[:3], tiles), np.diag(by_hand), atol=1e-12)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_tiled_l2_is_a_distance(seed):
    a, b, c = images(seed, 3), images(seed + 1, 3), images(seed + 2, 3)
    assert (tiled_l2(a, a) == 0).all()
    np.testing.assert_array_equal(tiled_l2(a, b), tiled_l2(b, a))
    assert (tiled_l2(a, c) <= tiled_l2(a, b) + tiled_l2(b, c) + 1e-12).all()  # a maximum of norms is a norm
    assert (tiled_l2(a, b) <= 1).all()


def test_a_shared_background_hides_nothing_from_tiles():
    # Black against white in one of 16 tiles: 1 by tiles, sqrt(1 / 16) = 0.25 over the whole picture.
    a, b = np.ones((1, 3, 16, 16)), np.ones((1, 3, 16, 16))
    b[:, :, :4, :4] = 0
    assert tiled_l2(a, b)[0] == 1
    assert tiled_l2(a, b, tiles=1)[0] == pytest.approx(0.25)


def test_memory_does_not_change_the_distances(monkeypatch):
    a, b = images(0, 7), images(1, 9)
    whole = tiled_l2_pairs(a, b)
    monkeypatch.setattr(similarity, "MEMORY", 8 * a[0].size * 3)  # blocks of three
    np.testing.assert_allclose(tiled_l2_pairs(a, b), whole, atol=1e-12)
    assert tiled_l2_pairs(a[:0], b).shape == (0, 9)


def test_bytes_and_fractions_agree():
    pixels = (images(0, 4) * 255).round().astype(np.uint8)
    np.testing.assert_allclose(tiled_l2_pairs(pixels, pixels[:2]), tiled_l2_pairs(pixels / 255, pixels[:2] / 255), atol=1e-12)


def test_tiles_must_be_equal():
    with pytest.raises(Misconfigured, match="equal tiles"):
        tiled_l2(images(0, 1), images(1, 1), tiles=3)


def test_hash_is_the_cosine_transform_against_its_median():
    # Frequency (u, v) by the defining double sum of the orthonormal DCT-II, 16x16 image, 4x4 lowest frequencies.
    image = images(5, 1, side=16)[0]
    grey = 255 * (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])
    place = np.arange(16)
    basis = np.array([[math.sqrt((1 if u == 0 else 2) / 16) * math.cos(math.pi * (2 * x + 1) * u / 32) for x in place] for u in range(4)])
    frequencies = (basis @ grey @ basis.T).ravel()
    np.testing.assert_array_equal(perceptual_hash(image[None], side=4)[0], frequencies > np.median(frequencies))


def test_hash_forgives_brightness_and_size_but_not_content():
    # Brightness changes the lowest frequency alone; content changes half of the bits of unrelated noise.
    smooth = np.kron(images(3, 6, side=8) * 0.5, np.ones((1, 1, 8, 8)))
    hashes = perceptual_hash(smooth)
    assert hashes.shape == (6, 256)
    assert hamming(hashes, perceptual_hash(smooth + 0.2)).max() <= 2 / 256
    assert hamming(hashes, perceptual_hash(smooth.repeat(2, 2).repeat(2, 3))).max() < 0.1
    assert hamming_pairs(hashes, hashes)[~np.eye(6, dtype=bool)].min() > 0.2


def test_hash_of_a_flat_image_does_not_depend_on_its_shade():
    np.testing.assert_array_equal(perceptual_hash(np.full((1, 3, 64, 64), 0.3)), perceptual_hash(np.full((1, 3, 64, 64), 0.7)))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_hamming_counts_different_bits(seed):
    bits = np.random.default_rng(seed).random((5, 64)) < 0.5
    by_hand = np.array([[sum(x != y for x, y in zip(a, b)) / 64 for b in bits] for a in bits])
    np.testing.assert_array_equal(hamming_pairs(bits, bits), by_hand)
    np.testing.assert_array_equal(hamming(bits, bits[::-1]), [by_hand[i, 4 - i] for i in range(5)])


def test_cosine_is_the_definition():
    a, b = np.random.default_rng(0).standard_normal((2, 4, 6))
    by_hand = np.array([[float(x @ y) / math.sqrt(float(x @ x) * float(y @ y)) for y in b] for x in a])
    np.testing.assert_allclose(cosine_pairs(a, b), by_hand, atol=1e-12)
    np.testing.assert_allclose(cosine(a, b), np.diag(by_hand), atol=1e-12)
    assert cosine(np.zeros((1, 6)), b[:1])[0] == 0
