"""Trains the model to predict for the concept's prompts what it predicts for the anchor's, on its own images of the anchor.

"Ablating Concepts in Text-to-Image Diffusion Models". Nupur Kumari, Bingliang Zhang, Sheng-Yu Wang, Eli Shechtman, Richard Zhang, Jun-Yan Zhu. ICCV
2023, arXiv 2303.13516. Authors' code: github.com/nupurkmr9/concept-ablation, MIT. Written here from the paper's mathematics.

With c* the concept's prompt, c the anchor's, x_t a noised image that the model made of the anchor and sg a stopped gradient, the variants minimise

    model-based   mean | e(x_t, c*) - sg e(x_t, c) |^2
    noise-based   mean | e(x_t, c*) - noise |^2

and both add `prior` x mean | e(x_t, c) - noise |^2, the ordinary loss of the anchor. The model-based loss is exactly zero where both prompts are one.
sg e is the network in training itself (paper), or, with `teacher` base, the model as it was, which cannot drift.

A memorised work is the concept of kind `work`: its captions are c*. Anchors are the concept's own anchor, or else the caption with words left out at
random (`leave_out`); images of them that are copies of what the model draws from the caption are dropped: those whose perceptual hashes agree
beyond `copy_threshold`, 1 - 2 x the share of bits that differ, which is 1 for copies and about 0 for unrelated images.

Faithful: the objectives, the groups of weights, AdamW with clipping, keys and values of the begin token without gradient (authors' code), images of
the anchor from the model itself. Different: latents as sampled, not encoded again, by DDIM; no random resizing with "zoomed in" captions; a hash in
place of SSCD and left-out words in place of a language model's paraphrases; `preserve_scale`, off in `paper`, holds the predictions for preserved
prompts, of which the empty one is one of many, to those of the model as it was at the same x_t: a small model loses them otherwise.

Cost: `images` x `image_steps` x 2 passes to sample; a step costs batch x (1 with gradient + 1 without), with a prior batch x 2 with. Known failure:
concepts near the anchor are drawn to it, too; white-box attacks bring the concept back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.evaluation.similarity import hamming_pairs, perceptual_hash
from assay.families.sd import Conditioning
from assay.noise import derive, generator
from assay.patch import Patch
from assay.training.finetune import Noised, Student, finetune, following, own_latents, schedule, spread

GROUPS = {"cross-attention": "cross_attention.kv", "attention": "attention", "full": "unet", "embedding": "token_embeddings"}
REFERENCES = 8
"""Images of a memorised caption that anchors are compared with."""


@dataclass(frozen=True)
class Settings:
    """Settings of Concept Ablation."""

    variant: Literal["model", "noise"] = "model"
    """Whether to predict what the model predicts for the anchor (paper's main method), or the noise that was added to the anchor's image."""
    group: Literal["cross-attention", "attention", "full", "embedding"] = "cross-attention"
    """Which weights to train: cross-attention's keys and values (styles, objects), all attention, the UNet (memorised works), or the token
    embeddings of the concept's own words (of no memorised work)."""
    steps: int = 200
    """Optimiser steps (authors' code on one GPU: 200; 400 for memorised works)."""
    batch: int = 4
    """Samples a step (authors' code: 4)."""
    learning_rate: float = 8e-6
    """Learning rate of AdamW (authors' code: 2e-6 times the batch; 5e-7 times the batch for memorised works)."""
    prior: float = 0.0
    """Weight of the anchor's ordinary loss (authors' code: 0; 1 for memorised works)."""
    preserve_scale: float = 0.0
    """Weight of keeping the predictions for preserved prompts (paper: 0)."""
    teacher: Literal["student", "base"] = "student"
    """What predicts for the anchor: the model in training (paper), or as it was."""
    spare_begin: bool = True
    """Let no gradient pass through keys and values of the begin token, which all prompts share (authors' code: yes)."""
    images: int = 1000
    """Images of the anchor to train on (authors' code: 1000)."""
    image_steps: int = 50
    """DDIM steps of an image of the anchor (authors' code: 25 of DPM-Solver)."""
    image_guidance: float = 6.0
    """Scale of guidance of an image of the anchor (authors' code: 6)."""
    image_eta: float = 1.0
    """Noise of the sampling: 0 is deterministic, 1 is DDPM's (authors' code: 1)."""
    copy_threshold: float = 0.5
    """Agreement of perceptual hashes beyond which an anchor's image is a copy of the memorised work (paper: 0.5, in SSCD)."""
    leave_out: float = 0.5
    """Chance of each word of a memorised caption to be left out of its anchors."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper-work": {"group": "full", "steps": 400, "batch": 2, "learning_rate": 1e-6, "prior": 1.0},
    "small": {
        "steps": 100,
        "batch": 8,
        "learning_rate": 1e-3,
        "teacher": "base",
        "preserve_scale": 1.0,
        "images": 64,
        "image_steps": 15,
        "image_guidance": 4.0,
        "image_eta": 0.0,
    },
}
PROBE: dict[str, Any] = {"steps": 2, "batch": 2, "images": 4, "image_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, in samples: `passes` without gradients and `training_passes` with."""
    own = settings.prior > 0 and settings.teacher == "student"
    untrained = (settings.variant == "model" and not own) + (settings.preserve_scale > 0)
    trained = 1 + (settings.prior > 0) + (settings.preserve_scale > 0)
    sampled = settings.images * settings.image_steps * (1 if settings.image_guidance == 1 else 2)
    return {"passes": sampled + untrained * settings.steps * settings.batch, "training_passes": trained * settings.steps * settings.batch}


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
        concept: what to erase and what takes its place (an empty anchor: the empty prompt; for a work its caption with words left out).
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every batch of images and every step with those done, all of them and the loss.
        folder: keeps images and a checkpoint, from which an interrupted erasing goes on; emptied at the end.

    Returns:
        A dense change of every weight of the group.

    Raises:
        Misconfigured: a setting is out of range, the anchor is the concept, the anchor's images are all copies, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, concept, settings)
    student = Student(denoiser, weights)
    if settings.group == "embedding":
        for name, rows in own_rows(denoiser, concept, weights).items():
            student.masters[name].register_hook(rows.mul)
    batches = -(-settings.images // 16)
    total = batches + settings.steps
    pairs = anchored(concept, settings, seed)
    latents, pairs = draw(denoiser, concept, pairs, settings, seed, folder, following(progress, 0, total))
    training = Training(student, latents, pairs, concept.preserved(), settings)
    plan = schedule(settings, weight_decay=0.01 if settings.group != "embedding" else 0.0, clip=1.0)
    about: dict[str, Any] = {"method": "concept_ablation", "settings": settings, "concept": concept, "seed": seed, "strength": settings.strength}
    return finetune(student, training.loss, plan, **about, folder=folder, progress=following(progress, batches, total))


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, the anchor is the concept, or token embeddings are to forget a memorised work.
    """
    if settings.group not in GROUPS or settings.variant not in ("model", "noise") or settings.teacher not in ("student", "base"):
        raise Misconfigured(
            f"There is no `variant` {settings.variant} with `group` {settings.group} and `teacher` {settings.teacher}.",
            f"Variants: model, noise; groups: {', '.join(GROUPS)}; teachers: student, base.",
        )
    if min(settings.steps, settings.batch, settings.images, settings.image_steps) < 1 or settings.image_steps > len(denoiser.alphas_cumprod):
        raise Misconfigured("`steps`, `batch`, `images` and `image_steps` must be at least 1.", "`image_steps` can be as large as the timesteps.")
    if not (settings.learning_rate > 0 and settings.prior >= 0 and settings.preserve_scale >= 0):
        raise Misconfigured("`learning_rate` must be positive, `prior` and `preserve_scale` not negative.", "The paper's values are 8e-6, 0 and 0.")
    if not 0 < settings.leave_out < 1:
        raise Misconfigured(f"`leave_out` must lie between 0 and 1; got {settings.leave_out:g}.", "Half of the words is a fair share.")
    if all(target == anchor for target, anchor in concept.pairs()):
        raise Misconfigured("The concept and its anchor are the same prompts, so there is nothing to erase.", "Give another anchor.")
    if settings.group == "embedding" and any(part.kind == "work" for part in concept.parts or (concept,)):
        raise Misconfigured("A memorised work has no words of its own, so its token embeddings are not trained.", "The paper's group is `full`.")
    return denoiser.group(GROUPS[settings.group])


def own_rows(denoiser: Denoiser, concept: Concept, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return which rows of the token embeddings are of the concept's own words: by name, 1 and 0, (tokens, 1)."""
    names = [name.removesuffix(" style") for part in concept.parts or (concept,) for name in part.members or (part.name,)]
    found = {}
    for (tokenizer, encoder), ids in zip(denoiser.family.encoders, denoiser.family.tokenize(names), strict=True):
        table = encoder.get_input_embeddings().weight
        name = next(name for name, tensor in weights.items() if tensor is table)
        rows = torch.zeros(len(table), 1, device=table.device)
        for row in ids.tolist():
            rows[row[1 : row.index(tokenizer.eos_token_id)]] = 1
        found[name] = rows
    return found


def anchored(concept: Concept, settings: Settings, seed: int) -> list[tuple[str, str]]:
    """Return pairs (target prompt, anchor prompt): of a memorised work without an anchor one for every image, of several concepts as many of each."""
    if concept.parts:
        share = -(-settings.images // len(concept.parts))
        return [pair for part in concept.parts for pair in spread(anchored(part, settings, seed), share, seed, "concept_ablation", part.name)]
    if concept.kind != "work" or concept.anchor:
        return concept.pairs()
    captions = concept.members or (concept.name,)
    share = -(-settings.images // len(captions))
    return [(caption, anchor) for caption in captions for anchor in paraphrases(caption, share, settings.leave_out, seed)]


def paraphrases(caption: str, count: int, leave_out: float, seed: int) -> list[str]:
    """Return captions from which at least one word is left out; of a caption of one word nothing is left."""
    words = caption.split()
    made = []
    for number in range(count):
        draws = torch.rand(len(words), generator=generator(seed, "paraphrase", number))
        kept = draws >= leave_out
        kept[draws.argmin()] = False
        made.append(" ".join(word for word, keep in zip(words, kept.tolist(), strict=True) if keep))
    return made


def draw(
    denoiser: Denoiser,
    concept: Concept,
    pairs: Sequence[tuple[str, str]],
    settings: Settings,
    seed: int,
    folder: Path | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Let the model make the anchor's images.

    Args:
        denoiser: the model.
        concept: what is erased; copies of what is of kind `work` are dropped.
        pairs: (target prompt, anchor prompt), used evenly.
        settings: see `Settings`.
        seed: of the images.
        folder: keeps the latents.
        progress: called after every batch.

    Returns:
        Latents (n, c, h, w), and the pair that each belongs to.

    Raises:
        Misconfigured: all are copies of a work.
    """
    chosen = spread(pairs, settings.images, seed, "concept_ablation")
    options = {"steps": settings.image_steps, "guidance": settings.image_guidance, "eta": settings.image_eta}
    seeds = [derive(seed, "concept_ablation", number) for number in range(settings.images)]
    latents = own_latents(denoiser, [anchor for _, anchor in chosen], seeds, folder=folder, progress=progress, **options)
    works = [part for part in concept.parts or (concept,) if part.kind == "work"]
    captions = [caption for work in works for caption in work.members or (work.name,) for _ in range(REFERENCES)]
    if not captions:
        return latents, chosen
    seeds = [derive(seed, "concept_ablation", "reference", number) for number in range(len(captions))]
    references = own_latents(denoiser, captions, seeds, folder=folder, **options)
    with torch.no_grad():
        images = [torch.cat([denoiser.images(part) for part in side.split(16)]) for side in (latents, references)]
    alike = 1 - 2 * hamming_pairs(*(perceptual_hash(side) for side in images)).min(1)
    kept = [number for number, value in enumerate(alike) if value <= settings.copy_threshold]
    if not kept:
        raise Misconfigured(
            f"All {len(alike)} images of the anchor are copies of `{concept.name}`: they agree beyond {settings.copy_threshold:g}.",
            "Give another anchor, or raise `copy_threshold` or `leave_out`.",
        )
    return latents[kept], [chosen[number] for number in kept]


class Training:
    """What one step of Concept Ablation does.

    Args:
        student: what trains.
        latents: of the anchor's images: (n, c, h, w).
        pairs: (target prompt, anchor prompt) of each.
        preserved: prompts to keep, if `preserve_scale` is set.
        settings: see `Settings`.
    """

    def __init__(
        self, student: Student, latents: torch.Tensor, pairs: Sequence[tuple[str, str]], preserved: Sequence[str], settings: Settings
    ) -> None:
        """Encode the prompts, unless their encoder trains."""
        self.student = student
        self.denoiser = student.denoiser
        self.latents = latents
        self.pairs = pairs
        self.preserved = preserved
        self.settings = settings
        if settings.group != "embedding":
            self.denoiser.conditioning([
                "",
                *(prompt for pair in dict.fromkeys(pairs) for prompt in pair),
                *(preserved if settings.preserve_scale else ()),
            ])

    def loss(self, _: int, rng: torch.Generator) -> torch.Tensor:
        """Return the loss of a step: a scalar."""
        settings, denoiser = self.settings, self.denoiser
        noised = Noised.draw(denoiser, self.latents, settings.batch, rng)
        x_t, t = noised.x_t, noised.t
        kept = [self.preserved[int(row)] for row in torch.randint(len(self.preserved), (settings.batch,), generator=rng)]
        targets, anchors = ([self.pairs[row][side] for row in noised.rows] for side in (0, 1))
        with begin_detached(denoiser.unet) if settings.spare_begin else nullcontext():
            prior = self.predict(x_t, t, anchors) if settings.prior else None
            goal = self.teach(x_t, t, anchors, prior) if settings.variant == "model" else noised.added
            total = (self.predict(x_t, t, targets) - goal).square().mean()
            if prior is not None:
                total = total + settings.prior * (prior - noised.added).square().mean()
            if settings.preserve_scale:
                with torch.no_grad():
                    before = self._predict(x_t, t, kept)
                total = total + settings.preserve_scale * (self.predict(x_t, t, kept) - before).square().mean()
        return total

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Return what the model in training predicts: in the network's own view, (b, c, h, w)."""
        return self.student.run(self._predict, x_t, t, prompts)

    @torch.no_grad()
    def teach(self, x_t: torch.Tensor, t: torch.Tensor, anchors: Sequence[str], own: torch.Tensor | None = None) -> torch.Tensor:
        """Return what should be predicted for the targets: `own`, if it is the teacher's prediction already, without its gradient."""
        if self.settings.teacher == "base":
            return self._predict(x_t, t, anchors)
        return self.predict(x_t, t, anchors) if own is None else own.detach()

    def _predict(self, x_t: torch.Tensor, t: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        if self.settings.group != "embedding":
            conditioning = self.denoiser.conditioning(prompts)
        else:  # encodings change with the embeddings, which stand in during this call
            family = self.denoiser.family
            conditioning = family.encode(family.tokenize(prompts))
            if "" in prompts:  # which guidance encodes in its own way
                empty = family.unconditional(1)
                conditioning = Conditioning.cat([conditioning[[row]] if prompt else empty for row, prompt in enumerate(prompts)])
        return self.denoiser.predict(x_t, t, conditioning, self.denoiser.view)


@contextmanager
def begin_detached(unet: torch.nn.Module) -> Generator[None]:
    """While active, no gradient passes through keys and values that cross-attention reads from the first token."""

    def detach(_: torch.nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :1].detach(), output[:, 1:]], 1)

    modules = [module for name, module in unet.named_modules() if name.endswith((".attn2.to_k", ".attn2.to_v"))]
    handles = [module.register_forward_hook(detach) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
