"""`evaluate`: what a model with patches can still do: the target, its neighbours, everything else, and the distance from the base."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save as to_bytes

from assay.concept import Concept
from assay.denoiser import Denoiser, to_pictures
from assay.errors import Missing, Unsupported
from assay.evaluation.features import DIGEST as FIXED
from assay.evaluation.features import fixed_features
from assay.evaluation.intervals import bootstrap, wilson
from assay.evaluation.kid import floor, paired
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.judge import CrossJudge, JudgeLike
from assay.loading import load
from assay.noise import numpy_generator
from assay.patch import Patch
from assay.patched import Patched
from assay.record import Metric, kept_tensors, write_atomically
from assay.reports.pictures import grid, save_picture
from assay.verbs import references
from assay.verbs.erase import concept_for, text_vectors
from assay.verbs.generate import Prompt, read_prompts
from assay.verbs.session import Session, Silent, works_for, zoo
from assay.works import Works
from assay.works import concepts as known

NEIGHBOURS = 5
PARTS = ("target", "neighbours", "rest")
SHARD = 32
TEMPLATES = {True: "an emoji of {title} in {style} style", False: "an image of {title} in {style} style"}
"""The form that prompts are evaluated in, for the built-in model and for others; erasers never sample it."""


class Scene(NamedTuple):
    """What is asked of a model, and which part of it each prompt belongs to."""

    rows: list[Prompt]
    """The prompts, one row per image."""
    groups: dict[str, list[int]]
    """target, neighbours, rest -> rows."""
    family: frozenset[str] = frozenset()
    """Titles of the object family that is the target, if one is: whether a picture shows any of them is judged too."""


def judge_for(session: Session, works: Works, name: str | Path | None = None) -> JudgeLike:
    """Return the judges of the built-in world for its model, else nearest class centroids of the works.

    Args:
        session: says which model it is.
        works: what a centroid judge is made from.
        name: `cross`, `centroid` or the folder of a trained pair of judges, for another one.

    Raises:
        Missing: there is no such judge.
        BadInput: its files are damaged.
    """
    from assay.evaluation.centroid import CentroidJudge

    if name is None:
        name = "cross" if session.built_in and zoo("judge").exists() else "centroid"
    return CentroidJudge(works) if name == "centroid" else CrossJudge.load(zoo("judge") if name == "cross" else name)


def part_of(session: Session, works: Works, concept: Concept | None) -> Callable[[str | None, str | None], str]:
    """Return what says of a title and a style whether they are target, neighbours or rest.

    The target is what shows the concept. A style's neighbour is the nearest style; an object family's are the five nearest titles. Without a
    concept all is rest.
    """
    if concept is None:
        return lambda title, style: "rest"
    if concept.parts:
        parts = [part_of(session, works, one) for one in concept.parts]
        return lambda title, style: min((part(title, style) for part in parts), key=PARTS.index)
    embed = partial(text_vectors, session.denoiser)
    if concept.kind == "style":
        others = [f"{style} style" for style in known.styles(works) if style != concept.name]
        near = {name.removesuffix(" style") for name in known.nearest(f"{concept.name} style", others, embed)[:1]}
        return lambda title, style: "target" if style == concept.name else "neighbours" if style in near else "rest"
    names = set(concept.members or (concept.name,))
    near = set(known.nearest(concept.name, [title for title in known.titles(works) if title not in names], embed)[:NEIGHBOURS])
    return lambda title, style: "target" if title in names else "neighbours" if title in near else "rest"


def scene(session: Session, works: Works, concept: Concept | None, *, each: int | Mapping[str, int], images: int = 1) -> Scene:
    """Draw trained pairs: `each` of the target, its neighbours and the rest, or so many by part; with so many images each."""
    part = part_of(session, works, concept)
    members = works.where(lambda row: row["split"] == "member" and row["copies"] == 1)
    pairs = sorted({(title, style) for title, style in zip(members.column("title"), members.column("style"), strict=True) if title and style})
    rows: list[Prompt] = []
    groups: dict[str, list[int]] = {}
    most = dict.fromkeys(PARTS, each) if isinstance(each, int) else each
    for name in PARTS:
        found = [pair for pair in pairs if part(*pair) == name]
        drawn = [found[index] for index in numpy_generator(session.seed, "scene", name).permutation(len(found))[: most[name]]]
        groups[name] = list(range(len(rows), len(rows) + len(drawn) * images))
        rows += [replace(pair_prompt(session, *pair), number=number) for pair in drawn for number in range(images)]
    return Scene(rows, {name: indices for name, indices in groups.items() if indices}, family_of(concept))


def pair_prompt(session: Session, title: str, style: str) -> Prompt:
    """Put a title and a style into the words that images are evaluated by."""
    return Prompt(f"{title}, {style}", TEMPLATES[session.built_in].format(title=title, style=style), title=title, style=style)


def given_scene(session: Session, rows: Sequence[Prompt], works: Works, concept: Concept | None, images: int) -> Scene:
    """Take prompts as given: title and style from the row, or recognised in the prompt; image n is the one that `generate` makes."""
    part = part_of(session, works, concept)
    wanted = []
    for row in rows:
        title, style = known.recognise(works, row.prompt)
        wanted += [replace(row, title=row.title or title, style=row.style or style, number=number) for number in range(images)]
    parts = [part(row.title, row.style) for row in wanted]
    return Scene(wanted, {name: [index for index, found in enumerate(parts) if found == name] for name in PARTS if name in parts}, family_of(concept))


def family_of(concept: Concept | None) -> frozenset[str]:
    """Return the titles of an object family; none for anything else."""
    parts = () if concept is None else concept.parts or (concept,)
    return frozenset(title for part in parts if part.kind == "object" for title in part.members or (part.name,))


def head_of(concept: Concept | None) -> str:
    """Return what a concept is judged by: style, or the family of objects."""
    return "style" if concept is not None and concept.kind == "style" else "family"


def images_of(
    denoiser: Denoiser,
    rows: Sequence[Prompt],
    *,
    seed: int,
    steps: int,
    guidance: float,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Generate one image per row: (n, 3, h, w) in [0, 1], in shards kept under `folder` so that a killed run goes on."""
    parts = []
    for start in range(0, len(rows), SHARD):
        file = None if folder is None else folder / f"{start:05d}.safetensors"
        kept = None if file is None else kept_tensors(file)
        if kept is not None:
            parts.append(kept["images"].float() / 255)
        else:
            batch = rows[start : start + SHARD]
            negative = [row.negative for row in batch] if any(row.negative for row in batch) else None
            made = denoiser.generate(
                [row.prompt for row in batch], [row.image_seed(seed) for row in batch], steps=steps, guidance=guidance, negative=negative
            )
            rounded = (made * 255).round().to(torch.uint8).cpu()
            if file is not None:
                write_atomically(file, to_bytes({"images": rounded}))
            parts.append(rounded.float() / 255)
        if progress:
            progress(min(start + SHARD, len(rows)), len(rows))
    return torch.cat(parts)


