"""Finds the weights of feed-forward layers that matter more to memorised prompts than to the empty one, and prunes them; trains nothing.

"Memorized Images in Diffusion Models share a Subspace that can be Located and Deleted". Ruchika Chavhan, Ondrej Bohdal, Yongshuo Zong, Da Li, Timothy
Hospedales. 2024, arXiv 2406.18566; the score is that of "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), Sun et al., ICLR
2024, Eq. 1. Authors' code: github.com/ruchikachavhan/concept-prune, no licence. Written here from the mathematics.

With W the second linear map of a feed-forward layer (out, in), and X what enters it at one step of the sampling, a row for every position of every
image, each of length 1, the score of a weight is

    S_ij = | W_ij | || X_j ||_2        || X_j || the norm of a column, over all rows

taken over images of memorised prompts (S) and, with the same starts and as many, of the reference (R). At each of the first `joined` steps a weight
is memorisation's where S_ij is among the largest `sparsity` of its row i of S, and S_ij > R_ij. What is so at any of these steps becomes 0.

Faithful: score, rows of length 1, the choice by row, the comparison, the union, the empty prompt as reference, both halves of guidance as rows.
Different: `joined` is one number, where the authors set one for each set of prompts.

Cost: 2 x prompts x `seeds` x `joined` x 2 passes. Known failure: it closes the way from the prompt and leaves the image in the model, from which a
search of embeddings brings it back (Kowalczuk et al., arXiv 2507.16880: 72 % of images); so much pruned that this fails, nothing else is drawn well.
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
from assay.errors import Misconfigured, Unsupported
from assay.noise import derive
from assay.patch import Manifest, Patch
from assay.training.finetune import spread

Progress = Callable[[int, int, dict[str, float]], None]
BATCH = 16
"""Images a pass."""


@dataclass(frozen=True)
class Settings:
    """Settings of pruning by Wanda's score."""

    sparsity: float = 0.01
    """Share of each row's weights that count as important (authors' code: 0.01)."""
    joined: int = 10
    """Steps from the start of the sampling whose weights are pruned together (paper: the first few)."""
    reference: Literal["empty", "preserved"] = "empty"
    """What memorised prompts are held against: the empty prompt (authors' code), or what is preserved."""
    seeds: int = 1
    """Images of every memorised prompt (authors' code: 1)."""
    image_steps: int = 50
    """DDIM steps of an image, of which the first are looked at (authors' code: 50)."""
    image_guidance: float = 7.5
    """Scale of guidance of an image."""
    strength: float = 1.0
    """How much of a weight is taken away; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"sparsity": 0.6, "joined": 3, "seeds": 4, "image_steps": 15, "image_guidance": 4.0},
}
PROBE: dict[str, Any] = {"sparsity": 0.1, "joined": 1, "image_steps": 2}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes of an erasure of one memorised prompt."""
    return {"passes": 2 * settings.seeds * settings.joined * (1 if settings.image_guidance == 1 else 2)}


