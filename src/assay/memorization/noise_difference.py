"""Magnitude of the text-conditional noise: how far a prompt pulls the prediction, and which of its tokens pull.

"Detecting, Explaining, and Mitigating Memorization in Diffusion Models". Yuxin Wen, Yuchen Liu, Chen Chen, Lingjuan Lyu. ICLR 2024. Authors' code:
github.com/YuxinWenRick/diffusion_memorization, no licence. Written here from the paper.

    d = 1/T sum_t | e(x_t, t, c) - e(x_t, t, empty) |_2,        SS_i = 1/T sum_t | grad_{c_i} |e(x_t, t, c) - e(x_t, t, empty)|_2 |_2

averaged over draws; d needs only its first step. SS_i, the significance of token i (their Sec. 4.3), is the norm of the gradient with respect to that
token's embedding; here at the first step, as in the authors' code. `states` are the text encoder's outputs, which is what they differentiate;
`embeddings` are its inputs, through which a word counts also where it acts through the end token and the pads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from assay.denoiser import Denoiser
from assay.families.sd import Conditioning
from assay.memorization.trace import Trace, ends_of
from assay.noise import normal


def first(trace: Trace) -> np.ndarray:
    """Return the magnitude at the first step: float64, (n,)."""
    return trace.magnitudes[:, :, 0].mean(1).numpy()


def mean(trace: Trace) -> np.ndarray:
    """Return d, the mean over all steps: float64, (n,)."""
    return trace.magnitudes.mean((1, 2)).numpy()


def significance(denoiser: Denoiser, prompt: str, seeds: Sequence[int], t: int, *, at: str = "states") -> torch.Tensor:
    """Return how much every token moves the magnitude at pure noise: the gradient's norm, averaged over draws: (tokens,).

    Args:
        denoiser: the model.
        prompt: of which the tokens are.
        seeds: of the noise, one a draw.
        t: the sampler's first timestep.
        at: `states`, or `embeddings`; those of two encoders count together.
    """
    count, plain = len(seeds), denoiser.conditioning([prompt] * len(seeds))
    ids = [tokens.repeat(count, 1) for tokens in denoiser.family.tokenize([prompt])]
    leaves = denoiser.family.embed(ids) if at == "embeddings" else [plain.states]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    x = normal(denoiser.latent_shape, seeds).to(leaves[0])
    times = torch.full((count,), t, device=x.device)
    with torch.no_grad():
        empty = denoiser.predict(x, times, denoiser.conditioning([""]).expand(count))
    with torch.enable_grad():
        told = denoiser.family.encode(ids, leaves) if at == "embeddings" else Conditioning(leaves[0], plain.extra)
        magnitude = (denoiser.predict(x, times, told) - empty).flatten(1).norm(dim=1).sum()
        gradients = torch.autograd.grad(magnitude, leaves)
    return torch.stack([gradient.square().sum(2) for gradient in gradients]).sum(0).sqrt().mean(0)


def marked(denoiser: Denoiser, prompt: str, significances: torch.Tensor) -> tuple[str, str]:
    """Return a prompt with its triggering tokens in brackets, and the three heaviest with their shares.

    A token is marked where its significance is at least the mean of the prompt's tokens and one standard deviation; begin token, end token and pads
    are left out.
    """
    tokenizer, _ = denoiser.family.encoders[0]
    (end,) = ends_of(denoiser, [prompt]).tolist()
    ids = denoiser.family.tokenize([prompt])[0][0].tolist()[1:end]
    if not ids:
        return prompt, ""
    values = significances[1:end].double().cpu().numpy()
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
    limit = values.mean() + values.std()
    text = ""
    for name, value in zip(names, values, strict=True):
        word, last = name.removesuffix("</w>"), name.endswith("</w>")
        text += (f"[{word}]" if value >= limit and len(values) > 1 else word) + (" " if last else "")
    shares = values / max(values.sum(), 1e-30)
    order = np.argsort(-shares, kind="stable")[:3]
    return text.replace("][", "").strip(), ", ".join(f"{names[place].removesuffix('</w>')} {shares[place]:.0%}" for place in order)
