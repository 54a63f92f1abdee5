"""`retrain`: train a model's UNet again from scratch by its own recipe, on other works or with another seed; the result is a patch.

What a method that erases should reach, and what a method that finds memorised works should find, can be known only from a model that never saw the
works in question. Here it is made: the recipe is the base's, the number of steps is matched to the exposures that are left, so that every work that
stays is shown as often as it was, and the seed is another one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from assay.denoiser import Denoiser, tensor_digest, to_pictures
from assay.errors import Misconfigured, Mismatch
from assay.jobs.outcome import Outcome
from assay.loading import locate
from assay.noise import derive
from assay.patch import Manifest, Patch, plain
from assay.patched import Patched
from assay.record import Curve, Metric, Picture, Record, Table, digest_of, write_atomically
from assay.reports.pictures import grid, save_picture
from assay.training import world
from assay.training.loop import Run
from assay.training.precision import autocast, native
from assay.training.recipe import Recipe
from assay.training.selection import Selection, differences, select, shown
from assay.training.unet import build
from assay.verbs.session import Session, Silent, builtin_works, count
from assay.works import Works
from assay.works.filters import read_ids

SHOWN = 4
DDIM_STEPS = 20
POINTS = 100
"""Of the curve of the loss, at most."""


def retrain(
    model: str | Path | Denoiser = "emoji64",
    *,
    reference: str | None = None,
    keep: str | Sequence[str] = (),
    drop: str | Sequence[str] = (),
    drop_ids: str | Path | Sequence[str] | None = None,
    once: bool = False,
    swap: int = 0,
    works: str | Path | Works | None = None,
    recipe: Recipe | None = None,
    steps: int | None = None,
    until: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    dry_run: bool = False,
    display: Any = None,
) -> Outcome:
    """Train the UNet anew and write `patch.safetensors`, `changes.jsonl`, pictures and a record into `out`.

    The patch replaces every tensor of the UNet, rounded to fp16. A training that was stopped, by `until` or by force, goes on when the same is asked
    again, and ends with the same bytes; without a record it is not finished.

    Args:
        model: a built-in name, a folder with a `recipe.json`, or a loaded denoiser.
        reference: a training of the built-in world by name, in place of the selection that follows.
        keep: conditions on works, as `assay.works.filters` reads them: only works that fit any of them are shown. All, if none.
        drop: works that fit any of these are left out.
        drop_ids: a file with one id a line, or ids: these are left out too.
        once: show every work once an epoch, however many copies it has.
        swap: exchange so many works, drawn at random, for others of the holdout.
        works: what the model was trained on; those of the built-in world for its models.
        recipe: of a denoiser that is no built-in model.
        steps: of the training; the recipe's, times the share of exposures that is left, if None.
        until: stop after this step.
        out: folder to write to.
        seed: trainings that differ in it differ in every draw; none has the base's own draws.
        device: a torch device.
        dry_run: plan only.
        display: shows progress.

    Returns:
        The outcome; `Patch.load(outcome.files["patch"])` is the patch.

    Raises:
        Misconfigured: a condition cannot be read, nothing is left to train on, or it is not known what the model was trained on.
        Missing: the model has no recipe, or a condition fits none of its works.
        Mismatch: the works are not those of the recipe and no number of steps is given, or the recipe is of another shape than the model.
    """
    session = Session("retrain", model, out or f"out/retrain{f'-{reference}' if reference else ''}", seed, device, display=display or Silent())
    base = recipe or _recipe_of(session)
    table = works if isinstance(works, Works) else Works.read(works) if works is not None else builtin_works(None) if session.built_in else None
    if table is None:
        raise Misconfigured(f"It is not known which works {session.model} was trained on.", "Give them with `--works`.")
    keep, drop = ((texts,) if isinstance(texts, str) else tuple(texts) for texts in (keep, drop))
    ids = read_ids(drop_ids, shown(table)) if isinstance(drop_ids, str | Path) else set(drop_ids or ())
    selection, own_seed = Selection(keep, drop, tuple(sorted(ids)), once, swap), 0
    if reference is not None:
        if selection != Selection():
            raise Misconfigured(f"`{reference}` says by itself which works it is shown.", "Leave out the other conditions, or `--reference`.")
        selection, own_seed = world.reference(reference).selection, world.reference(reference).seed
    if steps is None and table.digest != base.works:
        raise Mismatch("These are not the works that the model was trained on.", "Give those with `--works`, or the number of steps with `--steps`.")
    plan = Plan.make(base, table, selection, derive(base.seed, "retrain", own_seed, seed), steps, device)
    stop = min(plan.end, until or plan.end)
    if dry_run:
        return _rehearse(session, plan, stop)
    _refuse_other_shape(plan.recipe, session.denoiser)
    session.ask(reference=reference, keep=keep, drop=drop, drop_ids=drop_ids, once=once or None, swap=swap or None, works=works, steps=steps)
    if recipe is not None or not isinstance(drop_ids, str | Path | None):
        session.asked = []  # these have no name on the command line
    about = {
        "selection": asdict(selection),
        "works": plan.works.digest,
        "recipe": digest_of(asdict(plan.recipe)),
        "end": plan.end,
        "draws": plan.seed,
    }
    folder = session.folder(session.plan(**about))
    if previous := session.finished(folder):
        return previous
    with folder:
        bar = session.bar("training")
        unet, run = plan.recipe.retrain(session.denoiser, plan.works, seed=plan.seed, until=stop, folder=folder / "training", progress=bar)
    if run.step < plan.end:
        lines = [f"{run.step} of {plan.end} steps are done; without `--until`, or with a larger one, the same command goes on."]
        return Outcome("retrain", folder.path, None, extra={"lines": lines}, status="unfinished")
    made = plan.patch(session.denoiser, unet, f" ({reference})" if reference else "")
    made.save(folder / "patch.safetensors")
    changes = differences(table, plan.works)
    write_atomically(folder / "changes.jsonl", "".join(json.dumps(row) + "\n" for row in changes).encode())
    picture = _show(session, made, table, changes, folder.path)
    session.denoiser.passes = run.step * plan.recipe.unet.schedule.batch  # of every sitting; the pictures are no part of the cost
    last = run.losses[-100:]
    record = session.record(
        world.reference(reference).answers if reference else f"What is the model {selection}, all else alike?",
        method="retrained",
        given={"reference": reference, "selection": str(selection), "steps": steps},
        resolved={**asdict(plan.recipe.unet), "selection": asdict(replace(selection, drop_ids=()))},
        digests={"patch": made.digest, "works": table.digest, "works shown": shown(plan.works).digest},
        metrics=[
            count("works.shown", len(shown(plan.works))),
            count("works.left_out", sum(row["after"] == 0 for row in changes)),
            count("works.entered", sum(row["before"] == 0 for row in changes)),
            count("exposures", plan.exposures[1]),
            Metric(name="exposures.share", value=plan.exposures[1] / plan.exposures[0], n=plan.exposures[0]),
            count("steps", run.step),
            Metric(name="loss.last", value=sum(last) / len(last), n=len(last), better="lower"),
            count("patch.bytes", (folder / "patch.safetensors").stat().st_size, "lower"),
        ],
        findings=[plan.summary],
        shows_not=[
            "One training with one seed: what differs from the base is to be read beside two trainings that differ in the seed alone.",
            "Text encoder and autoencoder are the base's, and may have been trained on works that were left out here.",
            "The loss is that of the training, on what it was shown; it does not compare between selections.",
            "Seconds are those of the last sitting, if the training was left off and went on.",
        ],
        tables=[_by_style(table, plan.works)],
        curves=[_curve(run)],
        pictures=[picture],
    )
    record.model_copy(update={"seeds": {"seed": seed, "training": plan.seed}}).save(folder.path)
    shutil.rmtree(folder / "training", ignore_errors=True)
    name = session.model if not isinstance(session.model, Denoiser) else session.model.name
    outcome = session.outcome(Record.load(folder.path), next=(f"assay evaluate {name} --patch {folder.path}", f"assay patch compress {folder.path}"))
    return replace(outcome, files=outcome.files | {"changes": str(folder / "changes.jsonl")})


@dataclass(frozen=True)
class Plan:
    """A training that is to be made."""

    base: Recipe
    """Of the model."""
    recipe: Recipe
    """Of the training: steps, averaging and precision fitted."""
    before: Works
    """What the model was trained on."""
    works: Works
    """The same table, with the copies and splits of this training."""
    selection: Selection
    """How the two differ."""
    seed: int
    """Of every draw."""
    end: int
    """The last step; less than is scheduled where the base was left off early."""

    @classmethod
    def make(cls, base: Recipe, table: Works, selection: Selection, seed: int, steps: int | None, device: str) -> Plan:
        """Select the works and match the steps to what is left of the exposures."""
        chosen = select(table, selection, seed)
        before, after = (sum(shown(rows).column("copies")) for rows in (table, chosen))
        recipe = base.lasting(steps or max(1, round(base.unet.schedule.steps * after / before)))
        end = steps or max(1, round(recipe.unet.schedule.steps * base.steps_done / base.unet.schedule.steps))
        precision = native(device) if recipe.unet.precision == "bf16" else recipe.unet.precision
        return cls(base, replace(recipe, unet=replace(recipe.unet, precision=precision)), table, chosen, selection, seed, end)

    @property
    def exposures(self) -> tuple[int, int]:
        """Of the base and of this training, an epoch."""
        return sum(shown(self.before).column("copies")), sum(shown(self.works).column("copies"))

    @property
    def summary(self) -> str:
        """The plan in a sentence."""
        return (
            f"UNet trained anew {self.selection}: {len(shown(self.works))} works for {len(shown(self.before))}, "
            f"{self.exposures[1]} exposures an epoch for {self.exposures[0]}, "
            f"{self.end} steps of {self.recipe.unet.schedule.batch} for {self.base.steps_done}."
        )

    def patch(self, denoiser: Denoiser, unet: torch.nn.Module, name: str) -> Patch:
        """Return what makes the trained UNet of the model's, rounded to fp16."""
        works = shown(self.works)
        manifest = Manifest(
            method="retrained",
            settings=asdict(self.recipe.unet) | {"seed": self.seed},
            made_for=f"{denoiser.name} retrained {self.selection}{name}",
            base={key: tensor_digest(tensor) for key, tensor in denoiser.group("unet").items()},
            license=" AND ".join(sorted({licence for licence in works.column("license") if licence})),
            creators=sorted({creator for creator in works.column("creator") if creator}),
        )
        return Patch(manifest, {f"set/unet.{key}": plain(tensor.half()) for key, tensor in unet.named_parameters()})


