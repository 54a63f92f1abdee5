"""What settings do to the concepts that erasers are tuned on, none of which the bench measures: `benchmarks/erasure-tuning.json`.

    python benchmarks/erasure_tuning.py METHOD CONCEPT [JSON] ... [--preset paper] [--folder out/erasure-tuning]

CONCEPT is one of `assay.benches.erasure.VALIDATION`. Each JSON object holds settings that differ from the method's small preset, `{}` the preset
itself; a trial takes one to five minutes on two cores. With `--preset paper` they differ from the paper's, for concepts of this kind where it has
such: what that moves nothing by is no row of the bench (`assay.benches.erasure.PAPERS`), and may take half an hour; a trial that was killed goes on
from what the folder keeps of it. What was measured before is not measured again; all that was tried stays in the file.
Trials of EraseFlow without `style_learning_rate` are from when one rate served styles and objects; those of `adv_unlearn, drawn by lot` from before
its prompts and noise levels were dealt out evenly and the empty prompt was retained in every step.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import assay
from assay import settings
from assay.benches.erasure import VALIDATION, Subject
from assay.judge import CrossJudge
from assay.patched import Patched
from assay.record import digest_of
from assay.verbs.erasure_scenes import ask
from assay.verbs.erasures import counted
from assay.verbs.evaluate import images_of
from assay.verbs.methods import method_row
from assay.verbs.session import Session, zoo

FILE = Path(__file__).with_name("erasure-tuning.json")
SUBJECTS = {name: Subject(name, "style" if name == "fluent" else "object", name.removesuffix(" faces"), where) for name, where in VALIDATION.items()}
EACH = {"target": 20, "neighbours": 20, "rest": 32}
SEED, DRAWN, STEPS, GUIDANCE = 7, 0, 20, 4.0
"""Seed of an eraser; of the prompts and their images, with DDIM steps and guidance."""


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("concept", choices=SUBJECTS)
    parser.add_argument("given", nargs="*", type=json.loads, default=[{}])
    parser.add_argument("--preset", choices=("small", "paper"), default="small")
    parser.add_argument("--folder", type=Path, default=Path("out/erasure-tuning"))
    options = parser.parse_args()
    session, works, judge = Session("bench", "emoji64", FILE.parent, DRAWN), assay.builtin_works(), CrossJudge.load(zoo("judge"))
    subject = SUBJECTS[options.concept]
    asked = ask(session, works, subject, EACH)
    module = import_module(method_row("erasure", options.method)["module"])

    def shares() -> dict[str, list[int]]:
        images = images_of(session.denoiser, asked.what.rows, seed=DRAWN, steps=STEPS, guidance=GUIDANCE)
        found = counted(judge, images, asked.what)
        heads = {"target": {subject.target_head}, "neighbours": {subject.stay_head, "style"}, "rest": {subject.stay_head, "style"}}
        return {name: [share.hits, share.n] for name, share in found.items() if name.split(".")[1] in heads.get(name.split(".")[0], ())}

    def keep(row: dict[str, Any]) -> None:
        about = {"model": session.denoiser.digest, "judge": judge.digest, "seed": SEED}
        stored = json.loads(FILE.read_text()) if FILE.exists() else about | {"trials": []}
        stored["trials"].append(row)
        FILE.write_text(json.dumps(stored, indent=1) + "\n")
        print(json.dumps(row), flush=True)

    stored = json.loads(FILE.read_text()) if FILE.exists() else None
    if stored and (stored["model"], stored["judge"]) != (session.denoiser.digest, judge.digest):
        parser.error(f"{FILE} holds trials on another model or by another judge: move it away")
    known = [(row["concept"], row["method"], row["settings"]) for row in stored["trials"]] if stored else []
    if (options.concept, "base", {}) not in known:
        keep({"concept": options.concept, "method": "base", "settings": {}, "shares": shares()})
    for given in options.given:
        own = f"{options.preset}-{subject.kind}"
        chosen = settings.resolve(module.Settings, module.PRESETS, own if own in module.PRESETS else options.preset, given)
        row: dict[str, Any] = {"concept": options.concept, "method": options.method, "settings": json.loads(json.dumps(asdict(chosen)))}
        if options.preset == "paper" and not given:
            row |= {"preset": "paper"}
        if (options.concept, options.method, row["settings"]) in known:
            continue
        kept = options.folder / digest_of(row)[:16]
        row |= {"resumed": True} if any(kept.rglob("*.*")) else {}  # the seconds are of this sitting
        started = time.monotonic()
        made = module.erase(session.denoiser, asked.concept, chosen, seed=SEED, folder=kept)
        row |= {"seconds": round(time.monotonic() - started, 1)}
        with Patched(session.denoiser, [(made, 1.0)]):
            keep(row | {"shares": shares()})


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
