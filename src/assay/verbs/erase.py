"""`erase`: take a concept, style or work out of a model; the result is a patch, with pictures of what it does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from assay import settings as method_settings
from assay.concept import Concept, Kind, together
from assay.denoiser import Denoiser, to_pictures
from assay.errors import Misconfigured, Mismatch
from assay.jobs.outcome import Outcome
from assay.noise import derive
from assay.patch import Patch, refuse_collisions
from assay.patched import Patched
from assay.record import Picture
from assay.reports.pictures import grid, save_picture
from assay.verbs.methods import method_row
from assay.verbs.session import Session, Silent, count, works_for
from assay.works import Works
from assay.works import concepts as known

SHOWN = 4


def text_vectors(denoiser: Denoiser, texts: Sequence[str]) -> np.ndarray:
    """Return the encoder's mean state of every text: float32, (n, width); what nearness between concepts is measured by."""
    blocks = [texts[start : start + 1024] for start in range(0, len(texts), 1024)]  # of many, only the means are kept
    return np.concatenate([denoiser.conditioning(list(block)).states.mean(1).float().cpu().numpy() for block in blocks])


def concept_for(
    session: Session, works: Works | None, name: str, kind: Kind | None = None, anchor: str | None = None, preserve: Sequence[str] = ()
) -> Concept:
    """Return the concept in the terms of the works where there are works that know it, else in plain words; `A; B` means both together.

    Raises:
        Misconfigured: the numbers of concepts and of anchors do not fit.
    """
    if len(names := [part.strip() for part in name.split(";") if part.strip()]) > 1:
        anchors = [None] * len(names) if anchor is None else [part.strip() for part in anchor.split(";")]
        if len(anchors) not in (1, len(names)):
            raise Misconfigured(f"There are {len(anchors)} anchors for {len(names)} concepts.", "Give one for all, or one each.")
        anchors *= len(names) // len(anchors)
        return together([concept_for(session, works, one, kind, other, preserve) for one, other in zip(names, anchors, strict=True)])
    if works is None or kind in ("work", "free"):
        return Concept(name, kind or "free", anchor or "", preserve=tuple(preserve))
    return known.find(
        works, name, kind=kind, anchor=anchor, preserve=preserve, embed=lambda texts: text_vectors(session.denoiser, texts), seed=session.seed
    )


def erase(
    model: str | Path | Denoiser = "emoji64",
    concept: str | Concept = "",
    *,
    method: str,
    kind: Kind | None = None,
    anchor: str | None = None,
    preserve: Sequence[str] = (),
    preset: str | None = None,
    settings: dict[str, Any] | None = None,
    works: str | Path | Works | None = None,
    patches: Sequence[str | Patch | tuple[Patch, float]] = (),
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    dry_run: bool = False,
    display: Any = None,
) -> Outcome:
    """Erase a concept and write `patch.safetensors`, pictures before and after, and a record into `out`.

    Args:
        model: a built-in name, a folder, a hub id or a loaded denoiser.
        concept: its name, several separated by `;`, or a whole `Concept`.
        method: see `assay methods erase`.
        kind: what the concept is; guessed where the works know it.
        anchor: what takes its place.
        preserve: what must stay.
        preset: named settings; small for the built-in model, else the paper's: for this kind of concept, where it has others for it.
        settings: fields of the method's settings that differ from the preset.
        works: say which styles and titles there are.
        patches: what is on the model already.
        out: folder to write to.
        seed: of everything random.
        device: a torch device.
        dry_run: plan only.
        display: shows progress.

    Returns:
        The outcome; `Patch.load(outcome.files["patch"])` is the patch.
    """
    row = method_row("erasure", method)
    module = import_module(row["module"])
    session = Session("erase", model, out or f"out/erase-{method}", seed, device, patches, display or Silent())
    table = works_for(session, works)
    target = concept if isinstance(concept, Concept) else concept_for(session, table, concept, kind, anchor, preserve)
    preset = preset or session.preset(module.PRESETS, [part.kind for part in target.parts or (target,)])
    given = dict(settings or {})
    chosen = method_settings.resolve(module.Settings, module.PRESETS, preset, given)
    if dry_run:
        spent = module.cost(chosen)
        spent["passes"] += 4 * SHOWN * 40
        return session.dry_run(**spent, images=4 * SHOWN)
    session.ask(given, method=method, concept=concept, kind=kind, anchor=anchor, preserve=preserve, preset=preset, works=works)
    about = {"name": target.name, "kind": target.kind, "anchor": target.anchor, "members": target.members, "preserve": target.preserve[:40]}
    plan = session.plan(method=method, preset=preset, settings=vars(chosen), concept=asdict(target))
    folder = session.folder(plan)
    if previous := session.finished(folder):
        return previous
    where = folder / "patch.safetensors"
    before = where.exists()  # of a run that was interrupted while it drew
    with session.patched() as denoiser:
        if not before and any(patch.replaces or patch.rules for patch, _ in session.stack):
            spent = denoiser.passes
            with suppress(Misconfigured):  # of settings that the method's quickest ones do not go with, nothing is known beforehand
                _refuse_beside([patch for patch, _ in session.stack], module.erase(denoiser, target, replace(chosen, **module.PROBE), seed=seed))
            denoiser.passes = spent
        if before:
            made = Patch.load(where)
        else:
            made = module.erase(denoiser, target, chosen, seed=seed, progress=session.bar(f"erasing by {method}"), folder=folder / "training")
            if session.stack:  # made on top of others, and to be used with them
                made = replace(made, manifest=made.manifest.model_copy(update={"parents": [patch.digest for patch, _ in session.stack]}))
            made.save(where)
        spent = denoiser.passes
        shown = _show(denoiser, target, made, seed, folder.path, session)
        denoiser.passes = spent  # the pictures are no part of the method's cost
    size = where.stat().st_size
    moved = _relative_change(session.denoiser, made)
    record = session.record(
        f"Can `{target.name}` be taken out of the model by {method}?",
        method=method,
        given={"preset": preset, **given, "concept": about},
        resolved=vars(chosen) | {"anchor": target.anchor},
        digests={"patch": made.digest},
        metrics=[count("patch.tensors", len(made.names)), count("patch.bytes", size, "lower"), count("patch.relative_change", moved)],
        findings=[_finding(target, made, moved)],
        shows_not=[
            "The pictures show a few prompts; `assay evaluate` measures target, neighbours and everything else, and no attack has been tried here.",
            *(["The patch was made in an earlier sitting: seconds, passes and memory are those of its pictures alone."] if before else []),
        ],
        pictures=[shown],
    )
    record.save(folder.path)
    on = f"{'' if isinstance(session.model, Denoiser) else f'{session.model} '}--patch {folder.path}"
    on += f" --works {works}" if isinstance(works, str | Path) else ""
    judged = all(part.kind in ("style", "object") for part in target.parts or (target,))
    more = f"assay evaluate {on} --concept '{target.name}'" if judged else f"assay audit {on} --method nearest"
    return session.outcome(record, next=(more, f"assay report {folder.path}"))


