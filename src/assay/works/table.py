"""`Works`: an immutable table of captioned images, with who made each, under which licence, and what it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from PIL import Image

from assay.errors import BadInput, Missing, NoRoom
from assay.works.images import decode, fit

pc: Any = pyarrow.compute  # whose functions are made while it is imported

SCHEMA = pa.schema([
    pa.field("id", pa.string(), nullable=False),
    pa.field("file_hash", pa.string()),
    pa.field("image", pa.binary(), nullable=False),
    pa.field("captions", pa.list_(pa.string()), nullable=False),
    pa.field("title", pa.string()),
    pa.field("tags", pa.list_(pa.string())),
    pa.field("style", pa.string()),
    pa.field("group", pa.string()),
    pa.field("creator", pa.string()),
    pa.field("license", pa.string()),
    pa.field("source", pa.string()),
    pa.field("split", pa.string()),
    pa.field("copies", pa.int32()),
    pa.field("cluster", pa.int32()),
    pa.field("attributes", pa.map_(pa.string(), pa.string())),
])
"""The columns. `id` is SHA-256 of size and RGB, `file_hash` SHA-256 of the file it came from, `image` a lossless WebP, `group` "group/subgroup",
`split` member, calibration or holdout, `copies` how often training shows it per epoch (0: never), `cluster` its near-duplicates,
`attributes` whatever else is declared of it (canary, gender, skin_tone, subset). Works without the column `split` are members, and -1 is no
cluster; where `split` is null nobody says whether the model was shown a work. Of works that say no `copies` members are shown once, others never."""

DEFAULTS: dict[str, Any] = {"split": "member", "cluster": -1}

GAP = "\0"
"""Where a value goes in a text that Python wrote, which holds no such character."""
UNPLAIN = r"[^ -&(-\[\]-~]"
"""Characters that Python may write otherwise than they are: quotes, backslashes, and all outside ASCII."""
GROUP_WORKS, GROUP_BYTES = 512, 16 * 2**20
"""The most that one row group of a file holds: what is in memory when pictures are read one after another."""
COMPRESSION: Any = {name: "none" if name == "image" else "zstd" for name in SCHEMA.names}


@contextmanager
def room(path: Path) -> Generator[None, None, None]:
    """Turn a failure of the disk while `path` is written into an error that can be mended.

    Raises:
        NoRoom: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise NoRoom(f"{path} cannot be written: {error.strerror or error}.", "Free some space, or choose another folder with `--out`.") from error


def brought(table: pa.Table) -> pa.Table:
    """Return a table in the one schema, with what it leaves out filled in.

    Raises:
        BadInput: a required column is absent or has gaps.
    """
    columns: dict[str, Any] = {}
    for field in SCHEMA:
        if field.name in table.column_names:
            columns[field.name] = table.column(field.name).cast(field.type)
            if (gaps := columns[field.name].null_count) and not field.nullable:
                raise BadInput(f"{gaps} works have no `{field.name}`.", "Import them with `assay works import`.")
        elif not field.nullable:
            raise BadInput(f"The works have no column `{field.name}`.", "Import them with `assay works import`.")
        else:
            columns[field.name] = pa.chunked_array([pa.array([DEFAULTS.get(field.name)] * len(table), field.type)])
    once, never = pa.scalar(1, pa.int32()), pa.scalar(0, pa.int32())
    columns["copies"] = pc.coalesce(columns["copies"], pc.if_else(pc.equal(columns["split"], "member"), once, never))
    return pa.table(columns, schema=SCHEMA)


