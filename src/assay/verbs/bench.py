"""`bench`: what was measured of the built-in world, of erasers side by side, or of them under attack, as one report; from stored results or anew."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.benches import world
from assay.concept import Kind
from assay.denoiser import Denoiser
from assay.errors import Misconfigured, Missing, Unsupported
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.record import Dossier, Entry, Record, sha256_file, versions
from assay.reports.render import write_report
from assay.verbs import attacks_report, erasure_report
from assay.verbs.session import Session, Silent, peak_memory
from assay.works import Works

SUBJECTS = ("world", "erasure", "attacks")
OF_WORLD = ("chapter", "retrain")
"""Options of the bench of that name."""
OF_CELLS = ("methods", "attacks", "concept", "kind", "limit", "patch", "model", "works", "settings")
"""Options of the others that say what to measure."""
FOREIGN = {"world": ("measure", "seed", *OF_CELLS), "erasure": (*OF_WORLD, "attacks"), "attacks": OF_WORLD}
"""Options that a bench does not have."""


def bench(
    subject: str = "world",
    *,
    results: str | Path = "benchmarks",
    chapter: Sequence[str] = (),
    retrain: bool = False,
    measure: bool = False,
    methods: str | Sequence[str] | None = None,
    attacks: str | Sequence[str] | None = None,
    concept: Sequence[str] = (),
    kind: Kind | None = None,
    limit: float | None = None,
    patches: Sequence[str] = (),
    model: str | Path | Denoiser = "emoji64",
    works: str | Path | Works | None = None,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    dry_run: bool = False,
    out: str | Path | None = None,
    display: Any = None,
) -> Outcome:
    """Write `report.html`, `dossier.json` and one record a chapter.

    What follows `retrain` is of the benches of erasers and of attacks, which without `measure` show the stored results.

    Args:
        subject: what to put side by side: `world`, `erasure`, every eraser, or `attacks`, every attack on every eraser.
        results: folder of the stored results, with the scripts that wrote them. Cells of erasers and attacks that are stored there are not made
            again, on whichever machine they were made, if all that they depend on is the same.
        chapter: only these; all by default.
        retrain: run the scripts first; they keep what they have in `out`-kept and go on from there when killed.
        measure: make the cells that are not there yet; they are kept in `out`-kept, and the report is made from those that are.
        methods: only these erasers, separated by commas, `NAME@PRESET` with a preset of its own, several joined by `+`; the base and the models given
            are measured too.
        attacks: only these attacks, separated by commas.
        concept: only these: concepts of the bench, or styles and objects that the works know.
        kind: of concepts that are not the bench's.
        limit: stop after so many seconds, at the end of a cell.
        patches: NAME=PATH of models to hold erasers against: `again`, `reference`, or a training of the built-in world such as `no-noto`.
        model: whose concepts are erased.
        works: say which styles and titles there are.
        settings: of the cells, where they differ from `Settings` of `assay.benches.erasure` or `assay.benches.attacks`.
        seed: of everything random. Of the erasers of the built-in model, another seed than 0 repeats what is attacked; what `results` holds of it as
            `erasure-seed-N.json` stands beside the whole.
        device: a torch device.
        dry_run: plan only.
        out: folder to write to.
        display: shows progress.

    Returns:
        The outcome; `outcome.files["report"]` is the page.

    Raises:
        Misconfigured: there is no such subject or chapter, or something is said of another subject, or of a measurement that is not asked for.
        Missing: there is no folder of results, none of this seed, or a script of it failed.
        Unsupported: what training anew takes is asked for beforehand.
    """
    display, started = display or Silent(), time.monotonic()
    if subject not in SUBJECTS:
        raise Misconfigured(f"There is no bench `{subject}`.", f"There is {', '.join(SUBJECTS)}.")
    said: dict[str, Any] = {"chapter": chapter, "retrain": retrain, "measure": measure, "seed": seed, "methods": methods, "attacks": attacks}
    said |= {"concept": concept, "kind": kind, "limit": limit is not None, "patch": patches, "settings": settings}
    said |= {"model": model != "emoji64", "works": works is not None}
    _refuse(subject, [name for name, value in said.items() if value])
    results, out = Path(results), Path(out or f"out/bench-{subject}{f'-seed-{seed}' if seed and subject == 'erasure' else ''}")
    if subject != "world":
        if not measure:
            report = erasure_report if subject == "erasure" else attacks_report
            if dry_run:
                file, _ = report.read(results, seed)
                return _rehearse([one for one in (file, file.with_suffix(".png")) if one.exists()])
            return report.stored(results, out, started, seed)
        session, rows, given = Session("bench", model, out, seed, device, display=display), _listed(methods), settings or {}
        if subject == "erasure":
            return erasure_report.measured(session, works, rows, concept, kind, patches, given, limit, results, dry_run=dry_run)
        return attacks_report.measured(session, works, rows, _listed(attacks), concept, kind, patches, given, limit, results, dry_run=dry_run)
    names = list(chapter) or list(world.QUESTIONS)
    if unknown := [name for name in names if name not in world.QUESTIONS]:
        raise Misconfigured(f"The bench has no chapter `{unknown[0]}`.", f"It has {', '.join(world.QUESTIONS)}.")
    if not results.is_dir():
        raise Missing(f"There are no results at {results}.", "Give the folder `benchmarks` of a checkout with `--results`.")
    if dry_run and retrain:
        raise Unsupported("How long training anew takes is not known beforehand.", "Leave out `--dry-run`: killed, it goes on where it was.")
    if dry_run:
        return _rehearse([file for name in names for file in results.glob(f"{name}.*") if file.suffix != ".py"])
    if retrain:
        for name in names:
            display.say(f"measuring {name}")
            script, *words = world.scripts(out.with_name(f"{out.name}-kept").absolute())[name]
            if subprocess.run([sys.executable, str(results / script), *words], stdout=sys.stderr, check=False).returncode:
                raise Missing(f"{results / script} did not end well, so {name} has no new results.", "See what it printed; it goes on where it was.")
    stored = {name: sha256_file(file) for name in names if (file := results / f"{name}.json").exists()}
    folder = OutFolder(out, {"command": "bench", "subject": subject, "chapters": names, "results": stored})
    entries, records = [], []
    for place, name in enumerate(names):
        record = world.chapter(name, results, folder / name)
        record.save(folder / name)
        records.append(record)
        entries.append(Entry(stage=name, record=f"{name}/record.json", sha256=sha256_file(folder / name / "record.json")))
        display("chapters", place + 1, len(names))
    Dossier(title="What is true in the built-in world", complete=True, stages=names, entries=entries).save(folder.path)
    write_report(folder.path)
    whole = Record(
        command="bench",
        question="What is true in the built-in world?",
        method=subject,
        again=["bench", subject, "--results", str(results), *(word for name in chapter for word in ("--chapter", name))],
        metrics=[
            metric.model_copy(update={"name": f"{name}.{metric.name}"})
            for name, record in zip(names, records, strict=True)
            for metric in record.metrics
        ],
        findings=[f"{name}: {record.findings[0]}" for name, record in zip(names, records, strict=True) if record.findings],
        digests=stored,
        seconds=round(time.monotonic() - started, 2),
        versions=versions(),
    )
    whole.save(folder.path)
    files = {"record": str(folder / "record.json"), "dossier": str(folder / "dossier.json"), "report": str(folder / "report.html")}
    return Outcome("bench", folder.path, whole, files)


def _listed(names: str | Sequence[str] | None) -> list[str]:
    """Return names given as a list or separated by commas."""
    return [name.strip() for name in (names.split(",") if isinstance(names, str) else names or ()) if name.strip()]


def _refuse(subject: str, given: Sequence[str]) -> None:
    """Raise if an option was given that would have no effect.

    Raises:
        Misconfigured: it is of another bench, or says what to measure where nothing is measured.
    """
    for name in given:
        if name in FOREIGN[subject]:
            others = " or ".join(f"`assay bench {other}`" for other in SUBJECTS if name not in FOREIGN[other])
            raise Misconfigured(f"The bench `{subject}` has no `--{name}`.", f"Leave it out, or ask for {others}.")
        if name in OF_CELLS and "measure" not in given:
            raise Misconfigured(f"`--{name}` says what to measure, and nothing is measured.", "Add `--measure`, or leave it out.")


def _rehearse(files: Sequence[Path]) -> Outcome:
    """Plan a report that makes no pass of the denoiser."""
    plan = {"passes": 0, "seconds": 1.0, "peak_memory": peak_memory()}
    line = f"plan: no passes of the denoiser, {len(files)} files, about 1 s, {plan['peak_memory'] / 2**20:.0f} MiB"
    return Outcome("bench", None, None, extra={"plan": plan, "lines": [line]})
