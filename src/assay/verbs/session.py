"""What every verb needs around its work: the model, its patches, the plan, the clock, and the record at the end."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Container, Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.guidance import check_scale
from assay.jobs.folder import OutFolder
from assay.jobs.outcome import Outcome
from assay.loading import BUILT_IN, load
from assay.noise import generator
from assay.patch import Patch
from assay.patched import Patched, standing
from assay.record import Metric, Record, versions
from assay.works import Works

Progress = Callable[[int, int, str], None]


class Silent:
    """A display that shows nothing: the default of the Python functions."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""


def parse_patch(text: str) -> tuple[Path, float]:
    """Split `PATH[:SCALE]`.

    Raises:
        Misconfigured: the scale is no finite number.
    """
    path, _, scale = text.rpartition(":")
    if not path or Path(text).exists():
        return Path(text), 1.0
    try:
        factor = float(scale)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise Misconfigured(f"`{scale}` is no scale for the patch {path}.", "Write PATH or PATH:NUMBER.")
    return Path(path), factor


@dataclass
class Session:
    """One run of one verb.

    Args:
        command: the verb.
        model: a name, folder, hub id or a loaded denoiser.
        out: the folder to write to.
        seed: of everything random.
        device: a torch device.
        patches: `PATH[:SCALE]`, patches, or (patch, scale) pairs to put on.
        display: shows progress.
        asked: words of the command that asks the same again; see `ask`.
        bound: the folder, once it belongs to a plan.
        before: passes that a loaded denoiser had made when the verb began.
    """

    command: str
    model: str | Path | Denoiser
    out: str | Path
    seed: int = 0
    device: str = "cpu"
    patches: Sequence[str | Patch | tuple[Patch, float]] = ()
    display: Any = field(default_factory=Silent)
    started: float = field(default_factory=time.monotonic)
    asked: list[str] = field(default_factory=list)
    bound: OutFolder | None = None
    before: int = field(init=False)

    def __post_init__(self) -> None:
        """Note what was spent before; training anew counts by itself, over every sitting."""
        self.before = self.model.passes if isinstance(self.model, Denoiser) and self.command != "retrain" else 0

    @cached_property
    def stack(self) -> list[tuple[Patch, float]]:
        """The patches with their scales, read from disk where they are paths."""
        pairs = []
        for item in self.patches:
            if isinstance(item, str | Path):
                path, scale = parse_patch(str(item))
                pairs.append((Patch.load(path), scale))
            else:
                pairs.append((item, 1.0) if isinstance(item, Patch) else item)
        return pairs

    @cached_property
    def denoiser(self) -> Denoiser:
        """The model, loaded when first needed, without patches."""
        if isinstance(self.model, Denoiser):
            return self.model
        _ = self.stack  # a missing patch is cheaper to find than a model
        self.display.say(f"loading {self.model}")
        return load(self.model, device=self.device)

    @property
    def built_in(self) -> bool:
        """Whether the model is the built-in one."""
        return (self.model.name if isinstance(self.model, Denoiser) else str(self.model)) in BUILT_IN

    def preset(self, presets: Container[str], kinds: Iterable[str] = ()) -> str:
        """Return the preset of a method where none is named: small for a built-in model, else the paper's.

        Args:
            presets: the method's.
            kinds: of what is erased; a paper that has settings of its own for concepts of one kind has a preset `paper-KIND`.
        """
        own = f"paper-{'+'.join(sorted(set(kinds)))}"  # of several kinds there is none
        return "small" if self.built_in else own if own in presets else "paper"

    @contextmanager
    def patched(self) -> Generator[Denoiser]:
        """Put the patches on; what fails before anything was written gives its folder back, to the command as it should have been."""
        with self.bound or nullcontext(), Patched(self.denoiser, self.stack) as denoiser:
            yield denoiser

    def check(self, steps: int, reference: Patch | None = None, guidance: float = 1.0) -> None:
        """Refuse before the folder is taken what nothing could be drawn with.

        Args:
            steps: of the sampler.
            reference: a patch that is to be put on by itself.
            guidance: of the sampler.

        Raises:
            Misconfigured: the model cannot be sampled in so many steps, or with so little guidance.
            Mismatch: a patch was made for another base.
        """
        check_scale(guidance)
        self.denoiser.timesteps(steps)
        for stack in (self.stack, [] if reference is None else [(reference, 1.0)]):
            Patched(self.denoiser, stack).clear()

    def plan(self, **settings: Any) -> dict[str, Any]:
        """Return all that the result depends on."""
        stack = [[patch.digest, scale] for patch, scale in self.stack]
        given = self.denoiser  # which may have patches or rules on that the caller put there
        model = standing(given) if given.replaced or given.rules else given.digest
        return {"command": self.command, "model": model, "setup": given.setup, "patches": stack, "seed": self.seed, **settings}

    def folder(self, plan: dict[str, Any]) -> OutFolder:
        """Bind the output folder to the plan."""
        self.bound = OutFolder(self.out, plan)
        return self.bound

    def finished(self, folder: OutFolder) -> Outcome | None:
        """Return the outcome if the plan was carried out before."""
        if not folder.done:
            return None
        self.display.say(f"{folder.path} is complete already")
        return self.outcome(Record.load(folder.path))

    def bar(self, stage: str) -> Callable[..., None]:
        """Return a progress callback (done, total, numbers?) for one stage."""

        def show(done: int, total: int, numbers: dict[str, float] | None = None) -> None:
            self.display(stage, done, total, ", ".join(f"{name} {value:.4g}" for name, value in (numbers or {}).items()))

        return show

    def record(self, question: str, **fields: Any) -> Record:
        """Return a record with everything filled in that all verbs share."""
        patches = {f"patch:{place}": patch.digest for place, (patch, _) in enumerate(self.stack, 1)}
        digests = {"model": self.denoiser.digest, "setup": self.denoiser.setup} | patches
        on = [f"{patch.manifest.method}, {patch.manifest.made_for}, scale {scale:g}" for patch, scale in self.stack]
        resolved = {"model": self.denoiser.name} | ({"patches": on} if on else {}) | fields.pop("resolved", {})
        return Record(
            command=self.command,
            question=question,
            again=self.asked,
            resolved=resolved,
            digests=digests | fields.pop("digests", {}),
            seeds={"seed": self.seed},
            seconds=round(time.monotonic() - self.started, 2),
            passes=self.denoiser.passes - self.before,
            peak_memory=peak_memory(),
            versions=versions(),
            **fields,
        )

    def ask(self, settings: dict[str, Any] | None = None, **options: Any) -> None:
        """Note the command that asks the same again; none where something was given as an object of Python, which has no name.

        Args:
            settings: of the method, by name.
            **options: the command's own, by name; None and empty ones are left out.
        """
        text = {key: ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value) for key, value in (settings or {}).items()}
        flags = {"patch": self.patches, "seed": self.seed, "device": None if self.device == "cpu" else self.device, **options, **text}
        words = [*self.command.split(), str(self.model)]
        known: list[Any] = [self.model]
        for name, value in flags.items():
            for item in value if isinstance(value, list | tuple) else [value] if value is not None else []:
                words += [f"--{name.replace('_', '-')}", *([] if item is True else [str(item)])]
                known.append(item)
        self.asked = words if all(isinstance(item, str | Path | int | float) for item in known) else []

    def outcome(self, record: Record, **more: Any) -> Outcome:
        """Return the outcome, with every file in the folder that users look for."""
        out = Path(self.out)
        roles = {"record": "record.json", "patch": "patch.safetensors", "images": "images.jsonl", "report": "report.html", "dossier": "dossier.json"}
        found = {role: str(out / name) for role, name in roles.items() if (out / name).exists()}
        return Outcome(self.command, out, record, found | {p.file: str(out / p.file) for p in record.pictures}, **more)

    def dry_run(self, passes: int, *, images: int = 0, training_passes: int = 0) -> Outcome:
        """Measure one small pass and return the plan: passes, seconds and bytes.

        Args:
            passes: forward passes of the denoiser, in samples.
            images: images to decode or encode.
            training_passes: passes with gradients, in samples; a backward pass costs about two forward ones.
        """
        second_per_pass, second_per_image = bare_speed(self.denoiser)
        seconds = (passes + 3 * training_passes) * second_per_pass + images * second_per_image
        plan = {"passes": passes + training_passes, "seconds": round(seconds, 1), "peak_memory": peak_memory() + 8 * 2**20}
        lines = [f"plan: {plan['passes']} passes of the denoiser, {images} images, about {seconds:.0f} s, {plan['peak_memory'] / 2**20:.0f} MiB"]
        return Outcome(self.command, None, None, extra={"plan": plan, "lines": lines})


