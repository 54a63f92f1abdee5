"""A dossier and its records as one plain dict, ready for a template: ordered, rounded, aligned. Nothing is read or written here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from assay.record import Dossier, Entry, Metric, Picture, Record, Table
from assay.reports import digits

ROWS = 20
ROWS_WITH_PICTURES = 8
SMALLEST_RATE = 0.05
HEAD_ROLES = ("model", "works")


def summarize(dossier: Dossier, records: Sequence[Record]) -> dict[str, Any]:
    """Return what the report says, in reading order, as JSON-able values.

    Args:
        dossier: the records' list; several entries may share a stage.
        records: one per entry, in the same order.
    """
    names = list(dict.fromkeys([*dossier.stages, *(entry.stage for entry in dossier.entries)]))
    pairs = list(zip(dossier.entries, records, strict=True))
    stages = [_stage(place, name, [pair for pair in pairs if pair[0].stage == name]) for place, name in enumerate(names, 1)]
    done = [stage for stage in stages if stage["records"]]
    return {
        "title": dossier.title,
        "complete": dossier.complete,
        "stages": stages,
        "pending": [stage["name"] for stage in stages if not stage["records"]],
        "done": len(done),
        "summary": [
            {"text": found[0], "slug": stage["slug"], "number": stage["number"]}
            for stage in done
            if (found := [finding for record in stage["records"] for finding in record["findings"]])
        ],
        "digests": _head_digests(done),
    }


def single(record: Record, sha256: str) -> Dossier:
    """Return the dossier of a folder that holds one record and nothing else."""
    stage = f"{record.command.capitalize()} by {record.method}" if record.method else record.command.capitalize()
    return Dossier(title=stage, complete=True, stages=[stage], entries=[Entry(stage=stage, record="record.json", sha256=sha256)])


def rerun(record: Record) -> str:
    """Return the shell command that asks the record's question again; empty where there is none."""
    return shlex.join(["assay", *record.again]) if record.again else ""


def _stage(place: int, name: str, pairs: list[tuple[Entry, Record]]) -> dict[str, Any]:
    slug = f"stage-{place}"
    records = [_record(entry, record, f"{slug}-{number}") for number, (entry, record) in enumerate(pairs, 1)]
    return {"name": name, "number": place, "slug": slug, "records": records}


def _record(entry: Entry, record: Record, slug: str) -> dict[str, Any]:
    folder = PurePosixPath(entry.record).parent
    known = {picture.file: picture for picture in record.pictures}
    tabled = {
        cell["picture"] for table in record.tables for row in table.rows for cell in row if sum(map(_is_picture, row)) > 2 and _is_picture(cell)
    }
    return {
        "slug": slug,
        "file": entry.record,
        "sha256": entry.sha256,
        "question": record.question,
        "command": record.command,
        "method": record.method,
        "findings": record.findings,
        "shows_not": record.shows_not,
        "pictures": [{"file": str(folder / p.file), "sha256": p.sha256, "caption": p.caption} for p in record.pictures if p.file not in tabled],
        "curves": [curve.model_dump() | {"points": _points(curve.model_dump())} for curve in record.curves],
        "metrics": _metrics(record.metrics),
        "tables": [_table(table, folder, known) for table in record.tables],
        "quarantined": record.quarantined,
        "settings": _settings(record.given, record.resolved),
        "seeds": [{"role": role, "seed": str(seed)} for role, seed in record.seeds.items()],
        "digests": [{"role": role, "digest": digest} for role, digest in record.digests.items()],
        "versions": [{"package": name, "version": version} for name, version in record.versions.items()],
        "cost": _cost(record),
        "rerun": rerun(record),
    }


def _metrics(metrics: list[Metric]) -> dict[str, Any]:
    levels = {m.level for m in metrics if m.low is not None and m.high is not None}
    texts = [digits.with_interval(m.value, m.low, m.high) for m in metrics]
    pads = digits.aligned(["" if m.value is None else value for m, (value, _) in zip(metrics, texts)])
    rows = [
        {
            "name": m.name,
            "value": value if m.value is not None else "not measured",
            "pad": pad if m.value is not None else "",
            "measured": m.value is not None,
            "interval": interval,
            "level": _percent(m.level) if interval else "",
            "strip": _strip(m),
            "n": digits.number(m.n) if m.n else "",
            "chance": digits.number(m.chance) if m.chance is not None else "",
            "better": m.better if m.better != "neither" else "",
            "judge": m.judge,
        }
        for m, (value, interval), pad in zip(metrics, texts, pads)
    ]
    shown = [key for key in ("interval", "strip", "n", "chance", "better", "judge") if any(row[key] for row in rows)]
    return {"rows": rows, "shown": shown, "level": _percent(levels.pop()) if len(levels) == 1 else ""}


