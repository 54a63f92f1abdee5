"""`Patch`: a change to a model as data, with an algebra.

A patch is one safetensors file: entries plus a manifest. Kinds of entry: `delta` (a dense change), `low_rank` (up @ down), `set` (replaces a tensor),
`set8` (the same in 8 bits), `rows` (replaces rows of an embedding), and `guidance` (a sampling rule by name).
Weights under patches are always recomputed from the kept base as

    weight = round(base in fp32 + sum of coefficient x change),   coefficients of equal patches summed first,

so that taking a patch off is exact in any precision, and base + L - L is the base, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from assay.denoiser import tensor_digest
from assay.errors import BadInput, Misconfigured, Mismatch, Missing, Unsupported
from assay.guidance import Rule
from assay.record import write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = "assay/patch/1"
PARTS = {"delta": ("",), "low_rank": ("/up", "/down"), "set": ("",), "set8": ("/values", "/scale"), "rows": ("/index", "/values")}
"""Kind of entry -> the ends of its keys."""
REPLACING = ("set/", "set8/", "rows/")
"""How the keys of entries begin that replace what is there, so that nothing else can act on the same tensor."""


class Manifest(BaseModel):
    """What a patch is, where it came from and what it fits."""

    model_config = ConfigDict(extra="ignore")

    format: str = FORMAT
    """Version of the file format."""
    method: str = ""
    """The method that made it."""
    settings: dict[str, Any] = {}
    """Settings as used."""
    made_for: str = ""
    """What it does, in words: "erase twemoji style"."""
    base: dict[str, str] = {}
    """Name of each tensor it touches -> SHA-256 of that tensor's fp32 bytes in the model it was made for."""
    parents: list[str] = []
    """Digests of the patches it was computed from."""
    license: str = ""
    """Under which licence it may be used."""
    creators: list[str] = []
    """Whose works it concerns."""


