"""Train a judge from scratch on the works of one fold, with strong augmentation, so that a class of two or three works is learned by shape.

Trunk: rotation, scale, shear, shift, mirroring and colour (hue, saturation, contrast, grey, negative), because a title must be recognised in a
style it was not seen in. Style branch: its own half batch, mirrored and shifted only, because style is colour. Loss: cross-entropy with label
smoothing (Szegedy et al. 2016, Sec. 7) on title, group and style. Batch normalisation, because the backward pass of group normalisation is slow on
CPUs; in training it never reads its running statistics, so checkpoints need none: they are computed once, at the end, on fixed draws, which averaged
weights need anyway (Izmailov et al. 2018, Sec. 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from assay.errors import Misconfigured
from assay.judge import Judge
from assay.judge_network import SIZE, JudgeNetwork, Shape
from assay.noise import derive, generator
from assay.training.loop import Progress, Run, Schedule, trainable

SHAPE = Shape()
SCHEDULE = Schedule(steps=700, batch=128, learning_rate=3e-3, warmup=100, decay=0.5, weight_decay=0.05, ema=0.995)


@dataclass(frozen=True)
class JudgeSettings:
    """The judge's shape, augmentation and training."""

    shape: Shape = SHAPE
    """Of the network."""
    rotation: float = 25.0
    """Largest rotation of the trunk's images in degrees."""
    zoom: float = 0.3
    """Largest change of their scale, in natural logarithms."""
    shift: float = 0.12
    """Largest shift of all images, in image sides."""
    shear: float = 0.25
    """Largest shear of the trunk's images."""
    colour: float = 0.5
    """Share of the trunk's images whose colours are changed."""
    smoothing: float = 0.1
    """Label smoothing."""
    group_weight: float = 0.5
    """Weight of the group's loss; title's and style's are 1."""
    statistics: int = 16
    """Batches over which the normalisation's statistics are taken at the end."""
    schedule: Schedule = SCHEDULE
    """How long and how fast to train."""


