from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from assay.errors import Unsupported
from assay.works import neighbours
from assay.works.index import spread
from assay.works.neighbours import apart, directions, encode, gap, grow, near


def brute(points: np.ndarray, limit: float) -> list[tuple[int, int, float]]:
    """The definition: every pair in float64."""
    wide = points.astype(np.float64)
    squares = ((wide[:, None] - wide[None]) ** 2).sum(-1)
    return [(i, j, squares[i, j]) for i in range(len(wide)) for j in range(i + 1, len(wide)) if squares[i, j] < limit]


@st.composite
def clouds(draw: st.DrawFn) -> tuple[np.ndarray, float]:
    """Families of points in many or few dimensions, of any size and place, so that many distances are near the limit; none lies on it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, dimensions = draw(st.integers(1, 60)), draw(st.sampled_from([1, 3, 40, 768]))
    scale, place, radius = draw(st.sampled_from([1e-3, 1.0, 100.0])), draw(st.sampled_from([0.0, 1.0])), draw(st.sampled_from([0.01, 0.2, 1.0]))
    centres = rng.random((4, dimensions))
    points = centres[rng.integers(4, size=count)] + radius * draw(st.sampled_from([0.5, 0.71, 1.0])) * rng.standard_normal((count, dimensions))
    points = (scale * (points + place)).astype(np.float32)
    limit = (radius * scale) ** 2 * dimensions
    wide = points.astype(np.float64)
    assume(np.abs(((wide[:, None] - wide[None]) ** 2).sum(-1) / limit - 1).min() > 1e-9)
    return points, limit


@settings(max_examples=120, deadline=None)
@given(clouds(), st.sampled_from([1, 3, 16, 512]), st.lists(st.integers(0, 60), max_size=12), st.sampled_from([1, 2, 8]))
def test_pairs_are_those_of_brute_force(cloud, leaf, stops, trees):
    """Expected: as points are added, brute force in float64 less the pairs of which both were there; whatever the leaf and the steps."""
    points, limit = cloud
    forest, known = None, 0
    for stop in [*sorted({min(stop, len(points)) for stop in stops}), len(points)]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(neighbours, "TREES", trees)
            pairs, squares, forest = near(points[:stop], limit, forest=forest, leaf=leaf)
        expected = [row for row in brute(points[:stop], limit) if row[1] >= known]
        assert pairs.tolist() == [[i, j] for i, j, _ in expected]
        np.testing.assert_allclose(squares, [square for *_, square in expected], rtol=1e-12)
        assert sorted(row for tree in forest.trees for row in tree.rows.tolist()) == list(range(stop))
        assert len(forest.trees) <= trees
        known = stop


@settings(max_examples=60, deadline=None)
@given(clouds())
def test_codes_are_never_farther_apart_than_points(cloud):
    """Expected: Bessel's inequality and the triangle inequality, up to the rounding of float32; this is why no pair is lost."""
    points, _ = cloud
    codes = encode(points, *directions(points)).astype(np.float64)
    wide = points.astype(np.float64)
    full, short = (np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)) for x in (wide, codes))
    assert (short <= full * (1 + 1e-9) + 1e-6 * np.abs(codes).max()).all()


def test_the_first_stage_lets_little_through():
    """Expected: of 5,000 points around 5,000 centres that vary along 8 of 200 directions the pairs let through are few beside all 12.5 million;
    without the length of the rest, or with directions drawn blindly, it would be many times as many."""
    rng = np.random.default_rng(0)
    points = (rng.standard_normal((5000, 8)) @ rng.standard_normal((8, 200)) + 0.05 * rng.standard_normal((5000, 200))).astype(np.float32)
    through = sum(map(len, neighbours.possible(neighbours.planted(points, None, 256), 1.5, None)))
    assert through < 12.5e6 / 1000


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_leaves_hold_every_point_once_and_within_their_box(size):
    """Expected: a permutation of the rows, leaves of at most the size, codes inside the corners."""
    codes = np.random.default_rng(0).standard_normal((53, 4)).astype(np.float32)
    leaves = grow(codes, np.arange(53), size)
    assert sorted(leaves.rows.tolist()) == list(range(53))
    assert np.array_equal(leaves.codes, codes[leaves.rows])
    for start, stop, low, high in zip(leaves.cuts, [*leaves.cuts[1:], 53], leaves.low, leaves.high, strict=True):
        assert 0 < stop - start <= size
        assert np.array_equal((leaves.codes[start:stop].min(0), leaves.codes[start:stop].max(0)), (low, high))


def test_gaps_of_boxes():
    """Expected: by hand: overlapping boxes are 0 apart, the second 3 along one axis, the third 3 and 4 along two."""
    low, high = np.float32([[0, 0], [4, 0], [4, 5]]), np.float32([[2, 2], [5, 2], [5, 6]])
    assert gap(low, high, np.float32([0, 0]), np.float32([1, 1])).tolist() == [0, 9, 25]


def test_products_find_the_close_codes(monkeypatch):
    """Expected: every pair compared directly; and all of them, when there are more than fit one product."""
    rng = np.random.default_rng(0)
    one, other = rng.random((20, 5), np.float32), rng.random((30, 5), np.float32)
    expected = np.nonzero(((one[:, None] - other[None]) ** 2).sum(-1) < 0.4)
    assert np.array_equal(apart(one, other, 0.4), expected)
    monkeypatch.setattr(neighbours, "COLUMNS", 7)
    monkeypatch.setattr(neighbours, "ROWS", 5)
    points = rng.random((60, 5), np.float32)
    assert near(points, 0.3)[0].tolist() == [[i, j] for i, j, _ in brute(points, 0.3)]


def test_points_that_are_all_the_same():
    """Expected: every pair, 0 apart, though there is no direction in which they vary."""
    pairs, squares, _ = near(np.full((9, 768), 0.7, np.float32), 1e-12)
    assert (len(pairs), squares.max()) == (36, 0)


def test_more_pairs_than_memory_should_hold(monkeypatch):
    """Expected: an error from the 37th pair of 9 equal points on, and none at 36; the same where copies share a place in an index."""
    monkeypatch.setattr(neighbours, "MOST", 36)
    assert len(near(np.zeros((9, 3), np.float32), 1.0)[0]) == 36
    with pytest.raises(Unsupported, match="more than 36"):
        near(np.zeros((10, 3), np.float32), 1.0)
    with pytest.raises(Unsupported, match="more than 36"):
        spread(np.zeros(10, np.int64), np.zeros((0, 2), np.int64), np.zeros(0))


def test_progress_ends_at_the_end():
    """Expected: two leaves of the new points among themselves, then the four of the known ones, which are more, with the new."""
    steps = []
    points = np.random.default_rng(0).random((40, 3), np.float32)
    *_, forest = near(points[:20], 0.1, leaf=5)
    near(points[:30], 0.1, forest=forest, leaf=5, progress=lambda *step: steps.append(step))
    assert steps == [(done, 6) for done in range(1, 7)]
