"""Generates many images a prompt and takes those that agree with one another for copies, without looking at the works; then checks against them.

"Extracting Training Data from Diffusion Models". Nicholas Carlini, Jamie Hayes, Milad Nasr, Matthew Jagielski, Vikash Sehwag, Florian Tramer, Borja
Balle, Daphne Ippolito, Eric Wallace. USENIX Security 2023, arXiv 2301.13188, Secs. 3 and 4; no code was released. Written here from the paper.

Captions are asked for, the most copied first, `images` times each. Images of a prompt are compared by tiled l2; a clique of at least `clique` of them
within distance d predicts that they are a copy. Predictions are ranked by the mean distance within the clique, and its medoid stands for it. Then it
is held against all works: the caption's own is extracted if it, or a near-duplicate that the works declare, lies within delta of the medoid
((l, delta)-extraction, Def. 1). A medoid that is so near another work trained on, and not its own, is counted apart: the copies of the caption's work
say nothing of it. The nearest work trained on is k-eidetic if the works within delta of it have k copies among them (Def. 2). The adaptive distance
of Sec. 5.1 is printed beside: distance to the nearest work over half the mean distance to the nearest 50, which tells a copy from one more of many
that look alike (below 1).

d and delta are none of the paper's (0.15 at 512 pixels): they are set on captions of calibration works, which the model never saw, so that each
condition holds for a new such caption with at most the stated probability. Drawing a prompt stops when it has its clique, or when that has become
hopeless (`evaluation/cliques.py`); calibration captions are drawn whole. Works of the holdout and canaries that were withheld are asked for too: what
is extracted there is false.

Cost: at most images x captions samples. Known failure: a model that draws every caption much the same way agrees with itself without copying, so that
d is small and copies that vary are missed; what only few of a prompt's images copy makes no clique.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from assay.denoiser import Denoiser, to_pictures
from assay.errors import Misconfigured
from assay.evaluation.cliques import NONE, Clique, at_most, hopeless, tightest
from assay.evaluation.features import resized
from assay.evaluation.intervals import wilson
from assay.evaluation.similarity import adaptive, tiled_l2_pairs
from assay.evaluation.thresholds import Threshold, threshold_at
from assay.judge import JudgeLike
from assay.memorization.groups import Audit, Group, check_sizes, choose, completed
from assay.memorization.looks import SIZE
from assay.noise import derive
from assay.patched import standing
from assay.record import Curve, Metric, Record, Table, digest_of, kept_tensors, write_atomically
from assay.works import Works
from assay.works.clusters import declared


@dataclass(frozen=True)
class Settings:
    """Settings of extraction by generating and filtering."""

    images: int = 500
    """Images per caption, at most (Sec. 4.2: 500)."""
    clique: int = 10
    """Images that must agree (Sec. 4.2: 10)."""
    round: int = 50
    """Images drawn of a caption before it is looked whether it can stop."""
    steps: int = 50
    """DDIM steps."""
    guidance: float = 7.5
    """Scale of classifier-free guidance."""
    false_positive_rate: float = 0.02
    """Probability that images of a caption never trained agree as near as copies do; and that one comes as near to its own or a training work."""
    members: int = 1000
    """Ordinary members to ask for, at most."""
    calibration: int = 400
    """Calibration works to ask for, at most."""
    holdout: int = 400
    """Holdout works to ask for, at most."""
    matches: int = 8
    """Predictions to show."""
    batch: int = 32
    """Images a pass."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"images": 12, "clique": 4, "round": 6, "steps": 15, "guidance": 4.0, "members": 20, "calibration": 60, "holdout": 40},
}
PROBE: dict[str, Any] = {"images": 4, "clique": 2, "round": 2, "steps": 2, "members": 2, "false_positive_rate": 0.5}
NEIGHBOURS, ALPHA = 50, 0.5
"""Of the adaptive distance (Sec. 5.1)."""


class Prompt:
    """One caption: its work, the images drawn so far, and how they agree."""

    def __init__(self, work: int, group: Group) -> None:
        """Start without images."""
        self.work, self.group = work, group
        self.images = np.empty((0, 3, SIZE, SIZE), np.uint8)
        self.distances = np.empty((0, 0))
        self.clique: Clique = NONE

    def add(self, images: np.ndarray, size: int, limit: float) -> None:
        """Take in new images (b, 3, 64, 64) and find the tightest clique; a looser one than that of an earlier look does not take its place."""
        new = tiled_l2_pairs(images, np.concatenate([self.images, images]))
        old, count = len(self.images), len(self.images) + len(images)
        table = np.zeros((count, count))
        table[:old, :old] = self.distances
        table[old:], table[:, old:] = new, new.T
        self.images, self.distances = np.concatenate([self.images, images]), table
        self.clique = min(self.clique, tightest(table, size, limit), key=lambda clique: clique.tightness)


