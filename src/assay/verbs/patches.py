"""`patch`: describe, add, scale, fuse and export patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.errors import Misconfigured
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.loading import load
from assay.patch import Patch
from assay.patched import export_lora, fuse
from assay.record import Record, versions
from assay.verbs.session import Silent, count, parse_patch


def patch_info(paths: Sequence[str | Path]) -> Outcome:
    """Say what each patch is, what it touches and how large it is."""
    rows = []
    for path in paths:
        patch = Patch.load(path)
        kinds = sorted({key.split("/")[0] for key in patch.tensors} | ({"guidance"} if patch.rules else set()))
        size = sum(tensor.numel() * tensor.element_size() for tensor in patch.tensors.values())
        about = patch.manifest.model_dump() | {"digest": patch.digest, "kinds": kinds, "tensors": len(patch.names), "bytes": size, "path": str(path)}
        rows.append(about)
    lines = [
        f"{row['path']}: {row['method']}, {row['made_for']}; {', '.join(row['kinds'])} on {row['tensors']} tensors, "
        f"{row['bytes'] / 1e6:.2f} MB, {row['digest'][:12]}"
        for row in rows
    ]
    return Outcome("patch info", None, None, extra={"patches": rows, "lines": lines})


def _write(
    command: str, plan: dict[str, Any], out: str | Path | None, again: Sequence[str], write: Callable[[Path], Path], about: Callable[[Path], Record]
) -> Outcome:
    """Bind the folder to the plan, write the one file or folder the command is for, and the record; do nothing if that was done before."""
    folder = OutFolder(out or f"out/{command.replace(' ', '-')}", {"command": command, **plan})
    roles = {"patch": "patch.safetensors", "model": "model", "lora": "pytorch_lora_weights.safetensors"}
    if not folder.done or not any((folder / name).exists() for name in roles.values()):
        with folder:
            made = write(folder.path)
        words = [*command.split(), *again]
        about(made).model_copy(update={"command": command, "given": plan, "again": words, "versions": versions()}).save(folder.path)
    files = {role: str(folder / name) for role, name in roles.items() if (folder / name).exists()}
    return Outcome(command, folder.path, Record.load(folder.path), files)


def _save(command: str, patch: Patch, out: str | Path | None, again: Sequence[str], question: str) -> Outcome:
    def write(folder: Path) -> Path:
        patch.save(folder / "patch.safetensors")
        return folder / "patch.safetensors"

    def about(made: Path) -> Record:
        return Record(
            command=command,
            question=question,
            digests={"patch": patch.digest} | {f"parent:{index}": digest for index, digest in enumerate(patch.manifest.parents)},
            metrics=[count("patch.tensors", len(patch.names))],
            findings=[f"`{made.name}`: {patch.manifest.made_for}."],
        )

    return _write(command, {"patch": patch.digest}, out, again, write, about)


def patch_add(paths: Sequence[str | Path], *, out: str | Path | None = None) -> Outcome:
    """Make one patch of several, each `PATH[:SCALE]`.

    Raises:
        Misconfigured: fewer than two are given.
    """
    if len(paths) < 2:
        raise Misconfigured("Adding takes at least two patches.", "Give two or more, each as PATH or PATH:SCALE.")
    parts = []
    for path, scale in (parse_patch(str(text)) for text in paths):
        patch = Patch.load(path)
        parts.append(patch if scale == 1.0 else patch.scaled(scale))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return _save("patch add", total, out, [str(path) for path in paths], "What is the sum of these patches?")


def patch_scale(paths: str | Path, *, by: float, out: str | Path | None = None) -> Outcome:
    """Multiply a patch's changes by a factor."""
    return _save("patch scale", Patch.load(paths).scaled(by), out, [str(paths), "--by", str(by)], f"What is this patch times {by:g}?")


def patch_compress(paths: str | Path, *, out: str | Path | None = None) -> Outcome:
    """Put what a patch replaces into 8 bits; `Patch.compressed` says how."""
    return _save("patch compress", Patch.load(paths).compressed(), out, [str(paths)], "What is this patch in 8 bits?")


def patch_fuse(
    paths: Sequence[str | Path],
    *,
    model: str = "emoji64",
    force: bool = False,
    out: str | Path | None = None,
    device: str = "cpu",
    display: Any = None,
) -> Outcome:
    """Write the model with patches on as a plain diffusers folder `out`/model."""
    display = display or Silent()
    pairs = [(Patch.load(path), factor) for path, factor in (parse_patch(str(text)) for text in paths)]
    display.say(f"loading {model}")
    denoiser = load(model, device=device)

    def about(made: Path) -> Record:
        return Record(
            command="patch fuse",
            question="What is the model with these patches on?",
            digests={"model": denoiser.digest, "setup": denoiser.setup}
            | {f"patch:{place}": patch.digest for place, (patch, _) in enumerate(pairs, 1)},
            findings=[f"`{made.name}` is a plain diffusers folder with {len(pairs)} patches in its weights{', forced' if force else ''}."],
        )

    def made(folder: Path) -> Path:
        whole = folder / "model"  # of this plan, by one that was killed before its record: it came into place at once
        return whole if whole.is_dir() else fuse(denoiser, pairs, whole, force=force)

    given = [[patch.digest, factor] for patch, factor in pairs]
    plan = {"model": denoiser.digest, "setup": denoiser.setup, "patches": given, "force": force}
    again = [*map(str, paths), "--model", model, *(["--force"] if force else [])]
    outcome = _write("patch fuse", plan, out, again, made, about)
    return replace(outcome, next=(f'assay generate {outcome.files["model"]} --prompt "..."',))


def patch_export_lora(paths: str | Path, *, out: str | Path | None = None) -> Outcome:
    """Write a low-rank patch as a LoRA file that diffusers loads."""
    patch = Patch.load(paths)

    def about(made: Path) -> Record:
        return Record(
            command="patch export-lora",
            question="What is this patch as a LoRA?",
            digests={"patch": patch.digest},
            findings=[f"`{made.name}` loads with `load_lora_weights`."],
        )

    return _write("patch export-lora", {"patch": patch.digest}, out, [str(paths)], lambda folder: export_lora(patch, folder), about)
