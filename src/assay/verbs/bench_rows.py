"""The rows of a bench: every eraser, made once for a concept and kept until asked for again, and the models that erasers are held against."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from assay import settings as method_settings
from assay.benches.erasure import BASE, COMBINATIONS, REFERENCE, Subject
from assay.concept import Concept
from assay.errors import Misconfigured, Mismatch
from assay.patch import Patch
from assay.patched import Patched
from assay.record import write_atomically
from assay.training.world import REFERENCES
from assay.verbs.methods import method_row, table
from assay.verbs.session import Session, bare_speed, peak_since, reset_peak

AGAINST_COPIES = ("adversarial_finetune", "caption_augmentation", "embedding_noise", "lower_magnitude", "nemo", "random_tokens", "wanda")
"""Methods that keep copies of memorised works from coming out and leave every concept in: no rows here, `benchmarks/mitigations.py` measures them."""
KEEPS = "What it does to copies is in `benchmarks/mitigations.json`; `assay methods erasure` lists the erasers."


class Rows:
    """Erasers with their settings, and models given as patches.

    A row is an eraser, with a preset of its own where one follows after `@`, several joined by `+` whose patches are put on together, or one of the
    models.

    Args:
        session: model, seed and display.
        subjects: the concepts of the bench.
        patches: models of the rows that are no erasers, by name: such a row, or a training of the built-in world.
        models: the rows that are no erasers.
    """

    def __init__(self, session: Session, subjects: Sequence[Subject], patches: Mapping[str, Path], models: Sequence[str]) -> None:
        """Know the methods and what they are set to.

        Raises:
            Misconfigured: a patch is named that no row asks for.
            Mismatch: a training of the built-in world is given under another's name.
        """
        self.session, self.models, self.kinds = session, tuple(models), {subject.kind for subject in subjects}
        names = {*models, *(subject.reference for subject in subjects)} - {BASE, ""}
        if unknown := [name for name in patches if name not in names]:
            raise Misconfigured(f"No row of the bench is called `{unknown[0]}`.", f"Name the patches {', '.join(sorted(names))}.")
        self.patches = {name: Patch.load(path) for name, path in patches.items()}
        for name, patch in self.patches.items():
            own = next((own for own in REFERENCES if patch.manifest.made_for.endswith(f" ({own})")), name)
            if name in REFERENCES and own != name:
                raise Mismatch(f"{patches[name]} was trained as `{own}`, not as `{name}`.", f"Give it as `--patch {own}=`, or another model.")
        self.modules = {row["name"]: import_module(row["module"]) for row in table("erasure") if row["name"] not in AGAINST_COPIES}

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """The settings of every method: small for a built-in model, else the paper's, for concepts of this kind where all are of one."""
        found = {}
        for name, module in self.modules.items():
            preset = self.session.preset(module.PRESETS, self.kinds)
            found[name] = method_settings.resolve(module.Settings, module.PRESETS, preset, {})
        return found

    def settings_of(self, part: str, kind: str = "") -> Any:
        """Return the settings of an eraser; `@paper` are those that the paper has for concepts of a kind, where it has such."""
        name, _, preset = part.partition("@")
        if not preset:
            return self.chosen[name]
        module, own = self.modules[name], f"{preset}-{kind}"
        return method_settings.resolve(module.Settings, module.PRESETS, own if own in module.PRESETS else preset, {})

    def parts(self, row: str) -> list[str]:
        """Return the erasers whose patches make up a row; none of a model's."""
        return [] if row in self.models else row.split("+")

    def specials(self, kept: Path, more: Sequence[str]) -> list[str]:
        """Return the rows that are no plain eraser: combinations of the bench, what is asked for, and what a folder of cells holds already."""
        before = self.special(sorted(folder.name for folder in kept.glob("*/*[+@]*")))
        return list(dict.fromkeys([*COMBINATIONS, *(row for row in more if row not in self.modules), *before]))

    def special(self, rows: Iterable[str]) -> list[str]:
        """Return those of some rows that are several erasers, or one with a preset of its own, each known."""

        def known(part: str) -> bool:
            name, at, preset = part.partition("@")
            return name in self.modules and (not at or preset in self.modules[name].PRESETS)

        return [row for row in dict.fromkeys(rows) if row not in self.modules and all(map(known, row.split("+")))]

    def work_of(self, row: str) -> tuple[int, int]:
        """Return the passes of an erasure, and those with gradients."""
        spent = [self.modules[part.partition("@")[0]].cost(self.settings_of(part)) for part in self.parts(row)]
        return sum(one["passes"] for one in spent), sum(one.get("training_passes", 0) for one in spent)

    def cheapest(self, rows: Sequence[str]) -> list[str]:
        """Return erasers by what they cost, a pass with gradients priced at three."""
        return sorted(rows, key=lambda row: (self.work_of(row)[0] + 3 * self.work_of(row)[1], row))

    def given(self, subject: Subject, row: str) -> Patch | None:
        """Return the patch given for a row that is no eraser."""
        return self.patches.get(row) or (self.patches.get(subject.reference) if row == REFERENCE else None)

    def there(self, subject: Subject, row: str) -> bool:
        """Return whether a row can be measured: a model but the base needs a patch."""
        return row not in self.models or row == BASE or self.given(subject, row) is not None

    def check(self, cells: Iterable[tuple[Subject, str]], steps: int) -> None:
        """Refuse before anything is drawn what no cell could be made with.

        Args:
            cells: what is to be made: concept and row.
            steps: of the sampler.

        Raises:
            Misconfigured: the model cannot be sampled in so many steps.
            Mismatch: a model that was given has another base.
        """
        given = [self.given(subject, row) for subject, row in cells if row in self.models]
        self.session.check(steps)
        for patch in {patch.digest: patch for patch in given if patch is not None}.values():
            Patched(self.session.denoiser, [(patch, 1.0)]).clear()

    def plan_of(self, subject: Subject, row: str) -> Any:
        """Return what a row is made of: an eraser's settings, those of each of several, or the digest of a given patch."""
        if parts := self.parts(row):
            made = [asdict(self.settings_of(part, subject.kind)) for part in parts]
            return made[0] if len(made) == 1 else made
        given = self.given(subject, row)
        return None if given is None else given.digest

    def made(self, method: str, concept: Concept, folder: Path) -> tuple[Patch, dict[str, Any]]:
        """Make an eraser's patch, or read the one that was made before.

        Args:
            method: the eraser, with the preset of its own if it has one.
            concept: what to erase.
            folder: holds checkpoints while it is made, then the patch and what it cost; bound to a plan by the caller.

        Returns:
            The patch and its cost, by the names of the fields of `benches.erasure.Cell`.

        Raises:
            Unsupported: it is not finite.
        """
        if (folder / "cost.json").exists() and (folder / "patch.safetensors").exists():
            return Patch.load(folder / "patch.safetensors"), json.loads((folder / "cost.json").read_bytes())
        denoiser, module, chosen = self.session.denoiser, self.modules[method.partition("@")[0]], self.settings_of(method, concept.kind)
        bar = self.session.bar(f"erasing {concept.name} by {method}")
        resumed = any((folder / "training").rglob("*.*"))
        fresh, before, start = reset_peak(), denoiser.passes, time.monotonic()
        made = module.erase(denoiser, concept, chosen, seed=self.session.seed, progress=bar, folder=folder / "training")
        seconds, passes, peak = time.monotonic() - start, denoiser.passes - before, peak_since() if fresh else None
        folder.mkdir(parents=True, exist_ok=True)
        made.save(folder / "patch.safetensors")
        cost = {
            "seconds": round(seconds, 3),
            "passes": passes,
            "trained": min(passes, self.work_of(method)[1]),  # fewer, where an earlier sitting made some
            "resumed": resumed,
            "peak_bytes": peak,
            "second_per_pass": bare_speed(denoiser)[0] if passes else 0.0,
            "patch_bytes": (folder / "patch.safetensors").stat().st_size,
        }
        write_atomically(folder / "cost.json", json.dumps(cost, indent=1).encode())
        return made, cost

    def stacked(self, concept: Concept, places: Mapping[str, Path]) -> tuple[list[Patch], dict[str, Any]]:
        """Make the patches of a row's erasers, each in its place, and return them with what they cost together."""
        made = {part: self.made(part, concept, place) for part, place in places.items()}
        costs = [cost for _, cost in made.values()]
        peaks = [cost["peak_bytes"] for cost in costs]
        together = {name: sum(cost[name] for cost in costs) for name in ("seconds", "passes", "trained", "patch_bytes")}
        together |= {"seconds": round(together["seconds"], 3), "resumed": any(cost.get("resumed") for cost in costs)}
        together |= {"peak_bytes": None if None in peaks else max(peaks), "second_per_pass": max(cost["second_per_pass"] for cost in costs)}
        return [patch for patch, _ in made.values()], together


def known_rows(names: Sequence[str]) -> list[str]:
    """Return the rows that are asked for.

    Raises:
        Misconfigured: one is no eraser, nor several joined by `+`, has no such preset, or leaves every concept in.
    """
    for name in names:
        parts = name.split("+")
        for part, at, preset in (part.partition("@") for part in parts):
            presets = method_row("erasure", part)["presets"]
            if at and preset not in presets:
                raise Misconfigured(f"`{part}` has no preset `{preset}`.", f"It has {', '.join(presets)}.")
            if part in AGAINST_COPIES:
                raise Misconfigured(f"`{part}` keeps copies of works from coming out and leaves concepts in: it is no row of a bench.", KEEPS)
        if len({part.partition("@")[0] for part in parts}) < len(parts):
            raise Misconfigured(f"`{name}` names an eraser twice.", "A patch is put on once.")
    return list(names)
