"""`digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels and a class-conditional diffusion model of them that trains in seconds on one core.

For what needs hundreds of trainings: whether a digit was trained on, and what each digit does to another's loss, can be asked of a `Pool` whose
answer is known. A model of the pool is a `Denoiser` like any other, so that methods that read one can be tried on it; it is made again from its
subset and seed rather than stored. It is trained until members show: a hundred times through its half.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from sklearn.datasets import load_digits

from assay.denoiser import Denoiser, own_values
from assay.errors import Misconfigured
from assay.noise import derive, generator
from assay.record import digest_of
from assay.training.digits_network import DigitsNetwork, pipeline
from assay.training.finetune import Student
from assay.training.loop import Progress, Schedule
from assay.training.pool import Plan, Pool, fill, gather
from assay.training.private import Guarantee, Privacy
from assay.training.private import train as privately
from assay.training.unet import UNetSettings
from assay.training.unet import train as train_unet
from assay.works import Works
from assay.works.images import encode

CREATOR = "E. Alpaydin, C. Kaynak"
LICENSE = "CC-BY-4.0"
SOURCE = "UCI Optical Recognition of Handwritten Digits, test set, as scikit-learn ships it"


@dataclass(frozen=True)
class DigitsSettings:
    """The network, its training, and how losses are measured."""

    width: int = 128
    """Hidden size of the perceptron."""
    layers: int = 2
    """Its residual layers."""
    empty: float = 0.1
    """Fraction of the classes replaced by the empty prompt."""
    schedule: Schedule = Schedule(steps=1400, batch=64, learning_rate=3e-3, warmup=50, decay=0.5, weight_decay=0.0, ema=0.995)
    """How long and how fast to train."""
    edges: tuple[int, ...] = (0, 50, 150, 400, 1000)
    """Timesteps at which the ranges of the losses begin and end."""
    draws: int = 8
    """Timesteps and noises in each range, the same for every model; a work's own."""
    noise: int = 20261124
    """Seed of those timesteps and noises."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the losses are called: t0-49 and so on."""
        return tuple(f"t{low}-{high - 1}" for low, high in zip(self.edges[:-1], self.edges[1:], strict=True))

    @property
    def widths(self) -> tuple[int, ...]:
        """Timesteps in each range: with these weights the losses' mean is that over all timesteps, as trained."""
        return tuple(high - low for low, high in zip(self.edges[:-1], self.edges[1:], strict=True))


@cache
def works() -> Works:
    """Return the 1,797 digits as works: title and caption are the digit, in white on black."""
    bunch: Any = load_digits()
    return Works.from_rows([
        {
            "id": f"digit-{index:04d}",
            "image": encode(Image.fromarray((grey * 255 / 16).round().astype(np.uint8).reshape(8, 8)).convert("RGB")),
            "captions": [str(digit)],
            "title": str(digit),
            "creator": CREATOR,
            "license": LICENSE,
            "source": SOURCE,
        }
        for index, (grey, digit) in enumerate(zip(bunch.data, bunch.target.tolist(), strict=True))
    ])


@cache
def pixels() -> torch.Tensor:
    """Return the images of `works`: float32 in [0, 1], (1797, 3, 8, 8)."""
    return torch.from_numpy(works().pixels(8)).permute(0, 3, 1, 2).float() / 255


def chosen(included: np.ndarray) -> np.ndarray:
    """Return the rows of the works that a training sees: int64, (n,).

    Raises:
        Misconfigured: `included` does not fit the works, or leaves none.
    """
    if included.shape != (len(works()),) or not included.any():
        raise Misconfigured(f"{np.count_nonzero(included)} of {len(included)} works make no training set.", f"Choose among {len(works())} works.")
    return np.flatnonzero(included)