class Works:
    """Captioned works in memory, one row each.

    Args:
        table: an Arrow table with the columns of `SCHEMA`; optional columns may be absent, or have gaps.
    """

    def __init__(self, table: pa.Table) -> None:
        """Bring the table into the one schema.

        Raises:
            BadInput: a required column is absent or has gaps, or a work has no caption.
        """
        self.table = brought(table)
        captions = self.table.column("captions")
        if bare := sum(map(uncaptioned, captions.chunks)):
            raise BadInput(f"{bare} works have no caption, or an empty one.", "Import them with `assay works import`, which sets such works aside.")

    @classmethod
    def from_rows(cls, rows: Sequence[dict[str, Any]]) -> Works:
        """Build from dicts with the keys of `SCHEMA`, of which optional ones may be missing."""
        filled = [{field.name: row.get(field.name, DEFAULTS.get(field.name)) for field in SCHEMA} for row in rows]
        return cls(pa.Table.from_pylist(filled, schema=SCHEMA))

    @classmethod
    def read(cls, path: str | Path, *, images: bool = True) -> Works:
        """Read one Parquet file, or every `*.parquet` of a folder in name order.

        Args:
            path: the file or folder.
            images: whether to read the pictures, nearly all of the bytes. Without them each is empty; `pictures` reads those that are needed.

        Raises:
            Missing: there is no such file, or no Parquet file in the folder.
            BadInput: a file is no Parquet file, lacks a required column, or holds text that is not UTF-8.
        """
        tables = []
        with readable(path):
            for file in parquet_files(path):
                with pq.ParquetFile(file) as opened:
                    names = opened.schema_arrow.names
                    table = opened.read([name for name in names if images or name != "image"])
                table.validate(full=True)  # Parquet does not look at whether text is UTF-8
                if not images and "image" in names:
                    table = table.append_column("image", pa.repeat(pa.scalar(b"", pa.binary()), len(table)))
                tables.append(brought(table))
            return cls(pa.concat_tables(tables))

    def write(self, path: str | Path) -> None:
        """Write one Parquet file, whole or not at all; images are stored as they are, everything else compressed with zstd."""
        each = min(GROUP_WORKS, max(1, GROUP_BYTES * len(self) // max(1, self.table.column("image").nbytes)))
        path = Path(path)
        part = path.with_name(path.name + ".part")
        with room(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                pq.write_table(self.table, part, compression=COMPRESSION, use_dictionary=False, row_group_size=each)
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def __len__(self) -> int:
        """Return the number of works."""
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row as a dict; `attributes` as a dict."""
        row = {name: self.table.column(name)[index].as_py() for name in SCHEMA.names}
        row["attributes"] = dict(row["attributes"] or [])
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield rows as dicts."""
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> list[Any]:
        """Return one column as Python values."""
        return self.table.column(name).to_pylist()

    def attribute(self, name: str) -> list[str | None]:
        """Return one declared attribute of every work, None where it is not declared."""
        return [dict(attributes or []).get(name) for attributes in self.column("attributes")]

    def take(self, indices: Sequence[int] | np.ndarray) -> Works:
        """Return the works at `indices`, in that order."""
        return Works(self.table.take(pa.array(np.asarray(indices, dtype=np.int64))))

    def where(self, keep: Callable[[dict[str, Any]], bool]) -> Works:
        """Return the works for which `keep(row)` is true; `row` has every column but the image."""
        return self.take([index for index, row in enumerate(self.rows()) if keep(row)])

    def rows(self) -> list[dict[str, Any]]:
        """Return every row as a dict without the image; `attributes` as a dict."""
        light = self.table.drop_columns(["image"]).to_pylist()
        for row in light:
            row["attributes"] = dict(row["attributes"] or [])
        return light

    def with_columns(self, **columns: Sequence[Any]) -> Works:
        """Return the works with columns replaced."""
        table = self.table
        for name, values in columns.items():
            table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type))
        return Works(table)

    def image(self, index: int) -> Image.Image:
        """Decode one image to RGB; damaged bytes raise `BadInput`."""
        return decode(self.table.column("image")[index].as_py(), name=f"work {self.table.column('id')[index].as_py()[:12]}")

    def pixels(self, size: int) -> np.ndarray:
        """Decode every image to `size`: uint8, (n, size, size, 3); damaged bytes raise `BadInput`."""
        pixels = np.empty((len(self), size, size, 3), np.uint8)
        for index in range(len(self)):
            pixels[index] = np.asarray(fit(self.image(index), size))
        return pixels

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every column of every work in order; `id` stands for the pixels, so that the images' encoding does not matter."""
        digest, names = hashlib.sha256(), sorted(set(SCHEMA.names) - {"image"})
        for batch in self.table.select(names).to_batches(max_chunksize=4096):
            fields, varied = [], []
            for name, column in zip(names, batch.columns, strict=True):
                same = name != "id" and alike(column)
                fields.append(f"({name!r}, {repr(column[0].as_py()) if same else GAP})")
                varied += [] if same else [written(column)]
            first, *rest = f"[{', '.join(fields)}]".split(GAP)  # repr(sorted(row.items())), all rows at once
            rows = pc.binary_join_element_wise(first, *chain(*zip(varied, rest, strict=True)), "")
            digest.update(pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows), "")[0].as_buffer())
        return digest.hexdigest()