def _recipe_of(session: Session) -> Recipe:
    model = session.model
    if isinstance(model, Denoiser) and not session.built_in:
        raise Misconfigured(f"It is not known how {model.name} was trained.", "Give its `recipe`, or the folder it was loaded from.")
    return Recipe.load(locate(model.name if isinstance(model, Denoiser) else model))


def _refuse_other_shape(recipe: Recipe, denoiser: Denoiser) -> None:
    channels, side, _ = denoiser.latent_shape
    width = denoiser.conditioning([""]).states.shape[2]
    with torch.device("meta"):
        unet = build(recipe.unet, latent_channels=channels, latent_size=side, text_width=width)
    if {f"unet.{name}": tensor.shape for name, tensor in unet.named_parameters()} != {
        name: tensor.shape for name, tensor in denoiser.group("unet").items()
    }:
        raise Mismatch(f"The recipe makes another UNet than the one in {denoiser.name}.", "Give the model that the recipe is of.")


def _rehearse(session: Session, plan: Plan, steps: int) -> Outcome:
    settings = plan.recipe.unet
    with autocast(settings.precision, session.denoiser.device):
        pictures = 4 * SHOWN
        planned = session.dry_run(
            2 * DDIM_STEPS * pictures, training_passes=steps * settings.schedule.batch, images=len(shown(plan.works)) + pictures
        )
    return replace(planned, extra=planned.extra | {"lines": [plan.summary, *planned.extra["lines"]]})