def erase(
    denoiser: Denoiser,
    concept: Concept,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Patch:
    """Make the patch that prunes what memorised prompts need; the model's weights are read, never written.

    Args:
        denoiser: the model.
        concept: memorised prompts, and what is preserved, if that is the reference.
        settings: see `Settings`.
        seed: of the images.
        progress: called after every batch of images; at the end with the share of weights that go.
        folder: not used: the sampling is short.

    Returns:
        A change of the second linear map of every feed-forward layer that takes single weights away.

    Raises:
        Misconfigured: a setting is out of range, or so small a share is no weight in any row.
        Unsupported: the model has no feed-forward layers.
    """
    weights = check(denoiser, settings)
    prompts = [prompt for prompt in dict.fromkeys(target for target, _ in concept.pairs()) for _ in range(settings.seeds)]
    others = spread([prompt for prompt in concept.preserved() if prompt], len(prompts), seed, "wanda") if settings.reference == "preserved" else None
    batches = -(-len(prompts) // BATCH)

    def report(side: int) -> Callable[[int], None]:
        return lambda done: progress(side * batches + done, 2 * batches + 1, {}) if progress else None

    norms = column_norms(denoiser, list(weights), prompts, settings, seed, report(0))
    reference = column_norms(denoiser, list(weights), others or [""] * len(prompts), settings, seed, report(1))
    masks = {
        name: torch.stack([chosen(weight, *both, settings.sparsity) for both in zip(norms[name], reference[name], strict=True)]).any(0)
        for name, weight in weights.items()
    }
    if progress:
        gone, whole = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
        progress(2 * batches + 1, 2 * batches + 1, {"pruned": gone / whole})
    changes = {f"delta/{name}": (-settings.strength * weight.float() * masks[name]).cpu() for name, weight in weights.items()}
    base = {name: tensor_digest(denoiser.replaced.get(name, weight)) for name, weight in weights.items()}
    return Patch(Manifest(method="wanda", settings=asdict(settings), made_for=f"erase {concept.name}", base=base), changes)


def check(denoiser: Denoiser, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the second linear maps of the feed-forward layers, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or so small a share is no weight in any row.
        Unsupported: the model has no feed-forward layers.
    """
    if settings.reference not in ("empty", "preserved"):
        raise Misconfigured(f"There is no `reference` {settings.reference}.", "Choose empty or preserved.")
    if not 0 < settings.sparsity <= 1:
        raise Misconfigured("`sparsity` lies in (0, 1].", "The authors' is 0.01.")
    if not (1 <= settings.joined <= settings.image_steps <= len(denoiser.alphas_cumprod)) or settings.seeds < 1:
        raise Misconfigured("`joined` and `seeds` are at least 1, and `joined` at most `image_steps`.", "The authors sample 50 steps.")
    weights = {name: weight for name, weight in denoiser.group("not_cross_attention").items() if name.endswith(".ff.net.2.weight")}
    if not weights:
        raise Unsupported(f"{denoiser.name} has no feed-forward layers whose second map could be pruned.", "Use `nemo`.")
    if not any(int(settings.sparsity * weight.shape[1]) for weight in weights.values()):
        raise Misconfigured("So small a `sparsity` is no weight in any row.", f"The longest row has {max(w.shape[1] for w in weights.values())}.")
    return weights


@contextmanager
def entering(denoiser: Denoiser, names: Sequence[str]) -> Generator[list[dict[str, torch.Tensor]]]:
    """While active, every pass adds to the list what enters each linear map, by the name of its weight."""
    passes: list[dict[str, torch.Tensor]] = []

    def listen(name: str) -> Any:
        module = denoiser.unet.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))

        def hear(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            if not passes or name in passes[-1]:
                passes.append({})
            passes[-1][name] = given[0].detach()

        return module.register_forward_pre_hook(hear)

    handles = [listen(name) for name in names]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def column_norms(
    denoiser: Denoiser, names: Sequence[str], prompts: Sequence[str], settings: Settings, seed: int, report: Callable[[int], None]
) -> dict[str, torch.Tensor]:
    """Return the norm of every column of what enters linear maps at each of the first steps: by name, (steps, in), float64.

    Args:
        denoiser: the model.
        names: of the weights.
        prompts: one an image.
        settings: how images are sampled.
        seed: of the images' starts.
        report: called with the batches done.
    """
    squares = {name: [torch.zeros(())] * settings.joined for name in names}
    for done, first in enumerate(range(0, len(prompts), BATCH), 1):
        rows = range(first, min(first + BATCH, len(prompts)))
        seeds = [derive(seed, "wanda", row) for row in rows]
        with entering(denoiser, names) as passes:
            options: dict[str, Any] = {"steps": settings.image_steps, "guidance": settings.image_guidance, "stop": settings.joined}
            denoiser.sample([prompts[row] for row in rows], seeds, batch=BATCH, **options)
        for step, heard in enumerate(passes):
            for name, entered in heard.items():
                unit = torch.nn.functional.normalize(entered.flatten(0, -2).double(), dim=1)
                squares[name][step] = squares[name][step].to(unit) + unit.square().sum(0)
        report(done)
    return {name: torch.stack(steps).sqrt() for name, steps in squares.items()}


def chosen(weight: torch.Tensor, norms: torch.Tensor, reference: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return which weights are memorisation's at one step: bool, (out, in).

    Args:
        weight: of the linear map: (out, in).
        norms: of the columns of what enters it for memorised prompts: (in,).
        reference: the same for the reference: (in,).
        sparsity: share of each row that is important, rounded down to whole weights.
    """
    size = weight.detach().double().abs()
    scores = size * norms
    important = torch.zeros_like(scores, dtype=torch.bool)
    important.scatter_(1, scores.topk(int(sparsity * scores.shape[1]), dim=1).indices, True)
    return important & (scores > size * reference)
