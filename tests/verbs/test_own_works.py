"""Was my work in it? A folder of somebody's pictures beside works of known standing, from the import to the sentence of each work."""

import json
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

import assay
from assay.errors import Misconfigured, Missing
from assay.memorization.mine import sentence
from assay.record import Record
from assay.testing import tiny, tiny_works
from assay.verbs.own_works import gathered, noted
from assay.works import Works
from assay.works.images import encode

QUICK = {"images": 2, "clique": 2, "steps": 2, "members": 4, "divisions": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine members and two holdout works of the tiny world as files: ten captioned, one named `red_cross-2`, and one that is no picture."""
    place = tmp_path_factory.mktemp("mine")
    works = tiny_works()
    members = [index for index, split in enumerate(works.column("split")) if split == "member"][:9]
    holdout = [index for index, split in enumerate(works.column("split")) if split == "holdout"][:2]
    for number, index in enumerate([*members, *holdout]):
        name = "red_cross-2" if number == 0 else f"picture{number}"
        works.image(index).save(place / f"{name}.png")
        if number:
            (place / f"{name}.txt").write_text(works.column("captions")[index][0])
    (place / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (place / "torn.txt").write_text("a torn picture")
    return place


def test_own_works_never_stand_beside_themselves(folder):
    """What is given as mine is in the table once, as mine: the same picture among works of known standing is left out."""
    world = tiny_works()
    own = gathered(folder, world, None)
    mine = own.works.where(lambda row: row["attributes"].get("mine") == "yes")
    rest = own.works.where(lambda row: "mine" not in row["attributes"])
    assert len(mine) == 11
    assert own.untitled == 1
    assert "red cross 2" in [captions[0] for captions in mine.column("captions")]
    assert [name for name, _ in own.aside] == ["torn.png"]
    assert not set(mine.column("id")) & set(rest.column("id"))
    assert len(rest) == len(world) - own.twins
    assert own.twins >= 11
    assert set(mine.column("split")) == {None}


def test_works_never_seen_can_be_given(folder):
    """They take the place of the world's own, half of them as calibration; members stay known."""
    world = tiny_works()
    never = world.where(lambda row: row["split"] != "member")
    own = gathered(folder, world.where(lambda row: row["split"] == "member"), never)
    splits = own.works.column("split")
    assert abs(splits.count("calibration") - splits.count("holdout")) <= 2  # two of ten are mine, on whichever side
    assert splits.count("member") > 0
    with pytest.raises(Missing, match="never saw"):
        gathered(folder, None, None)


def test_works_never_seen_do_not_check_themselves(folder):
    """Of works that are there twice one is taken, and so of near-duplicates: 20 colours, of each one to three shades."""
    never = tiny_works().where(lambda row: row["split"] != "member")
    twice = gathered(folder, None, Works(pa.concat_tables([never.table, never.table])))
    once = gathered(folder, None, never)
    assert once.works.column("id") == twice.works.column("id")
    assert once.works.column("split") == twice.works.column("split")
    assert twice.alike == once.alike + len(never)
    shades = Works.from_rows([
        {
            "id": f"{colour}-{shade}",
            "image": encode(Image.new("RGB", (8, 8), (60 * (colour % 5), 60 * (colour // 5), shade))),
            "captions": ["a"],
            "title": str(colour),
        }
        for colour in range(20)
        for shade in range(1 + colour % 3)
    ])
    rest = gathered(folder, None, shades)
    taken = rest.works.where(lambda row: "mine" not in row["attributes"])
    assert sorted(map(int, taken.column("title"))) == list(range(20))
    assert rest.alike == len(shades) - 20
    assert "left out, because another of them is the same" in " ".join(noted(Record(command="audit", question=""), rest)["findings"])


def test_every_work_gets_its_sentence(folder, tmp_path):
    works, denoiser = tiny_works(), tiny()
    plan = assay.audit(denoiser, works, mine=folder, settings=QUICK, dry_run=True).extra["plan"]
    outcome = assay.audit(denoiser, works, mine=folder, settings=QUICK, out=tmp_path)
    record = outcome.record
    assert record is not None
    assert record.method == "mine"
    assert record.passes == plan["passes"]
    table = next(table for table in record.tables if table.title == "Work by work")
    assert len(table.rows) == 11
    assert {row[0]["picture"] for row in table.rows} <= {picture.file for picture in record.pictures}
    assert record.quarantined == 1
    assert any("files' names" in text for text in record.findings)
    assert {metric["name"] for metric in json.loads(outcome.to_json())["metrics"]} >= {"mine.found", "power.found"}
    before = denoiser.passes
    assert assay.audit(denoiser, works, mine=folder, settings=QUICK, out=tmp_path).record is not None
    assert denoiser.passes == before  # a finished audit is read


def test_mine_comes_with_its_works(folder):
    cases: list[dict[str, Any]] = [{"method": "mine"}, {"method": "nearest", "mine": folder}, {"unseen": tiny_works()}]
    for wrong in cases:
        with pytest.raises(Misconfigured, match="belong together"):
            assay.audit(tiny(), tiny_works(), dry_run=True, **wrong)


CAME = "In 3 of 8 attempts with its caption “a cat” an image came out that is nearer to this work, in two of three measures, than images come to all "
CAME += "but 2.5% of works never trained: look at them side by side."


@pytest.mark.parametrize(
    ("seen", "hits", "expected"),
    [
        ({"came_out"}, 3, f"{CAME} The same was seen for 1 of 40 works never trained."),
        (
            {"came_out", "by_itself", "denoised"},
            3,
            f"{CAME} What its caption draws also agrees with itself as rarely happens, and lies near this work. The same was seen for 1 of 40 works "
            "never trained.",
        ),
        (
            {"by_itself"},
            0,
            "Asked 8 times with “a cat”, the model draws images that agree closely and lie near this work. The same was seen for 0 of 40 works never "
            "trained.",
        ),
        (
            {"denoised"},
            0,
            "“a cat”: no copy came out, but the model denoises this work better than nearly all works never trained (p = 0.02): a hint, no proof. "
            "The same was seen for 1 of 40 works never trained.",
        ),
        (
            set(),
            0,
            "“a cat”: we found no sign; that does not prove that it was not used. Of works that were in, the test found 33 of 100 (95 % interval 25% "
            "to 43%).",
        ),
    ],
)
def test_sentences_say_what_was_seen_and_how_often_it_is_seen_in_vain(seen, hits, expected):
    """Counts are made up: signs of one holdout work in 40, and of 33 members in 100. Agreement is never said to be found without the work."""
    counts = {("holdout", "came_out"): (1, 40), ("holdout", "by_itself"): (0, 40), ("holdout", "denoised"): (1, 40), ("members", "found"): (33, 100)}
    assert sentence(seen, hits, 8, "a cat", 0.02, counts, agreement=2, rate=0.025) == expected


def test_a_sentence_names_the_measures_that_agree():
    assert "in all three measures, than images come to all but 1.0% of" in sentence({"came_out"}, 1, 2, "a cat", 0.5, {}, agreement=3, rate=0.01)
