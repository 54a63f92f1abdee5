"""Finds the neurons of cross-attention's values that memorised prompts excite far beyond others, and cuts those off that memorisation needs.

"Finding NeMo: Localizing Neurons Responsible For Memorization in Diffusion Models". Dominik Hintersdorf, Lukas Struppek, Kristian Kersting, Adam
Dziedzic, Franziska Boenisch. NeurIPS 2024, arXiv 2406.02366. Authors' code: github.com/ml-research/localizing_memorization_in_diffusion_models, MIT.
Written here from the paper's mathematics.

With a_i(y) the activation of neuron i of a value projection for prompt y, the mean size over its tokens, and mu_i, sigma_i its mean and deviation
over other prompts, a neuron is out of distribution at theta where

    z_i(y) = | a_i(y) - mu_i | / sigma_i > theta                                                 Eq. 3

What the first step predicts without guidance says how memorised a prompt is. With d = e(x_T, y) - x_T, scaled to [0, 1] in each channel, only those
of `seeds` starts count whose d is as similar (SSIM) as tau to that of another. Neurons at theta = 5, 4.75, ... and the k = 0, 1, ... of every layer
with the largest a_i are cut until no d is as similar as tau to what it was before (App. D, Alg. 1-3). Of those a layer is given back whole, then
neurons one by one, wherever the similarity stays below tau (Alg. 4), or below what it reached where the lowest theta did not suffice. What is left of
all prompts is cut: their rows become 0.

Faithful: scores, order of the search, both refinements, their thresholds. Different: tau is the mean plus one deviation of the largest similarity
over the concept's preserved prompts, as the authors' is over 50,000 captions (0.428); SSIM has even windows of 7 and one scale; of a layer the least
excited neurons are given back first; a v model's predicted noise is its epsilon; all blocks can be searched, where the authors' are those down and in
the middle.

Cost: `seeds` passes for every preserved prompt (at most `others`), and for every prompt at every threshold, layer and neuron tried. Known failure: it
closes the way from the prompt and leaves the image in the model: a search of embeddings finds it again (Kowalczuk et al., arXiv 2507.16880).
Where every prompt fixes its image, as in a small model, all score high, memorised or not, and tau has to be given.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser, tensor_digest
from assay.errors import Misconfigured
from assay.noise import derive, normal
from assay.patch import Manifest, Patch
from assay.training.finetune import spread

Neurons = dict[str, set[int]]
"""Name of a value projection -> its neurons, by row."""


@dataclass(frozen=True)
class Settings:
    """Settings of NeMo."""

    blocks: Literal["down-mid", "all"] = "down-mid"
    """Whose value projections are searched (paper: down and mid blocks)."""
    theta: float = 5.0
    """Threshold of the activation, in deviations, that the search begins with (paper: 5)."""
    theta_step: float = 0.25
    """How much it is lowered at a time (paper: 0.25)."""
    theta_least: float = 1.0
    """The lowest threshold (paper: 1)."""
    top: int = 0
    """Neurons of every layer with the largest activation that are tried besides, one more at every further threshold (paper: 0)."""
    seeds: int = 10
    """Noises that the memorisation score compares (paper: 10)."""
    tau: float | None = None
    """Score below which a prompt is not memorised (paper: 0.428, of Stable Diffusion 1.4); none: set on preserved prompts."""
    others: int = 200
    """Preserved prompts that mean and deviation are taken over, at most."""
    strength: float = 1.0
    """How much of a neuron's weights is taken away; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"blocks": "all", "seeds": 6, "others": 60, "tau": 0.5}}
