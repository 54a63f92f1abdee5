"""Train a UNet2DConditionModel from scratch or further, on cached latents and cached text (Ho et al. 2020; Rombach et al. 2022).

Loss: mean squared error of the prediction, weighted by clip(SNR, floor, gamma) / SNR for epsilon: from above as Hang et al. (2023, Eq. 8), from
below as Salimans and Ho (2022, Sec. 4, "truncated SNR", there with floor 1). A fraction of the captions is
replaced by the empty prompt for guidance (Ho and Salimans 2022, Alg. 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from assay.training.loop import Progress, Run, Schedule, trainable
from assay.training.precision import Precision, autocast, unfused_attention


@dataclass(frozen=True)
class UNetSettings:
    """The denoiser's shape and training."""

    widths: tuple[int, ...] = (64, 96, 144)
    """Channels at each resolution."""
    attention: tuple[bool, ...] = (False, True, True)
    """Which resolutions have self- and cross-attention."""
    heads: int = 4
    """Attention heads."""
    groups: int = 16
    """Groups of the group normalisation."""
    gamma: float = 5.0
    """Min-SNR's gamma; 0 weights every timestep alike."""
    floor: float = 0.2
    """Least weight of the clean image's error, which the noisiest timesteps have: they decide what is drawn, and epsilon alone hardly weighs them."""
    empty: float = 0.1
    """Fraction of captions replaced by the empty prompt."""
    precision: Precision = "fp32"
    """What passes are computed in: fp32, or bf16 with fp32 weights."""
    schedule: Schedule = Schedule(steps=9000, batch=64, learning_rate=8e-4, warmup=200, decay=0.6, ema=0.9995)
    """How long and how fast to train."""


def build(settings: UNetSettings, *, latent_channels: int, latent_size: int, text_width: int) -> UNet2DConditionModel:
    """Make the untrained UNet."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=settings.widths,
        layers_per_block=1,
        down_block_types=tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in settings.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(settings.attention)),
        cross_attention_dim=text_width,
        attention_head_dim=settings.heads,
        norm_num_groups=settings.groups,
    )


def exposures(captions: Sequence[Sequence[str]], copies: Sequence[int]) -> list[tuple[int, list[str]]]:
    """List one epoch: (work, captions to draw from) per exposure; copy j of a repeated work always has caption j modulo their number."""
    epoch = []
    for work, (texts, count) in enumerate(zip(captions, copies, strict=True)):
        epoch += [(work, list(texts))] if count == 1 else [(work, [texts[copy % len(texts)]]) for copy in range(count)]
    return epoch


class Epoch:
    """An epoch to draw from: every exposure equally often, and one of its captions.

    Args:
        exposures: (row of the works, rows of the texts to draw from) per exposure.
    """

    def __init__(self, exposures: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Flatten the lists."""
        self.works = torch.tensor([row for row, _ in exposures])
        self.choices = torch.tensor([len(texts) for _, texts in exposures])
        self.first = torch.cumsum(self.choices, 0) - self.choices
        self.texts = torch.tensor([row for _, texts in exposures for row in texts])

    def draw(self, batch: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw rows of works and rows of texts: int64, (batch,) each."""
        drawn = torch.randint(len(self.works), (batch,), generator=rng)
        which = self.texts[self.first[drawn] + (torch.rand(batch, generator=rng) * self.choices[drawn]).long()]
        return self.works[drawn], which


def train(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    text: torch.Tensor,
    epoch: Sequence[tuple[int, Sequence[int]]],
    settings: UNetSettings,
    scheduler: DDPMScheduler,
    *,
    seed: int,
    folder: Path | None = None,
    plan: str = "",
    until: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train `unet` in place up to step `until` and return the run, whose `use_average` puts the averaged weights in.

    Args:
        unet: the model to train, on the device to train on.
        latents: scaled latents of the works: (works, c, h, w).
        text: cached encoder states: (texts, tokens, width); row 0 is the empty prompt.
        epoch: exposures as (row of `latents`, rows of `text` to draw from).
        settings: shape and schedule.
        scheduler: gives the noise schedule; epsilon prediction.
        seed: of every draw.
        folder: of the checkpoint.
        plan: what the checkpoint belongs to.
        until: the step to stop after; None trains to the end.
        progress: called after every step.
    """
    device = unet.device
    latents, text = latents.to(device), text.to(device)
    shown = Epoch(epoch)
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = snr.clamp(settings.floor, settings.gamma) / snr if settings.gamma else torch.ones_like(snr)
    batch = settings.schedule.batch

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        work, which = shown.draw(batch, rng)
        which = torch.where(torch.rand(batch, generator=rng) < settings.empty, torch.zeros_like(which), which)
        # Stratified over the batch: less variance than independent draws, the same expectation.
        t = ((torch.arange(batch) + torch.rand(batch, generator=rng)) / batch * len(alphas)).long().clamp(max=len(alphas) - 1)  # the sum can round up
        clean = latents[work.to(device)]
        noise = torch.randn(clean.shape, generator=rng).to(device)
        scale = alphas[t][:, None, None, None].to(device)
        with autocast(settings.precision, device):
            predicted = unet(scale.sqrt() * clean + (1 - scale).sqrt() * noise, t.to(device), text[which.to(device)]).sample
        return ((predicted.float() - noise).square().mean((1, 2, 3)) * weights[t].to(device)).mean()

    unet.train().requires_grad_(True)
    run = Run(trainable(unet), loss, settings.schedule, seed=seed, folder=folder, plan=plan)
    with unfused_attention(unet):
        run.run(until, progress=progress)
    unet.eval().requires_grad_(False)
    return run