def _show(session: Session, made: Patch, table: Works, changes: list[dict[str, Any]], folder: Path) -> Picture:
    denoiser = session.denoiser
    gone = {row["id"] for row in changes if row["after"] == 0}
    captions: dict[str, None] = {}
    for left_out in (True, False):
        rows = shown(table).where(lambda row, left_out=left_out: (row["id"] in gone) == left_out)
        texts = [texts[0] for texts in rows.column("captions")]
        captions |= dict.fromkeys(texts[:: max(1, len(texts) // SHOWN)][:SHOWN])
    prompts = list(captions)
    seeds = [derive("retrain", "shown", prompt) for prompt in prompts]
    columns = [to_pictures(denoiser.generate(prompts, seeds, steps=DDIM_STEPS, progress=session.bar("pictures of the base")))]
    with Patched(denoiser, [(made, 1.0)]):
        columns.append(to_pictures(denoiser.generate(prompts, seeds, steps=DDIM_STEPS, progress=session.bar("pictures"))))
    picture = grid([list(pair) for pair in zip(*columns, strict=True)], prompts, ["base", "retrained"], scale=max(1, 128 // denoiser.image_size))
    return save_picture(picture, folder, "samples.png", "The base and the retrained model on the same prompts; those of works left out come first.")


def _by_style(before: Works, after: Works) -> Table:
    tables = [shown(before), shown(after)]
    names = sorted({style or "" for style in tables[0].column("style")} | {style or "" for style in tables[1].column("style")})
    rows = []
    for name in names:
        parts = [table.where(lambda row, name=name: (row["style"] or "") == name) for table in tables]
        rows.append([name or "no style", *map(len, parts), *(sum(part.column("copies")) for part in parts)])
    return Table(title="Works shown, by style", columns=["style", "works, base", "works, here", "exposures, base", "exposures, here"], rows=rows)


def _curve(run: Run) -> Curve:
    width = -(-len(run.losses) // POINTS)
    parts = [run.losses[start : start + width] for start in range(0, len(run.losses), width)]
    points: list[Any] = [(min((place + 1) * width, len(run.losses)), sum(part) / len(part), None, None) for place, part in enumerate(parts)]
    return Curve(title="Loss of the training", x_label="step", y_label="weighted squared error", lines={"loss": points})
