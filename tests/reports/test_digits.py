from __future__ import annotations

import pytest

from assay.reports import digits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3838, "3838"),
        (12345, "12\u202f345"),
        (-0.5, "−0.5"),
        (27.31, "27.3"),
        (0.96, "0.96"),
        (1e-9, "1.00×10⁻⁹"),
        (None, "–"),
        (9.999, "10"),
    ],
)
def test_a_single_number_has_three_digits_and_no_idle_zeros(value, text):
    # Written out by hand.
    assert digits.number(value) == text


@pytest.mark.parametrize(
    ("figure", "texts"),
    [
        ((0.875, 0.64, 0.966), ("0.88", "[0.64, 0.97]")),
        ((0.0123, 0.0071, 0.0212), ("0.012", "[0.007, 0.021]")),
        ((1200.0, 1100.0, 1310.0), ("1200", "[1100, 1310]")),
        ((0.5, 0.5, 0.5), ("0.5", "[0.5, 0.5]")),
        ((0.5, None, None), ("0.5", "")),
        ((-0.004, -0.3, 0.2), ("0.00", "[−0.30, 0.20]")),
    ],
)
def test_a_figure_is_as_fine_as_its_interval(figure, texts):
    # By hand: two significant digits of the interval's width, the same decimals for all three.
    assert digits.with_interval(*figure) == texts


def test_a_column_shares_its_decimals_and_small_values_do_not_vanish():
    # Three digits of the largest is two decimals; 0.0004 would round to nothing and is written out instead.
    assert digits.column([1.5, 0.25, 0.0004, None, 0.0]) == ["1.50", "0.25", "0.0004", "–", "0.00"]
    assert digits.column([1, 20, 300]) == ["1", "20", "300"]


def test_points_stand_under_each_other():
    # Figure spaces are as wide as digits, a punctuation space as wide as a point: every right-aligned text ends up as long behind its point.
    texts = ["0.88", "3838", "0.123"]
    behind = [len((text + pad).replace("\u2008", ".").rpartition(".")[2]) for text, pad in zip(texts, digits.aligned(texts))]
    assert len(set(behind)) == 1


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "0.5 s"), (42.4, "42 s"), (222.4, "3 min 42 s"), (7384, "2 h 3 min"), (59.8, "60 s")])
def test_durations(seconds, text):
    assert digits.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (2048, "2 KiB"), (2_254_857_830, "2.1 GiB")])
def test_sizes(count, text):
    assert digits.size(count) == text
