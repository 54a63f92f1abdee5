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
    schedule: Schedule = Schedule(steps=500, batch=192, learning_rate=1e-3, decay=0.5, weight_decay=0.1, ema=0.99)
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


def train(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    pixels: np.ndarray,
    captions: Sequence[Sequence[str]],
    settings: CLIPSettings,
    *,
    seed: int,
    folder: Path | None = None,
    plan: str = "",
    progress: Progress | None = None,
) -> list[float]:
    """Train `clip` in place by the symmetric contrastive loss; return the losses.

    Images are uint8 (n, s, s, 3) with a list of captions each; every step draws works without replacement, one caption of each, and
    crops images by up to 6 pixels. Images of one batch that share a caption count as positives of each other.
    """
    flat = [caption for group in captions for caption in group]
    tokens = tokenizer(flat, padding="max_length", truncation=True, max_length=settings.context, return_tensors="pt").input_ids
    first = torch.tensor([0, *np.cumsum([len(group) for group in captions])[:-1].tolist()])
    counts = torch.tensor([len(group) for group in captions])
    size, pad = pixels.shape[1], 6

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        rows = torch.randperm(len(pixels), generator=rng)[: settings.schedule.batch]
        which = first[rows] + (torch.rand(len(rows), generator=rng) * counts[rows]).long()
        images = torch.from_numpy(pixels[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        top, left = torch.randint(0, 2 * pad + 1, (2,), generator=rng).tolist()
        images = F.pad(images, (pad, pad, pad, pad), value=1.0)[:, :, top : top + size, left : left + size]
        ids = tokens[which].to(clip.device)
        output = clip(input_ids=ids, pixel_values=images.to(clip.device))
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(output.logits_per_image, target) + F.cross_entropy(output.logits_per_text, target)) / 2

    clip.train().requires_grad_(True)
    run = Run(trainable(clip), loss, settings.schedule, seed=seed, folder=folder, plan=plan)
    losses = run.run(progress=progress)
    run.use_average()
    clip.eval().requires_grad_(False)
    return losses
