"""Was my work in it? Every sign that a model was trained on somebody's works: what comes out by their captions, and how they are denoised.

The signs are those of the audits: likeness to the work in three measures and cliques among images of one caption ("Extracting Training Data from
Diffusion Models", Carlini et al. 2023, arXiv 2301.13188, Secs. 3 and 4; `looks.py`, `extraction.py`), scores of membership (`membership.py`; CLiD of
Zhai et al. 2024 calls single works), and one p-value for all works together ("CDI", Dubinski et al. 2025, arXiv 2411.12858; `dataset_inference.py`).

Thresholds are set on calibration works, which the model never saw; how often each sign, and any of them, is seen at all is measured on holdout works
(false alarms) and, where members are known, on members (power). Images are drawn once and serve both likeness and cliques. Different from the papers:
a clique counts only where its medoid is as near to the work itself as a copy. Known failure: a collection that differs in kind from the works never
trained scores apart without having been used; where a blind baseline tells the two apart without the model, no verdict is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from assay.denoiser import Denoiser, to_pictures
from assay.errors import Misconfigured, Unsupported
from assay.evaluation.blind import Blind
from assay.evaluation.intervals import wilson
from assay.evaluation.similarity import tiled_l2_pairs
from assay.evaluation.thresholds import threshold_at
from assay.judge import JudgeLike
from assay.memorization import extraction, membership
from assay.memorization.dataset_inference import LEAST, infer
from assay.memorization.groups import Audit, Group, check_sizes, choose, completed
from assay.memorization.looks import SIZE, compare, looks
from assay.memorization.testimony import decide
from assay.memorization.verdicts import LEVEL, in_p, trained
from assay.record import Metric, Record, Table
from assay.works import Works

MARK = "mine"
"""Attribute that works asked after declare."""
DIFFERING = 0.05
"""Level of the blind baseline below which works are of another kind than those never trained."""
WITHHELD = "no verdict, because pictures and captions alone tell them apart"
SIGNS = {
    "came_out": "an output as near to it as outputs hardly ever are to works never trained",
    "by_itself": "outputs that agree with one another and lie near it",
    "denoised": "denoising better than that of works never trained",
}
"""Name of a sign -> what is seen of a work."""


@dataclass(frozen=True)
class Settings:
    """Settings of the question after one's own works."""

    images: int = 20
    """Attempts a work: images asked for by its caption (Carlini et al., Sec. 4.2: 500)."""
    clique: int = 10
    """Images that must agree (Sec. 4.2: 10)."""
    steps: int = 50
    """DDIM steps."""
    guidance: float = 7.5
    """Scale of classifier-free guidance."""
    false_positive_rate: float = 0.02
    """Probability that each sign is seen at a work never trained."""
    agreement: int = 2
    """How many of the three measures of likeness must exceed their thresholds."""
    members: int = 200
    """Known members to measure the power on, at most."""
    calibration: int = 400
    """Calibration works, at most."""
    holdout: int = 400
    """Holdout works, at most."""
    divisions: int = 100
    """Random halves of the collection in dataset inference."""
    scoring: Literal["paper", "small"] = "paper"
    """Preset of the method `membership` by which works are scored."""
    batch: int = 32
    """Images a pass."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"images": 500, "divisions": 1000},
    "small": {"images": 6, "clique": 3, "steps": 15, "guidance": 4.0, "members": 40, "calibration": 60, "holdout": 40, "scoring": "small"},
}
PROBE: dict[str, Any] = {"images": 2, "clique": 2, "steps": 2, "members": 4, "divisions": 4, "scoring": "small"}


Counts = dict[tuple[str, str], tuple[int, int]]
"""Kind of works, and name of a sign or `found` for any -> works at which it is seen, and works asked for."""


class Evidence(NamedTuple):
    """What was seen of every work asked for, in the order of the groups."""

    copies: np.ndarray
    """Which images are copies: bool, (n, images)."""
    distance: np.ndarray
    """Tiled l2 of every image to its work: (n, images)."""
    signs: dict[str, np.ndarray]
    """Name of a sign -> whether it is seen: bool, (n,)."""


def check(settings: Settings) -> None:
    """Raise if a setting is out of range.

    Raises:
        Misconfigured: one is.
    """
    extraction.check(_drawn(settings))
    check_sizes(settings)
    if settings.agreement not in (2, 3) or settings.divisions < 1 or settings.scoring not in membership.PRESETS:
        raise Misconfigured("`agreement` is 2 or 3, `divisions` at least 1, and `scoring` paper or small.", "Use a preset.")


def _drawn(settings: Settings) -> extraction.Settings:
    shared = {name: getattr(settings, name) for name in ("images", "clique", "steps", "guidance", "false_positive_rate", "batch")}
    return extraction.Settings(round=settings.images, **shared)


def _scored(settings: Settings) -> membership.Settings:
    shared = {"false_positive_rate": settings.false_positive_rate, "batch": settings.batch}
    return membership.Settings(**(membership.PRESETS[settings.scoring] | shared))


def _resolved(scoring: membership.Settings) -> dict[str, Any]:
    """Return what of the scores' settings is in use: neither numbers of works nor of divisions, which are not theirs here."""
    idle = ("false_positive_rate", "members", "calibration", "holdout", "divisions", "batch")
    used = {name: value for name, value in asdict(scoring).items() if name not in idle}
    return {f"membership.{name}": list(value) if isinstance(value, tuple) else value for name, value in used.items()}


