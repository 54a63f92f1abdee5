"""UCE in rounds: find in closed form what still reads as the concept, map that to the anchor too, and again; no training.

"Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models". Chao Gong, Kai Chen, Zhipeng Wei, Jingjing Chen, Yu-Gang Jiang. ECCV 2024,
arXiv 2407.12383. Authors' code: github.com/CharlesGong12/RECE, Apache-2.0. Written here from the paper's mathematics.

After UCE has turned every key and value matrix W0 of cross-attention into W, a round finds for every erased state c the one that W reads most as W0
read c,

    c' = argmin sum_W |W c' - W0 c|^2 + lam' |c'|^2 = (lam' I + sum_W W^T W)^-1 (sum_W W^T W0) c,

and then edits W by UCE with c' for the concept. As every edit is W (I + D) (see `uce`), W = W0 P with one P for all layers, and

    c' = (lam' I + P^T G P)^-1 P^T G c,    G = sum_W W0^T W0:

G is summed once, and a round costs the same for 14 matrices as for 140: two Cholesky factors of a width x width matrix, in float64.

Faithful: both closed forms; the attack starts from the concept's own states in every round; each round edits the model as it is by then, keeping
what it preserves as it reads by then. Different: the tokens and their alignment, and the empty prompt that is always preserved, are those of our UCE;
the authors' code runs a detector after each round and keeps the best, here the number of rounds is set.

Cost: no pass of the UNet. Known failure: what the rounds find lies in the span that the concept shares with others, so that each round takes more
from what is not preserved; a small `attack_lam` finds states that no text encodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser, tensor_digest
from assay.erasure import uce
from assay.errors import Misconfigured, Unsupported
from assay.patch import Manifest, Patch


@dataclass(frozen=True)
class Settings:
    """Settings of RECE."""

    rounds: int = 3
    """Rounds after UCE (authors: 3 for nudity, 2 for unsafe concepts, 1 for styles and objects); 0 is UCE."""
    attack_lam: float = 0.1
    """Weight lam' of a small c' (authors: 0.1 for nudity, unsafe concepts and easy objects; 0.001 for styles and hard objects)."""
    erase_scale: float = 1.0
    """Weight of every erased token in UCE (Eq. 3: 1)."""
    preserve_scale: float = 0.1
    """Weight of every preserved token in UCE (authors: 0.1)."""
    lam: float = 0.1
    """Weight of staying near the old matrices in UCE (authors: 0.1)."""
    scale_lam: bool = False
    """Multiply `lam` by the mean of C C^T's diagonal and `attack_lam` by that of sum W^T W, so that they mean the same for every model."""
    tokens: Literal["all", "last"] = "all"
    """Which tokens to edit: all from the first that differs from the anchor through the padding, or the subject's last alone."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper-style": {"rounds": 1, "attack_lam": 1e-3},
    "paper-object": {"rounds": 1},
    "small": {"rounds": 1, "attack_lam": 1e-2, "preserve_scale": 1.0, "lam": 0.1, "scale_lam": True},
}
PROBE: dict[str, Any] = {}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings) -> dict[str, int]:
    """Return the passes that an erasure takes: none, for it reads the text encoder alone."""
    return {"passes": 0}


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
        denoiser: the model.
        concept: what to erase, what takes its place (an empty anchor: the empty prompt) and what must stay.
        settings: see `Settings`.
        seed: changes nothing: there is no randomness.
        progress: called after UCE and after every round with edits done, edits in all and how much of the concept the round's c' recovered.
        folder: not used: there is nothing to resume.

    Returns:
        A dense change of every key and value matrix of cross-attention.

    Raises:
        Misconfigured: a setting is out of range, or the anchor is the concept.
        Unsupported: the model has no cross-attention over its text encoder's states.
    """
    weights = check(denoiser, concept, settings)
    targets, anchors = uce.paired_states(denoiser, concept.pairs(), settings.tokens)
    preserved = uce.preserved_states(denoiser, concept.preserved(), settings.tokens)
    if odd := [name for name, weight in weights.items() if weight.shape[1] != targets.shape[1]]:
        raise Unsupported(f"{odd[0]} does not read the text encoder's states.", "Choose a method that trains, such as `esd`.")
    scales = {"erase_scale": settings.erase_scale, "preserve_scale": settings.preserve_scale, "lam": settings.lam}
    matrices = {name: weight.detach().to(targets.device).double() for name, weight in weights.items()}
    gram = sum(matrix.T @ matrix for matrix in matrices.values())
    assert isinstance(gram, torch.Tensor)
    lam = settings.attack_lam * (float(gram.diagonal().mean()) if settings.scale_lam else 1.0)
    product = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    states = targets
    for edit in range(settings.rounds + 1):
        recovered = 1.0
        if edit:
            states = adversarial(gram, product, targets, lam)
            recovered = share(gram, product, states, targets)
        product += product @ uce.solve(states, anchors, preserved, **scales, scale_lam=settings.scale_lam)
        if progress:
            progress(edit + 1, settings.rounds + 1, {"recovered": recovered})
    product.diagonal().sub_(1)
    tensors = {f"delta/{name}": (settings.strength * (matrix @ product)).float().cpu() for name, matrix in matrices.items()}
    base = {name: tensor_digest(denoiser.replaced.get(name, weight)) for name, weight in weights.items()}
    return Patch(Manifest(method="rece", settings=asdict(settings), made_for=f"erase {concept.name}", base=base), tensors)


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to change, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or the anchor is the concept.
    """
    if settings.rounds < 0 or not settings.attack_lam > 0:
        raise Misconfigured("`rounds` must not be negative and `attack_lam` must be positive.", "The authors' values are 1 to 3, and 0.1 or 0.001.")
    shared = {name: getattr(settings, name) for name in ("erase_scale", "preserve_scale", "lam", "scale_lam", "tokens", "strength")}
    return uce.check(denoiser, concept, uce.Settings(**shared))


def adversarial(gram: torch.Tensor, product: torch.Tensor, states: torch.Tensor, lam: float) -> torch.Tensor:
    """Return the states that the edited matrices read most as the old ones read `states`.

    Args:
        gram: G = sum of W0^T W0 over all matrices: float64, (width, width).
        product: P, where each edited matrix is W0 P: float64, (width, width).
        states: c: (n, width).
        lam: weight of small states.

    Returns:
        c': float64, (n, width).

    Raises:
        Misconfigured: `lam` is too small for the matrix to be inverted.
    """
    read = product.T @ gram  # sum W^T W0
    normal = read @ product
    normal.diagonal().add_(lam)
    factor, failed = torch.linalg.cholesky_ex((normal + normal.T) / 2)
    if failed:
        raise Misconfigured(f"`attack_lam` = {lam:g} is too small: the sum of the matrices cannot be inverted.", "Raise `attack_lam`.")
    return torch.cholesky_solve(read @ states.double().T, factor).T


def share(gram: torch.Tensor, product: torch.Tensor, found: torch.Tensor, states: torch.Tensor) -> float:
    """Return 1 - sum |W c' - W0 c|^2 / sum |W0 c|^2: how much of what the old matrices read from the concept is read from `found` now."""
    wanted = states.double()
    missing = found @ product.T - wanted
    return 1 - float((missing @ gram * missing).sum() / (wanted @ gram * wanted).sum())
