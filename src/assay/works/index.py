"""An index of works beside the works: their thumbnails and the near-duplicates among them, so that adding works costs what the added ones cost.

A folder of shards, of `pairs.safetensors`, the near-duplicates found so far, and of `tree-*.safetensors`, which more works are compared with. A
shard is `thumbnails-NNNNN.npy`, thumbnails as sums of 4x4 pixels, which are exact in 16 bits, and `ids-NNNNN.npy`, whose works they are. That is
1.7 KB a work on disk; a comparison holds 400 bytes a work in memory.
Every file is whole or absent: what was killed goes on after the last shard, with the same bytes.
"""

from __future__ import annotations

import io
import json
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from assay.errors import BadInput
from assay.record import write_atomically
from assay.works.clusters import SIDE, means, sums
from assay.works.images import decode, fit
from assay.works.neighbours import CORES, Forest, Leaves, bounded, near

pc: Any = pyarrow.compute  # whose functions are made while it is imported
MADV_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)

EACH = 4
"""Pixels a side that one value of a thumbnail is the sum of; pictures are cut and scaled to SIDE * EACH."""
NAME = 64
"""Bytes of an id: SHA-256 in hexadecimal."""
SHARD = 16_384
CHUNK, CHUNK_BYTES = 64, 2**22
MAPPED = 2**27
"""Bytes of the files that may stay mapped into memory at a time, roughly."""

Pictures = Callable[[np.ndarray], Iterator[bytes]]
Progress = Callable[[int, int], None]