def bare_speed(denoiser: Denoiser, batch: int = 16) -> tuple[float, float]:
    """Measure seconds per sample of one denoiser pass and of one decoding, on this machine now."""
    conditioning = denoiser.conditioning([""]).expand(batch)
    x = torch.randn((batch, *denoiser.latent_shape), generator=generator("speed")).to(denoiser.device)
    t = torch.full((batch,), 500, device=denoiser.device)
    times = []
    with torch.no_grad():
        for work in (lambda: denoiser.predict(x, t, conditioning), lambda: denoiser.images(x)):
            work()
            start = time.perf_counter()
            work()
            work()
            times.append((time.perf_counter() - start) / (2 * batch))
    denoiser.passes -= 3 * batch
    return times[0], times[1]


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes; on a GPU, of the device."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> bool:
    """Begin counting the largest memory anew; false where the system cannot."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_since() -> int | None:
    """Return the largest memory since `reset_peak`."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return peak_memory()
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None


def zoo(*parts: str) -> Path:
    """Return a path in the package's zoo."""
    return Path(str(files("assay"))).joinpath("zoo", *parts)


def works_for(session: Session, path: str | Path | Works | None) -> Works | None:
    """Return the works given, else those of the built-in model (its core), else None."""
    if isinstance(path, Works):
        return path
    if path is not None:
        return Works.read(path)
    return builtin_works() if session.built_in else None


def builtin_works(subset: str | None = "core") -> Works:
    """Return the works of the built-in world: those of one subset, or all if None."""
    works = Works.read(zoo("works"))
    return works if subset is None else works.where(lambda row: row["attributes"].get("subset") == subset)


def count(name: str, value: float, better: str = "neither") -> Metric:
    """Return a metric that is a plain count."""
    return Metric(name=name, value=value, n=int(value), better=better)  # pyright: ignore[reportArgumentType]
