"""What erasers that train spend beside the passes of the networks: `benchmarks/overhead.json`.

    python benchmarks/overhead.py [--concept clocks] [--methods A,B]

Each erases one concept by its preset `small`. A pass is a call of the UNet, the text encoder or the autoencoder, and the backward pass of a loss;
they are clocked while the eraser runs, so that both are of the same seconds. All else is overhead: prompts and draws, losses, masks, the optimiser,
saving checkpoints and the patch. Seven minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from assay.benches.erasure import OBJECTS
from assay.denoiser import Denoiser
from assay.loading import load
from assay.verbs.bench_rows import AGAINST_COPIES
from assay.verbs.erasure_scenes import concept_of
from assay.verbs.methods import table
from assay.verbs.session import Session, builtin_works

FILE = Path(__file__).with_name("overhead.json")
SEED = 20261129
MOST = 1.15


class Clock:
    """Seconds inside passes, forwards and backwards apart."""

    def __init__(self) -> None:
        """Start at none."""
        self.seconds, self.calls = {"forward": 0.0, "backward": 0.0}, {"forward": 0, "backward": 0}
        self._entered: list[float] = []

    def enter(self) -> None:
        """Begin a pass, of which one may be inside another."""
        self._entered.append(time.perf_counter())

    def leave(self, kind: str) -> None:
        """End the pass that began last."""
        start = self._entered.pop()
        if not self._entered:
            self.seconds[kind] += time.perf_counter() - start
            self.calls[kind] += 1


@contextmanager
def clocked(denoiser: Denoiser) -> Generator[Clock]:
    """Clock every pass of a model's networks."""
    clock, pipeline = Clock(), denoiser.pipeline
    hooks = []
    for network in (pipeline.unet, pipeline.text_encoder, pipeline.vae.encoder, pipeline.vae.decoder):
        hooks.append(network.register_forward_pre_hook(lambda *_: clock.enter()))
        hooks.append(network.register_forward_hook(lambda *_: clock.leave("forward"), always_call=True))

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            clock.enter()
            try:
                return function(*args, **options)
            finally:
                clock.leave("backward")

        return run

    before = torch.autograd.backward, torch.autograd.grad
    torch.autograd.backward, torch.autograd.grad = map(timed, before)
    try:
        yield clock
    finally:
        torch.autograd.backward, torch.autograd.grad = before
        for hook in hooks:
            hook.remove()


def main() -> None:
    """Erase by every method, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="clocks", choices=[subject.name for subject in OBJECTS])
    parser.add_argument("--methods")
    options = parser.parse_args()
    session = Session("bench", load("emoji64"), "out", SEED)
    denoiser = session.denoiser
    concept = concept_of(session, builtin_works(), next(subject for subject in OBJECTS if subject.name == options.concept))
    rows: dict[str, Any] = {}
    for row in table("erasure"):
        method, name = import_module(row["module"]), row["name"]
        if name in AGAINST_COPIES or (options.methods and name not in options.methods.split(",")):
            continue
        settings = replace(method.Settings(), **method.PRESETS["small"])
        if not method.cost(settings).get("training_passes"):
            continue
        with tempfile.TemporaryDirectory() as folder, clocked(denoiser) as clock:
            start = time.perf_counter()
            method.erase(denoiser, concept, settings, seed=SEED, folder=Path(folder) / "training").save(Path(folder) / "patch.safetensors")
            seconds = time.perf_counter() - start
        inside = sum(clock.seconds.values())
        rows[name] = {
            "seconds": round(seconds, 2),
            **{kind: round(value, 2) for kind, value in clock.seconds.items()},
            "calls": clock.calls,
            "over_bare_passes": round(seconds / inside, 3),
        }
        print(name, json.dumps(rows[name]), flush=True)
    if not rows:
        parser.error("none of these methods trains")
    result = {"model": denoiser.digest, "concept": concept.name, "seed": SEED, "threads": torch.get_num_threads()}
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    if all(stored.get(key) == value for key, value in result.items()):
        rows = stored["erasers"] | rows
    over = {name: found["over_bare_passes"] for name, found in rows.items()}
    result |= {"erasers": rows, "most": max(over.values()), "bar": MOST, "above_the_bar": [name for name, value in over.items() if value > MOST]}
    FILE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
