"""`works`: import, describe, and find near-duplicates."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from assay.errors import Mismatch
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.record import Record, Table, digest_of, versions
from assay.verbs.session import Silent, builtin_works, count
from assay.works import Works
from assay.works import info as describe
from assay.works.importing import import_works as read_in
from assay.works.sources import walked


def works_import(
    source: str | Path,
    *,
    licence: str | None = None,
    creator: str | None = None,
    size: int | None = None,
    out: str | Path | None = None,
    display: Any = None,
) -> Outcome:
    """Import works from a folder with captions, JSONL, CSV, Parquet or a saved Hugging Face dataset into `out`, setting aside what cannot be used.

    Args:
        source: the folder or file.
        licence: of works that declare none; a work without a licence is quarantined.
        creator: of works that declare none.
        size: side in pixels to scale and cut images to.
        out: folder for the Parquet files.
        display: shows progress.

    Returns:
        The outcome; its record counts and names the quarantined works.

    Raises:
        Mismatch: `out` holds an earlier state of the source.
    """
    display = display or Silent()
    started = time.monotonic()
    source, out = Path(source), Path(out or "out/works")
    given = {"license": licence, "creator": creator, "size": size}
    folder = OutFolder(out, {"command": "works import", "source": str(source.resolve()), **given})
    if folder.done:
        record = Record.load(out)
        if record.digests.get("source") != fingerprint(source):
            raise Mismatch(f"{source} has changed since it was imported into {out}.", "Choose another folder with `--out`, or remove this one.")
        display.say(f"{out} is complete already")
        return _imported(out, record)
    for left in out.glob("works-*.parquet"):  # of this import, killed before it was told of
        left.unlink()
    with folder:
        report = read_in(source, out, **given, progress=lambda done, total: display("importing", done, max(done, total)))
    works = Works.read(out, images=False)
    share = f"; {report.quarantined} were set aside, each with its reason in quarantine.jsonl" if report.quarantined else ""
    record = Record(
        command="works import",
        question=f"Which works of {source.name} can be used, by whom and under which licence?",
        given=given,
        again=["works", "import", str(source), *(word for name, value in given.items() if value is not None for word in (f"--{name}", str(value)))],
        digests={"works": works.digest, "source": fingerprint(source)},
        metrics=[count("works.imported", report.imported), count("works.quarantined", report.quarantined, "lower")],
        findings=[f"{report.imported} works were imported{share}."],
        tables=[Table(title="Set aside", columns=["work", "reason"], rows=[list(row) for row in report.reasons[:200]])] if report.reasons else [],
        shows_not=["A declared licence is what the source says; nobody has checked it."],
        quarantined=report.quarantined,
        seconds=round(time.monotonic() - started, 2),
        versions=versions(),
    )
    record.save(out)
    return _imported(out, record)


def _imported(out: Path, record: Record) -> Outcome:
    return Outcome("works import", out, record, {"works": str(out)}, next=(f"assay works info {out}", f"assay run MODEL --works {out}"))


def fingerprint(source: Path) -> str:
    """Return what tells a source from the same source changed: SHA-256 of the names, sizes and times of its files."""
    files = sorted(parent / name for parent, _, names in walked(source) for name in names) if source.is_dir() else [source]
    return digest_of([str(source.resolve()), [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()]])


def works_info(path: str | Path | Works | None = None, *, out: str | Path | None = None) -> Outcome:
    """Describe works: splits, styles, groups, creators, licences."""
    return _describe("works info", path, describe.info, out or "out/works-info")


def works_duplicates(
    path: str | Path | Works | None = None,
    *,
    threshold: float = 0.05,
    index: str | Path | None = None,
    out: str | Path | None = None,
    display: Any = None,
) -> Outcome:
    """Find near-duplicate works: clusters, pairs across splits and styles.

    Args:
        path: the works; the built-in ones if None. Of files the pictures are streamed: memory does not grow with their size.
        threshold: root mean square difference of 16x16 thumbnails below which two works are near-duplicates.
        index: folder that keeps the works' thumbnails and near-duplicates, so that next time only new works are read and compared; ids are taken
            at their word. None keeps nothing.
        out: folder for the record.
        display: shows progress.

    Returns:
        The outcome; its record is that of the same works without an index.
    """
    source = None if path is None or isinstance(path, Works) else path
    find = partial(describe.duplicates, index=index, source=source, progress=display)
    return _describe("works duplicates", path, find, out or "out/works-duplicates", threshold=threshold)


def _read(path: str | Path | Works | None) -> Works:
    if isinstance(path, Works):
        return path
    return builtin_works() if path is None else Works.read(path, images=False)


def _describe(command: str, path: str | Path | Works | None, ask: Callable[..., Record], out: str | Path, **settings: float) -> Outcome:
    works = _read(path)
    folder = OutFolder(out, {"command": command, "works": works.digest, **settings})
    if folder.done:
        return Outcome(command, folder.path, Record.load(folder.path))
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    again = [] if isinstance(path, Works) else [*command.split(), *([] if path is None else [str(path)]), *flags]
    with folder:
        made = ask(works, **settings)
    record = made.model_copy(update={"command": command, "given": dict(settings), "again": again})
    record.save(folder.path)
    return Outcome(command, folder.path, record)
