from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from assay.errors import BadInput, Missing, NoRoom
from assay.works import SCHEMA, Works
from assay.works.images import encode, identity
from assay.works.table import pictures


def row(colour: int, **columns) -> dict:
    image = Image.new("RGB", (8, 4), (colour, colour, colour))
    return {"id": identity(image), "image": encode(image), "captions": [f"grey {colour}"]} | columns


def greys(count: int = 5) -> Works:
    return Works.from_rows([row(index, title=f"grey {index}", style="plain" if index % 2 else "odd") for index in range(count)])


def test_missing_columns_take_their_defaults():
    """Expected: the defaults of the design: a member shown once, in no cluster."""
    work = Works.from_rows([row(1)])[0]
    assert (work["split"], work["copies"], work["cluster"], work["creator"], work["attributes"]) == ("member", 1, -1, None, {})


def test_works_of_other_splits_are_never_shown_unless_they_say_so(tmp_path):
    """A calibration work that says no `copies` counts as unseen, as an imported one does, also in a folder where only some files have the columns."""
    found = Works.from_rows([row(1), *(row(1, split=split) for split in (None, "calibration", "holdout")), row(1, split="calibration", copies=3)])
    assert found.column("split") == ["member", None, "calibration", "holdout", "calibration"]
    assert found.column("copies") == [1, None, 0, 0, 3]
    pq.write_table(found.table.drop_columns(["copies", "split"]), tmp_path / "a.parquet")
    pq.write_table(found.table.drop_columns(["copies"]), tmp_path / "b.parquet")
    both = Works.read(tmp_path)
    assert both.column("split") == ["member"] * 5 + found.column("split")
    assert both.column("copies") == [1] * 5 + [1, None, 0, 0, 0]


def test_a_bare_table_is_brought_into_the_schema():
    """Expected: the one schema, in its order, whatever order and columns came."""
    bare = Works(pa.table({name: [row(1)[name]] for name in ("captions", "image", "id")}))
    assert bare.table.schema == SCHEMA
    assert bare.column("split") == ["member"]


@pytest.mark.parametrize("column", ["id", "image", "captions"])
def test_a_required_column_is_asked_for(column):
    """Expected: an error that names the column, when it is absent and when it has a gap."""
    full = pa.table({name: [row(1)[name], row(2)[name]] for name in ("id", "image", "captions")})
    with pytest.raises(BadInput, match=f"`{column}`"):
        Works(full.drop_columns([column]))
    gap = pa.array([full.column(column)[0].as_py(), None], SCHEMA.field(column).type)
    with pytest.raises(BadInput, match=f"1 works have no `{column}`"):
        Works(full.set_column(full.column_names.index(column), column, gap))


