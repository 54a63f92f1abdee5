"""Near-duplicates of a million works, and beside other packages: `benchmarks/duplicates.json`.

    python benchmarks/duplicates.py --folder BUILD [--works 1000000] [--rivals PYTHON]

BUILD, outside the tree, takes the synthetic works: 3 GB a million. They are made of the built-in emoji, cut out, scaled, turned, mirrored, coloured
anew and set on a ground, one or two a picture; two in a hundred are copies of another, of `KINDS`. PYTHON is an interpreter with the others:

    python -m venv VENV && VENV/bin/pip install cleanvision tqdm scikit-learn PyWavelets matplotlib && VENV/bin/pip install --no-deps imagededup

imagededup's hash methods are imported beside its package file, which wants torch and torchvision for its network.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
SEED = 20261124
SHARD, COPIES = 20_000, 400
SIZES, ANGLES = (24, 32, 40, 48, 56, 64), (0, 25, -25)
THRESHOLD = 0.05
RIVALS = ("PHash", "DHash", "AHash", "WHash", "cleanvision")
LIMIT_SECONDS, LIMIT_BYTES = 300, 6 * 2**30
REPEATS = 5
"""Runs with an index, which take seconds and vary by as much as they differ."""


def jpeg(quality: int):
    """Return a copy that went through JPEG."""

    def copy(pixels: np.ndarray, _: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return copy


KINDS = {
    "same pixels": lambda pixels, _: Image.fromarray(pixels),
    "JPEG of quality 90": jpeg(90),
    "JPEG of quality 50": jpeg(50),
    "scaled to 56 and back": lambda pixels, _: Image.fromarray(pixels).resize((56, 56), 3).resize((64, 64), 3),
    "enlarged to 96": lambda pixels, _: Image.fromarray(pixels).resize((96, 96), 3),
    "brighter by 5 of 255": lambda pixels, _: Image.fromarray(np.minimum(pixels.astype(np.int16) + 5, 255).astype(np.uint8)),
    "noise of 6 of 255": lambda pixels, rng: Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).round().clip(0, 255).astype(np.uint8)),
    "shifted by 1 of 64": lambda pixels, _: Image.fromarray(np.concatenate([pixels[:, :1], pixels[:, :-1]], axis=1)),
    "mirrored": lambda pixels, _: Image.fromarray(pixels[:, ::-1]),
    "colours exchanged": lambda pixels, _: Image.fromarray(np.ascontiguousarray(pixels[..., [1, 2, 0]])),
}


class Sprites:
    """The built-in emoji cut out, in every size and angle."""

    def __init__(self) -> None:
        """Cut them out of the white they are on."""
        import assay

        self.drawn: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        pixels = assay.builtin_works().pixels(64)
        self.count = len(pixels)
        for size in SIZES:
            for angle in ANGLES:
                turned = [Image.fromarray(one).rotate(angle, Image.Resampling.BILINEAR, fillcolor="white").resize((size, size)) for one in pixels]
                colours = np.stack([np.asarray(one) for one in turned])
                self.drawn[size, angle] = colours, colours.min(-1) < 245

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Make one work: uint8, (64, 64, 3)."""
        picture = np.empty((64, 64, 3), np.uint8)
        picture[:] = 255 if rng.random() < 0.3 else rng.integers(0, 256, 3)
        for sizes in (SIZES[2:], SIZES[:3])[: 1 + (rng.random() < 0.5)]:
            size = int(rng.choice(sizes))
            colours, mask = self.drawn[size, int(rng.choice(ANGLES))]
            which, mirror = int(rng.integers(self.count)), 1 - 2 * int(rng.integers(2))
            tone = (255 * (np.arange(256) / 255) ** rng.uniform(0.6, 1.6)).astype(np.uint8)
            top, left = rng.integers(0, 65 - size, 2)
            place = picture[top : top + size, left : left + size]
            np.copyto(place, tone[colours[which][:, ::mirror][..., rng.permutation(3)]], where=mask[which][:, ::mirror, None])
        return picture


