"""The one training loop: steps counted, draws named by step, checkpoints atomic, the same bytes after an interruption.

Step i draws everything from `generator(seed, "step", i)`, so a resumed run needs no random state: parameters, averages and the
optimiser's moments and counts are enough. The learning rate warms up, stays, and falls linearly to zero over the last `decay` of the
steps, so that a longer run shares its beginning with a shorter one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from assay.errors import BadInput, Mismatch, NoRoom
from assay.noise import generator

Progress = Callable[[int, int, dict[str, float]], None]
Loss = Callable[[int, torch.Generator], torch.Tensor]
EVERY = 200
"""Steps between checkpoints where nothing else is said."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    """Optimiser steps."""
    batch: int
    """Samples a step."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    warmup: int = 100
    """Steps over which the learning rate rises linearly."""
    decay: float = 0.25
    """Last fraction of the steps, over which the learning rate falls linearly to zero."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    beta2: float = 0.99
    """AdamW's second moment decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Largest decay of the averaged weights; step i uses min(ema, (1 + i) / (10 + i)). 0 keeps no average."""

    def rate(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 0."""
        start = self.steps * (1 - self.decay)
        fall = (self.steps - step) / (self.steps - start) if step >= start and self.decay else 1.0
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup)) * fall


class Run:
    """A training that can stop after any step and go on.

    Args:
        parameters: trainable tensors by name; changed in place.
        loss: `loss(step, generator)` returns the scalar loss of a step; all its randomness comes from `generator`.
        schedule: how long and how fast.
        seed: of every draw.
        folder: where `checkpoint.safetensors` is kept; None keeps none.
        plan: what the checkpoint belongs to; a checkpoint of another plan is refused.
    """

    figure = "loss"
    """What `losses` are, to whom progress is told."""

    def __init__(
        self, parameters: dict[str, torch.Tensor], loss: Loss, schedule: Schedule, *, seed: int, folder: Path | None = None, plan: str = ""
    ) -> None:
        """Take up the checkpoint in `folder`, if there is one."""
        self.parameters = parameters
        self.loss = loss
        self.schedule = schedule
        self.seed = seed
        self.folder = folder
        self.plan = plan
        self.step = 0
        self.losses: list[float] = []
        self.average = {name: tensor.detach().clone() for name, tensor in parameters.items()} if schedule.ema else {}
        tensors = list(parameters.values())
        self.optimizer = torch.optim.AdamW(
            tensors, lr=schedule.learning_rate, betas=(0.9, schedule.beta2), weight_decay=schedule.weight_decay, fused=True
        )
        if folder is not None and (folder / "checkpoint.safetensors").exists():
            self._load(folder / "checkpoint.safetensors")

    def run(self, until: int | None = None, *, every: int | None = None, progress: Progress | None = None) -> list[float]:
        """Train up to step `until` (all, if None), checkpointing every `every` steps (`EVERY`, if None), and return all losses so far."""
        every = every or EVERY
        until = self.schedule.steps if until is None else min(until, self.schedule.steps)
        tensors = list(self.parameters.values())
        self.optimizer.zero_grad()  # of a step that was broken off
        while self.step < until:
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate(self.step)
            value = self.gradients(generator(self.seed, "step", self.step))
            torch.nn.utils.clip_grad_norm_(tensors, self.schedule.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.losses.append(value)
            if self.average:
                decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(list(self.average.values()), [tensor.detach() for tensor in tensors], 1 - decay)
            if progress:
                progress(self.step, self.schedule.steps, {self.figure: sum(self.losses[-50:]) / len(self.losses[-50:])})
            if self.folder is not None and (self.step % every == 0 or self.step == until):
                self._save(self.folder / "checkpoint.safetensors")
        return self.losses

    def gradients(self, rng: torch.Generator) -> float:
        """Give every parameter its gradient at this step and return the loss; other ways to a gradient put theirs here."""
        value = self.loss(self.step, rng)
        value.backward()
        return float(value.detach())

    def use_average(self) -> None:
        """Replace the parameters by their average."""
        with torch.no_grad():
            for name, tensor in self.average.items():
                self.parameters[name].copy_(tensor)

    def _save(self, path: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in self.parameters.items():
            tensors[f"parameter/{name}"] = tensor.detach()
            if state := self.optimizer.state.get(tensor):  # a parameter that the loss never used has none
                tensors |= {f"first/{name}": state["exp_avg"], f"second/{name}": state["exp_avg_sq"], f"count/{name}": state["step"]}
            if self.average:
                tensors[f"average/{name}"] = self.average[name]
        about = {"plan": self.plan, "step": str(self.step), "losses": json.dumps(self.losses), "schedule": json.dumps(asdict(self.schedule))}
        part = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, about)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise NoRoom(f"{path} cannot be written: {error}.", "Free some space, or choose another folder with `--out`.") from error
        finally:  # also when interrupted
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                about, keys = file.metadata(), set(file.keys())
                if about["plan"] != self.plan:
                    raise Mismatch(f"{path} belongs to another training.", "Choose another folder, or remove this one.")
                done, before = int(about["step"]), Schedule(**json.loads(about["schedule"]))
                if done > self.schedule.steps or any(before.rate(step) != self.schedule.rate(step) for step in range(done)):
                    raise Mismatch(
                        f"{path} is of a training of {before.steps} steps, {done} of them done; one of {self.schedule.steps} begins otherwise.",
                        "Choose another folder, or remove this one.",
                    )
                self.step, self.losses = int(about["step"]), json.loads(about["losses"])
                with torch.no_grad():
                    for name, tensor in self.parameters.items():
                        tensor.copy_(file.get_tensor(f"parameter/{name}"))
                        if f"first/{name}" in keys:
                            # Fewer than the run's where some steps gave it no gradient; before counts were kept, the run's were taken.
                            count = float(file.get_tensor(f"count/{name}")) if f"count/{name}" in keys else float(self.step)
                            self.optimizer.state[tensor] = {
                                "step": torch.tensor(count, device=tensor.device),
                                # Device and memory layout of the parameter: the fused optimiser pairs elements by position.
                                "exp_avg": torch.empty_like(tensor).copy_(file.get_tensor(f"first/{name}")),
                                "exp_avg_sq": torch.empty_like(tensor).copy_(file.get_tensor(f"second/{name}")),
                            }
                        if self.average:
                            self.average[name].copy_(file.get_tensor(f"average/{name}"))
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise BadInput(f"The checkpoint {path} cannot be read: {error}.", "Remove it to start the training anew.") from error


def trainable(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters of a module that require gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
