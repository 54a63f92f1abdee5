"""Which works an audit asks for: canaries by copies and arm, ordinary members, and works never trained, to set thresholds on and to check them.

What an audit returns is here too, as all have both in common.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from PIL import Image

from assay.denoiser import Denoiser
from assay.errors import BadInput, Misconfigured, Unsupported
from assay.noise import derive
from assay.patched import standing
from assay.record import Record, versions
from assay.training.gan import GAN
from assay.works import Works


class Audit(NamedTuple):
    """What an audit found, and the pictures that its tables name."""

    record: Record
    """The testimony, without pictures."""
    pictures: dict[str, Image.Image]
    """File name -> picture; first the clearest match."""


Sampler = Denoiser | GAN
"""Whatever draws images from captions and seeds: all that an audit of images asks of a model."""


def state(model: Sampler) -> str:
    """Return a digest of what a model's outputs depend on: of a denoiser as it stands, with patches and rules; of any other, which takes none."""
    return standing(model) if isinstance(model, Denoiser) else model.digest


def completed(record: Record, denoiser: Sampler, works: Works, *, seed: int, started: float, passes: int, **digests: str) -> Record:
    """Return the record with what every audit adds to it at the end.

    Args:
        record: the testimony.
        denoiser: the model.
        works: the table.
        seed: of everything random.
        started: when the audit began, by `time.monotonic`.
        passes: that the model had made by then.
        **digests: of whatever else it rests on.
    """
    about = {
        "digests": {"model": denoiser.digest, "works": works.digest, **digests},
        "seeds": {"seed": seed},
        "seconds": round(time.monotonic() - started, 2),
        "passes": denoiser.passes - passes,
        "versions": versions(),
    }
    return record.model_copy(update=about)


class Group(NamedTuple):
    """Works that are judged together."""

    kind: str
    """calibration, holdout, members, canary, or mine: works that somebody asks after."""
    arm: str | None
    """Of canaries: one caption, or varied."""
    dose: int
    """Copies in training."""
    works: list[int]
    """Their rows in the table."""

    @property
    def label(self) -> str:
        """How metrics name it."""
        return self.kind if self.arm is None else f"k{self.dose}" if self.arm == "one" else f"{self.arm}.k{self.dose}"

    @property
    def words(self) -> str:
        """How tables name it."""
        if self.arm is None:
            return {"members": "ordinary members", "mine": "works asked after"}.get(self.kind, f"{self.kind} works, never trained")
        caption = {"one": "one caption", "varied": "varied captions"}.get(self.arm, self.arm)
        return f"canaries, {caption}, k = {self.dose}" + (" (control)" if self.dose == 0 else "")


class Sizes(Protocol):
    """How many works of each split to choose, at most: settings of any audit."""

    @property
    def members(self) -> int:
        """Ordinary members."""
        ...

    @property
    def calibration(self) -> int:
        """Calibration works."""
        ...

    @property
    def holdout(self) -> int:
        """Holdout works."""
        ...


def check_sizes(settings: Sizes) -> None:
    """Raise if so many works cannot be chosen.

    Raises:
        Misconfigured: a number is negative, or there would be no calibration works: thresholds would be set on works that are judged.
    """
    if min(settings.members, settings.holdout) < 0 or settings.calibration < 1:
        raise Misconfigured("`members` and `holdout` cannot be negative, and `calibration` is at least 1, for thresholds.", "Use a preset.")


def choose(works: Works, settings: Sizes, seed: int, mine: Sequence[int] = ()) -> list[Group]:
    """Say which works to ask for, group by group; a work's place in the lottery depends on seed and id alone.

    Ordinary members are those of the commonest number of copies; calibration and holdout works are those that were never shown.

    Works that declare a `subset` none of which was trained are left out: they are not like the others. Where somebody asks after works, rows `mine`,
    nobody knows what they are: they come last, a group of their own; members need not be known, and canaries are not asked for.

    Raises:
        BadInput: a canary's dose is no number.
        Unsupported: there are no calibration works, or nothing to audit.
    """
    rows = works.table.drop_columns(["image"]).to_pylist()
    attributes = [dict(row["attributes"] or []) for row in rows]
    asked = set(mine)
    others = [(index, row, about) for index, (row, about) in enumerate(zip(rows, attributes)) if index not in asked]
    trained = {about.get("subset") for _, row, about in others if row["split"] == "member" and row["copies"]}
    like = trained or {about.get("subset") for about in attributes}
    canaries: dict[tuple[str, int], list[int]] = {}
    plain: dict[str, list[int]] = {"calibration": [], "holdout": [], "member": []}
    usual = Counter(row["copies"] for _, row, about in others if row["split"] == "member" and row["copies"] and "canary" not in about)
    dose = max(usual, key=lambda copies: (usual[copies], -copies), default=1)
    wanted = {"calibration": 0, "holdout": 0, "member": dose}
    for index, row, about in others:
        if "canary" in about and "dose" in about:
            if not about["dose"].isdigit():
                raise BadInput(f"Work {row['id'][:12]} declares the dose `{about['dose']}`.", "A dose is a whole number of copies.")
            canaries.setdefault((about["canary"], int(about["dose"])), []).append(index)
        elif row["split"] in plain and about.get("subset") in like and row["copies"] == wanted[row["split"]]:
            plain[row["split"]].append(index)
    if not trained and not mine:
        raise Unsupported("The works have no members, so there is nothing to audit.", "Declare what the model was trained on: `split` = member.")
    if not plain["calibration"]:
        raise Unsupported(
            "The works have no calibration split, so no similarity can be called suspicious.",
            "Declare works that the model never saw: `split` = calibration (and holdout, to check the rate).",
        )
    most = {"calibration": settings.calibration, "holdout": settings.holdout, "member": settings.members}
    drawn = {name: sorted(found, key=lambda index: derive(seed, "audit", rows[index]["id"]))[: most[name]] for name, found in plain.items()}
    groups = [
        Group("calibration", None, 0, drawn["calibration"]),
        Group("holdout", None, 0, drawn["holdout"]),
        Group("members", None, dose, drawn["member"]),
    ]
    if mine:
        groups.append(Group("mine", None, 1, list(mine)))
    else:
        groups += [Group("canary", arm, dose, canaries[arm, dose]) for arm, dose in sorted(canaries)]
    return [group for group in groups if group.works]
