"""The cells of the bench of erasers: erase, draw the concept's scene, judge, keep; a finished cell is never made again.

Every cell has a folder of its own, bound to all that it depends on. While it is made it holds the eraser's checkpoints, the patch and shards of
images; of a finished one there remain `cell.json`, the features of its pictures and six of them, and its patch until the rows of several erasers that
it is part of are done. So a killed bench goes on, and the report is made from what there is.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as to_bytes

from assay.benches.erasure import (
    AGAIN,
    ATTACKED,
    BASE,
    COMBINATIONS,
    LONG,
    MODELS,
    PAPERS,
    REFERENCE,
    SEED,
    About,
    Cell,
    Results,
    Settings,
    Share,
    Subject,
    distances,
)
from assay.denoiser import to_pictures
from assay.errors import AssayError, Missing, NoRoom
from assay.evaluation.features import fixed_features
from assay.evaluation.thresholds import Joint
from assay.jobs.folder import OutFolder
from assay.judge import JudgeLike
from assay.memorization.copies import calibrate, copied
from assay.noise import derive
from assay.patched import Patched
from assay.record import digest_of, kept_tensors, write_atomically
from assay.reports.pictures import grid, save_picture
from assay.verbs.bench_pages import slug
from assay.verbs.bench_rows import Rows
from assay.verbs.erasure_scenes import Asked, ask, pictures
from assay.verbs.evaluate import Scene, images_of, judged
from assay.verbs.generate import Prompt
from assay.verbs.session import Session
from assay.works import Works


class Bench:
    """The cells of one model.

    Args:
        session: model, seed and display.
        works: which titles and styles there are.
        judge: who judges.
        subjects: the concepts of the bench.
        kept: the folder of the cells.
        settings: what every cell has in common.
        patches: models of the rows that are no erasers, by name: again, reference, or a training of the built-in world.
        more: rows of several erasers, or of an eraser with a preset of its own, besides those of the bench.
    """

    def __init__(
        self,
        session: Session,
        works: Works,
        judge: JudgeLike,
        subjects: Sequence[Subject],
        kept: Path,
        settings: Settings,
        patches: Mapping[str, Path],
        more: Sequence[str] = (),
    ) -> None:
        """Know the methods and what they are set to.

        Raises:
            Misconfigured: a patch is named that no row asks for.
        """
        self.session, self.works, self.judge, self.kept, self.settings = session, works, judge, kept, settings
        self.subjects = {subject.name: subject for subject in subjects}
        self.rows = Rows(session, subjects, patches, MODELS)
        self.special = self.rows.specials(kept, [*(PAPERS if session.built_in else ()), *more])
        self.digests = {"model": session.denoiser.digest, "works": works.digest, "judge": judge.digest}
        self.setup = {} if session.built_in else {"setup": session.denoiser.setup}  # what a folder says besides weights; ours never changes
        self.before: dict[tuple[str, str], Cell] = {}
        self.models_before: list[tuple[str, str]] = []
        self.redrawn: list[tuple[str, str]] = []
        self.scales: dict[str, dict[str, dict[str, float]]] = {}
        self._asked: dict[str, Asked] = {}

    @property
    def planned(self) -> list[tuple[str, str]]:
        """(concept, row) of every cell of the bench, the cheapest rows first; several erasers and what takes long on few concepts."""
        papers = PAPERS if self.session.built_in else ()  # another model's rows have the paper's settings anyway
        few = dict.fromkeys(COMBINATIONS, ATTACKED) | (LONG if papers and self.session.seed == SEED else {})

        def of_bench(name: str, row: str) -> bool:
            return row not in self.special or (row in papers and row not in LONG) or name in few.get(row, ())

        return [(name, row) for name, row in self.possible if of_bench(name, row)]

    @property
    def possible(self) -> list[tuple[str, str]]:
        """(concept, row) of every cell that can be asked for: those of the bench, and rows that are no plain eraser on any concept."""
        rows = [*MODELS, *self.rows.cheapest([*self.rows.modules, *self.special])]
        return [(name, row) for row in rows for name, subject in self.subjects.items() if self.rows.there(subject, row)]

    def asked(self, name: str) -> Asked:
        """Return what is asked for a concept."""
        if name not in self._asked:
            self._asked[name] = ask(self.session, self.works, self.subjects[name], self.settings.each)
        return self._asked[name]

    def folder_of(self, name: str, row: str) -> Path:
        """Return the folder of a cell."""
        return self.kept / slug(name) / row

    def plan_of(self, name: str, row: str) -> dict[str, Any]:
        """Return all that a cell depends on."""
        asked = self.asked(name)
        return {
            "format": Results.model_fields["format"].default,
            **self.digests,
            **self.setup,
            "seed": self.session.seed,
            "settings": asdict(self.settings),
            "concept": digest_of(asdict(asked.concept)),
            "scene": digest_of([[vars(prompt) for prompt in asked.what.rows], asked.what.groups]),
            "row": row,
            "method": self.rows.plan_of(self.subjects[name], row),
        }

    def cell(self, name: str, row: str) -> Cell | None:
        """Return a cell if it is there and of this plan; a model that was measured need not be given again."""
        folder = self.folder_of(name, row)
        try:
            plan, found = json.loads((folder / "plan.json").read_text()), Cell.model_validate_json((folder / "cell.json").read_bytes())
        except (OSError, ValueError):
            return None
        wanted = json.loads(json.dumps(self.plan_of(name, row), default=str))
        if row in (AGAIN, REFERENCE) and wanted["method"] is None:
            wanted["method"] = plan.get("method")
        if "setup" not in plan:  # of an earlier version, as in `OutFolder.check`
            wanted.pop("setup", None)
        return found if plan == wanted else None

    def mark(self, name: str, row: str) -> str:
        """Return the digest of all that a cell depends on but which model a row was given."""
        return digest_of(self.plan_of(name, row) | ({"method": None} if row in MODELS else {}))

    def take(self, stored: Results) -> None:
        """Count stored cells of this plan among those that are there, wherever they were made; what is not of this plan is left out."""
        self.special = list(dict.fromkeys([*self.special, *self.rows.special(cell.row for cell in stored.cells)]))  # asked for in another sitting
        rows = [*MODELS, *self.rows.modules, *self.special]
        for cell in stored.cells:
            if cell.concept in self.subjects and cell.row in rows and cell.plan == self.mark(cell.concept, cell.row):
                given = self.rows.given(self.subjects[cell.concept], cell.row) if cell.row in MODELS else None
                there = self.cell(cell.concept, cell.row) if cell.row in MODELS and given is None else None  # given in another sitting
                if cell.patch == (given.digest if given else there.patch if there else cell.patch):
                    self.before[cell.concept, cell.row] = cell
        gone = {(cell.concept, cell.row) for cell in stored.cells if cell.row in MODELS} - set(self.before)

        def lasts(concept: str, key: str) -> bool:
            """Whether a distance or scale is to a model whose cell is still counted; to another model it is another distance."""
            return (concept, key.partition(".")[0]) not in gone

        for (concept, row), cell in self.before.items():
            kid = {key: distance for key, distance in cell.kid.items() if lasts(concept, key)}
            self.before[concept, row] = cell.model_copy(update={"kid": kid})
        taken = {concept for concept, _ in self.before}
        self.models_before = [pair for pair in stored.planned if pair[0] in taken and pair[1] in MODELS]  # planned where their patches were given
        self.redrawn = [place for place in stored.redrawn if place in self.before]
        floors = [about for about in stored.concepts if about.name in taken and (about.name, AGAIN) not in gone]
        self.scales = {about.name: {key: ends for key, ends in about.scale.items() if lasts(about.name, key)} for about in floors}

    def left(self, cells: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the cells that are not there yet, with the models that those are held against; a changed plan is refused.

        Raises:
            Mismatch: the folder of a cell, or of an eraser that is part of it, holds one of another plan.
        """
        for name, row in dict.fromkeys((name, part) for name, whole in cells for part in (whole, *self.rows.parts(whole))):
            OutFolder.check(self.folder_of(name, row), self.plan_of(name, row))
        cells = [pair for pair in cells if not (self.folder_of(*pair) / "cell.json").exists()]
        beside = {name for name, row in cells if (name, row) not in self.before}  # distances are taken to pictures, and only folders hold those
        return [(name, row) for name, row in cells if (name, row) not in self.before or (row in MODELS and name in beside)]

    def cost(self, cells: Sequence[tuple[str, str]]) -> dict[str, int]:
        """Return the passes, those with gradients, and the images of cells; that a rule samples with more passes a step is not counted."""
        images = sum(pictures(self.subjects[name], self.settings.each) for name, _ in cells)
        if any(self.subjects[name].kind == "work" for name, _ in cells):
            images += self.settings.calibration
        spent = [self.rows.work_of(row) for _, row in cells]
        passes = images * self.settings.steps * (1 if self.settings.guidance == 1 else 2) + sum(plain for plain, _ in spent)
        return {"passes": passes, "training_passes": sum(trained for _, trained in spent), "images": images}

    def measure(self, cells: Sequence[tuple[str, str]], limit: float | None = None) -> int:
        """Make cells that are not there yet, and stop at the first boundary after the limit in seconds.

        Returns:
            How many were made now.

        Raises:
            Mismatch: the folder of a cell holds one of another plan, or a model that was given has another base.
            Misconfigured: the model cannot be sampled in so many steps.
        """
        started, made = time.monotonic(), 0
        todo = self.left(cells)
        self.rows.check([(self.subjects[name], row) for name, row in todo], self.settings.steps)
        for place, (name, row) in enumerate(todo):
            if limit is not None and time.monotonic() - started >= limit:
                self.session.display.say(f"{limit:g} s are over: {len(todo) - made} cells are left, and the same command goes on")
                break
            self.session.display.say(f"{name}: {row} ({place + 1} of {len(todo)})")
            try:
                self._make(name, row)
                self._clear(name, row, todo[place + 1 :])
                made += 1
            except torch.OutOfMemoryError:  # what else held the memory may be gone next time
                self.session.display.say(f"{name}: {row} needs more memory than there is; the same command tries it again")
        return made

    def _make(self, name: str, row: str) -> None:
        folder, asked = OutFolder(self.folder_of(name, row), self.plan_of(name, row)), self.asked(name)
        places = {part: OutFolder(self.folder_of(name, part), self.plan_of(name, part)) for part in self.rows.parts(row)}
        denoiser, options = self.session.denoiser, {"steps": self.settings.steps, "guidance": self.settings.guidance}
        cell = Cell(concept=name, row=row)
        try:
            if row in MODELS:
                given = self.rows.given(self.subjects[name], row)
                stack = [] if given is None else [given]
            else:
                stack, cost = self.rows.stacked(asked.concept, {part: place.path for part, place in places.items()})
                cell = cell.model_copy(update=cost)
            rules = [rule for patch in stack for rule in patch.rules]
            guided = 1 if self.settings.guidance == 1 and not rules else 2
            sampling = float(guided + (len(rules[-1].prompts) if rules else 0))
            cell = cell.model_copy(update={"sampling": sampling, "patch": "+".join(patch.digest for patch in stack)})
            with Patched(denoiser, [(patch, 1.0) for patch in stack]):
                bar = self.session.bar(f"{name}, {row}: pictures")
                images = images_of(denoiser, asked.what.rows, seed=self.session.seed, **options, folder=folder / "shards", progress=bar)
            self._judge(cell, asked, images, folder)
        except NoRoom:
            raise
        except (AssayError, torch.linalg.LinAlgError) as error:
            if row in MODELS:  # what was given does not fit; that is no finding
                folder.abandon()
                raise
            cell = cell.model_copy(update={"failed": str(error).splitlines()[0]})
            write_atomically(folder / "cell.json", cell.model_dump_json(indent=1).encode())
        shutil.rmtree(folder / "shards", ignore_errors=True)

    def _clear(self, name: str, row: str, later: Sequence[tuple[str, str]]) -> None:
        """Remove the checkpoints of a row that was measured, and its patches where no later row is made of them."""
        wanted = {part for concept, other in later if concept == name for part in self.rows.parts(other)}
        for part in self.rows.parts(row):
            shutil.rmtree(self.folder_of(name, part) / "training", ignore_errors=True)
            if part not in wanted:
                (self.folder_of(name, part) / "patch.safetensors").unlink(missing_ok=True)

    def _judge(self, cell: Cell, asked: Asked, images: torch.Tensor, folder: OutFolder) -> None:
        """Judge the pictures and write the cell; the file that says it is done comes last."""
        found = counted(self.judge, images, asked.what, asked.things)
        if asked.work is not None:
            found = {key: share for key, share in found.items() if not key.startswith("target.")}
            drawn = _bytes(images[asked.what.groups["target"]])
            work = np.ascontiguousarray(self.works.take([asked.work]).pixels(drawn.shape[2])[0].transpose(2, 0, 1))
            hits = copied(drawn, work, self.judge, self.rule)
            found["target.copy"] = Share(hits=int(hits.sum()), n=len(hits), chance=self.rule.achieved)
        features = {"judge": self.judge.features(images), "fixed": fixed_features(images)}
        write_atomically(folder / "features.safetensors", to_bytes({key: torch.from_numpy(value).half() for key, value in features.items()}))
        kept = to_pictures(images[[index for _, index in asked.shown]])
        save_picture(grid([kept], scale=1, gap=0), folder.path, "shown.png", "")
        write_atomically(folder / "cell.json", cell.model_copy(update={"shares": found}).model_dump_json(indent=1).encode())

    @cached_property
    def rule(self) -> Joint:
        """By what a picture counts as a copy: set once, on the base's pictures of works that it never saw.

        Raises:
            Missing: there are no such works.
        """
        never = self.works.where(lambda row: row["split"] == "calibration" and row["copies"] == 0)
        order = sorted(range(len(never)), key=lambda index: derive(self.session.seed, "copies", never.column("id")[index]))
        never = never.take(sorted(order[: self.settings.calibration]))
        if not len(never):
            raise Missing("The works have no calibration split, so no picture can be called a copy.", "Declare works that the model never saw.")
        plan = self.digests | {"works": never.digest, "seed": self.session.seed, "settings": asdict(self.settings)}
        folder = OutFolder(self.kept / "copies", plan)
        with suppress(OSError):
            about = json.loads((folder / "rule.json").read_text())
            return Joint(tuple(about["values"]), about["least"], about["achieved"], about["n"])
        prompts = [Prompt(name, texts[0]) for name, texts in zip(never.column("id"), never.column("captions"), strict=True)]
        options = {"steps": self.settings.steps, "guidance": self.settings.guidance, "folder": folder / "shards"}
        images = images_of(
            self.session.denoiser, prompts, seed=self.session.seed, **options, progress=self.session.bar("pictures of works never trained on")
        )
        works = np.ascontiguousarray(never.pixels(images.shape[2]).transpose(0, 3, 1, 2))
        limits = {"false_positives": self.settings.false_positives, "agreement": self.settings.agreement}
        rule = calibrate(_bytes(images), works, self.judge, **limits)
        write_atomically(folder / "rule.json", json.dumps(rule._asdict()).encode())
        shutil.rmtree(folder / "shards", ignore_errors=True)
        return rule

    def results(self) -> Results:
        """Gather the cells that are there, with the distances between them."""
        cells, about = [], []
        for name, subject in self.subjects.items():
            rows = list(dict.fromkeys([*MODELS, *(row for concept, row in self.possible if concept == name)]))
            made = {row: cell for row in rows if (cell := self.cell(name, row))}
            before = {row: cell for row in rows if (cell := self.before.get((name, row)))}
            what = self.asked(name).what
            kid, scale = distances(self._features(name, made), what.groups, self.session.seed, [row.id for row in what.rows])
            for row in (row for row in rows if row in made or row in before):
                cell = made.get(row) or before[row]
                known = before[row].kid if row in before and before[row].patch == cell.patch else {}
                cells.append(cell.model_copy(update={"plan": self.mark(name, row), "kid": known | kid.get(row, {})}))
            base = next((cell for cell in cells if (cell.concept, cell.row) == (name, BASE)), Cell(concept=name, row=BASE))
            ceilings = {key: {"ceiling": distance.value} for key, distance in base.kid.items()}  # to a reference, whose pictures may be elsewhere
            old = self.scales.get(name, {})
            scale = {key: ceilings.get(key, {}) | old.get(key, {}) | scale.get(key, {}) for key in sorted({*old, *scale})}
            concept = self.asked(name).concept
            things = list(self.asked(name).things)
            heads = {"target": subject.target_head, **dict.fromkeys(["neighbours", "rest", *things], subject.stay_head)}
            more = {"anchor": concept.anchor, "members": list(concept.members), "scale": scale, "things": things}
            about.append(About(name=name, kind=subject.kind, heads=heads, reference=subject.reference, **more))
        subject = next(iter(self.subjects.values()))  # an eraser's settings are the same for all; of `@paper`, for concepts of its kind
        planned = dict.fromkeys([*self.planned, *self.models_before, *((cell.concept, cell.row) for cell in cells)])
        return Results(
            model=self.session.denoiser.name,
            digests=self.digests,
            seed=self.session.seed,
            settings=asdict(self.settings),
            concepts=about,
            planned=sorted(planned, key=lambda pair: MODELS.index(pair[1]) if pair[1] in MODELS else len(MODELS)),
            cells=cells,
            redrawn=[place for place in self.redrawn if not (self.folder_of(*place) / "shown.png").exists()],
            made={row: digest_of(self.rows.plan_of(subject, row)) for row in (*self.rows.modules, *self.special)},
        )

    def _features(self, name: str, cells: Mapping[str, Cell]) -> dict[str, dict[str, np.ndarray]]:
        kept = {row: kept_tensors(self.folder_of(name, row) / "features.safetensors") for row, cell in cells.items() if not cell.failed}
        return {row: {space: found.double().numpy() for space, found in tensors.items()} for row, tensors in kept.items() if tensors is not None}

    def tiles(self, results: Results) -> dict[tuple[str, str], Image.Image]:
        """Return one picture of the target above one of everything else of every concept and row that was measured in this folder."""
        there = [(cell.concept, cell.row) for cell in results.cells if (self.folder_of(cell.concept, cell.row) / "cell.json").exists()]
        kept = {place: self.shown(*place) for place in there}
        return {place: grid([[pictures[0]], [pictures[-1]]], scale=1, gap=0) for place, pictures in kept.items() if pictures}

    def chapter_picture(self, name: str, cells: Mapping[str, Cell]) -> Image.Image | None:
        """Lay out the pictures kept of a concept, a row of the bench in each line."""
        lines = {row: kept for row in cells if (kept := self.shown(name, row))}
        heads = [part for part, _ in self.asked(name).shown]
        return grid(list(lines.values()), list(lines), heads, scale=1, label_size=11) if lines else None

    def shown(self, name: str, row: str) -> list[Image.Image]:
        """Return the pictures kept of a cell; none where it failed."""
        file = self.folder_of(name, row) / "shown.png"
        if not file.exists():
            return []
        with Image.open(file) as strip:
            return [strip.convert("RGB").crop((left, 0, left + strip.height, strip.height)) for left in range(0, strip.width, strip.height)]


def counted(judge: JudgeLike, images: torch.Tensor, what: Scene, things: Mapping[str, Sequence[int]] = {}) -> dict[str, Share]:
    """Count, in every part of a scene and of every thing, the images that show what was asked: PART.HEAD -> share; heads are those of `judged`."""
    said = judged(judge, images, what)
    return {
        f"{part}.{head}": Share(hits=int(hits[indices][known[indices]].sum()), n=int(known[indices].sum()), chance=chance)
        for part, indices in {**what.groups, **{name: list(rows) for name, rows in things.items()}}.items()
        for head, (known, hits, chance) in said.items()
        if known[indices].any()
    }


def _bytes(images: torch.Tensor) -> np.ndarray:
    return (images * 255).round().to(torch.uint8).numpy()
