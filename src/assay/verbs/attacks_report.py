"""The bench of attacks as a report: from cells measured now and before, or from the results stored beside the other benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from assay.benches import erasure
from assay.benches.attacks import MODELS, SUBJECTS, About, Results, Settings
from assay.benches.attacks_chapters import chapter, verdict
from assay.concept import Kind
from assay.errors import Missing
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.record import Picture, Record, digest_of, sha256_file, write_atomically
from assay.reports.pictures import save_picture
from assay.verbs import bench_pages as pages
from assay.verbs.attacks import Bench
from assay.verbs.bench_rows import known_rows
from assay.verbs.erasure_report import NAME as ERASURE
from assay.verbs.evaluate import judge_for
from assay.verbs.methods import method_row
from assay.verbs.session import Session, bare_speed
from assay.works import Works

NAME = "attacks"
"""Of the stored files."""
LARGEST = 250_000
"""Bytes of the page of pictures."""
TITLE = "Does it stay out? Erasers under attack, beside models that never saw the concept"
CAPTION = "under every row and attack: the picture that brings most of it back, with what the model was told. Red frame: the judge names the concept."


def measured(
    session: Session,
    works: str | Path | Works | None,
    methods: Sequence[str],
    attacks: Sequence[str],
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
        methods: only these erasers, `NAME@PRESET` with a preset of its own, or several joined by `+`; the base and the reference are attacked too.
        attacks: only these attacks.
        concepts: only these concepts.
        kind: of concepts that are not the bench's.
        patches: NAME=PATH of models to hold erasers against.
        settings: of the cells, where they differ from the default.
        limit: stop after so many seconds, at the end of a cell.
        stored_in: the folder of stored results; their cells of the same plan are not made again. Those of the bench of erasers may be there too.
        dry_run: plan only.

    Returns:
        The outcome; its files hold the results as they are stored.
    """
    table, rows = pages.works_of(session, works), known_rows(methods)
    for name in attacks:
        method_row("attacks", name)
    chosen, out = pages.settings_of(Settings(), settings), Path(session.out)
    listed = pages.choose(session, table, concepts, kind, SUBJECTS)
    given = dict(pages.named(text) for text in patches)
    bench = Bench(session, table, judge_for(session, table), listed, out.with_name(f"{out.name}-kept"), chosen, given, rows)
    pages.take(bench, stored_in / f"{NAME}.json", Results, "the bench of attacks")
    cells = [cell for cell in (bench.possible if rows else bench.planned) if not concepts or cell[0] in concepts]
    cells = [cell for cell in cells if (not rows or cell[1] in (*MODELS, *rows)) and (not attacks or cell[2] in attacks)]
    if dry_run:
        left = bench.left(cells)
        planned = session.dry_run(**bench.cost(left)).extra["plan"]
        passes, seconds = bench.searching(left, bare_speed(session.denoiser)[0])
        planned |= {"passes": planned["passes"] + passes, "seconds": round(planned["seconds"] + seconds, 1)}
        lines = [
            f"{len(left)} of {len(cells)} cells are left to measure; a killed bench, or one stopped by `--limit`, goes on",
            f"plan: at most {planned['passes']} passes of the denoiser, about {planned['seconds']:.0f} s, {planned['peak_memory'] / 2**20:.0f} MiB; "
            f"a search ends after {chosen.budget:g} s",
        ]
        return Outcome("bench", None, None, extra={"plan": planned, "lines": lines})
    plan = {"command": "bench", "subject": NAME, **bench.digests, "seed": session.seed, "settings": asdict(chosen)}
    OutFolder.check(out, plan)
    bench.measure(cells, limit)
    folder, found = OutFolder(out, plan), bench.results()
    page = stored_in / f"{NAME}.png"

    def tiles_of(name: str) -> pages.Tiles:
        before = {place: tile for place, tile in pages.tiles_of(page, name).items() if (name, *place) in bench.before}
        return before | bench.tiles(found, name)

    tiles = {about.name: tiles_of(about.name) for about in found.concepts}
    name = max(found.concepts, key=lambda about: len(tiles[about.name]) / (len(about.rows) * len(found.attacks))).name
    found = found.model_copy(update={"shown": name if tiles[name] else ""})
    pages.keep_page(tiles[name], list(found.of(name)), found.attacks, folder / page.name, LARGEST, name)
    write_atomically(folder / f"{NAME}.json", pages.lines(found))

    def pictured(about: About, where: Path) -> list[Picture]:
        image = pages.sheet(tiles[about.name], list(found.of(about.name)), found.attacks)
        return [save_picture(image, where, "pictures.png", f"`{about.name}` {CAPTION}")] if tiles[about.name] else []

    options = {
        "results": stored_in,
        "concept": list(concepts),
        "methods": ",".join(rows),
        "attacks": ",".join(attacks),
        "kind": kind,
        "patch": list(patches),
    }
    again = pages.again_of(session, NAME, works, settings, options)
    outcome = write(found, erasers(stored_in), other_references(stored_in), folder, pictured, again, session.started)
    return replace(outcome, status="unfinished" if bench.left(cells) else "done")