def check(settings: Settings) -> None:
    """Raise if a setting is out of range.

    Raises:
        Misconfigured: one is.
    """
    if min(settings.steps, settings.batch, settings.round) < 1 or not 2 <= settings.clique <= settings.images:
        raise Misconfigured("`steps`, `batch` and `round` are at least 1, and `clique` between 2 and `images`.", "Use a preset.")
    check_sizes(settings)
    if settings.matches < 0 or not 1 <= settings.guidance < math.inf:
        raise Misconfigured("`matches` cannot be negative, and `guidance` is finite and at least 1.", "Use a preset.")
    if not 0 < settings.false_positive_rate < 1:
        raise Misconfigured(f"`false_positive_rate` lies between 0 and 1; got {settings.false_positive_rate}.", "Use 0.02.")


def cost(works: Works, settings: Settings) -> dict[str, int]:
    """Return the passes and images that it takes at most: every caption drawn to the end."""
    images = settings.images * sum(len(group.works) for group in choose(works, settings, 0))
    return {"passes": images * settings.steps * (1 if settings.guidance == 1 else 2), "images": images}


def audit(
    denoiser: Denoiser,
    works: Works,
    settings: Settings = Settings(),
    *,
    judge: JudgeLike,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Audit:
    """Look for works that come out of a model by themselves.

    Args:
        denoiser: the model.
        works: with calibration works; canaries and holdout works where there are any.
        settings: see `Settings`.
        judge: not asked: agreement and distance are of pixels.
        seed: of the choice of works and of every image.
        progress: called with images done and images in all, at most.
        folder: where images are kept, so that a killed audit goes on.

    Returns:
        The record and its pictures.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the works have no calibration works, or no members.
    """
    check(settings)
    start, passes = time.monotonic(), denoiser.passes
    groups = choose(works, settings, seed)
    prompts = [Prompt(work, group) for group in groups for work in group.works]
    prompts.sort(key=lambda prompt: (prompt.group.kind != "calibration", -prompt.group.dose))  # thresholds come first, then the most copied
    count = len(groups[0].works)
    calibration, others = prompts[:count], prompts[count:]
    drawing = Drawing(denoiser, works, settings, seed, folder, lambda done: progress and progress(done, len(prompts) * settings.images))
    drawing.draw(calibration, math.inf)
    rate = max(settings.false_positive_rate, 1 / (len(calibration) + 1))
    agree = threshold_at([-prompt.clique.tightness for prompt in calibration], rate)
    drawing.draw(others, -agree.value)
    training = works.where(lambda row: row["split"] == "member" and row["copies"] > 0)
    found = Found(works, training, prompts)
    near = threshold_at(-np.minimum(found.distance, found.own)[: len(calibration)], rate)
    record, shown = _testify(works, found, agree, near, rate, settings)
    if progress:
        progress(len(prompts) * settings.images, len(prompts) * settings.images)  # what was left off counts as done
    pictures: dict[str, Image.Image] = {}
    for place, (prompt, row) in enumerate(shown, start=1):
        made = to_pictures(torch.from_numpy(prompt.images[[prompt.clique.medoid]]) / 255)[0]
        pictures |= {f"match-{place}-output.png": made, f"match-{place}-work.png": training.image(row)}
    return Audit(completed(record, denoiser, works, seed=seed, started=start, passes=passes), pictures)


class Drawing:
    """Draws images of captions round by round, and leaves off those that are settled.

    Args:
        denoiser: the model.
        works: the table.
        settings: see `Settings`.
        seed: an image's seed depends on it, the work's id and the image's number alone.
        folder: where images are kept.
        progress: called with images done.
    """

    def __init__(
        self, denoiser: Denoiser, works: Works, settings: Settings, seed: int, folder: Path | None, progress: Callable[[int], object]
    ) -> None:
        """Say what kept images must belong to."""
        self.denoiser, self.settings, self.seed, self.folder, self.progress = denoiser, settings, seed, folder, progress
        self.ids, self.captions = works.column("id"), [captions[0] for captions in works.column("captions")]
        self.plan = digest_of([standing(denoiser), seed, settings.steps, settings.guidance])
        self.done = 0

    def draw(self, prompts: list[Prompt], limit: float) -> None:
        """Draw all captions until each has its clique within `limit`, cannot hope for one, or has all its images; infinity draws all."""
        settings, left = self.settings, list(prompts)
        for first in range(0, settings.images, settings.round):
            numbers = range(first, min(first + settings.round, settings.images))
            each = max(1, settings.batch // len(numbers))
            for start in range(0, len(left), each):
                some = left[start : start + each]
                made = self._images(some, numbers)
                for place, prompt in enumerate(some):
                    prompt.add(made[place * len(numbers) : (place + 1) * len(numbers)], settings.clique, limit)
                self.done += len(made)
                self.progress(self.done)
            if math.isfinite(limit):
                left = [prompt for prompt in left if not self._settled(prompt, limit)]

    def _settled(self, prompt: Prompt, limit: float) -> bool:
        drawn = len(prompt.images)
        return prompt.clique.tightness < limit or hopeless(at_most(prompt.distances, limit), drawn, self.settings.images, self.settings.clique)

    def _images(self, prompts: list[Prompt], numbers: range) -> np.ndarray:
        jobs = [(prompt.work, number) for prompt in prompts for number in numbers]
        named = digest_of([self.plan, [(self.ids[work], self.captions[work], number) for work, number in jobs]])
        file = None if self.folder is None else self.folder / f"extraction-{named[:32]}.safetensors"
        kept = None if file is None else kept_tensors(file)
        if kept is not None:
            return kept["images"].numpy()
        seeds = [derive(self.seed, "extraction", self.ids[work], number) for work, number in jobs]
        options = {"steps": self.settings.steps, "guidance": self.settings.guidance, "batch": self.settings.batch}
        images = self.denoiser.generate([self.captions[work] for work, _ in jobs], seeds, **options)
        made = (resized(images.cpu()) * 255).round().to(torch.uint8)
        if file is not None:
            write_atomically(file, save({"images": made.contiguous()}))
        return made.numpy()


class Found:
    """What stands for each prompt, its clique's medoid, held against its own work and all training works; its rows are those of `prompts`.

    Args:
        works: the table that prompts are of.
        training: those of them that were trained on.
        prompts: drawn, with their cliques.
    """

    def __init__(self, works: Works, training: Works, prompts: list[Prompt]) -> None:
        """Compare every one with every training work, and with its own and that one's declared near-duplicates, trained on or not."""
        self.training, self.prompts = training, prompts
        self.pixels = np.ascontiguousarray(training.pixels(SIZE).transpose(0, 3, 1, 2))
        images = np.stack([prompt.images[prompt.clique.medoid] for prompt in prompts])
        table = tiled_l2_pairs(images, self.pixels)
        self.nearest = table.argmin(1)
        self.distance = table.min(1)
        self.adaptive = adaptive(tiled_l2_pairs(images, self.pixels, tiles=1), NEIGHBOURS, ALPHA)
        labels, self.own = declared(works.column("cluster")), np.empty(len(prompts))
        for place, prompt in enumerate(prompts):
            same = works.take(np.flatnonzero(labels == labels[prompt.work])).pixels(SIZE).transpose(0, 3, 1, 2)
            self.own[place] = tiled_l2_pairs(images[[place]], same).min()

    def copies(self, work: int, delta: float) -> int:
        """Return how many copies the works within delta of a work have, its own included: the k of k-eidetic."""
        close = tiled_l2_pairs(self.pixels[[work]], self.pixels)[0] <= max(delta, 1e-6)
        return int(np.array(self.training.column("copies"))[close].sum())


def _testify(
    works: Works, found: Found, agree: Threshold, near: Threshold, rate: float, settings: Settings
) -> tuple[Record, list[tuple[Prompt, int]]]:
    prompts, limit, delta = found.prompts, -agree.value, -near.value
    predicted = np.array([prompt.clique.tightness < limit for prompt in prompts])
    extracted = predicted & (found.own < delta)
    another = predicted & ~extracted & (found.distance < delta)
    metrics, rows, lines = [], [], {}
    groups = list({id(prompt.group): prompt.group for prompt in prompts}.values())
    for group in groups:
        mine = np.array([prompt.group is group for prompt in prompts])
        count, total = int(extracted[mine].sum()), int(mine.sum())
        low, high = wilson(count, total)
        never = group.kind in ("calibration", "holdout")
        metrics.append(
            Metric(
                name=f"{'false_extractions' if never else 'extracted'}.{group.label}",
                value=count / total,
                low=low,
                high=high,
                n=total,
                chance=rate,
                better="lower",
            )
        )
        drawn = sum(len(prompt.images) for prompt in prompts if prompt.group is group)
        rows.append([group.words, total, drawn, int(predicted[mine].sum()), count, f"{low:.0%} to {high:.0%}", int(another[mine].sum())])
        if group.kind != "calibration":
            name = {"one": "one caption", None: "never trained (holdout)" if group.kind == "holdout" else group.words}.get(
                group.arm, f"{group.arm} captions"
            )
            lines.setdefault(name, []).append((float(group.dose), count / total, low, high))
    asked = np.array([prompt.group.kind != "calibration" for prompt in prompts])
    trained = np.array([prompt.group.dose > 0 for prompt in prompts])
    right, claimed = int((extracted & trained).sum()), int((predicted & asked).sum())
    low, high = wilson(right, claimed)
    metrics.append(Metric(name="precision", value=right / claimed if claimed else None, low=low, high=high, n=claimed, better="higher"))
    foreign = int((another & asked).sum())
    low, high = wilson(foreign, claimed)
    metrics.append(Metric(name="another_work", value=foreign / claimed if claimed else None, low=low, high=high, n=claimed))
    images = sum(len(prompt.images) for prompt in prompts if prompt.group.kind != "calibration")
    metrics.append(Metric(name="images", value=images, n=images))
    order = sorted(np.flatnonzero(predicted & asked).tolist(), key=lambda row: prompts[row].clique.mean)
    shown = order[: settings.matches]
    verdicts = np.select([extracted, another], ["yes", "another work"], "no").tolist()
    table = [_row(works, found, row, delta, place, verdicts[row]) for place, row in enumerate(shown, start=1)]
    columns = ["captions", "asked for", "images drawn", "predicted", "extracted", "95 % interval", "another work came out"]
    heads = ["output", "nearest work", "asked for", "copies", "nearest is", "creator", "within clique", "to the work", "adaptive", "k", "extracted"]
    record = Record(
        command="audit",
        method="extraction",
        question="Which works come out of the model by themselves, found without looking at them?",
        given=asdict(settings),
        resolved=asdict(settings) | {"size": SIZE, "rate": round(rate, 6), "d": round(limit, 5), "delta": round(delta, 5)},
        metrics=metrics,
        findings=_findings(groups, metrics, images, (right, foreign, claimed), rate),
        shows_not=[
            "Works that are not extracted may be memorised: other prompts, more images and white-box attacks were not tried.",
            "d and delta hold for this model, these works and 64x64 pixels; they are not comparable with published ones.",
            "Captions were asked for as they were trained, the most copied first: an attacker who does not know them finds less.",
        ],
        tables=[
            Table(title="Captions asked for", columns=columns, rows=rows),
            Table(title="Predictions, the tightest cliques first", columns=heads, rows=table),
        ],
        curves=[Curve(title="Extracted against copies in training", x_label="copies k", y_label="share extracted", lines=lines, x_scale="symlog")],
    )
    return record, [(prompts[row], int(found.nearest[row])) for row in shown]


def _row(works: Works, found: Found, row: int, delta: float, place: int, verdict: str) -> list[Any]:
    prompt, nearest = found.prompts[row], int(found.nearest[row])
    work = found.training[nearest]
    return [
        {"picture": f"match-{place}-output.png"},
        {"picture": f"match-{place}-work.png"},
        works.column("captions")[prompt.work][0],
        prompt.group.dose,
        f"{work['title'] or work['id'][:12]}, {work['style'] or 'no style'}",
        work["creator"] or "",
        round(prompt.clique.mean, 4),
        round(float(found.distance[row]), 4),
        round(float(found.adaptive[row]), 2),
        found.copies(nearest, delta),
        verdict,
    ]


def _findings(groups: list[Group], metrics: list[Metric], images: int, counts: tuple[int, int, int], rate: float) -> list[str]:
    """Say what came out; counts are of captions whose own work did, of those near another work alone, and of all that a copy is predicted for."""
    right, foreign, claimed = counts
    captions = sum(len(group.works) for group in groups if group.kind != "calibration")
    said = [
        f"{images:,} images were drawn of {captions:,} captions. Those of {claimed} agree so closely that a copy is predicted; of these captions "
        f"{right} were trained and their own work is as near as a copy; for {foreign} another work trained on is, and their own is not."
    ]
    for group, metric in zip(groups, metrics, strict=False):
        if group.kind in ("canary", "holdout", "members"):
            count = round((metric.value or 0) * metric.n)
            said.append(f"Of {group.words}, {count} of {metric.n} are extracted (95 % interval {metric.low or 0:.0%} to {metric.high or 0:.0%}).")
    said.append(
        f"By the thresholds, a caption never trained is predicted with at most {rate:.1%}, and comes as near to its own work or one trained on with "
        "at most as much."
    )
    return said
