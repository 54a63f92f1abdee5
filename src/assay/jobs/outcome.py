"""What a command leaves behind, as `--json` prints it: one object of the schema `assay/1`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.errors import Misconfigured
from assay.record import Record

SCHEMA = "assay/1"


@dataclass(frozen=True)
class Outcome:
    """The end of a command.

    Args:
        command: the verb.
        out: the folder it wrote to.
        record: the record it wrote; None for a dry run.
        files: role -> path of every file of interest.
        extra: further keys of the JSON object (`methods`, `plan`).
        next: commands that the user may want to run next.
    """

    command: str
    out: Path | None
    record: Record | None
    files: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    next: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the one object that `--json` prints."""
        record = self.record
        body = {
            "schema": SCHEMA,
            "command": self.command,
            "status": "done",
            "out": None if self.out is None else str(self.out),
            "record": None if record is None or self.out is None else str(self.out / "record.json"),
            "files": self.files,
            "metrics": [metric.model_dump() for metric in record.metrics] if record else [],
            "findings": record.findings if record else [],
            "quarantined": record.quarantined if record else 0,
            "seconds": record.seconds if record else 0.0,
        }
        return json.dumps(body | self.extra)


def error_json(kind: str, message: str, hint: str) -> str:
    """Return the object that `--json` prints for an error."""
    return json.dumps({"schema": SCHEMA, "status": "error", "error": {"type": kind, "message": message, "hint": hint}})


def failed(record: Record | None, conditions: tuple[str, ...]) -> list[str]:
    """Return those `METRIC>VALUE` or `METRIC<VALUE` conditions that the record meets.

    Raises:
        Misconfigured: a condition cannot be read.
        Missing: the record has no such metric.
    """
    met = []
    for condition in conditions:
        sign = ">" if ">" in condition else "<"
        name, _, limit = condition.partition(sign)
        try:
            bound = float(limit)
        except ValueError as error:
            raise Misconfigured(f"`{condition}` is no condition.", "Write METRIC>VALUE or METRIC<VALUE, such as target.accuracy>0.1.") from error
        if record is None:
            continue
        value = record.metric(name.strip()).value
        if value is not None and (value > bound if sign == ">" else value < bound):
            met.append(condition)
    return met
