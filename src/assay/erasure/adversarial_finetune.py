"""Trains the model to draw something else wherever a search in the space of embeddings still finds a memorised image.

"Finding DoRI: Discovery of Retained Images in Diffusion Models". Antoni Kowalczuk, Dominik Hintersdorf, Lukas Struppek, Kristian Kersting, Adam
Dziedzic, Franziska Boenisch. ICML 2026, arXiv 2507.16880. Authors' code: github.com/sprintml/finding_dori, not seen. Written here from the idea.

With x the image that the model draws from a memorised prompt, s a surrogate that is no copy, e the model in training and y the prompt's states moved
by `attack_steps` steps of Adam against e,

    y = argmin | e(x_t, y) - noise |^2                       the search
    minimise | e(s_t, y) - noise |^2 + | e(s_t, prompt) - noise |^2 + retain x | e(z_t, p) - noise |^2

with z images of preserved prompts p: the surrogate is learnt under whatever draws the memorised image, and the ordinary loss holds the rest.

Faithful: the search within the training, surrogates, the ordinary loss, all weights of the UNet. Different: memorised images and those of the
ordinary loss are the model's own (a memorised prompt draws a copy); a surrogate is what the model draws from the prompt with random tokens among its
own, where the paper's comes from a pruned model; surrogates are taught to the prompt as it is too.

Cost: `images` x `image_steps` x 6 passes; a step costs batch x (`attack_steps` + 3) with gradient. Known failure: where memorised prompts draw no
copies, it teaches to forget what was never a copy; surrogates keep what the random tokens left, so that near-copies can stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.noise import derive, generator
from assay.patch import Patch
from assay.retelling import scrambled
from assay.training.finetune import Noised, Student, finetune, following, own_pictures, schedule, trained


@dataclass(frozen=True)
class Settings:
    """Settings of adversarial fine-tuning."""

    group: Literal["cross-attention", "full"] = "full"
    """Which weights to train: cross-attention, or the whole UNet (paper)."""
    steps: int = 500
    """Optimiser steps (paper: 5 epochs)."""
    batch: int = 8
    """Samples of memorised prompts a step, and as many of what is preserved."""
    learning_rate: float = 1e-5
    """Learning rate of Adam."""
    attack_steps: int = 50
    """Steps of the search before each step of the training (paper: 50)."""
    attack_rate: float = 0.1
    """Learning rate of the search (paper: 0.1)."""
    retain: float = 1.0
    """Weight of the ordinary loss of what is preserved."""
    images: int = 200
    """Images of memorised prompts, as many surrogates, and as many of what is preserved."""
    image_steps: int = 50
    """DDIM steps of an image."""
    image_guidance: float = 7.5
    """Scale of guidance of an image."""
    inserted: int = 4
    """Random tokens that are put into a prompt to draw its surrogate."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "steps": 60,
        "batch": 8,
        "learning_rate": 2e-4,
        "attack_steps": 2,
        "attack_rate": 0.05,
        "images": 48,
        "image_steps": 12,
        "image_guidance": 4.0,
    },
}
PROBE: dict[str, Any] = {"steps": 2, "batch": 2, "images": 2, "image_steps": 2, "attack_steps": 1}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that it takes, in samples: `passes` without gradients and `training_passes` with."""
    sampled = 3 * settings.images * settings.image_steps * (1 if settings.image_guidance == 1 else 2)
    return {"passes": sampled, "training_passes": settings.steps * settings.batch * (settings.attack_steps + 3)}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch that forgets what memorised prompts draw; the model's weights are read, never written.

    Args:
        denoiser: the model, in float32 or bfloat16.
        concept: memorised prompts, and what must stay.
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every batch of images and every step with those done, all of them and the loss.
        folder: keeps images and a checkpoint, from which an interrupted training goes on; emptied at the end.

    Returns:
        A dense change of every weight of the group.

    Raises:
        Misconfigured: a setting is out of range, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, settings)
    student = Student(denoiser, weights)
    options = {"steps": settings.image_steps, "guidance": settings.image_guidance}
    sides = [list(dict.fromkeys(target for target, _ in concept.pairs())), concept.preserved()]
    (memorised, kept), advance = own_pictures(
        denoiser,
        sides,
        settings.images,
        seed=seed,
        method="adversarial_finetune",
        folder=folder,
        progress=progress,
        then=settings.steps + 1,
        **options,
    )
    clean, prompts = memorised
    surrogates = other_pictures(denoiser, prompts, settings, seed)
    if advance:
        advance(1, settings.steps + 1, {})

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        drawn = Noised.draw(denoiser, surrogates, settings.batch, rng)
        asked = [prompts[row] for row in drawn.rows]
        found = searched(student, clean[drawn.rows], asked, settings, generator(seed, "adversarial_finetune", step))
        total = student.losses(drawn, found).mean() + student.losses(drawn, asked).mean()
        drawn = Noised.draw(denoiser, kept[0], settings.batch, rng)
        return total + settings.retain * student.losses(drawn, [kept[1][row] for row in drawn.rows]).mean()

    about: dict[str, Any] = {"method": "adversarial_finetune", "settings": settings, "concept": concept, "seed": seed, "strength": settings.strength}
    return finetune(student, loss, schedule(settings), **about, folder=folder, progress=following(advance, 1, settings.steps + 1))


def check(denoiser: Denoiser, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    weights = trained(denoiser, settings)
    if not (settings.learning_rate > 0 and settings.attack_rate > 0 and min(settings.retain, settings.attack_steps) >= 0 and settings.inserted >= 1):
        raise Misconfigured("Rates must be positive, `retain` and `attack_steps` not negative, `inserted` at least 1.", "Use a preset.")
    return weights


def other_pictures(denoiser: Denoiser, prompts: Sequence[str], settings: Settings, seed: int) -> torch.Tensor:
    """Return a surrogate for every memorised image, drawn from its prompt with random tokens in between: latents (n, c, h, w)."""
    seeds = [derive(seed, "surrogate", row) for row in range(len(prompts))]
    with torch.no_grad():
        told = [
            denoiser.family.encode(scrambled(denoiser, denoiser.family.tokenize([prompt]), own, 0.0, settings.inserted))
            for prompt, own in zip(prompts, seeds, strict=True)
        ]
    return denoiser.sample(Conditioning.cat(told), seeds, steps=settings.image_steps, guidance=settings.image_guidance, batch=16)


def searched(student: Student, clean: torch.Tensor, prompts: Sequence[str], settings: Settings, draws: torch.Generator) -> Conditioning:
    """Return what draws memorised images (b, c, h, w) from the model in training: the prompts' states, moved by Adam to a lower denoising loss."""
    denoiser = student.denoiser
    plain = denoiser.conditioning(prompts)
    states = plain.states.float().clone().requires_grad_()
    optimizer = torch.optim.Adam([states], lr=settings.attack_rate)
    for _ in range(settings.attack_steps):
        t = torch.randint(len(denoiser.alphas_cumprod), (len(clean),), generator=draws).to(clean.device)
        noise = torch.randn(clean.shape, generator=draws).to(clean)
        value = student.run(denoiser.loss, clean, t, noise, Conditioning(states.to(plain.states.dtype), plain.extra)).sum()
        (states.grad,) = torch.autograd.grad(value, [states])
        optimizer.step()
    return Conditioning(states.detach().to(plain.states.dtype), plain.extra)
