"""Command -> function: what the command line calls, with its options turned into arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from assay.jobs.outcome import Outcome
from assay.verbs import patches, works
from assay.verbs.audit import audit
from assay.verbs.erase import erase
from assay.verbs.evaluate import evaluate
from assay.verbs.generate import generate
from assay.verbs.methods import methods
from assay.verbs.report import report
from assay.verbs.run import run


def adapt(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Return the function as a command: settings gathered, options it does not know dropped, a dry run of quick commands answered."""
    names = inspect.signature(function).parameters

    def command(**options: Any) -> Outcome:
        given = {key.removeprefix("setting_"): options.pop(key) for key in list(options) if key.startswith("setting_")}
        settings = {key: value for key, value in given.items() if value is not None}
        if options.get("dry_run") and "dry_run" not in names:
            return Outcome(function.__name__, None, None, extra={"plan": {"passes": 0, "seconds": 1.0}, "lines": ["plan: no passes of the denoiser"]})
        if "settings" in names:
            options["settings"] = settings
        return function(**{key: value for key, value in options.items() if key in names})

    return command


COMMANDS: dict[str, Callable[..., Outcome]] = {
    "generate": adapt(generate),
    "erase": adapt(erase),
    "audit": adapt(audit),
    "evaluate": adapt(evaluate),
    "works_import": adapt(works.import_works),
    "works_info": adapt(works.info),
    "works_duplicates": adapt(works.duplicates),
    "patch_info": adapt(patches.info),
    "patch_add": adapt(patches.add),
    "patch_scale": adapt(patches.scale),
    "patch_fuse": adapt(patches.fuse_patches),
    "patch_export_lora": adapt(patches.export),
    "methods": adapt(methods),
    "report": adapt(report),
    "run": adapt(run),
}