@dataclass(frozen=True)
class Patch:
    """A change to a model.

    Args:
        manifest: what it is.
        tensors: "KIND/NAME" (delta, set) or "KIND/NAME/PART" (low_rank: up (out, r), down (r, *rest of the tensor's shape); rows: index, values;
            set8: values, int8, and scale, fp32, one a row) -> tensor.
        rules: sampling rules, by which the model is sampled while the patch is on.
    """

    manifest: Manifest
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    @classmethod
    def by_rule(cls, method: str, settings: DataclassInstance, made_for: str, prompts: Sequence[tuple[str, float]] = ()) -> Patch:
        """Return the patch that changes no weight and samples by the rule of the method's name.

        Args:
            method: name of the method and of its rule.
            settings: of the method; those that are numbers are the rule's.
            made_for: what it does, in words.
            prompts: of the rule, with their weights.
        """
        given = asdict(settings)
        numbers = {name: float(value) for name, value in given.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        return cls(Manifest(method=method, settings=given, made_for=made_for), rules=(Rule(method, tuple(prompts), tuple(numbers.items())),))

    @property
    def names(self) -> list[str]:
        """Names of the tensors that it touches."""
        return sorted({key.split("/")[1] for key in self.tensors})

    @property
    def digest(self) -> str:
        """SHA-256 of what it does: entries and rules, not the manifest."""
        total = hashlib.sha256(repr(self.rules).encode())
        for key, tensor in sorted(self.tensors.items()):
            total.update(f"{key}:{tensor_digest(tensor)}".encode())
        return total.hexdigest()

    def change(self, name: str) -> torch.Tensor | None:
        """Return what is added to a tensor at coefficient 1, in fp32; None if nothing is."""
        if (delta := self.tensors.get(f"delta/{name}")) is not None:
            return delta.float()
        if (up := self.tensors.get(f"low_rank/{name}/up")) is not None:
            return (up.double() @ self.tensors[f"low_rank/{name}/down"].double().flatten(1)).float()
        return None

    def replacement(self, name: str) -> torch.Tensor | None:
        """Return what takes the place of a whole tensor, in fp32; None if nothing does."""
        if (whole := self.tensors.get(f"set/{name}")) is not None:
            return whole.float()
        if (values := self.tensors.get(f"set8/{name}/values")) is not None:
            # One rounded product a weight: the same bytes on every machine.
            return values.float() * self.tensors[f"set8/{name}/scale"].reshape(-1, *[1] * (values.ndim - 1))
        return None

    def compressed(self) -> Patch:
        """Return the patch with the matrices and kernels of its `set` entries in 8 bits: a fourth of fp32, half of fp16.

        Rounding is symmetric, by row (the first dimension): scale = max |row| / 127, value = round(weight / scale), so that no weight moves by more
        than half a scale. Tensors of one dimension stay as they are.

        Raises:
            Unsupported: it has no such entries.
        """
        tensors = dict(self.tensors)
        for key, tensor in self.tensors.items():
            if key.startswith("set/") and tensor.ndim > 1:
                del tensors[key]
                rows = tensor.float().flatten(1)
                scale = rows.abs().amax(1) / 127
                # Where a row is so small that the scale has too few bits, the quotient can pass 127.
                values = (rows / torch.where(scale > 0, scale, 1.0)[:, None]).round().clamp(-127, 127).to(torch.int8)
                tensors |= {f"set8/{key[4:]}/values": values.reshape(tensor.shape), f"set8/{key[4:]}/scale": scale}
        if tensors.keys() == self.tensors.keys():
            raise Unsupported("The patch replaces no matrix, so there is nothing to put into 8 bits.", "Only `set` entries can be compressed.")
        return Patch(self.manifest.model_copy(update={"parents": [self.digest]}), tensors, self.rules)

    @property
    def linear(self) -> bool:
        """Whether it can be scaled: it has no `set`, `set8`, `rows` or `guidance` entries."""
        return not self.rules and all(key.startswith(("delta/", "low_rank/")) for key in self.tensors)

    @property
    def replaces(self) -> bool:
        """Whether it replaces tensors, which then no other patch can act on."""
        return any(key.startswith(REPLACING) for key in self.tensors)

    def scaled(self, factor: float) -> Patch:
        """Return the patch with its changes multiplied by `factor`.

        Raises:
            Unsupported: it has entries that cannot be scaled.
            Misconfigured: the factor is not finite.
        """
        if not math.isfinite(factor):
            raise Misconfigured(f"A patch cannot be multiplied by {factor}.", "Give a finite number.")
        if not self.linear:
            raise Unsupported("A patch with `set`, `rows` or `guidance` entries cannot be scaled or negated.", "Apply it whole, or not at all.")
        tensors = {key: tensor if key.endswith("/down") else tensor.float() * factor for key, tensor in self.tensors.items()}
        return Patch(self.manifest.model_copy(update={"parents": [self.digest], "made_for": f"{factor:g} x ({self.manifest.made_for})"}), tensors)

    def __neg__(self) -> Patch:
        """Return the patch that undoes this one where changes add."""
        return self.scaled(-1.0)

    def __add__(self, other: Patch) -> Patch:
        """Return one patch that does both.

        Low ranks are stacked (exact), dense changes are summed in fp32.

        Raises:
            Mismatch: both replace the same tensor, or one replaces what the other changes, or they were made for different bases.
            Unsupported: both have sampling rules.
        """
        refuse_collisions([self, other])
        for name in set(self.manifest.base) & set(other.manifest.base):
            if self.manifest.base[name] != other.manifest.base[name]:
                raise Mismatch(f"The patches were made for different bases: they disagree on {name}.", "Add patches of one model only.")
        tensors = dict(self.tensors)
        for name in other.names:
            mine, theirs = entries(self, name), entries(other, name)
            if not mine:
                tensors |= theirs
            elif all(key.startswith("low_rank/") for key in (mine | theirs)):
                up, down = f"low_rank/{name}/up", f"low_rank/{name}/down"
                tensors[up] = torch.cat([mine[up].float(), theirs[up].float()], 1)
                tensors[down] = torch.cat([mine[down].float(), theirs[down].float()])
            else:
                for key in mine:
                    del tensors[key]
                first, second = self.change(name), other.change(name)
                assert first is not None
                assert second is not None
                shape = max(first.shape, second.shape, key=len)
                tensors[f"delta/{name}"] = first.reshape(shape) + second.reshape(shape)
        about = Manifest(
            method="add",
            made_for=f"{self.manifest.made_for} + {other.manifest.made_for}",
            base=self.manifest.base | other.manifest.base,
            parents=[self.digest, other.digest],
            license=" AND ".join(sorted({self.manifest.license, other.manifest.license} - {""})),
            creators=sorted({*self.manifest.creators, *other.manifest.creators}),
        )
        return Patch(about, tensors, self.rules + other.rules)

    def save(self, path: str | Path) -> Path:
        """Write the safetensors file in one step and return its path.

        Raises:
            Unsupported: the patch could not be read again: it is not finite, or its entries do not fit each other.
        """
        if why := unsound(self.tensors):
            raise Unsupported(f"The patch is not kept: {why}.", "What made it diverged: lower its rate, or raise its ridge.")
        path = Path(path)
        rules = [{"name": rule.name, "prompts": rule.prompts, "settings": dict(rule.settings)} for rule in self.rules]
        about = {"assay": self.manifest.model_dump_json(), "guidance": json.dumps(rules)}
        write_atomically(path, settled(to_bytes({key: plain(tensor) for key, tensor in self.tensors.items()}, about)))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch.

        Raises:
            Missing: there is no such file.
            BadInput: the file is damaged or no patch.
        """
        path = Path(path)
        path = path / "patch.safetensors" if path.is_dir() else path
        if not path.exists():
            raise Missing(f"There is no patch at {path}.", "Give the file or folder that `assay erase` wrote.")
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                manifest = Manifest.model_validate_json(about["assay"])
                rules = tuple(
                    Rule(
                        str(rule["name"]),
                        tuple((str(prompt), float(weight)) for prompt, weight in rule["prompts"]),
                        tuple((str(name), float(value)) for name, value in rule["settings"].items()),
                    )
                    for rule in json.loads(about["guidance"])
                )
                keys = file.keys()
                tensors = {key: file.get_tensor(key) for key in keys}
        except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, OSError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise BadInput(f"{path} is no patch of assay: {why}.", "Make it anew, or give another file.") from error
        if manifest.format != FORMAT:
            raise BadInput(f"{path} has the format {manifest.format}; this version reads {FORMAT}.", "It may come from a newer version of assay.")
        if unknown := sorted({key.split("/")[0] for key in tensors} - set(PARTS)):
            raise BadInput(f"{path} has entries of an unknown kind: {', '.join(unknown)}.", "It may come from a newer version of assay.")
        for key in tensors:
            kind, _, rest = key.partition("/")
            name = rest.partition("/")[0]
            if not name or {f"{kind}/{name}{part}" for part in PARTS[kind]} != {other for other in tensors if other.split("/")[:2] == [kind, name]}:
                raise BadInput(f"{path} is no patch of assay: the entry {key} is incomplete.", "Make it anew, or give another file.")
        if why := unsound(tensors):
            raise BadInput(f"{path} is no patch of assay: {why}.", "Make it anew, or give another file.")
        return cls(manifest, tensors, rules)


def unsound(tensors: dict[str, torch.Tensor]) -> str | None:
    """Return what is wrong with complete entries, whatever the model; None if nothing is."""
    changed: dict[str, str] = {}
    for key, tensor in tensors.items():
        kind, name, *part = key.split("/")
        if not bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all()):  # one kind of 8-bit floats cannot be asked
            return f"{key} holds numbers that are not finite"
        if kind != "rows" and changed.setdefault(name, kind) != kind:
            return f"it changes {name} in two ways, {changed[name]} and {kind}"
        if part == ["up"]:
            down = tensors[f"low_rank/{name}/down"]
            if tensor.ndim != 2 or down.ndim < 2 or tensor.shape[1] != len(down):
                return f"the factors of {name} do not fit each other"
        elif part == ["index"]:
            whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool
            values = tensors[f"rows/{name}/values"]
            if not whole or tensor.ndim != 1 or values.ndim == 0 or len(tensor) != len(values):
                return f"the index of the rows of {name} is not one whole number a row"
    return None


def entries(patch: Patch, name: str) -> dict[str, torch.Tensor]:
    """Return what a patch holds about one tensor, by key."""
    return {key: tensor for key, tensor in patch.tensors.items() if key.split("/")[1] == name}


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy that safetensors can store."""
    return tensor.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory


def settled(data: bytes) -> bytes:
    """Return a safetensors file with its metadata in the order of their names: written from a hash map, they are in another order each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def refuse_collisions(patches: Sequence[Patch]) -> None:
    """Raise if patches cannot be on together.

    Raises:
        Mismatch: one replaces a tensor that another acts on.
        Unsupported: together they have more than one sampling rule.
    """
    seen: dict[str, bool] = {}
    for patch in patches:
        for name in patch.names:
            replaces = any(key.startswith(REPLACING) for key in entries(patch, name))
            if name in seen and (replaces or seen[name]):
                raise Mismatch(f"Two patches act on {name}, and one of them replaces it.", "Use one of them.")
            seen[name] = replaces
    refuse_rules(patches)


def refuse_rules(patches: Sequence[Patch]) -> None:
    """Raise if patches have more than one sampling rule together.

    Raises:
        Unsupported: they have.
    """
    if sum(len(patch.rules) for patch in patches) > 1:
        raise Unsupported("A model can be sampled by one sampling rule at a time.", "Use one patch with `guidance` entries.")


def fits(patch: Patch, name: str, shape: torch.Size) -> bool:
    """Return whether what a patch holds about one tensor fits that tensor's shape."""
    for key, tensor in entries(patch, name).items():
        right = True
        if key.startswith(("delta/", "set/")) or (key.startswith("set8/") and key.endswith("/values")):
            right = tensor.shape == shape
        elif key.startswith("set8/"):
            right = tensor.shape == shape[:1]
        elif key.endswith("/up"):
            right = tensor.shape == (shape[0], len(patch.tensors[f"low_rank/{name}/down"]))
        elif key.endswith("/down"):
            right = tensor.shape[1:] == shape[1:]
        elif key.endswith("/values"):
            right = tensor.shape == (len(patch.tensors[f"rows/{name}/index"]), *shape[1:])
        elif key.endswith("/index"):
            right = tensor.ndim == 1 and bool(((tensor >= 0) & (tensor < shape[0])).all())
        if not right:
            return False
    return True
