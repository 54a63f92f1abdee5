"""The mark that an erasure is held against: what a model draws for a concept that it was never shown, and how far apart two seeds are.

References are as large as the model and do not ship; what they were measured to do does, in `zoo/references.json`, which `benchmarks/references.py`
writes. A figure is shown only beside figures of the same model, judge, works, sampler and concept. A reference of one's own is measured on the spot.

Beside them lie the floors of attacks: on how many prompts the same attack by the same settings brings the concept out of the reference. A file that
is written anew keeps those that were measured before; each carries its own protocol, and counts under no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from assay.concept import Concept
from assay.errors import BadInput, Missing
from assay.judge import JudgeLike
from assay.record import Metric, write_atomically
from assay.verbs.session import Session, zoo
from assay.works import Works

FILE = "references.json"
PREFIX = "reference."
AGAIN = "again."
"""Before the names of figures of a model that differs from the base in its seed alone."""


class Protocol(NamedTuple):
    """What two accuracies must share to be compared."""

    model: str
    """Digest of the base."""
    judge: str
    """Digest of the judge."""
    works: str
    """Digest of the works that prompts are drawn from."""
    steps: int
    """DDIM steps."""
    guidance: float
    """Scale of classifier-free guidance."""

    @classmethod
    def of(cls, session: Session, judge: JudgeLike, works: Works, steps: int, guidance: float) -> Protocol:
        """Return the protocol of a measurement that is being made."""
        return cls(session.denoiser.digest, judge.digest, works.digest, steps, float(guidance))


def key(concept: Concept) -> str:
    """Return what tells one concept from another: kind, name and a digest of the titles it covers."""
    titles = hashlib.sha256("\n".join(sorted(concept.members)).encode()).hexdigest()[:12]
    return f"{concept.kind}:{concept.name}:{titles}"


def write(file: Path, protocol: Protocol, figures: dict[str, dict[str, Any]]) -> None:
    """Write the figures of references.

    Args:
        file: to write.
        protocol: how they were measured.
        figures: `key` of a concept -> {"reference": its name, "metrics": metrics of the reference, and of A' with the prefix `again.`}.
    """
    before = json.loads(file.read_text(encoding="utf-8"))["concepts"] if file.exists() else {}
    floored = {name: {"attacks": row["attacks"]} for name, row in before.items() if row.get("attacks")}
    kept = {name: {"reference": before[name]["reference"], "metrics": []} | attacks for name, attacks in floored.items() if name not in figures}
    concepts = kept | {name: row | floored.get(name, {}) for name, row in figures.items()}
    _write(file, {"schema": "assay/references/1", "protocol": protocol._asdict(), "concepts": concepts})


def write_floor(file: Path, protocol: Protocol, concept: Concept, attack: str, settings: Any, floor: tuple[int, int]) -> None:
    """Add the floor of an attack to the figures of a concept, in place of an older one.

    Args:
        file: that holds figures of the concept.
        protocol: how it was measured.
        concept: what the reference never saw.
        attack: its name.
        settings: of the attack.
        floor: successes and prompts.

    Raises:
        Missing: the file holds no figures of the concept.
    """
    about = json.loads(file.read_text(encoding="utf-8"))
    if key(concept) not in about["concepts"]:
        raise Missing(f"{file} holds no reference of `{concept.name}`.", "Measure the reference itself first.")
    row = {"settings": asdict(settings), "protocol": protocol._asdict(), "successes": floor[0], "n": floor[1]}
    about["concepts"][key(concept)].setdefault("attacks", {})[attack] = row
    _write(file, about)


def _write(file: Path, about: dict[str, Any]) -> None:
    write_atomically(file, (json.dumps(about, indent=1) + "\n").encode())


def floors(protocol: Protocol, concept: Concept, attacks: Mapping[str, Any], file: Path | None = None) -> dict[str, tuple[int, int]]:
    """Return what attacks bring out of a model that never saw the concept: attack -> successes and prompts; none that was measured otherwise.

    Args:
        protocol: of the successes that these are to stand beside.
        concept: what was erased.
        attacks: name -> settings.
        file: where floors are kept; those that ship with assay if None.

    Raises:
        BadInput: the file is damaged.
    """
    found = {}
    for name, row in _row(concept, file or zoo(FILE)).get("attacks", {}).items():
        try:
            same = row["n"] > 0 and name in attacks and row["settings"] == asdict(attacks[name]) and Protocol(**row["protocol"]) == protocol
            if same:
                found[name] = int(row["successes"]), int(row["n"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(*_damage(file or zoo(FILE), error)) from error
    return found


def stored(protocol: Protocol, concept: Concept | None, file: Path | None = None) -> list[Metric]:
    """Return what is known of a model that never saw the concept; nothing, if it was measured otherwise or not at all.

    Args:
        protocol: of the figures that these are to stand beside.
        concept: the target.
        file: where figures are kept; those that ship with assay if None.

    Raises:
        BadInput: the file is damaged.
    """
    file = file or zoo(FILE)
    if concept is None or not file.exists():
        return []
    row = _row(concept, file)
    try:
        if Protocol(**json.loads(file.read_text(encoding="utf-8"))["protocol"]) != protocol:
            return []
        return [Metric.model_validate(metric) for metric in row.get("metrics", [])]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise BadInput(*_damage(file, error)) from error


def _row(concept: Concept, file: Path) -> dict[str, Any]:
    """Return what a file holds of a concept.

    Raises:
        BadInput: the file is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))["concepts"].get(key(concept), {}) if file.exists() else {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(*_damage(file, error)) from error


def _damage(file: Path, error: Exception) -> tuple[str, str]:
    return f"{file} cannot be read: {error}.", "It may be damaged; install assay anew."


def findings(metrics: Sequence[Metric], concept: Concept | None, head: str) -> list[str]:
    """Say what perfect erasure leaves, and how far apart two trainings are that differ in nothing but the seed."""
    value = {metric.name: metric for metric in metrics}
    found = []
    if concept is not None and not any(name.startswith(PREFIX) for name in value):
        why = "so nothing here says what erasing it wholly would leave"
        found.append(f"No model trained without `{concept.name}` was measured in this way, {why}.")
    mark = value.get(f"{PREFIX}target.{head}")
    if concept is not None and mark is not None and mark.value is not None and mark.low is not None and mark.high is not None:
        found.append(
            f"A model trained anew without `{concept.name}` shows it in {mark.value:.0%} of images "
            f"({mark.low:.0%} to {mark.high:.0%}, n = {mark.n}): that is what erasing it wholly would leave."
        )
    distance, seeds = value.get(f"{PREFIX}kid.judge"), value.get(f"{AGAIN}kid.judge")
    if distance is not None and distance.value is not None:
        beside = f"; of two trainings that differ in the seed alone {seeds.value:.3g}" if seeds is not None and seeds.value is not None else ""
        found.append(f"On prompts that were to stay, KID of that model to the base is {distance.value:.3g}{beside}.")
    elif seeds is not None and seeds.value is not None:
        found.append(f"On prompts that were to stay, KID of two trainings that differ in the seed alone is {seeds.value:.3g}.")
    return found
