"""`audit`: what did a model memorise of a set of works?"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from assay import settings as method_settings
from assay.denoiser import Denoiser
from assay.errors import Misconfigured, Missing
from assay.jobs.outcome import Outcome
from assay.patch import Patch
from assay.reports.pictures import save_picture
from assay.verbs.evaluate import judge_for
from assay.verbs.methods import method_row
from assay.verbs.own_works import gathered, noted
from assay.verbs.session import Session, Silent, works_for
from assay.works import Works


def audit(
    model: str | Path | Denoiser = "emoji64",
    works: str | Path | Works | None = None,
    *,
    method: str | None = None,
    preset: str | None = None,
    settings: dict[str, Any] | None = None,
    mine: str | Path | Works | None = None,
    unseen: str | Path | Works | None = None,
    patches: Sequence[str | Patch | tuple[Patch, float]] = (),
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    dry_run: bool = False,
    display: Any = None,
) -> Outcome:
    """Look for works that come out of the model and write a record with pictures into `out`.

    Args:
        model: a built-in name, a folder, a hub id or a loaded denoiser.
        works: the works to look for; those of the built-in model by default.
        method: see `assay methods audit`; `mine` where `mine` is given, else `nearest`, if None.
        preset: named settings; small by default, because the paper's take 500 images a work.
        settings: fields of the method's settings that differ from the preset.
        mine: own works, to ask whether the model was trained on them: a folder of pictures, or whatever `assay works import` reads.
        unseen: works that the model never saw, to tell likeness from chance; by default those that `works` declares.
        patches: what is on the model.
        out: folder to write to; the same call goes on where it stopped.
        seed: of everything random.
        device: a torch device.
        dry_run: plan only.
        display: shows progress.

    Returns:
        The outcome, with recall and false-positive rates as metrics.

    Raises:
        Missing: the model is not built in and no works are given.
        Misconfigured: own works come with another method than `mine`, or `unseen` or `mine` without own works.
    """
    method = method or ("nearest" if mine is None else "mine")
    if (mine is None) == (method == "mine") or (mine is None and unseen is not None):
        raise Misconfigured(
            "`--mine`, `--unseen` and the method `mine` belong together.", "Give a folder of your works with `--mine`, and no other method."
        )
    module = import_module(method_row("memorization", method)["module"])
    session = Session("audit", model, out or f"out/audit-{method}", seed, device, patches, display or Silent())
    chosen = method_settings.resolve(module.Settings, module.PRESETS, preset or "small", dict(settings or {}))
    table = works_for(session, works)
    given = dict(settings or {})
    session.ask(given, method=method, works=works, preset=preset, mine=mine, unseen=unseen)
    own = None if mine is None else gathered(mine, table, unseen)
    table = table if own is None else own.works
    if table is None:
        raise Missing("An audit needs the works to look for.", "Give them with `--works`; `assay works import` makes them from a folder.")
    if dry_run:
        return session.dry_run(**module.cost(table, chosen))
    judge = judge_for(session, table)
    folder = session.folder(session.plan(method=method, settings=vars(chosen), works=table.digest, judge=judge.digest))
    if previous := session.finished(folder):
        return previous
    with session.patched() as denoiser:
        made = module.audit(denoiser, table, chosen, judge=judge, seed=seed, progress=session.bar("auditing"), folder=folder / "shards")
    pictures = [save_picture(image, folder.path, name, name.removesuffix(".png").replace("-", " ")) for name, image in made.pictures.items()]
    ours = session.record(made.record.question)
    shared = {
        "given": {"preset": preset or "small", **given},
        "again": ours.again,
        "resolved": ours.resolved | made.record.resolved,
        "digests": ours.digests | made.record.digests,
        "seeds": ours.seeds,
        "versions": ours.versions,
        "pictures": pictures,
    }
    if own is not None:
        shared |= noted(made.record, own)
    spent = {"seconds": ours.seconds, "passes": ours.passes, "peak_memory": ours.peak_memory}
    record = made.record.model_copy(update=shared | spent)
    record.save(folder.path)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return session.outcome(record, next=(f"assay report {folder.path}",))