def groups_of(works: Works, settings: Settings, seed: int) -> list[Group]:
    """Return calibration works, holdout works, known members, and the works that declare `mine`.

    Raises:
        Unsupported: none does, or there are no calibration works.
    """
    mine = [row for row, mark in enumerate(works.attribute(MARK)) if mark]
    if not mine:
        raise Unsupported("No work is asked after.", "Give a folder of them with `--mine`.")
    return choose(works, settings, seed, mine)


def cost(works: Works, settings: Settings) -> dict[str, int]:
    """Return the passes and images that it takes."""
    asked = sum(len(group.works) for group in groups_of(works, settings, 0))
    scored = _scored(settings)
    each, images = membership.passes(scored), asked * settings.images
    drawing = images * settings.steps * (1 if settings.guidance == 1 else 2)
    return {"passes": drawing + asked * each.each(scored.reductions + 2), "training_passes": asked * each.backward, "images": images + asked}


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
    """Look for signs that a model was trained on the works that declare `mine`.

    Args:
        denoiser: the model.
        works: those works, works that the model never saw (calibration, holdout), and what is known of its members.
        settings: see `Settings`.
        judge: gives the third measure of likeness.
        seed: of the choice of works, of images and of noise.
        progress: called with images and works done, and in all.
        folder: where images and predictions are kept, so that a killed audit goes on.

    Returns:
        The record, a sentence a work, and the pictures.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: nothing is asked after, or there are no calibration works.
    """
    check(settings)
    start, before = time.monotonic(), denoiser.passes
    groups = groups_of(works, settings, seed)
    asked = [index for group in groups for index in group.works]
    count, mine = len(groups[0].works), np.arange(len(asked) - len(groups[-1].works), len(asked))
    rate = max(settings.false_positive_rate, 1 / (count + 1))
    images, total = len(asked) * settings.images, len(asked) * (settings.images + 1)
    prompts = [extraction.Prompt(index, group) for group in groups for index in group.works]
    extraction.Drawing(denoiser, works, _drawn(settings), seed, folder, lambda done: progress and progress(done, total)).draw(prompts, math.inf)
    pixels = np.ascontiguousarray(works.pixels(SIZE).transpose(0, 3, 1, 2))
    own = np.repeat(np.arange(len(asked)), settings.images)
    similarity, _ = compare(looks(np.concatenate([p.images for p in prompts]), judge), looks(pixels[asked], judge), own)
    similarity = similarity.reshape(len(asked), settings.images, 3)
    joint = decide(similarity.max(1), count, rate, settings.agreement).joint
    copies = np.stack([joint.flags(rows) for rows in similarity])
    tight = -np.array([p.clique.tightness for p in prompts])
    medoid = np.array([similarity[row, p.clique.medoid, 0] for row, p in enumerate(prompts)])
    by_itself = (tight > threshold_at(tight[:count], rate).value) & (medoid > threshold_at(medoid[:count], rate).value)
    more = None if progress is None else lambda done, of: progress(images + done, total)
    scoring = _scored(settings)
    scored = membership.measure(denoiser, works, groups, scoring, seed=seed, progress=more, folder=folder)
    clid = scored.scores["clid"]
    signs = {"came_out": copies.any(1), "by_itself": by_itself, "denoised": clid > threshold_at(clid[:count], rate).value}
    evidence = Evidence(copies, -similarity[:, :, 0], signs)
    never = np.concatenate([scored.rows("calibration"), scored.rows("holdout")])
    p_values = (1 + (clid[never][None] >= clid[mine][:, None]).sum(1)) / (len(never) + 1)
    metrics, counts = _rates(groups, evidence, rate)
    rates = in_words(counts)
    few = f"{count} calibration works cannot hold {settings.false_positive_rate:.1%} false alarms a sign: each is allowed {rate:.1%}."
    told = [few if rate > settings.false_positive_rate else ""]
    kinds, differing = of_one_kind(scored.blind)
    told.append(kinds)
    ours, theirs = scored.units(mine), scored.units(never)
    if min(len(ours), len(theirs)) >= LEAST:
        result = infer(ours, theirs, seed=seed, divisions=settings.divisions)
        metrics.append(Metric(name="collection.p_value", value=result.p_value, n=result.suspects + result.others))
        verdict = "no evidence that they were used"
        if trained(result):
            verdict = WITHHELD if differing else "evidence that some or all of them were used, if those are of the same kind as yours"
        other = " but not in the direction of works trained on," if result.p_value < LEVEL and result.direction <= 0 else ""
        once = f", near-duplicates counted once ({len(ours)})" if len(ours) < len(mine) else ""
        said = f"All {len(mine)} works together{once} against {len(theirs)} never trained, by dataset inference: p {in_p(result.p_value)},{other}"
        told.insert(0, f"{said} {verdict} (below {LEVEL:g} counts).")
    else:
        told.insert(
            0, f"{len(ours)} works that differ, against {len(theirs)} never trained, are too few for a test of the collection: {LEAST} are needed."
        )
    tables, pictures = _rows(works, pixels, groups[-1], prompts, evidence, mine, p_values, counts, settings.agreement, rate)
    record = Record(
        command="audit",
        method="mine",
        question="Was my work in it?",
        given=asdict(settings),
        resolved=asdict(settings) | {"rate": round(rate, 6), "score": "clid"} | _resolved(scoring),
        metrics=metrics,
        findings=[_summary(evidence, mine), rates, *filter(None, told)],
        shows_not=[
            "No sign is no proof of absence: other prompts, more images and other attacks may find what these did not.",
            "Likeness is not cause: a faithful model may draw what it never saw. That is what works never trained are asked for beside.",
            "Each sign has its own false alarms; the rate of any of them together is the one measured on holdout works.",
            "The p-value of the collection holds where works never trained are of the same kind as the works asked after.",
        ],
        tables=tables,
    )
    return Audit(completed(record, denoiser, works, seed=seed, started=start, passes=before, judge=judge.digest), pictures)


