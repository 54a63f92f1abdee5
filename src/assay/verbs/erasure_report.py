"""The bench of erasers as a report: from cells measured now and before, or from the results stored beside the other benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from assay.benches.erasure import ATTACKED, MODELS, SEED, About, Beside, Moves, Results, Settings, subjects
from assay.benches.erasure_chapters import chapter, verdict
from assay.concept import Kind
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.record import Picture, Record, digest_of, sha256_file, write_atomically
from assay.reports.pictures import save_picture
from assay.verbs import bench_pages as pages
from assay.verbs.bench_rows import known_rows
from assay.verbs.erasures import Bench
from assay.verbs.evaluate import judge_for
from assay.verbs.session import Session
from assay.works import Works

NAME = "erasure"
"""Of the stored files."""
LARGEST = 600_000
"""Bytes of the page of pictures."""
TITLE = "Erasers side by side, judged against retraining"
CAPTION = (
    "Under every row of the bench: a picture asked for the concept, above one asked for something else. Same prompts and seeds in a line; empty "
    "where nothing is measured or no picture was kept."
)


def measured(
    session: Session,
    works: str | Path | Works | None,
    methods: Sequence[str],
    concepts: Sequence[str],
    kind: Kind | None,
    patches: Sequence[str],
    settings: dict[str, Any],
    limit: float | None,
    stored_in: Path,
    *,
    dry_run: bool = False,
) -> Outcome:
    """Make the cells that are asked for and not there yet, and report all that are.

    Args:
        session: model, folder, seed and display.
        works: say which styles and titles there are; those of the built-in model if None.
        methods: only these erasers, `NAME@PRESET` with a preset of its own, or several joined by `+`; the models are measured too.
        concepts: only these concepts.
        kind: of concepts that are not the bench's.
        patches: NAME=PATH of models to hold erasers against.
        settings: of the cells, where they differ from the default.
        limit: stop after so many seconds, at the end of a cell.
        stored_in: the folder of stored results; their cells of the same plan are not made again.
        dry_run: plan only.

    Returns:
        The outcome; its files hold the results as they are stored.

    Raises:
        Missing: the model is not built in and no works are given.
        Misconfigured: there is no such method or setting.
    """
    table, rows = pages.works_of(session, works), known_rows(methods)
    chosen, out = pages.settings_of(Settings(), settings), Path(session.out)
    listed = pages.choose(session, table, concepts, kind, subjects(table) if session.built_in else ())
    file = file_of(stored_in, session.seed)
    if session.built_in and session.seed != SEED:
        before = [cell.concept for cell in pages.read(file, Results, "the bench of erasers").cells] if file.exists() else []
        listed = [subject for subject in listed if subject.name in (*ATTACKED, *concepts, *before)]
    given = dict(pages.named(text) for text in patches)
    bench = Bench(session, table, judge_for(session, table), listed, out.with_name(f"{out.name}-kept"), chosen, given, rows)
    pages.take(bench, file, Results, "the bench of erasers")
    cells = [(name, row) for name, row in (bench.possible if rows else bench.planned) if not concepts or name in concepts]
    cells = [(name, row) for name, row in cells if not rows or row in (*MODELS, *rows)]
    if dry_run:
        left = bench.left(cells)
        planned = session.dry_run(**bench.cost(left))
        line = f"{len(left)} of {len(cells)} cells are left to measure; a killed bench, or one stopped by `--limit`, goes on"
        return replace(planned, extra=planned.extra | {"lines": [line, *planned.extra["lines"]]})
    plan = {"command": "bench", "subject": NAME, **bench.digests, "seed": session.seed, "settings": asdict(chosen)}
    OutFolder.check(out, plan)
    bench.measure(cells, limit)
    folder, found = OutFolder(out, plan), bench.results()
    before = {place: tile for place, tile in pages.tiles_of(file.with_suffix(".png")).items() if place in bench.before}
    names, columns = [about.name for about in found.concepts], list(dict.fromkeys(row for _, row in found.planned))
    pages.keep_page(before | bench.tiles(found), names, columns, folder / f"{NAME}.png", LARGEST)
    write_atomically(folder / f"{NAME}.json", pages.lines(found))

    def pictured(about: About, where: Path) -> list[Picture]:
        image = bench.chapter_picture(about.name, found.of(about.name))
        return [] if image is None else [save_picture(image, where, "pictures.png", f"`{about.name}` under every row; same prompts and seeds.")]

    options = {"results": stored_in, "concept": list(concepts), "methods": ",".join(rows), "kind": kind, "patch": list(patches)}
    again = pages.again_of(session, NAME, works, settings, options)
    outcome = write(found, repeated(stored_in, found), beside(stored_in), folder, pictured, again, session.started)
    return replace(outcome, status="unfinished" if bench.left(cells) else "done")


def stored(results: Path, out: Path, started: float, seed: int = SEED) -> Outcome:
    """Report the stored results.

    Args:
        results: their folder.
        out: folder to write to.
        seed: whose.
        started: when the command began, by `time.monotonic`.

    Raises:
        Missing: there is no such folder, or no such results in it.
        BadInput: they cannot be read.
    """
    file, found = read(results, seed)
    others, moved = repeated(results, found), beside(results)
    more = [digest_of(one.model_dump()) for one in (*others, *moved)]
    folder = OutFolder(out, {"command": "bench", "subject": NAME, "results": sha256_file(file)} | ({"more": more} if more else {}))
    if (page := file.with_suffix(".png")).exists():
        shutil.copyfile(page, folder / f"{NAME}.png")
    again = ["bench", NAME, "--results", str(results), *([] if seed == SEED else ["--seed", str(seed)])]
    return write(found, others, moved, folder, lambda *_: [], again, started)


def read(results: Path, seed: int) -> tuple[Path, Results]:
    """Return the file of a seed's stored results, and what it holds.

    Raises:
        Missing: there is none.
        BadInput: it cannot be read.
    """
    file = file_of(results, seed)
    return file, pages.read(file, Results, "the bench of erasers")


def name_of(seed: int) -> str:
    """Return what the stored files of a seed are called."""
    return NAME if seed == SEED else f"{NAME}-seed-{seed}"


def file_of(results: Path, seed: int) -> Path:
    """Return the file of a seed's results: what is stored under its name, else what a run with that seed wrote."""
    named, plain = results / f"{name_of(seed)}.json", results / f"{NAME}.json"
    written = not named.exists() and plain.exists() and pages.read(plain, Results, "the bench of erasers").seed == seed
    return plain if written else named


