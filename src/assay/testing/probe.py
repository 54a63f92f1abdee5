"""Which method works on which family: found out by running each on every tiny pipeline, never typed in.

python -m assay.testing.probe           writes src/assay/methods.json
python -m assay.testing.probe --check   exits with 1 if the file would change
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from assay import settings as method_settings
from assay.concept import Concept
from assay.errors import AssayError
from assay.testing.pipelines import KINDS, tiny
from assay.testing.worlds import own_among, tiny_target, tiny_works

SUBJECTS = {"erasure": ("erase", "patch"), "attacks": ("attack", "record"), "memorization": ("audit", "record")}
"""Method folder -> its verb, and what its methods return."""


def table(probed: Collection[str] = tuple(SUBJECTS)) -> list[dict[str, Any]]:
    """Return the rows of `methods.json`, of the subjects in `probed` with what probing each method finds."""
    rows = []
    for subject, (verb, returns) in SUBJECTS.items():
        folder = Path(str(files("assay"))) / subject
        for name in sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"):
            module = f"assay.{subject}.{name}"
            source = method_settings.read(module)
            if not source.fields:
                continue
            row: dict[str, Any] = {"subject": subject, "verb": verb, "name": name, "module": module, "returns": returns, "summary": source.summary}
            row["presets"] = sorted(source.presets)
            if subject in probed:
                row["works_on"] = {kind: _probe(subject, module, kind) for kind in KINDS}
            rows.append(row)
    return rows


def _probe(subject: str, module: str, kind: Any) -> str:
    probes: dict[str, Callable[[Any, Any], object]] = {"erasure": _erase, "attacks": _attack, "memorization": _audit}
    try:
        probes[subject](import_module(module), tiny(kind))
    except AssayError as error:
        return f"no: {error.message}"
    return "yes"


def _erase(method: Any, denoiser: Any) -> object:
    concept = Concept("red", "style", "blue", preserve=("green",), subjects=("circle", "square"))
    return method.erase(denoiser, concept, method.Settings(**method.PROBE), seed=0)


def _attack(method: Any, denoiser: Any) -> object:
    return method.attack(denoiser, tiny_target(denoiser), method.Settings(**method.PROBE), seed=0)


def _audit(method: Any, denoiser: Any) -> object:
    from assay.evaluation.centroid import CentroidJudge

    works = tiny_works()
    if method.__name__.endswith(".mine"):
        works = own_among(works)
    return method.audit(denoiser, works, method.Settings(**method.PROBE), judge=CentroidJudge(works), seed=0)


def main() -> None:
    """Write or check the table."""
    path = Path(str(files("assay"))) / "methods.json"
    text = json.dumps(table(), indent=1) + "\n"
    if "--check" in sys.argv:
        sys.exit(0 if path.read_text() == text else 1)
    path.write_text(text)


if __name__ == "__main__":
    main()