def _percent(level: float) -> str:
    return f"{level * 100:.6g}\u00a0%"


def _strip(m: Metric) -> dict[str, float | None] | None:
    """Where a rate lies between 0 and 1; None for what is no rate."""
    if m.value is None or m.low is None or m.high is None or not 0 <= m.low <= m.value <= m.high <= 1:
        return None
    chance = m.chance if m.chance is not None and 0 <= m.chance <= 1 else None
    return {"value": m.value, "low": m.low, "high": m.high, "chance": chance} if m.high >= SMALLEST_RATE or chance is not None else None


def _table(table: Table, folder: PurePosixPath, known: dict[str, Picture]) -> dict[str, Any]:
    width = max([len(table.columns), *(len(row) for row in table.rows)])
    rows = [row + [None] * (width - len(row)) for row in table.rows]
    heads = table.columns + [""] * (width - len(table.columns))
    numeric = [bool(rows) and all(_is_number(row[i]) or row[i] is None for row in rows) for i in range(width)]
    columns = [[row[i] for row in rows] for i in range(width)]
    texts = [digits.column(cells) if is_numeric else [_text(cell) for cell in cells] for cells, is_numeric in zip(columns, numeric)]
    pads = [digits.aligned(cells) if is_numeric else [""] * len(cells) for cells, is_numeric in zip(texts, numeric)]
    shown = ROWS_WITH_PICTURES if any(_is_picture(cell) for row in rows for cell in row) else ROWS
    made = []
    for place, row in enumerate(rows):
        label = next((texts[i][place] for i in range(width) if not _is_picture(row[i]) and texts[i][place]), "")
        made.append([
            _thumbnail(row[i], folder, known, f"{heads[i]}: {label}") if _is_picture(row[i]) else {"text": texts[i][place], "pad": pads[i][place]}
            for i in range(width)
        ])
    return {
        "title": table.title,
        "columns": [{"name": name, "numeric": is_numeric} for name, is_numeric in zip(heads, numeric)],
        "rows": made[:shown],
        "more": made[shown:],
    }


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _is_picture(cell: Any) -> bool:
    return isinstance(cell, dict) and isinstance(cell.get("picture"), str)


def _thumbnail(cell: dict[str, Any], folder: PurePosixPath, known: dict[str, Picture], otherwise: str) -> dict[str, Any]:
    picture = known.get(cell["picture"])
    return {
        "file": str(folder / cell["picture"]),
        "sha256": picture.sha256 if picture else cell.get("sha256", ""),
        "caption": picture.caption if picture else str(cell.get("caption", otherwise)),
    }


def _text(cell: Any) -> str:
    if cell is None:
        return digits.NONE
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int | float):
        return digits.number(cell)
    if isinstance(cell, list | tuple):
        return ", ".join(_text(item) for item in cell)
    return json.dumps(cell, ensure_ascii=False, default=str) if isinstance(cell, dict) else str(cell)


def _points(curve: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"line": name, "x": digits.number(x), "y": value, "interval": interval}
        for name, points in curve["lines"].items()
        for x, y, low, high in points
        for value, interval in [digits.with_interval(y, low, high)]
    ]


def _settings(given: dict[str, Any], resolved: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"name": key, "given": _exact(given[key]) if key in given else "", "resolved": _exact(resolved[key]) if key in resolved else ""}
        for key in dict.fromkeys([*given, *resolved])
    ]


def _exact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cost(record: Record) -> list[dict[str, str]]:
    rows = {
        "Wall time": digits.duration(record.seconds) if record.seconds else "",
        "Denoiser passes": digits.number(record.passes) if record.passes else "",
        "Peak memory": digits.size(record.peak_memory) if record.peak_memory else "",
    }
    return [{"name": name, "value": value} for name, value in rows.items() if value]


def _head_digests(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[int]] = {}
    for stage in stages:
        for record in stage["records"]:
            for item in record["digests"]:
                if item["role"].partition(":")[0] in HEAD_ROLES:
                    places = found.setdefault((item["role"], item["digest"]), [])
                    places += [stage["number"]] if stage["number"] not in places else []
    ordered = sorted(found.items(), key=lambda item: HEAD_ROLES.index(item[0][0].partition(":")[0]))
    return [{"role": role, "digest": digest, "stages": places} for (role, digest), places in ordered]
