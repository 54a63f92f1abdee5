"""`Record`: the one document that testifies about a model. Reports and web pages read records and nothing else.

The order of the fields is part of the file format. A record stays under 1 MB: pictures lie beside it and are named by their hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from assay.errors import BadInput, Missing, NoRoom

SCHEMA = "assay/record/1"


class Part(BaseModel):
    """Base of every part of a record: unknown keys are refused, so that a typo cannot pass as evidence."""

    model_config = ConfigDict(extra="forbid")


class Metric(Part):
    """One number with all that is needed to judge it."""

    name: str
    """What was measured, `subject.quantity`, as `--fail-on` names it."""
    value: float | None
    """The figure; None where nothing could be measured."""
    low: float | None = None
    """Lower end of the confidence interval."""
    high: float | None = None
    """Upper end of the confidence interval."""
    level: float = 0.95
    """Level of the confidence interval."""
    n: int = 0
    """Independent observations behind the figure."""
    chance: float | None = None
    """What guessing would reach."""
    better: Literal["higher", "lower", "neither"] = "neither"
    """Which direction is good."""
    judge: str = ""
    """Who measured it: name and first 12 digits of its digest; empty for plain arithmetic."""

    @field_validator("value", "low", "high", "chance")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        return value if value is None or math.isfinite(value) else None


class Picture(Part):
    """A picture beside the record."""

    file: str
    """Path relative to the record's folder."""
    sha256: str
    """Of the file."""
    caption: str
    """What is to be seen, in a sentence."""


class Table(Part):
    """Rows for the report: text, numbers, or the file of a picture beside the record ({"picture": FILE})."""

    title: str
    """What the rows are."""
    columns: list[str]
    """Heads of the columns."""
    rows: list[list[Any]]
    """One list per row, as long as `columns`."""


class Curve(Part):
    """Points for a figure, with intervals."""

    title: str
    """What the curve shows."""
    x_label: str
    """Of the horizontal axis."""
    y_label: str
    """Of the vertical axis."""
    lines: dict[str, list[tuple[float, float, float | None, float | None]]]
    """Name of a line -> points (x, y, low, high)."""
    x_scale: Literal["linear", "log", "symlog"] = "linear"
    """Scale of the horizontal axis."""
    y_scale: Literal["linear", "log"] = "linear"
    """Scale of the vertical axis; on a logarithmic one what is not above zero lies at the foot."""

    @field_validator("lines")
    @classmethod
    def _finite(cls, lines: dict[str, list[tuple[float, float, float | None, float | None]]]) -> dict[str, Any]:
        def end(value: float | None) -> float | None:
            return value if value is None or math.isfinite(value) else None

        return {
            name: [(x, y, end(low), end(high)) for x, y, low, high in points if math.isfinite(x) and math.isfinite(y)]
            for name, points in lines.items()
        }


class Record(Part):
    """What was asked of a model, how, and what came out."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: Literal["assay/record/1"] = Field(default=SCHEMA, alias="schema")
    """Version of this format."""
    command: str
    """The verb: generate, erase, audit, evaluate, works, run."""
    question: str
    """What was asked, in plain words."""
    method: str = ""
    """The method that answered; empty where the verb has only one way."""
    given: dict[str, Any] = {}
    """Settings as the user gave them."""
    again: list[str] = []
    """Words after `assay` of the command that asks the same again; none where it was asked from Python with objects that have no name."""
    resolved: dict[str, Any] = {}
    """Settings as used, defaults and presets filled in."""
    digests: dict[str, str] = {}
    """SHA-256 of what went in, by role: model, works, judge, patch:NUMBER."""
    seeds: dict[str, int] = {}
    """Seeds by role."""
    metrics: list[Metric] = []
    """The figures."""
    findings: list[str] = []
    """What they mean, a sentence each, the most important first."""
    shows_not: list[str] = []
    """What the figures do not show, a sentence each."""
    tables: list[Table] = []
    """Rows behind the figures."""
    curves: list[Curve] = []
    """Points behind the figures."""
    pictures: list[Picture] = []
    """Pictures, first the one to look at."""
    quarantined: int = 0
    """Works or prompts set aside, counted and named in a table."""
    seconds: float = 0.0
    """Wall time of the work."""
    passes: int = 0
    """Passes of the denoiser, counted in samples, so that speed can be compared."""
    peak_memory: int = 0
    """Largest resident memory in bytes."""
    versions: dict[str, str] = {}
    """Versions of the packages that did the work."""

    def metric(self, name: str) -> Metric:
        """Return the metric of that name.

        Raises:
            Missing: the record has none of that name.
        """
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise Missing(f"The record has no metric `{name}`.", f"It has: {', '.join(m.name for m in self.metrics) or 'none'}.")

    def dump(self) -> str:
        """Return the record as JSON text."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    def save(self, folder: str | Path, name: str = "record.json") -> Path:
        """Write the record into `folder` in one step and return its path."""
        path = Path(folder) / name
        write_atomically(path, self.dump().encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a record from a file, or `record.json` from a folder.

        Raises:
            Missing: there is no such file.
            BadInput: the file is no record of this version.
        """
        path = Path(path)
        path = path / "record.json" if path.is_dir() else path
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise Missing(f"No record at {path}.", "Give a folder that an assay command wrote with `--out`.") from error
        except ValidationError as error:
            raise BadInput(
                f"{path} is no record of version {SCHEMA}: {error.errors()[0]['msg']}.", "It may be damaged, or of another version."
            ) from error


class Entry(Part):
    """A record's place in a dossier."""

    stage: str
    """What it is evidence for, as the report's chapter is called."""
    record: str
    """Path of the record, relative to the dossier."""
    sha256: str
    """Of the record file."""


class Dossier(Part):
    """`dossier.json`: the records of one run, in reading order."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: Literal["assay/dossier/1"] = Field(default="assay/dossier/1", alias="schema")
    """Version of this format."""
    title: str
    """The report's title."""
    complete: bool
    """False while stages are still to come."""
    stages: list[str]
    """Every stage of the plan, in order, done or not."""
    entries: list[Entry]
    """The stages that are done."""

    def save(self, folder: str | Path) -> Path:
        """Write `dossier.json` into `folder` in one step and return its path."""
        path = Path(folder) / "dossier.json"
        write_atomically(path, (self.model_dump_json(by_alias=True, indent=1) + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Dossier:
        """Read `dossier.json` from `folder`.

        Raises:
            Missing: there is none.
            BadInput: it is damaged or of another version.
        """
        path = Path(folder) / "dossier.json"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise Missing(f"No dossier.json in {folder}.", "Give a folder that `assay run` wrote.") from error
        except ValidationError as error:
            raise BadInput(f"{path} is no dossier: {error.errors()[0]['msg']}.", "It may be damaged, or of another version.") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent, making its folder if need be.

    Raises:
        NoRoom: the disk is full, or the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise NoRoom(f"{path} cannot be written: {error.strerror or error}.", "Free some space, or choose another folder with `--out`.") from error
    finally:  # also when interrupted
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_tensors(path: Path) -> dict[str, Any] | None:
    """Return the tensors of a shard that an earlier run left, or None if there is none or it is damaged and must be made again."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form: of a plan, of settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {}
    for name in ("assay", "torch", "diffusers", "transformers", "safetensors", "numpy", "scipy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
