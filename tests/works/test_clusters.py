from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from assay.works.clusters import averaged, close_pairs, clusters, firsts, thumbnails


def brute_pairs(features: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """The definition: every pair in float64."""
    wide = features.astype(np.float64)
    return [(i, j) for i in range(len(wide)) for j in range(i + 1, len(wide)) if np.sqrt(((wide[i] - wide[j]) ** 2).mean()) < threshold]


def brute_clusters(features: np.ndarray, threshold: float) -> list[int]:
    """Flood fill over the brute pairs, labels in order of first appearance."""
    pairs = set(brute_pairs(features, threshold))
    labels = [-1] * len(features)
    for start in range(len(features)):
        reached = [start] if labels[start] < 0 else []
        label = max(labels, default=-1) + 1
        while reached:
            here = reached.pop()
            labels[here] = label
            reached += [there for there in range(len(features)) if labels[there] < 0 and (min(here, there), max(here, there)) in pairs]
    return labels


@st.composite
def crowds(draw: st.DrawFn) -> tuple[np.ndarray, float]:
    """Features in families around a few centres, so that many distances are near the threshold; none lies on it."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    threshold = draw(st.sampled_from([0.001, 0.02, 0.05, 0.3]))
    count, dimensions = draw(st.integers(1, 24)), draw(st.sampled_from([3, 48, 768]))
    centres = generator.random((3, dimensions)) * draw(st.sampled_from([0.1, 1.0]))
    spread = threshold * draw(st.sampled_from([0.3, 0.7, 1.0]))
    features = (centres[generator.integers(3, size=count)] + spread * generator.standard_normal((count, dimensions))).astype(np.float32)
    wide = features.astype(np.float64)
    distances = np.sqrt(((wide[:, None] - wide[None]) ** 2).mean(-1))
    assume(np.abs(distances - threshold).min() > 1e-12)
    return features, threshold


def test_thumbnails_are_means_of_blocks():
    """Expected: every block averaged by its own loop."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = [
        [pixels[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2, c].mean() / 255 for y in range(4) for x in range(4) for c in range(3)] for n in range(2)
    ]
    np.testing.assert_allclose(thumbnails(pixels, 4), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(crowds(), st.sampled_from([1, 2, 5, 2048]))
def test_pairs_are_those_of_brute_force(crowd, block):
    """Expected: brute force in float64, whatever the block."""
    features, threshold = crowd
    assert [tuple(pair) for pair in close_pairs(features, threshold, block).tolist()] == brute_pairs(features, threshold)


@settings(max_examples=60, deadline=None)
@given(crowds())
def test_clusters_are_those_of_brute_force(crowd):
    """Expected: flood fill over brute-force pairs, with the same labels."""
    assert clusters(*crowd).tolist() == brute_clusters(*crowd)


@settings(max_examples=40, deadline=None)
@given(crowds(), st.randoms(use_true_random=False))
def test_order_changes_nothing_but_the_labels(crowd, random):
    """Expected: two works share a cluster in the new order exactly if they did in the old."""
    features, threshold = crowd
    order = list(range(len(features)))
    random.shuffle(order)
    before, after = clusters(features, threshold)[order], clusters(features[order], threshold)
    assert np.array_equal(before[:, None] == before[None], after[:, None] == after[None])


@pytest.mark.parametrize(("factor", "together"), [(1 - 1e-5, True), (1 + 1e-5, False)])
def test_the_threshold_is_exact_where_float32_is_not(factor, together):
    """Expected: the sign of the factor; |a|^2 is 768 here, of which float32 resolves 6e-5, and the margin is 4e-5 of 1.92."""
    features = np.ones((2, 768), np.float32)
    features[1, :48] = 1 - 0.05 * 4 * factor  # 48 of 768 dimensions: the mean is divided by 16, its root by 4
    assert bool(len(close_pairs(features, 0.05))) is together


def test_clusters_are_transitive():
    """Expected: the ends of a chain are 0.06 apart, past the threshold, and joined by the one between; the last stands alone."""
    features = np.repeat(np.array([[0.0], [0.5], [0.03], [0.06]], np.float32), 12, axis=1)
    assert clusters(features, 0.05).tolist() == [0, 1, 0, 0]


def test_identical_works_are_one_cluster():
    """Expected: distance 0 is below every threshold."""
    assert clusters(np.full((5, 768), 0.7, np.float32), 1e-6).tolist() == [0] * 5


def test_no_works_make_no_clusters():
    """Expected: nothing from nothing."""
    assert clusters(np.zeros((0, 768), np.float32)).shape == (0,)


def test_near_duplicates_are_counted_once_by_hand():
    """Labels need not begin at 0 or come in order."""
    labels, values = np.array([5, 2, 5, 7, 2]), np.arange(10.0).reshape(5, 2)
    assert firsts(labels).tolist() == [0, 1, 3]
    assert averaged(values, labels).tolist() == [[5.0, 6.0], [2.0, 3.0], [6.0, 7.0]]  # of 2, of 5, of 7
