"""Write `report.html`: one file with everything in it, no script, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from assay.errors import BadInput, Mismatch, Missing
from assay.record import Curve, Dossier, Record, write_atomically
from assay.reports.figures import draw
from assay.reports.signing import signed_as
from assay.reports.summarize import single, summarize
from assay.works.images import decode, encode

REPORT = "report.html"
EMBEDDED = 12 * 2**20
WIDEST = 1920
THUMBNAIL = 192
TINY = 192
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def prose(text: str) -> Markup:
    """Set a sentence: what stands between backticks as code, and no break before a percent sign."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text.replace(" %", "\u00a0%")))))


TEMPLATES.filters["prose"] = prose


def write_report(folder: str | Path) -> Path:
    """Write `report.html` from the records that `dossier.json` lists, or from `record.json` alone, and return its path.

    Args:
        folder: holds the dossier; an incomplete one gives a report that says what is still to come. A record or a picture that is missing,
            lies elsewhere, or is not the one that was listed, is an error: the page would be false witness.

    Raises:
        Mismatch: the folder is signed, and this would be another page than the one that was signed.
    """
    path, page = Path(folder) / REPORT, _page(Path(folder))
    if signed_as(folder, REPORT) not in (None, hashlib.sha256(page).hexdigest()):
        raise Mismatch(
            f"{folder} is signed, with another {REPORT} than this version of assay would write.",
            "Read the one that is there, or copy the folder without manifest.json and manifest.sig and write it in the copy.",
        )
    write_atomically(path, page)
    return path


def _page(folder: Path) -> bytes:
    dossier, records = _read(folder)
    report = summarize(dossier, records)
    room = EMBEDDED
    for picture, most in _pictures(report):
        picture.update(_embed(folder, picture["file"], picture["sha256"], most, room))
        room -= picture["cost"]
    for place, curve in enumerate(_curves(report), 1):
        drawn = Curve.model_validate({key: value for key, value in curve.items() if key != "points"})
        curve["svg"] = Markup(_drawn(drawn.model_dump_json(), f"figure-{place}"))
    report["linked"] = sum(picture["linked"] for picture, _ in _pictures(report))
    return TEMPLATES.get_template("report.html").render(report=report, quote=quote).encode()


def _read(folder: Path) -> tuple[Dossier, list[Record]]:
    if (folder / "dossier.json").is_file():
        dossier = Dossier.load(folder)
    elif (folder / "record.json").is_file():
        record = Record.load(folder)
        return single(record, hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()), [record]
    else:
        raise Missing(f"{folder} holds neither dossier.json nor record.json.", "Give a folder that an assay command wrote with `--out`.")
    for entry in dossier.entries:
        _intact(folder, entry.record, entry.sha256)
    return dossier, [Record.load(folder / entry.record) for entry in dossier.entries]


def _intact(folder: Path, file: str, sha256: str) -> bytes:
    """Return the bytes of a file inside the folder, if they are those that were listed.

    Raises:
        BadInput: the file lies outside the folder.
        Missing: there is no such file.
        Mismatch: its digest is not the one that was listed; an empty one is not compared.
    """
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"{file} lies outside {folder}.", "A report reads nothing but its own folder.")
    if not path.is_file():
        raise Missing(f"{file} is listed but not in {folder}.", "Copy the whole folder, or run the command again.")
    data = path.read_bytes()
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise Mismatch(f"{path} is not the file that was listed: its SHA-256 differs.", "It was changed since; run the command again.")
    return data


def _records(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for stage in report["stages"]:
        yield from stage["records"]


def _curves(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for record in _records(report):
        yield from record["curves"]


def _pictures(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Every picture with the pixels it needs across, those first that should be embedded first."""
    for record in _records(report):
        yield from ((picture, WIDEST) for picture in record["pictures"][:1])
    for record in _records(report):
        yield from ((picture, WIDEST) for picture in record["pictures"][1:])
    for record in _records(report):
        for table in record["tables"]:
            yield from ((cell, THUMBNAIL) for row in table["rows"] + table["more"] for cell in row if "file" in cell)


def _embed(folder: Path, file: str, sha256: str, most: int, room: int) -> dict[str, Any]:
    """Return how a picture is shown: as lossless data, or as a link where there is no room for it."""
    source, full, shown = _encoded(_intact(folder, file, sha256), most, file)
    linked = len(source) > room
    return {
        "src": quote(file) if linked else source,
        "href": quote(file),
        "cost": 0 if linked else len(source),
        "linked": linked,
        "width": full[0] if linked else shown[0],
        "height": full[1] if linked else shown[1],
        "full": full[0],
        "tiny": max(full) <= TINY,
        "enlarge": max(1, min(4, 384 // max(full))),
    }


@lru_cache(maxsize=128)  # a run writes its report after every stage
def _encoded(data: bytes, most: int, file: str) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Return a picture as a data address, with its own size and the size it is shown in."""
    image = decode(data, name=file)
    shown = image.copy()
    shown.thumbnail((most, 4 * most), Image.Resampling.LANCZOS)
    return "data:image/webp;base64," + base64.b64encode(encode(shown)).decode(), image.size, shown.size


@lru_cache(maxsize=64)
def _drawn(curve: str, name: str) -> str:
    """Draw a curve, given as JSON."""
    return draw(Curve.model_validate_json(curve), name)
