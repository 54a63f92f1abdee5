"""Trains the text encoder to read the concept as nothing, also where an adversary has added to its prompt, and everything else as before.

"Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models" (AdvUnlearn). Yimeng Zhang, Xin Chen, Jinghan Jia,
Yihua Zhang, Chongyu Fan, Jiancheng Liu, Mingyi Hong, Ke Ding, Sijia Liu. NeurIPS 2024, arXiv 2405.15234. Authors' code:
github.com/OPTML-Group/AdvUnlearn, CC BY 4.0. Written here from the paper's mathematics.

With e(x, c) the model whose text encoder is in training, e0 the model as it was, c the concept's prompt, 0 the empty one and c' a prompt to be
retained, each step minimises

    mean | e(x_t, c + d) - [ e0(x_t, 0) - eta (e0(x_t, c) - e0(x_t, 0)) ] |^2 + retain_weight x mean | e(x'_t, c') - e0(x'_t, c') |^2

where d are `attack_tokens` free token embeddings put before the prompt, found anew at every step as what makes the model draw the concept again:

    d = argmin mean | e(x_t, c + d) - e0(x_t, c) |^2   by `attack_steps` signed gradient steps of size `attack_rate` from random tokens

(many: PGD; one: the paper's fast variant; none before `warmup`, where d is left out). x_t comes from the model in training under c, x'_t from the
model as it was under c', both by DDIM left off after a random step. The change is of the text encoder alone, so the patch serves other models that
share it.

Faithful: the two losses, the two levels, the prefix, the text encoder but its token embeddings as what changes, the defaults. Different from the
authors' code: x_t comes from the model in training (there, where the text encoder trains, from the model as it was); one x_t and t serve all steps of
an attack and the loss after it (there each has its own); all of the attack's steps are signed (there the fast variant's alone, and PGD's are Adam's);
embeddings of positions and, in SDXL, the text projection train, too. Besides: several prompts a step, each with a d of its own; retained prompts are
those the concept preserves, not a fixed list, and where a step has several the empty one, which guidance needs, is always among them; the concept's
prompts and the steps that sampling is left off after are each dealt out evenly, so that a short training leaves none out; `resample` lets one set of
latents serve several steps; all text encoders of a pipeline train and are attacked together (SDXL).

Cost a step, in passes of one latent: batch x (2 without gradient + 1 + `attack_steps` with) + retain_batch x (1 without + 1 with) + sampling. Known
failure: a text encoder has few parameters to tell the concept from its neighbours by, so that they suffer first; what is drawn without words, as
from a latent or a learned embedding of many tokens, is not defended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.noise import derive, generator
from assay.patch import Patch
from assay.training.finetune import Student, finetune, left_off, schedule, spread


@dataclass(frozen=True)
class Settings:
    """Settings of AdvUnlearn."""

    steps: int = 1000
    """Optimiser steps (authors' code: 1000)."""
    warmup: int = 200
    """Steps at the start without attack (authors' code: 200)."""
    batch: int = 1
    """Samples of the concept a step (authors' code: 1)."""
    learning_rate: float = 1e-5
    """Learning rate of Adam (authors' code: 1e-5)."""
    eta: float = 1.0
    """How far to guide away from the concept (authors' code: 1)."""
    attack_steps: int = 30
    """Steps of the attack (authors' code: 30 for PGD, 1 for the fast variant); 0 trains without attack."""
    attack_rate: float = 1e-3
    """Size of a step of the attack, for every number of an embedding (authors' code: 1e-3)."""
    attack_tokens: int = 1
    """Tokens that the attack puts before the prompt (authors' code: 1)."""
    retain_batch: int = 5
    """Samples of prompts to be retained a step (authors' code: 5)."""
    retain_weight: float = 0.3
    """Weight of retaining, gamma (authors: 0.3 for nudity, 0.5 for styles and objects)."""
    guidance: float = 3.0
    """Scale of guidance while sampling x_t (authors' code: 3)."""
    ddim_steps: int = 50
    """Steps of the sampling that is left off at random (authors' code: 50)."""
    resample: int = 1
    """For how many steps one set of latents is used (authors' code: 1)."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper-style": {"retain_weight": 0.5},
    "paper-object": {"retain_weight": 0.5},
    "fast": {"attack_steps": 1},
    "small": {
        "steps": 60,
        "warmup": 25,
        "batch": 6,
        "learning_rate": 2e-4,
        "attack_steps": 1,
        "attack_rate": 0.02,
        "retain_batch": 12,
        "retain_weight": 10.0,
        "ddim_steps": 10,
        "resample": 5,
    },
}
PROBE: dict[str, Any] = {"steps": 2, "warmup": 1, "attack_steps": 1, "retain_batch": 1, "ddim_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, in samples: `passes` without gradients and `training_passes` with."""
    latents = settings.batch + settings.retain_batch
    sampled = settings.steps * latents * (settings.ddim_steps - 1) * (1 if settings.guidance == 1 else 2) // (2 * max(1, settings.resample))
    attacked = max(0, settings.steps - settings.warmup) * settings.batch * settings.attack_steps
    return {
        "passes": sampled + settings.steps * (2 * settings.batch + settings.retain_batch),
        "training_passes": settings.steps * latents + attacked,
    }


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch that erases a concept from the text encoder; the model's weights are read, never written.

    Args:
        denoiser: the model, in float32 or bfloat16.
        concept: what to erase, and what must stay.
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every step with steps done, steps in all and the loss.
        folder: keeps a checkpoint about every 25 steps, from which an interrupted erasing goes on; removed at the end.

    Returns:
        A dense change of every weight of the text encoders except their token embeddings.

    Raises:
        Misconfigured: a setting is out of range, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, settings)
    training = Training(denoiser, concept, settings, weights, seed)
    try:
        return finetune(
            training.student,
            training.loss,
            schedule(settings),
            method="adv_unlearn",
            settings=settings,
            concept=concept,
            seed=seed,
            strength=settings.strength,
            resample=settings.resample,
            folder=folder,
            progress=progress,
        )
    finally:
        denoiser.forget_text()


