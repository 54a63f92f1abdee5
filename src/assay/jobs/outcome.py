"""What a command leaves behind, as `--json` prints it: one object of the schema `assay/1`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from assay.errors import Misconfigured, Missing
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
        status: `unfinished` where a training or a bench was told to stop before its end.
    """

    command: str
    out: Path | None
    record: Record | None
    files: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    next: tuple[str, ...] = ()
    status: Literal["done", "unfinished"] = "done"

    def to_json(self) -> str:
        """Return the one object that `--json` prints."""
        record = self.record
        body = {
            "schema": SCHEMA,
            "command": self.command,
            "status": self.status,
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


def interrupted_json() -> str:
    """Return the object that `--json` prints for a command that was interrupted."""
    return json.dumps({"schema": SCHEMA, "status": "interrupted"})


@dataclass(frozen=True)
class Condition:
    """A `METRIC>VALUE` or `METRIC<VALUE` that makes a command fail."""

    text: str
    """As it was given."""
    metric: str
    """Name of the metric."""
    above: bool
    """Whether it is met above the value."""
    value: float
    """The value."""

    @classmethod
    def read(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            Misconfigured: it cannot be read.
        """
        sign = ">" if ">" in text else "<"
        name, _, limit = text.partition(sign)
        try:
            value = float(limit)
        except ValueError:
            value = math.nan
        if not name.strip() or math.isnan(value):
            raise Misconfigured(f"`{text}` is no condition.", "Write METRIC>VALUE or METRIC<VALUE, such as target.accuracy>0.1.")
        return cls(text, name.strip(), sign == ">", value)

    def met(self, outcome: Outcome) -> bool:
        """Say whether the record of a command meets it.

        Raises:
            Misconfigured: there is no record, or none yet.
            Missing: the record has no such metric, or it was not measured.
        """
        record = outcome.record
        if outcome.status == "unfinished":
            raise Misconfigured(f"It has not come to its end, so `{self.text}` cannot be judged yet.", "Give `--fail-on` when it goes on to its end.")
        if record is None:
            raise Misconfigured(f"There is no record to hold `{self.text}` against.", "Use `--fail-on` with a command that measures something.")
        value = record.metric(self.metric).value
        if value is None:
            raise Missing(f"`{self.metric}` was not measured, so `{self.text}` cannot be judged.", "See the record's findings for why.")
        return value > self.value if self.above else value < self.value