def make(task: tuple[Path, int, int]) -> None:
    """Write one Parquet file of works, and which of them are copies of which and how, once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from assay.works.images import identity
    from assay.works.table import COMPRESSION, SCHEMA

    path, number, count = task
    if path.exists():
        return
    rng, rows, truth = np.random.default_rng([SEED, number]), [], []
    pixels = [SPRITES[0].draw(rng) for _ in range(count - count * COPIES // SHARD)]
    images = [Image.fromarray(one) for one in pixels]
    for copy in range(count - len(pixels)):
        kind, original = list(KINDS)[copy % len(KINDS)], int(rng.integers(len(pixels)))
        truth.append([kind, original, len(images)])
        images.append(KINDS[kind](pixels[original], rng))
    for index, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True, quality=0, method=0, exact=True)
        row = {"id": identity(image), "image": buffer.getvalue(), "captions": ["synthetic"], "title": f"{number}:{index}", "license": "CC-BY-SA-4.0"}
        rows.append(row | {"split": "member", "copies": 1, "cluster": -1, "creator": "various"})
    path.with_suffix(".json").write_text(json.dumps(truth))
    part = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), part, compression=COMPRESSION, use_dictionary=False, row_group_size=512)
    part.replace(path)


SPRITES: list[Sprites] = []


def make_all(folder: Path, count: int, first: int = 0) -> np.ndarray:
    """Make works on two cores, and return what was planted as rows of (kind, original, copy)."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(folder / f"works-{first + at // SHARD:05}.parquet", first + at // SHARD, min(SHARD, count - at)) for at in range(0, count, SHARD)]
    if any(not path.exists() for path, *_ in tasks):
        SPRITES[:] = SPRITES or [Sprites()]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for done, _ in enumerate(pool.imap_unordered(make, tasks), 1):
                print(f"made {done} of {len(tasks)} files", flush=True)
    starts = np.cumsum([0, *(size for *_, size in tasks)])
    kinds = list(KINDS)
    read = (json.loads(path.with_suffix(".json").read_text()) for path, *_ in tasks)
    return np.array([[kinds.index(kind), start + a, start + b] for truth, start in zip(read, starts, strict=False) for kind, a, b in truth])


def ours(works: Path, index: Path, out: Path) -> dict[str, Any]:
    """Find near-duplicates with the command's Python twin, and say how long each of its stages took."""
    from assay.verbs.works import works_duplicates

    times: dict[str, list[float]] = {}
    started = time.monotonic()
    display = type("Clock", (), {"__call__": lambda _, stage, *__: times.setdefault(stage, []).append(time.monotonic()), "say": lambda *_: None})()
    record = works_duplicates(works, threshold=THRESHOLD, index=index, out=out, display=display).record
    ended = time.monotonic()
    read = times.get("reading works", [ended])
    compared = times.get("comparing works", read)
    stages = {
        "table and digest": read[0] - started,
        "pictures": read[-1] - read[0],
        "comparing": compared[-1] - read[-1],
        "record": ended - compared[-1],
    }
    return {"seconds": ended - started, "stages": stages, "metrics": {metric.name: metric.value for metric in record.metrics}}


def ours_from_files(files: Path, index: Path) -> dict[str, Any]:
    """Find near-duplicates among picture files."""
    import pyarrow as pa

    from assay.works.index import Index

    started = time.monotonic()
    paths = sorted(files.iterdir())
    kept = Index(index)
    kept.add(pa.chunked_array([[path.name for path in paths]]), lambda rows: (paths[row].read_bytes() for row in rows.tolist()))
    read = time.monotonic()
    pairs, _ = kept.pairs(THRESHOLD)
    return {"seconds": time.monotonic() - started, "reading": read - started, "pairs": pairs.tolist()}


def rival(name: str, files: Path) -> dict[str, Any]:
    """Find near-duplicates among picture files with another package, at its defaults and with two processes."""
    started = time.monotonic()
    if name == "cleanvision":
        from cleanvision import Imagelab

        lab = Imagelab(data_path=str(files), verbose=False)
        lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=2, verbose=False)
        sets = [list(map(str, group)) for kind in ("exact_duplicates", "near_duplicates") for group in lab.info[kind]["sets"]]
        found = {(Path(one).stem, Path(other).stem) for group in sets for one in group for other in group if one < other}
    else:
        root = Path(str(find_spec("imagededup").origin)).parent
        for inner in ("methods", "utils"):  # their package files import torch and torchvision, which hashing does without
            module = sys.modules[f"imagededup.{inner}"] = ModuleType(f"imagededup.{inner}")
            module.__path__ = [str(root / inner)]
        method = getattr(importlib.import_module("imagededup.methods.hashing"), name)(verbose=False)
        hashes = method.encode_images(str(files), num_enc_workers=2)
        near = method.find_duplicates(encoding_map=hashes, num_dist_workers=2)
        found = ((Path(one).stem, Path(other).stem) for one, others in near.items() for other in others if one < other)
    seconds = time.monotonic() - started
    total, planted = 0, {(int(a), int(b)) for _, a, b in json.loads((files.parent / "truth.json").read_text())}
    hits = []
    for one, other in found:
        total += 1
        pair = (int(one), int(other))
        if pair in planted:
            hits.append(pair)
    return {"seconds": seconds, "pairs": hits, "found": total}


