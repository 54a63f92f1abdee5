"""Relabels the concept as its anchor, but only in the weights that the concept's loss depends on most.

"SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and Generation". Chongyu Fan, Jiancheng Liu,
Yihua Zhang, Eric Wong, Dennis Wei, Sijia Liu. ICLR 2024, arXiv 2310.12508. Authors' code: github.com/OPTML-Group/Unlearn-Saliency, MIT. Written here
from the paper's mathematics.

The mask holds the `share` of weights whose gradient of the concept's denoising loss at the model as it was is largest in size (Eq. 3). With x_t a
noised image that the model made of the concept c, c' what it is relabelled as, x_t' an image of what is preserved, p, and sg a stopped gradient, the
weights in the mask minimise (Eq. 6)

    mean | e(x_t, c) - sg e(x_t, c') |^2 + retain x mean | e(x_t', p) - noise |^2

Faithful: the mask over all weights of the group together, the objective, Adam. Different: images are the model's own, as latents; c' is the concept's
anchor, as the authors' "clothed" is for "nude"; the mask's gradient is that of the conditional prediction, where the authors' code takes it through
guidance of 7.5, and over as many draws as there are latents, where that code takes each latent once. One stored version of that code marks the
weights of the lowest ranks in ascending order, that is the least salient; we follow the paper.

Cost: `images` x (`image_steps` x 4 passes to sample both sets + 1 with gradient for the mask); a step costs batch x (2 with gradient + 1 without).
Known failure: with the whole UNet in play what is preserved only in name drifts (FID 33.6 in the authors' benchmark); the share is hardly felt
between 0.3 and 0.7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.noise import generator
from assay.patch import Patch
from assay.training.finetune import Noised, Student, finetune, following, own_pictures, schedule, trained


@dataclass(frozen=True)
class Settings:
    """Settings of SalUn."""

    group: Literal["cross-attention", "full"] = "full"
    """Among which weights to choose: cross-attention, or the whole UNet (paper)."""
    share: float = 0.5
    """Share of the weights that may change (paper: 0.5)."""
    steps: int = 500
    """Optimiser steps (authors' code: 5 epochs of 800 images)."""
    batch: int = 8
    """Samples of the concept a step, and as many of what is preserved (authors' code: 8)."""
    learning_rate: float = 1e-5
    """Learning rate of Adam (authors' code: 1e-5)."""
    retain: float = 0.1
    """Weight of the ordinary loss of what is preserved (authors' code: 0.1)."""
    images: int = 800
    """Images of the concept, and as many of what is preserved (authors' code: 800)."""
    image_steps: int = 50
    """DDIM steps of an image."""
    image_guidance: float = 7.5
    """Scale of guidance of an image."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"steps": 80, "batch": 8, "learning_rate": 2e-4, "retain": 1.0, "images": 64, "image_steps": 15, "image_guidance": 4.0},
}
PROBE: dict[str, Any] = {"steps": 2, "batch": 2, "images": 4, "image_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, in samples: `passes` without gradients and `training_passes` with."""
    sampled = settings.images * settings.image_steps * (1 if settings.image_guidance == 1 else 2)
    seen = settings.steps * settings.batch
    return {"passes": 2 * sampled + seen, "training_passes": settings.images + 2 * seen}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch that erases a concept; the model's weights are read, never written.

    Args:
        denoiser: the model, in float32 or bfloat16.
        concept: what to erase, what it is relabelled as (an empty anchor: the empty prompt) and what must stay.
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every batch of images, after the mask and after every step with those done, all of them and the loss.
        folder: keeps images and a checkpoint, from which an interrupted erasing goes on; emptied at the end.

    Returns:
        A dense change of every weight of the group, zero outside the mask.

    Raises:
        Misconfigured: a setting is out of range, the anchor is the concept, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, concept, settings)
    student = Student(denoiser, weights)
    anchors = dict(concept.pairs())
    options = {"steps": settings.image_steps, "guidance": settings.image_guidance}
    sides = [list(anchors), concept.preserved()]
    (forgotten, kept), advance = own_pictures(
        denoiser, sides, settings.images, seed=seed, method="salun", folder=folder, progress=progress, then=settings.steps + 1, **options
    )
    masks = top(gradients(student, *forgotten, settings.batch, seed), settings.share)
    if advance:
        advance(1, settings.steps + 1, {"share": settings.share})
    for name, master in student.masters.items():
        master.register_hook(masks[name].to(master).mul)

    def loss(_: int, rng: torch.Generator) -> torch.Tensor:
        drawn = Noised.draw(denoiser, forgotten[0], settings.batch, rng)
        prompts = [forgotten[1][row] for row in drawn.rows]
        total = relabelled(student, drawn, prompts, [anchors[prompt] for prompt in prompts])
        drawn = Noised.draw(denoiser, kept[0], settings.batch, rng)
        return total + settings.retain * student.losses(drawn, [kept[1][row] for row in drawn.rows]).mean()

    about: dict[str, Any] = {"method": "salun", "settings": settings, "concept": concept, "seed": seed, "strength": settings.strength}
    return finetune(student, loss, schedule(settings), **about, folder=folder, progress=following(advance, 1, settings.steps + 1))


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to choose from, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or the anchor is the concept.
    """
    weights = trained(denoiser, settings)
    if not 0 < settings.share <= 1:
        raise Misconfigured(f"`share` must be above 0 and at most 1; got {settings.share:g}.", "The paper's value is 0.5.")
    if not (settings.learning_rate > 0 and settings.retain >= 0):
        raise Misconfigured("`learning_rate` must be positive and `retain` not negative.", "The authors' values are 1e-5 and 0.1.")
    if all(target == anchor for target, anchor in concept.pairs()):
        raise Misconfigured("The concept and its anchor are the same prompts, so there is nothing to erase.", "Give another anchor.")
    return weights


def gradients(student: Student, latents: torch.Tensor, prompts: list[str], batch: int, seed: int) -> dict[str, torch.Tensor]:
    """Return the gradient of the denoising loss, summed over as many draws as there are latents, from a batch of them after another: by name."""
    total = {name: torch.zeros_like(master) for name, master in student.masters.items()}
    for start in range(0, len(latents), batch):
        part, words = latents[start : start + batch], prompts[start : start + batch]
        drawn = Noised.draw(student.denoiser, part, len(part), generator(seed, "salun", "mask", start))
        value = student.losses(drawn, [words[row] for row in drawn.rows]).sum()
        found = torch.autograd.grad(value, list(student.masters.values()), allow_unused=True)
        for name, gradient in zip(total, found, strict=True):
            if gradient is not None:
                total[name] += gradient
    return total


def top(tensors: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Return masks of the round(share x all) largest elements in size over all tensors together; of equal ones the first count."""
    sizes = torch.cat([tensor.abs().flatten() for tensor in tensors.values()])
    count = max(1, round(share * len(sizes)))
    least = sizes.kthvalue(len(sizes) - count + 1).values
    chosen = sizes > least
    chosen[(sizes == least).nonzero().flatten()[: count - int(chosen.sum())]] = True
    parts = chosen.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}


def relabelled(student: Student, drawn: Noised, targets: list[str], anchors: list[str]) -> torch.Tensor:
    """Return the mean squared distance of the prediction for the targets from that for the anchors, which has no gradient: a scalar."""
    denoiser = student.denoiser
    with torch.no_grad():
        goal = student.run(denoiser.predict, drawn.x_t, drawn.t, denoiser.conditioning(anchors), denoiser.view)
    return (student.run(denoiser.predict, drawn.x_t, drawn.t, denoiser.conditioning(targets), denoiser.view) - goal).square().mean()