PROBE: dict[str, Any] = {"theta": 3.0, "theta_least": 3.0, "seeds": 2, "others": 4}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes, roughly: for one prompt, whose search goes half of the way and keeps some forty neurons."""
    tried = (settings.theta - settings.theta_least) / max(settings.theta_step, 1e-9) / 2 + 60
    return {"passes": int(settings.seeds * (settings.others + tried))}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch that cuts memorisation neurons off; the model's weights are read, and written only while they are tried.

    Args:
        denoiser: the model.
        concept: memorised prompts, and what is preserved: prompts that are not memorised.
        settings: see `Settings`.
        seed: of the noises and of which preserved prompts count.
        progress: called after every prompt, with the neurons found so far.
        folder: not used: the search is short.

    Returns:
        A change of the value projections of the blocks that takes whole rows away.

    Raises:
        Misconfigured: a setting is out of range, or fewer than two prompts are preserved.
        Unsupported: the model has no cross-attention in those blocks.
    """
    weights = check(denoiser, concept, settings)
    kept = concept.preserved()
    kept = spread(kept, min(len(kept), settings.others), seed, "nemo")
    prompts = list(dict.fromkeys(target for target, _ in concept.pairs()))
    noise = normal(denoiser.latent_shape, [derive(seed, "nemo", number) for number in range(settings.seeds)]).to(denoiser.device)
    usual = activations(denoiser, weights, kept)
    tau = settings.tau
    if tau is None:
        scores = torch.tensor([score(denoiser, prompt, noise) for prompt in kept], dtype=torch.float64)
        tau = float(scores.mean() + scores.std())
    found: Neurons = {name: set() for name in weights}
    for number, prompt in enumerate(prompts, 1):
        for name, rows in neurons_of(denoiser, weights, usual, prompt, noise, tau, settings).items():
            found[name] |= rows
        if progress:
            progress(number, len(prompts), {"neurons": float(sum(map(len, found.values())))})
    changes = {}
    for name, weight in weights.items():
        change = torch.zeros_like(weight, dtype=torch.float32, device="cpu")
        rows = sorted(found[name])
        change[rows] = -settings.strength * weight[rows].float().cpu()
        changes[f"delta/{name}"] = change
    base = {name: tensor_digest(denoiser.replaced.get(name, weight)) for name, weight in weights.items()}
    return Patch(Manifest(method="nemo", settings=asdict(settings), made_for=f"erase {concept.name}", base=base), changes)


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the value projections to search, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or fewer than two prompts are preserved.
    """
    if settings.blocks not in ("down-mid", "all"):
        raise Misconfigured(f"There are no `blocks` {settings.blocks}.", "Choose down-mid or all.")
    if not (settings.theta >= settings.theta_least > 0 and settings.theta_step > 0) or settings.top < 0:
        raise Misconfigured("`theta` goes down to a positive `theta_least` by a positive `theta_step`.", "The paper's are 5, 1 and 0.25.")
    if settings.seeds < 2 or settings.others < 2:
        raise Misconfigured("`seeds` and `others` must be at least 2.", "The paper has 10 seeds.")
    if len(concept.preserved()) < 3:
        raise Misconfigured("There is nothing to compare the prompt's activations with.", "Give prompts that are not memorised, with `--preserve`.")
    values = {name: tensor for name, tensor in denoiser.group("cross_attention.kv").items() if ".to_v." in name}
    if settings.blocks == "down-mid":
        values = {name: tensor for name, tensor in values.items() if not name.startswith("unet.up_blocks.")}
    return values


@torch.no_grad()
def activations(denoiser: Denoiser, weights: dict[str, torch.Tensor], prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the mean size of every value neuron over each prompt's tokens: by name, (prompts, neurons), float32. They depend on nothing else."""
    states = denoiser.conditioning(prompts).states.float()
    return {name: (states @ weight.float().T).abs().mean(1) for name, weight in weights.items()}


