"""The bench of erasers as a report: from cells measured now and before, or from the results stored beside the other benchmarks."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from assay.benches.erasure import BASE, MODELS, About, Results, Settings, Subject, subjects
from assay.benches.erasure_chapters import chapter, verdict
from assay.concept import Kind
from assay.denoiser import Denoiser
from assay.errors import BadInput, Misconfigured, Missing
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.record import Dossier, Entry, Picture, sha256_file, write_atomically
from assay.reports.pictures import save_picture
from assay.reports.render import write_report
from assay.verbs.erasures import Bench
from assay.verbs.evaluate import judge_for
from assay.verbs.methods import method_row
from assay.verbs.session import Session, peak_memory, works_for
from assay.works import Works
from assay.works import concepts as known

NAME = "erasure"
"""Of the stored files."""
LARGEST = 600_000
"""Bytes of the page of pictures."""
CAPTION = "Under every row of the bench: a picture asked for the concept, above one asked for something else. Same prompts and seeds in a line."


def measured(
    session: Session,
    works: str | Path | Works | None,
    methods: Sequence[str],
    concepts: Sequence[str],
    kind: Kind | None,
    patches: Sequence[str],
    settings: dict[str, Any],
    limit: float | None,
    *,
    dry_run: bool = False,
) -> Outcome:
    """Make the cells that are asked for and not there yet, and report all that are.

    Args:
        session: model, folder, seed and display.
        works: say which styles and titles there are; those of the built-in model if None.
        methods: only these erasers.
        concepts: only these concepts.
        kind: of concepts that are not the bench's.
        patches: NAME=PATH of models to hold erasers against.
        settings: of the cells, where they differ from the default.
        limit: stop after so many seconds, at the end of a cell.
        dry_run: plan only.

    Returns:
        The outcome; its files hold the results as they are stored.

    Raises:
        Missing: the model is not built in and no works are given.
        Misconfigured: there is no such method or setting.
    """
    table = works_for(session, works)
    if table is None:
        raise Missing("The bench needs works that say which titles and styles there are.", "Give them with `--works`.")
    for name in methods:
        method_row("erasure", name)
    try:
        chosen = replace(Settings(), **settings)
    except TypeError as error:
        raise Misconfigured(f"The cells have no such setting: {error}.", f"They have {', '.join(asdict(Settings()))}.") from error
    out = Path(session.out)
    listed = choose(session, table, concepts, kind)
    given = dict(_named(text) for text in patches)
    bench = Bench(session, table, judge_for(session, table), listed, out.with_name(f"{out.name}-kept"), chosen, given)
    cells = [(name, row) for name, row in bench.planned if not concepts or name in concepts]
    cells = [(name, row) for name, row in cells if not methods or row in MODELS or row in methods]
    if dry_run:
        left = bench.left(cells)
        planned = session.dry_run(**bench.cost(left))
        line = f"{len(left)} of {len(cells)} cells are left to measure; a killed bench, or one stopped by `--limit`, goes on"
        return replace(planned, extra=planned.extra | {"lines": [line, *planned.extra["lines"]]})
    plan = {"command": "bench", "subject": NAME, **bench.digests, "seed": session.seed, "settings": asdict(chosen)}
    OutFolder.check(out, plan)
    bench.measure(cells, limit)
    folder, found = OutFolder(out, plan), bench.results()
    data = _small_png(bench.page(found))
    write_atomically(folder / f"{NAME}.png", data)
    write_atomically(folder / f"{NAME}.json", _lines({"format": found.format, **found.model_dump(exclude_defaults=True)}))

    def pictured(about: About, where: Path) -> list[Picture]:
        image = bench.chapter_picture(about.name, found.of(about.name))
        return [] if image is None else [save_picture(image, where, "pictures.png", f"`{about.name}` under every row; same prompts and seeds.")]

    again = ["bench", NAME, "--measure", "--model", str(session.model), "--seed", str(session.seed)]
    again += [word for name in concepts for word in ("--concept", name)] + (["--methods", ",".join(methods)] if methods else [])
    again += ["--kind", kind] if kind else []
    again += [word for text in patches for word in ("--patch", text)] + ([] if works is None else ["--works", str(works)])
    if isinstance(session.model, Denoiser) or isinstance(works, Works) or settings:
        again = []  # objects of Python have no name on the command line
    return write(found, folder, pictured, again, session.started)


def choose(session: Session, works: Works, names: Sequence[str], kind: Kind | None) -> list[Subject]:
    """Return the concepts of a bench: the built-in world's, or those that are named where any is not among them.

    Raises:
        Misconfigured: the model is not built in, and none is named; or the kind is neither style nor object.
    """
    own = {subject.name: subject for subject in subjects(works)} if session.built_in else {}
    if not own and not names:
        raise Misconfigured("The bench has concepts of the built-in world alone.", "Name styles or objects of your works with `--concept`.")
    if all(name in own for name in names):
        return list(own.values())
    if kind not in ("style", "object", None):
        raise Misconfigured(f"The bench measures styles and objects of your own works; got the kind `{kind}`.", "Leave out `--kind`.")
    styles = known.styles(works)
    return [own.get(name) or Subject(name, kind or ("style" if name in styles else "object"), name, "") for name in dict.fromkeys(names)]


def stored(results: Path, out: Path, started: float) -> Outcome:
    """Report the stored results.

    Args:
        results: their folder.
        out: folder to write to.
        started: when the command began, by `time.monotonic`.

    Raises:
        Missing: there is no such folder, or no such results in it.
        BadInput: they cannot be read.
    """
    file = results / f"{NAME}.json"
    if not file.exists():
        raise Missing(f"There are no results of the bench of erasers at {file}.", "Measure it with `--measure`: hours; it goes on where it was.")
    try:
        found = Results.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise BadInput(f"{file} cannot be read: {error.errors()[0]['msg']}.", "It may be damaged, or of another version; measure anew.") from error
    folder = OutFolder(out, {"command": "bench", "subject": NAME, "results": sha256_file(file)})
    if (page := results / f"{NAME}.png").exists():
        shutil.copyfile(page, folder / page.name)
    return write(found, folder, lambda *_: [], ["bench", NAME, "--results", str(results)], started)


def write(results: Results, folder: OutFolder, pictured: Callable[[About, Path], list[Picture]], again: list[str], started: float) -> Outcome:
    """Write the record of the whole, one of every concept that was measured, and the page.

    Args:
        results: what was measured.
        folder: to write to; the page of pictures lies in it already, if there is one.
        pictured: saves a concept's picture into a folder.
        again: words of the command that asks the same again.
        started: when the command began, by `time.monotonic`.
    """
    page = folder / f"{NAME}.png"
    pictures = [Picture(file=page.name, sha256=sha256_file(page), caption=CAPTION)] if page.exists() else []
    whole = verdict(results).model_copy(
        update={"pictures": pictures, "again": again, "seconds": round(time.monotonic() - started, 2), "peak_memory": peak_memory()}
    )
    whole.save(folder.path)
    entries = [Entry(stage="All concepts", record="record.json", sha256=sha256_file(folder / "record.json"))]
    for number, about in enumerate(results.concepts, 1):
        if results.of(about.name):
            name = f"concept-{number}"
            record = chapter(results, about)
            record.model_copy(update={"pictures": pictured(about, folder / name)}).save(folder / name)
            entries.append(Entry(stage=about.name, record=f"{name}/record.json", sha256=sha256_file(folder / name / "record.json")))
    stages = ["All concepts", *(about.name for about in results.concepts)]
    complete = len(results.cells) == len(results.planned)
    Dossier(title="Erasers side by side, judged against retraining", complete=complete, stages=stages, entries=entries).save(folder.path)
    write_report(folder.path)
    files = {"record": str(folder / "record.json"), "dossier": str(folder / "dossier.json"), "report": str(folder / "report.html")}
    files |= {"results": str(folder / f"{NAME}.json")} if (folder / f"{NAME}.json").exists() else {}
    return Outcome("bench", folder.path, whole, files)


def _named(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not (name and sign and path) or name == BASE:
        raise Misconfigured(f"`{text}` names no model to hold erasers against.", "Write NAME=PATH, such as `again=out/retrain-again`.")
    return name, Path(path)


def _lines(body: dict[str, Any]) -> bytes:
    """Return the results as JSON with a line for every concept and cell, so that what a new measurement changed can be seen."""

    def text(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return json.dumps(value)
        return "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"

    return ("{\n " + ",\n ".join(f"{json.dumps(key)}: {text(value)}" for key, value in body.items()) + "\n}\n").encode()


def _small_png(image: Image.Image) -> bytes:
    """Return the picture as a PNG of at most `LARGEST` bytes: in fewer and fewer colours, and then smaller."""
    colours = 256
    while True:
        buffer = io.BytesIO()
        image.quantize(colours).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST:
            return buffer.getvalue()
        if colours > 32:
            colours //= 2
        else:
            image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
