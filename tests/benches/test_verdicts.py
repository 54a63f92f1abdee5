"""Verdicts by hand: bars met exactly are met, failures rank last, ties share a rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.benches.verdicts import Shares, comparable, like_retraining, mean_ranks, normalised


def test_both_bars_at_their_edges():
    """Reference at 10 % and base at 50 %: 20 % of the target and 45 % of the rest are still within; a point more or less is not."""
    base, reference = Shares(0.9, 0.5), Shares(0.1, 0.48)
    erasers = {"at both": Shares(0.2, 0.45), "too much left": Shares(0.21, 0.5), "too dear": Shares(0.0, 0.44), "failed": None}
    found = like_retraining(erasers, base, reference)
    assert found == {"at both": (True, True), "too much left": (False, True), "too dear": (True, False), "failed": (False, False)}


def test_ranks_by_hand():
    """On the first concept a and b tie on the target (1.5 each), on the second b was not measured and c fails, last of two."""
    first = {"a": Shares(0.0, 0.5), "b": Shares(0.0, 0.4), "c": Shares(0.3, 0.6)}
    second = {"c": None, "a": Shares(0.5, 0.1)}
    rows = {row.method: row[1:] for row in mean_ranks({"first": first, "second": second})}
    assert rows == {"a": (1.25, 1.5, 2), "b": (1.5, 3.0, 1), "c": (2.5, 1.5, 2)}
    assert [row.method for row in mean_ranks({"first": first, "second": second})] == ["a", "c", "b"]


def test_ranks_are_over_what_all_were_measured_on():
    """Four erasers on two concepts are 8 cells, two on three are 6, and two on five are 10: whoever met few rivals is not ranked among many."""
    four, two = dict.fromkeys(("uce", "rece", "ca", "esd"), Shares(0.1, 0.5)), dict.fromkeys(("uce", "rece"), Shares(0.1, 0.5))
    concepts = {"a": four, "b": four, "c": two, "d": {"sld": Shares(0.0, 1.0)}}
    assert comparable(concepts) == {"a": four, "b": four}
    assert comparable(concepts | {"e": two, "f": two}) == dict.fromkeys("abcef", two)
    assert comparable({"d": concepts["d"]}) == {}


SHARES = st.dictionaries(st.sampled_from("abcdefg"), st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 9))), min_size=1)


@given(SHARES, st.randoms(use_true_random=False))
def test_ranks_share_out_and_do_not_depend_on_the_order(drawn, random):
    """The ranks of n methods sum to n (n + 1) / 2 whatever ties; a better target never ranks worse."""
    erasers = {name: None if pair is None else Shares(pair[0] / 9, pair[1] / 9) for name, pair in drawn.items()}
    rows = mean_ranks({"only": erasers})
    n = len(erasers)
    assert sum(row.target for row in rows) == sum(row.rest for row in rows) == n * (n + 1) / 2
    shuffled = list(erasers.items())
    random.shuffle(shuffled)
    assert mean_ranks({"only": dict(shuffled)}) == rows
    rank = {row.method: row.target for row in rows}
    measured = [name for name, shares in erasers.items() if shares is not None]
    assert all(rank[one] < rank[other] for one in measured for other in measured if erasers[one].target < erasers[other].target)


def test_distances_between_floor_and_ceiling():
    assert normalised(0.02, 0.02, 0.06) == 0
    assert normalised(0.06, 0.02, 0.06) == 1
    assert normalised(0.05, 0.02, 0.06) == pytest.approx(0.75)
    assert normalised(0.05, None, 0.06) is None
    assert normalised(0.05, 0.06, 0.06) is None


def test_a_style_that_falls_is_a_cost():
    """By hand: things stay at 30 %, their style goes from 90 to 62 %: not spared. From 90 to 85 %: spared, exactly."""
    base, reference = Shares(0.7, 0.3, 0.9), Shares(0.05, 0.3, 0.9)
    verdicts = like_retraining({"sld": Shares(0.1, 0.3, 0.62), "uce": Shares(0.1, 0.3, 0.85), "unjudged": Shares(0.1, 0.3)}, base, reference)
    assert verdicts == {"sld": (True, False), "uce": (True, True), "unjudged": (True, True)}