def excitement(usual: dict[str, torch.Tensor], activation: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return how many deviations each neuron's activation for one prompt lies off its mean over usual prompts: by name, (neurons,), not negative."""
    return {name: (activation[name][0] - rows.mean(0)).abs() / rows.std(0).clamp(min=1e-12) for name, rows in usual.items()}


def chosen(excited: dict[str, torch.Tensor], active: dict[str, torch.Tensor], theta: float, top: int) -> Neurons:
    """Return the neurons whose excitement is above a threshold, and those of every layer with the largest activation."""
    return {
        name: set((z > theta).nonzero().flatten().tolist()) | set(active[name].topk(min(top, len(z))).indices.tolist()) for name, z in excited.items()
    }


@contextmanager
def cut(weights: dict[str, torch.Tensor], neurons: Neurons) -> Generator[None]:
    """While active, the neurons' weights are 0."""
    kept = {name: weights[name].detach().clone() for name, rows in neurons.items() if rows}
    try:
        with torch.no_grad():
            for name in kept:
                weights[name][sorted(neurons[name])] = 0
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                weights[name].copy_(weight)


@torch.no_grad()
def differences(denoiser: Denoiser, prompt: str, noise: torch.Tensor) -> torch.Tensor:
    """Return what the first step's predicted noise is beyond each start (n, c, h, w), scaled to [0, 1] in every channel: the same shape."""
    first = torch.full((len(noise),), int(denoiser.timesteps(50)[0]), device=denoiser.device)
    found = denoiser.predict(noise, first, denoiser.conditioning([prompt]).expand(len(noise))) - noise
    least, most = found.amin((2, 3), keepdim=True), found.amax((2, 3), keepdim=True)
    return (found - least) / (most - least).clamp(min=1e-12)


def alike(found: torch.Tensor) -> torch.Tensor:
    """Return how similar each start's difference is to that of the start it resembles most: (n,)."""
    one, other = torch.triu_indices(len(found), len(found), 1)
    values = ssim(found[one], found[other])
    return torch.stack([values[(one == row) | (other == row)].max() for row in range(len(found))])


def score(denoiser: Denoiser, prompt: str, noise: torch.Tensor) -> float:
    """Return how memorised a prompt is: the largest similarity of any two starts' differences."""
    return float(alike(differences(denoiser, prompt, noise)).max())


def ssim(first: torch.Tensor, second: torch.Tensor, window: int = 7) -> torch.Tensor:
    """Return the mean structural similarity (Wang et al. 2004, Eq. 13) of pairs (n, c, h, w), over windows of even weight: (n,).

    The range of values is that of both together, over all pairs.
    """
    span = torch.maximum(first.max(), second.max()) - torch.minimum(first.min(), second.min())
    low, high = (0.01 * span) ** 2, (0.03 * span) ** 2

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(values, window, 1)

    a, b = mean(first), mean(second)
    variances = mean(first.square()) - a.square() + mean(second.square()) - b.square()
    both = mean(first * second) - a * b
    return ((2 * a * b + low) * (2 * both + high) / ((a.square() + b.square() + low) * (variances + high))).mean((1, 2, 3))


def neurons_of(
    denoiser: Denoiser,
    weights: dict[str, torch.Tensor],
    usual: dict[str, torch.Tensor],
    prompt: str,
    noise: torch.Tensor,
    tau: float,
    settings: Settings,
) -> Neurons:
    """Return the neurons that a prompt's memorisation needs; none if no start's difference is as similar as tau to another's."""
    before = differences(denoiser, prompt, noise)
    counting = alike(before) >= tau
    if not counting.any():
        return {name: set() for name in weights}

    def similarity(neurons: Neurons) -> float:
        with cut(weights, neurons):
            return float(ssim(before[counting], differences(denoiser, prompt, noise[counting])).max())

    active = activations(denoiser, weights, [prompt])
    return search(similarity, excitement(usual, active), {name: rows[0] for name, rows in active.items()}, tau, settings)


def search(
    similarity: Callable[[Neurons], float], excited: dict[str, torch.Tensor], active: dict[str, torch.Tensor], tau: float, settings: Settings
) -> Neurons:
    """Return the neurons that have to be cut for the similarity to fall below tau, or as far as the lowest threshold takes it (Alg. 3 and 4).

    Args:
        similarity: of what is predicted with neurons cut to what is predicted with all.
        excited: how far each neuron is off its usual activation, by layer.
        active: the activation itself.
        tau: what the similarity has to be below.
        settings: thresholds.
    """
    bound = reached = tau
    neurons: dict[str, set[int]] = {name: set() for name in excited}
    rounds = int((settings.theta - settings.theta_least) / settings.theta_step + 1e-9) + 1
    for number in range(rounds):
        neurons = chosen(excited, active, settings.theta - number * settings.theta_step, settings.top + number)
        reached = similarity(neurons)
        if reached < tau:
            break
    else:
        bound = reached
    for name in neurons:  # layer by layer
        without = neurons | {name: set()}
        if neurons[name] and similarity(without) < bound:
            neurons = without
    for name, rows in list(neurons.items()):  # neuron by neuron, the least excited first
        for row in sorted(rows, key=lambda index: float(excited[name][index])):
            without = neurons | {name: neurons[name] - {row}}
            if similarity(without) < bound:
                neurons = without
    return neurons