def _refuse_beside(stack: Sequence[Patch], probe: Patch) -> None:
    """Raise before an eraser trains for long what could not be put on beside the patches that it was made on.

    Args:
        stack: those patches.
        probe: what the eraser makes by its quickest settings: it acts on the same tensors.

    Raises:
        Mismatch: it acts on what one of them replaces.
        Unsupported: it has a sampling rule, and so has one of them.
    """
    try:
        refuse_collisions([*stack, probe])
    except Mismatch as error:
        raise Mismatch(
            f"{error.message} The method's patch could not be used with those under `--patch`.",
            "Make one model of them with `assay patch fuse`, and erase from that.",
        ) from error


def _show(denoiser: Denoiser, target: Concept, made: Patch, seed: int, folder: Path, session: Session) -> Picture:
    pairs = target.pairs()
    step = max(1, len(pairs) // SHOWN)
    wanted = [prompt for prompt, _ in pairs[::step]][:SHOWN]
    kept = [prompt for prompt in target.preserved() if prompt]
    wanted += kept[:: max(1, len(kept) // SHOWN)][:SHOWN]
    seeds = [derive(seed, "shown", index) for index in range(len(wanted))]
    rows = [to_pictures(denoiser.generate(wanted, seeds, progress=session.bar("pictures before")))]
    with Patched(denoiser, [(made, 1.0)]):
        rows.append(to_pictures(denoiser.generate(wanted, seeds, progress=session.bar("pictures after"))))
    columns = [list(pair) for pair in zip(*rows, strict=True)]
    picture = grid(columns, wanted, ["before", "after"], scale=max(1, 128 // denoiser.image_size))
    below = ", preserved prompts below" if kept else ""
    return save_picture(picture, folder, "before-after.png", f"Before and after erasing {target.name}: target prompts above{below}.")


def _finding(target: Concept, made: Patch, moved: float) -> str:
    method = made.manifest.method.upper()
    if made.rules:
        prompts = ", ".join(f"`{prompt}` ({weight:+.2g})" for rule in made.rules for prompt, weight in rule.prompts)
        prompts = f", with the prompts {prompts}" if prompts else ""
        return f"{method} changes no weight of the model: it is sampled by a rule, {made.manifest.made_for}{prompts}."
    anchor_text = f"`{target.anchor}`" if target.anchor else "the empty prompt"
    return f"{method} on `{target.name}`, its anchor {anchor_text}: {len(made.names)} tensors changed by {moved:.1%} of their norm."


def _relative_change(denoiser: Denoiser, made: Patch) -> float:
    weights = denoiser.weights()
    change = sum(float(part.square().sum()) for name in made.names if (part := made.change(name)) is not None)
    base = sum(float(weights[name].float().square().sum()) for name in made.names)
    return (change / base) ** 0.5 if base else 0.0
