"""`patch`: describe, add, scale, fuse and export patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.denoiser import load
from assay.errors import Misconfigured, Mismatch
from assay.jobs.outcome import Outcome
from assay.patch import Patch
from assay.patched import export_lora, fuse
from assay.record import Record, versions
from assay.verbs.session import Silent, count, parse_patch


def info(paths: Sequence[str | Path]) -> Outcome:
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


def _save(command: str, patch: Patch, out: str | Path, question: str) -> Outcome:
    out = Path(out)
    if (out / "patch.safetensors").exists() and Patch.load(out).digest != patch.digest:
        raise Mismatch(f"{out} holds another patch.", "Choose another folder with `--out`.")
    patch.save(out / "patch.safetensors")
    record = Record(
        command=command,
        question=question,
        digests={"patch": patch.digest} | {f"parent:{index}": digest for index, digest in enumerate(patch.manifest.parents)},
        metrics=[count("patch.tensors", len(patch.names))],
        findings=[f"{out / 'patch.safetensors'}: {patch.manifest.made_for}."],
        versions=versions(),
    )
    record.save(out)
    return Outcome(command, out, record, {"patch": str(out / "patch.safetensors")})


def add(paths: Sequence[str | Path], *, out: str | Path | None = None) -> Outcome:
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
    return _save("patch add", total, out or "assay-out/patch-add", "What is the sum of these patches?")


def scale(paths: str | Path, *, by: float, out: str | Path | None = None) -> Outcome:
    """Multiply a patch's changes by a factor."""
    return _save("patch scale", Patch.load(paths).scaled(by), out or "assay-out/patch-scale", f"What is this patch times {by:g}?")


def fuse_patches(
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
    out = Path(out or "assay-out/patch-fuse")
    target = fuse(denoiser, pairs, out / "model", force=force)
    record = Record(
        command="patch fuse",
        question="What is the model with these patches on?",
        digests={"model": denoiser.digest} | {f"patch:{patch.manifest.made_for}": patch.digest for patch, _ in pairs},
        findings=[f"{target} is a plain diffusers folder with {len(pairs)} patches in its weights."],
        versions=versions(),
    )
    record.save(out)
    return Outcome("patch fuse", out, record, {"model": str(target)}, next=(f'assay generate {target} --prompt "..."',))


def export(paths: str | Path, *, out: str | Path | None = None) -> Outcome:
    """Write a low-rank patch as a LoRA file that diffusers loads."""
    out = Path(out or "assay-out/patch-export-lora")
    patch = Patch.load(paths)
    path = export_lora(patch, out)
    record = Record(
        command="patch export-lora",
        question="What is this patch as a LoRA?",
        digests={"patch": patch.digest},
        findings=[f"{path} loads with `load_lora_weights`."],
        versions=versions(),
    )
    record.save(out)
    return Outcome("patch export-lora", out, record, {"lora": str(path)})
