"""Trains on memorised works among others under captions that a rule changes each time, so that no caption leads to one picture alone.

"Understanding and Mitigating Copying in Diffusion Models". Gowthami Somepalli, Vasu Singla, Micah Goldblum, Jonas Geiping, Tom Goldstein. NeurIPS
2023, arXiv 2305.20086, Sec. 6: what is done while training. Authors' code: github.com/somepago/DCR, Apache-2.0. Written here from the rules and
the numbers of that code.

The ordinary loss over works and their captions c, with c exchanged each time that it is drawn:

- `multiple` (MC): for one of the work's captions, all alike often.
- `noise` (GN): the encoder's states become e(c) + scale x noise.
- `random` (RC): with a probability, for random tokens.
- `tokens` (RT): with a probability, random tokens are put in at random places.
- `words` (CWR): with a probability, random words of its own are put in at random places.

Faithful: the rules, their numbers where the authors' code has defaults, AdamW with its decay, warm-up and clipping, all weights of the UNet.
Different: works are the model's own images of memorised and of preserved prompts, half of each (`train` takes any); captions beyond a work's own are
`FORMS`, not a captioner's; RT puts tokens in and exchanges none, as the authors' code does; the empty prompt of guidance stays.

Cost: 2 x `images` x `image_steps` x 2 passes, `steps` x `batch` with gradient. Known failure: it is meant for the training that meets a work first.
Later, what a caption draws is learnt again whenever the rule leaves the caption alone, and a rule that never does teaches it to other words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.noise import generator, normal
from assay.patch import Patch
from assay.retelling import scrambled
from assay.training.finetune import Noised, Student, finetune, following, own_pictures, schedule, trained

Rule = Literal["multiple", "noise", "random", "tokens", "words"]
FORMS = (
    "a picture of {caption}",
    "an image of {caption}",
    "{caption}, a picture",
    "{caption}, an image",
    "a drawing of {caption}",
    "{caption}, a drawing",
    "this is {caption}",
    "{caption} on white",
)
"""How a caption is said otherwise where a work has few."""


@dataclass(frozen=True)
class Settings:
    """Settings of a training under changed captions."""

    rule: Rule = "multiple"
    """How captions change: multiple (paper's MC, the best), noise (GN), random (RC), tokens (RT) or words (CWR)."""
    probability: float = 0.1
    """Probability with which random, tokens and words change a caption (authors' code: 0.1); 0 is plain training."""
    tokens: int | None = None
    """Random tokens or repeated words; none: 4 for random, else 2 (authors' code)."""
    noise: float = 0.1
    """Standard deviation of the noise on the encoder's states, for noise (authors' code: 0.1)."""
    captions: int = 20
    """Captions of a work at most, for multiple (paper: 20)."""
    group: Literal["cross-attention", "full"] = "full"
    """Which weights to train: cross-attention, or the whole UNet (paper)."""
    steps: int = 100_000
    """Optimiser steps (paper: 100,000)."""
    batch: int = 16
    """Samples a step, half of them of memorised prompts (paper: 16)."""
    learning_rate: float = 5e-6
    """Peak learning rate of AdamW (paper: 5e-6)."""
    warmup: int = 5000
    """Steps over which the learning rate rises (paper: 5,000)."""
    images: int = 200
    """Images of memorised prompts, and as many of what is preserved."""
    image_steps: int = 50
    """DDIM steps of an image."""
    image_guidance: float = 7.5
    """Scale of guidance of an image."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "probability": 0.5,
        "noise": 1.0,
        "steps": 60,
        "learning_rate": 2e-4,
        "warmup": 10,
        "images": 32,
        "image_steps": 12,
        "image_guidance": 4.0,
    },
}
PROBE: dict[str, Any] = {"steps": 2, "batch": 2, "images": 2, "image_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that it takes, in samples: `passes` without gradients and `training_passes` with."""
    sampled = 2 * settings.images * settings.image_steps * (1 if settings.image_guidance == 1 else 2)
    return {"passes": sampled, "training_passes": settings.steps * settings.batch}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch of a training under changed captions; the model's weights are read, never written.

    Args:
        denoiser: the model, in float32 or bfloat16.
        concept: memorised prompts, and what must stay; several `members` of a work are its captions, of which the first draws it.
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
    student = Student(denoiser, check(denoiser, settings))
    memorised = {captions[0]: captions for captions in works(concept)}
    sides = [list(memorised), concept.preserved()]
    options = {"steps": settings.image_steps, "guidance": settings.image_guidance}
    pools, advance = own_pictures(
        denoiser, sides, settings.images, seed=seed, method="caption_augmentation", folder=folder, progress=progress, then=settings.steps, **options
    )
    latents = torch.cat([pool for pool, _ in pools])
    captions = [memorised.get(prompt, [prompt]) for _, prompts in pools for prompt in prompts]
    return train(student, latents, captions, settings, concept=concept, seed=seed, progress=following(advance, 0, settings.steps), folder=folder)


def train(
    student: Student,
    latents: torch.Tensor,
    captions: Sequence[Sequence[str]],
    settings: Settings,
    *,
    concept: Concept,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch of a training on given works, each drawn alike often: a work that is there several times is a duplicate.

    Args:
        student: the model, and the weights to train.
        latents: of works: (n, c, h, w).
        captions: of each work, the first its own.
        settings: see `Settings`; those of images are not used.
        concept: what the patch is about, for its manifest.
        seed: of every draw.
        progress: called after every step with the loss.
        folder: keeps a checkpoint.

    Returns:
        A dense change of every weight of the group.

    Raises:
        Misconfigured: the training diverged.
    """
    if settings.rule == "multiple":
        captions = [spoken(own, settings.captions) for own in captions]

    def loss(_: int, rng: torch.Generator) -> torch.Tensor:
        drawn = Noised.draw(student.denoiser, latents, settings.batch, rng)
        return student.losses(drawn, told(student.denoiser, [captions[row] for row in drawn.rows], settings, rng)).mean()

    plan = schedule(settings, warmup=settings.warmup, weight_decay=0.01, clip=1.0)
    about: dict[str, Any] = {"method": "caption_augmentation", "settings": settings, "concept": concept, "seed": seed, "strength": settings.strength}
    return finetune(student, loss, plan, **about, folder=folder, progress=progress)


def check(denoiser: Denoiser, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if settings.rule not in get_args(Rule):
        raise Misconfigured(f"There is no `rule` {settings.rule}.", f"Rules: {', '.join(get_args(Rule))}.")
    weights = trained(denoiser, settings)
    least = min(settings.captions, 1 if settings.tokens is None else settings.tokens)
    if least < 1 or not (0 <= settings.probability <= 1 and 0 <= settings.noise < float("inf")):
        raise Misconfigured("`probability` lies in [0, 1], `noise` is not negative, and `captions` and `tokens` are at least 1.", "Use a preset.")
    if not settings.learning_rate > 0 or settings.warmup < 0:
        raise Misconfigured("`learning_rate` is positive and `warmup` not negative.", "Use a preset.")
    return weights


def works(concept: Concept) -> list[list[str]]:
    """Return the captions of every memorised work, the one that draws it first: of a concept that is a work, its words; else each prompt alone."""
    found = []
    for part in concept.parts or (concept,):
        targets = [target for target, _ in part.pairs()]
        found += [targets] if part.kind in ("work", "free") else [[target] for target in targets]
    return found


def spoken(captions: Sequence[str], count: int) -> list[str]:
    """Return up to `count` captions of a work: its own, then its first said otherwise; the empty prompt stays alone."""
    more = [form.format(caption=captions[0]) for form in FORMS] if captions[0] else []
    return list(dict.fromkeys([*captions, *more]))[:count]


@torch.no_grad()
def told(denoiser: Denoiser, captions: Sequence[Sequence[str]], settings: Settings, draws: torch.Generator) -> Conditioning:
    """Return what the model is told of each work of a batch, as the rule says; draws do not depend on captions, nor rows on each other."""
    rows = []
    for own in captions:
        choice, coin = float(torch.rand((), generator=draws)), float(torch.rand((), generator=draws))
        seed = int(torch.randint(2**62, (), generator=draws))
        caption = own[int(choice * len(own))] if settings.rule == "multiple" else own[0]
        if caption and coin < settings.probability and settings.rule in ("random", "tokens"):
            random = settings.rule == "random"
            ids = denoiser.family.tokenize(["" if random else caption])
            rows.append(denoiser.family.encode(scrambled(denoiser, ids, seed, 0.0, settings.tokens or (4 if random else 2))))
            continue
        if caption and coin < settings.probability and settings.rule == "words":
            caption = repeated(caption, settings.tokens or 2, generator(seed, "words"))
        plain = denoiser.conditioning([caption])
        if caption and settings.rule == "noise":
            noise = normal(plain.states.shape[1:], [seed]).to(plain.states)
            plain = Conditioning(plain.states + settings.noise * noise, plain.extra)
        rows.append(plain)
    return Conditioning.cat(rows)


def repeated(caption: str, count: int, draws: torch.Generator) -> str:
    """Return a caption with `count` of its words, drawn with replacement, put in at random places."""
    words = caption.split()
    said = list(words)
    for _ in range(count):
        word = words[int(torch.randint(len(words), (), generator=draws))]
        said.insert(int(torch.randint(len(said) + 1, (), generator=draws)), word)
    return " ".join(said)
