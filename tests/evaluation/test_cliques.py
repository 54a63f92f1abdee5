"""The tightest clique against all subsets, on sets small enough to list them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import Misconfigured
from assay.evaluation.cliques import NONE, at_most, hopeless, tightest
from assay.noise import numpy_generator


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def brute(table, size):
    """The least over all subsets of the largest distance within."""
    return min(max(table[one, other] for one, other in combinations(subset, 2)) for subset in combinations(range(len(table)), size))


@given(seed=st.integers(0, 10_000), count=st.integers(4, 9), size=st.integers(2, 4), metric=st.booleans())
def test_it_is_the_tightest_of_all_subsets(seed, count, size, metric):
    rng = numpy_generator(seed)
    table = distances(rng.normal(size=(count, 2)))
    if not metric:  # any symmetric table will do: tiles make no metric promise that is used
        table = rng.integers(1, 6, (count, count)).astype(float)
        table = np.triu(table, 1) + np.triu(table, 1).T
    found = tightest(table, size)
    assert found.tightness == pytest.approx(brute(table, size))
    inside = table[np.ix_(found.members, found.members)]
    assert len(found.members) == size == len(set(found.members))
    assert inside.max() == pytest.approx(found.tightness)
    assert found.mean == pytest.approx(inside[np.triu_indices(size, 1)].mean())
    assert inside[found.members.index(found.medoid)].sum() == pytest.approx(inside.sum(1).min())


@given(seed=st.integers(0, 10_000), limit=st.floats(0.2, 2.0))
def test_no_clique_is_larger_than_the_graph_s_cores_allow(seed, limit):
    table = distances(numpy_generator(seed).normal(size=(8, 2)))
    sizes = [size for size in range(2, 9) if tightest(table, size).tightness <= limit]
    assert at_most(table, limit) >= max(sizes, default=1)


def test_the_bound_is_one_more_than_the_largest_core():
    """By hand: a triangle with a fourth image at one corner holds three, four that are all far apart one, two pairs two."""
    far = np.full((4, 4), 9.0)
    np.fill_diagonal(far, 0)

    def close(*pairs: tuple[int, int]) -> np.ndarray:
        table = far.copy()
        for one, other in pairs:
            table[one, other] = table[other, one] = 0.5
        return table

    assert at_most(close((0, 1), (1, 2), (0, 2), (2, 3)), 1.0) == 3
    assert at_most(far, 1.0) == 1
    assert at_most(close((0, 1), (2, 3)), 1.0) == 2


def test_a_planted_copy_among_many():
    """Ten points within 0.01 of one place among 300 scattered over 50 dimensions: they are the clique, and nothing else is near."""
    rng = numpy_generator(3)
    points = rng.normal(size=(300, 50))
    planted = sorted(rng.permutation(300)[:10].tolist())
    points[planted] = points[planted[0]] + 0.001 * rng.normal(size=(10, 50))
    found = tightest(distances(points), 10)
    assert list(found.members) == planted
    assert found.tightness < 0.02


def test_equal_images_and_too_few():
    assert tightest(np.zeros((5, 5)), 3).tightness == 0
    assert tightest(np.zeros((2, 2)), 3) == NONE
    assert at_most(np.zeros((0, 0)), 1.0) == 0
    assert at_most(np.zeros((4, 4)), 0.0) == 4
    with pytest.raises(Misconfigured):
        tightest(np.zeros((3, 3)), 1)


def test_where_no_copy_is_behind_the_search_ends():
    """120 points, all about as far apart: a clique comes back at once, no looser than that of an image with its nearest."""
    table = distances(numpy_generator(4).normal(size=(120, 2000)))
    found = tightest(table, 10)
    nearest = np.argsort(table, axis=1)[:, :10]
    assert found.tightness <= min(table[np.ix_(row, row)].max() for row in nearest)
    assert table[np.ix_(found.members, found.members)].max() == pytest.approx(found.tightness)
    loose = tightest(table, 10, limit=1.0)  # all are farther apart
    assert loose.tightness >= found.tightness > 1
    assert table[np.ix_(loose.members, loose.members)].max() == pytest.approx(loose.tightness)


def test_drawing_stops_where_it_is_hopeless():
    """Where no image of 100 agrees with another, p may be 4.7 % (Beta(2, 99) at 0.95): 23 of 500, enough for 10. Of 400: 1.2 %, 6, too few."""
    assert not hopeless(1, 100, 500, 10)
    assert hopeless(1, 400, 500, 10)
    assert not hopeless(8, 400, 500, 10)
    assert hopeless(9, 500, 500, 10)
    assert not hopeless(10, 500, 500, 10)
    assert not hopeless(3, 3, 500, 10)
