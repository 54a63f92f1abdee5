"""A differentially private LoRA: a text-to-image model learns works of which none can be told from the change, and the change is a patch.

Only low-rank factors train (`low_rank.py`), privately (`private.py`): that few weights carry the noise is what makes private fine-tuning of a public
model work where training from scratch does not (Lyu, Liu, Vinaroz and Park 2024, "Differentially Private Latent Diffusion Models", TMLR, arXiv
2305.15759, which trains the attention). The patch's manifest says what is promised, by which accountant, for which noise, sampling rate and steps;
never the seed, and neither creators nor licences of the works: a name that one work alone brings would tell that it was there.

The base, its autoencoder and its text encoder are taken as public: works that they were trained on are not protected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from assay.denoiser import Denoiser, tensor_digest
from assay.errors import Misconfigured
from assay.patch import Manifest, Patch
from assay.patched import standing
from assay.record import digest_of
from assay.training.finetune import schedule
from assay.training.loop import Progress
from assay.training.low_rank import LowRank, matrices
from assay.training.private import Privacy, guarantee, train
from assay.works import Works

SECRET = 100
"""Bits of a seed that nobody can find by trying."""


@dataclass(frozen=True)
class Settings:
    """Settings of a private LoRA."""

    privacy: Privacy = Privacy()
    """The budget."""
    group: str = "attention"
    """Weight group of the UNet whose matrices learn."""
    rank: int = 4
    """Rows between up and down."""
    steps: int = 200
    """Steps."""
    batch: int = 64
    """Works a step, on average: every one is in a step with probability batch / works."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    ema: float = 0.95
    """Decay of the averaged weights, which are the ones kept; 0 keeps the last."""
    empty: float = 0.1
    """Fraction of the captions replaced by the empty prompt."""
    chunk: int = 32
    """Works whose gradients are in memory at once, with latents of up to 16 x 16; fewer with larger ones, whose attention maps need the room."""


def finetune(
    denoiser: Denoiser, works: Works, settings: Settings = Settings(), *, seed: int, folder: Path | None = None, progress: Progress | None = None
) -> Patch:
    """Fine-tune a model on works, privately.

    Args:
        denoiser: the model, which stays as it is.
        works: what to learn, each once an epoch however many `copies` it has.
        settings: see `Settings`.
        seed: of every draw, the noise's too: a secret, such as `secrets.randbits(128)`.
        folder: keeps the checkpoint, from which a killed training goes on; removed at the end.
        progress: called after every step.

    Returns:
        A low-rank patch; `manifest.settings["guarantee"]` is the `Guarantee`.

    Raises:
        Misconfigured: a number is out of its range, there are no works, the group is none of the UNet's, or the training diverged.
        Missing: Opacus is not installed, and epsilon is finite.
        Unsupported: the model is in float16, the group is unknown, or the accountant cannot reckon the budget.
    """
    if not len(works):
        raise Misconfigured("There are no works to learn.", "Give one or more.")
    guarantee(settings.privacy, works=len(works), batch=settings.batch, steps=settings.steps)  # before anything is encoded
    group = denoiser.group(settings.group)
    if not all(name.startswith("unet.") for name in group):
        raise Misconfigured(f"Of the group `{settings.group}` the loss reaches nothing: captions and works are encoded once.", "Use attention.")
    student = LowRank(denoiser, matrices(group), settings.rank, seed)
    latents = encoded(denoiser, works)
    captions: Sequence[Sequence[str]] = works.column("captions")
    texts = ["", *sorted({text for group in captions for text in group} - {""})]
    row = {text: index for index, text in enumerate(texts)}
    base = student.base()
    kept = train(
        student,
        latents,
        denoiser.conditioning(texts),
        [[row[text] for text in group] for group in captions],
        settings.privacy,
        schedule(settings, ema=settings.ema),
        seed=seed,
        empty=settings.empty,
        folder=folder,
        plan=digest_of(["private", asdict(settings), seed, standing(denoiser), works.digest, tensor_digest(latents)]),
        chunk=settings.chunk,
        progress=progress,
    )
    if folder is not None:
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    known = "" if math.isinf(kept.epsilon) or seed.bit_length() >= SECRET else "; its seed is short enough to be found by trying, which undoes that"
    about = Manifest(
        method="private_low_rank",
        settings=asdict(settings) | {"guarantee": asdict(kept)},
        made_for=f"learn {len(works)} works with epsilon {kept.epsilon:.3g} at delta {kept.delta:g}{known}",
        base=base,
    )
    return Patch(about, student.changes())


def encoded(denoiser: Denoiser, works: Works, batch: int = 64) -> torch.Tensor:
    """Return the latents of works: float32, (n, c, h, w)."""
    pixels = torch.from_numpy(works.pixels(denoiser.image_size)).permute(0, 3, 1, 2)
    return torch.cat([denoiser.latents(pixels[start : start + batch].float() / 255) for start in range(0, len(pixels), batch)])
