"""The cells of the bench of attacks: put a row's patches on, attack, draw on other seeds, judge, keep; a finished cell is never made again.

Every concept has a folder, in it every row one: its patch, made once, and what plain prompts draw under it. In that lies a folder of each attack,
bound to all that the cell depends on. While a cell is made it holds what the search found and the images; of a finished one there remain `cell.json`
and one picture. So a killed bench goes on, and the report is made from what there is.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from assay import settings as method_settings
from assay.attacks.target import Attack, Clock, Target
from assay.benches.attacks import MODELS, About, Cell, Results, Settings
from assay.benches.erasure import BASE, COMBINATIONS, REFERENCE, Share, Subject
from assay.concept import Concept
from assay.denoiser import Denoiser, to_pictures
from assay.errors import AssayError, NoRoom, Unsupported
from assay.jobs.folder import OutFolder
from assay.judge import JudgeLike
from assay.patch import Patch
from assay.patched import Patched
from assay.record import digest_of, write_atomically
from assay.reports.pictures import save_picture
from assay.verbs.attack import Ground, choose, drawn, judged_seed, judged_seeds, kept, repeated, search, target_for
from assay.verbs.attacked import attempted, counted, signs, tile
from assay.verbs.bench_pages import slug
from assay.verbs.bench_rows import Rows
from assay.verbs.erasure_scenes import concept_of
from assay.verbs.methods import table
from assay.verbs.session import Session
from assay.works import Works

FAILURES = (AssayError, torch.linalg.LinAlgError)


class Bench:
    """The cells of one model.

    Args:
        session: model, seed and display.
        works: which titles and styles there are.
        judge: who judges.
        subjects: the concepts of the bench.
        kept: the folder of the cells.
        settings: what every cell has in common.
        patches: models to hold erasers against, by name: reference, or a training of the built-in world.
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
        """Know the rows and the attacks, and what they are set to.

        Raises:
            Misconfigured: a patch is named that no row asks for, or the budget is none.
        """
        self.session, self.works, self.judge, self.kept, self.settings = session, works, judge, kept, settings
        Clock(settings.budget)  # refuses what is no budget before anything is done
        self.subjects = {subject.name: subject for subject in subjects}
        self.rows = Rows(session, subjects, patches, MODELS)
        self.special = self.rows.specials(kept, more)
        self.modules = {row["name"]: import_module(row["module"]) for row in table("attacks")}
        self.digests = {"model": session.denoiser.digest, "works": works.digest, "judge": judge.digest}
        self.setup = {} if session.built_in else {"setup": session.denoiser.setup}  # what a folder says besides weights; ours never changes
        self.before: dict[tuple[str, str, str], Cell] = {}
        self._asked: dict[str, tuple[Concept, Ground, dict[str, str]]] = {}
        self._made: tuple[tuple[str, str], list[Patch]] | None = None
        self._failed: dict[tuple[str, str], tuple[type[Exception], str]] = {}

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """The settings of every attack: small for a built-in model, else paper."""
        preset = self.session.preset
        return {name: method_settings.resolve(module.Settings, module.PRESETS, preset(module.PRESETS), {}) for name, module in self.modules.items()}

    def work_of(self, attack: str) -> tuple[int, int]:
        """Return the passes of one search, and those with gradients."""
        spent = self.modules[attack].cost(self.chosen[attack], self.settings.each, self.settings.image_steps)
        return spent["passes"], spent["training_passes"]

    def attempts(self, attack: str) -> int:
        """Return how many images an attack has at each prompt."""
        return getattr(self.chosen[attack], "attempts", 1)

    @property
    def attacks(self) -> list[str]:
        """Every attack, the cheapest first."""
        return sorted(self.modules, key=lambda name: (self.work_of(name)[0] + 3 * self.work_of(name)[1], name))

    def rows_of(self, name: str) -> list[str]:
        """Return the rows of a concept, the models first and then the cheapest erasers."""
        rows = [*MODELS, *self.rows.cheapest([*self.rows.modules, *self.special])]
        return [row for row in rows if self.rows.there(self.subjects[name], row)]

    @property
    def planned(self) -> list[tuple[str, str, str]]:
        """(concept, row, attack) of every cell of the bench; of rows that were asked for beside it, on the concepts where they were begun."""
        rows = {name: self.rows_of(name) for name in self.subjects}
        there = {name: [row for row in rows[name] if self._of_bench(row) or self._begun(name, row)] for name in rows}
        return [cell for cell in self.possible if cell[1] in there[cell[0]]]

    def _of_bench(self, row: str) -> bool:
        return row not in self.special or row in COMBINATIONS

    def _begun(self, name: str, row: str) -> bool:
        return any(self.cell(name, row, attack) or (name, row, attack) in self.before for attack in self.attacks)

    @property
    def possible(self) -> list[tuple[str, str, str]]:
        """(concept, row, attack) of every cell that can be asked for; a row is done with all attacks before the next begins."""
        there = {name: self.rows_of(name) for name in self.subjects}
        rows = [*MODELS, *self.rows.cheapest([*self.rows.modules, *self.special])]
        return [(name, row, attack) for row in rows for name in self.subjects if row in there[name] for attack in self.attacks]

    def asked(self, name: str) -> tuple[Concept, Ground, dict[str, str]]:
        """Return a concept in the terms of the works, what is attacked of it, and the digests of both."""
        if name not in self._asked:
            concept = concept_of(self.session, self.works, self.subjects[name])
            ground = choose(self.session, self.works, concept, self.settings.each)
            rows = [list(vars(row).values()) for row in ground.rows]
            digests = {
                "concept": digest_of(asdict(concept)),
                "ground": digest_of([rows, ground.named.column("id"), ground.others.column("id"), ground.forbidden]),
            }
            self._asked[name] = concept, ground, digests
        return self._asked[name]

    def row_folder(self, name: str, row: str) -> Path:
        """Return the folder of a row."""
        return self.kept / slug(name) / row

    def row_plan(self, name: str, row: str) -> dict[str, Any]:
        """Return what a row's patch and plain images depend on."""
        common = {key: value for key, value in asdict(self.settings).items() if key != "budget"}
        plan = {"format": Results.model_fields["format"].default, **self.digests, **self.setup, "seed": self.session.seed, "settings": common}
        return plan | self.asked(name)[2] | {"row": row, "method": self.rows.plan_of(self.subjects[name], row)}

    def plan_of(self, name: str, row: str, attack: str) -> dict[str, Any]:
        """Return all that a cell depends on."""
        return self.row_plan(name, row) | {"attack": attack, "search": asdict(self.chosen[attack]), "budget": self.settings.budget}

    def folder_of(self, name: str, row: str, attack: str) -> Path:
        """Return the folder of a cell."""
        return self.row_folder(name, row) / attack

    def cell(self, name: str, row: str, attack: str) -> Cell | None:
        """Return a cell if it is there and of this plan; a reference that was measured need not be given again."""
        folder = self.folder_of(name, row, attack)
        try:
            plan, found = json.loads((folder / "plan.json").read_text()), Cell.model_validate_json((folder / "cell.json").read_bytes())
        except (OSError, ValueError):
            return None
        wanted = json.loads(json.dumps(self.plan_of(name, row, attack), default=str))
        if row == REFERENCE and wanted["method"] is None:
            wanted["method"] = plan.get("method")
        if "setup" not in plan:  # of an earlier version, as in `OutFolder.check`
            wanted.pop("setup", None)
        return found if plan == wanted else None

    def mark(self, name: str, row: str, attack: str) -> str:
        """Return the digest of all that a cell depends on but which model a row was given."""
        return digest_of(self.plan_of(name, row, attack) | ({"method": None} if row in MODELS else {}))

    def take(self, stored: Results) -> None:
        """Count stored cells of this plan among those that are there, wherever they were made; what is not of this plan is left out."""
        self.special = list(dict.fromkeys([*self.special, *self.rows.special(cell.row for cell in stored.cells)]))  # asked for in another sitting
        rows = [*MODELS, *self.rows.modules, *self.special]
        for cell in stored.cells:
            pair = cell.concept, cell.row
            if cell.concept in self.subjects and cell.row in rows and cell.attack in self.modules and cell.plan == self.mark(*pair, cell.attack):
                given = self.rows.given(self.subjects[cell.concept], cell.row) if cell.row in MODELS else None
                if given is None or cell.patches == [given.digest]:
                    self.before[*pair, cell.attack] = cell

    def left(self, cells: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """Return the cells that are not there yet; a changed plan is refused.

        Raises:
            Mismatch: the folder of a row or a cell holds one of another plan.
        """
        for name, row in dict.fromkeys((name, row) for name, row, _ in cells):
            OutFolder.check(self.row_folder(name, row), self.row_plan(name, row))
        for cell in cells:
            OutFolder.check(self.folder_of(*cell), self.plan_of(*cell))
        return [cell for cell in cells if cell not in self.before and not (self.folder_of(*cell) / "cell.json").exists()]

    def cost(self, cells: Sequence[tuple[str, str, str]]) -> dict[str, int]:
        """Return the passes, those with gradients, and the images of cells, with erasers and plain images that are not kept yet; without searches.

        That a sampling rule takes more passes a step is not counted.
        """
        pairs = dict.fromkeys((name, row) for name, row, _ in cells)
        erased = dict.fromkeys((name, part) for name, row in pairs for part in self.rows.parts(row))
        spent = [self.rows.work_of(part) for name, part in erased if not (self.row_folder(name, part) / "patch.safetensors").exists()]
        plain = dict.fromkeys([*((name, BASE) for name, _ in pairs), *pairs])
        drawn_anew = sum(not (self.row_folder(*pair) / "before.safetensors").exists() for pair in plain)
        images = self.settings.each * (drawn_anew + sum(self.attempts(attack) for _, _, attack in cells))
        passes = images * self.settings.image_steps * (1 if self.settings.guidance == 1 else 2) + sum(one for one, _ in spent)
        return {"passes": passes, "training_passes": sum(trained for _, trained in spent), "images": images}

    def searching(self, cells: Sequence[tuple[str, str, str]], second_per_pass: float) -> tuple[int, float]:
        """Return the passes of the searches, and their seconds where none goes on past the budget; searches of words alone make no passes."""
        spent = [self.work_of(attack) for _, _, attack in cells]
        seconds = sum(min(self.settings.budget, (plain + 3 * trained) * second_per_pass) for plain, trained in spent)
        return sum(plain + trained for plain, trained in spent), seconds

    def measure(self, cells: Sequence[tuple[str, str, str]], limit: float | None = None) -> int:
        """Make cells that are not there yet, and stop at the first boundary after the limit in seconds.

        Returns:
            How many were made now.

        Raises:
            Mismatch: the folder of a row or a cell holds one of another plan, or a model that was given has another base.
            Misconfigured: the model cannot be sampled in so many steps.
        """
        started, made = time.monotonic(), 0
        todo = self.left(cells)
        self.rows.check([(self.subjects[name], row) for name, row, _ in todo], self.settings.image_steps)
        for place, (name, row, attack) in enumerate(todo):
            if limit is not None and time.monotonic() - started >= limit:
                self.session.display.say(f"{limit:g} s are over: {len(todo) - made} cells are left, and the same command goes on")
                break
            self.session.display.say(f"{name}: {attack} on {row} ({place + 1} of {len(todo)})")
            try:
                with OutFolder(self.row_folder(name, row), self.row_plan(name, row)):
                    self._make(name, row, attack)
                made += 1
            except torch.OutOfMemoryError:  # what else held the memory may be gone next time
                self.session.display.say(f"{name}: {attack} on {row} needs more memory than there is; the same command tries it again")
        return made

    def _make(self, name: str, row: str, attack: str) -> None:
        denoiser, seed, (concept, ground, _) = self.session.denoiser, self.session.seed, self.asked(name)
        folder, cell = OutFolder(self.folder_of(name, row, attack), self.plan_of(name, row, attack)), Cell(concept=name, row=row, attack=attack)
        try:
            stack = self._stack(name, row)
            cell = cell.model_copy(update={"patches": [patch.digest for patch in stack]})
            base = self._plain(name, BASE)
            with Patched(denoiser, [(patch, 1.0) for patch in stack]):
                before = self._plain(name, row)
                target = target_for(denoiser, concept, ground, seed, self.settings.image_steps, self.settings.guidance)
                found, spent = self._search(attack, denoiser, target, folder)
                after = kept(
                    folder / "shards/after.safetensors",
                    lambda: drawn(denoiser, found, target, judged_seeds(seed, ground.rows, found), self.session),
                )
            cell = self._judge(cell.model_copy(update=spent), concept, ground, found, (base, before, after), folder)
        except NoRoom:
            raise
        except FAILURES as error:
            cell = cell.model_copy(update={"failed": str(error).splitlines()[0]})
        write_atomically(folder / "cell.json", cell.model_dump_json(indent=1).encode())
        shutil.rmtree(folder / "shards", ignore_errors=True)

    def _search(self, attack: str, denoiser: Denoiser, target: Target, folder: OutFolder) -> tuple[Attack, dict[str, Any]]:
        before, start = denoiser.passes, time.monotonic()
        kept_in = folder / "shards"
        found = search(self.modules[attack], self.chosen[attack], denoiser, target, self.session, kept_in, self.session.seed, self.settings.budget)
        spent = {"attempts": found.attempts, "early": found.early, "seconds": round(time.monotonic() - start, 2), "passes": denoiser.passes - before}
        return found, spent

    def _stack(self, name: str, row: str) -> list[Patch]:
        """Return the patches of a row: those given, or made by its erasers, each once for all rows that it is part of.

        Raises:
            Unsupported: an eraser failed; it is not tried again in this sitting.
            OutOfMemoryError: nor is one that ran out of memory.
            NoRoom: the disk is full.
        """
        if row in self.rows.models:
            given = self.rows.given(self.subjects[name], row)
            return [] if given is None else [given]
        if self._made is not None and self._made[0] == (name, row):
            return self._made[1]
        stack = []
        for part in self.rows.parts(row):
            if (name, part) in self._failed:
                kind, reason = self._failed[name, part]
                raise kind(reason)
            folder = OutFolder(self.row_folder(name, part), self.row_plan(name, part))
            try:
                stack.append(self.rows.made(part, self.asked(name)[0], folder.path)[0])
            except NoRoom:
                raise
            except (torch.OutOfMemoryError, *FAILURES) as error:  # kept in words: an exception holds on to the memory of what raised it
                kind = torch.OutOfMemoryError if isinstance(error, torch.OutOfMemoryError) else Unsupported
                self._failed[name, part] = kind, f"{part}: {str(error).splitlines()[0]}"
                raise kind(self._failed[name, part][1]) from error
            shutil.rmtree(folder / "training", ignore_errors=True)
        self._made = (name, row), stack
        return stack

    def _plain(self, name: str, row: str) -> torch.Tensor:
        """Return what plain prompts draw on the model as it stands, which is that of the row; drawn once for all its attacks."""
        folder, rows = OutFolder(self.row_folder(name, row), self.row_plan(name, row)), self.asked(name)[1].rows
        seeds = [judged_seed(self.session.seed, prompt, 0) for prompt in rows]
        options = {"steps": self.settings.image_steps, "guidance": self.settings.guidance}

        def plain() -> torch.Tensor:
            bar = self.session.bar(f"{name}, {row}: plain images")
            return self.session.denoiser.generate([prompt.prompt for prompt in rows], seeds, **options, progress=bar)

        return kept(folder / "before.safetensors", plain)

    def _judge(self, cell: Cell, concept: Concept, ground: Ground, found: Attack, images: Sequence[torch.Tensor], folder: OutFolder) -> Cell:
        """Count, and keep the picture that brings most back: one that the plain prompt did not, the surest by the judge first."""
        asked = [ground.rows, ground.rows, repeated(ground.rows, found)]
        shown = [signs(self.judge, drawn_by, rows, concept) for drawn_by, rows in zip(images, asked, strict=True)]
        counts = {
            key: Share(hits=int(hits.sum()), n=len(hits), chance=chance)
            for key, (hits, chance) in counted(self.judge, concept, shown, found.attempts).items()
        }
        after, head = images[2], "style" if concept.kind == "style" else "title"
        hits = attempted(shown[2][1] & shown[2][0], found.attempts)
        broken = (hits & ~shown[1][1][:, None]).ravel()
        sure = self.judge.score(after, [row.title for row in asked[2]], [row.style for row in asked[2]])[head].probability
        best = int(np.lexsort((-np.asarray(sure), ~hits.ravel(), ~broken))[0])
        save_picture(to_pictures(after[best : best + 1])[0], folder.path, "shown.png", "")
        return cell.model_copy(update={"shares": counts, "prompt": found.prompts[best], "back": bool(hits.ravel()[best])})

    def results(self) -> Results:
        """Gather the cells that are there."""
        concepts, cells = [], []
        for name, subject in self.subjects.items():
            concept, rows = self.asked(name)[0], self.rows_of(name)
            pairs = [(row, attack) for row in dict.fromkeys([*MODELS, *rows]) for attack in self.attacks]
            there = [cell for pair in pairs if (cell := self.cell(name, *pair) or self.before.get((name, *pair)))]
            there = [cell.model_copy(update={"plan": self.mark(name, cell.row, cell.attack)}) for cell in there]
            plan = list(filter(self._of_bench, rows))
            rows = [row for row in dict.fromkeys([*MODELS, *rows]) if row in plan or any(cell.row == row for cell in there)]
            more = {"anchor": concept.anchor, "members": list(concept.members), "rows": rows}
            concepts.append(About(name=name, kind=subject.kind, reference=subject.reference, **more))
            cells += there
        model, settings = self.session.denoiser.name, asdict(self.settings)
        return Results(
            model=model, digests=self.digests, seed=self.session.seed, settings=settings, attacks=self.attacks, concepts=concepts, cells=cells
        )

    def tiles(self, results: Results, name: str) -> dict[tuple[str, str], Image.Image]:
        """Return, of every cell of a concept in this folder, the picture that the attack brought back, with what the model was told."""
        found: dict[tuple[str, str], Image.Image] = {}
        for cell in (cell for attacked in results.of(name).values() for cell in attacked.values()):
            file = self.folder_of(name, cell.row, cell.attack) / "shown.png"
            if file.exists():
                with Image.open(file) as picture:
                    found[cell.row, cell.attack] = tile(picture, cell.prompt, cell.back)
        return found
