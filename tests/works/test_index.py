from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from assay.errors import BadInput, NoRoom
from assay.works import Works, index
from assay.works.clusters import close_pairs, clusters, join, thumbnails
from assay.works.images import encode, identity
from assay.works.index import Index, spread
from assay.works.info import duplicates
from assay.works.table import pictures


def crowd(count: int, seed: int = 0, families: int = 0) -> Works:
    """Pictures of 16 blocks, in families of which many are near-duplicates of each other."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (families or max(1, count // 3), 4, 4, 3))
    rows = []
    for number in range(count):
        blocks = centres[rng.integers(len(centres))] + rng.normal(0, rng.choice([3, 9, 14]), (4, 4, 3))
        image = Image.fromarray(blocks.clip(0, 255).astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
        rows.append({
            "id": identity(image),
            "image": encode(image),
            "captions": ["blocks"],
            "title": str(number),
            "split": ("member", "holdout")[number % 2],
        })
    return Works.from_rows(rows)


def indexed(folder: Path, works: Works, threshold: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    kept = Index(folder)
    places = kept.add(works.table.column("id"), partial(pictures, works))
    return spread(places, *kept.pairs(threshold))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def refuse(rows: np.ndarray):
    """Pictures that must not be asked for."""
    assert len(rows) == 0
    return iter(())


def test_pairs_and_clusters_are_those_without_an_index(tmp_path):
    """Expected: `close_pairs` and `clusters` of the same thumbnails in memory, and differences by the definition."""
    works = crowd(200)
    features = thumbnails(works.pixels(64))
    pairs, apart = indexed(tmp_path / "index", works)
    assert len(pairs) > 20
    assert np.array_equal(pairs, close_pairs(features))
    assert np.array_equal(join(len(works), pairs), clusters(features))
    wide = features.astype(np.float64)
    np.testing.assert_allclose(apart, np.sqrt(((wide[pairs[:, 0]] - wide[pairs[:, 1]]) ** 2).mean(1)), rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 39), max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_adding_gives_what_starting_anew_gives(tmp_path_factory, chosen, first, second):
    """Expected: brute force over the works asked about, whatever was added before, in whatever order, repeated or left out since."""
    works, folder = crowd(40, 1, 6), tmp_path_factory.mktemp("index") / "index"
    for part in (chosen[:first], chosen[second:], chosen):
        some = works.take(part)
        pairs, apart = indexed(folder, some)
        assert np.array_equal(pairs, close_pairs(thumbnails(some.pixels(64))))
        assert (apart < 0.05).all()
    assert Index(folder).shape[0] == len(set(works.take(chosen).column("id")))


def test_only_new_works_are_read_and_compared(tmp_path, monkeypatch):
    """Expected: the pictures of the added works alone are asked for, and the known ones are not compared among themselves again."""
    works, folder = crowd(60), tmp_path / "index"
    indexed(folder, works.take(range(50)))
    asked, known = [], []
    original = index.near
    monkeypatch.setattr(index, "near", lambda *given, **named: known.append(named["forest"].count) or original(*given, **named))

    def give(rows: np.ndarray):
        asked.extend(rows.tolist())
        return pictures(works, rows)

    kept = Index(folder)
    kept.add(works.table.column("id"), give)
    kept.pairs(0.05)
    assert (asked, known) == (list(range(50, 60)), [50])
    kept = Index(folder)
    kept.add(works.table.column("id"), refuse)
    kept.pairs(0.05)
    assert known == [50]


def test_another_threshold_compares_anew(tmp_path):
    """Expected: brute force at each threshold, also after the other."""
    works = crowd(80)
    features = thumbnails(works.pixels(64))
    for threshold in (0.05, 0.02, 0.1, 0.05):
        assert np.array_equal(indexed(tmp_path / "index", works, threshold)[0], close_pairs(features, threshold))


def test_shards_hold_what_one_would(tmp_path, monkeypatch):
    """Expected: the same thumbnails by slices and by rows from five shards as from one, also past the ends, and the same pairs."""
    works = crowd(70)
    whole = indexed(tmp_path / "one", works)
    monkeypatch.setattr(index, "SHARD", 16)
    monkeypatch.setattr(index, "CHUNK", 4)
    monkeypatch.setattr(index, "MAPPED", 0)
    assert np.array_equal(indexed(tmp_path / "many", works)[0], whole[0])
    one, many = Index(tmp_path / "one"), Index(tmp_path / "many")
    assert len(many.shards) == 5
    assert np.array_equal(one.ids, many.ids)
    assert one.shape[0] == len(works)  # no two pictures are the same
    expected = thumbnails(works.pixels(64))
    rows = np.array([69, 0, 15, 16, 17, 69, 48])
    for kept in (one, many):
        assert np.array_equal(kept[:1000], expected)
        assert np.array_equal(kept[15:33], expected[15:33])
        assert np.array_equal(kept[rows], expected[rows])
        assert kept[slice(100, 200)].shape == (0, 768)


def test_a_killed_index_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    """Expected: the files of an index that was not interrupted, after a stop in the third shard and one between thumbnails and their ids."""
    monkeypatch.setattr(index, "SHARD", 16)
    monkeypatch.setattr(index, "CHUNK", 4)
    works, folder = crowd(70), tmp_path / "index"
    indexed(tmp_path / "whole", works)

    def until(rows: np.ndarray):
        for number, picture in enumerate(pictures(works, rows)):
            if number == 55:
                raise KeyboardInterrupt
            yield picture

    with pytest.raises(KeyboardInterrupt):
        Index(folder).add(works.table.column("id"), until)
    done = len(Index(folder).shards)
    assert 0 < done < 5
    (folder / f"thumbnails-{done:05}.npy").write_bytes((tmp_path / "whole" / f"thumbnails-{done:05}.npy").read_bytes())
    (folder / f"ids-{done:05}.npy.part").write_bytes(b"half")
    indexed(folder, works)
    assert contents(folder) == contents(tmp_path / "whole")


def test_an_index_of_other_works_is_not_believed(tmp_path):
    """Expected: pairs found for other thumbnails, or damaged ones, are found anew."""
    works = crowd(50)
    indexed(tmp_path / "other", crowd(50, 2))
    expected = indexed(tmp_path / "index", works)
    for bad in ((tmp_path / "other/pairs.safetensors").read_bytes(), b"no safetensors"):
        (tmp_path / "index/pairs.safetensors").write_bytes(bad)
        assert np.array_equal(indexed(tmp_path / "index", works)[0], expected[0])


def test_only_new_trees_are_written(tmp_path):
    """Expected: of an index that grows ten times, each time one file more and no other written anew until trees are grown into one; a lost or
    damaged one is made again, with the pairs of one comparison of all."""
    works, folder = crowd(160), tmp_path / "index"
    seen: dict[str, int] = {}
    counts = []
    for size in range(88, 161, 8):
        indexed(folder, works.take(range(size)))
        now = {path.name: path.stat().st_mtime_ns for path in folder.glob("tree-*")}
        assert all(time == now[name] for name, time in seen.items() if name in now)
        seen = now
        counts.append(len(now))
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    expected = indexed(tmp_path / "other", works)[0]
    for harm in (lambda path: path.unlink(), lambda path: path.write_bytes(b"no safetensors")):
        harm(min(folder.glob("tree-*")))
        assert np.array_equal(indexed(folder, works)[0], expected)
        assert len(list(folder.glob("tree-*"))) == 1


@pytest.mark.parametrize("damage", ["thumbnails", "ids", "shape"])
def test_a_damaged_shard(tmp_path, damage):
    """Expected: an error that says what to remove, and nothing written."""
    works, folder = crowd(20), tmp_path / "index"
    indexed(folder, works)
    name = folder / f"{'thumbnails' if damage == 'shape' else damage}-00000.npy"
    if damage == "shape":
        np.save(name, np.zeros((20, 12), np.uint16))
    else:
        name.write_bytes(name.read_bytes()[:200])
    before = contents(folder)
    with pytest.raises(BadInput, match="Remove the index"):
        indexed(folder, works)
    assert contents(folder) == before


def test_folders_that_are_no_index(tmp_path):
    """Expected: an error before anything is written into a folder of something else, or over a file."""
    (tmp_path / "art").mkdir()
    (tmp_path / "art/cat.png").write_bytes(b"mine")
    (tmp_path / "file").write_bytes(b"mine")
    for name in ("art", "file"):
        with pytest.raises(BadInput, match="index"):
            Index(tmp_path / name)
    with pytest.raises(NoRoom):
        indexed(tmp_path / "file/below", crowd(3))


def test_a_damaged_picture_is_named(tmp_path):
    """Expected: an error with the start of the work's id."""
    works = crowd(5)
    bad = works.with_columns(image=[*works.column("image")[:4], b"no picture"])
    with pytest.raises(BadInput, match=works[4]["id"][:12]):
        indexed(tmp_path / "index", bad)


