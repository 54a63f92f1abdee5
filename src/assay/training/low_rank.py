"""Low-rank adaptation (Hu et al. 2022, arXiv 2106.09685): a matrix W trains as W + up down, with few rows in between, and so stays small.

As in the paper `down` starts at random and `up` at zero, so that training starts at the model as it is.
"""

from __future__ import annotations

import torch

from assay.denoiser import Denoiser
from assay.errors import Misconfigured, Unsupported
from assay.noise import generator
from assay.training.finetune import Student


class LowRank(Student):
    """A model whose matrices train through changes of low rank, beside the model as it was.

    Args:
        denoiser: the model; its weights stay, as tensors stand in for them during a call.
        weights: the matrices to train, by their names in `Denoiser.weights`.
        rank: rows between up and down, at most those of the matrix.
        seed: of `down`, which is normal with the standard deviation 1 / rank.
    """

    def __init__(self, denoiser: Denoiser, weights: dict[str, torch.Tensor], rank: int, seed: int) -> None:
        """Make up and down for every matrix.

        Raises:
            Misconfigured: the rank is not positive.
            Unsupported: the model is in float16, or a weight is no matrix.
        """
        super().__init__(denoiser, {})
        if rank < 1:
            raise Misconfigured(f"`rank` must be at least 1; got {rank}.", "Small ranks such as 4 serve most purposes.")
        if odd := [name for name, weight in weights.items() if weight.ndim != 2]:
            raise Unsupported(f"{odd[0]} is no matrix.", "Choose another group.")
        self.weights = weights
        self.sign = 1.0
        for name, weight in weights.items():
            rows = min(rank, *weight.shape)
            down = torch.randn(rows, weight.shape[1], generator=generator(seed, "low rank", name)) / rank
            self.masters[f"{name}/down"] = down.to(weight.device).requires_grad_()
            self.masters[f"{name}/up"] = torch.zeros(weight.shape[0], rows, device=weight.device, requires_grad=True)

    def standing(self) -> dict[str, torch.Tensor]:
        """Return W + sign x up down for every matrix."""
        return {
            name: (weight.float() + self.sign * self.masters[f"{name}/up"] @ self.masters[f"{name}/down"]).to(weight.dtype)
            for name, weight in self.weights.items()
        }

    def changes(self, strength: float = 1.0) -> dict[str, torch.Tensor]:
        """Return the changes so far as entries of a patch, multiplied by `strength`."""
        entries = {}
        for name in self.weights:
            entries[f"low_rank/{name}/up"] = (self.sign * strength * self.masters[f"{name}/up"].detach()).cpu()
            entries[f"low_rank/{name}/down"] = self.masters[f"{name}/down"].detach().cpu().clone()
        return entries


def matrices(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return those weights that are matrices."""
    return {name: weight for name, weight in weights.items() if weight.ndim == 2}
