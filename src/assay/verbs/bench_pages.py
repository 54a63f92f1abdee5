"""What benches have in common around their cells: the concepts and models that are named, stored results, and the report."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from pydantic import ValidationError

from assay.benches.erasure import BASE, Subject
from assay.concept import Kind
from assay.denoiser import Denoiser
from assay.errors import BadInput, Misconfigured, Missing
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.record import Dossier, Entry, Part, Picture, Record, digest_of, sha256_file, write_atomically
from assay.reports.pictures import grid, small_png
from assay.reports.render import write_report
from assay.verbs.session import Session, peak_memory, works_for
from assay.works import Works
from assay.works import concepts as known

Stored = TypeVar("Stored", bound=Part)

GAP = 4
"""Pixels between the tiles of a page."""


def works_of(session: Session, works: str | Path | Works | None) -> Works:
    """Return the works given, else those of the built-in model.

    Raises:
        Missing: the model is not built in and no works are given.
    """
    if (table := works_for(session, works)) is None:
        raise Missing("The bench needs works that say which titles and styles there are.", "Give them with `--works`.")
    return table


def settings_of(default: Any, given: Mapping[str, Any]) -> Any:
    """Return the settings of the cells with what was given put in.

    Raises:
        Misconfigured: there is no such setting, or `each` is no number of prompts, or lacks that of a part.
    """
    try:
        chosen = replace(default, **given)
    except TypeError as error:
        raise Misconfigured(f"The cells have no such setting: {error}.", f"They have {', '.join(asdict(default))}.") from error
    each, usual = (of if isinstance(of, dict) else {"": of} for of in (chosen.each, default.each))
    if each.keys() != usual.keys() or not all(isinstance(count, int) and count >= 1 for count in each.values()):
        raise Misconfigured(f"`each` cannot be {chosen.each!r}.", f"Give whole numbers of at least 1, as in {default.each!r}.")
    return chosen


def choose(session: Session, works: Works, names: Sequence[str], kind: Kind | None, own: Sequence[Subject]) -> list[Subject]:
    """Return the concepts of a bench: the built-in world's, or those that are named where any is not among them.

    Args:
        session: the model.
        works: which styles there are.
        names: the concepts that are asked for; none means all.
        kind: of concepts that are not the bench's.
        own: those of the built-in world.

    Raises:
        Misconfigured: the model is not built in, and none is named; or the kind is neither style nor object.
    """
    there = {subject.name: subject for subject in own} if session.built_in else {}
    if not there and not names:
        raise Misconfigured("The bench has concepts of the built-in world alone.", "Name styles or objects of your works with `--concept`.")
    if all(name in there for name in names):
        return list(there.values())
    if kind not in ("style", "object", None):
        raise Misconfigured(f"The bench measures styles and objects of your own works; got the kind `{kind}`.", "Leave out `--kind`.")
    styles = known.styles(works)
    return [there.get(name) or Subject(name, kind or ("style" if name in styles else "object"), name, "") for name in dict.fromkeys(names)]


def named(text: str) -> tuple[str, Path]:
    """Split NAME=PATH.

    Raises:
        Misconfigured: it is not written so.
    """
    name, sign, path = text.partition("=")
    if not (name and sign and path) or name == BASE:
        raise Misconfigured(f"`{text}` names no model to hold erasers against.", "Write NAME=PATH, such as `again=out/retrain-again`.")
    return name, Path(path)


def slug(name: str) -> str:
    """Return a name as that of a folder; where letters are lost, a digest tells it from others."""
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return made if made == re.sub(r"[ ,]+", "-", name.lower()) else f"{made}-{digest_of(name)[:8]}".strip("-")


def again_of(session: Session, subject: str, works: str | Path | Works | None, settings: dict[str, Any], options: dict[str, Any]) -> list[str]:
    """Return the words of the command that measures the same again; none where objects of Python were given, which have no name."""
    if isinstance(session.model, Denoiser) or isinstance(works, Works) or settings:
        return []
    words = ["bench", subject, "--measure", "--model", str(session.model), "--seed", str(session.seed)]
    for flag, value in (options | {"works": works}).items():
        for item in value if isinstance(value, list | tuple) else [value] if value else []:
            words += [f"--{flag}", str(item)]
    return words


DIGITS = 9
"""Of a stored number that is no whole one: more than float32 tells."""


def lines(results: Part) -> bytes:
    """Return results as JSON with a line for every concept and cell, so that what a new measurement changed can be seen."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [short(item) for item in value]
        return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value

    def text(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return json.dumps(value)
        return "[\n  " + ",\n  ".join(json.dumps(item, separators=(",", ":")) for item in value) + "\n ]"

    body = {"format": getattr(results, "format", ""), **short(results.model_dump(exclude_defaults=True))}
    return ("{\n " + ",\n ".join(f"{json.dumps(key)}: {text(value)}" for key, value in body.items()) + "\n}\n").encode()


def read(file: Path, kind: type[Stored], bench: str) -> Stored:
    """Read stored results.

    Args:
        file: where they are.
        kind: what they are.
        bench: what the bench is called, in words.

    Raises:
        Missing: there are none.
        BadInput: they cannot be read.
    """
    if not file.exists():
        raise Missing(f"There are no results of {bench} at {file}.", "Measure it with `--measure`: hours; it goes on where it was.")
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise BadInput(f"{file} cannot be read: {error.errors()[0]['msg']}.", "It may be damaged, or of another version; measure anew.") from error


def take(bench: Any, file: Path, kind: type[Part], called: str) -> None:
    """Let a bench count the cells that are stored, if there are any, and say how many are not made again.

    Raises:
        BadInput: the stored results cannot be read.
    """
    if file.exists():
        bench.take(read(file, kind, called))
        if bench.before:
            bench.session.display.say(f"{len(bench.before)} cells are those of {file}")


Tiles = Mapping[tuple[str, str], Image.Image]
"""(line, column) -> picture, all of one size."""


def sheet(tiles: Tiles, lines: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Lay out tiles with the names of those lines and columns, which may break at every sign in them."""
    left, top = ([re.sub(r"([+@])", r" \1", name.replace("_", " ")) for name in names] for names in (lines, columns))
    return grid([[tiles.get((line, column)) for column in columns] for line in lines], left, top, scale=1, gap=GAP, label_size=11)


def keep_page(tiles: Tiles, lines: Sequence[str], columns: Sequence[str], target: Path, most: int, of: str = "") -> None:
    """Write a page of tiles that says where they are, so that `tiles_of` takes them out again where the folder that they were drawn in is gone.

    Args:
        tiles: nothing is written of none.
        lines: in order; those without a tile are left out.
        columns: likewise.
        target: the PNG.
        most: bytes that it may have.
        of: what all tiles are of.
    """
    if not tiles:
        return
    lines, columns = ([name for name in names if any(key[axis] == name for key in tiles)] for axis, names in enumerate((lines, columns)))
    page = sheet(tiles, lines, columns)
    there = [(line, column) for line in lines for column in columns if (line, column) in tiles]
    told = {"of": of, "page": page.size, "tile": tiles[there[0]].size, "lines": lines, "columns": columns, "there": there}
    write_atomically(target, small_png(page, most, {"tiles": json.dumps(told)}))


def tiles_of(page: Path, of: str = "") -> dict[tuple[str, str], Image.Image]:
    """Take the tiles out of a page; none where there is no page, it is of something else, does not say where they are, or was made smaller."""
    if not page.exists():
        return {}
    with Image.open(page) as image:
        told = json.loads(image.info.get("tiles", "{}"))
        found = image.convert("RGB")
    if not told or told.get("of") != of or list(found.size) != told["page"]:
        return {}
    (width, height), lines, columns = told["tile"], told["lines"], told["columns"]
    left, top = found.width - len(columns) * (width + GAP), found.height - len(lines) * (height + GAP)
    tiles: dict[tuple[str, str], Image.Image] = {}
    for line, column in told["there"]:
        x, y = left + columns.index(column) * (width + GAP), top + lines.index(line) * (height + GAP)
        tiles[line, column] = found.crop((x, y, x + width, y + height))
    return tiles


def write(
    folder: OutFolder,
    name: str,
    title: str,
    caption: str,
    whole: Record,
    chapters: Mapping[str, Callable[[Path], Record] | None],
    again: list[str],
    started: float,
    *,
    complete: bool,
) -> Outcome:
    """Write the record of the whole, one of every concept that was measured, and the page.

    Args:
        folder: to write to; the page of pictures and the results lie in it already, if there are any.
        name: of the bench and its files.
        title: of the report.
        caption: of the page of pictures.
        whole: the record of all concepts.
        chapters: concept -> what makes its record, given the folder that its pictures go into; None where nothing was measured.
        again: words of the command that asks the same again.
        started: when the command began, by `time.monotonic`.
        complete: whether every cell of the plan was measured.
    """
    page = folder / f"{name}.png"
    pictures = [Picture(file=page.name, sha256=sha256_file(page), caption=caption)] if page.exists() else []
    update = {"pictures": pictures, "again": again, "seconds": round(time.monotonic() - started, 2), "peak_memory": peak_memory()}
    whole = whole.model_copy(update=update)
    whole.save(folder.path)
    entries = [Entry(stage="All concepts", record="record.json", sha256=sha256_file(folder / "record.json"))]
    for number, (concept, make) in enumerate(chapters.items(), 1):
        if make is not None:
            where = folder / f"concept-{number}"
            make(where).save(where)
            entries.append(Entry(stage=concept, record=f"{where.name}/record.json", sha256=sha256_file(where / "record.json")))
    Dossier(title=title, complete=complete, stages=["All concepts", *chapters], entries=entries).save(folder.path)
    write_report(folder.path)
    files = {"record": str(folder / "record.json"), "dossier": str(folder / "dossier.json"), "report": str(folder / "report.html")}
    files |= {"results": str(folder / f"{name}.json")} if (folder / f"{name}.json").exists() else {}
    return Outcome("bench", folder.path, whole, files)
