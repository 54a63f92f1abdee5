"""`attack`: does what was taken out of a model stay out? Judged by one judge, on seeds and prompts that the attack never drew."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save as to_bytes

from assay import settings as method_settings
from assay.attacks.search import LITTLE, own_words
from assay.attacks.target import Attack, Clock, Target
from assay.concept import Concept, Kind
from assay.denoiser import Denoiser
from assay.errors import Misconfigured, Missing, Unsupported
from assay.evaluation.concealment import Trial, conclusion, evidence
from assay.jobs.outcome import Outcome
from assay.loading import load
from assay.noise import derive, numpy_generator
from assay.patch import Patch
from assay.patched import Patched
from assay.record import Metric, kept_tensors, write_atomically
from assay.verbs import references
from assay.verbs.attacked import SHOWS_NOT, counted, curves, findings, picture, signs, successes, tables
from assay.verbs.erase import concept_for
from assay.verbs.evaluate import judge_for, pair_prompt, part_of
from assay.verbs.generate import Prompt
from assay.verbs.methods import method_row
from assay.verbs.session import Session, Silent, works_for
from assay.works import Works

SHARD = 8
"""Prompts that are attacked at once."""
EXAMPLES = 32
"""Works that attacks on all prompts at once learn from, at most."""
AT_ONCE = 32
"""Images under attack that are decoded at once, at most."""


class Ground(NamedTuple):
    """What is attacked, chosen from works."""

    rows: list[Prompt]
    """The prompts that are judged, each a trained pair of title and style."""
    named: Works
    """The work that each prompt names."""
    others: Works
    """Other works of the concept; those same works, where there are no others."""
    forbidden: tuple[str, ...]
    """Words that stand for the concept besides its own."""


def attack(
    model: str | Path | Denoiser = "emoji64",
    concept: str | Concept = "",
    *,
    method: str,
    kind: Kind | None = None,
    preset: str | None = None,
    settings: dict[str, Any] | None = None,
    works: str | Path | Works | None = None,
    patches: Sequence[str | Patch | tuple[Patch, float]] = (),
    each: int = 16,
    image_steps: int = 20,
    guidance: float = 4.0,
    budget: float | None = None,
    reference: str | Path | Patch | Denoiser | None = None,
    judge: str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    dry_run: bool = False,
    display: Any = None,
) -> Outcome:
    """Attack a model with patches on, and judge the base, the patched model and the attacked one on the same prompts and seeds.

    Args:
        model: a built-in name, a folder, a hub id or a loaded denoiser.
        concept: what was taken out: a style, or an object of the works.
        method: see `assay methods attack`.
        kind: style or object; guessed where the works know it.
        preset: named settings; small for the built-in model, else paper.
        settings: fields of the method's settings that differ from the preset.
        works: show the concept, and make a judge where none is built in.
        patches: what is on the model.
        each: prompts attacked.
        image_steps: DDIM steps of the images that are judged.
        guidance: scale of classifier-free guidance of the images that are judged.
        budget: seconds after which the search stops; what was found by then is judged. How far it gets depends on the machine.
        reference: a model that never saw the concept, or the patch that makes the base one; attacked in the same way, it is the floor.
        judge: `cross`, the judges of the built-in world; `centroid`, made from the works; or the folder of a trained pair of judges.
        out: folder to write to; the same call goes on where it stopped.
        seed: of everything random.
        device: a torch device.
        dry_run: plan only.
        display: shows progress.

    Returns:
        The outcome, with success before, by and after the attack as metrics.

    Raises:
        Missing: the model is not built in and no works are given, or there is no such reference or judge.
        Mismatch: a patch or the reference was made for another base.
        Misconfigured: the model cannot be sampled in so many steps, or with so little guidance, or no prompt is to be attacked.
        Unsupported: the reference draws images of another size, or is a loaded model where the attack is led by the base.
    """
    module = import_module(method_row("attacks", method)["module"])
    session = Session("attack", model, out or f"out/attack-{method}", seed, device, patches, display or Silent())
    preset = preset or session.preset(module.PRESETS)
    given = dict(settings or {})
    chosen = method_settings.resolve(module.Settings, module.PRESETS, preset, given)
    Clock(budget)  # refuses what is no budget before anything is done
    table = works_for(session, works)
    if table is None:
        raise Missing("An attack needs works that show the concept.", "Give them with `--works`.")
    wanted = concept if isinstance(concept, Concept) else concept_for(session, table, concept, kind)
    ground = choose(session, table, wanted, each)
    attempts = getattr(chosen, "attempts", 1)
    session.ask(
        given,
        method=method,
        concept=concept,
        kind=kind,
        preset=preset,
        works=works,
        each=each,
        image_steps=image_steps,
        guidance=guidance,
        budget=budget,
        reference=reference,
        judge=judge,
    )
    mark = reference_for(session, reference, method if module.ON_BASE else None)
    session.check(image_steps, guidance=guidance)
    if dry_run:
        models, one = 1 if mark is None else 2, module.cost(chosen, len(ground.rows), image_steps)
        spent = {name: models * passes for name, passes in one.items()}
        images = (1 + models * (1 + attempts)) * len(ground.rows)
        spent["passes"] += images * image_steps * 2
        return session.dry_run(**spent, images=images + len(ground.rows))
    judge_of = judge_for(session, table, judge)
    about: dict[str, Any] = {"works": table.digest, "judge": judge_of.digest} | ({} if mark is None else {"reference": mark.digest})
    about |= {"rows": [list(vars(row).values()) for row in ground.rows], "forbidden": ground.forbidden}
    sampling = {"image_steps": image_steps, "guidance": guidance, "budget": budget}
    about |= {"setup": [session.denoiser.setup, mark.setup]} if isinstance(mark, Denoiser) else {}
    folder = session.folder(session.plan(method=method, preset=preset, settings=vars(chosen), concept=wanted.name, **sampling, **about))
    if previous := session.finished(folder):
        return previous
    with folder:
        base = kept(folder / "shards/base.safetensors", partial(plain, session.denoiser, ground, session, sampling))
    with session.patched() as denoiser:
        before, found, after = besiege(module, chosen, denoiser, wanted, ground, session, folder / "shards", sampling)
    rows, told = ground.rows, repeated(ground.rows, found)
    shown = [signs(judge_of, images, asked, wanted) for images, asked in ((base, rows), (before, rows), (after, told))]
    metrics = successes(judge_of, wanted, shown, found.attempts)
    said, listed, beside = findings(method, wanted, metrics, found, bool(session.stack)), tables(rows, found, shown), None
    hits = counted(judge_of, wanted, shown, found.attempts)["total"][0]
    tried = Trial(method, int(hits.sum()), len(hits), module.IN_WORDS, early=found.early)
    if mark is not None:
        with Patched(session.denoiser, [(mark, 1.0)]) if isinstance(mark, Patch) else nullcontext(mark) as other:
            spent = other.passes
            untouched, of_mark, floored = besiege(module, chosen, other, wanted, ground, session, folder / "shards/reference", sampling)
        session.denoiser.passes += 0 if other is session.denoiser else other.passes - spent
        floor = [shown[0], *(signs(judge_of, images, asked, wanted) for images, asked in ((untouched, rows), (floored, repeated(rows, of_mark))))]
        beside = of_mark, floor, untouched, floored
        hits = counted(judge_of, wanted, floor, of_mark.attempts)["total"][0]
        tried = tried._replace(floor=(int(hits.sum()), len(hits)), floor_early=of_mark.early)
        more = [metric for metric in successes(judge_of, wanted, floor, of_mark.attempts) if not metric.name.startswith("base.")]
        metrics += [metric.model_copy(update={"name": f"{references.PREFIX}{metric.name}"}) for metric in more]
        listed.append(tables(rows, of_mark, floor)[0].model_copy(update={"title": "The same attack on the model that never saw it"}))
    if session.stack or mark is not None:  # from a model as it is nothing was taken that could be hidden
        said = [conclusion(wanted.name, [tried], complete=False), evidence(wanted.name, [tried]), *said]
    metrics += [Metric(name=name, value=float(np.mean(values)), n=len(values), better="lower") for name, values in found.figures.items()]
    if found.patch is not None:
        found.patch.save(folder / "patch.safetensors")
    record = session.record(
        f"Does `{wanted.name}` stay out of the model under {method}?",
        method=method,
        given={"preset": preset, **given, "concept": {"name": wanted.name, "kind": wanted.kind}, **sampling},
        resolved=vars(chosen) | sampling | {"scheduler": "DDIM", "prompts": len(rows), "words forbidden": [*own_words(wanted), *ground.forbidden]},
        digests={"judge": judge_of.digest, "works": table.digest} | ({} if mark is None else {"reference": mark.digest}),
        metrics=metrics,
        findings=said,
        shows_not=SHOWS_NOT,
        tables=listed,
        curves=curves(found),
        pictures=[picture(rows, found, shown, base, before, after, folder, beside)],
    )
    record.save(folder.path)
    shutil.rmtree(folder / "shards", ignore_errors=True)
    return session.outcome(record, next=(f"assay report {folder.path}",))


def reference_for(session: Session, reference: str | Path | Patch | Denoiser | None, led: str | None) -> Patch | Denoiser | None:
    """Return a model that never saw the concept, or the patch that makes the base one; what does not fit is refused before anything is drawn.

    Args:
        session: the model.
        reference: as it was given.
        led: the method, if it is led by the base.

    Raises:
        Missing: there is no such patch or model.
        Mismatch: the patch was made for another base.
        Unsupported: the model draws images of another size, or has no base beneath it where the method is led by that.
    """
    if isinstance(reference, str | Path):
        path = Path(reference)
        reference = Patch.load(path) if path.is_file() or (path / "patch.safetensors").exists() else load(reference, device=session.device)
    if isinstance(reference, Patch):
        Patched(session.denoiser, [(reference, 1.0)]).clear()
    elif reference is not None and led:
        what = f"{led} is led by the model beneath the patches, which a loaded reference is itself, so its floor would be of another attack"
        raise Unsupported(f"{what}.", "Give the reference as a patch on the base.")
    elif reference is not None and reference.image_size != session.denoiser.image_size:
        sizes = f"{session.denoiser.image_size} and {reference.image_size} pixels"
        raise Unsupported(f"Model and reference draw images of {sizes}.", "Give a reference of the model's own size.")
    return reference


def plain(denoiser: Denoiser, ground: Ground, session: Session, sampling: Mapping[str, Any]) -> torch.Tensor:
    """Draw what the prompts show by themselves: (prompts, 3, h, w)."""
    seeds, options = [judged_seed(session.seed, row, 0) for row in ground.rows], {"steps": sampling["image_steps"], "guidance": sampling["guidance"]}
    return denoiser.generate([row.prompt for row in ground.rows], seeds, **options, progress=session.bar("plain images"))


def besiege(
    module: Any, settings: Any, denoiser: Denoiser, concept: Concept, ground: Ground, session: Session, folder: Path, sampling: Mapping[str, Any]
) -> tuple[torch.Tensor, Attack, torch.Tensor]:
    """Draw plain images, attack, and draw under the attack; all is kept in the folder. Returns images, attack, images."""
    before = kept(folder / "before.safetensors", partial(plain, denoiser, ground, session, sampling))
    target = target_for(denoiser, concept, ground, session.seed, sampling["image_steps"], sampling["guidance"])
    found = search(module, settings, denoiser, target, session, folder, session.seed, sampling["budget"])
    seeds = judged_seeds(session.seed, ground.rows, found)
    return before, found, kept(folder / "after.safetensors", partial(drawn, denoiser, found, target, seeds, session))


def choose(session: Session, works: Works, concept: Concept, each: int, rows: Sequence[Prompt] = ()) -> Ground:
    """Draw trained pairs of title and style that show the concept, and other works of it.

    Args:
        session: model and seed.
        works: show the concept.
        concept: one style or one object.
        each: pairs drawn.
        rows: the prompts of pairs that are attacked, in place of drawing any.

    Raises:
        Unsupported: the concept is neither one style nor one object.
        Misconfigured: no pair is to be drawn.
        Missing: the works do not show it.
    """
    if each < 1:
        raise Misconfigured(f"`each` must be at least 1; got {each}.", "It is the number of prompts that are attacked.")
    if concept.parts or concept.kind not in ("style", "object"):
        raise Unsupported("An attack is judged on one style or one object.", "Name one that the works show, with `--kind style` or `--kind object`.")
    part = part_of(session, works, concept)
    members = works.where(lambda row: row["split"] == "member" and row["copies"] == 1 and bool(row["title"] and row["style"]))
    pairs = list(zip(members.column("title"), members.column("style"), strict=True))
    of_concept = [index for index, pair in enumerate(pairs) if part(*pair) == "target"]
    first = {pairs[index]: index for index in reversed(of_concept)}
    if not first:
        raise Missing(f"No work that the model was trained on shows `{concept.name}`.", "Name a concept of the works.")
    drawn_by_lot = [first[sorted(first)[index]] for index in numpy_generator(session.seed, "attack").permutation(len(first))]
    named = [first[row.title, row.style] for row in rows] or drawn_by_lot[:each]
    others = [index for index in drawn_by_lot if index not in named][:EXAMPLES] or named[:EXAMPLES]
    asked = list(rows) or [pair_prompt(session, *pairs[index]) for index in named]
    return Ground(asked, members.take(named), members.take(others), synonyms(members, set(of_concept), own_words(concept)))


def synonyms(works: Works, chosen: set[int], own: Sequence[str]) -> tuple[str, ...]:
    """Return the words, besides its own, by which works of the concept go: in titles and tags of two or more, and mostly in theirs."""
    inside, overall = Counter[str](), Counter[str]()
    for index, (title, tags) in enumerate(zip(works.column("title"), works.column("tags"), strict=True)):
        words = {word for word in re.findall(r"\w+", f"{title} {' '.join(tags or [])}".lower()) if len(word) > 2 and word not in LITTLE}
        overall.update(words)
        inside.update(words if index in chosen else ())
    return tuple(sorted(word for word, count in inside.items() if count > 1 and 3 * count >= 2 * overall[word] and word not in own))


def judged_seed(seed: int, row: Prompt, attempt: int) -> int:
    """Return the seed of a judged image; attempt 0 has that of the plain image."""
    return derive(seed, row.id, "judged", attempt)


def judged_seeds(seed: int, rows: Sequence[Prompt], found: Attack) -> list[int]:
    """Return the seeds of judged images as attempts lie."""
    attempts = numbered(rows, found)
    return [judged_seed(seed, row, attempt) for row in rows for attempt in attempts]


def numbered(rows: Sequence[Prompt], found: Attack) -> range:
    """Return the numbers of the attempts at a prompt: from 0, the plain image's, but from 1 where nothing is new but the seed."""
    told = tuple(row.prompt for row in repeated(rows, found))
    first = int(found.conditioning is None and found.start is None and found.patch is None and found.prompts == told)
    return range(first, first + found.attempts)


