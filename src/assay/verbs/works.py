"""`works`: import, describe, and find near-duplicates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from assay.jobs.outcome import Outcome
from assay.record import Record, Table, versions
from assay.verbs.session import Silent, builtin_works, count
from assay.works import Works
from assay.works import info as describe
from assay.works.importing import import_works as read_in


def import_works(
    source: str | Path,
    *,
    licence: str | None = None,
    creator: str | None = None,
    size: int | None = None,
    out: str | Path | None = None,
    display: Any = None,
) -> Outcome:
    """Import works from a folder with captions, JSONL, CSV or Parquet into `out`, setting aside what cannot be used.

    Args:
        source: the folder or file.
        licence: of works that declare none; a work without a licence is quarantined.
        creator: of works that declare none.
        size: side in pixels to scale and cut images to.
        out: folder for the Parquet files.
        display: shows progress.

    Returns:
        The outcome; its record counts and names the quarantined works.
    """
    display = display or Silent()
    started = time.monotonic()
    out = Path(out or "assay-out/works")
    report = read_in(
        Path(source), out, license=licence, creator=creator, size=size, progress=lambda done, total: display("importing", done, max(done, total))
    )
    works = Works.read(out)
    share = f"; {report.quarantined} were set aside, each with its reason in quarantine.jsonl" if report.quarantined else ""
    record = Record(
        command="works import",
        question=f"Which works of {Path(source).name} can be used, by whom and under which licence?",
        given={"license": licence, "creator": creator, "size": size},
        digests={"works": works.digest},
        metrics=[count("works.imported", report.imported), count("works.quarantined", report.quarantined, "lower")],
        findings=[f"{report.imported} works were imported{share}."],
        tables=[Table(title="Set aside", columns=["work", "reason"], rows=[list(row) for row in report.reasons[:200]])] if report.reasons else [],
        shows_not=["A declared licence is what the source says; nobody has checked it."],
        quarantined=report.quarantined,
        seconds=round(time.monotonic() - started, 2),
        versions=versions(),
    )
    record.save(out)
    return Outcome("works import", out, record, {"works": str(out)}, next=(f"assay works info {out}", f"assay run MODEL --works {out}"))


def info(path: str | Path | Works | None = None, *, out: str | Path | None = None) -> Outcome:
    """Describe works: splits, styles, groups, creators, licences."""
    return _describe("works info", describe.info(_read(path)), out or "assay-out/works-info")


def duplicates(path: str | Path | Works | None = None, *, threshold: float = 0.05, out: str | Path | None = None) -> Outcome:
    """Find near-duplicate works: clusters, pairs across splits and styles."""
    return _describe("works duplicates", describe.duplicates(_read(path), threshold), out or "assay-out/works-duplicates")


def _read(path: str | Path | Works | None) -> Works:
    if isinstance(path, Works):
        return path
    return builtin_works() if path is None else Works.read(path)


def _describe(command: str, record: Record, out: str | Path) -> Outcome:
    record = record.model_copy(update={"command": command})
    record.save(out)
    return Outcome(command, Path(out), record)
