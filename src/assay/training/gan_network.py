"""The two networks of a small text-conditional GAN over an autoencoder's latents.

Generator: noise and a pooled text embedding become one style vector, which modulates residual blocks (Perez et al. 2018, FiLM; group normalisation
instead of batch normalisation, so that an image depends on its own noise and text alone). Discriminator: residual blocks and the projection of Miyato
and Koyama (2018): D(x, y) = w . h(x) + (V y) . h(x), with the text embedding in the place of the class. Neither keeps state between steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

SLOPE = 0.2
"""Of the discriminator's leaky rectifiers."""


@dataclass(frozen=True)
class Shape:
    """Sizes of both networks."""

    noise: int = 64
    """Numbers of noise an image starts from."""
    style: int = 192
    """Size of the vector that modulates the generator."""
    widths: tuple[int, ...] = (160, 96, 32)
    """Channels of the generator at each resolution, small to large; the discriminator has them the other way round."""
    groups: int = 16
    """Groups of the generator's normalisation."""


class Modulated(nn.Module):
    """Group normalisation whose scale and shift come from a style vector.

    Args:
        channels: of the maps.
        style: size of the vector.
        groups: of the normalisation.
    """

    def __init__(self, channels: int, style: int, groups: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, affine=False)
        self.scale, self.shift = nn.Linear(style, channels), nn.Linear(style, channels)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map x (b, channels, h, w) under a style (b, style) to the same shape."""
        return self.norm(x) * (1 + self.scale(style)[:, :, None, None]) + self.shift(style)[:, :, None, None]


class Up(nn.Module):
    """A residual block of the generator, doubling the side where told.

    Args:
        inputs: channels in.
        outputs: channels out.
        style: size of the style vector.
        groups: of the normalisation.
        double: whether the side doubles.
    """

    def __init__(self, inputs: int, outputs: int, style: int, groups: int, *, double: bool) -> None:
        """Make the layers."""
        super().__init__()
        self.doubles = double
        self.first, self.second = Modulated(inputs, style, groups), Modulated(outputs, style, groups)
        self.into, self.back = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map x (b, inputs, h, w) to (b, outputs, h or 2h, w or 2w)."""
        hidden, x = F.silu(self.first(x, style)), self.skip(x)
        if self.doubles:
            hidden, x = (F.interpolate(maps, scale_factor=2.0, mode="nearest") for maps in (hidden, x))
        return x + self.back(F.silu(self.second(self.into(hidden), style)))


class Down(nn.Module):
    """A residual block of the discriminator, halving the side where told.

    Args:
        inputs: channels in.
        outputs: channels out.
        halve: whether the side is halved.
    """

    def __init__(self, inputs: int, outputs: int, *, halve: bool) -> None:
        """Make the layers."""
        super().__init__()
        self.halve = halve
        self.into, self.back = nn.Conv2d(inputs, inputs, 3, padding=1), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (b, inputs, h, w) to (b, outputs, h or h/2, w or w/2)."""
        hidden = self.into(F.leaky_relu(x, SLOPE))
        if self.halve:
            hidden, x = F.avg_pool2d(hidden, 2), F.avg_pool2d(x, 2)
        return (self.skip(x) + self.back(F.leaky_relu(hidden, SLOPE))) * 0.5**0.5


class Generator(nn.Module):
    """Noise and text in, latents out.

    Args:
        shape: sizes.
        channels: of the latents.
        side: of the latents.
        text_width: of the pooled text embedding.
    """

    def __init__(self, shape: Shape, *, channels: int, side: int, text_width: int) -> None:
        """Make the layers."""
        super().__init__()
        widths, self.least = shape.widths, side // 2 ** (len(shape.widths) - 1)
        self.style = nn.Sequential(nn.Linear(shape.noise + text_width, shape.style), nn.SiLU(), nn.Linear(shape.style, shape.style), nn.SiLU())
        self.start = nn.Linear(shape.style, widths[0] * self.least**2)
        pairs = [(widths[0], widths[0]), *pairwise(widths)]
        self.blocks = nn.ModuleList(Up(a, b, shape.style, shape.groups, double=place > 0) for place, (a, b) in enumerate(pairs))
        self.norm = Modulated(widths[-1], shape.style, shape.groups)
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, noise: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Map noise (b, noise) and text (b, text_width) to latents (b, channels, side, side)."""
        style = self.style(torch.cat([noise, text], 1))
        x = self.start(style).unflatten(1, (-1, self.least, self.least))
        for block in self.blocks:
            x = block(x, style)
        return self.out(F.silu(self.norm(x, style)))


class Discriminator(nn.Module):
    """Latents and text in, a score out: high for what looks like a work with its caption.

    Args:
        shape: sizes.
        channels: of the latents.
        side: of the latents.
        text_width: of the pooled text embedding.
    """

    def __init__(self, shape: Shape, *, channels: int, side: int, text_width: int) -> None:
        """Make the layers."""
        super().__init__()
        widths = shape.widths[::-1]
        self.into = nn.Conv2d(channels, widths[0], 3, padding=1)
        pairs = [*pairwise(widths), (widths[-1], widths[-1])]
        self.blocks = nn.Sequential(*(Down(a, b, halve=place < len(widths) - 1) for place, (a, b) in enumerate(pairs)))
        self.flat = nn.Linear(widths[-1] * (side // 2 ** (len(widths) - 1)) ** 2, shape.style)
        self.text = nn.Sequential(nn.Linear(text_width, shape.style), nn.SiLU(), nn.Linear(shape.style, shape.style))
        self.score = nn.Linear(shape.style, 1)

    def forward(self, latents: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Score latents (b, channels, side, side) under texts (b, text_width): (b,)."""
        hidden = F.leaky_relu(self.flat(F.leaky_relu(self.blocks(self.into(latents)), SLOPE).flatten(1)), SLOPE)
        return self.score(hidden)[:, 0] + (self.text(text) * hidden).sum(1) / hidden.shape[1] ** 0.5