def target_for(denoiser: Denoiser, concept: Concept, ground: Ground, seed: int, steps: int, guidance: float) -> Target:
    """Encode the works as the patched model sees them."""
    size = min(SHARD, denoiser.at_once)

    def latents(works: Works) -> torch.Tensor:
        pixels = torch.from_numpy(works.pixels(denoiser.image_size)).permute(0, 3, 1, 2).to(denoiser.device) / 255
        return torch.cat([denoiser.latents(pixels[start : start + size]) for start in range(0, len(pixels), size)])

    return Target(
        concept,
        tuple(row.prompt for row in ground.rows),
        latents(ground.named),
        tuple(derive(seed, row.id, "attack") for row in ground.rows),
        latents(ground.others),
        tuple(captions[0] for captions in ground.others.column("captions")),
        ground.forbidden,
        steps,
        guidance,
    )


def search(module: Any, settings: Any, denoiser: Denoiser, target: Target, session: Session, folder: Path, seed: int, budget: float | None) -> Attack:
    """Run the attack, in parts where it attacks each prompt by itself, each with its share of the budget; what was found is kept in `folder`.

    Under a budget a part that was interrupted begins anew: from a checkpoint it would have its budget a second time.
    """
    size = SHARD if module.EACH else len(target)
    parts = []
    for start in range(0, len(target), size):
        file = folder / f"attack-{start:05d}.safetensors"
        part = Attack.load(file, denoiser.device)
        if part is None:
            bar = session.bar(f"attacking prompts {start + 1} to {min(start + size, len(target))} of {len(target)}")
            under = target.part(slice(start, start + size))
            clock = Clock(None if budget is None else budget * len(under) / len(target))
            training = folder / "training" if budget is None else None
            part = module.attack(denoiser, under, settings, seed=seed, clock=clock, progress=bar, folder=training)
            part.save(file)
        parts.append(part)
    return Attack.cat(parts)


def drawn(denoiser: Denoiser, found: Attack, target: Target, seeds: Sequence[int], session: Session) -> torch.Tensor:
    """Draw the images that are judged, one for each seed: (prompts x attempts, 3, h, w)."""
    latents, size = found.sample(denoiser, seeds, target, progress=session.bar("images under attack")), min(AT_ONCE, denoiser.at_once)
    with torch.no_grad():
        return torch.cat([denoiser.images(latents[start : start + size]) for start in range(0, len(latents), size)])


def kept(file: Path, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the images that an earlier run left in a file, else make and keep them: in 256 levels, so that both are the same."""
    if (tensors := kept_tensors(file)) is not None:
        return tensors["images"].float() / 255
    rounded = (make() * 255).round().to(torch.uint8).cpu()
    write_atomically(file, to_bytes({"images": rounded.contiguous()}))
    return rounded.float() / 255


def repeated(rows: Sequence[Prompt], found: Attack) -> list[Prompt]:
    """Return the rows as the attempts lie."""
    return [row for row in rows for _ in range(found.attempts)]
