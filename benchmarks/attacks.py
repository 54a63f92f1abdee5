"""Every attack on every eraser, beside models that never saw the concept: `benchmarks/attacks.json` and `benchmarks/attacks.png`.

    python benchmarks/attacks.py [--folder out/bench-attacks] [--limit SECONDS] [--patch no-families=PATH] [--patch no-noto=PATH] ...
                                 [--methods A,B] [--attacks A,B] [--concept NAME]

Hours on two cores (`assay bench attacks --measure --dry-run` says how many here). It goes on where it was, also on another machine: cells that are in
`benchmarks/attacks.json` are not made again. It writes what there is; with --limit 0 only that.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import assay
from erasure import Lines

HERE = Path(__file__).parent


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/bench-attacks"))
    parser.add_argument("--limit", type=float)
    parser.add_argument("--patch", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--methods")
    parser.add_argument("--attacks")
    parser.add_argument("--concept", action="append", default=[])
    options = parser.parse_args()
    chosen = {"methods": options.methods, "attacks": options.attacks, "concept": options.concept, "patches": options.patch}
    outcome = assay.bench("attacks", measure=True, results=HERE, out=options.folder, limit=options.limit, **chosen, display=Lines())
    for name in ("attacks.json", "attacks.png"):
        if (options.folder / name).exists():
            shutil.copyfile(options.folder / name, HERE / name)
    for finding in outcome.record.findings if outcome.record else []:
        print(finding)


if __name__ == "__main__":
    main()
