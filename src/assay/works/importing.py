"""Import of works: streamed, judged one by one, written whole or not at all.

Every work needs a caption, because that is what a model is trained to draw, and a licence, because a table of works is evidence of who made
what and on which terms. What lacks either, or cannot be decoded, is set aside with its reason and counted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assay.errors import BadInput, Misconfigured
from assay.works.fields import attributes, pick, picture, text, texts, whole
from assay.works.images import MAX_SIDE, decode, encode, fit, identity
from assay.works.sources import SPLITS, Candidate, candidates
from assay.works.table import COMPRESSION, GROUP_BYTES, GROUP_WORKS, SCHEMA, room

SHARD_BYTES = 512 * 2**20
SHOWN = 1000
FROM_NAME = ("caption", "from the file name")
"""What a work declares that had no caption."""


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    imported: int
    """Works written."""
    quarantined: int
    """Works set aside."""
    files: tuple[Path, ...]
    """What was written: `quarantine.jsonl`, then the shards."""
    reasons: tuple[tuple[str, str], ...]
    """Name and reason of the first 1,000 works set aside; `quarantine.jsonl` has all."""


def import_works(
    source: Path,
    out: Path,
    *,
    license: str | None = None,
    creator: str | None = None,
    size: int | None = None,
    max_side: int = MAX_SIDE,
    titled: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Import works into `out`/works-00000.parquet and on: all of them or, after a failure or Ctrl-C, none.

    Args:
        source: a folder of images with sidecars NAME.txt (a caption a line) or NAME.json; a folder with `metadata.jsonl`, `.csv` or `.parquet`
            (`file_name`, and `text`, `caption` or `captions`; pictures it does not name are left out); a JSONL, CSV or Parquet file; a folder
            of Parquet files; a dataset or dict of datasets written by `save_to_disk` of Hugging Face `datasets`. Nothing outside its folder
            is read, be it named by a path or a link.
        out: folder for the shards and for `quarantine.jsonl`, rows {"name", "reason"}.
        license: for works that state none. A licence is required evidence: a work without one of either kind is quarantined.
        creator: for works that state none.
        size: cut and scale every picture to this square; as decoded if None.
        max_side: pictures that would be stored with a longer side are quarantined.
        titled: whether a work without a caption takes its file's name for one, and declares so (`caption` = from the file name).
        progress: called after every work with the counts imported and quarantined.

    Returns:
        Counts, files and reasons. Works that appear twice stay twice.

    Raises:
        Misconfigured: `size` or `max_side` is out of range, or `out` holds works already.
        BadInput: nothing in the source can be imported, or a table is damaged.
    """
    source, out = Path(source), Path(out)
    if not 1 <= (1 if size is None else size) <= max_side <= MAX_SIDE:
        raise Misconfigured(
            f"Size {size} and longest side {max_side} are out of range.", f"Choose a size up to the longest side, and that up to {MAX_SIDE}."
        )
    if any(out.glob("*.parquet")):
        raise Misconfigured(f"{out} holds works already.", "Choose another folder with `--out`, or remove its Parquet files.")
    root = source if source.is_dir() else source.parent
    found, shards, counts = candidates(source), Shards(out), Counter()
    try:
        for candidate in found:
            try:
                shards.add(judged(candidate, root, license, creator, size, max_side, titled))
            except BadInput as error:
                shards.set_aside(candidate.name, error.message)
                counts[error.message.split(":")[0].rstrip(".")] += 1
            if progress is not None:
                progress(shards.imported, shards.quarantined)
        report = shards.finish()
    except BaseException:
        shards.discard()
        raise
    if not report.imported:
        why = "; ".join(f"{reason} ({times})" for reason, times in counts.most_common(3)) or "It holds no works"
        licence = "Give `--license` if one licence covers them all, and another `--out`."
        hint = licence if any("licence" in reason for reason in counts) else "Mend the source."
        raise BadInput(f"Nothing in {source} can be imported. {why}.", f"{hint} Every reason is in {out / 'quarantine.jsonl'}.")
    return report


