"""`run`: the main job. Works, duplicates, memorisation, erasure, attacks, quality; one record a stage, one signed report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from assay.denoiser import Denoiser
from assay.errors import AssayError, Mismatch, Missing, Unsupported
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.memorization import nearest
from assay.record import Dossier, Entry, Record, sha256_file
from assay.reports.render import write_report
from assay.reports.signing import check_key, public_key_path, sign, verify_own
from assay.verbs.attack_stage import attack_object, attack_style
from assay.verbs.methods import method_row
from assay.verbs.plan import ATTACKS, METHODS, Plan
from assay.verbs.session import Session, Silent, works_for
from assay.verbs.stages import MainJob
from assay.works import Works

STAGES = ("first look", "works", "duplicates", "memorisation", "style erased", "object erased", "style attacked", "object attacked", "quality")


def run(
    model: str | Path | Denoiser = "emoji64",
    *,
    works: str | Path | Works | None = None,
    plan: str | Path | Plan | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    key: str | Path | None = None,
    dry_run: bool = False,
    display: Any = None,
) -> Outcome:
    """Assay a model and leave a dossier: `report.html`, `dossier.json`, the records, and a signed manifest.

    Args:
        model: a built-in name, a folder, a hub id or a loaded denoiser.
        works: the works to look for; those of the built-in model by default.
        plan: numbers to override.
        out: folder to write to; the same call goes on where it stopped.
        seed: of everything random.
        device: a torch device.
        key: private key to sign with; one is made on first use.
        dry_run: plan only.
        display: shows progress.

    Returns:
        The outcome; `outcome.files["report"]` is the page.

    Raises:
        Missing: the model is not built in and no works are given.
        Misconfigured: the model cannot be sampled in as many steps as the plan says.
        Mismatch: the folder was finished and signed, or a stage's record was written, and something in it changed since.
    """
    session = Session("run", model, out or "assay-out", seed, device, (), display or Silent())
    session.ask(works=works, plan=plan)
    numbers = plan if isinstance(plan, Plan) else Plan.read(plan)
    table = works_for(session, works)
    if table is None:
        raise Missing("A run needs works to look for.", "Give them with `--works`; `assay works import` makes them from a folder.")
    cost = _cost(session, table, numbers)  # also checks the plan's settings
    if dry_run:
        return session.dry_run(**cost)
    settings = session.plan(works=table.digest, **asdict(numbers))
    OutFolder.check(Path(session.out), settings)
    job = MainJob(session, table, numbers, Path(session.out))
    job.check()
    for steps in (numbers.steps, numbers.audit.steps):
        session.check(steps)
    check_key(session.out, key)
    folder = session.folder(settings)
    if (folder / "manifest.json").exists():
        verify_own(folder.path, key)
        session.display.say(f"{folder.path} is complete already")
        return _outcome(session, folder, key)
    _check_written(folder)
    seen = (job.first_look, job.describe_works, job.find_duplicates, job.memorised, job.erase_style, job.erase_object)
    work: dict[str, Any] = dict(zip(STAGES, (*seen, partial(attack_style, job), partial(attack_object, job), job.quality), strict=True))
    stages = [stage for stage in work if numbers.attacked or not stage.endswith("attacked")]
    title = f"What {session.denoiser.name} learned"
    for number, stage in enumerate(stages):
        out_of_stage = folder / stage.replace(" ", "-")
        if not (out_of_stage / "record.json").exists():
            session.display.say(f"stage {number + 1} of {len(stages)}: {stage}")
            before, passes = session.record("").seconds, session.denoiser.passes
            with folder:
                try:
                    record = work[stage](out_of_stage)
                except Unsupported as error:
                    record = _unanswered(session, stage, error)
            timed = {"seconds": round(session.record("").seconds - before, 2), "passes": session.denoiser.passes - passes}
            record.model_copy(update=timed).save(out_of_stage)
        shutil.rmtree(out_of_stage / "shards", ignore_errors=True)
        _write_dossier(folder, title, stages, number + 1)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    _write_summary(session, folder, stages, numbers)
    sign(folder.path, key)
    session.display.say(f"report: {folder / 'report.html'}")
    return _outcome(session, folder, key)


def _outcome(session: Session, folder: OutFolder, key: str | Path | None) -> Outcome:
    return session.outcome(Record.load(folder.path), next=(f"assay report {folder.path} --verify --key {public_key_path(key)}",))


def _check_written(folder: OutFolder) -> None:
    """See that every stage's record is the one that the unfinished dossier lists.

    Raises:
        Mismatch: one was changed.
    """
    if not (folder / "dossier.json").exists():
        return
    for entry in Dossier.load(folder.path).entries:
        if (folder / entry.record).exists() and sha256_file(folder / entry.record) != entry.sha256:
            raise Mismatch(f"{folder / entry.record} was changed since it was written.", "Remove its folder to have the stage done again.")


def _unanswered(session: Session, stage: str, error: AssayError) -> Record:
    return session.record(f"{stage.capitalize()}?", findings=[f"This could not be answered: {error.message} {error.hint}"], shows_not=["Anything."])


def _write_dossier(folder: OutFolder, title: str, stages: Sequence[str], done: int) -> None:
    entries = []
    for stage in stages[:done]:
        name = f"{stage.replace(' ', '-')}/record.json"
        entries.append(Entry(stage=stage, record=name, sha256=sha256_file(folder / name)))
    Dossier(title=title, complete=done == len(stages), stages=list(stages), entries=entries).save(folder.path)
    write_report(folder.path)


def _write_summary(session: Session, folder: OutFolder, stages: Sequence[str], numbers: Plan) -> None:
    if (folder / "record.json").exists():
        return
    records = [Record.load(folder / stage.replace(" ", "-")) for stage in stages]
    metrics = [
        metric.model_copy(update={"name": f"{stage.replace(' ', '_')}.{metric.name}"})
        for stage, record in zip(stages, records, strict=True)
        for metric in record.metrics
    ]
    summary = session.record(
        "What did the model learn, and what can be taken out of it?",
        resolved=asdict(numbers),
        metrics=metrics,
        findings=[record.findings[0] for record in records if record.findings],
        quarantined=sum(record.quarantined for record in records),
    )
    total = {"seconds": round(sum(record.seconds for record in records), 2), "passes": sum(record.passes for record in records)}
    summary.model_copy(update=total).save(folder.path)


def _cost(session: Session, works: Works, plan: Plan) -> dict[str, Any]:
    try:
        audited = nearest.cost(works, plan.audit)
    except Unsupported:  # the report will say so
        audited = {"passes": 0, "images": 0}
    images = 40 + 2 * 9 * plan.each + 2 * plan.quality
    passes = images * plan.steps * 2 + audited["passes"]
    training = 0
    for method in METHODS:
        module = import_module(method_row("erasure", method)["module"])
        cost = module.cost(plan.of(module, plan.preset or session.preset(module.PRESETS)))
        passes += 2 * cost["passes"]
        training += 2 * cost.get("training_passes", 0)
    for name in ATTACKS if plan.attacked else ():
        module, chosen = plan.attack(name)
        prompts = min(plan.attacked, plan.each)
        cost, drawn = module.cost(chosen, prompts, plan.steps), prompts * getattr(chosen, "attempts", 1)
        images += 2 * drawn
        passes += 2 * (cost["passes"] + drawn * plan.steps * 2)
        training += 2 * cost["training_passes"]
    return {"passes": passes, "training_passes": training, "images": images + audited["images"]}
