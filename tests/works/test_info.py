from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from assay.errors import Misconfigured
from assay.record import Record, Table
from assay.works import Works
from assay.works.images import encode, identity
from assay.works.info import duplicates, info, obligations


def work(colour: int, **columns) -> dict:
    """A work of one grey: two of them differ by (difference of greys) / 255 in every thumbnail."""
    image = Image.new("RGB", (20 + colour % 3, 20), (colour, colour, colour))
    return {"id": identity(image), "image": encode(image), "captions": ["grey"], "title": f"grey {colour}"} | columns


def table(record: Record, start: str) -> Table:
    return next(table for table in record.tables if table.title.startswith(start))


WORKS = Works.from_rows([
    work(0, style="ink", group="a/b", creator="Ada", license="CC-BY-4.0", copies=4),
    work(60, style="ink", group="a/b", creator="Ada", license="CC-BY-SA-4.0"),
    work(120, style="oil", creator="Bob", license="CC-BY-SA-4.0", split="holdout", copies=0),
    work(180, style="oil", license="house rules"),
    work(240, license="MIT", creator="Eve"),
])


@pytest.mark.parametrize(
    ("licence", "duties"),
    [
        ("CC-BY-4.0", ["attribution"]),
        ("CC BY-SA 4.0", ["attribution", "share alike"]),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/", ["attribution", "share alike", "no commerce"]),
        ("cc-by-nc-nd-3.0", ["attribution", "no commerce", "no derivatives"]),
        ("CC0-1.0", []),
        ("https://creativecommons.org/publicdomain/zero/1.0/", []),
        ("Public Domain", []),
        ("MIT", ["notice"]),
        ("Apache-2.0 / OFL-1.1", ["notice"]),
        ("GPL-3.0-only", ["notice", "share alike"]),
        ("CC-BY-4.0 AND CC0-1.0", ["attribution"]),
        ("GPL-3.0-only AND Unlicense", ["notice", "share alike"]),
        ("provided by sa", ["unknown"]),
        ("all rights reserved", ["unknown"]),
        ("", ["unknown"]),
        (None, ["unknown"]),
    ],
)
def test_what_licences_oblige_to(licence, duties):
    """Expected: the deeds and texts of the licences; the words "by" and "sa" mean something in Creative Commons alone."""
    assert obligations(licence) == duties


def test_info_counts():
    """Expected: counted by hand in the five rows above."""
    record = info(WORKS)
    assert {metric.name: (metric.value, metric.n) for metric in record.metrics} == {
        "works.count": (5, 5),
        "works.creators": (3, 5),
        "works.licences": (4, 5),
        "works.credited": (0.8, 5),
    }
    assert table(record, "Works by split").rows == [["member", 4, 0.8, 7], ["holdout", 1, 0.2, 0]]
    assert table(record, "Works by style").rows == [["ink", 2, 0.4], ["oil", 2, 0.4], ["not stated", 1, 0.2]]
    assert table(record, "Works by creator").rows[0] == ["Ada", 2, 0.4]
    assert table(record, "Works by licence").rows[0] == ["CC-BY-SA-4.0", 2, "attribution, share alike"]
    assert ["house rules", 1, "unknown"] in table(record, "Works by licence").rows
    assert record.digests == {"works": WORKS.digest}


def test_info_says_what_it_means():
    """Expected: sentences with the numbers of the five rows above."""
    assert info(WORKS).findings == [
        "4 of 5 works name their creator: 3 creators, Ada with the most (2 works).",
        "To be credited to their creators: 3 works (CC-BY-4.0, CC-BY-SA-4.0).",
        "To be shared alike by whoever adapts them: 2 works (CC-BY-SA-4.0).",
        "To keep their licence notice: 1 work (MIT).",
        "Under terms that assay does not know, to be read by a person: 1 work (house rules).",
        "By the splits declared, training shows 4 of 5 works, 7 showings an epoch.",
    ]


def test_works_that_are_no_members_are_not_shown():
    """Whatever copies they declare: training takes members alone."""
    record = info(Works.from_rows([work(0, split="holdout", copies=3), work(60, split="member", copies=2)]))
    assert record.findings[-1] == "By the splits declared, training shows 1 of 2 works, 2 showings an epoch."
    assert {row[0]: row[3] for row in table(record, "Works by split").rows} == {"holdout": 0, "member": 2}


