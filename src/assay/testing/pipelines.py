"""Tiny real pipelines made in code: every component a true diffusers or transformers module with random weights, 32x32 images, a second to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from assay.denoiser import Denoiser
from assay.loading import quiet
from assay.noise import derive

Kind = Literal["sd-epsilon", "sd-v", "sdxl"]
KINDS: tuple[str, ...] = get_args(Kind)
CONTEXT = 24
WIDTH = 16


def tiny(kind: Kind = "sd-epsilon", seed: int = 0) -> Denoiser:
    """Return a tiny pipeline as a denoiser; the same weights for the same kind and seed."""
    return Denoiser(tiny_pipeline(kind, seed), name=f"tiny-{kind}")


def save_tiny(folder: str | Path, kind: Kind = "sd-epsilon", seed: int = 0) -> Path:
    """Write a tiny pipeline as a plain diffusers folder and return its path."""
    tiny_pipeline(kind, seed).save_pretrained(folder)
    return Path(folder)


def tiny_pipeline(kind: Kind = "sd-epsilon", seed: int = 0) -> Any:
    """Make the pipeline: 3-channel 32x32 images, 4-channel 16x16 latents, cross-attention at both resolutions."""
    quiet()
    prediction = "v_prediction" if kind == "sd-v" else "epsilon"
    scheduler: Any = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "tiny", kind))
        shape: dict[str, Any] = {
            "sample_size": 32,
            "block_out_channels": (8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "mid_block_add_attention": False,
            "scaling_factor": 0.5,
        }
        vae = AutoencoderKL(**shape)
        if kind == "sdxl":
            components = {
                "text_encoder": _text_encoder(CLIPTextModel),
                "text_encoder_2": _text_encoder(CLIPTextModelWithProjection),
                "tokenizer": tokenizer(),
                "tokenizer_2": tokenizer(),
            }
            unet = _unet(2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + WIDTH)
            return StableDiffusionXLPipeline(vae=vae, unet=unet, scheduler=scheduler, **components)
        encoder = _text_encoder(CLIPTextModel)
        unchecked: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(vae=vae, unet=_unet(WIDTH), scheduler=scheduler, text_encoder=encoder, tokenizer=tokenizer(), **unchecked)


def _unet(text_width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=2,
        norm_num_groups=4,
        **more,
    )


def _text_encoder(kind: type) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer()),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            projection_dim=WIDTH,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def tokenizer() -> CLIPTokenizer:
    """Return a byte-level CLIP tokenizer without merges: 514 entries."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, merges=[], model_max_length=CONTEXT)
