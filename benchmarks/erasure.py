"""Every eraser on ten concepts, judged against retraining: `benchmarks/erasure.json` and `benchmarks/erasure.png`.

    python benchmarks/erasure.py [--folder out/bench-erasure] [--limit SECONDS] [--patch again=PATH] [--patch no-noto=PATH] ...
                                 [--methods A,B] [--concept NAME] [--seed N]

With another seed than 0 it measures what is attacked again: `benchmarks/erasure-seed-N.json`.

Hours on two cores (`assay bench erasure --measure --dry-run` says how many here). It goes on where it was, also on another machine: cells that are in
`benchmarks/erasure.json` are not made again. It writes what there is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import assay
from assay.benches.erasure import subjects
from assay.verbs.erasure_report import name_of

HERE = Path(__file__).parent


class Lines:
    """A display of one line for each thing that is said."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show nothing of single steps."""

    def say(self, text: str) -> None:
        """Print what is begun."""
        print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--patch", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--methods")
    parser.add_argument("--concept", action="append", default=[])
    options = parser.parse_args()
    names = [subject.name for subject in subjects(assay.builtin_works())]
    if unknown := [name for name in options.concept if name not in names]:
        parser.error(f"the bench has no concept {unknown[0]}; it has {', '.join(names)}")
    chosen = {"methods": options.methods, "concept": options.concept, "patches": options.patch, "seed": options.seed}
    outcome = assay.bench("erasure", measure=True, results=HERE, out=options.folder, limit=options.limit, **chosen, display=Lines())
    shutil.copyfile(outcome.files["results"], HERE / f"{name_of(options.seed)}.json")
    if outcome.out and (page := outcome.out / "erasure.png").exists():
        shutil.copyfile(page, HERE / f"{name_of(options.seed)}.png")
    for finding in outcome.record.findings if outcome.record else []:
        print(finding)


if __name__ == "__main__":
    main()