class Index:
    """Thumbnails of works in order of arrival, each id once; as points, their float32 means in [0, 1], (n, 768).

    Args:
        folder: where it is kept; made when the first works are added.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open what is there.

        Raises:
            BadInput: the folder is a file or holds other things, or a shard is damaged.
        """
        self.folder = Path(folder)
        self.shards: list[np.ndarray] = []
        self.names: list[np.ndarray] = []
        self.touched = 0
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"{folder} is a file; an index is a folder.", "Choose another with `--index`.")
        while (self.folder / f"ids-{len(self.shards):05}.npy").exists():
            self.open()
        if not self.shards and self.folder.exists() and any(entry.suffix != ".part" for entry in self.folder.iterdir()):
            raise BadInput(f"{folder} holds other things than an index.", "Choose a new or empty folder with `--index`.")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of thumbnails and of values in each."""
        return sum(map(len, self.shards)), SIDE * SIDE * 3

    @property
    def ids(self) -> np.ndarray:
        """Ids in order of arrival: 64 bytes each, (n,)."""
        return np.concatenate([np.zeros(0, f"S{NAME}"), *self.names])

    def open(self) -> None:
        """Map the next shard into memory.

        Raises:
            BadInput: it is damaged.
        """
        names, path = (self.folder / f"{kind}-{len(self.shards):05}.npy" for kind in ("ids", "thumbnails"))
        try:
            ids, shard = np.load(names, allow_pickle=False), np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(f"{path} or its ids are damaged: {error}.", "Remove the index; it is made anew from the works.") from error
        if (ids.dtype, shard.dtype, shard.shape) != (f"S{NAME}", "<u2", (len(ids), self.shape[1])):
            raise BadInput(f"{path} holds no thumbnails of {SIDE}x{SIDE} pixels.", "Remove the index; it is made anew from the works.")
        self.names.append(ids)
        self.shards.append(shard)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return thumbnails: float32, (rows, 768)."""
        starts = np.cumsum([0, *map(len, self.shards)])
        if isinstance(rows, slice):
            first, stop, _ = rows.indices(self.shape[0])
            spans = zip(self.shards, starts.tolist(), strict=False)
            parts = [shard[max(first - start, 0) : stop - start] for shard, start in spans if start < stop and first < start + len(shard)]
            taken = np.concatenate([np.zeros((0, self.shape[1]), np.uint16), *parts])
        else:
            taken = np.empty((len(rows), self.shape[1]), np.uint16)
            order = np.argsort(rows, kind="stable")
            bounds = np.searchsorted(rows[order], starts)
            for shard, start, low, high in zip(self.shards, starts, bounds, bounds[1:], strict=False):
                places = order[low:high]
                taken[places] = shard[rows[places] - start]
        # A row that is read alone brings the 64 KB around it into memory.
        self.touched += taken.nbytes if isinstance(rows, slice) else len(taken) * 2**16
        if self.touched > MAPPED:
            self.release()
        return means(taken, EACH)

    def release(self) -> None:
        """Give back the memory that the files are mapped into; they are read again when needed."""
        self.touched = 0
        for shard in self.shards:
            if isinstance(shard.base, mmap.mmap) and MADV_DONTNEED is not None:
                shard.base.madvise(MADV_DONTNEED)

    def add(self, ids: pa.ChunkedArray, pictures: Pictures, progress: Progress | None = None) -> np.ndarray:
        """Take in the works whose ids are not yet in the index.

        Args:
            ids: of all works: strings. Works with the same id are the same picture, of which one is read.
            pictures: yields the encoded pictures of the works at the given places.
            progress: called with pictures read and pictures to read.

        Returns:
            Where each work is in the index: int64, (works,).

        Raises:
            BadInput: a picture cannot be decoded, or an id is too long.
            NoRoom: the folder cannot be written.
        """
        if (longest := pc.max(pc.binary_length(ids)).as_py() or 0) > NAME:
            raise BadInput(f"A work has an id of {longest} characters; SHA-256 has {NAME}.", "Import the works with `assay works import`.")
        there = pa.array(self.ids, pa.binary()).cast(pa.string())
        places = pc.index_in(ids, value_set=there).to_numpy(zero_copy_only=False).astype(np.float64)
        absent = np.flatnonzero(np.isnan(places))
        fresh = ids.take(pa.array(absent)).combine_chunks().dictionary_encode()
        codes = np.asarray(fresh.indices, dtype=np.int64)
        firsts = absent[np.unique(codes, return_index=True)[1]]
        places[absent] = self.shape[0] + codes
        keys = fresh.dictionary.cast(pa.binary()).to_numpy(zero_copy_only=False).astype(f"S{NAME}")
        read, some = thumbnails(pictures(firsts), map(bytes.decode, keys.tolist())), np.zeros((0, self.shape[1]), np.uint16)
        for start in range(0, len(firsts), SHARD):
            shard = np.empty((min(SHARD, len(firsts) - start), self.shape[1]), np.uint16)
            filled = 0
            while filled < len(shard):
                some = some if len(some) else next(read)
                taken, some = some[: len(shard) - filled], some[len(shard) - filled :]
                shard[filled : filled + len(taken)] = taken
                filled += len(taken)
                if progress:
                    progress(start + filled, len(firsts))
            for kind, values in (("thumbnails", shard), ("ids", keys[start : start + len(shard)])):  # ids last: they say that the shard is there
                buffer = io.BytesIO()
                np.save(buffer, values, allow_pickle=False)
                write_atomically(self.folder / f"{kind}-{len(self.shards):05}.npy", buffer.getvalue())
            self.open()
        return places.astype(np.int64)

    def pairs(self, threshold: float, progress: Progress | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the near-duplicates, comparing only what was added since they were last found below the same threshold.

        Args:
            threshold: root mean square difference that they are below.
            progress: called with leaves compared and leaves in all.

        Returns:
            Pairs (i, j) of places in the index, i < j, sorted: int64, (pairs, 2). And their differences: float64, (pairs,).

        Raises:
            Unsupported: there are more pairs than memory should hold.
        """
        ids = self.ids.tobytes()
        pairs, squares, known = self.kept(threshold, ids)
        if (known.count if known else 0) < self.shape[0]:
            added, apart, forest = near(self, threshold**2 * self.shape[1], forest=known, progress=progress)
            pairs, squares = np.concatenate([pairs, added]), np.concatenate([squares, apart])
            order = np.lexsort((pairs[:, 1], pairs[:, 0]))
            pairs, squares = pairs[order], squares[order]
            self.keep(threshold, ids, pairs, squares, forest, known)
        self.release()
        return pairs, np.sqrt(squares / self.shape[1])

    def keep(self, threshold: float, ids: bytes, pairs: np.ndarray, squares: np.ndarray, forest: Forest, known: Forest | None) -> None:
        """Write down what was found, and the trees that are not of the known forest.

        A tree's file is named by what its points and their codes follow from, so that none that is still needed is written over with others; those
        that are not needed go last.
        """
        there = {id(tree) for tree in known.trees} if known else set()
        along = sha256(forest.centre.tobytes() + forest.directions.tobytes())
        names, start = [], 0
        for tree in forest.trees:
            whose = along.copy()
            whose.update(ids[start * NAME : (start + len(tree.rows)) * NAME])
            names.append(f"tree-{start}-{whose.hexdigest()[:16]}.safetensors")
            if id(tree) not in there:
                write_atomically(self.folder / names[-1], save({name: getattr(tree, name) for name in Leaves.__annotations__}))
            start += len(tree.rows)
        found = json.dumps([threshold, start, sha256(ids).hexdigest(), names])  # one key: several would be written in any order
        arrays = {"centre": forest.centre, "directions": np.ascontiguousarray(forest.directions)}
        write_atomically(self.folder / "pairs.safetensors", save({"pairs": pairs.astype(np.int32), "squares": squares, **arrays}, {"found": found}))
        for file in self.folder.glob("tree-*.safetensors"):
            if file.name not in names:
                file.unlink(missing_ok=True)

    def kept(self, threshold: float, ids: bytes) -> tuple[np.ndarray, np.ndarray, Forest | None]:
        """Return the pairs that are known and the first works that they are among; none if they were found otherwise or cannot be read."""
        try:
            with safe_open(self.folder / "pairs.safetensors", "np") as file:
                below, known, digest, names = json.loads(file.metadata()["found"])
                if below == threshold and digest == sha256(ids[: known * NAME]).hexdigest():
                    trees = [Leaves(**load_file(self.folder / name)) for name in names]
                    if (forest := Forest(file.get_tensor("centre"), file.get_tensor("directions"), trees)).count == known:
                        return file.get_tensor("pairs").astype(np.int64), file.get_tensor("squares"), forest
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            pass
        return np.zeros((0, 2), np.int64), np.zeros(0), None


def thumbnails(pictures: Iterable[bytes], names: Iterable[str]) -> Iterator[np.ndarray]:
    """Decode pictures to thumbnails as sums, on every core, a few chunks ahead: uint16, (up to 64, 768) at a time.

    Raises:
        BadInput: a picture cannot be decoded.
    """
    ahead: deque[Future[np.ndarray]] = deque()
    with ThreadPoolExecutor(CORES) as pool:
        try:
            for chunk in chunks(zip(pictures, names, strict=False)):
                ahead.append(pool.submit(shrunk, chunk))
                if len(ahead) > 2 * CORES:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def chunks(pictures: Iterable[tuple[bytes, str]]) -> Iterator[list[tuple[bytes, str]]]:
    """Gather pictures until they are `CHUNK`, or hold `CHUNK_BYTES`."""
    held, size = [], 0
    for picture in pictures:
        held.append(picture)
        size += len(picture[0])
        if len(held) == CHUNK or size >= CHUNK_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def shrunk(chunk: list[tuple[bytes, str]]) -> np.ndarray:
    """Decode some pictures to thumbnails as sums."""
    size = SIDE * EACH
    pixels = np.empty((len(chunk), size, size, 3), np.uint8)
    for place, (data, name) in enumerate(chunk):
        pixels[place] = np.asarray(fit(decode(data, name=f"work {name[:12]}"), size))
    return sums(pixels)


def spread(places: np.ndarray, pairs: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn pairs of places in the index into pairs of the works at those places; works at one place are pairs too, 0 apart.

    Args:
        places: where each work is in the index: int64, (works,).
        pairs: of places: int64, (pairs, 2).
        apart: their differences: float64, (pairs,).

    Returns:
        Pairs (i, j) of works, i < j, sorted: int64, (pairs, 2). And their differences: float64, (pairs,).

    Raises:
        Unsupported: there are more pairs than memory should hold.
    """
    there = np.bincount(places, minlength=int(pairs.max(initial=-1)) + 1)
    order, first = np.argsort(places, kind="stable"), np.cumsum(there) - there
    shared = np.flatnonzero(there > 1)
    both = np.concatenate([pairs, np.stack([shared, shared], axis=1)])
    times = there[both].prod(1)
    bounded(int(times.sum()))
    which = np.repeat(np.arange(len(both)), times)
    turn = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    left, right = both[which].T
    works = np.stack([order[first[left] + turn // there[right]], order[first[right] + turn % there[right]]], axis=1)
    once = (left != right) | (works[:, 0] < works[:, 1])
    works, apart = np.sort(works[once], axis=1), np.concatenate([apart, np.zeros(len(shared))])[which[once]]
    order = np.lexsort((works[:, 1], works[:, 0]))
    return works[order], apart[order]
