"""Missing pictures of the bench of erasers: the eraser is made again, and what its cell showed drawn for `benchmarks/erasure.png`.

    python benchmarks/erasure_tiles.py [--folder out/erasure-tiles] [--made out/bench-attacks-kept] ... [--patch again=PATH] ...

Pictures of a cell are kept where it was measured; where that folder is gone, its figures are in `benchmarks/erasure.json` and its pictures nowhere.
An eraser made again elsewhere differs in its last bits, and what it draws a little: such places are listed as `redrawn`, and the page says how many
there are. Figures stay as they were measured. `--made` are folders of cells where patches may still lie, so that those are not made again. Seconds to
two minutes an eraser on two cores; killed, it goes on. Models that erasers are held against are not made, but drawn where they are given (`--patch`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import assay
from assay.benches.erasure import MODELS, Results, Settings, subjects
from assay.denoiser import to_pictures
from assay.jobs.folder import OutFolder
from assay.judge import CrossJudge
from assay.patched import Patched
from assay.record import write_atomically
from assay.reports.pictures import grid
from assay.verbs import bench_pages as pages
from assay.verbs.bench_rows import Rows
from assay.verbs.erasure_report import LARGEST, file_of
from assay.verbs.erasures import Bench
from assay.verbs.evaluate import images_of
from assay.verbs.session import Session, zoo

HERE = Path(__file__).parent


def made_by(folder: Path, plan: Mapping[str, Any]) -> bool:
    """Whether the eraser in a folder of cells is that of a plan: of one model, seed, concept and settings."""
    try:
        known = json.loads((folder / "plan.json").read_text())
    except (OSError, ValueError):
        return False
    return all(known.get(key) == json.loads(json.dumps(plan[key], default=str)) for key in ("model", "seed", "concept", "method"))


def main() -> None:
    """Draw what is missing, cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/erasure-tiles"))
    parser.add_argument("--made", type=Path, action="append", default=[])
    parser.add_argument("--patch", action="append", default=[], metavar="NAME=PATH")
    options = parser.parse_args()
    file = file_of(HERE, 0)
    stored, page, works = pages.read(file, Results, "the bench of erasers"), file.with_suffix(".png"), assay.builtin_works()
    session = Session("bench", "emoji64", options.folder, stored.seed)
    bench = Bench(session, works, CrossJudge.load(zoo("judge")), subjects(works), options.folder, Settings(), {})
    bench.take(stored)
    tiles = pages.tiles_of(page)
    names, columns = [about.name for about in stored.concepts], list(dict.fromkeys(row for _, row in stored.planned))
    models = Rows(session, subjects(works), dict(map(pages.named, options.patch)), MODELS)  # the bench itself counts cells of these alone
    todo = [(cell.concept, cell.row) for cell in bench.before.values() if models.there(bench.subjects[cell.concept], cell.row) and not cell.failed]
    todo = [place for place in todo if place not in tiles]
    for number, (name, row) in enumerate(todo, 1):
        asked = bench.asked(name)
        places = {}
        for part in bench.rows.parts(row):
            plan, kept = bench.plan_of(name, part), [folder / pages.slug(name) / part for folder in options.made]
            there = [folder for folder in kept if (folder / "patch.safetensors").exists() and made_by(folder, plan)]
            places[part] = there[0] if there else OutFolder(bench.folder_of(name, part), plan).path
        if row in MODELS:
            given = models.given(bench.subjects[name], row)
            stack = [] if given is None else [given]
        else:
            stack, _ = bench.rows.stacked(asked.concept, places)
        prompts = [asked.what.rows[index] for _, index in (asked.shown[0], asked.shown[-1])]
        with Patched(session.denoiser, [(patch, 1.0) for patch in stack]):
            images = images_of(session.denoiser, prompts, seed=stored.seed, steps=bench.settings.steps, guidance=bench.settings.guidance)
        tiles[name, row] = grid([[picture] for picture in to_pictures(images)], scale=1, gap=0)
        same = "+".join(patch.digest for patch in stack) == bench.before[name, row].patch
        redrawn = [*stored.redrawn, *([] if same else [(name, row)])]
        stored = stored.model_copy(update={"redrawn": redrawn})
        pages.keep_page(tiles, names, columns, page, LARGEST)
        write_atomically(file, pages.lines(stored))
        print(f"{name}: {row}{', bit for bit what was measured' if same else ''} ({number} of {len(todo)})", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