def erasers(results: Path) -> erasure.Results | None:
    """Return the stored results of the bench of erasers, if there are any."""
    file = results / f"{ERASURE}.json"
    return pages.read(file, erasure.Results, "the bench of erasers") if file.exists() else None


def other_references(results: Path) -> list[Results]:
    """Return what is stored of the same attacks on other trainings of the references."""
    return [pages.read(file, Results, "the bench of attacks") for file in sorted(results.glob(f"{NAME}-*-reference.json"))]


def read(results: Path, seed: int) -> tuple[Path, Results]:
    """Return the file of the stored results, and what it holds.

    Raises:
        Missing: there is none, or it was measured with another seed than the one that is asked for.
        BadInput: it cannot be read.
    """
    file = results / f"{NAME}.json"
    found = pages.read(file, Results, "the bench of attacks")
    if seed not in (erasure.SEED, found.seed):
        raise Missing(f"{file} was measured with the seed {found.seed}, not {seed}.", "Measure it with `--measure`, or leave out `--seed`.")
    return file, found


def stored(results: Path, out: Path, started: float, seed: int = erasure.SEED) -> Outcome:
    """Report the stored results.

    Args:
        results: their folder.
        out: folder to write to.
        started: when the command began, by `time.monotonic`.
        seed: whose.

    Raises:
        Missing: there is no such folder, or no such results in it.
        BadInput: they cannot be read.
    """
    (file, found), beside, others = read(results, seed), erasers(results), other_references(results)
    plan = {"command": "bench", "subject": NAME, "results": sha256_file(file)}
    plan |= {} if beside is None else {"erasers": sha256_file(results / f"{ERASURE}.json")}
    folder = OutFolder(out, plan | ({"others": [digest_of(one.model_dump()) for one in others]} if others else {}))
    if (page := results / f"{NAME}.png").exists():
        shutil.copyfile(page, folder / page.name)
    again = ["bench", NAME, "--results", str(results), *([] if seed == erasure.SEED else ["--seed", str(seed)])]
    return write(found, beside, others, folder, lambda *_: [], again, started)


def write(
    results: Results,
    beside: erasure.Results | None,
    others: Sequence[Results],
    folder: OutFolder,
    pictured: Callable[[About, Path], list[Picture]],
    again: list[str],
    started: float,
) -> Outcome:
    """Write the record of the whole, one of every concept that was measured, and the page.

    Args:
        results: what was measured.
        beside: the bench of erasers.
        others: the same attacks on other trainings of the references.
        folder: to write to; the page of pictures lies in it already, if there is one.
        pictured: saves a concept's picture into a folder.
        again: words of the command that asks the same again.
        started: when the command began, by `time.monotonic`.
    """

    def chapter_of(about: About) -> Callable[[Path], Record]:
        return lambda where: chapter(results, about, beside, others).model_copy(update={"pictures": pictured(about, where)})

    chapters = {about.name: chapter_of(about) if results.of(about.name) else None for about in results.concepts}
    complete = len(results.cells) == results.planned
    caption = f"`{results.shown}`, of whose cells most have their picture at hand, {CAPTION}"
    whole = verdict(results, beside, others)
    return pages.write(folder, NAME, TITLE, caption, whole, chapters, again, started, complete=complete)