def test_writing_and_reading_gives_the_same_table(tmp_path):
    """Expected: the table that was written, attributes included."""
    works = Works.from_rows([row(1, tags=["a"], attributes=[("gender", "neutral")], copies=4, creator="Ada")])
    works.write(tmp_path / "new" / "works.parquet")
    read = Works.read(tmp_path / "new" / "works.parquet")
    assert read.table.equals(works.table)
    assert read[0]["attributes"] == {"gender": "neutral"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["works.parquet"]


def test_pictures_may_stay_in_their_files(tmp_path):
    """Expected: the same works but for empty pictures, the same digest, and each picture by its row, from whichever file and row group."""
    works = greys(11)
    pq.write_table(works.take(range(7)).table, tmp_path / "a.parquet", row_group_size=3)
    works.take(range(7, 11)).write(tmp_path / "b.parquet")
    light = Works.read(tmp_path, images=False)
    assert set(light.column("image")) == {b""}
    assert light.table.drop_columns(["image"]).equals(works.table.drop_columns(["image"]))
    assert light.digest == works.digest
    for rows in ([], [0], [2, 3, 6, 7, 10], list(range(11))):
        expected = [works.column("image")[row] for row in rows]
        assert list(pictures(tmp_path, np.array(rows, np.int64))) == list(pictures(works, np.array(rows, np.int64))) == expected


def test_only_the_row_groups_asked_for_are_read(tmp_path):
    """Expected: pictures of the first group although the second is damaged, and an error for those of the second."""
    works = Works.from_rows([row(index, image=bytes([index]) * 5000) for index in range(4)])
    pq.write_table(works.table, tmp_path / "a.parquet", row_group_size=2, compression="none", use_dictionary=False)
    data = (tmp_path / "a.parquet").read_bytes()
    start = data.index(bytes([2]) * 5000)  # before it stand its length and the header of its page
    (tmp_path / "a.parquet").write_bytes(data[: start - 34] + b"\xff" * 34 + data[start:])
    assert list(pictures(tmp_path, np.array([0, 1]))) == works.column("image")[:2]
    with pytest.raises(BadInput, match="no table of works"):
        list(pictures(tmp_path, np.array([0, 3])))


def test_works_that_shrink_while_they_are_read(tmp_path):
    """Expected: an error, since a picture would be taken for another's or left out."""
    greys(3).write(tmp_path / "a.parquet")
    with pytest.raises(BadInput, match="fewer works"):
        list(pictures(tmp_path, np.array([1, 3])))


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    """Expected: b before c, though c was written first, and nothing of the file that is no Parquet."""
    greys(2).write(tmp_path / "c.parquet")
    Works.from_rows([row(9)]).write(tmp_path / "b.parquet")
    (tmp_path / "a.parquet.part").write_bytes(b"half")
    assert Works.read(tmp_path).column("captions") == [["grey 9"], ["grey 0"], ["grey 1"]]


def test_the_name_of_a_folder_says_nothing(tmp_path):
    """Expected: the split in the file, where pyarrow would read another from the folder's name."""
    (tmp_path / "split=holdout").mkdir()
    greys(1).write(tmp_path / "split=holdout" / "works.parquet")
    assert Works.read(tmp_path / "split=holdout" / "works.parquet").column("split") == ["member"]


def test_nothing_to_read(tmp_path):
    """Expected: the same error for no file and for a folder without one."""
    for path in (tmp_path / "none.parquet", tmp_path):
        with pytest.raises(Missing, match="No works at"):
            Works.read(path)


def test_what_is_no_table_of_works(tmp_path):
    """Expected: one kind of error for bytes of another kind, a cut file, and a column of a type that cannot be cast."""
    whole, other, cut, odd = (tmp_path / name for name in ("whole.parquet", "other.parquet", "cut.parquet", "odd.parquet"))
    greys().write(whole)
    other.write_bytes(b"no parquet at all")
    cut.write_bytes(whole.read_bytes()[:-20])
    pq.write_table(pa.table({"id": [{"a": 1}], "image": [b""], "captions": [["x"]]}), odd)
    for path in (other, cut, odd):
        with pytest.raises(BadInput, match="no table of works"):
            Works.read(path)


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    """Expected: an error of ours from the one byte that UTF-8 never has, which Parquet itself does not look at, in a column and in a list."""
    table = greys(1).table
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")])
    captions = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), broken)
    for name, column in (("title", broken), ("captions", captions)):
        pq.write_table(table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column), tmp_path / "works.parquet")
        for images in (True, False):
            with pytest.raises(BadInput, match="UTF8"):
                Works.read(tmp_path / "works.parquet", images=images)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """Expected: the file that was there, byte for byte, and no other; the limit on file sizes stands in for a full disk."""
    path = tmp_path / "works.parquet"
    greys(1).write(path)
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(NoRoom, match="cannot be written"):
            greys(50).write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_of_the_folder(tmp_path):
    """Expected: an error of ours, since a file can hold no folder, whoever asks."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NoRoom):
        greys(1).write(tmp_path / "file" / "works.parquet")


def test_taking_and_choosing():
    """Expected: rows in the order asked for, and those with an odd number, picked by hand."""
    works = greys()
    assert works.take([3, 0, 3]).column("title") == ["grey 3", "grey 0", "grey 3"]
    assert works.where(lambda work: work["style"] == "plain").column("title") == ["grey 1", "grey 3"]
    assert len(works.take([])) == len(works.where(lambda work: False)) == 0


def test_where_sees_attributes_and_no_image():
    """Expected: attributes as a dict, as rows give them; the image stays out, so that filters stay cheap."""
    works, seen = Works.from_rows([row(1, attributes=[("subset", "core")])]), []
    works.where(lambda work: bool(seen.append(work)))
    assert seen[0]["attributes"] == {"subset": "core"}
    assert "image" not in seen[0]


def test_columns_are_replaced_in_a_copy():
    """Expected: the new values in the new table, the old in the old."""
    works = greys(2)
    assert works.with_columns(copies=[7, 8]).column("copies") == [7, 8]
    assert works.column("copies") == [1, 1]


def test_attributes_are_none_where_undeclared():
    """Expected: the one that was declared, and None."""
    assert Works.from_rows([row(1), row(2, attributes=[("a", "b")])]).attribute("a") == [None, "b"]


def test_pixels_are_the_middle_square():
    """Expected: every grey value as it was drawn, in the size asked for."""
    pixels = greys(3).pixels(4)
    assert (pixels.shape, pixels.dtype) == ((3, 4, 4, 3), np.uint8)
    assert [int(value) for value in pixels.mean((1, 2, 3))] == [0, 1, 2]
    assert greys(0).pixels(4).shape == (0, 4, 4, 3)


def test_a_damaged_image_is_named():
    """Expected: the first digits of the work's id."""
    works = greys(2).with_columns(image=[b"damaged", row(1)["image"]])
    with pytest.raises(BadInput, match=f"work {works[0]['id'][:12]}"):
        works.pixels(4)


