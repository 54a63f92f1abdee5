"""Expected values are what was put in, and hashlib's digests."""

from __future__ import annotations

import hashlib
import json
import math
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from assay.errors import BadInput, Missing, NoRoom
from assay.record import Curve, Dossier, Entry, Metric, Picture, Record, Table, digest_of, sha256_file, versions, write_atomically

NUMBERS = st.one_of(st.none(), st.floats())


@pytest.fixture
def record() -> Record:
    return Record(
        command="audit",
        question="Was it memorised?",
        method="nearest",
        given={"seed": 1},
        resolved={"seed": 1, "names": ["a"]},
        digests={"model": "a" * 64},
        seeds={"sampling": 1},
        metrics=[Metric(name="recall", value=0.5, low=0.25, high=0.75, n=16, chance=0.01, better="lower", judge="l2 0123456789ab")],
        findings=["Half of them."],
        shows_not=["Whether others are."],
        tables=[Table(title="t", columns=["a", "b"], rows=[[1, {"picture": "x.png"}], ["é", None]])],
        curves=[Curve(title="c", x_label="k", y_label="recall", lines={"model": [(1.0, 0.5, None, 0.75)]}, x_scale="log")],
        pictures=[Picture(file="x.png", sha256="b" * 64, caption="A cat.")],
        quarantined=2,
        seconds=1.5,
        passes=100,
        peak_memory=10**9,
        versions=versions(),
    )


def test_a_record_is_read_as_it_was_written(tmp_path, record):
    path = record.save(tmp_path)
    assert Record.load(tmp_path) == record == Record.load(path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw["schema"] == "assay/record/1"
    assert list(raw)[:3] == ["schema", "command", "question"]
    assert record.metric("recall") is record.metrics[0]
    with pytest.raises(Missing, match=r"`other`.*recall"):
        record.metric("other")


@example(value=math.nan, low=math.inf, points=[(1.0, math.nan, None, 1.0), (2.0, 0.5, math.nan, math.inf), (1e308, 1e308, None, None)])
@given(value=NUMBERS, low=NUMBERS, points=st.lists(st.tuples(st.floats(), st.floats(), NUMBERS, NUMBERS), max_size=4))
def test_numbers_that_are_not_finite_never_make_a_record_unreadable(value, low, points):
    record = Record(
        command="audit",
        question="?",
        metrics=[Metric(name="m", value=value, low=low)],
        curves=[Curve(title="c", x_label="x", y_label="y", lines={"l": points})],
    )
    again = Record.model_validate_json(record.dump())
    assert again == record
    assert again.metrics[0].value == (value if value is not None and math.isfinite(value) else None)
    kept = [(x, y) for x, y, *_ in again.curves[0].lines["l"]]
    assert kept == [(x, y) for x, y, *_ in points if math.isfinite(x) and math.isfinite(y)]
    assert "NaN" not in record.dump()
    assert "Infinity" not in record.dump()


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError):
        Metric(name="m", value=1.0, hihg=2.0)
    with pytest.raises(ValidationError):
        Record(command="audit", question="?", schema="assay/record/2")


def test_files_that_are_no_record(tmp_path, record):
    with pytest.raises(Missing):
        Record.load(tmp_path)
    whole = record.dump()
    for text in ("", "{", whole[: len(whole) // 2], "[]", whole.replace("assay/record/1", "assay/record/9"), '{"command": "audit"}'):
        (tmp_path / "record.json").write_text(text, encoding="utf-8")
        with pytest.raises(BadInput, match="no record"):
            Record.load(tmp_path)


def test_a_dossier_is_read_as_it_was_written(tmp_path):
    dossier = Dossier(title="t", complete=False, stages=["a", "b"], entries=[Entry(stage="a", record="a/record.json", sha256="c" * 64)])
    with pytest.raises(Missing):
        Dossier.load(tmp_path)
    dossier.save(tmp_path)
    assert Dossier.load(tmp_path) == dossier
    (tmp_path / "dossier.json").write_text("{")
    with pytest.raises(BadInput):
        Dossier.load(tmp_path)


def test_a_file_is_whole_or_absent(tmp_path, monkeypatch):
    write_atomically(tmp_path / "deep" / "file", b"one")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NoRoom, match="No space left"):
        write_atomically(tmp_path / "deep" / "file", b"two, longer")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "deep").iterdir()] == [("file", b"one")]
    with pytest.raises(NoRoom):
        write_atomically(tmp_path / "deep" / "file" / "below", b"three")


def test_digests(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert digest_of({"b": [1], "a": "é"}) == digest_of({"a": "é", "b": [1]}) == hashlib.sha256(b'{"a":"\\u00e9","b":[1]}').hexdigest()
    assert digest_of({"a": 1}) != digest_of({"a": "1"})


def test_versions_name_what_results_depend_on():
    import torch

    assert versions()["torch"] == str(torch.__version__)
    assert {"diffusers", "transformers", "safetensors", "numpy"} <= versions().keys()
