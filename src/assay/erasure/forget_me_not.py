"""Trains cross-attention to look away from the concept's tokens, on the model's own images of the concept.

"Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models". Gong Zhang, Kai Wang, Xingqian Xu, Zhangyang Wang, Humphrey Shi. CVPR Workshops
2024, arXiv 2303.17591. Authors' code: github.com/SHI-Labs/Forget-Me-Not, MIT. Written here from the paper's mathematics.

Attention re-steering: with A_l the probabilities of cross-attention layer l, (heads, positions, tokens), for a noised image of the concept under a
prompt that names it, each step minimises over all layers together

    ( sum_l | A_l[:, :, concept's tokens] |^2 )^(1/2)

Inversion first learns embeddings in place of the concept's words, which draw the concept better than the words do, by the denoising loss (Gal et al.
2022, arXiv 2208.01618, Eq. 2); the re-steering then looks at those. The learned embeddings are used for nothing else: the patch changes the UNet.

Faithful: the loss as in the authors' code (its root; the paper's algorithm sums squares), AdamW, the end token and pads among the tokens (`pads`), no
term that keeps anything. Different: images are the model's own, as latents; the inversion learns one vector for each distinct token of the
concept's words, starting from that token's own, where the authors add four new tokens. Probabilities are exposed by attention processors that are
there while a loss is computed, and by no fused kernel; the model's own come back after it.

Cost: `images` x `image_steps` x 2 passes to sample; `inversion_steps` x `inversion_batch` + `steps` x batch with gradient. Known failure: weak.
Adversarial prompts find the concept again nearly always (97.9 % for nudity in the benchmark of UnlearnDiffAtk), and the authors of AGE report that
they could not reproduce it; attention that leaves the concept's tokens goes to the subject's, so that what else a prompt names changes. In the
built-in model a style is also read from the end token and the pads: without `pads` it stays, with them everything suffers alike.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.attention import exposed
from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.patch import Patch
from assay.patched import standing
from assay.record import digest_of
from assay.training.finetune import Noised, Student, finetune, following, own_pictures, schedule, trained
from assay.training.loop import Run, Schedule


@dataclass(frozen=True)
class Settings:
    """Settings of Forget-Me-Not."""

    group: Literal["cross-attention", "full"] = "full"
    """Which weights to train: cross-attention, or the whole UNet (authors' code)."""
    steps: int = 35
    """Optimiser steps of the re-steering (authors' code: 35)."""
    batch: int = 1
    """Samples a step (authors' code: 1)."""
    learning_rate: float = 2e-6
    """Learning rate of AdamW (authors' code: 2e-6)."""
    pads: bool = True
    """Look away from the end token, too, and from padding where that is end tokens, as in Stable Diffusion 1 (authors' code: yes)."""
    inversion_steps: int = 500
    """Optimiser steps of the inversion (authors' code: 500); 0 takes the words as they are."""
    inversion_batch: int = 1
    """Samples a step of the inversion (authors' code: 1)."""
    inversion_rate: float = 1e-3
    """Learning rate of AdamW in the inversion (authors' code: 1e-3)."""
    images: int = 10
    """Images of the concept (authors' example: 10)."""
    image_steps: int = 50
    """DDIM steps of an image."""
    image_guidance: float = 7.5
    """Scale of guidance of an image."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "group": "cross-attention",
        "steps": 60,
        "batch": 8,
        "learning_rate": 6e-4,
        "pads": False,
        "inversion_steps": 0,
        "images": 48,
        "image_steps": 15,
        "image_guidance": 4.0,
    },
}
PROBE: dict[str, Any] = {"steps": 2, "inversion_steps": 2, "images": 2, "image_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, in samples: `passes` without gradients and `training_passes` with."""
    sampled = settings.images * settings.image_steps * (1 if settings.image_guidance == 1 else 2)
    inverted = settings.inversion_steps * settings.inversion_batch
    return {"passes": sampled, "training_passes": inverted + settings.steps * settings.batch}


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
        concept: what to erase; anchor and what must stay are not used.
        settings: see `Settings`.
        seed: of every draw.
        progress: called after every batch of images and every step of both trainings with those done, all of them and the loss.
        folder: keeps images and checkpoints, from which an interrupted erasing goes on; emptied at the end.

    Returns:
        A dense change of every weight of the group.

    Raises:
        Misconfigured: a setting is out of range, a prompt does not hold the concept's words, or the training diverged.
        Unsupported: the model is in float16.
    """
    weights = check(denoiser, concept, settings)
    words = Words(denoiser, concept)
    student = Student(denoiser, weights)
    then = settings.inversion_steps + settings.steps
    options = {"steps": settings.image_steps, "guidance": settings.image_guidance}
    targets = [target for target, _ in concept.pairs()]
    ((latents, prompts),), advance = own_pictures(
        denoiser, [targets], settings.images, seed=seed, method="forget_me_not", folder=folder, progress=progress, then=then, **options
    )
    inner = None if folder is None else folder / "inversion"
    plan = "" if inner is None else digest_of(["inversion", asdict(settings), asdict(concept), seed, standing(student.denoiser)])
    invert(words, latents, prompts, settings, seed, inner, plan, following(advance, 0, then))
    with torch.no_grad():
        learned = words.encode(prompts)
    places = torch.stack([words.places(prompt, settings.pads) for prompt in prompts])

    def loss(_: int, rng: torch.Generator) -> torch.Tensor:
        drawn = Noised.draw(denoiser, latents, settings.batch, rng)
        with exposed(denoiser.unet) as maps:
            student.run(denoiser.predict, drawn.x_t, drawn.t, learned[drawn.rows])
        return attention_norm(maps, places[drawn.rows])

    about: dict[str, Any] = {"method": "forget_me_not", "settings": settings, "concept": concept, "seed": seed, "strength": settings.strength}
    decayed = schedule(settings, weight_decay=0.01, clip=1.0)
    patch = finetune(student, loss, decayed, **about, folder=folder, progress=following(advance, settings.inversion_steps, then))
    if inner is not None:
        shutil.rmtree(inner, ignore_errors=True)
    return patch


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to train, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    weights = trained(denoiser, settings)
    if settings.inversion_batch < 1 or settings.inversion_steps < 0:
        raise Misconfigured("Steps, batches and images must be at least 1.", "Only `inversion_steps` can be 0.")
    if not (settings.learning_rate > 0 and settings.inversion_rate > 0):
        raise Misconfigured("`learning_rate` and `inversion_rate` must be positive.", "The authors' values are 2e-6 and 1e-3.")
    denoiser.group("cross_attention")
    return weights


class Words:
    """Where prompts name the concept, and what embeddings stand there.

    Args:
        denoiser: the model.
        concept: the concept; its words are its name or the names of its members.
    """

    def __init__(self, denoiser: Denoiser, concept: Concept) -> None:
        """Copy the embeddings of the concept's tokens.

        Raises:
            Misconfigured: a prompt does not hold the concept's words.
        """
        self.denoiser = denoiser
        self.family = denoiser.family
        names = [name for part in concept.parts or (concept,) for name in part.members or (part.name,)]
        phrases = sorted({phrase for name in names for phrase in (name, name.removesuffix(" style"))}, key=len, reverse=True)
        self.phrases: list[list[list[int]]] = []
        self.masters: dict[str, torch.Tensor] = {}
        self.rows: list[dict[int, int]] = []
        for number, ((tokenizer, _), ids) in enumerate(zip(self.family.encoders, self.family.tokenize(phrases), strict=True)):
            plain = [row[1 : row.index(tokenizer.eos_token_id)] for row in ids.tolist()]
            self.phrases.append([row for row in plain if row])
            tokens = sorted({token for row in plain for token in row})
            self.rows.append({token: place for place, token in enumerate(tokens)})
            table = denoiser.family.encoders[number][1].get_input_embeddings().weight
            self.masters[str(number)] = table[tokens].detach().float().clone().requires_grad_()
        for target, _ in concept.pairs():
            if not self._named(0, self.family.tokenize([target])[0][0].tolist()):
                raise Misconfigured(f"The prompt `{target}` does not hold the concept's words.", "It may be cut off: shorten it.")

    def places(self, prompt: str, pads: bool) -> torch.Tensor:
        """Return at which tokens a prompt names the concept, with `pads` also the end token and pads that are one: bool, (tokens,)."""
        ids = self.family.tokenize([prompt])[0][0].tolist()
        found = torch.tensor(ids) == self.family.encoders[0][0].eos_token_id if pads else torch.zeros(len(ids), dtype=torch.bool)
        found[self._named(0, ids)] = True
        return found

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts with the learned embeddings at the concept's words; gradients flow to them."""
        ids = self.family.tokenize(prompts)
        with torch.no_grad():
            plain = self.family.embed(ids)
        embeddings = []
        for number, (tokens, states) in enumerate(zip(ids, plain, strict=True)):
            rows = torch.full(tokens.shape, -1)
            for row, line in enumerate(tokens.tolist()):
                for place in self._named(number, line):
                    rows[row, place] = self.rows[number][line[place]]
            rows = rows.to(states.device)
            learned = self.masters[str(number)].to(states)[rows.clamp(min=0)]
            embeddings.append(torch.where((rows >= 0)[..., None], learned, states))
        return self.family.encode(ids, embeddings)

    def _named(self, number: int, ids: list[int]) -> list[int]:
        """Return the places of the concept's words: of the longest phrase where one holds another."""
        found: list[int] = []
        for phrase in self.phrases[number]:
            for start in range(len(ids) - len(phrase) + 1):
                span = range(start, start + len(phrase))
                if ids[start : start + len(phrase)] == phrase and not set(span) & set(found):
                    found += span
        return sorted(found)


def invert(
    words: Words,
    latents: torch.Tensor,
    prompts: Sequence[str],
    settings: Settings,
    seed: int,
    folder: Path | None,
    plan: str,
    progress: Callable[[int, int, dict[str, float]], None] | None,
) -> None:
    """Learn the embeddings of the concept's words from its images, in place."""
    if not settings.inversion_steps:
        return
    denoiser = words.denoiser

    def loss(_: int, rng: torch.Generator) -> torch.Tensor:
        drawn = Noised.draw(denoiser, latents, settings.inversion_batch, rng)
        predicted = denoiser.predict(drawn.x_t, drawn.t, words.encode([prompts[row] for row in drawn.rows]), denoiser.view)
        return (predicted - drawn.added).square().mean()

    course = Schedule(settings.inversion_steps, settings.inversion_batch, settings.inversion_rate, decay=0, weight_decay=0.1, beta2=0.999, ema=0)
    Run(words.masters, loss, course, seed=seed, folder=folder, plan=plan).run(every=100, progress=progress)


def attention_norm(maps: Sequence[torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """Return the norm of the attention to some tokens, over all layers together.

    Args:
        maps: probabilities of every layer: (b, heads, positions, tokens) each.
        places: which tokens count: bool, (b, tokens).

    Returns:
        A scalar.
    """
    chosen = places[:, None, None, :].to(maps[0].device)
    return torch.stack([(probabilities.float() * chosen).square().sum() for probabilities in maps]).sum().sqrt()