def of_one_kind(blind: Blind | None) -> tuple[str, bool]:
    """Say whether pictures and captions alone, the model unasked, tell the works asked after from those never trained; and whether they do."""
    if blind is None:
        return "Whether your works and those never trained are of the same kind could not be tested: there are too few.", False
    differing = blind.p_value < DIFFERING
    means = (
        "They are of another kind, so scores that differ say nothing of the model: what is said of single works by how they are denoised, too, may "
        "come of that."
        if differing
        else "It does not tell them apart, which does not prove them to be of one kind."
    )
    low, high = blind.chance
    said = f"Pictures and captions alone, without the model, tell your works from those never trained with AUC {blind.auc:.3f}; by chance, "
    return f"{said}{low:.3f} to {high:.3f} in 95 % of trials (p {in_p(blind.p_value)}). {means}", differing


def _rates(groups: list[Group], evidence: Evidence, rate: float) -> tuple[list[Metric], Counts]:
    """Return how often signs are seen, group by group, as metrics and as counts."""
    signs = evidence.signs | {"found": np.any(list(evidence.signs.values()), 0)}
    metrics, counts, first = [], {}, 0
    for group in groups:
        rows = slice(first, first + len(group.works))
        first += len(group.works)
        prefix = {"holdout": "false_positives", "members": "power", "mine": "mine"}.get(group.kind)
        for name, seen in signs.items() if prefix else ():
            hits, of = int(seen[rows].sum()), len(group.works)
            low, high = wilson(hits, of)
            metrics.append(Metric(name=f"{prefix}.{name}", value=hits / of, low=low, high=high, n=of, chance=None if name == "found" else rate))
            counts[group.kind, name] = hits, of
    return metrics, counts


def in_words(counts: Counts) -> str:
    """Say how often any sign is seen at works that were never trained, and at works that were."""
    told = {}
    for kind in ("holdout", "members"):
        if (kind, "found") in counts:
            hits, of = counts[kind, "found"]
            low, high = wilson(hits, of)
            told[kind] = f"{hits} of {of} (95 % interval {low:.0%} to {high:.0%})"
    said = f"of works never trained it finds {told['holdout']}" if "holdout" in told else "there are no holdout works to measure its false alarms on"
    said += (
        f"; of works that were in, {told['members']}" if "members" in told else "; how many works that were in it finds is not known for this model"
    )
    return f"The test's error rates, any sign counting: {said}."


