"""Where works come from: folders, JSONL, CSV and Parquet files, saved datasets, each read as a stream of candidates that fail one by one."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from assay.errors import BadInput, Missing, Unsupported
from assay.works.fields import contents, inside, parsed, pick, texts, unicode

LISTS = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SAVED = (("dataset_dict.json",), ("state.json", "dataset_info.json"))
SPLITS = {"train": "member", "validation": "calibration", "test": "holdout"}
"""Split of a saved dataset -> split of its works: a model trained on it saw the first alone. Works of other splits count as members."""


@dataclass(frozen=True)
class Candidate:
    """A work not yet read, so that a damaged one fails by itself."""

    name: str
    """Path in the folder, FILE:LINE of a text table, or FILE:ROW of a Parquet file, counted from 0."""
    folder: Path
    """Where its relative paths start."""
    read: Callable[[], dict[str, Any]]
    """Return its columns under the names that the source has; raises `BadInput` with the reason if there are none to be had."""


def candidates(source: Path) -> Iterator[Candidate]:
    """Return the works of a source, unread.

    Args:
        source: a folder of images with sidecars, or with `metadata.jsonl`, `.csv` or `.parquet`; a folder of Parquet files; one such file; what
            `save_to_disk` of Hugging Face `datasets` wrote.

    Raises:
        Missing: there is nothing at `source`.
        Unsupported: it is a file of another kind.
    """
    if not source.exists():
        raise Missing(f"There is no {source}.", "Give a folder of images, or a .jsonl, .csv or .parquet file.")
    if any(all((source / name).is_file() for name in names) for names in SAVED):
        return from_saved_dataset(source)
    if source.is_dir():
        tables = [] if any((source / name).is_file() for name in LISTS) else [inside(path, source) for path in sorted(source.glob("*.parquet"))]
        return (candidate for table in tables for candidate in from_parquet(table)) if tables else from_folder(source)
    kinds = {".jsonl": from_json_lines, ".csv": from_csv, ".parquet": from_parquet}
    if source.suffix.lower() not in kinds:
        raise Unsupported(f"Works cannot be imported from {source}.", "Give a folder of images, or a .jsonl, .csv or .parquet file.")
    return kinds[source.suffix.lower()](source)


def from_folder(folder: Path) -> Iterator[Candidate]:
    """Yield the images of a folder tree in the order of paths; a folder with a list gives what the list names instead.

    What has no extension of a readable image is passed over.
    """
    readable = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for parent, folders, names in walked(folder):
        inner = parent.relative_to(folder)
        if listed := [name for name in LISTS if name in names]:
            folders.clear()
            yield from (replace(found, name=(inner / found.name).as_posix()) for found in candidates(inside(parent / listed[0], folder)))
            continue
        for name in names:
            if Path(name).suffix.lower() in readable:
                yield Candidate((inner / name).as_posix(), folder, partial(beside, parent / name, folder))


def walked(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield the folders of a tree with the names of their folders and files, in the order of names, as `os.walk` does.

    Passed over are what is hidden, and folders below that a command of assay writes to: what it made is no source, and would change while it works.

    Raises:
        Missing: a folder cannot be listed.
    """
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not ours(Path(parent, name)))
        yield Path(parent), folders, sorted(name for name in names if not name.startswith("."))


