"""Probabilities of cross-attention, lent by processors that are there only while they are asked for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

PARTS = ("down_blocks", "mid_block", "up_blocks")
"""Parts of a UNet in the order in which a pass goes through them."""


class Exposing:
    """An attention processor that computes attention in two products and lends the probabilities between them.

    Args:
        maps: takes the probabilities of each call: (b, heads, positions, tokens).
    """

    def __init__(self, maps: list[torch.Tensor]) -> None:
        """Keep the list."""
        self.maps = maps

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Attend."""
        batch = len(hidden_states)
        query, key, value = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query, key, value = (attn.head_to_batch_dim(part) for part in (query, key, value))
        probabilities = attn.get_attention_scores(query, key)
        self.maps.append(probabilities.unflatten(0, (batch, -1)))
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probabilities @ value)))


@contextmanager
def exposed(unet: Any) -> Generator[list[torch.Tensor]]:
    """While active, every pass of `unet` appends the probabilities of each cross-attention layer to the list; its processors come back at the end."""
    kept, maps = unet.attn_processors, []
    unet.set_attn_processor({name: Exposing(maps) if ".attn2." in name else processor for name, processor in kept.items()})
    try:
        yield maps
    finally:
        unet.set_attn_processor(kept)


def cross_layers(unet: Any) -> list[str]:
    """Return the names of the cross-attention layers in the order in which a pass meets them, and `exposed` lists them."""
    names = [name for name in unet.attn_processors if ".attn2." in name]
    return sorted(names, key=lambda name: PARTS.index(name.split(".")[0]))
