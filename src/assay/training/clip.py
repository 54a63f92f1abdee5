"""Train a small CLIP (Radford et al. 2021) on captioned works; its text tower becomes the frozen text encoder of a pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from assay.training.loop import Progress, Run, Schedule, trainable
from assay.training.precision import Precision, autocast

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class CLIPSettings:
    """The two towers and their training."""

    vocabulary: int = 4096
    """Entries of the byte-pair vocabulary, learnt from the captions."""
    context: int = 24
    """Tokens of a prompt, padded with the end token as in Stable Diffusion."""
    width: int = 192
    """Hidden size of both towers."""
    layers: int = 4
    """Layers of each tower."""
    heads: int = 4
    """Attention heads."""
    patch: int = 16
    """Pixels of a patch's side."""
    projection: int = 128
    """Size of the shared space."""
    spread: float = 0.04
    """Weight of the term that keeps the text states from collapsing into a few directions; 0 leaves it out."""
    precision: Precision = "fp32"
    """What passes are computed in: fp32, or bf16 with fp32 weights."""
    schedule: Schedule = Schedule(steps=1500, batch=192, learning_rate=1e-3, decay=0.6, weight_decay=0.1, ema=0.998)
    """How long and how fast to train."""


def train_tokenizer(captions: Sequence[str], settings: CLIPSettings, folder: Path) -> CLIPTokenizer:
    """Learn a byte-level byte-pair vocabulary in CLIP's form and save it in `folder`."""
    learner = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    learner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary, special_tokens=[START, END], initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(sorted(set(captions)), trainer)
    state = json.loads(learner.to_str())["model"]
    vocabulary = dict(sorted(state["vocab"].items(), key=lambda item: item[1]))
    for letter in alphabet:  # CLIP needs each byte both inside and at the end of a word
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    merges: Any = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in state["merges"]]
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=settings.context, pad_token=END, unk_token=END, bos_token=START, eos_token=END
    )
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build(settings: CLIPSettings, vocabulary: int, size: int) -> CLIPModel:
    """Make the untrained model."""
    shared = {
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "projection_dim": settings.projection,
    }
    text = shared | {"vocab_size": vocabulary, "max_position_embeddings": settings.context, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = shared | {"image_size": size, "patch_size": settings.patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.projection))


def correlation(states: torch.Tensor) -> torch.Tensor:
    """Return the sum of the squared correlations between the columns of `states` (n, width), each with itself left out, over the width.

    The covariance term of Bardes et al. (2022, VICReg, Eq. 3 and 4), here of standardised columns because a layer norm fixes their scale. It is
    width / r - 1 for states that fill r directions evenly. A linear map learns slowly what lies along directions of little variance, and without
    this term the states of a small text encoder fill about seven of 192.
    """
    standard = (states - states.mean(0)) / (states.var(0, unbiased=False) + 1e-4).sqrt()
    products = (standard.T @ standard / len(states)).square()
    return (products.sum() - products.diagonal().sum()) / states.shape[1]


def train(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    pixels: np.ndarray,
    captions: Sequence[Sequence[str]],
    settings: CLIPSettings,
    *,
    seed: int,
    rows: Sequence[int] | None = None,
    folder: Path | None = None,
    plan: str = "",
    progress: Progress | None = None,
) -> list[float]:
    """Train `clip` in place by the symmetric contrastive loss and `correlation` of the text states; return the losses.

    Images are uint8 (n, s, s, 3) with a list of captions each; every step draws from `rows` (all images once by default; repeat what matters
    more) without replacement, one caption of each, and crops images by up to 6 pixels. Pairs of one batch that share an image or a caption count
    as positives of each other. A denoiser reads every token's
    state, so the correlation is that of a token position drawn anew each step.
    """
    flat = [caption for group in captions for caption in group]
    tokens = tokenizer(flat, padding="max_length", truncation=True, max_length=settings.context, return_tensors="pt").input_ids
    first = torch.tensor([0, *np.cumsum([len(group) for group in captions])[:-1].tolist()])
    counts = torch.tensor([len(group) for group in captions])
    pool = torch.arange(len(pixels)) if rows is None else torch.tensor(rows)
    size, pad = pixels.shape[1], 6

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        drawn = pool[torch.randperm(len(pool), generator=rng)[: settings.schedule.batch]]
        which = first[drawn] + (torch.rand(len(drawn), generator=rng) * counts[drawn]).long()
        images = torch.from_numpy(pixels[drawn.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        top, left = torch.randint(0, 2 * pad + 1, (2,), generator=rng).tolist()
        images = F.pad(images, (pad, pad, pad, pad), value=1.0)[:, :, top : top + size, left : left + size]
        ids = tokens[which].to(clip.device)
        position = int(torch.randint(1, settings.context, (), generator=rng))  # the start token's state is always the same
        with autocast(settings.precision, clip.device):
            output = clip(input_ids=ids, pixel_values=images.to(clip.device))
        same = ((ids[:, None] == ids[None]).all(-1) | (drawn[:, None] == drawn[None]).to(ids.device)).float()
        target = same / same.sum(1, keepdim=True)
        contrast = (F.cross_entropy(output.logits_per_image.float(), target) + F.cross_entropy(output.logits_per_text.float(), target)) / 2
        states = output.text_model_output.last_hidden_state[:, position].float()
        return contrast + settings.spread * correlation(states) if settings.spread else contrast

    clip.train().requires_grad_(True)
    clip.set_attn_implementation("eager")  # the fused kernel's backward pass is slow on CPUs in bf16
    run = Run(trainable(clip), loss, settings.schedule, seed=seed, folder=folder, plan=plan)
    losses = run.run(progress=progress)
    run.use_average()
    clip.set_attn_implementation("sdpa")
    clip.eval().requires_grad_(False)
    return losses