def apart(python: str, *words: object) -> dict[str, Any]:
    """Run a stage of this file in a process of its own, held to a time and a memory, and say what it took."""
    env = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}

    def held() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))

    rivals = words[0] == "rival"
    command = [python, __file__, "--stage", *map(str, words)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, timeout=LIMIT_SECONDS if rivals else None, preexec_fn=held if rivals else None
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {LIMIT_SECONDS} s"}
    if done.returncode:
        print(done.stderr[-2000:], flush=True)
        return {"failed": f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else ''}"}
    return json.loads(done.stdout.splitlines()[-1])


def stage(words: list[str]) -> None:
    """Do one stage and print what came out, with the memory that the largest of its processes held."""
    name, *rest = words
    result = {"ours": ours, "read": read, "pairs": pairs_of, "files": ours_from_files, "rival": lambda which, files: rival(which, Path(files))}[name](
        *(rest if name == "rival" else map(Path, rest))
    )
    own = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())  # ru_maxrss of itself would be that of whoever started it, if larger
    peak = max(int(own[1]) if own else 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    print(json.dumps(result | {"peak_mib": round(peak / 1024)}))


def judge(truth: np.ndarray, pairs: np.ndarray, found: int) -> dict[str, Any]:
    """Return recall by kind and in all, and which share of what was found had been planted."""
    seen = {(a, b) for a, b in pairs}
    right = np.array([(a, b) in seen for a, b in truth[:, 1:].tolist()])
    recall = {kind: round(float(right[truth[:, 0] == number].mean()), 4) for number, kind in enumerate(KINDS)}
    return {
        "recall": round(float(right.mean()), 4),
        "recall_by_kind": recall,
        "found": found,
        "planted_share": round(int(right.sum()) / max(1, found), 4),
    }


def brute(index: Path, count: int) -> dict[str, Any]:
    """Compare some works, half of them copies, with all others by the definition in float64, and hold the found pairs against that."""
    from assay.works.index import Index

    kept = Index(index)
    pairs, _ = kept.pairs(THRESHOLD)
    total = kept.shape[0]
    rng = np.random.default_rng(SEED)
    queries = np.unique(np.concatenate([rng.choice(total, count // 2, replace=False), rng.choice(pairs.ravel(), count // 2)]))
    asked = kept[queries].astype(np.float64)
    expected = set()
    for start in range(0, total, 8192):
        block = kept[slice(start, start + 8192)].astype(np.float64)
        squares = (asked**2).sum(1)[:, None] + (block**2).sum(1) - 2 * asked @ block.T
        one, other = np.nonzero(squares < THRESHOLD**2 * asked.shape[1])
        expected |= {(min(a, b), max(a, b)) for a, b in zip(queries[one].tolist(), (start + other).tolist(), strict=True) if a != b}
    inside = np.isin(pairs, queries).any(1)
    got = {(a, b) for a, b in pairs[inside].tolist()}
    return {
        "queries": len(queries),
        "pairs": len(expected),
        "recall": len(got & expected) / len(expected),
        "precision": len(got & expected) / len(got),
    }


def repeated(works: Path, index: Path, folder: Path) -> dict[str, Any]:
    """Measure with an index that stays as it is, and return the run of middle length with the seconds of all."""
    runs = []
    for number in range(REPEATS):
        for old in (folder / "index-again", folder / "record-again"):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(index, folder / "index-again", copy_function=os.link)  # files of an index are never written into, only put in place
        runs.append(apart(sys.executable, "ours", works, folder / "index-again", folder / "record-again"))
        print(number, json.dumps(runs[-1])[:300], flush=True)
    runs.sort(key=lambda run: run["seconds"])
    return runs[REPEATS // 2] | {"runs": [run["seconds"] for run in runs]}


def million(folder: Path, count: int) -> dict[str, Any]:
    """Measure `count` works, the same with their index, then one in a hundred more, then everything against the definition."""
    from assay.works import Works
    from assay.works.index import Index, spread

    works, index = folder / "works", folder / "index"
    truth = make_all(works, count)
    for old in (index, *folder.glob("record-*")):
        shutil.rmtree(old, ignore_errors=True)
    for path in works.glob("works-5*.parquet"):
        path.unlink()
    whole = apart(sys.executable, "ours", works, index, folder / "record-whole")
    print(json.dumps(whole)[:600], flush=True)
    same = repeated(works, index, folder)
    table, kept = Works.read(works, images=False), Index(index)
    pairs, _ = spread(kept.add(table.table.column("id"), lambda rows: iter(())), *kept.pairs(THRESHOLD))
    found = judge(truth, pairs.tolist(), len(pairs))
    make_all(folder / "more", count // 100, first=50_000)
    for path in (folder / "more").glob("*.parquet"):
        (works / path.name).hardlink_to(path)
    more, grown = repeated(works, index, folder), folder / "index-again"
    new = {name: round(more["stages"][name] / whole["stages"][name], 4) for name in whole["stages"]}
    same["over_whole"], more["over_whole"] = (round(one["seconds"] / whole["seconds"], 4) for one in (same, more))
    more |= {"beyond_nothing_over_whole": round(more["over_whole"] - same["over_whole"], 4), "stages_over_whole": new}
    size = sum(path.stat().st_size for path in grown.iterdir())
    return {
        "works": count,
        "planted": len(truth),
        "works_per_second": round(count / whole["seconds"], 1),
        "whole": whole,
        "judged_against_what_was_planted": found,
        "nothing_more": {name: same[name] for name in ("seconds", "runs", "over_whole")},
        "one_percent_more": more,
        "judged_against_brute_force": brute(grown, 1024),
        "index_bytes": size,
        "pictures_bytes": sum(path.stat().st_size for path in works.glob("*.parquet")),
    }


TURNS = [(flip, list(order)) for flip in (1, -1) for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0))]
"""Mirrored or not, and the order of colours: ten works of one, whose thumbnails follow exactly from its own."""


def search(folder: Path, count: int) -> dict[str, Any]:
    """Measure the comparison alone: `count` thumbnails, ten of each of a tenth of the works, then one in a hundred more, and the brute force."""
    from assay.works.index import Index

    make_all(folder / "works", count // len(TURNS))
    shutil.rmtree(folder / "index", ignore_errors=True)
    first = apart(sys.executable, "read", folder / "works", folder / "base")
    base = np.concatenate(Index(folder / "base").shards).reshape(-1, 16, 16, 3)
    thumbnails = np.concatenate([base[:, :, ::flip][..., order] for flip, order in TURNS])
    thumbnails = np.concatenate([thumbnails, base[: count // 100, ::-1]]).reshape(-1, 768)  # more: upside down
    names = np.array([f"{row:064}" for row in range(len(thumbnails))], "S64")
    (folder / "index").mkdir()

    def put(shard: int, start: int, stop: int) -> None:
        np.save(folder / f"index/thumbnails-{shard:05}.npy", thumbnails[start:stop])
        np.save(folder / f"index/ids-{shard:05}.npy", names[start:stop])

    whole = len(base) * len(TURNS)
    cuts = [*range(0, whole, 16384), whole]
    for shard, (start, stop) in enumerate(pairwise(cuts)):
        put(shard, start, stop)
    result: dict[str, Any] = {"reading": first, "works": whole, "whole": apart(sys.executable, "pairs", folder / "index")}
    print(json.dumps(result), flush=True)
    put(len(cuts) - 1, whole, len(thumbnails))
    result["more_works"], result["more"] = len(thumbnails) - whole, apart(sys.executable, "pairs", folder / "index")
    result["more_over_whole"] = round(result["more"]["seconds"] / result["whole"]["seconds"], 4)
    return result | {"judged_against_brute_force": brute(folder / "index", 256)}


def read(works: Path, index: Path) -> dict[str, Any]:
    """Decode the pictures of works into an index."""
    from functools import partial

    from assay.works import Works
    from assay.works.index import Index
    from assay.works.table import pictures

    table, started = Works.read(works, images=False), time.monotonic()
    kept = Index(index)
    kept.add(table.table.column("id"), partial(pictures, works))
    seconds = time.monotonic() - started
    return {"works": len(table), "seconds": seconds, "works_per_second": round(len(table) / seconds, 1)}


def pairs_of(index: Path) -> dict[str, Any]:
    """Open an index and find the near-duplicates in it."""
    from assay.works.index import Index

    started = time.monotonic()
    kept = Index(index)
    opened = time.monotonic()
    pairs, _ = kept.pairs(THRESHOLD)
    ended = time.monotonic()
    return {"seconds": ended - started, "opening": opened - started, "processor_seconds": time.process_time(), "pairs": len(pairs)}


def beside(folder: Path, count: int, rivals: str | None) -> dict[str, Any]:
    """Measure this and the other packages on the same PNG files."""
    from assay.works.table import pictures

    truth = make_all(folder / "works", count, first=60_000 + count)
    files = folder / "files"
    if not files.exists():
        part = folder / "files.part"
        part.mkdir(exist_ok=True)
        for row, data in enumerate(pictures(folder / "works", np.arange(count))):
            Image.open(io.BytesIO(data)).save(part / f"{row:07}.png", compress_level=1)
        part.rename(files)
    (folder / "truth.json").write_text(json.dumps(truth.tolist()))
    shutil.rmtree(folder / "index", ignore_errors=True)
    result: dict[str, Any] = {"works": count, "planted": len(truth)}
    for name in ("assay", *(RIVALS if rivals else ())):
        got = apart(sys.executable, "files", files, folder / "index") if name == "assay" else apart(str(rivals), "rival", name, files)
        if "failed" not in got:
            pairs = got.pop("pairs")
            got = {"works_per_second": round(count / got["seconds"], 1), **got, **judge(truth, pairs, got.pop("found", len(pairs)))}
        result[name] = got
        print(name, json.dumps(got)[:400], flush=True)
    speeds = {name: result[name]["works_per_second"] for name in RIVALS if "works_per_second" in result.get(name, {})}
    if speeds:
        result["times_the_fastest_other"] = round(result["assay"]["works_per_second"] / max(speeds.values()), 2)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Where the works are made, outside the tree.")
    parser.add_argument("--works", type=int, default=1_000_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--rivals", help="A Python that has imagededup and cleanvision.")
    parser.add_argument("--only", choices=["make", "million", "search", "beside"])
    parser.add_argument("--out", type=Path, default=HERE / "duplicates.json")
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage:
        stage(asked.stage)
        return
    if asked.folder is None:
        parser.error("--folder is needed")
    if asked.only == "make":
        make_all(asked.folder / "million/works", asked.works)
        make_all(asked.folder / "million/more", asked.works // 100, first=50_000)
        return
    result = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    result |= {"threshold": THRESHOLD, "threads": 2, "kinds": list(KINDS), "limits_of_others": {"seconds": LIMIT_SECONDS, "bytes": LIMIT_BYTES}}
    if asked.only in {None, "million"}:
        result["million"] = million(asked.folder / "million", asked.works)
    if asked.only in {None, "search"}:
        result["search"] = search(asked.folder / "search", asked.works)
    if asked.only in {None, "beside"}:
        result["beside"] = [beside(asked.folder / f"beside-{count}", count, asked.rivals) for count in asked.sizes]
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
