"""Columns of foreign rows brought to the columns of `Works`: whatever cannot be understood raises the reason for the quarantine."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from assay.errors import BadInput
from assay.works.images import MAX_BYTES
from assay.works.table import SCHEMA

ALIASES = {
    "image": ("image", "file_name", "file", "path"),
    "captions": ("captions", "caption", "text"),
    "creator": ("creator", "artist", "author"),
    "license": ("license", "licence"),
}
"""Column of `Works` -> names it goes by in sources, the first that says something counts."""

TURNING = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
"""Characters that turn the direction of writing, also of what stands behind the text that holds them."""

KNOWN = {*SCHEMA.names, *(alias for names in ALIASES.values() for alias in names)}


def contents(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        BadInput: there is none, it is too large, or it cannot be read.
    """
    try:
        if not path.is_file():
            raise BadInput(f"There is no file: {path.name}.")
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(f"The file is larger than {MAX_BYTES // 2**20} MiB: {path.name}.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput(f"The file cannot be read: {path.name}: {error}.") from error


def inside(path: Path, root: Path) -> Path:
    """Return a path that leads into a folder, links followed.

    Raises:
        BadInput: it leads elsewhere, or nowhere.
    """
    try:
        if path.resolve().is_relative_to(root.resolve()):
            return path
    except (OSError, ValueError, RuntimeError) as error:  # a link to itself is a RuntimeError
        raise BadInput(f"The file cannot be read: {path.name}: {error}.") from error
    raise BadInput(f"The file lies outside the source, which a copy with its links followed (`cp -rL`) brings in: {path.name}.")


def unicode(data: bytes) -> str:
    """Decode the text of a sidecar.

    Raises:
        BadInput: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"The captions are not UTF-8: {error}.") from error


def parsed(data: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        BadInput: it is damaged.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"The JSON cannot be read: {error}.") from error


def pick(row: dict[str, Any], column: str) -> Any:
    """Return what a row has for a column of `Works` under any of its names; None if nothing."""
    found = (row.get(name) for name in ALIASES.get(column, (column,)))
    return next((value for value in found if value is not None and value not in ("", [])), None)


def text(value: Any) -> str | None:
    """Return a scalar as stripped text without what turns the direction of writing; None for nothing.

    Raises:
        BadInput: it is no scalar, or holds halves of characters.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | float):
        raise BadInput(f"Where text was expected there is a {type(value).__name__}.")
    try:
        return str(value).translate(TURNING).strip().encode().decode() or None
    except UnicodeEncodeError as error:
        raise BadInput("The text holds halves of characters.") from error


def texts(value: Any, separator: str = "\n") -> list[str]:
    """Return a list of texts, a JSON list in a string, or a string cut at `separator`, without empty ones."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    parts = value if isinstance(value, list) else (text(value) or "").split(separator)
    return [part for part in map(text, parts) if part]


def whole(row: dict[str, Any], name: str, default: int, least: int) -> int:
    """Return a count from a row, or its default.

    Raises:
        BadInput: it is no whole number in range.
    """
    value = text(row.get(name))
    if value is None:
        return default
    with suppress(ValueError):
        number = float(value)
        if number.is_integer() and least <= number < 2**31:
            return int(number)
    raise BadInput(f"`{name}` is no whole number from {least} on: {value}.")


def picture(value: Any, folder: Path, root: Path) -> bytes:
    """Return the bytes of an image given as bytes, as a path, or as the struct {bytes, path} of Hugging Face.

    Args:
        value: what the source has for an image.
        folder: where its relative paths start.
        root: the folder of the whole source, outside of which nothing is read.

    Raises:
        BadInput: there is no such file in the source, or no picture at all.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    path = value if isinstance(value, Path) else text(value)
    if path is None:
        raise BadInput("It names no picture.")
    return contents(inside(folder / path, root))


def attributes(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Keep what else is declared of a work: the pairs of `attributes`, and every column of single values that has no place of its own.

    Raises:
        BadInput: `attributes` is no set of pairs.
    """
    others = {name: value for name, value in row.items() if name not in KNOWN and isinstance(value, str | int | float)}
    declared = row.get("attributes") or {}
    try:
        declared = others | dict(parsed(declared) if isinstance(declared, str) else declared)
    except (TypeError, ValueError) as error:
        raise BadInput("`attributes` is no set of pairs.") from error
    return [(key, said) for name, value in declared.items() if (key := text(name)) and (said := text(value))]