def uncaptioned(captions: pa.Array) -> int:
    """Return how many works of a batch have no caption, or an empty one."""
    bare = pc.equal(pc.list_value_length(captions), 0)
    if captions.flatten().null_count:
        bare = pa.array([not texts or None in texts for texts in captions.to_pylist()])
    return pc.sum(bare, min_count=0).as_py()


def written(column: pa.Array) -> pa.Array:
    """Return how Python writes each value of a column: strings, without a Python object a work where they are of plain characters."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.string()).fill_null("None")
    texts = column.flatten() if (lists := pa.types.is_list(column.type)) else column
    plain = pa.types.is_string(texts.type) and not (lists and column.null_count) and not pc.any(pc.match_substring_regex(texts, UNPLAIN)).as_py()
    if not plain:
        return pa.array(map(repr, column.to_pylist()), pa.string())
    quoted = pc.binary_join_element_wise("'", texts, "'", "").fill_null("None")
    if not lists:
        return quoted
    offsets = pc.subtract(column.offsets, column.offsets[0])
    return pc.binary_join_element_wise("[", pc.binary_join(pa.ListArray.from_arrays(offsets, quoted), ", "), "]", "")


def alike(column: pa.Array) -> bool:
    """Return whether a column is known to hold one value throughout, or none."""
    if pa.types.is_nested(column.type) or column.null_count or not len(column):
        return 0 < column.null_count == len(column)
    return pc.all(pc.equal(column, column[0])).as_py()


def parquet_files(path: str | Path) -> list[Path]:
    """Return the files that works are read from: one, or every `*.parquet` of a folder in name order.

    Raises:
        Missing: there is none.
    """
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise Missing(f"No works at {path}.", "Give a Parquet file, or import a folder with `assay works import`.")
    return files


@contextmanager
def readable(path: str | Path) -> Generator[None, None, None]:
    """Turn a failure to read the works at `path` into an error that can be mended.

    Raises:
        BadInput: a file is no Parquet file, or is damaged.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path} is no table of works: {error}.", "Import it anew with `assay works import`.") from error


def pictures(source: Works | str | Path, rows: np.ndarray) -> Iterator[bytes]:
    """Yield the encoded pictures of some works; of files, only the row groups that hold them are read, one at a time.

    Args:
        source: works with their images, or the file or folder that works were read from.
        rows: which works, ascending: int64, (n,).

    Raises:
        BadInput: a file is damaged, or holds fewer works than it did.
    """
    if isinstance(source, Works):
        yield from (source.table.column("image")[row].as_py() for row in rows.tolist())
        return
    start = found = 0
    with readable(source):
        for file in parquet_files(source):
            with pq.ParquetFile(file) as opened:
                for group in range(opened.num_row_groups):
                    stop = start + opened.metadata.row_group(group).num_rows
                    wanted = np.searchsorted(rows, start) < np.searchsorted(rows, stop)
                    for batch in opened.iter_batches(GROUP_WORKS, row_groups=[group], columns=["image"]) if wanted else ():
                        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(batch))] - start
                        yield from (batch.column(0)[row].as_py() for row in inside.tolist())
                        start, found = start + len(batch), found + len(inside)
                    start = stop
    if found < len(rows):
        raise BadInput(f"{source} holds fewer works than it did a moment ago.", "Run the command again once nothing writes to it.")
