"""assay: what did a text-to-image model memorise, can it be taken out, and at what cost?

The names below are loaded when first used, so that `import assay` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.concept import Concept
    from assay.denoiser import Denoiser
    from assay.loading import load
    from assay.patch import Patch
    from assay.patched import Patched, export_lora, fuse
    from assay.record import Dossier, Metric, Record
    from assay.verbs.attack import attack
    from assay.verbs.audit import audit
    from assay.verbs.bench import bench
    from assay.verbs.erase import erase
    from assay.verbs.evaluate import evaluate
    from assay.verbs.generate import generate
    from assay.verbs.methods import methods
    from assay.verbs.patches import patch_add, patch_compress, patch_export_lora, patch_fuse, patch_info, patch_scale
    from assay.verbs.report import report
    from assay.verbs.retrain import retrain
    from assay.verbs.run import run
    from assay.verbs.session import builtin_works
    from assay.verbs.works import works_duplicates, works_import, works_info
    from assay.works import Works

_HOMES = {
    "attack": "assay.verbs.attack",
    "audit": "assay.verbs.audit",
    "bench": "assay.verbs.bench",
    "builtin_works": "assay.verbs.session",
    "erase": "assay.verbs.erase",
    "evaluate": "assay.verbs.evaluate",
    "generate": "assay.verbs.generate",
    "methods": "assay.verbs.methods",
    "patch_add": "assay.verbs.patches",
    "patch_compress": "assay.verbs.patches",
    "patch_export_lora": "assay.verbs.patches",
    "patch_fuse": "assay.verbs.patches",
    "patch_info": "assay.verbs.patches",
    "patch_scale": "assay.verbs.patches",
    "report": "assay.verbs.report",
    "retrain": "assay.verbs.retrain",
    "run": "assay.verbs.run",
    "works_duplicates": "assay.verbs.works",
    "works_import": "assay.verbs.works",
    "works_info": "assay.verbs.works",
    "Concept": "assay.concept",
    "Denoiser": "assay.denoiser",
    "load": "assay.loading",
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
    "attack",
    "audit",
    "bench",
    "builtin_works",
    "erase",
    "evaluate",
    "export_lora",
    "fuse",
    "generate",
    "load",
    "methods",
    "patch_add",
    "patch_compress",
    "patch_export_lora",
    "patch_fuse",
    "patch_info",
    "patch_scale",
    "report",
    "retrain",
    "run",
    "works_duplicates",
    "works_import",
    "works_info",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use.

    Raises:
        AttributeError: assay has no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'assay' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