def judged(
    candidate: Candidate, root: Path, license: str | None, creator: str | None, size: int | None, max_side: int, titled: bool = False
) -> dict[str, Any]:
    """Read, decode and normalise one work of a source in the folder `root`.

    Calibration and holdout have no `copies` unless the source gives them, and are never shown in training.

    Raises:
        BadInput: the work must be quarantined; the message is the reason.
    """
    row = candidate.read()
    captions, licence = texts(pick(row, "captions")), text(pick(row, "license")) or license
    told = attributes(row)
    if titled and not captions:
        captions, told = spelled(candidate, row), [pair for pair in told if pair[0] != "caption"] + [FROM_NAME]
    if not captions:
        raise BadInput("It has no caption.")
    if not licence:
        raise BadInput("It states no licence, and none was given for the source.")
    data = picture(pick(row, "image"), candidate.folder, root)
    image = decode(data, name="The picture")
    image = fit(image, size) if size else image
    if max(image.size) > max_side:
        raise BadInput(f"The picture has a side longer than {max_side} pixels: {image.width}x{image.height}.")
    split = text(row.get("split")) or "member"
    split = SPLITS.get(split, split)
    if split not in {"member", "calibration", "holdout"}:
        raise BadInput(f"Its split is `{split}`, which is none of member, calibration and holdout (or train, validation and test).")
    return {
        "id": identity(image),
        "file_hash": text(row.get("file_hash")) or hashlib.sha256(data).hexdigest(),
        "image": encode(image),
        "captions": captions,
        "tags": texts(row.get("tags"), ","),
        **{name: text(row.get(name)) for name in ("title", "style", "group")},
        "creator": text(pick(row, "creator")) or creator,
        "license": licence,
        "source": text(row.get("source")) or text(candidate.name),
        "split": split,
        "copies": whole(row, "copies", int(split not in {"calibration", "holdout"}), 0),
        "cluster": whole(row, "cluster", -1, -1),
        "attributes": told,
    }


def spelled(candidate: Candidate, row: dict[str, Any]) -> list[str]:
    """Return the caption that a file's name makes: its words without the extension; none where it holds no word."""
    named = pick(row, "image")
    stem = Path(named if isinstance(named, str | Path) else candidate.name).stem
    return texts(" ".join(re.split(r"[\W_]+", stem)).strip())


class Shards:
    """Parquet files and the list of the quarantined while they grow: `.part` until `finish`, gone after `discard`."""

    def __init__(self, out: Path) -> None:
        """Make the folder if need be, and remove what a killed import left in it."""
        self.out, self.made = out, not out.exists()
        self.imported = self.quarantined = self.held = self.written = 0
        self.rows: list[dict[str, Any]] = []
        self.reasons: list[tuple[str, str]] = []
        self.files: list[Path] = [out / "quarantine.jsonl"]
        self.placed: list[Path] = []
        self.writer: pq.ParquetWriter | None = None
        with room(out):
            out.mkdir(parents=True, exist_ok=True)
            for stale in out.glob("works-*.parquet.part"):
                stale.unlink()
            self.aside = part(self.files[0]).open("w", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Take a work in; write a row group when enough are held."""
        self.rows.append(row)
        self.imported += 1
        self.held += len(row["image"])
        if len(self.rows) >= GROUP_WORKS or self.held >= GROUP_BYTES:
            self.flush()

    def set_aside(self, name: str, reason: str) -> None:
        """Note a quarantined work."""
        name = name.encode(errors="backslashreplace").decode()  # file names need not be text
        self.quarantined += 1
        if len(self.reasons) < SHOWN:
            self.reasons.append((name, reason))
        with room(self.out):
            self.aside.write(json.dumps({"name": name, "reason": reason}) + "\n")

    def flush(self) -> None:
        """Write the works held as one row group, and end the shard once it is large."""
        if not self.rows:
            return
        with room(self.out):
            if self.writer is None:
                self.files.append(self.out / f"works-{len(self.files) - 1:05}.parquet")
                self.writer = pq.ParquetWriter(part(self.files[-1]), SCHEMA, compression=COMPRESSION, use_dictionary=False)
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
            self.written += self.held
            self.rows, self.held = [], 0
            if self.written >= SHARD_BYTES:
                self.close()

    def close(self) -> None:
        """End the shard."""
        writer, self.writer, self.written = self.writer, None, 0
        if writer is not None:
            writer.close()

    def finish(self) -> ImportReport:
        """Write the rest and give every file its name."""
        self.flush()
        with room(self.out):
            self.close()
            self.aside.close()
            for path in self.files:
                part(path).replace(path)
                self.placed.append(path)
        return ImportReport(self.imported, self.quarantined, tuple(self.files), tuple(self.reasons))

    def discard(self) -> None:
        """Leave nothing behind."""
        for end in (self.close, self.aside.close):
            with suppress(OSError, pa.ArrowException):
                end()
        with suppress(OSError):
            for path in [*map(part, self.files), *self.placed]:
                path.unlink(missing_ok=True)
            if self.made:
                self.out.rmdir()


def part(path: Path) -> Path:
    """Return the name of a file while it is being written."""
    return path.with_name(path.name + ".part")
