"""bf16 where it pays: forward and backward passes in autocast; weights, averages, loss and optimiser stay fp32.

On CPUs the fused attention's backward pass in bf16 costs more than all the rest of a step, so the unfused one stands in while a model trains. Both
compute the same function.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import AttnProcessor

Precision = Literal["fp32", "bf16"]


def native(device: str | torch.device = "cpu") -> Precision:
    """Return bf16 if the device multiplies it by itself, else fp32."""
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"


def autocast(precision: Precision, device: str | torch.device = "cpu") -> AbstractContextManager[Any]:
    """Return the context of a forward pass in `precision`."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def unfused_attention(unet: Any) -> Generator[None]:
    """Let `unet` attend without the fused kernel; its own processors come back at the end."""
    kept = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(kept)
