from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from assay.errors import BadInput, Misconfigured, Missing, NoRoom, Unsupported
from assay.works import SCHEMA, Works, images, importing
from assay.works.importing import import_works, judged
from assay.works.sources import Candidate


def drawing(seed: int = 0, size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(seed: int = 0, size: tuple[int, int] = (12, 8), **options) -> bytes:
    buffer = io.BytesIO()
    drawing(seed, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


def put(path: Path, content: bytes | str | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode())
    return path


def lines(*rows: object) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def quarantine(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


@pytest.fixture
def source(tmp_path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def test_a_folder_with_sidecars(source, out):
    """Expected: what the sidecars say, in the order of paths; NAME.json has columns, NAME.txt a caption a line."""
    put(source / "b.png", png(1))
    put(source / "b.txt", "a cat\n\n  a small cat  \n")
    put(source / "a" / "c.jpg", png(2))
    put(
        source / "a" / "c.json",
        {"caption": "a dog", "title": "dog", "tags": "pet, brown", "artist": "Ada", "licence": "CC0-1.0", "gender": "neutral"},
    )
    put(source / "d.webp", png(3))
    put(source / "d.json", ["one", "two"])
    put(source / "README.md", "no work")
    put(source / ".hidden.png", b"no work either")
    report = import_works(source, out, license="MIT", creator="Bob")
    works = Works.read(out)
    assert (report.imported, report.quarantined, report.reasons) == (3, 0, ())
    assert [path.name for path in report.files] == ["quarantine.jsonl", "works-00000.parquet"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in report.files)
    assert works.column("source") == ["b.png", "d.webp", "a/c.jpg"]
    assert works.column("captions") == [["a cat", "a small cat"], ["one", "two"], ["a dog"]]
    assert works.column("creator") == ["Bob", "Bob", "Ada"]
    assert works.column("license") == ["MIT", "MIT", "CC0-1.0"]
    assert (works[2]["title"], works[2]["tags"], works[2]["attributes"]) == ("dog", ["pet", "brown"], {"gender": "neutral"})


def test_what_assay_wrote_below_the_source_is_no_work_of_it(source):
    """As by `assay run` in the folder of one's works, whose pictures lie beside captions of theirs: the works are those of before."""
    put(source / "a.png", png(1))
    put(source / "out" / "b.png", png(2))
    assert import_works(source, source / "works", license="MIT", titled=True).imported == 2
    put(source / "out" / "plan.json", {"command": "run"})
    put(source / "mine" / "plan.json", ["of my own"])
    put(source / "mine" / "c.png", png(3))
    import_works(source, source / "again", license="MIT", titled=True)
    assert Works.read(source / "again").column("source") == ["a.png", "mine/c.png"]


def test_a_work_is_stored_with_its_hashes_and_its_pixels(source, out):
    """Expected: the id by its definition, the hash of the file, and the pixels that were drawn."""
    put(source / "a.png", png(1))
    put(source / "a.txt", "noise")
    import_works(source, out, license="MIT")
    works = Works.read(out)
    pixels = np.asarray(drawing(1))
    assert works[0]["id"] == hashlib.sha256(b"12x8" + pixels.tobytes()).hexdigest()
    assert works[0]["file_hash"] == hashlib.sha256(png(1)).hexdigest()
    assert np.array_equal(np.asarray(works.image(0)), pixels)
    assert (works[0]["split"], works[0]["copies"], works[0]["cluster"]) == ("member", 1, -1)


def test_size_fits_every_picture(source, out):
    """Expected: the square asked for, and an id of what is stored and not of what was read."""
    put(source / "a.png", png(1))
    put(source / "a.txt", "noise")
    import_works(source, out, license="MIT", size=4)
    image = Works.read(out).image(0)
    assert image.size == (4, 4)
    assert Works.read(out)[0]["id"] == images.identity(image)


def test_the_orientation_of_a_camera_is_applied(source, out):
    """Expected: 8x12 from 12x8, since orientation 6 is shown turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    put(source / "a.png", png(1, exif=exif))
    put(source / "a.txt", "noise")
    import_works(source, out, license="MIT")
    assert np.array_equal(np.asarray(Works.read(out).image(0)), np.asarray(drawing(1).transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("below", [".", "train"])
def test_a_folder_with_a_list(source, out, kind, below):
    """Expected: the works the list names, in its order, by the convention of Hugging Face's imagefolder; c.png is not named."""
    rows = [{"file_name": "b.png", "text": "a cat"}, {"file_name": "in/a.png", "text": "a dog"}]
    for index, name in enumerate(("b.png", "in/a.png", "c.png")):
        put(source / below / name, png(index))
    table = source / below / f"metadata.{kind}"
    if kind == "jsonl":
        put(table, lines(*rows))
    elif kind == "csv":
        put(table, "file_name,text\nb.png,a cat\nin/a.png,a dog\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), table)
    import_works(source, out, license="MIT")
    works = Works.read(out)
    assert works.column("captions") == [["a cat"], ["a dog"]]
    assert [work["file_hash"] for work in works] == [hashlib.sha256(png(index)).hexdigest() for index in (0, 1)]


def test_splits_by_their_usual_names_are_those_of_works(tmp_path):
    """train, validation and test are member, calibration and holdout, and of these members alone are shown; other names are set aside."""
    rows = [{"caption": "a cat", "file": f"{number}.png", "split": split} for number, split in enumerate(("train", "validation", "test", "odd"))]
    for number in range(4):
        put(tmp_path / "in" / f"{number}.png", png(number))
    report = import_works(put(tmp_path / "in" / "list.jsonl", lines(*rows)), tmp_path / "out", license="MIT")
    works = Works.read(tmp_path / "out")
    assert (works.column("split"), works.column("copies")) == (["member", "calibration", "holdout"], [1, 0, 0])
    assert "`odd`" in report.reasons[0][1]


FULL = {
    "captions": ["a cat", "cat, sitting"],
    "title": "cat",
    "tags": ["pet", "small"],
    "style": "ink",
    "group": "animals/cats",
    "creator": "Ada",
    "license": "CC-BY-4.0",
    "source": "https://example.org/cat",
    "split": "holdout",
    "copies": 3,
    "cluster": 7,
    "subset": "core",
}


def written(kind: str, source: Path) -> Path:
    """One and the same work as a row of every kind of table."""
    put(source / "pictures" / "cat.png", png(5))
    if kind == "jsonl":
        return put(source / "list.jsonl", lines(FULL | {"file": "pictures/cat.png"}))
    if kind == "csv":
        row = FULL | {"captions": json.dumps(FULL["captions"]), "tags": "pet, small", "image": "pictures/cat.png"}
        with (source / "list.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
        return source / "list.csv"
    image = {"bytes": png(5), "struct": {"bytes": png(5), "path": "cat.png"}, "path": {"bytes": None, "path": "pictures/cat.png"}}[kind]
    pq.write_table(pa.Table.from_pylist([FULL | {"image": image}]), source / "list.parquet")
    return source / "list.parquet"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "bytes", "struct", "path"])
def test_every_kind_of_table_says_the_same(source, out, kind):
    """Expected: the row that was written, and its extra column as an attribute."""
    import_works(written(kind, source), out, license="MIT", creator="Bob")
    work = Works.read(out)[0]
    assert {name: work[name] for name in FULL if name != "subset"} == {name: value for name, value in FULL.items() if name != "subset"}
    assert work["attributes"] == {"subset": "core"}
    assert work["file_hash"] == hashlib.sha256(png(5)).hexdigest()


def saved(folder: Path, parts: list[list[dict]], *, split: str | None = None, info: dict | None = None, **state) -> Path:
    """A dataset in the layout of `save_to_disk`, as `datasets` 5.2 was seen to write it: an Arrow stream a part, in batches of two rows."""
    names = [f"data-{number:05}-of-{len(parts):05}.arrow" for number in range(len(parts))]
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", picture), ("text", pa.string()), ("label", pa.int64()), ("license", pa.string())])
    for name, rows in zip(names, parts, strict=True):
        put(folder / name, b"")
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            stream.write_table(pa.Table.from_pylist(rows, schema), max_chunksize=2)
    put(
        folder / "state.json",
        {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_type": None, "_split": split} | state,
    )
    features = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    put(folder / "dataset_info.json", {"citation": "", "features": features, "license": ""} | (info or {}))
    return folder


def entry(number: int, **changes) -> dict:
    return {"image": {"bytes": png(number), "path": None}, "text": f"work {number}", "label": number % 2, "license": None} | changes


def test_a_saved_dataset(source, out):
    """Expected: rows in the order of files, classes by name, the dataset's licence where a row has none, and a picture beside the files."""
    put(source / "beside.png", png(2))
    rows = [entry(0), entry(1, license="CC0-1.0"), entry(2, image={"bytes": None, "path": "beside.png"}, label=7)]
    import_works(saved(source, [rows, [entry(3)]], info={"license": "CC-BY-4.0"}), out)
    works = Works.read(out)
    assert works.column("captions") == [["work 0"], ["work 1"], ["work 2"], ["work 3"]]
    assert works.column("license") == ["CC-BY-4.0", "CC0-1.0", "CC-BY-4.0", "CC-BY-4.0"]
    assert works.attribute("label") == ["cat", "dog", "7", "dog"]
    assert works.column("file_hash") == [hashlib.sha256(png(number)).hexdigest() for number in range(4)]
    assert works.column("source")[3] == "data-00001-of-00002.arrow:0"


def test_a_saved_dict_of_datasets(source, out):
    """Expected: what was trained on are members, validation calibrates, test is held out and neither is shown; other splits count as members."""
    put(source / "dataset_dict.json", {"splits": ["train", "validation", "test", "extra"]})
    for number, split in enumerate(("train", "validation", "test", "extra")):
        saved(source / split, [[entry(number)]])
    import_works(source, out, license="MIT")
    works = Works.read(out)
    assert works.column("split") == ["member", "calibration", "holdout", "member"]
    assert works.column("copies") == [1, 0, 0, 1]
    assert works.column("source")[2] == "test/data-00000-of-00001.arrow:0"


@pytest.mark.parametrize(("split", "ours"), [("test", "holdout"), ("train[:10%]", "member"), (None, "member"), ("test+train", "member")])
def test_a_saved_dataset_knows_its_split(source, out, split, ours):
    """Expected: the split that `state.json` names, also in part; a mixture counts as members."""
    import_works(saved(source, [[entry(0)]], split=split), out, license="MIT")
    assert Works.read(out).column("split") == [ours]


def test_bad_rows_of_a_saved_dataset_are_set_aside(source, out):
    """Expected: the sound row of each batch imported, the rest named by file and row with their reasons."""
    rows = [entry(0, image={"bytes": png()[:150], "path": None}), entry(1), entry(2, text=" "), entry(3), entry(4, image=None)]
    report = import_works(saved(source, [rows]), out, license="MIT")
    assert report.imported == 2
    assert [name.rpartition(":")[2] for name, _ in report.reasons] == ["0", "2", "4"]
    assert ["cannot be decoded" in report.reasons[0][1], *(said for _, said in report.reasons[1:])] == [
        True,
        "It has no caption.",
        "It names no picture.",
    ]


def test_a_damaged_saved_dataset_ends_the_import(source, out):
    """Expected: an error that names the file, and nothing left: a stream cut short, offsets past its end, no stream, a list that is none, no file."""
    saved(source, [[entry(number) for number in range(5)]])
    arrow, state = source / "data-00000-of-00001.arrow", source / "state.json"
    data = arrow.read_bytes()
    texts = data.index(b"work 0work 1") - 64
    for path, content in (
        (arrow, data[: len(data) // 2]),
        (arrow, data[:texts] + data[texts : texts + 64].replace(b"\x06\0\0\0", b"\xff\xff\xff\x7e") + data[texts + 64 :]),
        (arrow, b"no arrow"),
        (state, b'{"_data_files": "x"}'),
        (state, b"{"),
    ):
        before = path.read_bytes()
        put(path, content)
        with pytest.raises(BadInput, match=path.name):
            import_works(source, out, license="MIT")
        assert not out.exists()
        put(path, before)
    arrow.unlink()
    with pytest.raises(BadInput, match=arrow.name):
        import_works(source, out, license="MIT")


def test_a_saved_dataset_stays_in_its_folder(source, out):
    """Expected: names of files and splits are names, not ways out of the folder."""
    saved(source / "outside", [[entry(0)]])
    saved(source / "inside", [[entry(1)]], _data_files=[{"filename": "../outside/data-00000-of-00001.arrow"}])
    import_works(source / "inside", out, license="MIT")
    assert Works.read(out).column("captions") == [["work 1"]]


@pytest.mark.parametrize("kind", ["relative", "absolute", "parquet", "link", "sidecar"])
def test_nothing_outside_the_source_is_read(source, out, tmp_path, kind):
    """Expected: the file set aside though it can be read, because whoever made the source could name any; inside, every way to name one stays."""
    put(source / "in" / "good.png", png(1))
    put(tmp_path / "secret.png", png(2))
    put(tmp_path / "secret.txt", "secret")
    if kind == "link":
        (source / "in" / "bad.png").symlink_to(tmp_path / "secret.png")
        put(source / "in" / "bad.txt", "bad")
    elif kind == "sidecar":
        put(source / "in" / "bad.png", png(3))
        (source / "in" / "bad.txt").symlink_to(tmp_path / "secret.txt")
    elif kind == "parquet":
        rows = [{"image": {"bytes": None, "path": path}, "text": "x"} for path in (str(source / "in" / "good.png"), "../secret.png")]
        pq.write_table(pa.Table.from_pylist(rows), source / "list.parquet")
    else:
        bad = str(tmp_path / "secret.png") if kind == "absolute" else "../../secret.png"
        (source / "in" / "alias.png").symlink_to("good.png")
        put(source / "in" / "metadata.jsonl", lines(*({"file_name": name, "text": "x"} for name in ("alias.png", "../in/good.png", bad))))
    put(source / "in" / "good.txt", "good")
    report = import_works(source, out, license="MIT")
    [(_, reason)] = report.reasons
    assert reason.startswith("The file lies outside the source")
    assert set(Works.read(out).column("file_hash")) == {hashlib.sha256(png(1)).hexdigest()}


def test_a_split_that_leads_outside_is_not_read(source, out, tmp_path):
    """As for tables: a folder of a saved dict of datasets that is a link to elsewhere."""
    put(source / "dataset_dict.json", {"splits": ["train"]})
    saved(tmp_path / "elsewhere", [[entry(0)]])
    (source / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="outside the source"):
        import_works(source, out, license="MIT")


@pytest.mark.parametrize("name", ["metadata.csv", "works.parquet"])
def test_a_table_that_leads_outside_is_not_read(source, out, tmp_path, name):
    """The import ends: whoever made the folder could else have tables of the machine imported."""
    put(source / "a.png", png(1))
    if name.endswith(".csv"):
        put(tmp_path / "secret", "file_name,text\na.png,secret\n")
    else:
        pq.write_table(pa.Table.from_pylist([{"image": png(2), "text": "secret"}]), tmp_path / "secret")
    (source / name).symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="outside the source"):
        import_works(source, out, license="MIT")


def test_what_turns_the_direction_of_writing_is_left_out(source, out):
    """Expected: the words without overrides, embeddings and isolates, which would turn the figures behind them; a mark that turns nothing stays."""
    put(source / "a.png", png())
    put(source / "a.json", {"caption": "a \u202ecat\u2066", "title": "\u202ecat", "creator": "\u200fAda"})
    import_works(source, out, license="MIT")
    assert [Works.read(out)[0][name] for name in ("captions", "title", "creator")] == [["a cat"], "cat", "\u200fAda"]


def test_rows_selected_by_a_list_are_not_guessed(source, out):
    """Expected: an error that says how to save anew, since without the list other rows would be imported."""
    with pytest.raises(Unsupported, match="flatten_indices"):
        import_works(saved(source, [[entry(0)]], _indices_data_files=[{"filename": "indices.arrow"}]), out, license="MIT")


def test_a_picture_called_state_is_no_saved_dataset(source, out):
    """Expected: the picture with its sidecar, imported."""
    put(source / "state.png", png())
    put(source / "state.json", {"caption": "a state"})
    assert import_works(source, out, license="MIT").imported == 1


def test_works_of_our_own_come_through_unchanged(source, out):
    """Expected: the table that went in; it has every column set."""
    image = drawing(3)
    row = FULL | {"id": images.identity(image), "file_hash": "f" * 64, "image": images.encode(image), "attributes": [("canary", "one")]}
    works = Works.from_rows([row])
    works.write(source / "one.parquet")
    works.write(source / "two.parquet")
    import_works(source, out)
    assert Works.read(out).table.equals(pa.concat_tables([works.table, works.table]))


def test_other_splits_are_kept_and_not_shown(source, out):
    """Expected: the split of the source, and copies of 0 for calibration and holdout, which training must not see."""
    for index, split in enumerate(("member", "calibration", "holdout")):
        put(source / f"{index}.png", png(index))
        put(source / f"{index}.json", {"caption": "x", "split": split})
    import_works(source, out, license="MIT")
    assert Works.read(out).column("split") == ["member", "calibration", "holdout"]
    assert Works.read(out).column("copies") == [1, 0, 0]


GOOD = {"file_name": "good.png", "text": "good", "license": "MIT"}
BAD = {
    "no caption": ({"text": None}, "no caption"),
    "an empty caption": ({"text": "  "}, "no caption"),
    "no licence": ({"license": None}, "no licence"),
    "no picture": ({"file_name": None}, "names no picture"),
    "a lost picture": ({"file_name": "lost.png"}, "no file: lost.png"),
    "a folder for a picture": ({"file_name": "."}, "no file"),
    "no image": ({"file_name": "text.png"}, "no format"),
    "a truncated PNG": ({"file_name": "cut.png"}, "cannot be decoded"),
    "too many pixels": ({"file_name": "wide.png"}, "megapixels"),
    "too many bytes": ({"file_name": "heavy.png"}, "larger than"),
    "a caption that is no text": ({"text": {"en": "x"}}, "expected"),
    "half a character": ({"text": "\ud800"}, "halves of characters"),
    "copies that are no number": ({"copies": "many"}, "`copies`"),
    "copies below none": ({"copies": -1}, "`copies`"),
    "copies past 32 bits": ({"copies": 2**31}, "`copies`"),
    "attributes that are no pairs": ({"attributes": "x"}, "JSON"),
    "attributes that are numbers": ({"attributes": [1, 2]}, "pairs"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_work_is_set_aside_with_its_reason(source, out, fault, monkeypatch):
    """Expected: the good work before and after it imported; the bad one named by its line, with the reason of the table above."""
    monkeypatch.setattr(images, "MAX_PIXELS", 12 * 8)
    monkeypatch.setattr("assay.works.fields.MAX_BYTES", 5000)
    for name, data in {
        "good.png": png(),
        "text.png": b"text",
        "cut.png": png()[:150],
        "wide.png": png(size=(97, 1)),
        "heavy.png": png() + bytes(5000),
    }.items():
        put(source / name, data)
    changes, reason = BAD[fault]
    report = import_works(put(source / "list.jsonl", lines(GOOD, GOOD | changes, GOOD)), out)
    assert (report.imported, report.quarantined, len(Works.read(out))) == (2, 1, 2)
    [(name, said)] = report.reasons
    assert name == "list.jsonl:2"
    assert reason in said
    assert quarantine(out) == [{"name": name, "reason": said}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{no json", "JSON cannot be read"), ("[1]", "no JSON object"), ('{"text": "\xff"}', "JSON cannot be read"), ("[" * 10**5, "JSON")],
)
def test_a_bad_line_is_set_aside(source, out, line, reason):
    """Expected: the other line imported; the bad one is its own work and not the end of the file."""
    put(source / "good.png", png())
    put(source / "list.jsonl", line.encode("latin-1") + b"\n\n" + lines(GOOD).encode())
    report = import_works(source / "list.jsonl", out)
    assert (report.imported, report.quarantined) == (1, 1)
    assert report.reasons[0][0] == "list.jsonl:1"
    assert reason in report.reasons[0][1]


def test_a_long_row_of_csv_is_set_aside(source, out):
    """Expected: the line whose caption was not quoted, by its number; line 4 has a caption of two lines and ends on line 5."""
    put(source / "good.png", png())
    table = put(source / "list.csv", 'file,caption,license\ngood.png,a cat,MIT\ngood.png,a cat, sitting,MIT\ngood.png,"a\ndog",MIT\n')
    report = import_works(table, out)
    assert report.reasons == (("list.csv:3", "The row has more fields than the head of the table."),)
    assert Works.read(out).column("captions") == [["a cat"], ["a", "dog"]]


@pytest.mark.parametrize(
    ("sidecar", "content", "reason"),
    [("a.txt", b"caf\xe9", "UTF-8"), ("a.json", b"{", "JSON"), ("a.txt", b"\n", "no caption"), ("b.txt", b"x", "no caption")],
)
def test_a_bad_sidecar_sets_its_picture_aside(source, out, sidecar, content, reason):
    """Expected: the picture named by its path, with the reason; b.txt belongs to no picture."""
    put(source / "in" / "a.png", png())
    put(source / "in" / sidecar, content)
    put(source / "good.png", png())
    put(source / "good.txt", "good")
    report = import_works(source, out, license="MIT")
    [(name, said)] = report.reasons
    assert (name, report.imported) == ("in/a.png", 1)
    assert reason in said


def test_a_side_too_long_to_store(source, out):
    """Expected: 12 pixels pass a limit of 12 and not of 11; a picture that is fitted to a size passes any."""
    put(source / "a.png", png())
    put(source / "a.txt", "a")
    assert import_works(source, out, license="MIT", max_side=12).imported == 1
    assert import_works(source, out.with_name("fitted"), license="MIT", max_side=4, size=4).imported == 1
    with pytest.raises(BadInput, match="longer than 11 pixels"):
        import_works(source, out.with_name("refused"), license="MIT", max_side=11)


def test_nothing_to_import_says_why(source, out):
    """Expected: the reasons with their numbers, the most frequent first, the list in quarantine.jsonl, and no works."""
    for index in range(3):
        put(source / f"{index}.png", png(index))
    put(source / "0.txt", "a cat")
    with pytest.raises(BadInput, match=r"It has no caption \(2\); It states no licence.* \(1\)") as caught:
        import_works(source, out)
    assert "--license" in caught.value.hint
    assert len(quarantine(out)) == 3
    assert [path.name for path in out.iterdir()] == ["quarantine.jsonl"]


def test_an_empty_folder(source, out):
    """Expected: an error, since no works are no result."""
    source.mkdir()
    with pytest.raises(BadInput, match="It holds no works"):
        import_works(source, out)


def test_a_source_that_is_not_there_or_of_another_kind(source, out):
    """Expected: two errors, and no folder made for the works."""
    with pytest.raises(Missing, match="There is no"):
        import_works(source, out)
    with pytest.raises(Unsupported, match=r"list\.xlsx"):
        import_works(put(source / "list.xlsx", b""), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("list.parquet", b"no parquet"), ("list.csv", b"file,text\na.png,caf\xe9\n"), ("list.csv", b'file,text\na.png,"' + b"x" * 200_000 + b'"\n')],
)
def test_a_damaged_table_ends_the_import(source, out, name, content):
    """Expected: an error that names the file, and nothing left of the import."""
    with pytest.raises(BadInput, match=name):
        import_works(put(source / name, content), out)
    assert not out.exists()


def test_a_parquet_damaged_in_the_middle(source, out):
    """Expected: an error although the first row group is sound, and nothing left, not even of the works read by then."""
    rows = [{"image": png(index), "text": "x"} for index in range(64)]
    path = source / "list.parquet"
    source.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=16, compression="none", use_dictionary=False)
    data, seen = bytearray(path.read_bytes()), []
    page = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[page : page + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"list\.parquet"):
        import_works(path, out, license="MIT", progress=lambda done, aside: seen.append(done))
    assert len(seen) >= 16
    assert not out.exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("after", [1, 5])
def test_an_interruption_leaves_nothing(source, out, stop, after, monkeypatch):
    """Expected: the folder as it was, after a first and after a third row group; the earlier quarantine list is of another import and stays."""
    monkeypatch.setattr(importing, "GROUP_WORKS", 2)
    put(source / "good.png", png())
    put(source / "list.jsonl", lines(*[GOOD] * 9))
    put(out / "quarantine.jsonl", "")

    def progress(imported: int, quarantined: int) -> None:
        if imported == after:
            raise stop

    with pytest.raises(stop):
        import_works(source / "list.jsonl", out, progress=progress)
    assert [path.name for path in out.iterdir()] == ["quarantine.jsonl"]


def test_a_killed_import_does_not_stand_in_the_way(source, out):
    """Expected: the leftover of another run is gone and the works are there."""
    put(out / "works-00003.parquet.part", b"half")
    put(source / "a.png", png())
    put(source / "a.txt", "a")
    import_works(source, out, license="MIT")
    assert sorted(path.name for path in out.iterdir()) == ["quarantine.jsonl", "works-00000.parquet"]


def test_row_groups_and_shards_keep_the_order(source, out, monkeypatch):
    """Expected: 11 works in groups of 2, a shard closed once it holds as many bytes as two groups: 4, 4, 3 works, in the order of the list."""
    put(source / "good.png", png())
    stored = len(images.encode(drawing()))
    monkeypatch.setattr(importing, "GROUP_WORKS", 2)
    monkeypatch.setattr(importing, "SHARD_BYTES", 4 * stored)
    report = import_works(put(source / "list.jsonl", lines(*[GOOD | {"title": str(index)} for index in range(11)])), out)
    shards = [pq.ParquetFile(path) for path in report.files[1:]]
    assert [shard.metadata.num_rows for shard in shards] == [4, 4, 3]
    assert [shard.metadata.num_row_groups for shard in shards] == [2, 2, 2]
    assert Works.read(out).column("title") == [str(index) for index in range(11)]


def test_large_pictures_end_a_row_group(source, out, monkeypatch):
    """Expected: a group a work, when one work has more bytes than a group may hold."""
    monkeypatch.setattr(importing, "GROUP_BYTES", 1)
    put(source / "good.png", png())
    report = import_works(put(source / "list.jsonl", lines(GOOD, GOOD, GOOD)), out)
    assert pq.ParquetFile(report.files[1]).metadata.num_row_groups == 3
    assert pq.read_schema(report.files[1]).equals(SCHEMA)


def test_progress_counts_every_work(source, out):
    """Expected: one call a work with the counts so far."""
    put(source / "good.png", png())
    calls = []
    import_works(put(source / "list.jsonl", lines(GOOD, {}, GOOD)), out, progress=lambda *counts: calls.append(counts))
    assert calls == [(1, 0), (1, 1), (2, 1)]


def test_the_report_is_bounded_and_the_file_is_not(source, out, monkeypatch):
    """Expected: the number asked for in memory, all of them on disk."""
    monkeypatch.setattr(importing, "SHOWN", 2)
    put(source / "good.png", png())
    report = import_works(put(source / "list.jsonl", lines(GOOD, {}, {}, {})), out)
    assert (report.quarantined, len(report.reasons), len(quarantine(out))) == (3, 2, 3)


def test_works_are_not_mixed_with_others(source, out):
    """Expected: an error at the second import, and the first one's works as they were."""
    put(source / "a.png", png())
    put(source / "a.txt", "a")
    import_works(source, out, license="MIT")
    before = (out / "works-00000.parquet").read_bytes()
    with pytest.raises(Misconfigured, match="holds works already"):
        import_works(source, out, license="MIT")
    assert (out / "works-00000.parquet").read_bytes() == before


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": -1}, {"max_side": 0}, {"max_side": 16384}, {"size": 9, "max_side": 8}])
def test_sizes_out_of_range(source, out, settings):
    """Expected: an error before anything is made."""
    source.mkdir()
    with pytest.raises(Misconfigured, match="out of range"):
        import_works(source, out, **settings)
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder(source, out):
    """Expected: an error, and the file untouched."""
    put(out, b"mine")
    put(source / "a.png", png())
    with pytest.raises(NoRoom, match="cannot be written"):
        import_works(source, out, license="MIT")
    assert out.read_bytes() == b"mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(source, out):
    """Expected: an error, and nothing in the folder."""
    out.mkdir(mode=0o500)
    put(source / "a.png", png())
    with pytest.raises(NoRoom, match="cannot be written"):
        import_works(source, out, license="MIT")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("groups", [1, 512])
def test_a_full_disk(source, out, groups, monkeypatch):
    """Expected: an error of ours, whether the disk fills in the middle or at the end; a limit on file sizes stands in for it."""
    monkeypatch.setattr(importing, "GROUP_WORKS", groups)
    put(source / "good.png", png())
    put(source / "list.jsonl", lines(*[GOOD] * 8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(NoRoom, match="cannot be written"):
            import_works(source / "list.jsonl", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = ["image", "file", "caption", "captions", "license", "tags", "title", "split", "copies", "cluster", "attributes", "file_hash", "other"]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=6), st.booleans())
def test_no_row_ends_an_import(row, complete):
    """Expected: a row that fits the schema, or the reason for the quarantine; any other exception would end an import."""
    row = {"image": png(), "caption": "x", "license": "MIT"} | row if complete else row
    try:
        work = judged(Candidate("name", Path("/nowhere"), lambda: row), Path("/nowhere"), None, None, None, 99)
    except BadInput:
        return
    assert pa.Table.from_pylist([work], schema=SCHEMA).num_rows == 1
