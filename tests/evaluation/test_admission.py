"""Newcombe's own examples, and properties that the definitions give."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import Misconfigured
from assay.evaluation.admission import admit, difference_interval


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Newcombe 1998, Table II, method 10, examples (a), (b), (c), (d), (g), (h).
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((10, 10, 0, 20), 0.6791, 1.0000),
        ((10, 10, 0, 10), 0.6075, 1.0000),
    ],
)
def test_the_interval_is_newcombes(counts, low, high):
    assert difference_interval(*counts) == pytest.approx((low, high), abs=5e-5)


def counted(right, n):
    return [True] * right + [False] * (n - right)


def test_the_rule_is_forty_points():
    base = {"cats": counted(9, 10), "hearts": counted(7, 10), "clocks": counted(8, 10), "logos": counted(3, 10)}
    reference = {"cats": counted(1, 10), "hearts": counted(3, 10), "clocks": counted(5, 10), "logos": counted(0, 10)}
    rows = admit(base, reference)
    assert [(row.family, row.admitted) for row in rows] == [("cats", True), ("hearts", True), ("clocks", False), ("logos", False)]
    assert [row.fall for row in rows] == pytest.approx([0.8, 0.4, 0.3, 0.3])
    assert rows[0].images == (10, 10)
    assert (rows[0].base, rows[0].reference) == (0.9, 0.1)


counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, counts)
def test_intervals_hold_the_difference_and_mirror_when_exchanged(first, second):
    low, high = difference_interval(*first, *second)
    other_low, other_high = difference_interval(*second, *first)
    difference = first[0] / first[1] - second[0] / second[1]
    assert -1 - 1e-12 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1 + 1e-12
    assert (low, high) == pytest.approx((-other_high, -other_low), abs=1e-12)


@given(counts, counts, st.integers(0, 20))
def test_a_family_is_admitted_exactly_from_the_least_on(first, second, twentieths):
    (row,) = admit({"a": counted(*first)}, {"a": counted(*second)}, least=twentieths / 20)
    assert row.admitted == (Fraction(*first) - Fraction(*second) >= Fraction(twentieths, 20))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(Misconfigured, match="hearts"):
        admit({"cats": [True]}, {"hearts": [True]})
    with pytest.raises(Misconfigured, match="no images"):
        admit({"cats": [True]}, {"cats": []})
