"""Stable Diffusion XL: two text encoders, a pooled embedding, and the six size numbers called time ids (Podell et al. 2023, Sec. 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from assay.families.sd import Conditioning, StableDiffusion, feeding


class StableDiffusionXL(StableDiffusion):
    """Adapter of `StableDiffusionXLPipeline`."""

    name = "sdxl"

    def freeze(self) -> None:
        """Put every component at rest; the autoencoder, whose activations overflow float16, computes in float32 if its configuration says so."""
        if self.pipeline.vae.dtype == torch.float16 and self.pipeline.vae.config.force_upcast:
            self.pipeline.vae.float()
        super().freeze()

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """The modules that hold weights, by the name that prefixes their tensors."""
        return super().components | {"text_encoder_2": self.pipeline.text_encoder_2}

    @property
    def encoders(self) -> list[tuple[Any, Any]]:
        """Pairs of tokenizer and text encoder."""
        return [*super().encoders, (self.pipeline.tokenizer_2, self.pipeline.text_encoder_2)]

    def encode(self, ids: Sequence[torch.Tensor], embeddings: Sequence[torch.Tensor] | None = None) -> Conditioning:
        """Encode token ids, or given input embeddings in their place; gradients flow.

        Args:
            ids: from `tokenize`, one tensor per encoder.
            embeddings: replaces the looked-up token embeddings, one tensor per encoder.

        Returns:
            Penultimate states of both encoders side by side, the second's pooled projection, and the time ids.
        """
        states = []
        pooled = torch.empty(0)
        for index, (_, encoder) in enumerate(self.encoders):
            with feeding(encoder, None if embeddings is None else embeddings[index]):
                output = encoder(ids[index], output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled = output[0]
        return Conditioning(torch.cat(states, -1), {"text_embeds": pooled, "time_ids": self._time_ids(len(pooled)).to(pooled)})

    def unconditional(self, count: int) -> Conditioning:
        """Encode the empty prompt as the pipeline's guidance does: zeros, if its configuration says so."""
        empty = self.encode(self.tokenize([""]))
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = Conditioning(torch.zeros_like(empty.states), empty.extra | {"text_embeds": torch.zeros_like(empty.extra["text_embeds"])})
        return empty.expand(count)

    def unet_inputs(self, conditioning: Conditioning) -> dict[str, Any]:
        """Return the UNet's keyword arguments for a conditioning."""
        return {"encoder_hidden_states": conditioning.states, "added_cond_kwargs": conditioning.extra}

    def _time_ids(self, count: int) -> torch.Tensor:
        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        return torch.tensor([[side, side, 0, 0, side, side]]).expand(count, 6)
