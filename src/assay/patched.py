"""Patches at work: on a model and off again exactly, fused into a folder, exported as LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save as to_bytes

from assay.denoiser import Denoiser, tensor_digest
from assay.errors import Misconfigured, Mismatch, Missing, NoRoom, Unsupported
from assay.patch import Patch, fits, plain, refuse_collisions, refuse_rules
from assay.record import digest_of, write_atomically

LORA_TEXT = (".q_proj", ".k_proj", ".v_proj", ".out_proj", ".fc1", ".fc2")
"""The modules of text encoders that diffusers' LoRA files can hold."""


def standing(denoiser: Denoiser) -> str:
    """Return a digest of a model as it stands, with whatever patches and sampling rules are on it: what its outputs depend on."""
    weights = denoiser.weights()
    changed = [[name, tensor_digest(weights[name])] for name in sorted(denoiser.replaced)]
    return digest_of([denoiser.digest, changed, repr(denoiser.rules)])


class Patched:
    """A model with patches on; a context manager that restores the base exactly.

    Several may be on one model, one inside the other: what was put on last comes off first.

    Args:
        denoiser: the model; its weights are changed in place while patches are on.
        patches: (patch, coefficient) pairs to put on at once.
        force: put patches on a base they were not made for.

    Raises:
        Mismatch: a patch was made for another base and `force` is false; nothing has been changed then.
    """

    def __init__(self, denoiser: Denoiser, patches: Sequence[tuple[Patch, float]] = (), *, force: bool = False) -> None:
        """Check every patch, then put them on."""
        self.denoiser = denoiser
        self.force = force
        self.base: dict[str, torch.Tensor] = {}
        self.rules = list(denoiser.rules)
        self.stack: list[tuple[Patch, float]] = []
        self.forced: list[str] = []
        self._check(patches)
        try:
            for patch, coefficient in patches:
                self._put_on(patch, coefficient)
        except BaseException:
            self.clear()
            raise

    def __enter__(self) -> Denoiser:
        """Return the model with the patches on."""
        return self.denoiser

    def __exit__(self, *_: object) -> None:
        """Take every patch off."""
        self.clear()

    def apply(self, patch: Patch, coefficient: float = 1.0) -> None:
        """Put one more patch on.

        Raises:
            Mismatch: it was made for another base, or collides with one that replaces a tensor; nothing has been changed then.
            Misconfigured: other patches were put on after these.
            Unsupported: it cannot be scaled, touches tensors that the model does not have, or has a second or unknown sampling rule.
        """
        self._last()
        self._check([(patch, coefficient)])
        try:
            self._put_on(patch, coefficient)
        except BaseException:
            self.stack.pop()
            self._recompute([name for name in patch.names if name in self.base])
            raise

    def _put_on(self, patch: Patch, coefficient: float) -> None:
        weights = self.denoiser.weights()
        if self not in self.denoiser.patched:
            self.denoiser.patched.append(self)
        self.stack.append((patch, coefficient))
        for name in patch.names:
            if name not in self.base:
                self.base[name] = weights[name].detach().clone()
                self.denoiser.replaced.setdefault(name, self.base[name])
        self._recompute(patch.names)

    def _last(self) -> None:
        """Raise unless what is on here was put on last, or nothing is.

        Raises:
            Misconfigured: other patches were put on after these, and would be left on a base that is not there any more.
        """
        if self in self.denoiser.patched and self.denoiser.patched[-1] is not self:
            raise Misconfigured("Other patches were put on this model after these.", "Take those off first.")

    def remove(self, patch: Patch) -> None:
        """Take one patch off, wherever it is in the stack.

        Raises:
            Missing: it is not on.
            Misconfigured: other patches were put on after these.
        """
        self._last()
        for index, (other, _) in enumerate(self.stack):
            if other.digest == patch.digest:
                del self.stack[index]
                return self._recompute(patch.names)
        raise Missing("That patch is not on.", "Only a patch that was applied can be removed.")

    def clear(self) -> None:
        """Take every patch off.

        Raises:
            Misconfigured: other patches were put on after these.
        """
        self._last()
        self.stack = []
        self._recompute(list(self.base))
        for name, tensor in self.base.items():
            if self.denoiser.replaced.get(name) is tensor:
                del self.denoiser.replaced[name]
        self.base = {}
        if self in self.denoiser.patched:
            self.denoiser.patched.remove(self)

    def _check(self, patches: Sequence[tuple[Patch, float]]) -> None:
        weights = self.denoiser.weights()
        present: dict[str, str] = {}
        forced = []
        for patch, coefficient in patches:
            if coefficient != 1 and not patch.linear:
                patch.scaled(coefficient)
            for rule in patch.rules:
                rule.check()
            for name in patch.names:
                if name not in weights:
                    raise Unsupported(
                        f"The patch changes {name}, which {self.denoiser.name} does not have.", "It was made for another kind of model."
                    )
                if not fits(patch, name, weights[name].shape):
                    raise Unsupported(
                        f"The patch's change of {name} has another shape than in {self.denoiser.name}.", "It was made for another kind of model."
                    )
            for name, digest in patch.manifest.base.items():
                if name in weights and name not in present:
                    present[name] = tensor_digest(self.denoiser.replaced.get(name, weights[name]))
                if name in weights and digest != present[name]:
                    if not self.force:
                        raise Mismatch(
                            f"The patch was made for another base: {name} differs in {self.denoiser.name}.",
                            "Use the model it was made for, or force it.",
                        )
                    forced.append(name)
        refuse_collisions([patch for patch, _ in (*self.stack, *patches)])
        beside = [patch for other in self.denoiser.patched if other is not self for patch, _ in other.stack]
        refuse_rules([*beside, *(patch for patch, _ in (*self.stack, *patches))])
        self.forced = sorted({*self.forced, *forced})

    @torch.no_grad()
    def _recompute(self, names: Sequence[str]) -> None:
        weights = self.denoiser.weights()
        for name in names:
            base = self.base[name]
            sums: dict[str, tuple[torch.Tensor, float]] = {}
            value = base.float().clone()
            for patch, coefficient in self.stack:
                replaced, rows = patch.replacement(name), patch.tensors.get(f"rows/{name}/index")
                if replaced is not None:
                    value = replaced.clone()
                if rows is not None:
                    value[rows.long()] = patch.tensors[f"rows/{name}/values"].float().to(value.device)
                if (change := patch.change(name)) is not None:
                    key, opposite = tensor_digest(change + 0.0), tensor_digest(0.0 - change)
                    if opposite < key:  # L and -L are one change with two signs
                        key, change, coefficient = opposite, -change, -coefficient
                    sums[key] = (change, sums.get(key, (change, 0.0))[1] + coefficient)
            for _, (change, coefficient) in sorted(sums.items()):
                if coefficient:
                    value += coefficient * change.reshape(value.shape).to(value.device)
            weights[name].copy_(value)
        if any(name.startswith("text_encoder") for name in names):
            self.denoiser.forget_text()
        self.denoiser.rules[:] = self.rules + [rule for patch, _ in self.stack for rule in patch.rules]