def test_the_digest_is_that_of_the_rows_and_not_of_their_storage(tmp_path):
    """Expected: one digest in memory, from a file, and from the same rows in two files; another for another order."""
    greys(4).write(tmp_path / "all.parquet")
    parts = tmp_path / "parts"
    for index in range(2):
        greys(4).take([2 * index, 2 * index + 1]).write(Path(parts, f"{index}.parquet"))
    assert greys(4).digest == Works.read(tmp_path / "all.parquet").digest == Works.read(parts).digest
    assert greys(4).digest != greys(4).take([1, 0, 2, 3]).digest


TEXTS = st.one_of(st.none(), st.text(max_size=2), st.sampled_from(["100 %", "%r", "it's", '"'])) | st.just("same")


TAGS = st.lists(TEXTS, max_size=3)


@given(
    st.lists(
        st.fixed_dictionaries({
            "title": TEXTS,
            "creator": TEXTS,
            "copies": st.integers(0, 1),
            "captions": st.lists(TEXTS.filter(bool), min_size=1, max_size=2),
            "tags": TAGS,
        }),
        max_size=5,
    ),
    st.integers(0, 3),
    st.none() | st.integers(0, 4),
)
def test_the_digest_is_that_of_the_sorted_rows(changes, start, gap):
    """Expected: SHA-256 of Python's own words for the rows, whichever columns hold one value throughout, also of a part of a table."""
    works = Works.from_rows([row(number) | change | ({"tags": None} if number == gap else {}) for number, change in enumerate(changes)])
    works = Works(works.table.slice(start))
    rows = works.table.drop_columns(["image"]).to_pylist()
    assert works.digest == hashlib.sha256("".join(repr(sorted(one.items())) for one in rows).encode()).hexdigest()


def test_the_digest_covers_every_column_but_the_image():
    # Two works; each column changed in turn.
    works = greys(2)
    changes = {
        "title": ["a", "b"],
        "creator": ["a", "b"],
        "license": ["MIT", "MIT"],
        "style": ["s", "t"],
        "copies": [3, 4],
        "split": ["holdout", "holdout"],
    }
    changes |= {
        "captions": [["a"], ["b"]],
        "attributes": [[("canary", "one")], []],
        "group": ["g", "h"],
        "source": ["s", "t"],
        "tags": [["x"], ["y"]],
    }
    digests = {works.with_columns(**{name: values}).digest for name, values in changes.items()}
    assert len(digests | {works.digest}) == len(changes) + 1


def test_works_without_captions_are_refused():
    works = greys(2)
    for captions in ([[], ["a"]], [[None], ["a"]]):
        with pytest.raises(BadInput, match="1 works have no caption"):
            works.with_columns(captions=captions)