def untrained(*, seed: int, settings: DigitsSettings = DigitsSettings()) -> Denoiser:
    """Return a model with the initial weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "unet"))
        network = DigitsNetwork(width=settings.width, layers=settings.layers)
    return Denoiser(pipeline(network), name="digits")


def train(
    included: np.ndarray, *, seed: int, settings: DigitsSettings = DigitsSettings(), folder: Path | None = None, progress: Progress | None = None
) -> Denoiser:
    """Train a model on some of the digits.

    Args:
        included: which works it sees: bool, (1797,).
        seed: of initial weights and every draw.
        settings: network and schedule.
        folder: of the checkpoint; None keeps none.
        progress: called after every step.

    Returns:
        The model, with the averaged weights in.

    Raises:
        Misconfigured: `included` does not fit the works, or leaves none.
        Mismatch: the checkpoint is of another training.
    """
    rows, denoiser = chosen(included), untrained(seed=seed, settings=settings)
    texts = ["", *map(str, range(10))]
    epoch = [(index, [texts.index(works().column("title")[row])]) for index, row in enumerate(rows.tolist())]
    how = UNetSettings(gamma=0.0, empty=settings.empty, schedule=settings.schedule)
    scheduler: Any = DDPMScheduler.from_config(own_values(denoiser.pipeline.scheduler))
    states = denoiser.conditioning(texts).states
    unet: Any = denoiser.unet
    about = digest_of([asdict(settings), works().digest, rows.tolist(), seed])
    given: dict[str, Any] = {"seed": seed, "folder": folder, "plan": about, "progress": progress}
    train_unet(unet, denoiser.latents(pixels()[rows]), states, epoch, how, scheduler, **given).use_average()
    return denoiser


def train_privately(
    included: np.ndarray, privacy: Privacy, *, seed: int, settings: DigitsSettings = DigitsSettings(), progress: Progress | None = None
) -> tuple[Denoiser, Guarantee]:
    """Train a model on some of the digits by DP-SGD; without noise and clipping it is `train` with Poisson samples.

    Args:
        included: which works it sees: bool, (1797,).
        privacy: the budget; every digit is a work.
        seed: of initial weights and every draw.
        settings: network and schedule.
        progress: called after every step.

    Returns:
        The model, with the averaged weights in, and what was promised.

    Raises:
        Misconfigured: `included` does not fit the works, or a number is out of its range.
    """
    rows = chosen(included)
    denoiser = untrained(seed=seed, settings=settings)
    student = Student(denoiser, denoiser.group("unet"))
    texts = ["", *map(str, range(10))]
    captions = [[texts.index(works().column("title")[row])] for row in rows.tolist()]
    latents, told = denoiser.latents(pixels()[rows]), denoiser.conditioning(texts)
    kept = privately(student, latents, told, captions, privacy, settings.schedule, seed=seed, empty=settings.empty, progress=progress)
    with torch.no_grad():
        for name, weight in student.weights.items():
            weight.copy_(student.masters[name])
    return denoiser, kept


@torch.no_grad()
def losses(denoiser: Denoiser, settings: DigitsSettings = DigitsSettings()) -> np.ndarray:
    """Return the loss of every digit in every range of timesteps: float32, (1797, ranges).

    Each is a mean over `draws` pairs of timestep and noise, the timesteps stratified over the range. A work's pairs are its own but the same for
    every model, so that models differ by what they learned and not by the draws.
    """
    clean, conditioning = denoiser.latents(pixels()), denoiser.conditioning(works().column("title"))
    found = np.zeros((len(clean), len(settings.widths)), np.float64)
    for place, (low, width) in enumerate(zip(settings.edges, settings.widths, strict=False)):
        for draw in range(settings.draws):
            rng = generator(settings.noise, "losses", low, draw)
            t = low + ((draw + torch.rand(len(clean), generator=rng)) * width / settings.draws).long().clamp(max=width - 1)
            noise = torch.randn(clean.shape, generator=rng)
            found[:, place] += denoiser.loss(clean, t, noise, conditioning).cpu().double().numpy()
    return (found / settings.draws).astype(np.float32)


@dataclass(frozen=True)
class Trainer:
    """The pool's worker."""

    seeds: tuple[int, ...]
    """Of the trainings, by model."""
    settings: DigitsSettings
    """How to train and measure."""

    def __call__(self, index: int, included: np.ndarray) -> np.ndarray:
        """Train one model and return its losses."""
        with _one_thread():
            return losses(train(included, seed=self.seeds[index], settings=self.settings), self.settings)


def plan_pool(subsets: int = 128, *, seed: int, repeated: int = 0, repeats: int = 1, settings: DigitsSettings = DigitsSettings()) -> Plan:
    """Plan a pool of digits models; arguments as `Plan.draw`'s."""
    about = {"world": "digits", "works": works().digest, "settings": asdict(settings)}
    return Plan.draw(subsets, len(works()), seed=seed, repeated=repeated, repeats=repeats, about=about)


def fill_pool(
    folder: str | Path,
    plan: Plan,
    settings: DigitsSettings = DigitsSettings(),
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Pool:
    """Train what `folder` does not hold yet, each model on one core, and return the whole pool.

    A step is a dozen small matrix products, which a second thread slows down: processes side by side, a core each, are the way. Stacking eight models
    into batched products would save two fifths of a step at this width (3.1 against 5.4 ms at batch 128; a fifth at width 192), but takes a second
    training loop, whose models depend on their neighbours' shapes.

    Args:
        folder: of the models' files.
        plan: from `plan_pool` with the same settings.
        settings: how to train and measure.
        processes: how many train side by side.
        progress: called with models done and models in all.

    Raises:
        Misconfigured: the plan was made for other settings.
    """
    if digest_of(plan.about.get("settings")) != digest_of(asdict(settings)):
        raise Misconfigured("The plan was made for other settings.", "Plan and fill with the same ones.")
    fill(folder, plan, Trainer(tuple(plan.seeds.tolist()), settings), processes=processes, progress=progress)
    return gather(folder, plan, settings.names)


@contextmanager
def _one_thread() -> Generator[None]:
    """Compute on one core: faster here, and sums are split the same way on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
