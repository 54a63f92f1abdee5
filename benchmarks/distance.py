"""How far erasing moves what was to stay, beside how far another seed of the training moves it: `benchmarks/distance.json`.

    python benchmarks/distance.py AGAIN [--concept cats] [--methods uce,rece,concept_ablation,esd]
        [--prompts 1000] [--images 2] [--folder out/distance]

AGAIN is what `assay retrain --reference again` left. Concepts and settings are those of `assay bench erasure`. Drawn are ordinary trained pairs
outside the concept and its five neighbours, `--images` of each with other seeds, the same for all models. KID to the base is
`assay.evaluation.kid.paired`: over pairs of different prompts, with the jackknife's interval over prompts; `beyond another seed` is by how much it
exceeds that of the model trained again. Killed, the same command goes on. A few minutes a model on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.benches.erasure import subjects
from assay.cli.progress import Display
from assay.denoiser import load
from assay.evaluation.features import DIGEST, fixed_features
from assay.evaluation.kid import nearer, paired
from assay.jobs.folder import OutFolder
from assay.patch import Patch
from assay.patched import Patched
from assay.verbs.bench_rows import Rows
from assay.verbs.erasure_scenes import concept_of
from assay.verbs.evaluate import images_of, judge_for, scene
from assay.verbs.session import Session, builtin_works

HERE = Path(__file__).parent
SEED, STEPS, GUIDANCE = 20261129, 20, 4.0


def main() -> None:
    """Erase, draw and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("again", type=Path)
    parser.add_argument("--concept", default="cats")
    parser.add_argument("--methods", default="uce,rece,concept_ablation,esd")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("out/distance"))
    options = parser.parse_args()
    works, start = builtin_works(), time.monotonic()
    session = Session("bench", load("emoji64"), options.folder, 0, display=Display())
    denoiser, judge, again = session.denoiser, judge_for(session, works), Patch.load(options.again)
    listed = subjects(works)
    subject = next(subject for subject in listed if subject.name == options.concept)
    concept, rows = concept_of(session, works, subject), Rows(session, listed, {}, ())
    lot = replace(session, seed=SEED)
    what = scene(lot, works, concept, each={"target": 0, "neighbours": 0, "rest": options.prompts}, images=options.images)
    plan = {"model": denoiser.digest, "works": works.digest, "judge": judge.digest, "concept": subject.name, "seed": SEED, "steps": STEPS}
    plan |= {"guidance": GUIDANCE, "prompts": len({row.id for row in what.rows}), "images": len(what.rows), "again": again.digest}
    folder = OutFolder(options.folder / subject.name, plan)
    spaces = {"judge": judge.features, f"fixed {DIGEST[:12]}": fixed_features}

    def drawn(name: str, stack: list[Patch]) -> dict[str, np.ndarray]:
        """Return the features of a model's pictures."""
        with Patched(denoiser, [(patch, 1.0) for patch in stack]):
            bar = session.bar(f"{name}: pictures")
            images = images_of(denoiser, what.rows, seed=SEED, steps=STEPS, guidance=GUIDANCE, folder=folder / "images" / name, progress=bar)
        return {space: np.asarray(of(images), np.float64) for space, of in spaces.items()}

    prompts = [row.id for row in what.rows]
    features = {"base": drawn("base", []), "again": drawn("again", [again])}
    patches: dict[str, str] = {}
    for method in options.methods.split(","):
        patch, _ = rows.made(method, concept, folder / "erasers" / method)
        patches[method], features[method] = patch.digest, drawn(method, [patch])
    found: dict[str, Any] = {}
    for space in spaces:
        base, other = features["base"][space], features["again"][space]
        for name in [name for name in features if name != "base"]:
            own = features[name][space]
            estimate = paired(own, base, prompts, seed=SEED)
            row = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "if the models were one": estimate.exchange}
            more = {} if name == "again" else {"beyond another seed": nearer(own, other, base, prompts)._asdict()}
            found.setdefault(name, {})[space] = row | more
    result = plan | {"patches": patches, "kid": found, "seconds": round(time.monotonic() - start, 1)}
    file = HERE / "distance.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(stored | {subject.name: result}, indent=1) + "\n")
    print(json.dumps(result, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
