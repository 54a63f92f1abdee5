"""A Stable-Diffusion-shaped pipeline of 8x8 grey images: no latent space, a class as a one-token prompt, and a perceptron in the UNet's place.

A `UNet2DConditionModel` would do, but not in seconds: with as many parameters its step costs twenty times that of this perceptron, which sees all 64
pixels at once and needs no weight sharing to learn ten shapes. Its layers are linear, so that per-sample gradients are outer products.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin, StableDiffusionPipeline
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from assay.loading import quiet

START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS, TEXT_WIDTH = 3, 16
"""A prompt is start, digit, end; the empty prompt start, end, end."""
TEXT_SEED = 20261124


class Perceptron(nn.Module):
    """One residual layer: x + W2 silu(W1 norm(x) + W3 c).

    Args:
        width: of x.
        embedding: of the condition c.
    """

    def __init__(self, width: int, embedding: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, width)
        self.condition = nn.Linear(embedding, width)
        self.back = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map x (b, width) under a condition (b, embedding) to (b, width)."""
        return x + self.back(F.silu(self.into(self.norm(x)) + self.condition(condition)))


class DigitsNetwork(ModelMixin, ConfigMixin):
    """What denoises, called like a UNet: image (b, c, s, s), timesteps (b,) and text states (b, tokens, width) in, a prediction out."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 8,
        in_channels: int = 1,
        width: int = 192,
        layers: int = 2,
        embedding: int = 128,
        tokens: int = TOKENS,
        text_width: int = TEXT_WIDTH,
        time_cond_proj_dim: None = None,
    ) -> None:
        """Make the layers; pipelines ask a UNet's config for `time_cond_proj_dim`."""
        super().__init__()
        pixels = in_channels * sample_size**2
        self.time_in, self.time_out = nn.Linear(64, embedding), nn.Linear(embedding, embedding)
        self.text = nn.Linear(tokens * text_width, embedding)
        self.into = nn.Linear(pixels, width)
        self.blocks = nn.ModuleList(Perceptron(width, embedding) for _ in range(layers))
        self.norm, self.back = nn.LayerNorm(width), nn.Linear(width, pixels)

    @property
    def attn_processors(self) -> dict[str, Any]:
        """None: there is no attention."""
        return {}

    def set_attn_processor(self, processors: object) -> None:
        """Do nothing: there is no attention to compute in another way."""

    def forward(self, sample: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, return_dict: bool = True, **unused: None) -> Any:
        """Predict the noise in `sample`; what else pipelines hand a UNet is None here."""
        t = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        time = self.time_out(F.silu(self.time_in(get_timestep_embedding(t, 64).to(sample.dtype))))
        condition = F.silu(time + self.text(encoder_hidden_states.flatten(1)))
        x = self.into(sample.flatten(1))
        for block in self.blocks:
            x = block(x, condition)
        predicted = self.back(self.norm(x)).view_as(sample)
        return UNet2DConditionOutput(sample=predicted) if return_dict else (predicted,)


class Grey(ModelMixin, ConfigMixin):
    """In the autoencoder's place: an image's latent is its grey value in [-1, 1], a latent's image that grey in three channels. It has no weights."""

    @register_to_config
    def __init__(self, block_out_channels: tuple[int, ...] = (1,), latent_channels: int = 1, scaling_factor: float = 1.0) -> None:
        """Keep what pipelines ask of an autoencoder's config: one level, so no smaller side."""
        super().__init__()
        self.register_buffer("like", torch.zeros(()))  # device and dtype of a module are those of its tensors

    def encode(self, images: torch.Tensor) -> AutoencoderKLOutput:
        """Turn images (b, 3, s, s) into their mean over the channels (b, 1, s, s), without noise."""
        mean = images.mean(1, keepdim=True)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(torch.cat([mean, torch.zeros_like(mean)], 1), deterministic=True))

    def decode(self, latents: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Turn latents (b, 1, s, s) into images (b, 3, s, s)."""
        images = latents.expand(-1, 3, -1, -1)
        return DecoderOutput(sample=images) if return_dict else (images,)


def pipeline(network: DigitsNetwork) -> StableDiffusionPipeline:
    """Put a network into a pipeline with a tiny CLIP text encoder, frozen and the same for all, that knows ten words: 0 to 9."""
    quiet()
    words = [*map(str, range(10)), *(f"{digit}</w>" for digit in range(10)), START, END]
    tokenizer = CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=TOKENS,
        bos_token_id=20,
        eos_token_id=21,
        pad_token_id=21,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(TEXT_SEED)
        encoder = CLIPTextModel(config)
    scheduler: Any = DDIMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="trailing", steps_offset=1
    )
    vae: Any = Grey()
    unet: Any = network
    unchecked: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(vae=vae, unet=unet, scheduler=scheduler, text_encoder=encoder, tokenizer=tokenizer, **unchecked)
