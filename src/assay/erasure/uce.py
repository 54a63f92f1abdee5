"""Rewrites what cross-attention reads from a concept's words in closed form, so that they mean the anchor; no training.

"Unified Concept Editing in Diffusion Models". Rohit Gandikota, Hadas Orgad, Yonatan Belinkov, Joanna Materzynska, David Bau. WACV 2024, arXiv
2308.14761. Authors' code: github.com/rohitgandikota/unified-concept-editing, MIT. Written here from the paper's mathematics.

For every key and value matrix W0 of cross-attention, Eq. 7 with a ridge lam that keeps W near W0:

    W = (lam W0 + sum_e s_e v c^T + sum_p s_p W0 c_p c_p^T) (lam I + sum_e s_e c c^T + sum_p s_p c_p c_p^T)^-1,   v = W0 c*

with c the encoder states of the concept's tokens (`targets`), c* those of the anchor (`anchors`), c_p those to be kept (`preserved`), s_e
`erase_scale` and s_p `preserve_scale`. It minimises s_e |W c - v|^2 + s_p |W c_p - W0 c_p|^2 + lam |W - W0|^2. Since v = W0 c*, W0 comes out to the
left, and

    W = W0 (I + D),   D = (sum_e s_e (c* - c) c^T) (lam I + sum_e s_e c c^T + sum_p s_p c_p c_p^T)^-1:

D is the same for every layer. One Cholesky factor of a width x width matrix in float64 serves keys and values of all layers, so that the solve
costs the same for 14 matrices as for 140; forming D from differences makes it exactly zero where target and anchor agree.

Faithful: the equation; the edited matrices; all tokens through the padding, which are end tokens and carry the concept (authors' first code), or
the last token of the subject alone (their code of 2025). Different: tokens are aligned from the end, words to words, the end token to the end
token, each pad to the pad at its own place, from the first token in which two prompts differ, so that templates with the concept in the middle work
(for a bare name the last token is the authors'); the begin token is never a target or an anchor (the authors' empty anchor is the begin token; ours
the end token, or zeros where a pipeline gives zeros for the empty prompt), but it is preserved; the empty prompt is always preserved, as encoded and
as guidance gives it, or guidance drifts; s_p does not depend on the number of concepts. On
SDXL c is both encoders' states side by side; the pooled embedding is left alone.

Erasing maps to an anchor, moderating to the empty prompt (an empty anchor), and both take any number of concepts at once (`Concept.parts`), each with
its own anchor, in one solve; `uce_debias` evens out attributes.

Cost: no pass of the UNet; the encoding of all prompts, one factorisation, one product a matrix. Known failure: keys and values read no more
dimensions than the text is wide, so that many concepts, or a lam far below the states' mean square, spill over onto what is not preserved; what
other words say of the concept stays. And the sum counts states: where few prompts are erased and many preserved, or the erased ones lie in many
directions, the states go little of the way to their anchors at equal weights. On the built-in model concepts whose states go 42 % of it or more lose
most of their pictures, and those whose states go 34 % or less keep most of theirs (`reach` in `benchmarks/uce-scale.json`); a larger s_e takes them
further, and moves what is preserved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from assay.concept import Concept
from assay.denoiser import Denoiser, tensor_digest
from assay.errors import Misconfigured, Unsupported
from assay.patch import Manifest, Patch


@dataclass(frozen=True)
class Settings:
    """Settings of UCE."""

    erase_scale: float = 1.0
    """Weight s_e of every erased token (Eq. 7: 1). Lower it where unrelated prompts become noisy; raise it where few stand against many preserved."""
    preserve_scale: float = 1.0
    """Weight s_p of every preserved token (Eq. 7: 1)."""
    lam: float = 0.1
    """Weight of staying near the old matrices, which makes the sum invertible (authors' first code: 0.1; their code of 2025: 0.5)."""
    scale_lam: bool = False
    """Multiply `lam` by the mean square of the states, trace(C C^T) / width, so that it means the same for every encoder and number of prompts."""
    tokens: Literal["all", "last"] = "all"
    """Which tokens to edit: all from the first that differs from the anchor through the padding, or the subject's last alone."""
    strength: float = 1.0
    """Factor of the whole change; 0 changes nothing."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {"lam": 0.1, "scale_lam": True, "tokens": "all"},
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
        progress: called after every matrix with matrices done, matrices in all and the relative size of the change.
        folder: not used: there is nothing to resume.

    Returns:
        A dense change of every key and value matrix of cross-attention.

    Raises:
        Misconfigured: a setting is out of range, or the anchor is the concept.
        Unsupported: the model has no cross-attention over its text encoder's states.
    """
    weights = check(denoiser, concept, settings)
    targets, anchors = paired_states(denoiser, concept.pairs(), settings.tokens)
    preserved = preserved_states(denoiser, concept.preserved(), settings.tokens)
    if odd := [name for name, weight in weights.items() if weight.shape[1] != targets.shape[1]]:
        raise Unsupported(f"{odd[0]} does not read the text encoder's states.", "Choose a method that trains, such as `esd`.")
    scales = {"erase_scale": settings.erase_scale, "preserve_scale": settings.preserve_scale, "lam": settings.lam}
    left, right = factors(targets, anchors, preserved, **scales, scale_lam=settings.scale_lam)
    tensors, base = {}, {}
    for done, (name, weight) in enumerate(weights.items(), 1):
        delta = settings.strength * applied(weight.detach(), left, right)
        tensors[f"delta/{name}"] = delta.float().cpu()
        base[name] = tensor_digest(denoiser.replaced.get(name, weight))
        if progress:
            progress(done, len(weights), {"relative_change": float(delta.norm() / weight.detach().to(delta).norm())})
    return Patch(Manifest(method="uce", settings=asdict(settings), made_for=f"erase {concept.name}", base=base), tensors)


def check(denoiser: Denoiser, concept: Concept, settings: Settings) -> dict[str, torch.Tensor]:
    """Return the weights to change, if everything is in order.

    Raises:
        Misconfigured: a setting is out of range, or the anchor is the concept.
    """
    if settings.tokens not in ("all", "last"):
        raise Misconfigured(f"The setting `tokens` must be all or last; got `{settings.tokens}`.", "Choose one of them.")
    if not (settings.lam > 0 and settings.erase_scale >= 0 and settings.preserve_scale >= 0):
        raise Misconfigured("`lam` must be positive, and `erase_scale` and `preserve_scale` not negative.", "The paper's values are 0.1, 1 and 1.")
    if all(target == anchor for target, anchor in concept.pairs()):
        raise Misconfigured("The concept and its anchor are the same prompts, so there is nothing to erase.", "Give another anchor.")
    return denoiser.group("cross_attention.kv")


def solve(targets: torch.Tensor, anchors: torch.Tensor, preserved: torch.Tensor, **scales: Any) -> torch.Tensor:
    """Solve Eq. 7 for all layers at once; arguments as of `factors`.

    Returns:
        D, where W = W0 (I + D): float64, (width, width).
    """
    left, right = factors(targets, anchors, preserved, **scales)
    return left if right is None else left @ right


def factors(
    targets: torch.Tensor,
    anchors: torch.Tensor,
    preserved: torch.Tensor,
    *,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
    lam: float = 0.1,
    scale_lam: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Solve Eq. 7 for all layers at once, as a product of two factors with one row a state that is erased.

    With C the targets, C* what takes their place and G the sum of all outer products, D = s_e (C* - C)^T C G^-1, which has no more rank than C rows.

    Args:
        targets: states to be erased, C: (n, width).
        anchors: states that take their place, C*: (n, width).
        preserved: states to be kept: (m, width).
        erase_scale: s_e.
        preserve_scale: s_p.
        lam: weight of the old matrices.
        scale_lam: multiply `lam` by the mean of the matrix's diagonal.

    Returns:
        L and R, where W = W0 (I + L R): float64, (width, n) and (n, width); where n is large, L R itself and None.

    Raises:
        Misconfigured: `lam` is too small for the matrix to be inverted.
    """
    source = targets.double()
    gram = erase_scale * source.T @ source  # (width, width)
    for part in preserved.split(8192):
        gram += preserve_scale * part.double().T @ part.double()
    gram.diagonal().add_(lam * float(gram.diagonal().mean()) if scale_lam else lam)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        raise Misconfigured(f"`lam` = {lam:g} is too small: the sum of the states cannot be inverted.", "Raise `lam`.")
    left = erase_scale * (anchors.double() - source).T
    if 2 * len(source) < len(gram):
        return left, torch.cholesky_solve(source.T, factor).T  # gram is symmetric
    return torch.cholesky_solve((left @ source).T, factor).T, None


def applied(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor | None) -> torch.Tensor:
    """Return W0 L R, the change of one matrix (out, width), narrow factor first: float64."""
    change = weight.to(left) @ left
    return change if right is None else change @ right


def paired_states(denoiser: Denoiser, pairs: Sequence[tuple[str, str]], tokens: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the encoder states of the targets' tokens and of those that take their place: (n, width) each.

    Raises:
        Misconfigured: no target differs from its anchor.
    """
    end = denoiser.family.encoders[0][0].eos_token_id
    sides = [list(side) for side in zip(*pairs, strict=True)]
    ids = [denoiser.family.tokenize(side)[0].tolist() for side in sides]
    places = [align(target, anchor, end, tokens) for target, anchor in zip(*ids, strict=True)]
    if not any(rows for rows, _ in places):
        raise Misconfigured("The concept and its anchor are the same prompts, so there is nothing to erase.", "Give another anchor.")
    states = [_movable(denoiser, side) for side in sides]
    targets, anchors = (torch.cat([states[side][index, place[side]] for index, place in enumerate(places)]) for side in (0, 1))
    return targets, anchors


def preserved_states(denoiser: Denoiser, prompts: Sequence[str], tokens: str) -> torch.Tensor:
    """Return the states of prompts that must stay: (m, width). All tokens; or the last word of each, and all tokens of the empty prompt."""
    states = _movable(denoiser, prompts)  # (b, tokens, width)
    if "" in prompts and not torch.equal(empty := _as_encoded(denoiser, ""), _movable(denoiser, [""])):
        states, prompts = torch.cat([states, empty]), [*prompts, ""]
    if tokens == "all":
        return states.flatten(0, 1)
    ends = (denoiser.family.tokenize(prompts)[0] == denoiser.family.encoders[0][0].eos_token_id).int().argmax(1)
    return torch.cat([row if end == 1 else row[[end - 1]] for row, end in zip(states, ends.tolist(), strict=True)])


def align(target: list[int], anchor: list[int], end: int, tokens: str) -> tuple[list[int], list[int]]:
    """Say which tokens of a target are edited, and which of its anchor take their place.

    Args:
        target: token ids, padded.
        anchor: token ids, padded to the same length.
        end: id of the end token.
        tokens: `all` or `last`.

    Returns:
        Positions in the target and in the anchor, of equal number: none if the prompts are the same.
    """
    first = next((place for place, (mine, other) in enumerate(zip(target, anchor, strict=True)) if mine != other), None)
    if first is None:
        return [], []
    target_end, anchor_end = target.index(end), anchor.index(end)
    rows = list(range(first, len(target)))
    if tokens == "last":
        shared = 0
        while shared < min(target_end, anchor_end) - first and target[target_end - 1 - shared] == anchor[anchor_end - 1 - shared]:
            shared += 1
        rows = [max(first, target_end - 1 - shared)]
    return rows, [max(row - target_end + anchor_end, first) if row <= target_end else max(row, anchor_end) for row in rows]


def _as_encoded(denoiser: Denoiser, prompt: str) -> torch.Tensor:
    with torch.no_grad():  # `conditioning` gives an empty prompt as guidance does, which for SDXL may be zeros
        states = denoiser.family.encode(denoiser.family.tokenize([prompt])).states
    return states if states.device.type == "cuda" else states.cpu()


def _movable(denoiser: Denoiser, prompts: Sequence[str]) -> torch.Tensor:
    states = denoiser.conditioning(prompts).states
    return states if states.device.type == "cuda" else states.cpu()  # MPS has no float64
