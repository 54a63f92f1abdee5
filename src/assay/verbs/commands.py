"""Command -> function: what the command line calls, with its options turned into arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.errors import Missing
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.patch import Patch
from assay.record import Record, versions
from assay.verbs import patches, works
from assay.verbs.attack import attack
from assay.verbs.audit import audit
from assay.verbs.bench import bench
from assay.verbs.erase import erase
from assay.verbs.evaluate import evaluate
from assay.verbs.generate import generate
from assay.verbs.methods import methods
from assay.verbs.report import report
from assay.verbs.retrain import retrain
from assay.verbs.run import run
from assay.verbs.session import parse_patch, peak_memory

READ = 20e6
"""Bytes a second that works are read and decoded at, roughly."""


def adapt(name: str, function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Return the function as a command: settings gathered, options it does not know dropped, and what every command can do added."""
    names = inspect.signature(function).parameters

    def command(**options: Any) -> Outcome:
        given = {key.removeprefix("setting_"): options.pop(key) for key in list(options) if key.startswith("setting_")}
        if "settings" in names:
            options["settings"] = {key: value for key, value in given.items() if value is not None}
        if options.get("dry_run") and "dry_run" not in names:
            return rehearse(name, options)
        outcome = function(**{key: value for key, value in options.items() if key in names})
        return outcome if outcome.record or "out" in names or not options.get("out") else noted(outcome, options)

    return command


def rehearse(name: str, options: dict[str, Any]) -> Outcome:
    """Plan a command that makes no pass of the denoiser: read what it would read, and estimate from its size.

    Raises:
        Missing: an input does not exist.
    """
    paths = options.get("paths") or ()
    inputs = [parse_patch(str(text))[0] for text in ([paths] if isinstance(paths, str) else paths)]
    for path in inputs:
        Patch.load(path)
    inputs += [Path(options[key]) for key in ("source", "path", "folder") if options.get(key) is not None]
    if absent := [path for path in inputs if not path.exists()]:
        raise Missing(f"There is nothing at {absent[0]}.", "Give a file or folder that exists.")
    files = [file for path in inputs for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    seconds = round(1 + size / READ, 1)
    plan = {"passes": 0, "seconds": seconds, "peak_memory": peak_memory() + size}
    line = f"plan: no passes of the denoiser, {len(files)} files, about {seconds:.0f} s, {plan['peak_memory'] / 2**20:.0f} MiB"
    return Outcome(name, None, None, extra={"plan": plan, "lines": [line]})


def noted(outcome: Outcome, options: dict[str, Any]) -> Outcome:
    """Write down what a command said that writes nothing by itself, because `--out` asks for it."""
    inputs = [str(value) for key in ("subject", "paths", "folder") for value in _listed(options.get(key))]
    flags = [*(["--verify"] if options.get("verify") else []), *(["--key", str(options["key"])] if options.get("key") else [])]
    folder = OutFolder(options["out"], {"command": outcome.command, "inputs": inputs, "said": outcome.extra.get("lines", [])})
    record = Record(
        command=outcome.command,
        question=f"What does `assay {outcome.command}` say?",
        again=[*outcome.command.split(), *inputs, *flags],
        findings=list(outcome.extra.get("lines", [])),
        versions=versions(),
    )
    record.save(folder.path)
    return replace(outcome, out=folder.path, record=record, extra={key: value for key, value in outcome.extra.items() if key != "lines"})


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


COMMANDS: dict[str, Callable[..., Outcome]] = {
    "generate": adapt("generate", generate),
    "erase": adapt("erase", erase),
    "attack": adapt("attack", attack),
    "audit": adapt("audit", audit),
    "evaluate": adapt("evaluate", evaluate),
    "bench": adapt("bench", bench),
    "works_import": adapt("works import", works.works_import),
    "works_info": adapt("works info", works.works_info),
    "works_duplicates": adapt("works duplicates", works.works_duplicates),
    "patch_info": adapt("patch info", patches.patch_info),
    "patch_add": adapt("patch add", patches.patch_add),
    "patch_scale": adapt("patch scale", patches.patch_scale),
    "patch_compress": adapt("patch compress", patches.patch_compress),
    "patch_fuse": adapt("patch fuse", patches.patch_fuse),
    "patch_export_lora": adapt("patch export-lora", patches.patch_export_lora),
    "methods": adapt("methods", methods),
    "report": adapt("report", report),
    "retrain": adapt("retrain", retrain),
    "run": adapt("run", run),
}
