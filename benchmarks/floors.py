"""What the attacks of `assay run` bring out of models that never saw a concept: their floors, kept in the package's `zoo/references.json`.

    python benchmarks/floors.py FOLDER [--each 36] [--concept NAME]

FOLDER holds trainings as `assay retrain --reference NAME --out FOLDER/NAME` left them. Attacked by the settings of the run, and without a budget that
could end a search, is every concept of `benchmarks/references.py` that a training was shown nothing of. A minute a concept on two cores.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from assay.cli.progress import Display
from assay.concept import Concept
from assay.evaluation.intervals import wilson
from assay.patch import Patch
from assay.patched import Patched
from assay.record import Record
from assay.training import world
from assay.training.selection import select
from assay.verbs import references as marks
from assay.verbs.attack_stage import fight, trial
from assay.verbs.attacked import signs
from assay.verbs.erase import concept_for
from assay.verbs.plan import Plan
from assay.verbs.session import Session, zoo
from assay.verbs.stages import MainJob
from references import CONCEPTS, SEED, Measurement


def main() -> None:
    """Attack every reference that is there and write down how far that comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=36)
    parser.add_argument("--concept", action="append", default=[])
    options = parser.parse_args()
    plan = replace(Plan(), each=options.each, attacked=options.each, budget=float("inf"))
    for name in world.REFERENCES:
        where = options.folder / name
        if not (where / "patch.safetensors").exists():
            continue
        patch, record = Patch.load(where), Record.load(where)
        with TemporaryDirectory() as kept:
            at = Measurement(options.each, plan.steps, plan.guidance, Path(kept))
            chosen = select(at.trained_on, world.reference(name).selection, record.seeds["training"])
            job = MainJob(Session("run", "emoji64", kept, SEED, display=Display()), at.works, plan, Path(kept))
            for title, kind in CONCEPTS:
                concept = concept_for(job.session, job.works, title, kind)  # pyright: ignore[reportArgumentType]
                if at.never_saw(concept, chosen) and title in (options.concept or [title]):
                    attack(job, concept, patch, at.protocol, Path(kept) / f"{kind}-{title}")


def attack(job: MainJob, concept: Concept, patch: Patch, protocol: marks.Protocol, folder: Path) -> None:
    """Attack one reference for one concept."""
    started, what = time.monotonic(), job.scene(concept)
    rows = [what.rows[index] for index in what.groups["target"]]
    what = what._replace(rows=rows, groups={"target": list(range(len(rows)))})
    base = job.images(what, folder / "base", "base")
    with Patched(job.session.denoiser, [(patch, 1.0)]):
        plain = job.images(what, folder / "reference", "reference")
    before = [signs(job.judge, images, rows, concept) for images in (base, plain)]
    _, fought, _ = fight(job, concept, patch, rows, before, folder)
    for one in fought:
        tried = trial(job, concept, one, None)
        marks.write_floor(zoo(marks.FILE), protocol, concept, one.name, job.plan.attack(one.name)[1], (tried.successes, tried.n))
        low, high = wilson(tried.successes, tried.n)
        print(f"{concept.name}, {one.name}: {tried.successes} of {tried.n} ({low:.0%} to {high:.0%}), by plain prompts {int(before[1][1].sum())}")
    print(f"{concept.name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
