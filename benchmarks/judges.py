"""What the judges can be trusted with, as a record: `benchmarks/judges.json`.

    python benchmarks/judges.py [--prompts 200]

Real works are the core's, each judged by a network that never saw it, and by class means that leave it out; drawn pictures are the built-in model's,
of trained pairs whose title exists in all four styles. About five minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import assay
from assay.benches.judges import measure
from assay.evaluation.centroid import CentroidJudge
from assay.judge import CrossJudge
from assay.noise import derive
from assay.record import Record, versions
from assay.training.world import FAMILIES, WEAPONS
from assay.verbs.session import zoo
from emoji64 import SEED, TEMPLATE, drawn

HERE = Path(__file__).parent


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    options = parser.parse_args()
    start = time.monotonic()
    model, works = assay.load("emoji64"), assay.builtin_works()
    rows = drawn(works, "member", options.prompts)
    titles, styles = rows.column("title"), rows.column("style")
    prompts = [TEMPLATE.format(title=title, style=style) for title, style in zip(titles, styles, strict=True)]
    images = model.generate(prompts, [derive(SEED, "judges", name) for name in rows.column("id")], steps=20)
    judges = {"cross-judge": CrossJudge.load(zoo("judge")), "centroid-judge": CentroidJudge(works)}
    shown = works.where(lambda row: row["title"] is not None and row["style"] is not None)
    found = measure(
        judges,
        shown,
        (images, titles, styles),
        FAMILIES | {"weapons": WEAPONS},
        lambda done, total: print(f"{done} of {total}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True),
    )
    digests = found.pop("digests") | {"model": model.digest}
    Record(
        command="bench",
        question="How far can the judges be trusted?",
        method="judges",
        resolved={"prompts": len(rows), "steps": 20, "guidance": 4.0, "real works": len(shown)},
        digests=digests,
        seeds={"seed": SEED},
        shows_not=[
            "Whether a picture is good: a judge names, it does not look at quality.",
            "The centroid judge's means hold works of the same title in other styles, as the cross-fitted judge's training does.",
            "Accuracy on drawn pictures mixes what the model draws and what the judge sees; the ratio to real works is in emoji64.json.",
        ],
        seconds=round(time.monotonic() - start, 1),
        versions=versions(),
        **found,
    ).save(HERE, "judges.json")


if __name__ == "__main__":
    main()
