"""What models trained without something draw when asked for it, beside the base, written to `benchmarks/references.json` and its picture.

    python benchmarks/references.py FOLDER [--train] [--each 64] [--steps 20] [--guidance 4]

FOLDER holds the trainings that are there, each as `assay retrain --reference NAME --out FOLDER/NAME` left it; what was measured of others before, in
the same way, is kept. Measured of each: which families it can speak for (`assay.evaluation.admission`), what it still draws of the pairs that it was
shown, how many canaries come out of it, and whether works that only one of it and the base was shown can be told by their losses. What stands beside
an erasure of the main job goes to `zoo/references.json`, for concepts of which a reference was shown nothing at all.

Images of base and reference share prompts and seeds, so that neither has the easier lot; they are never compared one by one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import assay
from assay.cli.progress import Display
from assay.concept import Concept
from assay.denoiser import to_pictures
from assay.evaluation.admission import admit
from assay.evaluation.intervals import bootstrap
from assay.evaluation.membership import Roc, auc_interval
from assay.noise import numpy_generator
from assay.patch import Patch
from assay.patched import Patched
from assay.record import Metric, Record, digest_of
from assay.reports.pictures import grid, small_png
from assay.training import world
from assay.training.selection import select, shown
from assay.verbs import references
from assay.verbs.erase import concept_for
from assay.verbs.evaluate import Scene, accuracies, distances, images_of, judge_for, pair_prompt, part_of, scene
from assay.verbs.session import Session, builtin_works, zoo
from assay.works import Works
from assay.works.filters import condition
from emoji32 import losses

HERE = Path(__file__).parent
FILE = HERE / "references.json"
SEED = 20261125
CONCEPTS = (("cat", "object"), ("heart", "object"), ("clock", "object"), ("twemoji", "style"), ("noto", "style"))
"""Whose marks ship; the first and the fourth are what `assay run` erases."""
SHOWN = 5


class Measurement:
    """Base and judge, asked the same of every reference."""

    def __init__(self, each: int, steps: int, guidance: float, kept: Path) -> None:
        self.each, self.kept = each, kept
        self.options = {"steps": steps, "guidance": guidance}
        self.session = Session("evaluate", "emoji64", kept)
        self.works, self.trained_on = builtin_works(), builtin_works(None)
        self.judge = judge_for(self.session, self.works)
        self.protocol = references.Protocol.of(self.session, self.judge, self.works, steps, guidance)

    def images(self, what: Scene, patch: Patch | None, name: str) -> torch.Tensor:
        """Generate the images of a scene by the base, or by a reference."""
        who = "base" if patch is None else patch.digest[:12]
        asked = digest_of([[row.prompt, row.image_seed(SEED)] for row in what.rows])[:12]  # references were shown different works, and so are asked

        def show(done: int, total: int) -> None:
            print(f"\r{name}: {who}, {done} of {total} images", end="", flush=True)

        with Patched(self.session.denoiser, [] if patch is None else [(patch, 1.0)]) as denoiser:
            made = images_of(denoiser, what.rows, seed=SEED, **self.options, folder=self.kept / f"{name}-{asked}" / who, progress=show)
        print()
        return made

    def families(self) -> dict[str, list[tuple[str, str]]]:
        """Return ordinary trained pairs of every family, as many as are drawn of each."""
        ordinary = self.works.where(lambda row: row["split"] == "member" and row["copies"] == 1)
        found = {}
        for name, text in {**world.FAMILIES, "weapons": world.WEAPONS}.items():
            rows = ordinary.where(condition((text,), shown(self.trained_on)))
            pairs = sorted({pair for pair in zip(rows.column("title"), rows.column("style"), strict=True) if all(pair)})
            found[name] = [pairs[index] for index in numpy_generator(SEED, name).permutation(len(pairs))[: self.each]]
        return found

    def admission(self, patch: Patch) -> dict[str, Any]:
        """Ask base and reference for every family, and draw some of what they give."""
        right: dict[str, list[dict[str, list[bool]]]] = {"title": [{}, {}], "family": [{}, {}]}
        unjudged, rows, labels = {}, [], []
        for family, pairs in self.families().items():
            titles = frozenset(self.works.where(condition((world.FAMILIES.get(family, world.WEAPONS),), shown(self.trained_on))).column("title"))
            what = Scene([pair_prompt(self.session, *pair) for pair in pairs], {"target": list(range(len(pairs)))})
            both = [self.images(what, model, f"family-{family.replace(' ', '-')}") for model in (None, patch)]
            for place, images in enumerate(both):
                verdict = self.judge.score(images, [pair[0] for pair in pairs], [pair[1] for pair in pairs])["title"]
                if not verdict.known.any():
                    unjudged[family] = len(pairs)
                    continue
                right["family"][place][family] = [named in titles for named in verdict.named[verdict.known]]
                right["title"][place][family] = verdict.right[verdict.known].tolist()
            rows.append([image for images in both for image in to_pictures(images[:SHOWN])])
            labels.append(family)
        columns = ["base", *[""] * (SHOWN - 1), "never saw them", *[""] * (SHOWN - 1)]
        (HERE / "references.png").write_bytes(small_png(grid(rows, labels, columns, scale=1)))
        judged = admit(*right["family"])
        titles_fall = {row.family: [row.base, row.reference] for row in admit(*right["title"])}
        table = [vars(row) | {"interval": list(row.interval), "images": list(row.images), "title": titles_fall[row.family]} for row in judged]
        return {"families": table, "the judge knows no title of": unjudged}

    def kept_pairs(self, chosen: Works, patch: Patch) -> list[Metric]:
        """Ask both for pairs that both were shown once: what the training itself cost or gained."""
        once = {row["id"] for row in shown(chosen).rows() if row["copies"] == 1}
        rows = self.works.where(lambda row: row["id"] in once and row["copies"] == 1 and bool(row["title"]) and bool(row["style"]))
        rows = rows.take(sorted(numpy_generator(SEED, "kept").permutation(len(rows))[: 3 * self.each].tolist()))
        pairs = list(zip(rows.column("title"), rows.column("style"), strict=True))
        what = Scene([pair_prompt(self.session, *pair) for pair in pairs], {"shown": list(range(len(pairs)))})
        base, made = self.images(what, None, "kept"), self.images(what, patch, "kept")
        return accuracies(self.judge, base, what, "base.") + accuracies(self.judge, made, what) + distances(self.judge, made, base, what, SEED)

    def canaries(self, chosen: Works, patch: Patch | None) -> list[Metric]:
        """Look for every dose of canaries in what a model draws, by the audit's small preset; members and holdout works are its own."""
        own = chosen.where(lambda row: row["attributes"].get("subset") == "core")
        with TemporaryDirectory() as folder:
            record = assay.audit(self.session.denoiser, own, method="nearest", patches=[patch] if patch else [], out=folder, seed=SEED).record
        assert record is not None
        return [metric for metric in record.metrics if metric.name.startswith(("memorised.", "false_positives."))]

    def exchanged(self, chosen: Works, patch: Patch) -> list[Metric]:
        """Tell the works that only the base was shown from those that only the reference was shown, by which of them has the lower loss."""
        ids = [{row["id"] for row in shown(table).rows()} for table in (self.trained_on, chosen)]
        entered, left = ids[1] - ids[0], ids[0] - ids[1]
        if not entered:
            return []
        rows = self.works.where(lambda row: row["id"] in entered | left)
        ours = np.array([work in left for work in rows.column("id")])
        found = []
        for patches in ([], [(patch, 1.0)]):
            with Patched(self.session.denoiser, patches) as denoiser:
                found.append(np.log(losses(denoiser, rows)).mean(1))
        rise = found[1] - found[0]
        auc = Roc(rise, ours).auc()
        low, high = auc_interval(auc, int(ours.sum()), int((~ours).sum()))
        metrics = [Metric(name="exchanged.auc", value=auc, low=low, high=high, n=len(ours), chance=0.5)]
        for name, side in (("base_alone", ours), ("reference_alone", ~ours)):
            low, high = bootstrap(rise[side], seed=SEED)
            metrics.append(Metric(name=f"exchanged.rise.{name}", value=float(rise[side].mean()), low=low, high=high, n=int(side.sum())))
        return metrics

    def never_saw(self, concept: Concept, chosen: Works) -> bool:
        """Say whether a training on these works was shown nothing of a concept."""
        part, seen = part_of(self.session, self.works, concept), shown(chosen)
        return all(part(*pair) != "target" for pair in zip(seen.column("title"), seen.column("style"), strict=True))

    def beside(self, concept: Concept, patch: Patch, prefix: str) -> list[Metric]:
        """Measure what a model draws of a concept and of all else, as it stands beside an erasure."""
        what = scene(self.session, self.works, concept, each=self.each)
        name = f"{concept.kind}-{concept.name}"
        base, made = self.images(what, None, name), self.images(what, patch, name)
        return accuracies(self.judge, made, what, prefix) + distances(self.judge, made, base, what, SEED, prefix)