def repeated(results: Path, found: Results) -> list[Results]:
    """Return the stored results of other seeds of the same bench, by seed; what they hold of other models or settings is left out.

    Raises:
        BadInput: a file cannot be read.
    """
    if found.seed != SEED:
        return []
    others = [pages.read(file, Results, "the bench of erasers") for file in sorted(results.glob(f"{NAME}-seed-*.json"))]
    return [other for _, other in sorted({other.seed: other for other in others if found.repeats(other)}.items())]


def beside(results: Path) -> list[Beside]:
    """Return what is stored of how far erasers move what was to stay, beside another seed.

    Raises:
        BadInput: it cannot be read.
    """
    file = results / "distance.json"
    return pages.read(file, Moves, "how far erasers move the rest").concepts if file.exists() else []


def write(
    results: Results,
    repeats: Sequence[Results],
    moved: Sequence[Beside],
    folder: OutFolder,
    pictured: Callable[[About, Path], list[Picture]],
    again: list[str],
    started: float,
) -> Outcome:
    """Write the record of the whole, one of every concept that was measured, and the page.

    Args:
        results: what was measured.
        repeats: the same with other seeds.
        moved: how far erasers move what was to stay.
        folder: to write to; the page of pictures lies in it already, if there is one.
        pictured: saves a concept's picture into a folder.
        again: words of the command that asks the same again.
        started: when the command began, by `time.monotonic`.
    """

    def chapter_of(about: About) -> Callable[[Path], Record]:
        return lambda where: chapter(results, about, repeats).model_copy(update={"pictures": pictured(about, where)})

    chapters = {about.name: chapter_of(about) if results.of(about.name) else None for about in results.concepts}
    complete = len(results.cells) == len(results.planned)
    again_drawn = f" {len(results.redrawn)} are of an eraser or a model made again on another machine, with the figures of the one that is gone."
    caption = CAPTION + (again_drawn if results.redrawn else "")
    return pages.write(folder, NAME, TITLE, caption, verdict(results, repeats, moved), chapters, again, started, complete=complete)
