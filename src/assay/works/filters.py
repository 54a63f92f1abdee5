"""Which works are meant, in words: a small language without code, such as `style=noto` or `title~cat, group=cat-face, canary`.

    EXPRESSION   TERM, TERM, ...         a work is meant if any term fits it
    TERM         FIELD=VALUE             the field is exactly VALUE
                 FIELD~WORDS             the field has WORDS in it as whole words
                 canary                  the work is a canary, of whatever dose

Fields are title, style, group, creator, license, tag, id and every attribute that the works declare. Case does not matter. `group=` also fits one
side of the slash, `id=` the beginning of an id, 8 digits or more. A comma is part of a value unless a term follows it, so that
`creator=Twitter, Inc. and other contributors` is one term.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import BadInput, Misconfigured, Missing
from assay.works.table import Works

Row = dict[str, Any]
COLUMNS = ("title", "style", "group", "creator", "license", "tag", "id")
SHORTEST = 8
"""Digits that the beginning of an id needs."""


@dataclass(frozen=True)
class Term:
    """One condition on a work."""

    field: str
    """What is compared, in lower case."""
    sign: str
    """`=`, `~`, or nothing where it is enough that the work declares the field."""
    value: str
    """What it is compared with, in lower case."""

    def __str__(self) -> str:
        """Return the term as it is written."""
        return f"{self.field}{self.sign}{self.value}"

    def fits(self, row: Row) -> bool:
        """Say whether a row of `Works.where` meets the condition."""
        found = values(row, self.field)
        if self.sign == "=" and self.field == "group":
            found = [part for value in found for part in (value, *value.split("/"))]
        if self.sign == "=" and self.field == "id":
            return any(value.startswith(self.value) for value in found)
        if self.sign == "=":
            return self.value in found
        if self.sign == "~":
            return any(re.search(rf"(?<!\w){re.escape(self.value)}(?!\w)", value) for value in found)
        return bool(found)


def values(row: Row, field: str) -> list[str]:
    """Return what a work says in a field, in lower case: several tags, one title, nothing where it declares nothing."""
    if field == "tag":
        said = row["tags"] or []
    else:
        said = [row[field] if field in COLUMNS else {name.lower(): value for name, value in row["attributes"].items()}.get(field)]
    return [str(value).lower() for value in said if value is not None]


def parse(expression: str) -> tuple[Term, ...]:
    """Read an expression.

    Raises:
        Misconfigured: a term cannot be read.
    """
    terms = []
    for text in re.split(r",(?=\s*(?:\w+\s*[=~]|canary\s*(?:,|$)))", expression):
        found = re.fullmatch(r"\s*(?:(canary)|(\w+)\s*([=~])\s*(\S.*?))\s*", text, re.DOTALL)
        if found is None:
            raise Misconfigured(f"`{text.strip()}` is no condition on works.", "Write FIELD=VALUE, FIELD~WORDS or `canary`, with commas between.")
        bare, field, sign, value = found.groups(default="")
        term = Term((bare or field).lower(), sign, value.lower())
        if term.field == "id" and (sign != "=" or len(value) < SHORTEST):
            raise Misconfigured(f"`{term}` names no work.", f"Write id= and the first {SHORTEST} digits of an id, or more.")
        terms.append(term)
    return tuple(terms)


def condition(expressions: Sequence[str], works: Works) -> Callable[[Row], bool]:
    """Return a condition that a row of `works` meets if it meets any term of any expression.

    Args:
        expressions: none of them, and no row meets the condition.
        works: every term must fit at least one of these, so that no misspelt name goes unnoticed.

    Raises:
        Misconfigured: a term cannot be read, or names a field that no work has.
        Missing: a term fits no work; the message names the closest values.
    """
    terms = [term for expression in expressions for term in parse(expression)]
    rows = works.rows() if terms else []
    for term in terms:
        if any(term.fits(row) for row in rows):
            continue
        known = sorted({*COLUMNS, *(name.lower() for row in rows for name in row["attributes"])})
        if term.field not in known:
            raise Misconfigured(f"The works have no field `{term.field}`.", f"They have {', '.join(known)}.")
        there = sorted({value for row in rows for value in values(row, term.field)})
        close = difflib.get_close_matches(term.value, there, n=5, cutoff=0.4) or there[:5]
        raise Missing(f"No work that is trained on fits `{term}`.", f"Closest to it: {', '.join(close) or 'nothing'}.")
    return lambda row: any(term.fits(row) for term in terms)


def read_ids(path: str | Path, works: Works) -> set[str]:
    """Read the ids of works from a file, one a line; empty lines and lines that begin with # do not count.

    Raises:
        Missing: there is no such file, or a line names none of the works.
        BadInput: the file is not text, or names no work.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise Missing(f"There is no file of ids at {path}.", "Give a text file with one id a line.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read as ids: {error}.", "Give a text file with one id a line.") from error
    known, named = set(works.column("id")), set()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if line not in known:
            raise Missing(f"Line {number} of {path} names no work that is trained on: {line[:80]}.", "Give ids as they stand in the works.")
        named.add(line)
    if not named:
        raise BadInput(f"{path} names no work.", "Give a text file with one id a line.")
    return named