def check(denoiser: Denoiser, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    counts = (settings.steps, settings.batch, settings.retain_batch, settings.resample, settings.ddim_steps, settings.attack_tokens)
    if min(counts) < 1 or settings.ddim_steps > len(denoiser.alphas_cumprod):
        raise Misconfigured("Steps, batches, `resample` and `attack_tokens` must be at least 1.", "`ddim_steps` is at most the model's timesteps.")
    if settings.attack_tokens > min(ids.shape[1] for ids in denoiser.family.tokenize([""])) - 2:
        raise Misconfigured(f"{settings.attack_tokens} tokens leave no room for a prompt.", "Lower `attack_tokens`.")
    if min(settings.warmup, settings.attack_steps, settings.attack_rate, settings.retain_weight) < 0 or not settings.learning_rate > 0:
        raise Misconfigured(
            "`learning_rate` must be positive, and `warmup`, `attack_steps`, `attack_rate` and `retain_weight` not negative.",
            "The authors' code has 1e-5, 200, 30, 1e-3 and 0.3 to 1.",
        )
    if not math.isfinite(settings.eta):
        raise Misconfigured("`eta` must be finite.", "The authors' code has 1.")
    return denoiser.group("text_encoder")


class Training:
    """What one step of AdvUnlearn does.

    Args:
        denoiser: the model; its weights stay, as tensors stand in for them.
        concept: what to erase.
        settings: see `Settings`.
        weights: the weights to train.
        seed: of every draw.
    """

    def __init__(self, denoiser: Denoiser, concept: Concept, settings: Settings, weights: dict[str, torch.Tensor], seed: int) -> None:
        """Copy the weights to float32."""
        self.denoiser = denoiser
        self.settings = settings
        self.seed = seed
        self.student = Student(denoiser, weights)
        sets = -(-settings.steps // settings.resample)
        self.targets = spread([target for target, _ in concept.pairs()], sets * settings.batch, seed, "adv_unlearn", "targets")
        self.left_off = {what: dealt(settings.ddim_steps, sets, seed, "adv_unlearn", what) for what in ("erase", "retain")}
        self.retained = concept.preserved()
        self.drawn: list[tuple[torch.Tensor, tuple[int, int], list[str]]] = []

    def loss(self, step: int, _: torch.Generator) -> torch.Tensor:
        """Return the loss of a step: a scalar."""
        if not self.drawn or step % self.settings.resample == 0:
            self.drawn = [self.sample(step, "erase"), self.sample(step, "retain")]
        (x_t, (low, high), prompts), (kept_x, (kept_low, kept_high), kept) = self.drawn
        draws = generator(self.seed, "adv_unlearn", step)
        t = torch.randint(low, high, (len(prompts),), generator=draws).to(x_t.device)
        kept_t = torch.randint(kept_low, kept_high, (len(kept),), generator=draws).to(x_t.device)
        with torch.no_grad():
            told = Conditioning.cat([self.encode(prompts), self.denoiser.conditioning([""]).expand(len(prompts))])
            concept, empty = self.denoiser.predict(x_t.repeat(2, 1, 1, 1), t.repeat(2), told).chunk(2)
            before = self.denoiser.predict(kept_x, kept_t, self.encode(kept))
        prefix = None
        if step >= self.settings.warmup and self.settings.attack_steps:
            prefix = self.attack(x_t, t, prompts, concept, step)
        after = self.denoiser.predict(x_t, t, self.student.run(self.encode, prompts, prefix))
        erased = (after - (empty - self.settings.eta * (concept - empty))).square().mean()
        return (
            erased
            + self.settings.retain_weight * (self.denoiser.predict(kept_x, kept_t, self.student.run(self.encode, kept)) - before).square().mean()
        )

    def sample(self, step: int, what: str) -> tuple[torch.Tensor, tuple[int, int], list[str]]:
        """Sample latents part of the way, all to the same step: (n, c, h, w); with the timesteps it stands for, from and below, and their prompts."""
        settings, place = self.settings, step // self.settings.resample
        if what == "erase":
            sampler, prompts = self.sample_by_student, self.targets[place * settings.batch : (place + 1) * settings.batch]
        else:
            drawn = torch.randint(len(self.retained), (settings.retain_batch,), generator=generator(self.seed, "adv_unlearn", what, step))
            sampler, prompts = self.denoiser.sample, [self.retained[index] for index in drawn.tolist()]
            prompts[0] = "" if len(prompts) > 1 else prompts[0]
        seeds = [derive(self.seed, "adv_unlearn", what, step, row) for row in range(len(prompts))]
        taken = self.left_off[what][place]
        return *left_off(self.denoiser, sampler, prompts, seeds, taken, steps=settings.ddim_steps, guidance=settings.guidance), prompts

    def sample_by_student(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Sample by the model in training, which reads prompts otherwise than the model as it was."""
        self.denoiser.forget_text()
        try:
            return self.student.run(self.denoiser.sample, *arguments, **options)
        finally:
            self.denoiser.forget_text()

    def attack(self, x_t: torch.Tensor, t: torch.Tensor, prompts: Sequence[str], concept: torch.Tensor, step: int) -> list[torch.Tensor]:
        """Find the tokens that make the student predict the concept again, one tensor (b, `attack_tokens`, width) per text encoder."""
        draws = generator(self.seed, "adv_unlearn", "attack", step)
        prefix = []
        for _, encoder in self.denoiser.family.encoders:
            table = encoder.get_input_embeddings().weight
            rows = torch.randint(len(table), (len(prompts), self.settings.attack_tokens), generator=draws)
            prefix.append(table.detach()[rows.to(table.device)].float().requires_grad_())
        for _ in range(self.settings.attack_steps):
            gap = self.denoiser.predict(x_t, t, self.student.run(self.encode, prompts, prefix)) - concept
            slopes = torch.autograd.grad(gap.square().mean((1, 2, 3)).sum(), prefix)
            with torch.no_grad():
                for tokens, slope in zip(prefix, slopes, strict=True):
                    tokens -= self.settings.attack_rate * slope.sign()
        return [tokens.detach() for tokens in prefix]

    def encode(self, prompts: Sequence[str], prefix: Sequence[torch.Tensor] | None = None) -> Conditioning:
        """Encode prompts by the text encoders as they stand, behind a prefix of free token embeddings if there is one; gradients flow."""
        family = self.denoiser.family
        ids = family.tokenize(prompts)
        if prefix is None:
            return family.encode(ids)
        moved = [_behind(tokens, part.shape[1], coder.eos_token_id) for (coder, _), tokens, part in zip(family.encoders, ids, prefix, strict=True)]
        looked_up = family.embed(moved)
        joined = [torch.cat([e[:, :1], part.to(e.dtype), e[:, 1 + part.shape[1] :]], 1) for e, part in zip(looked_up, prefix, strict=True)]
        return family.encode(moved, joined)


def dealt(values: int, count: int, *keys: int | str) -> list[int]:
    """Return `count` numbers below `values`, each once before any comes again, in another order each time: tied to nothing else that goes round."""
    return [value for turn in range(-(-count // values)) for value in spread(range(values), values, *keys, turn)][:count]


def _behind(ids: torch.Tensor, count: int, end: int) -> torch.Tensor:
    """Move token ids (b, tokens) to the right by `count` behind the begin token, whose id fills the gap; an end token that falls off comes last."""
    moved = torch.cat([ids[:, :1].expand(-1, 1 + count), ids[:, 1 : ids.shape[1] - count]], 1)
    lost = (moved != end).all(1)
    moved[lost, -1] = end
    return moved
