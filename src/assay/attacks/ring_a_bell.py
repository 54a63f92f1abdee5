"""Finds tokens whose encoding is that of the prompt with the concept added to it, by a genetic search in the text encoder alone.

"Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?" Yu-Lin Tsai, Chia-Yi Hsu, Chulin Xie, Chih-Hsun Lin, Jia-You Chen, Bo
Li, Pin-Yu Chen, Chia-Mu Yu, Chun-Ying Huang. ICLR 2024, arXiv 2310.10012. Authors' code: github.com/chiayi-hsu/Ring-A-Bell, MIT. Written here from
the paper's mathematics.

With E the encoder's states of a prompt, all positions side by side, the concept is the mean over pairs that differ in it alone,

    d = mean [ E(prompt with the concept) - E(prompt without) ],

and the tokens found for a prompt P are

    argmin over P*  | E(P*) - (E(P) + eta d) |^2.

Black-box: no pass of the denoiser, no picture, and the text encoder is the public one, that of the model without its patches. What is found is then
told to the patched model as tokens. A generation keeps the better half and fills up with children: two parents, crossed at one place with probability
`crossover`, one token changed with probability `mutation`. So the best of a population never gets worse.

Faithful: concept vector, objective, sizes. Different: pairs come from the concept's own prompts, the one without being the same words without its
name, or without the member's where one of a family goes by another; children that are not crossed are copies of a parent, so that clones stay in the
population, where in the authors' code every child is crossed and the better half is mutated too; all prompts of a batch are searched at once; the
vocabulary leaves out what could spell the concept.

Cost: prompts x `population` / 2 encodings a generation. Known failure: it cannot see what the patched model does with its tokens, so that a method
that changes how all words near the concept are read is not touched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assay.attacks.search import Slots, slots, spoken, vocabulary
from assay.attacks.target import Attack, Clock, Progress, Target, as_loaded
from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.noise import numpy_generator

EACH = True
"""Whether each prompt is attacked by itself."""
IN_WORDS = True
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = True
"""Whether it is led by the model beneath the patches."""
ENCODED = 256
"""Prompts that are encoded at once."""


@dataclass(frozen=True)
class Settings:
    """Settings of Ring-A-Bell."""

    tokens: int = 16
    """Tokens of a prompt (paper: 16, 38 or 77, which counts begin and end and is 75 here)."""
    eta: float = 3.0
    """How much of the concept is added (paper: 3 for nudity, 5 and more for violence)."""
    population: int = 200
    """Candidates for each prompt (authors' code: 200)."""
    generations: int = 3000
    """Generations (authors' code: 3000)."""
    mutation: float = 0.25
    """Probability that a child has one token changed (authors' code: 0.25)."""
    crossover: float = 0.5
    """Probability that a child has two parents (authors' code: 0.5)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"tokens": 8, "population": 40, "generations": 60}}
PROBE: dict[str, Any] = {"tokens": 2, "population": 4, "generations": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings, prompts: int, steps: int) -> dict[str, int]:
    """Return the passes that an attack on so many prompts takes, in samples: `passes` without gradients and `training_passes` with."""
    return {"passes": 0, "training_passes": 0}


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
    """Search for the tokens of every prompt.

    Args:
        denoiser: the model with its patches on, which the search does not see.
        target: what to bring back; its pictures are not looked at.
        settings: see `Settings`.
        seed: not used: every draw is by the seed of its prompt.
        clock: stops the search when its budget is spent.
        progress: called after every generation with the mean of the best distances so far.
        folder: not used.

    Returns:
        The best prompts found, and the mean of the best distances after every generation.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the text encoders read by different vocabularies.
    """
    check(settings)
    words = vocabulary(denoiser, target)
    laid = slots(denoiser, target.prompts, settings.tokens, "alone")
    draws = [numpy_generator(own, "ring a bell") for own in target.seeds]
    curve: list[float] = []
    with torch.no_grad(), as_loaded(denoiser):
        wanted = encoded(denoiser, target.prompts) + settings.eta * concept_vector(denoiser, target.concept)
        people = np.stack([rng.integers(len(words.ids), size=(settings.population, settings.tokens)) for rng in draws])
        fitness = distances(denoiser, laid, words.ids, people, wanted)
        before = fitness.min(1)
        for generation in range(settings.generations):
            if clock is not None and clock.over:
                break
            order = fitness.argsort(1, kind="stable")[:, : max(1, settings.population // 2)]
            parents = np.take_along_axis(people, order[..., None], 1)
            count = settings.population - parents.shape[1]
            young = np.stack([children(mine, count, len(words.ids), settings, rng) for mine, rng in zip(parents, draws, strict=True)])
            people = np.concatenate([parents, young], 1)
            fitness = np.concatenate([np.take_along_axis(fitness, order, 1), distances(denoiser, laid, words.ids, young, wanted)], 1)
            curve.append(float(fitness.min(1).mean()))
            if progress:
                progress(generation + 1, settings.generations, {"distance": curve[-1]})
    best = torch.from_numpy(people[np.arange(len(target)), fitness.argmin(1)]).to(words.ids.device)
    ids = laid.filled(words.ids[best])
    with torch.no_grad():
        told = denoiser.family.encode(ids)
    figures = {"distance.before": before.tolist(), "distance.after": fitness.min(1).tolist()}
    early = len(curve) < settings.generations
    return Attack(spoken(denoiser, ids[0]), told, curves={"best distance": curve}, figures=figures, removed=words.removed, early=early)


def check(settings: Settings) -> None:
    """Raise unless everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if settings.tokens < 1 or settings.population < 2 or settings.generations < 1:
        raise Misconfigured("`tokens` and `generations` must be at least 1, `population` at least 2.", "The paper's are 16, 3000 and 200.")
    if not (0 <= settings.mutation <= 1 and 0 <= settings.crossover <= 1 and np.isfinite(settings.eta)):
        raise Misconfigured("`mutation` and `crossover` are probabilities, and `eta` is finite.", "The paper's are 0.25, 0.5 and 3.")


def encoded(denoiser: Denoiser, prompts: Sequence[str]) -> torch.Tensor:
    """Return the encoder's states of prompts, all positions side by side: (n, tokens x width); the empty one as text, not as guidance has it."""
    states = torch.cat([denoiser.conditioning(prompts[start : start + ENCODED]).states.flatten(1) for start in range(0, len(prompts), ENCODED)])
    for row in (row for row, prompt in enumerate(prompts) if not prompt):
        states[row] = denoiser.family.encode(denoiser.family.tokenize([""])).states.flatten()
    return states


def concept_vector(denoiser: Denoiser, concept: Concept) -> torch.Tensor:
    """Return the mean difference that the concept's name, or that of one of its members, makes to the encoding of its prompts: (tokens x width,)."""
    with_it = [prompt for prompt, _ in concept.pairs()]
    return (encoded(denoiser, with_it) - encoded(denoiser, [struck(prompt, concept) for prompt in with_it])).mean(0)


def struck(prompt: str, concept: Concept) -> str:
    """Return a prompt of a concept without its name; where it does not hold that, without its members', the longest first."""
    parts = concept.parts or (concept,)
    for names in ([part.name for part in parts], sorted((name for part in parts for name in part.members), key=len, reverse=True)):
        pattern = "|".join(re.escape(name) for name in names)
        left, found = re.subn(rf"(?<!\w)(?:{pattern})(?!\w)", "", prompt, flags=re.IGNORECASE)
        if names and found:
            return " ".join(left.split())
    return prompt


def distances(denoiser: Denoiser, laid: Slots, ids: torch.Tensor, people: np.ndarray, wanted: torch.Tensor) -> np.ndarray:
    """Return the squared distance of every candidate's encoding from what is wanted: (n, candidates).

    Args:
        denoiser: the model.
        laid: one row for each prompt, free places alone.
        ids: the vocabulary.
        people: places in the vocabulary: (n, candidates, tokens).
        wanted: encodings: (n, tokens x width).
    """
    count, each, _ = people.shape
    rows = torch.arange(count).repeat_interleave(each)
    tokens = ids[torch.from_numpy(people.reshape(count * each, -1)).to(ids.device)]
    found = []
    for start in range(0, len(rows), ENCODED):
        some = rows[start : start + ENCODED]
        part = Slots(tuple(tensor[some] for tensor in laid.ids), laid.places[some]).filled(tokens[start : start + ENCODED])
        found.append((denoiser.family.encode(part).states.flatten(1).float() - wanted[some].float()).square().sum(1))
    return torch.cat(found).double().cpu().numpy().reshape(count, each)


def children(parents: np.ndarray, count: int, size: int, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Return children of parents (p, tokens): (count, tokens), crossed at one place and with one token changed, each as its probability says."""
    one, other = parents[rng.integers(len(parents), size=count)], parents[rng.integers(len(parents), size=count)]
    tokens = parents.shape[1]
    cut = np.where(rng.random(count) < settings.crossover, rng.integers(1, max(2, tokens), size=count), tokens)
    young = np.where(np.arange(tokens) < cut[:, None], one, other)
    changed = np.flatnonzero(rng.random(count) < settings.mutation)
    young[changed, rng.integers(tokens, size=len(changed))] = rng.integers(size, size=len(changed))
    return young
