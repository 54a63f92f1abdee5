"""`methods`: the table of methods, and on which models each was seen to work."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from assay import settings as method_settings
from assay.errors import Misconfigured
from assay.jobs.outcome import Outcome


def table(subject: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of `methods.json`, all or of one subject or verb.

    Raises:
        Misconfigured: there is no such subject.
    """
    rows = json.loads((files("assay") / "methods.json").read_text())
    found = [row for row in rows if subject in (None, row["subject"], row["verb"])]
    if not found:
        subjects = sorted({row["subject"] for row in rows} | {row["verb"] for row in rows})
        raise Misconfigured(f"There is no subject `{subject}`.", f"Choose one of {', '.join(subjects)}.")
    return found


def method_row(subject: str, name: str) -> dict[str, Any]:
    """Return the row of one method.

    Raises:
        Misconfigured: the subject has no such method.
    """
    rows = table(subject)
    for row in rows:
        if row["name"] == name:
            return row
    raise Misconfigured(f"There is no method `{name}` to {rows[0]['verb']} by.", f"Choose one of {', '.join(row['name'] for row in rows)}.")


def methods(subject: str | None = None) -> Outcome:
    """List methods with what they return, where they work, and what they do."""
    rows = table(subject)
    lines = []
    for row in rows:
        works = ", ".join(kind for kind, state in row["works_on"].items() if state == "yes")
        lines += [f"{row['verb']} --method {row['name']}  ({row['returns']}; {works}; presets {', '.join(row['presets'])})", f"    {row['summary']}"]
    full = [row | {"settings": [vars(field) for field in method_settings.read(row["module"]).fields]} for row in rows]
    return Outcome("methods", None, None, extra={"methods": full, "lines": lines})