def judged(judge: JudgeLike, images: torch.Tensor, what: Scene) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Judge the images of a scene: head -> (whether it can be judged, whether the image shows what was asked, chance), bool (n,) each.

    Heads are the judge's own; `five`, whether the title is among the first five named; and, where the target is a family of objects, `family`:
    whether the title named is any of the family's, which a judge can tell far more often than which of them.
    """
    verdicts = judge.score(images, [row.title for row in what.rows], [row.style for row in what.rows])
    said = {head: (verdict.known, verdict.right, judge.chance(head)) for head, verdict in verdicts.items()}
    if (titles := verdicts.get("title")) is not None:
        chance = judge.chance("title")
        said["five"] = (titles.known, titles.among_five, min(1.0, 5 * chance))
        if what.family:
            inside = np.array([named in what.family for named in titles.named], bool)
            said["family"] = (titles.known, inside, judge.chance("title", what.family))
    return said


def accuracies(judge: JudgeLike, images: torch.Tensor, what: Scene, prefix: str = "") -> list[Metric]:
    """Return accuracies on every part of a scene, with intervals (Wilson's; by prompt where a prompt has several images) and chance.

    Of style and title; and, where the target is an object family, of the family (`judged`).
    """
    rows = what.rows
    found = judged(judge, images, what)
    said = {head: found[head] for head in ("style", "title", "family") if head in found}
    signature = f"{judge.name} {judge.digest[:12]}"
    metrics = []
    for name, indices in what.groups.items():
        for head, (known_, hits, chance) in said.items():
            chosen = [index for index in indices if known_[index]]
            right = int(hits[chosen].sum())
            prompts = [rows[index].id for index in chosen]
            independent = len(set(prompts))
            low, high = (None, None) if not chosen else wilson(right, len(chosen))
            if independent < len(chosen):  # images of one prompt are no independent observations
                widest = wilson(round(right / len(chosen) * independent), independent)
                low, high = bootstrap(hits[chosen], clusters=prompts, seed=0)
                low, high = min(low, widest[0]), max(high, widest[1])  # prompts that all agree, or one alone, have no spread to draw from
            metrics.append(
                Metric(
                    name=f"{prefix}{name}.{head}",
                    value=right / len(chosen) if chosen else None,
                    low=low,
                    high=high,
                    n=independent,
                    chance=chance,
                    better="lower" if name == "target" or head == "family" else "higher",
                    judge=signature,
                )
            )
    return metrics


def distances(judge: JudgeLike, images: torch.Tensor, base: torch.Tensor, what: Scene, seed: int, prefix: str = "") -> list[Metric]:
    """Return KID to the base outside the target in two feature spaces, with what exchanging the two would give, and its floor within the base."""
    rows = [index for name, indices in what.groups.items() if name != "target" for index in indices]
    if len({what.rows[index].id for index in rows}) < 8:
        return []
    metrics = []
    spaces = {f"{judge.name} {judge.digest[:12]}": judge.features, f"fixed {FIXED[:12]}": fixed_features}
    for (signature, features), short in zip(spaces.items(), ("judge", "fixed"), strict=True):
        of_base, of_patched = np.asarray(features(base[rows])), np.asarray(features(images[rows]))
        ids = [what.rows[index].id for index in rows]
        estimate, chance = paired(of_patched, of_base, ids, seed=seed), floor(of_base, seed=seed)
        shared = {"n": len(set(ids)), "judge": signature}
        metrics += [
            Metric(
                name=f"{prefix}kid.{short}",
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                chance=estimate.exchange,
                better="lower",
                **shared,
            ),
            Metric(name=f"{prefix}kid.{short}.floor", value=chance.value, low=chance.low, high=chance.high, **shared),
        ]
    return metrics


def evaluate(
    model: str | Path | Denoiser = "emoji64",
    *,
    prompts: str | Path | None = None,
    concept: str | Concept | None = None,
    kind: Any = None,
    against: str | Path | Denoiser | None = None,
    reference: str | Path | Patch | None = None,
    works: str | Path | Works | None = None,
    images: int = 1,
    each: int = 64,
    steps: int = 20,
    guidance: float = 4.0,
    patches: Sequence[str | Patch | tuple[Patch, float]] = (),
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    dry_run: bool = False,
    display: Any = None,
) -> Outcome:
    """Compare a model with patches to its base (or `against`) on the same prompts, seeds and sampler.

    Args:
        model: a built-in name, a folder, a hub id or a loaded denoiser.
        prompts: JSONL of prompts; a balanced set of trained pairs if None.
        concept: whose presence is the target.
        kind: style or object.
        against: another model to compare with.
        reference: the patch of a model trained anew without the concept, measured beside; what ships is shown if None and there is any.
        works: say which styles and titles there are, and make a judge where none is built in.
        images: images per prompt.
        each: prompts drawn of target, neighbours and rest.
        steps: DDIM steps.
        guidance: scale of classifier-free guidance.
        patches: what to put on the model.
        out: folder to write to.
        seed: of everything random.
        device: a torch device.
        dry_run: plan only.
        display: shows progress.

    Returns:
        The outcome, with accuracies and distances as metrics.

    Raises:
        Missing: the model is not built in and no works are given, or there is no such reference.
        Unsupported: the two models' images differ in size.
        Mismatch: a patch or the reference was made for another base.
        Misconfigured: a model cannot be sampled in so many steps, or with so little guidance.
    """
    session = Session("evaluate", model, out or "out/evaluate", seed, device, patches, display or Silent())
    table = works_for(session, works)
    if table is None:
        raise Missing("Evaluating needs works that say which titles and styles there are.", "Give them with `--works`.")
    target = concept_for(session, table, concept, kind) if isinstance(concept, str) else concept
    what = given_scene(session, read_prompts(prompts), table, target, images) if prompts else scene(session, table, target, each=each, images=images)
    if not what.rows:
        raise Unsupported("No work shows what could be asked for: a member that is shown once, with a title and a style.", "Give prompts.")
    asked = {"prompts": prompts, "against": against, "reference": reference, "works": works}
    session.ask(**asked, concept=concept, kind=kind, each=each, images=images, steps=steps, guidance=guidance)
    mark = Patch.load(reference) if isinstance(reference, str | Path) else reference
    session.check(steps, mark, guidance)
    if dry_run:
        models = 2 if mark is None else 3
        return session.dry_run(models * len(what.rows) * steps * 2, images=models * len(what.rows))
    judge = judge_for(session, table)
    other = session.denoiser if against is None else against if isinstance(against, Denoiser) else load(against, device=device)
    if other.image_size != session.denoiser.image_size:
        sizes = f"{session.denoiser.image_size} and {other.image_size} pixels"
        raise Unsupported(f"The models draw images of {sizes}, which cannot be compared pair by pair.", "Compare models of one size.")
    options = {"steps": steps, "guidance": guidance}
    rows = [list(vars(row).values()) for row in what.rows]
    beside = {} if mark is None else {"reference": mark.digest}
    about = {"against": other.digest, **beside} | ({} if against is None else {"setup": [session.denoiser.setup, other.setup]})
    plan = session.plan(**options, rows=rows, groups=what.groups, works=table.digest, judge=judge.digest, **about)
    other.timesteps(steps)
    folder = session.folder(plan)
    if previous := session.finished(folder):
        return previous
    with folder:
        base = images_of(other, what.rows, seed=seed, **options, folder=folder / "shards/base", progress=session.bar("images of the base"))
    with session.patched() as denoiser:
        made = images_of(denoiser, what.rows, seed=seed, **options, folder=folder / "shards/model", progress=session.bar("images of the model"))
    metrics = accuracies(judge, made, what) + accuracies(judge, base, what, "base.") + distances(judge, made, base, what, seed)
    if mark is None:
        known_of = [] if prompts else references.stored(references.Protocol.of(session, judge, table, steps, guidance), target)
    else:
        with Patched(session.denoiser, [(mark, 1.0)]) as denoiser:
            shards, bar = folder / "shards/reference", session.bar("images of the reference")
            drawn = images_of(denoiser, what.rows, seed=seed, **options, folder=shards, progress=bar)
        known_of = accuracies(judge, drawn, what, references.PREFIX) + distances(judge, drawn, base, what, seed, references.PREFIX)
    record = session.record(
        "What can the model still do, and how far is it from its base?",
        given={"prompts": None if prompts is None else str(prompts), "concept": None if target is None else target.name, **options},
        resolved=options | {"each": each, "scheduler": "DDIM", "images": len(what.rows), "against": other.name},
        digests={"judge": judge.digest, "works": table.digest, "against": other.digest, **beside},
        metrics=metrics + known_of,
        findings=findings(metrics) + references.findings(known_of, target, head_of(target)),
        shows_not=SHOWS_NOT,
        pictures=[picture_of(what, base, made, folder)],
    )
    record.save(folder.path)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return session.outcome(record, next=(f"assay report {folder.path}",))


SHOWS_NOT = [
    "Accuracy is what a judge sees; the built-in judge's own on real unseen works is in the model card, any other's is to be measured.",
    "A concept that no longer appears may be hidden, not removed: no attack has been tried here.",
    "Neighbours are also what erasers are told to put in its place or to preserve, and so is part of everything else, of a style every other style.",
    "Distance from the base says that images differ, not that they are worse; in the judge's features it sees means move, hardly spreads.",
]


def findings(metrics: Sequence[Metric]) -> list[str]:
    """Say in words what changed: the target first, then what was to stay."""
    value = {metric.name: metric for metric in metrics}
    found = []
    for name, head in (
        ("target", "style"),
        ("target", "title"),
        ("target", "family"),
        ("neighbours", "style"),
        ("neighbours", "title"),
        ("rest", "style"),
        ("rest", "title"),
    ):
        now, before = value.get(f"{name}.{head}"), value.get(f"base.{name}.{head}")
        if now is None or before is None or now.value is None or before.value is None:
            continue
        chance = f" (chance {now.chance:.0%})" if now.chance is not None else ""
        was, is_ = (f"{one.value:.0%} ({one.low or 0:.0%} to {1 if one.high is None else one.high:.0%})" for one in (before, now))
        found.append(f"{head.capitalize()} accuracy on {name}: {was} before, {is_} now, n = {now.n}{chance}.")
    if (distance := value.get("kid.judge")) and distance.value is not None and distance.chance is not None:
        verdict = "no more than" if distance.value <= distance.chance else "more than"
        beside = f"exchanging the two models' images gives in 95 of 100 cases ({distance.chance:.3g})"
        found.append(f"On prompts that were to stay, the distance from the base (KID {distance.value:.3g}) is {verdict} {beside}.")
    return found


def picture_of(what: Scene, base: torch.Tensor, made: torch.Tensor, folder: OutFolder | Path, shown: int = 4) -> Any:
    """Save a picture of some prompts of every part, base beside model."""
    chosen = [index for indices in what.groups.values() for index in indices[:shown]]
    rows = [to_pictures(torch.stack([base[index], made[index]])) for index in chosen]
    labels = [f"{what.rows[index].title or what.rows[index].prompt}, {what.rows[index].style or ''}" for index in chosen]
    image = grid(rows, labels, ["base", "model"], scale=max(1, 128 // base.shape[-1]))
    path = folder.path if isinstance(folder, OutFolder) else folder
    return save_picture(image, path, "evaluate.png", "The same prompts and seeds under the base and under the model.")
