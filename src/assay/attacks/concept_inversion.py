"""Learns the input embedding of a new word, by textual inversion on the erased model, that makes it draw the concept again.

"Circumventing Concept Erasure Methods For Text-to-Image Generative Models" (CCE). Minh Pham, Kelly O. Marshall, Niv Cohen, Govind Mittal, Chinmay
Hegde. ICLR 2024, arXiv 2308.01508. Authors' code: github.com/NYU-DICE-Lab/circumventing-concept-erasure, no licence. Written here from the paper's
mathematics.

With e the erased model, x_0 a picture of the concept and c(v) its caption in which a new word with the input embedding v stands for the concept,

    v = argmin E | e(x_t, t, c(v)) - noise |^2        over pictures, timesteps and noise, by AdamW.

The one v found serves every prompt: prompts are judged with the new word in the place of the concept's name (before the prompt, where it does not
hold the name), where the works hold others on works that were not among the pictures. Where a sampling rule erases, the loss goes through the rule.

Faithful: the loss where weights erase, one new word, everything else frozen. Different: captions are those of the works, not "a photo of S*"; the
word starts from a random token, there from one that the user names; pictures are neither flipped nor are their latents drawn anew; the batch is one
pass in place of 4 samples accumulated 4 times, with the same product of learning rate and samples; a new word may be several embeddings (`tokens`);
under a rule its predictions are fitted to the noise, in the authors' code to the plainly guided prediction under the picture's own caption.

Cost a step: batch passes with gradient, times 2 or more under a rule. Known failure: an embedding draws what the pictures have in common, style and
background too; and a word that no text encoder was trained on can draw what the model never learned, so quote a model that never saw the concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assay.attacks.search import Slots, slots
from assay.attacks.target import Attack, Clock, Progress, Target, losses
from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.noise import generator

EACH = False
"""Whether each prompt is attacked by itself."""
IN_WORDS = False
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = False
"""Whether it is led by the model beneath the patches."""


@dataclass(frozen=True)
class Settings:
    """Settings of concept inversion."""

    steps: int = 5000
    """Optimiser steps (authors' code: 5000)."""
    batch: int = 16
    """Samples a step (authors' code: 4, accumulated 4 times)."""
    learning_rate: float = 0.08
    """Learning rate of AdamW (authors' code: 5e-3 times the samples a step)."""
    tokens: int = 1
    """Embeddings of the new word (paper: 1)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"steps": 120, "batch": 8, "learning_rate": 0.02}}
PROBE: dict[str, Any] = {"steps": 2, "batch": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings, prompts: int, steps: int) -> dict[str, int]:
    """Return the passes that an attack on so many prompts takes, in samples: `passes` without gradients and `training_passes` with."""
    return {"passes": 0, "training_passes": settings.steps * settings.batch}


def attack(
    denoiser: Denoiser,
    target: Target,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    clock: Clock | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Attack:
    """Learn the embedding and put it into every prompt.

    Args:
        denoiser: the model with its patches on.
        target: what to bring back; its examples are learned from.
        settings: see `Settings`.
        seed: of every draw.
        clock: stops the learning when its budget is spent.
        progress: called after every step with the loss.
        folder: not used.

    Returns:
        The prompts with the new word in them, and the loss of every step.

    Raises:
        Misconfigured: a setting is out of range.
    """
    check(settings)
    learned = slots(denoiser, [with_name(target.concept, caption) for caption in target.captions], settings.tokens, "instead", name="*")
    word = start(denoiser, settings, seed)
    optimizer = torch.optim.AdamW(word, lr=settings.learning_rate)
    curve: list[float] = []
    for step in range(settings.steps):
        if clock is not None and clock.over:
            break
        optimizer.zero_grad()
        loss = step_loss(denoiser, target, learned, word, settings.batch, generator(seed, "concept inversion", step))
        loss.backward()
        optimizer.step()
        curve.append(float(loss.detach()))
        if progress:
            progress(step + 1, settings.steps, {"loss": sum(curve[-20:]) / len(curve[-20:])})
    with torch.no_grad():
        texts = [with_name(target.concept, prompt) for prompt in target.prompts]
        judged = slots(denoiser, texts, settings.tokens, "instead", name="*")
        told = judged.encode(denoiser, [part.detach().expand(len(target), -1, -1) for part in word])
    return Attack(tuple(texts), told, curves={"loss": curve}, early=len(curve) < settings.steps)


def check(settings: Settings) -> None:
    """Raise unless everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if min(settings.steps, settings.batch, settings.tokens) < 1 or not settings.learning_rate > 0:
        raise Misconfigured("`steps`, `batch` and `tokens` must be at least 1 and `learning_rate` positive.", "The paper's are 5000, 16, 1 and 0.08.")


def with_name(concept: Concept, text: str) -> str:
    """Write `*` for the name of the concept in a text, as a word of its own; before the text, where it does not hold the name.

    A `*` that the text has by itself is left out: the new word stands where the first one is.
    """
    words, name = [word for word in text.split() if word.strip(",.:;") != "*"], concept.name.lower().split()
    plain = [word.lower().strip(",.:;") for word in words]
    for at in range(len(words) - len(name) + 1):
        if plain[at : at + len(name)] == name:
            tail = words[at + len(name) - 1]
            after = tail[len(tail.rstrip(",.:;")) :]
            return " ".join([*words[:at], "*", *([after] if after else []), *words[at + len(name) :]])
    return " ".join(["*", *words])


def start(denoiser: Denoiser, settings: Settings, seed: int) -> list[torch.Tensor]:
    """Return the embeddings of tokens drawn at random, one (1, tokens, width) for each text encoder, to begin with."""
    word = []
    for place, (_, encoder) in enumerate(denoiser.family.encoders):
        table = encoder.get_input_embeddings().weight
        rows = torch.randint(len(table), (1, settings.tokens), generator=generator(seed, "concept inversion", "start", place))
        word.append(table.detach()[rows.to(table.device)].float().clone().requires_grad_())
    return word


def step_loss(denoiser: Denoiser, target: Target, learned: Slots, word: Sequence[torch.Tensor], batch: int, draws: torch.Generator) -> torch.Tensor:
    """Return the denoising loss of examples drawn at random under captions with the new word in them: a scalar."""
    rows = torch.randint(len(target.examples), (batch,), generator=draws)
    t = torch.randint(len(denoiser.alphas_cumprod), (batch,), generator=draws).to(denoiser.device)
    noise = torch.randn((batch, *denoiser.latent_shape), generator=draws).to(denoiser.device)
    chosen = Slots(tuple(ids[rows] for ids in learned.ids), learned.places[rows])
    told = chosen.encode(denoiser, [part.expand(batch, -1, -1) for part in word])
    return losses(denoiser, target, target.examples[rows], t, noise, told).mean()
