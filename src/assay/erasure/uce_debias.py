"""Evens out which attributes a model gives a concept by UCE's closed form, in rounds of drawing, counting and editing.

"Unified Concept Editing in Diffusion Models". Rohit Gandikota, Hadas Orgad, Yonatan Belinkov, Joanna Materzynska, David Bau. WACV 2024, arXiv
2308.14761, debiasing. Authors' code: github.com/rohitgandikota/unified-concept-editing, MIT. Written here from the paper's mathematics.

The token states c of the concept, asked for by its name alone, are mapped, in every key and value matrix W0 of cross-attention, to

    v = W0 (c + sum_i alpha_i a_i),

with a_i the state of attribute i's last word, by the same solve as `uce`, which gives one change for all layers. The alpha_i start at zero; in each
round the model as edited draws `images` of the concept, the share r_i of each attribute among them is counted, and alpha_i grows by `step` x
(wanted_i - r_i). As wanted and counted shares both sum to one, the alphas sum to zero, and what all attributes' states have in common is not added.
It ends when no share is off by `tolerance` or more, or after `rounds`.

Faithful: the target, the rule for alpha, the stop. Different: attributes are counted by the model itself as it was, as a classifier of noise (Li et
al. 2023, arXiv 2303.16203, Alg. 1), and not by CLIP, so that no other network is needed; the images of a round are drawn from the same seeds in every
round, which leaves the edit alone to move the shares; the best round's edit is kept (the later of equals), not the last.

Cost: a round draws `images` x `image_steps` x 2 passes and classifies with `images` x attributes x `trials`. Known failure: one alpha moves all
images of the concept together, so that shares jump where the model draws little variety; what the classifier cannot tell apart cannot be evened out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser, tensor_digest
from assay.erasure import uce
from assay.errors import Misconfigured, Unsupported
from assay.noise import derive, generator
from assay.patch import Manifest, Patch
from assay.patched import Patched


@dataclass(frozen=True)
class Settings:
    """Settings of debiasing by UCE."""

    attributes: tuple[str, ...] = ("male", "female")
    """The attributes to even out, each a word or two."""
    shares: tuple[float, ...] = ()
    """The share that each should have; empty means equal shares."""
    template: str = "{attribute} {concept}"
    """How a prompt names both: what an image is compared with when it is classified."""
    rounds: int = 30
    """Rounds at most (authors' code: 30)."""
    step: float = 1.0
    """How much a share that is off by 1 adds to its alpha (authors' code of 2025: 1)."""
    tolerance: float = 0.05
    """Largest difference from the wanted shares at which it stops (authors' code: 0.05)."""
    images: int = 10
    """Images drawn a round (authors' code: 10)."""
    image_steps: int = 20
    """DDIM steps of an image (authors' code: 20)."""
    image_guidance: float = 7.5
    """Scale of guidance of an image."""
    trials: int = 16
    """Timesteps and noises that an image is classified by; the same for every attribute."""
    erase_scale: float = 1.0
    """Weight of every edited token."""
    preserve_scale: float = 1.0
    """Weight of every preserved token."""
    lam: float = 0.1
    """Weight of staying near the old matrices."""
    scale_lam: bool = False
    """Multiply `lam` by the mean square of the states, so that it means the same for every encoder and number of prompts."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "attributes": ("twemoji style", "noto style", "fluent style", "openmoji style"),
        "template": "{concept}, {attribute}",
        "rounds": 6,
        "images": 16,
        "image_steps": 15,
        "image_guidance": 4.0,
        "trials": 8,
        "scale_lam": True,
    },
}
PROBE: dict[str, Any] = {"attributes": ("green", "blue"), "rounds": 1, "images": 2, "image_steps": 2, "trials": 1, "tolerance": 0.0}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that it takes at most: every round draws and classifies, and a last drawing judges the last edit."""
    drawn = settings.images * settings.image_steps * (1 if settings.image_guidance == 1 else 2)
    return {"passes": (settings.rounds + 1) * (drawn + settings.images * len(settings.attributes) * settings.trials)}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch that debiases a concept; the model's weights are as they were afterwards.

    Args:
        denoiser: the model.
        concept: what to debias and what must stay; its anchor is not used.
        settings: see `Settings`.
        seed: of the images and of the noise that they are classified by.
        progress: called after every round with rounds done, rounds in all and the largest difference from the wanted shares.
        folder: not used: a round takes seconds to a minute.

    Returns:
        A dense change of every key and value matrix of cross-attention: zero if the shares are as wanted from the start.

    Raises:
        Misconfigured: a setting is out of range.
        Unsupported: the model has no cross-attention over its text encoder's states.
    """
    weights = check(denoiser, concept, settings)
    wanted = torch.tensor(settings.shares or [1 / len(settings.attributes)] * len(settings.attributes))
    prompts = [phrase for phrase, _ in named(concept)]
    targets, _ = uce.paired_states(denoiser, [(prompt, "") for prompt in prompts], "all")
    if odd := [name for name, weight in weights.items() if weight.shape[1] != targets.shape[1]]:
        raise Unsupported(f"{odd[0]} does not read the text encoder's states.", "No other method debiases it yet.")
    preserved = uce.preserved_states(denoiser, concept.preserved(), "all")
    directions = torch.cat([uce.preserved_states(denoiser, [attribute], "last") for attribute in settings.attributes]).double()
    scales: dict[str, Any] = {name: getattr(settings, name) for name in ("erase_scale", "preserve_scale", "lam", "scale_lam")}
    base = {name: tensor_digest(denoiser.replaced.get(name, weight)) for name, weight in weights.items()}
    kept = {name: weight.detach().to(targets.device, torch.float64, copy=True) for name, weight in weights.items()}

    def patch(alphas: torch.Tensor, strength: float) -> Patch:
        shifted = targets.double() + alphas.to(directions) @ directions
        change = uce.solve(targets, shifted, preserved, **scales)
        tensors = {f"delta/{name}": (strength * (weight @ change)).float().cpu() for name, weight in kept.items()}
        return Patch(Manifest(method="uce_debias", settings=asdict(settings), made_for=f"debias {concept.name}", base=base), tensors)

    alphas = best = torch.zeros(len(wanted))
    least = float("inf")
    for done in range(settings.rounds + 1):
        with Patched(denoiser, [(patch(alphas, 1.0), 1.0)]):
            latents = draw(denoiser, prompts, settings, seed)
        gap = wanted - counted(denoiser, concept, latents, settings, seed)
        off = float(gap.abs().max())
        if off <= least:
            least, best = off, alphas
        ended = off < settings.tolerance or done == settings.rounds
        if progress:
            progress(settings.rounds + 1 if ended else done + 1, settings.rounds + 1, {"off": off})
        if ended:
            break
        alphas = alphas + settings.step * gap
    return patch(best, settings.strength)


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to change, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range.
    """
    count = len(settings.attributes)
    if count < 2 or len(set(settings.attributes)) < count or not all(attribute.strip() for attribute in settings.attributes):
        raise Misconfigured("Debiasing needs at least two different `attributes`.", "Give them separated by commas.")
    if settings.shares and (len(settings.shares) != count or min(settings.shares) < 0 or abs(sum(settings.shares) - 1) > 1e-3):
        raise Misconfigured("`shares` must be one for each attribute and sum to 1.", "Leave them out for equal shares.")
    try:
        filled = {settings.template.format(attribute=attribute, concept="c") for attribute in settings.attributes}
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise Misconfigured(f"`template` cannot be filled: {error}.", "Write {attribute} and {concept} where they belong.") from error
    if len(filled) < count:
        raise Misconfigured(f"`{settings.template}` says the same of every attribute.", "Write {attribute} and {concept} where they belong.")
    if min(settings.images, settings.image_steps, settings.trials) < 1 or settings.rounds < 0 or settings.image_steps > len(denoiser.alphas_cumprod):
        raise Misconfigured("`images`, `image_steps` and `trials` must be at least 1.", "`image_steps` can be as large as the timesteps.")
    if not (settings.lam > 0 and settings.erase_scale >= 0 and settings.preserve_scale >= 0 and settings.step > 0 and settings.tolerance >= 0):
        raise Misconfigured("`lam` and `step` must be positive, scales and `tolerance` not negative.", "The authors' values are 0.1 and 1, and 1.")
    return denoiser.group("cross_attention.kv")


def named(concept: Concept) -> list[tuple[str, str]]:
    """Return the prompt that asks for the concept, or for each of its members, and leaves the attributes open; with the name in it."""
    return [(part.phrase(name), name) for part in concept.parts or (concept,) for name in part.members or (part.name,)]


def draw(denoiser: Denoiser, prompts: Sequence[str], settings: Settings, seed: int) -> torch.Tensor:
    """Let the model draw the concept: latents (images, c, h, w), the same noise in every round."""
    chosen = [prompts[number % len(prompts)] for number in range(settings.images)]
    seeds = [derive(seed, "uce_debias", number) for number in range(settings.images)]
    return denoiser.sample(chosen, seeds, steps=settings.image_steps, guidance=settings.image_guidance)


@torch.no_grad()
def counted(denoiser: Denoiser, concept: Concept, latents: torch.Tensor, settings: Settings, seed: int) -> torch.Tensor:
    """Count which attribute's prompt predicts the noise in each latent best: shares, (attributes,)."""
    names = [name for _, name in named(concept)]
    rng = generator(seed, "uce_debias", "trials")
    t = ((torch.arange(settings.trials) + torch.rand(settings.trials, generator=rng)) / settings.trials * len(denoiser.alphas_cumprod)).long()
    t = t.clamp(max=len(denoiser.alphas_cumprod) - 1).to(denoiser.device)
    noise = torch.randn((settings.trials, *denoiser.latent_shape), generator=rng).to(denoiser.device)
    errors = torch.empty(len(latents), len(settings.attributes))
    for row, latent in enumerate(latents):
        name = names[row % len(names)]
        for place, attribute in enumerate(settings.attributes):
            conditioning = denoiser.conditioning([settings.template.format(attribute=attribute, concept=name)]).expand(settings.trials)
            errors[row, place] = denoiser.loss(latent.expand_as(noise), t, noise, conditioning).mean()
    return torch.bincount(errors.argmin(1), minlength=len(settings.attributes)) / len(latents)
