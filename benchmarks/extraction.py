"""Which captions of the built-in model give back the work that they were trained on: `benchmarks/extraction.json`.

    python benchmarks/extraction.py [--images 10] [--clique 4] [--out out/benchmark-extraction]

The audit by extraction, which looks at no work while it draws: canaries of every number of copies and of both arms (one caption, varied captions),
canaries withheld (k = 0), and captions of holdout works. Distances are set on captions of calibration works. Killed, the same command goes on.

Bars: at least 12 of 16 canaries of one caption are extracted at k = 64, none at k = 0, and none of the holdout captions, whose upper bound stands
beside (Clopper and Pearson, one-sided 95 %). What misses its bar is stored as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import assay
from assay.cli.progress import Display
from assay.evaluation.thresholds import bound

HERE = Path(__file__).parent


def counted(metric: assay.Metric) -> dict[str, Any]:
    """Return a share as counts, with its interval (Wilson, 95 %) and the upper bound of Clopper and Pearson."""
    found = round((metric.value or 0) * metric.n)
    interval = {"low": round(metric.low or 0, 4), "high": round(metric.high or 0, 4)}
    return {"extracted": found, "of": metric.n, **interval, "upper_bound": round(bound(metric.n, found), 4)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--clique", type=int, default=4)
    parser.add_argument("--out", default="out/benchmark-extraction")
    options = parser.parse_args()
    sizes = {"images": options.images, "clique": options.clique, "round": max(options.clique, options.images // 2)}
    asked = sizes | {"members": 0, "calibration": 60, "holdout": 60, "batch": 40}
    record = assay.audit("emoji64", method="extraction", settings=asked, out=options.out, display=Display(quiet=False)).record
    if record is None:
        raise SystemExit("Nothing was measured.")
    shares = {m.name.partition(".")[2]: counted(m) for m in record.metrics if m.name.startswith(("extracted.", "false_extractions."))}
    bars = {
        "at least 12 of 16 at k = 64, one caption": shares["k64"]["extracted"] >= 12,
        "none of the canaries withheld (k = 0)": shares["k0"]["extracted"] == 0,
        "none of the holdout captions": shares["holdout"]["extracted"] == 0,
    }
    result = {
        "model": record.digests["model"],
        "works": record.digests["works"],
        "settings": record.resolved,
        "captions": shares,
        "recall_against_copies": record.curves[0].lines,
        **{name: record.metric(name).model_dump(include={"value", "low", "high", "n"}) for name in ("precision", "another_work")},
        "images_drawn": record.metric("images").n,
        "bars": bars,
        "passes": record.passes,
        "seconds": record.seconds,
    }
    (HERE / "extraction.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