def _summary(evidence: Evidence, mine: np.ndarray) -> str:
    seen = [f"{SIGNS[name]} for {int(flags[mine].sum())}" for name, flags in evidence.signs.items()]
    count = int(np.any([flags[mine] for flags in evidence.signs.values()], 0).sum())
    return f"For {count} of {len(mine)} works something was seen that is rare at works never trained: {', '.join(seen)}."


def _rows(
    works: Works,
    pixels: np.ndarray,
    group: Group,
    prompts: list[extraction.Prompt],
    evidence: Evidence,
    mine: np.ndarray,
    p_values: np.ndarray,
    counts: Counts,
    agreement: int,
    rate: float,
) -> tuple[list[Table], dict[str, Image.Image]]:
    """Return a sentence a work, the clearest first, the numbers behind it, and the pictures they show."""
    order = sorted(range(len(mine)), key=lambda k: (-int(evidence.copies[mine[k]].sum()), evidence.distance[mine[k]].min()))
    told, rows, pictures = [], [], {}
    for place, k in enumerate(order, start=1):
        at, row = int(mine[k]), group.works[k]
        copied = evidence.copies[at]
        best = int(np.where(copied | ~copied.any(), evidence.distance[at], np.inf).argmin())  # of copies, where there are any
        image = prompts[at].images[[best]]
        apart = tiled_l2_pairs(image, pixels)[0]
        apart[row] = np.inf
        other = int(apart.argmin())
        shown = {"work": works.image(row), "output": to_pictures(torch.from_numpy(image) / 255)[0], "other": works.image(other)}
        pictures |= {f"{name}-{place}.png": picture for name, picture in shown.items()}
        about = works[other]
        seen = {name for name, flags in evidence.signs.items() if flags[at]}
        hits, caption = int(copied.sum()), works.column("captions")[row][0]
        said = sentence(seen, hits, evidence.copies.shape[1], caption, float(p_values[k]), counts, agreement=agreement, rate=rate)
        told.append([*({"picture": f"{name}-{place}.png"} for name in shown), said])
        rows.append([
            caption,
            f"{hits} of {evidence.copies.shape[1]}",
            "yes" if "by_itself" in seen else "no",
            round(float(p_values[k]), 3),
            round(float(evidence.distance[at, best]), 4),
            round(float(apart[other]), 4),
            ", ".join(filter(None, (about["title"] or about["id"][:12], about["style"], about["creator"]))),
        ])
    heads = ["caption", "copies", "agree by themselves", "p (CLiD)", "output to the work", "output to the other", "the other is"]
    found = Table(title="Work by work", columns=["work", "nearest output", "nearest other work", "what was found"], rows=told)
    return [found, Table(title="The numbers behind", columns=heads, rows=rows)], pictures


def sentence(seen: set[str], hits: int, attempts: int, caption: str, p_value: float, counts: Counts, *, agreement: int, rate: float) -> str:
    """Say in plain words what was found of one work, and how often the same is found where nothing is to be found.

    Args:
        seen: names of the signs.
        hits: copies among the attempts.
        attempts: images drawn from the caption.
        caption: what was asked for.
        p_value: of the work's score of membership among works never trained.
        counts: how often signs are seen, by kind of work and name.
        agreement: how many of the three measures of likeness a copy exceeds.
        rate: share of works never trained at which that is allowed to happen.
    """

    def alarms(name: str) -> str:
        wrong, of = counts.get(("holdout", name), (0, 0))
        return f" The same was seen for {wrong} of {of} works never trained." if of else ""

    if hits:
        measures = "two of three measures" if agreement == 2 else "all three measures"
        alone = " What its caption draws also agrees with itself as rarely happens, and lies near this work." if "by_itself" in seen else ""
        said = f"In {hits} of {attempts} attempts with its caption “{caption}” an image came out that is nearer to this work, in "
        said += f"{measures}, than images come to all but {rate:.1%} of works never trained: look at them side by side."
        return said + alone + alarms("came_out")
    if "by_itself" in seen:
        return f"Asked {attempts} times with “{caption}”, the model draws images that agree closely and lie near this work." + alarms("by_itself")
    if "denoised" in seen:
        said = f"“{caption}”: no copy came out, but the model denoises this work better than nearly all works never trained "
        said += f"(p = {p_value:.2g}): a hint, no proof."
        return said + alarms("denoised")
    said = f"“{caption}”: we found no sign; that does not prove that it was not used."
    found, of = counts.get(("members", "found"), (0, 0))
    low, high = wilson(found, of)
    return said + (f" Of works that were in, the test found {found} of {of} (95 % interval {low:.0%} to {high:.0%})." if of else "")