def test_long_tables_are_cut():
    """Expected: 50 of 60 groups, said in the title, so that a record stays small."""
    groups = table(info(Works.from_rows([work(index, group=f"g/{index:02}") for index in range(60)])), "Works by group")
    assert (len(groups.rows), groups.rows[0][0]) == (50, "g/00")
    assert groups.title.endswith("the first 50 of 60")


def test_duplicates_counts_clusters_and_leaks():
    """Expected: at 0.05, greys 12 apart (0.047) are near and 24 apart are not: 0-12-24 a chain, 100-100 a pair, 200 alone."""
    works = Works.from_rows([
        work(0, style="ink"),
        work(100, style="oil"),
        work(12, style="oil"),
        work(24, style="oil", split="holdout"),
        work(200, style="oil"),
        work(100, style="oil", split="calibration"),
    ])
    record = duplicates(works, 0.05)
    figures = {metric.name.removeprefix("duplicates."): metric.value for metric in record.metrics}
    assert figures == {"share": 5 / 6, "clusters": 2, "largest": 3, "pairs": 3, "cross_style": 1, "cross_split": 2}
    assert all(metric.n == 6 for metric in record.metrics)
    assert record.findings[0] == "Leak: 2 pairs of near-duplicates are in different splits, 2 of them with a member on one side."
    assert table(record, "Near-duplicate clusters by size").rows == [[1, 1, 1], [2, 1, 2], [3, 1, 3]]
    ids = works.column("id")
    assert table(record, "Largest clusters").rows == [
        [3, "ink, oil", "holdout, member", "grey 0, grey 12, grey 24", f"{ids[0][:12]}, {ids[2][:12]}, {ids[3][:12]}"],
        [2, "oil", "calibration, member", "grey 100, grey 100", f"{ids[1][:12]}, {ids[5][:12]}"],
    ]
    crossing = table(record, "Closest pairs").rows
    assert [row[2] for row in crossing] == [0, round(12 / 255, 4)]
    assert crossing[0][:2] == [f"grey 100 (member, {ids[1][:12]})", f"grey 100 (calibration, {ids[5][:12]})"]


def test_a_leak_between_two_unseen_splits_is_told_apart():
    """Expected: one pair, none of it with a member."""
    works = Works.from_rows([work(9, split="holdout"), work(9, split="calibration")])
    assert duplicates(works).findings[0].startswith("Leak: 1 pair of near-duplicates is in different splits, 0 of them")


def test_works_without_duplicates():
    """Expected: greys 60 apart share no cluster at any usual threshold."""
    record = duplicates(WORKS)
    assert record.metric("duplicates.share").value == 0
    assert record.findings == ["No near-duplicates are in different splits.", "None of the 5 works has a near-duplicate."]


def test_blocks_of_works_are_put_together_again():
    """Expected: works 0 and 600, decoded in two blocks of 512, are the same; no other two of 601 random pictures are."""
    generator = np.random.default_rng(0)
    rows = [work(0) | {"image": encode(Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)))} for _ in range(600)]
    record = duplicates(Works.from_rows([*rows, rows[0]]))
    assert (record.metric("duplicates.pairs").value, record.metric("duplicates.share").value) == (1, 2 / 601)


def test_no_works():
    """Expected: counts of nothing, and no share of nothing."""
    for record, share in ((info(Works.from_rows([])), "works.credited"), (duplicates(Works.from_rows([])), "duplicates.share")):
        assert record.metric(share).value is None
        assert record.findings
        assert record.shows_not


@pytest.mark.parametrize("threshold", [0, -0.1, 1.5, float("nan")])
def test_a_threshold_out_of_range(threshold):
    """Expected: an error, since root mean square differences of values in [0, 1] lie in [0, 1]."""
    with pytest.raises(Misconfigured, match="threshold"):
        duplicates(WORKS, threshold)


def test_records_survive_the_file(tmp_path):
    """Expected: the record that was saved; numpy numbers in it would not be written."""
    record = duplicates(Works.from_rows([work(5), work(6, split="holdout")]))
    assert Record.load(record.save(tmp_path)) == record