def train(
    pixels: np.ndarray,
    titles: Sequence[str],
    groups: Sequence[str],
    styles: Sequence[str],
    settings: JudgeSettings,
    *,
    seed: int,
    folder: Path | None = None,
    plan: str = "",
    until: int | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Judge | None:
    """Train a judge on uint8 images (n, 64, 64, 3) and their names.

    Args:
        pixels: images.
        titles: one per image.
        groups: one per image.
        styles: one per image.
        settings: shape, augmentation and schedule.
        seed: of initial weights and every draw.
        folder: of the checkpoint.
        plan: what the checkpoint belongs to.
        until: the step to stop after; None trains to the end.
        device: to train on; images are drawn and augmented on the CPU, alike for all.
        progress: called after every step.

    Returns:
        The judge, on the CPU, or None if training stopped before its end.

    Raises:
        Misconfigured: images are not 64x64, or too few.
    """
    if pixels.shape[1:] != (SIZE, SIZE, 3) or len(pixels) < 2:
        raise Misconfigured(f"A judge learns from at least two {SIZE}x{SIZE} images; got shape {pixels.shape}.", "Read them with `works.pixels(64)`.")
    names = {"title": titles, "group": groups, "style": styles}
    classes = {head: sorted(set(values)) for head, values in names.items()}
    labels = {head: torch.tensor([classes[head].index(value) for value in values]) for head, values in names.items()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "judge"))
        network = JudgeNetwork(settings.shape, *(len(found) for found in classes.values()))
    network.train().to(device)
    images = torch.from_numpy(pixels)
    batch = settings.schedule.batch

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(images), (batch,), generator=rng)
        half = torch.randint(len(images), ((batch + 1) // 2,), generator=rng)
        trunk, light = augment(images[rows], settings, rng).to(device), augment_lightly(images[half], settings, rng).to(device)
        logits = network.name(network.embed(trunk), network.embed_style(light))
        losses = {
            head: F.cross_entropy(logits[head], labels[head][half if head == "style" else rows].to(device), label_smoothing=settings.smoothing)
            for head in ("title", "group", "style")
        }
        return losses["title"] + settings.group_weight * losses["group"] + losses["style"]

    run = Run(trainable(network), loss, settings.schedule, seed=seed, folder=folder, plan=plan)
    run.run(until, progress=progress)
    if run.step < settings.schedule.steps:
        return None
    run.use_average()
    network.cpu()
    _take_statistics(network, images, settings, seed)
    return Judge(network, classes)


@torch.no_grad()
def _take_statistics(network: JudgeNetwork, images: torch.Tensor, settings: JudgeSettings, seed: int) -> None:
    """Average means and variances of every normalised layer over fixed draws."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for index in range(settings.statistics):
        rng = generator(seed, "statistics", index)
        rows = torch.randint(len(images), (settings.schedule.batch,), generator=rng)
        network.embed(augment(images[rows], settings, rng))
        network.embed_style(augment_lightly(images[rows], settings, rng))


def augment(images: torch.Tensor, settings: JudgeSettings, rng: torch.Generator) -> torch.Tensor:
    """Warp and recolour uint8 images (b, s, s, 3) on white, each in its own way: float32, (b, 3, s, s) in [-1, 1]."""
    count = len(images)
    draws = torch.rand(8, count, generator=rng) * 2 - 1
    angle = draws[0] * math.radians(settings.rotation)
    scale = torch.exp(draws[1] * settings.zoom)
    mirror = torch.where(draws[2] < 0, -1.0, 1.0)
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1)
    shear = torch.stack([torch.stack([mirror, settings.shear * draws[3]], 1), torch.stack([settings.shear * draws[4], torch.ones(count)], 1)], 1)
    matrix = torch.cat([rotation @ shear * scale[:, None, None], 2 * settings.shift * draws[5:7].T[:, :, None]], 2)
    return recolour(_warp(images, matrix), settings, rng)


def augment_lightly(images: torch.Tensor, settings: JudgeSettings, rng: torch.Generator) -> torch.Tensor:
    """Mirror and shift uint8 images (b, s, s, 3) on white, colours untouched: float32, (b, 3, s, s) in [-1, 1]."""
    draws = torch.rand(3, len(images), generator=rng) * 2 - 1
    mirror = torch.where(draws[0] < 0, -1.0, 1.0)
    linear = torch.stack([torch.stack([mirror, torch.zeros_like(mirror)], 1), torch.tensor([[0.0, 1.0]]).expand(len(images), 2)], 1)
    return _warp(images, torch.cat([linear, 2 * settings.shift * draws[1:].T[:, :, None]], 2))


def _warp(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    # Zero padding of (image - 1) * 2 is white.
    below_white = (images.permute(0, 3, 1, 2).float() / 127.5 - 2).contiguous()
    grid = F.affine_grid(matrix, list(below_white.shape), align_corners=False)
    return (F.grid_sample(below_white, grid, align_corners=False) + 1).contiguous(memory_format=torch.channels_last)


def recolour(images: torch.Tensor, settings: JudgeSettings, rng: torch.Generator) -> torch.Tensor:
    """Turn the hue, stretch the saturation, change contrast and gain, or make grey or negative: images (b, 3, h, w) in [-1, 1]."""
    count = len(images)
    draws = torch.rand(7, count, generator=rng)
    turn, saturation = 2 * math.pi * draws[0], torch.where(draws[1] < 0.2, torch.zeros(count), 2 * draws[1])
    grey = torch.full((3, 3), 1 / 3)
    axis = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    # Rodrigues: rotation about the grey axis, saturation scaling what is orthogonal to it.
    chroma = (torch.eye(3) - grey) * turn.cos()[:, None, None] + axis * turn.sin()[:, None, None]
    matrix = (grey + saturation[:, None, None] * chroma) * (0.6 + 0.6 * draws[2])[:, None, None]
    matrix = torch.where((draws[3] < 0.1)[:, None, None], -matrix, matrix)
    changed = (matrix @ images.flatten(2)).view_as(images) + (0.4 * draws[4] - 0.2)[:, None, None, None]
    chosen = (draws[5] < settings.colour)[:, None, None, None]
    return torch.where(chosen, changed.clamp(-1, 1), images).contiguous(memory_format=torch.channels_last)