def plain(metrics: list[Metric]) -> list[dict[str, Any]]:
    """Return metrics as they are stored."""
    return [metric.model_dump(exclude_defaults=True) for metric in metrics]


def main() -> None:
    """Measure every training that is there and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", action="store_true", help="make the trainings that are missing first: hours on two cores; killed, it goes on")
    parser.add_argument("--anew", action="store_true", help="measure also what is stored of these very trainings")
    parser.add_argument("--each", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    options = parser.parse_args()
    started = time.time()
    if options.train:
        for name in world.REFERENCES:
            assay.retrain(reference=name, out=options.folder / name, display=Display())
    at = Measurement(options.each, options.steps, options.guidance, options.folder / "measured")
    there = {name: options.folder / name for name in world.REFERENCES if (options.folder / name / "patch.safetensors").exists()}
    if not there:
        raise SystemExit(f"No training in {options.folder}: `assay retrain --reference NAME --out {options.folder}/NAME` makes one.")
    concepts = [concept_for(at.session, at.works, name, kind) for name, kind in CONCEPTS]  # pyright: ignore[reportArgumentType]
    header = {**at.protocol._asdict(), "seed": SEED, "prompts": options.each}
    before = json.loads(FILE.read_text()) if FILE.exists() else {}
    same = all(before.get(name) == value for name, value in header.items())
    found: dict[str, Any] = before["references"] if same else {}
    marks: dict[str, dict[str, Any]] = before["marks"] if same else {}
    base = before["base"] if same and "base" in before else {"canaries": plain(at.canaries(at.trained_on, None))}
    for name, where in there.items():
        patch, record = Patch.load(where), Record.load(where)
        if found.get(name, {}).get("patch") == patch.digest and not options.anew:
            continue
        chosen = select(at.trained_on, world.reference(name).selection, record.seeds["training"])
        found[name] = {
            "patch": patch.digest,
            "question": record.question,
            "selection": record.given["selection"],
            "training": {metric.name: metric.value for metric in record.metrics},
            "shown to both": plain(at.kept_pairs(chosen, patch)),
            "canaries": plain(at.canaries(chosen, patch)),
            "exchanged": plain(at.exchanged(chosen, patch)),
        }
        if name == "no-families":
            found[name] |= at.admission(patch)
        for concept in concepts:
            if at.never_saw(concept, chosen):
                stays = [row for row in marks.get(references.key(concept), {"metrics": []})["metrics"] if row["name"].startswith(references.AGAIN)]
                marks[references.key(concept)] = {"reference": name, "metrics": plain(at.beside(concept, patch, references.PREFIX)) + stays}
    if "again" in there:
        again = Patch.load(there["again"])
        for concept in concepts:
            entry = marks.setdefault(references.key(concept), {"reference": "", "metrics": []})
            entry["metrics"] = [row for row in entry["metrics"] if not row["name"].startswith(references.AGAIN)]
            entry["metrics"] += plain(at.beside(concept, again, references.AGAIN))
    missing = [name for name in world.REFERENCES if name not in found]
    result = {
        **header,
        "base": base,
        "references": {name: found[name] for name in world.REFERENCES if name in found},
        "marks": marks,
        "not trained": missing,
        "seconds": round(time.time() - started, 1),
    }
    FILE.write_text(json.dumps(result, indent=1) + "\n")
    references.write(zoo(references.FILE), at.protocol, marks)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