def ours(folder: Path) -> bool:
    """Return whether a command of assay writes to a folder."""
    try:
        return "command" in json.loads((folder / "plan.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def refuse(error: OSError) -> None:
    """Stop at a folder that cannot be listed, whose works would else be lost without a word.

    Raises:
        Missing: always.
    """
    raise Missing(f"{error.filename} cannot be listed: {error.strerror}.", "Make it readable, or move it away.") from error


def beside(path: Path, root: Path) -> dict[str, Any]:
    """Read the sidecars of an image in the source `root`: NAME.json with columns, a caption or a list of captions; NAME.txt with a caption a line."""
    notes, lines = path.with_suffix(".json"), path.with_suffix(".txt")
    found = parsed(contents(inside(notes, root))) if notes.exists() else {}
    row = found if isinstance(found, dict) else {"captions": found}
    if lines.exists() and not texts(pick(row, "captions")):
        row = row | {"captions": unicode(contents(inside(lines, root))).splitlines()}
    return row | {"image": path.absolute()}


def from_json_lines(path: Path) -> Iterator[Candidate]:
    """Yield one work a line.

    Raises:
        BadInput: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Candidate(f"{path.name}:{number}", path.parent, partial(keyed, line))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.", "Make it readable.") from error


def keyed(line: bytes) -> dict[str, Any]:
    """Parse one line of JSONL.

    Raises:
        BadInput: it is no JSON object.
    """
    row = parsed(line)
    if not isinstance(row, dict):
        raise BadInput("The line is no JSON object.")
    return row


def from_csv(path: Path) -> Iterator[Candidate]:
    """Yield one work a row.

    Raises:
        BadInput: the file is not UTF-8, or no CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            for row in rows:
                yield Candidate(f"{path.name}:{rows.line_num}", path.parent, partial(headed, row))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise BadInput(f"{path} cannot be read as CSV: {error}.", "Save it as CSV in UTF-8.") from error


def headed(row: dict[Any, Any]) -> dict[str, Any]:
    """Pass on a row of CSV if every field has a head.

    Raises:
        BadInput: the row is longer than the head, so that its fields cannot be told apart.
    """
    if None in row:
        raise BadInput("The row has more fields than the head of the table.")
    return row


def from_parquet(path: Path) -> Iterator[Candidate]:
    """Yield one work a row, sixteen in memory at a time.

    Raises:
        BadInput: the file is damaged, or no Parquet file.
    """
    numbers = count()
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    yield Candidate(f"{path.name}:{next(numbers)}", path.parent, partial(dict, row))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as Parquet: {error}.", "It may be damaged or cut short: fetch or write it anew.") from error


def from_saved_dataset(folder: Path, split: str | None = None) -> Iterator[Candidate]:
    """Yield one work a row of what `save_to_disk` of Hugging Face `datasets` wrote: a folder a split, with Arrow streams that `state.json` lists.

    Numbers of classes are given their names; a licence of the whole dataset counts for rows that state none.

    Raises:
        BadInput: a file of the layout is damaged or missing.
        Unsupported: rows are selected by a list beside the files, as old versions did.
    """
    if (folder / "dataset_dict.json").is_file():
        for name in described(folder / "dataset_dict.json", SavedSplits).splits:
            for found in from_saved_dataset(inside(folder / Path(name).name, folder), name):
                yield replace(found, name=f"{name}/{found.name}")
        return
    state, about = described(folder / "state.json", SavedState), described(folder / "dataset_info.json", SavedInfo)
    if state.selection:
        raise Unsupported(f"{folder} selects rows of its files by a list.", "Save it again after `dataset.flatten_indices()`.")
    told = {"split": SPLITS.get((split or state.split or "").partition("[")[0]), "license": about.license}
    classes = {name: feature["names"] for name, feature in about.features.items() if isinstance(feature, dict) and "names" in feature}
    for file in state.files:
        for found in from_arrow(inside(folder / Path(file.filename).name, folder)):
            yield replace(found, read=partial(completed, found.read, told, classes))


class SavedSplits(BaseModel):
    """`dataset_dict.json` of a saved dict of datasets."""

    splits: list[str]


class SavedFile(BaseModel):
    """An entry of the files in `state.json`."""

    filename: str


class SavedState(BaseModel):
    """`state.json` of a saved dataset."""

    files: list[SavedFile] = Field(alias="_data_files")
    split: str | None = Field(None, alias="_split")
    selection: list[Any] | None = Field(None, alias="_indices_data_files")


class SavedInfo(BaseModel):
    """`dataset_info.json` of a saved dataset."""

    features: dict[str, Any] = {}
    license: str | None = None


Saved = TypeVar("Saved", bound=BaseModel)


def described(path: Path, kind: type[Saved]) -> Saved:
    """Return a JSON file of a saved dataset.

    Raises:
        BadInput: it cannot be read, or lacks what is needed of it.
    """
    try:
        return kind.model_validate_json(contents(path))
    except (BadInput, ValidationError) as error:
        reason = error.message if isinstance(error, BadInput) else error.errors()[0]["msg"]
        raise BadInput(f"{path} is not that of a saved dataset: {reason}.", "It may be damaged or cut short: fetch or write it anew.") from error


def completed(read: Callable[[], dict[str, Any]], told: dict[str, Any], classes: dict[str, Any]) -> dict[str, Any]:
    """Add to a row what the dataset tells of all its rows, and name its classes."""
    row = read()
    for name, names in classes.items():
        number = row.get(name)
        if isinstance(names, list) and isinstance(number, int) and 0 <= number < len(names):
            row[name] = names[number]
    return row | {name: value for name, value in told.items() if value and pick(row, name) is None}


def from_arrow(path: Path) -> Iterator[Candidate]:
    """Yield one work a row of an Arrow stream, sixteen beside the batch of the file in memory at a time.

    Raises:
        BadInput: the file is damaged, or no Arrow stream.
    """
    numbers = count()
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                batch.validate(full=True)  # offsets of a damaged file may point anywhere
                for start in range(0, len(batch), 16):
                    for row in batch.slice(start, 16).to_pylist():
                        yield Candidate(f"{path.name}:{next(numbers)}", path.parent, partial(dict, row))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as an Arrow stream: {error}.", "It may be damaged or cut short: fetch or write it anew.") from error
