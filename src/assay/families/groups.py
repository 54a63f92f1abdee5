"""Groups of weights by name: what methods train or rewrite, the same words for every family."""

from __future__ import annotations

import torch

GROUPS = ("cross_attention.kv", "cross_attention", "not_cross_attention", "attention", "unet", "text_encoder", "token_embeddings", "decoder")


def in_group(key: str, tensor: torch.Tensor, name: str) -> bool:
    """Return whether a weight is in a group.

    Args:
        key: its name, COMPONENT.PARAMETER.
        tensor: the weight.
        name: one of `GROUPS`.
    """
    unet, cross = key.startswith("unet."), ".attn2." in key
    return {
        "cross_attention.kv": unet and cross and (".to_k." in key or ".to_v." in key),
        "cross_attention": unet and cross,
        "not_cross_attention": unet and not cross and tensor.ndim in (2, 4),
        "attention": unet and (cross or ".attn1." in key),
        "unet": unet,
        "text_encoder": key.startswith("text_encoder") and not key.endswith("token_embedding.weight"),
        "token_embeddings": key.endswith("token_embedding.weight"),
        "decoder": key.startswith(("vae.decoder.", "vae.post_quant_conv.")),
    }[name]
