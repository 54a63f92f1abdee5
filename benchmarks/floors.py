"""What the attacks of `assay run` bring out of models that never saw a concept: their floors, kept in the package's `zoo/references.json`.

    python benchmarks/floors.py FOLDER [--each 36] [--concept NAME]

FOLDER holds trainings as `assay retrain --reference NAME --out FOLDER/NAME` left them. Attacked is every concept of `benchmarks/references.py` that a
training was shown nothing of: other prompts than those of a run with the seed 0, as many at once as a run attacks, each such part with a seed of its
own, and without a budget that could end a search. Two minutes a concept on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
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
from assay.verbs.evaluate import Scene
from assay.verbs.plan import ATTACKS, Plan
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
    plan = replace(Plan(), each=options.each, budget=float("inf"))
    for name in world.REFERENCES:
        where = options.folder / name
        if not (where / "patch.safetensors").exists():
            continue
        patch, record = Patch.load(where), Record.load(where)
        with TemporaryDirectory() as kept:
            at = Measurement(options.each, plan.steps, plan.guidance, Path(kept))
            chosen = select(at.trained_on, world.reference(name).selection, record.seeds["training"])
            for title, kind in CONCEPTS:
                concept = concept_for(at.session, at.works, title, kind)  # pyright: ignore[reportArgumentType]
                if at.never_saw(concept, chosen) and title in (options.concept or [title]):
                    measure(at, plan, concept, patch, Path(kept) / f"{kind}-{title}")


def measure(at: Measurement, plan: Plan, concept: Concept, patch: Patch, folder: Path) -> None:
    """Attack one reference for one concept and write its floors."""
    started, hits, prompts = time.monotonic(), Counter[str](), Counter[str]()
    what = MainJob(Session("run", at.session.denoiser, folder, SEED), at.works, plan, folder).scene(concept)
    rows = [what.rows[index] for index in what.groups["target"]]
    for start in range(0, len(rows), plan.attacked):
        session = Session("run", at.session.denoiser, folder, SEED + start, display=Display())
        job, part = MainJob(session, at.works, plan, folder), rows[start : start + plan.attacked]
        with Patched(session.denoiser, [(patch, 1.0)]):
            plain = signs(at.judge, job.images(Scene(part, {}), folder / f"{start}", "plain images"), part, concept)
        _, fought, _ = fight(job, concept, patch, part, [plain, plain], folder / f"{start}")
        for one in fought:
            tried = trial(job, concept, one, None)
            hits[one.name] += tried.successes
            prompts[one.name] += tried.n
    for name in ATTACKS:
        low, high = wilson(hits[name], prompts[name])
        marks.write_floor(zoo(marks.FILE), at.protocol, concept, name, plan.attack(name)[1], (hits[name], prompts[name]))
        print(f"{concept.name}, {name}: {hits[name]} of {prompts[name]} ({low:.0%} to {high:.0%})")
    print(f"{concept.name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
