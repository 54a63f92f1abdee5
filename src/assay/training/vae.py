"""Train an AutoencoderKL (Rombach et al. 2022, Sec. 3.1) without a pretrained perceptual network.

Loss: L1 + L2 + `edges` x L1 of Sobel gradients + `kl` x KL(q(z|x) || N(0, 1)) per element. Afterwards the per-channel shift and scale of the
latents are folded into `quant_conv` and `post_quant_conv`, so that latents have mean 0 and deviation 1 and `scaling_factor` is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from assay.denoiser import Denoiser
from assay.noise import normal
from assay.training.loop import Progress, Run, Schedule, trainable


@dataclass(frozen=True)
class VAESettings:
    """The autoencoder's shape and loss."""

    widths: tuple[int, ...] = (24, 48, 96)
    """Channels at each resolution; the factor is 2 ** (levels - 1)."""
    latent_channels: int = 4
    """Channels of the latent."""
    edges: float = 0.25
    """Weight of the L1 distance between Sobel gradients, which stands in for a perceptual loss."""
    kl: float = 5e-5
    """Weight of the KL divergence per latent element."""
    schedule: Schedule = Schedule(steps=1700, batch=16, learning_rate=2e-3, decay=0.4)
    """How long and how fast to train."""
    refinement: Schedule = Schedule(steps=1500, batch=16, learning_rate=1e-3, decay=0.6)
    """How long and how fast to train the decoder further on the latents of the finished encoder."""


def build(settings: VAESettings, size: int) -> AutoencoderKL:
    """Make the untrained autoencoder."""
    levels = len(settings.widths)
    shape: dict[str, Any] = {
        "sample_size": size,
        "latent_channels": settings.latent_channels,
        "block_out_channels": settings.widths,
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "scaling_factor": 1.0,
    }
    return AutoencoderKL(**shape)


def sobel(images: torch.Tensor) -> torch.Tensor:
    """Horizontal and vertical Sobel gradients of each channel, scaled to the range of the images: (b, 2 * c, h, w)."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
    kernels = torch.stack([kernel, kernel.T])[:, None].to(images)
    flat = F.conv2d(images.reshape(-1, 1, *images.shape[2:]), kernels)
    return flat.reshape(images.shape[0], -1, *flat.shape[2:])


def train(
    vae: Any,
    pixels: np.ndarray,
    settings: VAESettings,
    *,
    seed: int,
    folder: Path | None = None,
    plan: str = "",
    progress: Progress | None = None,
) -> list[float]:
    """Train `vae` in place on uint8 images (n, s, s, 3), then standardise its latents; return the losses."""

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        images = _draw(pixels, settings.schedule.batch, rng).to(vae.device)
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=rng).to(vae.device)
        distance = _distance(vae.decode(latents).sample, images, settings.edges)
        return distance + settings.kl * posterior.kl().mean() / latents[0].numel()

    vae.train().requires_grad_(True)
    run = Run(trainable(vae), loss, settings.schedule, seed=seed, folder=folder, plan=plan)
    losses = run.run(progress=progress)
    run.use_average()
    vae.eval().requires_grad_(False)
    standardise(vae, pixels)
    return losses


def refine(
    vae: Any,
    pixels: np.ndarray,
    settings: VAESettings,
    *,
    seed: int,
    denoised: tuple[torch.Tensor, np.ndarray] | None = None,
    folder: Path | None = None,
    plan: str = "",
    progress: Progress | None = None,
) -> list[float]:
    """Train the decoder of a trained `vae` further, in place, on uint8 images (n, s, s, 3); return the losses.

    The encoder stays, so latents stay: a denoiser trained on them, before or after, fits. The decoder reads the latents' means, as pipelines do.
    With `denoised`, latents as a denoiser makes them (m, c, h, w) and the images they ought to become (m, s, s, 3), half of every batch is of those.
    """
    vae.eval().requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.train().requires_grad_(True)
    made = 0 if denoised is None else settings.refinement.batch // 2

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        images = _draw(pixels, settings.refinement.batch - made, rng).to(vae.device)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        if denoised is not None:
            rows = torch.randint(len(denoised[0]), (made,), generator=rng)
            latents = torch.cat([latents, denoised[0][rows].to(latents)])
            images = torch.cat([images, _scaled(denoised[1][rows.numpy()]).to(images)])
        return _distance(vae.decode(latents).sample, images, settings.edges)

    run = Run(trainable(vae), loss, settings.refinement, seed=seed, folder=folder, plan=plan)
    losses = run.run(progress=progress)
    run.use_average()
    vae.eval().requires_grad_(False)
    return losses


def _draw(pixels: np.ndarray, batch: int, rng: torch.Generator) -> torch.Tensor:
    rows = torch.randint(len(pixels), (batch,), generator=rng)
    images = _scaled(pixels[rows.numpy()])
    flipped = torch.rand(batch, generator=rng) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def _scaled(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _distance(decoded: torch.Tensor, images: torch.Tensor, edges: float) -> torch.Tensor:
    error = decoded - images
    return error.abs().mean() + error.square().mean() + edges * sobel(error).abs().mean()


def denoised(
    denoiser: Denoiser, latents: torch.Tensor, prompts: Sequence[str], seeds: Sequence[int], *, skip: int = 11, steps: int = 20, guidance: float = 4.0
) -> torch.Tensor:
    """Return latents as a denoiser leaves them: noised, and denoised under their prompts by the last of `steps` DDIM steps.

    Args:
        denoiser: the model.
        latents: of works: (n, c, h, w).
        prompts: one per latent.
        seeds: one per latent.
        skip: steps left out; 11 of 20 begin at t = 401, from where a picture keeps its place and loses its detail.
        steps: of a whole sampling.
        guidance: scale of classifier-free guidance.
    """
    t = denoiser.timesteps(steps)[skip].expand(len(latents))
    start = denoiser.noised(latents, t.to(latents.device), normal(denoiser.latent_shape, seeds).to(latents))
    return denoiser.sample(prompts, seeds, steps=steps, guidance=guidance, start=start, skip=skip)


@torch.no_grad()
def encode(vae: Any, pixels: np.ndarray, batch: int = 64) -> torch.Tensor:
    """Encode uint8 images (n, s, s, 3) to the means of their latents: float32, (n, c, h, w), scaled by `scaling_factor`."""
    parts = []
    for start in range(0, len(pixels), batch):
        images = torch.from_numpy(pixels[start : start + batch]).permute(0, 3, 1, 2).float().to(vae.device) / 127.5 - 1
        parts.append(vae.encode(images).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(parts)


@torch.no_grad()
def standardise(vae: Any, pixels: np.ndarray) -> None:
    """Fold the latents' per-channel mean and deviation into `quant_conv` and `post_quant_conv`; reconstructions do not change."""
    latents = encode(vae, pixels) / vae.config.scaling_factor
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    # post(z * deviation + mean) first, then quant -> (mean - m) / s, and the log-variance loses 2 log s.
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation[None, :, None, None]
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()
