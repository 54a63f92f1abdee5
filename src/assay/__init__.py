"""assay: what did a text-to-image model memorise, can it be taken out, and at what cost?

The names below are loaded when first used, so that `import assay` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.concept import Concept
    from assay.denoiser import Denoiser, load
    from assay.patch import Patch
    from assay.patched import Patched, export_lora, fuse
    from assay.record import Dossier, Metric, Record
    from assay.verbs.audit import audit
    from assay.verbs.erase import erase
    from assay.verbs.evaluate import evaluate
    from assay.verbs.generate import generate
    from assay.verbs.methods import methods
    from assay.verbs.report import report
    from assay.verbs.run import run
    from assay.verbs.session import builtin_works
    from assay.verbs.works import import_works
    from assay.works import Works

_HOMES = {
    "audit": "assay.verbs.audit",
    "builtin_works": "assay.verbs.session",
    "erase": "assay.verbs.erase",
    "evaluate": "assay.verbs.evaluate",
    "generate": "assay.verbs.generate",
    "import_works": "assay.verbs.works",
    "methods": "assay.verbs.methods",
    "report": "assay.verbs.report",
    "run": "assay.verbs.run",
    "Concept": "assay.concept",
    "Denoiser": "assay.denoiser",
    "load": "assay.denoiser",
    "Patch": "assay.patch",
    "Patched": "assay.patched",
    "export_lora": "assay.patched",
    "fuse": "assay.patched",
    "Dossier": "assay.record",
    "Metric": "assay.record",
    "Record": "assay.record",
    "Works": "assay.works",
}

__all__ = [
    "Concept",
    "Denoiser",
    "Dossier",
    "Metric",
    "Patch",
    "Patched",
    "Record",
    "Works",
    "audit",
    "builtin_works",
    "erase",
    "evaluate",
    "export_lora",
    "fuse",
    "generate",
    "import_works",
    "load",
    "methods",
    "report",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use.

    Raises:
        AttributeError: assay has no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
