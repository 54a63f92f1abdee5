"""The network behind a judge: a small residual network for 64x64 drawings, 47 million multiplications an image, and what it wants to be shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

SIZE = 64
PREPROCESSING = "RGB in [0, 1], resized to 64x64 (bilinear, antialiased), mapped to [-1, 1]"


@dataclass(frozen=True)
class Shape:
    """The network's shape."""

    widths: tuple[int, ...] = (16, 16, 56, 112, 256)
    """Channels of the stem and of the stages at 32, 16, 8 and 4 pixels."""
    style_widths: tuple[int, ...] = (16, 32, 64, 96)
    """Channels of the style branch at 32, 16, 8 and 4 pixels."""
    scale: float = 20.0
    """Factor on cosines before the softmax."""


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016), batch-normalised."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(into, out, 1, bias=False) if into != out else nn.Identity()
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        inner = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(self.pool(x)), inplace=True)


class JudgeNetwork(nn.Module):
    """A trunk that names title and group, and a small branch of its own that names the style.

    Style is apart because the trunk must learn to ignore colour and texture, and style is colour and texture.
    """

    def __init__(self, shape: Shape, titles: int, groups: int, styles: int) -> None:
        super().__init__()
        self.shape = shape
        stem, *stages = shape.widths
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 4, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)]
        for index, (into, out) in enumerate(zip(shape.widths, stages)):
            layers.append(Block(into, out, 1 if index == 0 else 2))
        self.trunk = nn.Sequential(*layers)
        style: list[nn.Module] = []
        for into, out in zip((3, *shape.style_widths), shape.style_widths):
            style += [nn.Conv2d(into, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        self.style_trunk = nn.Sequential(*style)
        self.title = nn.Parameter(torch.randn(titles, shape.widths[-1]) * 0.05)
        self.group = nn.Linear(shape.widths[-1], groups)
        self.style = nn.Linear(shape.style_widths[-1], styles)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Trunk features of prepared images: (n, d)."""
        return self.trunk(x).mean((2, 3))

    def embed_style(self, x: torch.Tensor) -> torch.Tensor:
        """Style features of prepared images: (n, d)."""
        return self.style_trunk(x).mean((2, 3))

    def name(self, embedded: torch.Tensor, style: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of every head."""
        cosine = F.normalize(embedded, dim=1) @ F.normalize(self.title, dim=1).T
        return {"title": self.shape.scale * cosine, "group": self.group(embedded), "style": self.style(style)}


def prepare(images: torch.Tensor) -> torch.Tensor:
    """Bring images (n, 3, h, w) in [0, 1] to what the network sees: float32, (n, 3, 64, 64) in [-1, 1]."""
    images = images.float()
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    return (images * 2 - 1).contiguous(memory_format=torch.channels_last)
