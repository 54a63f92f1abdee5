"""What prompt detectors and inpainting tell on the built-in world: `benchmarks/detectors.json`.

    python benchmarks/detectors.py [--method detectors inpainting] [--preset small] [--out out/detectors]

Captions and works of canaries with 16 and 64 copies must be found; calibration works, holdout works and canaries withheld were never trained. Every
figure is that of the audit's record, with its interval, its number of observations and chance. The same call again goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import assay
from assay.record import Record

HERE = Path(__file__).parent
SEED = 0


def shown(record: Record, planned: int) -> dict[str, Any]:
    """Return what is kept of a record: settings, figures, sentences and tables without pictures."""
    metrics = {
        metric.name: {
            "value": None if metric.value is None else round(metric.value, 4),
            "low": round(metric.low or 0, 4),
            "high": round(metric.high or 0, 4),
            "n": metric.n,
            "chance": metric.chance if metric.chance is None else round(metric.chance, 4),
        }
        for metric in record.metrics
    }
    return {
        "model": record.digests["model"],
        "works": record.digests["works"],
        "settings": record.resolved,
        "seed": SEED,
        "passes": planned,
        "findings": record.findings,
        "shows_not": record.shows_not,
        "metrics": metrics,
        "suspicious": [[cell for cell in row if not isinstance(cell, dict)] for row in record.tables[-1].rows],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=["detectors", "inpainting"], choices=["detectors", "inpainting"])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--out", type=Path, default=Path("out/detectors"))
    options = parser.parse_args()
    file = HERE / "detectors.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for method in options.method:
        plan = assay.audit("emoji64", method=method, preset=options.preset, seed=SEED, dry_run=True).extra["plan"]
        outcome = assay.audit("emoji64", method=method, preset=options.preset, seed=SEED, out=options.out / method)
        assert outcome.record is not None
        result[method] = shown(outcome.record, plan["passes"] + plan.get("training_passes", 0))
        file.write_text(json.dumps(result, indent=1) + "\n")
        for sentence in outcome.record.findings:
            print(sentence)


if __name__ == "__main__":
    main()