def fuse(denoiser: Denoiser, patches: Sequence[tuple[Patch, float]], folder: str | Path, *, force: bool = False) -> Path:
    """Write the model with patches on as a plain diffusers folder, in one step.

    Raises:
        Unsupported: a patch has sampling rules, which weights cannot hold, or diffusers would load the folder with other timesteps.
        Mismatch: the folder exists, or a patch was made for another base.
        NoRoom: the disk is full, or the folder cannot be written.
    """
    folder = Path(folder)
    if any(patch.rules for patch, _ in patches):
        raise Unsupported("A patch with sampling rules cannot be fused into weights.", "Apply it with `--patch` when sampling.")
    if denoiser.family.name == "sd" and getattr(denoiser.pipeline.scheduler.config, "steps_offset", 1) != 1:
        raise Unsupported("Diffusers loads every Stable Diffusion with `steps_offset` 1, whatever it was saved with.", "Give its scheduler that.")
    if folder.exists():
        raise Mismatch(f"{folder} exists already.", "Choose another folder.")
    part = folder.with_name(folder.name + ".part")
    with Patched(denoiser, patches, force=force):
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            denoiser.pipeline.save_pretrained(part)
            for file in part.rglob("*.json"):  # where the base lay on this machine is nobody's business
                about = json.loads(file.read_text())
                if isinstance(about, dict) and about.pop("_name_or_path", None) is not None:
                    file.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
            part.replace(folder)
        except (OSError, SafetensorError) as error:
            raise NoRoom(f"{folder} cannot be written: {error}.", "Free some space, or choose another folder with `--out`.") from error
        finally:  # also when interrupted
            shutil.rmtree(part, ignore_errors=True)
    return folder


def export_lora(patch: Patch, folder: str | Path) -> Path:
    """Write a low-rank patch as `pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` reads.

    Raises:
        Unsupported: an entry is not low-rank, or touches something other than the UNet or a text encoder's attention and MLPs.
    """
    if patch.rules or not patch.tensors or any(not key.startswith("low_rank/") for key in patch.tensors):
        raise Unsupported("Only low-rank patches can be exported as LoRA.", "Fuse it into a model folder with `assay patch fuse` instead.")
    keys = {}
    rank = max(tensor.shape[1] for key, tensor in patch.tensors.items() if key.endswith("/up"))
    for name in patch.names:
        module = name.removesuffix(".weight")
        up, down = patch.tensors[f"low_rank/{name}/up"], patch.tensors[f"low_rank/{name}/down"]
        if not module.startswith("unet.") and not (module.startswith("text_encoder") and module.endswith(LORA_TEXT)):
            raise Unsupported(f"LoRA files cannot hold {name}.", "Fuse the patch into a model folder instead.")
        # One rank for all, filled with zeros: older diffusers rescale modules whose rank is not the commonest.
        up = torch.cat([up, up.new_zeros(len(up), rank - up.shape[1])], 1)
        down = torch.cat([down, down.new_zeros(rank - len(down), *down.shape[1:])])
        if down.ndim == 4:
            up = up[:, :, None, None]
        # PEFT's names for the UNet; diffusers converts PEFT's names only for the attention of text encoders, its own for all of their modules.
        ends = ("lora_B", "lora_A") if module.startswith("unet.") else ("lora_linear_layer.up", "lora_linear_layer.down")
        keys |= {f"{module}.{ends[0]}.weight": plain(up), f"{module}.{ends[1]}.weight": plain(down)}
    path = Path(folder) / "pytorch_lora_weights.safetensors"
    write_atomically(path, to_bytes(keys, {"format": "pt"}))
    return path
