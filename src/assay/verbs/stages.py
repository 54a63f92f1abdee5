"""The stages of the main job: each asks one question and answers it with one record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.concept import Concept
from assay.denoiser import to_pictures
from assay.errors import Unsupported
from assay.judge import JudgeLike
from assay.memorization import nearest
from assay.noise import numpy_generator
from assay.patch import Patch
from assay.patched import Patched
from assay.record import Metric, Record, Table
from assay.reports.pictures import grid, save_picture
from assay.verbs import references
from assay.verbs.erase import concept_for
from assay.verbs.evaluate import SHOWS_NOT, Scene, accuracies, distances, head_of, images_of, judge_for, pair_prompt, scene
from assay.verbs.methods import method_row
from assay.verbs.plan import ATTACKS, METHODS, Plan
from assay.verbs.session import Session
from assay.works import Works
from assay.works import concepts as known
from assay.works import info as describe


@dataclass
class MainJob:
    """One run: what the stages share, and the stages."""

    session: Session
    works: Works
    plan: Plan
    folder: Path

    @cached_property
    def judge(self) -> JudgeLike:
        """Who judges every image of the run."""
        return judge_for(self.session, self.works)

    @cached_property
    def style(self) -> Concept:
        """The style to erase.

        Raises:
            Unsupported: the member works show fewer than two styles.
        """
        styles = known.styles(self.works.where(lambda row: row["split"] == "member" and row["copies"] > 0))
        if len(styles) < 2:
            raise Unsupported("The works show fewer than two styles, so there is no style to erase.", "Declare styles in the works.")
        return concept_for(self.session, self.works, self.plan.style or ("twemoji" if self.session.built_in else styles[1]), "style")

    @cached_property
    def object(self) -> Concept:
        """The object family to erase.

        Raises:
            Unsupported: the works declare no titles.
        """
        titles = known.titles(self.works.where(lambda row: row["split"] == "member" and row["copies"] > 0))
        words = Counter(word for title in titles for word in dict.fromkeys(title.lower().split()))
        most = [word for word, number in words.most_common() if number <= max(1, len(titles) // 2)]
        if not most and not self.plan.object:
            raise Unsupported("The works declare no titles, so there is no object to erase.", "Declare titles in the works.")
        return concept_for(self.session, self.works, self.plan.object or ("cat" if self.session.built_in else most[0]), "object")

    def check(self) -> None:
        """Find out now what would otherwise stop the run half-way: an unknown concept, a setting out of range.

        Raises:
            Missing: the works know no such style or object.
            Misconfigured: a setting is out of range.
        """
        nearest.check(self.plan.audit)
        for name in ("style", "object"):
            with suppress(Unsupported):  # a stage that cannot be answered says so in the report
                concept = getattr(self, name)
                for method in METHODS:
                    module = import_module(method_row("erasure", method)["module"])
                    module.check(self.session.denoiser, concept, self.eraser_settings(module))
        for name in ATTACKS:
            module, settings = self.plan.attack(name)
            module.check(settings)

    def eraser_settings(self, module: Any) -> Any:
        """Return the settings of a method of erasure."""
        return self.plan.of(module, self.plan.preset or self.session.preset(module.PRESETS))

    def scene(self, concept: Concept | None) -> Scene:
        """Return the prompts that an erasure is judged by."""
        return scene(self.session, self.works, concept, each=self.plan.each)

    def images(self, what: Scene, kept: Path, label: str) -> torch.Tensor:
        """Generate the images of a scene, resumable."""
        options = {"seed": self.session.seed, "steps": self.plan.steps, "guidance": self.plan.guidance}
        return images_of(self.session.denoiser, what.rows, **options, folder=kept, progress=self.session.bar(label))

    def scene_images(self, what: Scene, concept: Concept, name: str) -> torch.Tensor:
        """Return a concept's scene as the base draws it, or with the concept erased by a method; kept for every stage of the run that shows it."""
        kept, label = self.folder / f"shards/{concept.kind}-{name}", f"{concept.name}: {name}"
        if name == "base":
            return self.images(what, kept, label)
        with Patched(self.session.denoiser, [(self.erased(concept, name), 1.0)]):
            return self.images(what, kept, label)

    def erased(self, concept: Concept, method: str) -> Patch:
        """Erase a concept, or read the patch if it was made before."""
        where = self.folder / f"patches/{concept.kind}-{method}"
        if (where / "patch.safetensors").exists():
            return Patch.load(where)
        module = import_module(method_row("erasure", method)["module"])
        chosen = self.eraser_settings(module)
        bar = self.session.bar(f"erasing {concept.name} by {method}")
        made = module.erase(self.session.denoiser, concept, chosen, seed=self.session.seed, progress=bar, folder=where / "training")
        made.save(where / "patch.safetensors")
        return made

    def first_look(self, out: Path) -> Record:
        """Show the same prompts in every style, before and after one style is erased.

        Raises:
            Unsupported: the works declare no titles.
        """
        every = known.styles(self.works)
        styles = every[:4]  # as many as fit beside each other
        shown = f"The works have {len(every)} styles." if len(every) == len(styles) else f"Shown are {len(styles)} of the works' {len(every)} styles."
        drawn_in: dict[str, set[str]] = {}
        for title, style, split in zip(*(self.works.column(name) for name in ("title", "style", "split")), strict=True):
            if title and style in styles and split == "member":
                drawn_in.setdefault(title, set()).add(style)
        complete = [title for title, found in drawn_in.items() if len(found) == len(styles)] or list(drawn_in)
        if not complete:
            raise Unsupported("The works declare no titles, so there is nothing to ask for by name.", "Declare titles in the works.")
        chosen = numpy_generator(self.session.seed, "first look").permutation(np.array(complete, dtype=object))[:5].tolist()
        what = Scene([pair_prompt(self.session, title, style) for title in chosen for style in styles], {})
        before = to_pictures(self.images(what, out / "shards/base", "first look: base"))
        with Patched(self.session.denoiser, [(self.erased(self.style, "uce"), 1.0)]):
            after = to_pictures(self.images(what, out / "shards/uce", f"first look: {self.style.name} erased"))
        columns = len(styles)
        rows = [before[i : i + columns] + after[i : i + columns] for i in range(0, len(before), columns)]
        picture = grid(
            rows, chosen, [*styles, *(f"{style} (erased)" if style == self.style.name else f"{style}, after" for style in styles)], scale=2
        )
        picture_of = save_picture(
            picture, out, "first-look.png", f"The same prompts in every style: left the base, right after erasing {self.style.name}."
        )
        self.session.display.say(f"first picture: {out / 'first-look.png'}")
        return self.session.record(
            "What does the model draw, and can one style be taken out?",
            method="uce",
            resolved=asdict(self.plan),
            findings=[f"{shown} UCE was told to put `{self.style.anchor}` in the place of `{self.style.name}`; how far it did is measured below."],
            shows_not=["A few prompts, drawn by lot; the chapters below measure."],
            pictures=[picture_of],
        )

    def describe_works(self, out: Path) -> Record:
        """Describe the works: creators, licences, splits."""
        return self._complete(describe.info(self.works))

    def find_duplicates(self, out: Path) -> Record:
        """Find near-duplicates among the works."""
        return self._complete(describe.duplicates(self.works, 0.05))

    def memorised(self, out: Path) -> Record:
        """Look for works that come out of the model."""
        made = nearest.audit(
            self.session.denoiser,
            self.works,
            self.plan.audit,
            judge=self.judge,
            seed=self.session.seed,
            progress=self.session.bar("memorisation"),
            folder=out / "shards",
        )
        pictures = [save_picture(image, out, name, _caption(name)) for name, image in made.pictures.items()]
        return self._complete(made.record.model_copy(update={"pictures": pictures}))

    def erase_style(self, out: Path) -> Record:
        """Erase a style by every method and measure what remains."""
        return self._erase(self.style, out)

    def erase_object(self, out: Path) -> Record:
        """Erase an object family by every method and measure what remains."""
        return self._erase(self.object, out)

    def _erase(self, concept: Concept, out: Path) -> Record:
        what = self.scene(concept)
        if "target" not in what.groups:
            raise Unsupported(f"No ordinary member shows `{concept.name}`, so its erasure cannot be measured.", "Choose another in the plan.")
        images = {"base": self.scene_images(what, concept, "base")}
        metrics = accuracies(self.judge, images["base"], what, "base.")
        patches: dict[str, Patch] = {}
        for method in METHODS:
            images[method], patches[method] = self.scene_images(what, concept, method), self.erased(concept, method)
            metrics += accuracies(self.judge, images[method], what, f"{method}.")
            metrics += distances(self.judge, images[method], images["base"], what, self.session.seed, f"{method}.")
        protocol = references.Protocol.of(self.session, self.judge, self.works, self.plan.steps, self.plan.guidance)
        beside = references.stored(protocol, concept)
        chosen = [index for indices in what.groups.values() for index in indices[:4]]
        rows = [to_pictures(torch.stack([images[name][index] for name in images])) for index in chosen]
        labels = [f"{what.rows[index].title}, {what.rows[index].style}" for index in chosen]
        picture = grid(rows, labels, ["base", *METHODS], scale=2)
        caption = f"The same prompts and seeds: {concept.name} erased. Rows from the top: target, neighbours, everything else."
        return self.session.record(
            f"Can the {concept.kind} `{concept.name}` be taken out, and what else goes with it?",
            method=", ".join(METHODS),
            given={"concept": concept.name, "kind": concept.kind},
            resolved=asdict(self.plan) | {"anchor": concept.anchor, "members": list(concept.members), "template": what.rows[0].prompt},
            digests={"judge": self.judge.digest, "works": self.works.digest} | {f"patch:{name}": patch.digest for name, patch in patches.items()},
            metrics=metrics + beside,
            findings=_erasure_findings(metrics, concept, head_of(concept)) + references.findings(beside, concept, head_of(concept)),
            shows_not=SHOWS_NOT,
            tables=[_erasure_table(metrics + beside)],
            pictures=[save_picture(picture, out, "erased.png", caption)],
        )

    def quality(self, out: Path) -> Record:
        """Measure what the base can draw: trained pairs, pairs never trained, and the works themselves as the yardstick."""
        metrics: list[Metric] = []
        shown: list[list[Any]] = []
        labels: list[str] = []
        for name, keep in (("trained", "member"), ("untrained", "holdout")):
            rows = self.works.where(
                lambda row, keep=keep: row["split"] == keep and bool(row["title"]) and bool(row["style"]) and "canary" not in row["attributes"]
            )
            rows = rows.take(range(0, len(rows), max(1, len(rows) // self.plan.quality))[: self.plan.quality])
            if not len(rows):
                continue
            what = Scene([pair_prompt(self.session, row["title"], row["style"]) for row in rows], {name: list(range(len(rows)))})
            made = self.images(what, out / f"shards/{name}", f"quality: {name} pairs")
            real = torch.from_numpy(rows.pixels(64)).permute(0, 3, 1, 2).float() / 255
            metrics += accuracies(self.judge, made, what) + accuracies(self.judge, real, what, "real.")
            count = min(8, len(rows))
            shown += [[rows.image(index) for index in range(count)], to_pictures(made[:count])]
            labels += ["works, trained" if name == "trained" else "works, never trained", "generated"]
        size = max((image.width for row in shown for image in row), default=64)
        shown = [[image.resize((size, size)) for image in row] for row in shown]
        value = {metric.name: metric for metric in metrics}
        found = []
        for name in ("trained", "untrained"):
            for head in ("style", "title"):
                ours, theirs = value.get(f"{name}.{head}"), value.get(f"real.{name}.{head}")
                if ours and theirs and ours.value is not None and theirs.value:
                    seen = f"names the {head} of {ours.value:.0%} of images, of {theirs.value:.0%} of the real works"
                    found.append(f"On {name} pairs the judge {seen}: ratio {ours.value / theirs.value:.2f}, n = {ours.n}.")
        return self.session.record(
            "How well does the base draw what it was trained on, and what it was not?",
            resolved=asdict(self.plan),
            digests={"judge": self.judge.digest, "works": self.works.digest},
            metrics=metrics,
            findings=found or ["The works declare no titles and styles, or the judge cannot name the real works', so quality could not be judged."],
            shows_not=[
                "The judge is itself uncertain: read its accuracy on real works beside each figure.",
                "Fidelity to a trained pair is no proof of memorising it.",
            ],
            pictures=[
                save_picture(grid(shown, labels, scale=2), out, "quality.png", "Works and what the model draws for the same titles and styles.")
            ]
            if shown
            else [],
        )

    def _complete(self, record: Record) -> Record:
        ours = self.session.record(record.question)
        update = {
            "digests": ours.digests | record.digests,
            "seeds": ours.seeds,
            "versions": ours.versions,
            "command": "run",
            "again": ours.again,
            "peak_memory": ours.peak_memory,
        }
        return record.model_copy(update=update)


def _caption(name: str) -> str:
    return {"clearest.png": "The clearest match: the work, then what the model draws from its caption. The table says whose it is."}.get(
        name, name.removesuffix(".png").replace("-", " ")
    )


def _erasure_table(metrics: Sequence[Metric]) -> Table:
    value = {metric.name: metric for metric in metrics}
    family = ["target.family"] if "base.target.family" in value else []
    columns = [
        "target.style",
        "target.title",
        *family,
        "neighbours.style",
        "neighbours.title",
        "rest.style",
        "rest.title",
        "kid.judge",
        "kid.judge.floor",
    ]
    rows = []
    beside = [prefix.rstrip(".") for prefix in (references.PREFIX, references.AGAIN) if any(name.startswith(prefix) for name in value)]
    called = {"reference": "trained without it", "again": "trained with another seed"}
    for method in ("base", *METHODS, *beside):
        cells = [value.get(f"{method}.{column}") for column in columns]
        rows.append([called.get(method, method), *(None if cell is None or cell.value is None else round(cell.value, 4) for cell in cells)])
    return Table(title="Accuracy by method, and distance from the base on what was to stay", columns=["method", *columns], rows=rows)


def _erasure_findings(metrics: Sequence[Metric], concept: Concept, head: str) -> list[str]:
    value = {metric.name: metric for metric in metrics}
    found = []
    base, aside = value.get(f"base.target.{head}"), "title" if head == "family" else head
    chance = base.chance or 0.0 if base else 0.0
    for method in METHODS:
        now = value.get(f"{method}.target.{head}")
        if base is None or now is None or now.value is None or base.value is None:
            continue
        interval = f"95 % interval {now.low or 0:.0%} to {now.high or 0:.0%}, n = {now.n}, chance {chance:.0%}"
        said = f"{method.upper()} brings `{concept.name}` from {base.value:.0%} to {now.value:.0%} ({interval})"
        for part, words in (("neighbours", "its neighbours"), ("rest", "everything else")):
            before, after = (value.get(f"{row}.{part}.{aside}") for row in ("base", method))
            if before and after and before.value is not None and after.value is not None:
                said += f"; {words} from {before.value:.0%} to {after.value:.0%} (n = {after.n})"
        found.append(f"{said}.")
    if base and base.low is not None and base.low <= chance:
        found.insert(0, f"That the base itself shows `{concept.name}` more often than chance is not certain, so its erasure says little.")
    return found or [f"The judge cannot name `{concept.name}`, so its erasure could not be measured."]