def test_an_id_longer_than_a_hash(tmp_path):
    """Expected: an error, since ids are kept in 64 bytes."""
    with pytest.raises(BadInput, match="65 characters"):
        Index(tmp_path).add(pa.chunked_array([["x" * 65]]), refuse)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=14), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] < pair[1])))
def test_spread_is_every_pair_of_works_at_near_places(places, near):
    """Expected: a double loop over the works: pairs at one place 0 apart, pairs at near places as far as these."""
    apart = {pair: 0.01 * (1 + number) for number, pair in enumerate(sorted(near))}
    pairs = np.array(sorted(near), np.int64).reshape(-1, 2)
    expected = []
    for i in range(len(places)):
        for j in range(i + 1, len(places)):
            two = tuple(sorted((places[i], places[j])))
            if two[0] == two[1] or two in near:
                expected.append((i, j, apart.get(two, 0.0)))
    found, differences = spread(np.array(places, np.int64), pairs, np.array([apart[tuple(pair)] for pair in pairs.tolist()]))
    assert [(i, j, d) for (i, j), d in zip(found.tolist(), differences.tolist(), strict=True)] == expected


def test_the_record_is_the_same_with_and_without_an_index(tmp_path):
    """Expected: every word of the record but the seconds, with pictures in memory or streamed from two files, first and second time."""
    works = crowd(120)
    folder = tmp_path / "works"
    works.take(range(70)).write(folder / "a.parquet")
    works.take(range(70, 120)).write(folder / "b.parquet")
    light = Works.read(folder, images=False)
    plain = duplicates(works).model_copy(update={"seconds": 0})
    assert plain.metric("duplicates.pairs").value > 10
    for kept in (None, tmp_path / "index", tmp_path / "index"):
        assert duplicates(light, source=folder, index=kept).model_copy(update={"seconds": 0}) == plain


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process alone is asked of Linux")
def test_memory_does_not_grow_with_the_pictures(tmp_path):
    """Expected: 225 MB, 300 small pictures each followed by 750 KB that nothing shows, are read within 150 MB more than ten of them are."""
    rows = [{"id": f"{number:064}", "image": encode(Image.new("RGB", (64, 64))) + bytes(750_000), "captions": ["black"]} for number in range(300)]
    Works.from_rows(rows).write(tmp_path / "many.parquet")
    Works.from_rows(rows[:10]).write(tmp_path / "few.parquet")
    code = (
        "import re, sys; from assay.works import Works; from assay.works.info import duplicates; path = sys.argv[1];"
        "works = Works.read(path, images=sys.argv[2] == 'held'); duplicates(works, source=None if sys.argv[2] == 'held' else path);"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )

    def peak(name: str, how: str) -> float:
        command = [sys.executable, "-c", code, str(tmp_path / name), how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024

    few = peak("few.parquet", "streamed")
    assert peak("many.parquet", "streamed") - few < 150
    assert peak("many.parquet", "held") - few > 200
