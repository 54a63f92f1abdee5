"""Stable Diffusion 1.x and 2.x, epsilon and v: one CLIP text encoder, one UNet, one AutoencoderKL."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from assay.errors import Unsupported


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about each image of a batch; opaque outside the families.

    Args:
        states: encoder states for cross-attention: (b, tokens, width).
        extra: further inputs of the UNet by name, first axis b.
    """

    states: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the batch size."""
        return len(self.states)

    def __getitem__(self, rows: slice | Sequence[int] | torch.Tensor) -> Conditioning:
        """Return some rows of the batch."""
        index = rows if isinstance(rows, slice | torch.Tensor) else torch.as_tensor(rows, device=self.states.device)
        return Conditioning(self.states[index], {name: tensor[index] for name, tensor in self.extra.items()})

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Join batches."""
        return cls(torch.cat([part.states for part in parts]), {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra})

    def expand(self, count: int) -> Conditioning:
        """Repeat a batch of one `count` times without copying."""
        return Conditioning(
            self.states.expand(count, *self.states.shape[1:]), {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self.extra.items()}
        )


class StableDiffusion:
    """Adapter of `StableDiffusionPipeline`.

    Args:
        pipeline: the loaded pipeline.
    """

    name = "sd"

    def __init__(self, pipeline: Any) -> None:
        """Keep the pipeline."""
        self.pipeline = pipeline

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """The modules that hold weights, by the name that prefixes their tensors."""
        return {"unet": self.pipeline.unet, "text_encoder": self.pipeline.text_encoder, "vae": self.pipeline.vae}

    def check(self, name: str) -> None:
        """Raise unless the parts of the pipeline, called `name`, are there and its `UNet2DConditionModel` fits the others.

        Raises:
            Unsupported: one is missing, the UNet reads other states or latents than the text encoders and the autoencoder make, or has what
                `refuse_unread` refuses.
        """
        parts = self.components | dict(zip(("tokenizer", "tokenizer_2"), (coder for coder, _ in self.encoders), strict=False))
        if absent := [part for part, module in parts.items() if module is None]:
            raise Unsupported(f"{name} has no {' and no '.join(absent)}.", "Save the pipeline with every component.")
        if not isinstance(self.pipeline.unet, UNet2DConditionModel):
            return
        unet: Any = self.pipeline.unet.config
        wide, read = sum(encoder.config.hidden_size for _, encoder in self.encoders), unet.cross_attention_dim
        if unet.encoder_hid_dim_type is None and {wide} != set(read if isinstance(read, list | tuple) else [read]):
            what = f"{name} has a UNet that reads states of width {read}, and text encoders that make states of width {wide}"
            raise Unsupported(f"{what}.", "Put together parts of one model.")
        latent = self.pipeline.vae.config.latent_channels
        if (unet.in_channels, unet.out_channels) != (latent, latent):
            what = f"{name} has a UNet from {unet.in_channels} channels to {unet.out_channels}, and latents of {latent}"
            raise Unsupported(f"{what}.", "Models that draw from text alone are supported, not those for inpainting, editing or depth.")
        refuse_unread(self.pipeline, self.encoders, name)

    def freeze(self) -> None:
        """Put every component at rest, and its weights on a CPU where passes are fast and repeat to the bit.

        Matrix kernels round differently at addresses that 16 does not divide, which weights read from a file may have; convolutions are
        faster with their channels last.
        """
        for module in self.components.values():
            module.eval().requires_grad_(False)
            for tensor in module.parameters():
                if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                    tensor.data = tensor.data.clone()
        if self.pipeline.unet.device.type == "cpu":
            self.pipeline.unet.to(memory_format=torch.channels_last)

    @property
    def encoders(self) -> list[tuple[Any, Any]]:
        """Pairs of tokenizer and text encoder."""
        return [(self.pipeline.tokenizer, self.pipeline.text_encoder)]

    def tokenize(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """Turn prompts into token ids, one tensor (b, tokens) per text encoder."""
        ids = []
        for tokenizer, encoder in self.encoders:
            length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            batch = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            ids.append(batch.input_ids.to(encoder.device))
        return ids

    def cut(self, prompt: str) -> bool:
        """Return whether a prompt has more tokens than a text encoder takes."""
        for tokenizer, encoder in self.encoders:
            length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            if len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > length:
                return True
        return False

    def embed(self, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Look up the token embeddings of ids, one tensor (b, tokens, width) per text encoder."""
        return [encoder.get_input_embeddings()(tokens) for (_, encoder), tokens in zip(self.encoders, ids, strict=True)]

    def encode(self, ids: Sequence[torch.Tensor], embeddings: Sequence[torch.Tensor] | None = None) -> Conditioning:
        """Encode token ids, or given input embeddings in their place; gradients flow.

        Args:
            ids: from `tokenize`; with `embeddings` they still say where the end token is.
            embeddings: replaces the looked-up token embeddings, as from `embed`.

        Returns:
            The conditioning of the batch.
        """
        (_, encoder), *_ = self.encoders
        with feeding(encoder, None if embeddings is None else embeddings[0]):
            return Conditioning(encoder(ids[0]).last_hidden_state)

    def unconditional(self, count: int) -> Conditioning:
        """Encode the empty prompt as the pipeline's guidance does."""
        return self.encode(self.tokenize([""])).expand(count)

    def unet_inputs(self, conditioning: Conditioning) -> dict[str, Any]:
        """Return the UNet's keyword arguments for a conditioning."""
        return {"encoder_hidden_states": conditioning.states}


def refuse_unread(pipeline: Any, encoders: Sequence[tuple[Any, Any]], name: str) -> None:
    """Raise unless all that diffusers takes into account when it samples a pipeline is taken into account here too.

    Args:
        pipeline: the loaded pipeline, with a `UNet2DConditionModel`.
        encoders: pairs of tokenizer and text encoder.
        name: what the model is called.

    Raises:
        Unsupported: it has LoRA layers, a UNet distilled with guidance or for images that are not square, latents with a mean of their own, text
            encoders with an attention mask, or words of several vectors.
    """
    unet, vae = pipeline.unet.config, pipeline.vae.config
    keys = [f".{key}" for module in (pipeline.unet, *(encoder for _, encoder in encoders)) for key, _ in module.named_parameters()]
    words = [tokenizer.get_added_vocab() for tokenizer, _ in encoders]
    for found, what, hint in (
        (any(".lora_" in key or ".base_layer." in key for key in keys), "LoRA layers", "Call fuse_lora() and unload_lora_weights() first."),
        (unet.time_cond_proj_dim is not None, "a UNet that reads the scale of guidance", "Use the model that it was distilled from."),
        (not isinstance(unet.sample_size, int), f"a UNet for latents of {unet.sample_size}", "Set its `sample_size` to one number."),
        (
            any(getattr(vae, key, None) is not None for key in ("latents_mean", "latents_std")),
            "an autoencoder with `latents_mean` or `latents_std`",
            "Use one whose latents are scaled by `scaling_factor` alone.",
        ),
        (
            any(getattr(encoder.config, "use_attention_mask", False) for _, encoder in encoders),
            "a text encoder with `use_attention_mask`",
            "Use a model whose text encoder reads the whole prompt, padding too.",
        ),
        (
            any(f"{word}_1" in added for added in words for word in added),
            "words of several vectors",
            "Load the pipeline without them; textual inversions of one vector are supported.",
        ),
    ):
        if found:
            raise Unsupported(f"{name} has {what}.", hint)


@contextmanager
def feeding(encoder: Any, embeddings: torch.Tensor | None) -> Generator[None, None, None]:
    """While active, the encoder's token embedding returns `embeddings` instead of looking tokens up."""
    if embeddings is None:
        yield
        return
    handle = encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings)
    try:
        yield
    finally:
        handle.remove()
