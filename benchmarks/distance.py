"""How far erasing moves what was to stay, beside how far another seed of the training moves it: `benchmarks/distance.json`.

    python benchmarks/distance.py AGAIN [--concept cats] [--methods uce,rece,concept_ablation,esd]
        [--prompts 1000] [--images 2] [--folder out/distance]

AGAIN is what `assay retrain --reference again` left. Concepts and settings are those of `assay bench erasure`. Drawn are ordinary trained pairs
outside the concept and its neighbours, `--images` of each with other seeds, the same for all models. KID to the base is
`assay.evaluation.kid.paired`: over pairs of different prompts, with the jackknife's interval over prompts; `beyond` is by how much it exceeds that of
the model trained again. Killed, the same command goes on. A few minutes a model on two cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from assay.benches.erasure import Beside, Distance, Moved, Moves, Settings, subjects
from assay.cli.progress import Display
from assay.evaluation.features import DIGEST as FIXED
from assay.evaluation.features import fixed_features
from assay.evaluation.kid import excess, paired
from assay.jobs.folder import OutFolder
from assay.loading import load
from assay.patch import Patch
from assay.patched import Patched
from assay.record import digest_of
from assay.verbs.bench_pages import lines
from assay.verbs.bench_rows import Rows
from assay.verbs.erasure_scenes import ask
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
    concept, rows = ask(session, works, subject, Settings().each).concept, Rows(session, listed, {}, ())
    lot = replace(session, seed=SEED)
    what = scene(lot, works, concept, each={"target": 0, "neighbours": 0, "rest": options.prompts}, images=options.images)
    digests = {"model": denoiser.digest, "works": works.digest, "judge": judge.digest}
    sampler = {"steps": STEPS, "guidance": GUIDANCE}
    plan = {**digests, **sampler, "concept": subject.name, "seed": SEED, "images": digest_of([vars(row) for row in what.rows]), "again": again.digest}
    folder = OutFolder(options.folder / subject.name, plan)
    spaces = {"judge": judge.features, "fixed": fixed_features}

    def drawn(name: str, stack: list[Patch], kept: OutFolder = folder) -> dict[str, np.ndarray]:
        """Return the features of a model's pictures."""
        with Patched(denoiser, [(patch, 1.0) for patch in stack]):
            bar = session.bar(f"{name}: pictures")
            images = images_of(denoiser, what.rows, seed=SEED, steps=STEPS, guidance=GUIDANCE, folder=kept / "images" / name, progress=bar)
        return {space: np.asarray(of(images), np.float64) for space, of in spaces.items()}

    prompts = [row.id for row in what.rows]
    features = {"base": drawn("base", []), "again": drawn("again", [again])}
    patches = {"again": again.digest}
    for method in options.methods.split(","):
        place = OutFolder(folder / "erasers" / method, {"method": method, "settings": rows.plan_of(subject, method)})
        patch, _ = rows.made(method, concept, place.path)
        patches[method], features[method] = patch.digest, drawn(method, [patch], place)
    kid: dict[str, dict[str, Moved]] = {name: {} for name in patches}
    for space in spaces:
        base, other = features["base"][space], features["again"][space]
        for name in patches:
            own = features[name][space]
            found, beyond = paired(own, base, prompts, seed=SEED), excess(own, other, base, prompts)
            moved = Moved(value=found.value, low=found.low, high=found.high, alike=found.exchange)
            if name != "again":
                moved.beyond = Distance(**beyond._asdict(), n=len(set(prompts)))
            kid[name][space] = moved
    seconds = round(time.monotonic() - start, 1)
    counts = {"features": FIXED, "prompts": len(set(prompts)), "images": len(prompts)}
    made = Beside(concept=subject.name, digests=digests, seed=SEED, settings=sampler, **counts, patches=patches, kid=kid, seconds=seconds)
    file = HERE / "distance.json"
    before = Moves.model_validate_json(file.read_bytes()).concepts if file.exists() else []
    stored = Moves(concepts=[*(one for one in before if one.concept != subject.name), made])
    file.write_bytes(lines(stored))
    print(made.model_dump_json(indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
