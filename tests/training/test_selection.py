"""Expected sets are read off the tiny works directly: 40 members, one of them 16 times, and 4 works of the holdout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import Misconfigured
from assay.testing import tiny_works
from assay.training.selection import Selection, differences, select, shown

WORKS = tiny_works()
MEMBERS = {row["id"]: row["copies"] for row in WORKS.rows() if row["split"] == "member" and row["copies"] > 0}


def counts(works):
    return dict(zip(shown(works).column("id"), shown(works).column("copies"), strict=True))


def test_nothing_changes_without_a_selection():
    chosen = select(WORKS, Selection(), 0)
    assert chosen.digest == WORKS.digest
    assert differences(WORKS, chosen) == []


def test_kept_works_can_be_left_out_too():
    chosen = select(WORKS, Selection(keep=("style=solid",), drop=("title~circle", "title~blue")), 0)
    expected = {
        row["id"]
        for row in WORKS.rows()
        if row["id"] in MEMBERS and row["style"] == "solid" and "circle" not in row["title"] and "blue" not in row["title"].split()
    }
    assert set(counts(chosen)) == expected
    assert chosen.column("id") == WORKS.column("id")  # the table stays whole


@given(st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_an_exchange_is_one_for_one(swap, seed, once):
    chosen = select(WORKS, Selection(once=once, swap=swap), seed)
    changes = [row for row in differences(WORKS, chosen) if 0 in (row["before"], row["after"])]
    assert sum(row["before"] == 0 for row in changes) == sum(row["after"] == 0 for row in changes) == swap
    assert len(counts(chosen)) == len(MEMBERS)
    splits = dict(zip(WORKS.column("id"), WORKS.column("split"), strict=True))
    assert all(splits[row["id"]] == ("holdout" if row["before"] == 0 else "member") for row in changes)
    assert sum(counts(chosen).values()) == (len(MEMBERS) if once else sum(MEMBERS.values()))
    assert select(WORKS, Selection(once=once, swap=swap), seed).digest == chosen.digest


def test_exchanges_differ_by_seed_and_spare_canaries():
    canary = next(work for work, copies in MEMBERS.items() if copies == 16)
    left = [{row["id"] for row in differences(WORKS, select(WORKS, Selection(swap=4), seed)) if row["after"] == 0} for seed in range(20)]
    assert len(set(map(frozenset, left))) > 10
    assert canary not in set().union(*left)


def test_what_is_left_out_does_not_come_in():
    chosen = select(WORKS, Selection(drop=("style=solid",), swap=2), 0)
    assert set(shown(chosen).column("style")) == {"outline"}


def test_works_with_near_duplicates_are_not_exchanged():
    # Every work of the holdout is made the twin of a member: what enters would not be new.
    rows = WORKS.rows()
    clusters = [0 if row["split"] == "holdout" else row["cluster"] for row in rows]
    with pytest.raises(Misconfigured, match="only 0 can enter"):
        select(WORKS.with_columns(cluster=clusters), Selection(swap=1), 0)


def test_controls_stay_out():
    # A canary shown 0 times, by the lottery of `plant_canaries`, is in the holdout and never enters.
    holdout = [index for index, row in enumerate(WORKS.rows()) if row["split"] == "holdout"]
    attributes = [list(row["attributes"].items()) for row in WORKS.rows()]
    attributes[holdout[0]] = [("canary", "one"), ("dose", "0")]
    chosen = select(WORKS.with_columns(attributes=attributes), Selection(swap=3), 0)
    assert WORKS[holdout[0]]["id"] not in counts(chosen)


def test_only_works_of_the_same_subset_enter():
    rows = WORKS.rows()
    attributes = [[("subset", "other" if row["split"] == "holdout" else "core")] for row in rows]
    with pytest.raises(Misconfigured, match="only 0 can enter"):
        select(WORKS.with_columns(attributes=attributes), Selection(swap=1), 0)


def test_nothing_left_is_an_error():
    with pytest.raises(Misconfigured, match="No works are left"):
        select(WORKS, Selection(drop=("style=solid", "style=outline")), 0)
    with pytest.raises(Misconfigured, match="No works are left"):
        select(WORKS, Selection(drop_ids=tuple(MEMBERS)), 0)


def test_a_selection_says_itself_in_words():
    text = str(Selection(keep=("style=noto",), drop=("title~cat", "canary"), drop_ids=("a", "b"), once=True, swap=7))
    for part in ("only on style=noto", "without title~cat, canary, 2 works by id", "once an epoch", "7 works exchanged"):
        assert part in text
    assert str(Selection()) == "on the same works"
