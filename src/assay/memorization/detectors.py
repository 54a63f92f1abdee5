"""Scores prompts, not works: which captions bring out a copy, by five published detectors that read one trace of every prompt.

The detectors are those of `noise_difference.py` (Wen et al. 2024), `attention_entropy.py` (Ren et al. 2024), `bright_ending.py` (Chen et al. 2025),
`anisotropy.py` (Asthana and Belagiannis 2026) and `one_step.py` (Webster 2023); `trace.py` makes the passes that all of them read. None looks at the
works.

Captions of canaries with many copies are what a detector must find; captions never trained, of holdout works and of canaries withheld, are what it
must pass over: they are of the same kind and length, which the papers' sets of prompts are not. Ordinary members stand beside. Thresholds are set on
captions of calibration works. The most suspicious captions are shown with their triggering tokens in brackets and the region that the bright ending
marks.

Different from the papers: no threshold, layer, timestep or weight was chosen on the prompts that are judged. Cost: draws x (2 x steps + 2) passes a
prompt, and a few with gradients for the captions shown. Known failure: a detector sees what a prompt does, not whether a picture is copied: a caption
that the model draws firmly because it knows many such works looks much the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from assay.attention import cross_layers
from assay.denoiser import Denoiser, to_pictures
from assay.errors import Misconfigured
from assay.judge import JudgeLike
from assay.memorization import anisotropy, attention_entropy, bright_ending, noise_difference, one_step
from assay.memorization.detection import NAMES, Shown, witness
from assay.memorization.groups import Audit, choose, completed
from assay.memorization.looks import strip
from assay.memorization.separation import limits
from assay.memorization.trace import Course, Trace, follow
from assay.memorization.trace import check as check_course
from assay.memorization.verdicts import Evidence
from assay.noise import derive
from assay.patched import standing
from assay.record import digest_of, kept_tensors, write_atomically
from assay.works import Works


@dataclass(frozen=True)
class Settings:
    """Settings of the prompt detectors."""

    draws: int = 4
    """Noises of a prompt (Wen et al., Sec. 5: 1, 4 or 16)."""
    steps: int = 50
    """DDIM steps."""
    guidance: float = 7.5
    """Scale of classifier-free guidance."""
    last: int = 10
    """Steps at the end that entropy D is taken over (Ren et al.: 10 of 50)."""
    layer: int = 3
    """Cross-attention layer of entropy E, counted from 0 in the order of a pass (Ren et al., on Stable Diffusion 1.4: 3)."""
    late: int = 3
    """Step, counted from the last, that gives the late timestep of the alignment (Asthana and Belagiannis: 3 of 50)."""
    alignment: float = 2.0
    """Weight of the alignment beside the norm (theirs on Stable Diffusion 1.4: 2)."""
    tokens: Literal["states", "embeddings"] = "states"
    """Where the gradient of triggering tokens is taken: the text encoder's outputs (Wen et al.) or its inputs."""
    copies: int = 16
    """Copies from which canaries count as what must be found."""
    false_positive_rate: float = 0.05
    """Probability that a caption never trained is flagged."""
    members: int = 200
    """Captions of ordinary members, at most."""
    calibration: int = 400
    """Captions of calibration works, at most."""
    holdout: int = 400
    """Captions of holdout works, at most."""
    matches: int = 8
    """Captions to show."""
    batch: int = 32
    """Samples a pass."""
    shard: int = 16
    """Captions a file."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"members": 500, "calibration": 500, "holdout": 500, "false_positive_rate": 0.01},
    "small": {
        "draws": 2,
        "steps": 15,
        "guidance": 4.0,
        "last": 3,
        "late": 2,
        "tokens": "embeddings",
        "members": 60,
        "calibration": 150,
        "holdout": 60,
    },
}
PROBE: dict[str, Any] = {"draws": 1, "steps": 2, "last": 1, "late": 1, "members": 4, "matches": 2, "false_positive_rate": 0.4}


def check(settings: Settings) -> None:
    """Raise if a setting is out of range.

    Raises:
        Misconfigured: one is.
    """
    check_course(course(settings))
    if not 1 <= settings.last <= settings.steps or settings.layer < 0 or not np.isfinite(settings.alignment):
        raise Misconfigured("`last` lies between 1 and `steps`, `layer` is not negative and `alignment` finite.", "Use a preset.")
    if settings.tokens not in ("states", "embeddings"):
        raise Misconfigured(f"`tokens` is states or embeddings; got {settings.tokens}.", "Use a preset.")
    least = (settings.calibration, settings.copies, settings.batch, settings.shard)
    if min(least) < 1 or min(settings.members, settings.holdout, settings.matches) < 0:
        raise Misconfigured("Numbers of captions cannot be negative; `calibration`, `copies`, `batch` and `shard` are at least 1.", "Use a preset.")
    if not 0 < settings.false_positive_rate < 1:
        raise Misconfigured(f"`false_positive_rate` lies between 0 and 1; got {settings.false_positive_rate}.", "Use 0.05.")


def course(settings: Settings) -> Course:
    """Return how prompts are sampled."""
    return Course(settings.draws, settings.steps, settings.guidance, settings.late)


def cost(works: Works, settings: Settings) -> dict[str, int]:
    """Return the passes that an audit takes."""
    groups = choose(works, settings, 0)
    prompts = sum(len(group.works) for group in groups)
    shown = min(settings.matches, prompts - len(groups[0].works)) * settings.draws
    return {"passes": prompts * course(settings).each + shown, "training_passes": shown}


def scored(trace: Trace, settings: Settings) -> dict[str, np.ndarray]:
    """Return every detector's scores of the prompts of a trace: name -> float64, (n,), higher where a copy is suspected."""
    return {
        "magnitude": noise_difference.mean(trace),
        "magnitude_first": noise_difference.first(trace),
        "entropy_d": attention_entropy.d(trace, settings.last),
        "entropy_e": attention_entropy.e(trace, settings.layer),
        "summary": attention_entropy.summary(trace, settings.last),
        "beginning": attention_entropy.beginning(trace, settings.last),
        "bright_ending": bright_ending.brightness(trace),
        "masked_magnitude": bright_ending.masked(trace),
        "anisotropy": anisotropy.combined(trace, settings.alignment),
        "alignment": anisotropy.alignment(trace),
        "one_step": one_step.confidence(trace),
    }


def audit(
    denoiser: Denoiser,
    works: Works,
    settings: Settings = Settings(),
    *,
    judge: JudgeLike,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> Audit:
    """Score captions by what they do to a model, and say how well that tells captions of copied works from others.

    Args:
        denoiser: the model.
        works: with calibration works; canaries and holdout works where there are any.
        settings: see `Settings`.
        judge: not asked; every audit is given one.
        seed: of the choice of works and of noise.
        progress: called with captions done and captions in all.
        folder: where shards of scores are kept, so that a killed audit goes on.

    Returns:
        The record, with pictures of the most suspicious captions.

    Raises:
        Misconfigured: a setting is out of range, or the model has too few layers or timesteps for it.
        Unsupported: the works have no calibration works, or no members.
    """
    check(settings)
    layers = len(cross_layers(denoiser.unet))
    if settings.layer >= layers:
        raise Misconfigured(f"`layer` is {settings.layer}, but {denoiser.name} has {layers} cross-attention layers.", f"Take 0 to {layers - 1}.")
    check_course(course(settings), denoiser)
    start, before = time.monotonic(), denoiser.passes
    groups = choose(works, settings, seed)
    asked = [index for group in groups for index in group.works]
    texts, names = works.column("captions"), works.column("id")
    prompts, ids = [texts[index][0] for index in asked], [names[index] for index in asked]
    plan = digest_of([standing(denoiser), ids, prompts, asdict(settings), seed, *NAMES])
    parts = []
    for first in range(0, len(asked), settings.shard):
        rows = slice(first, first + settings.shard)
        file = None if folder is None else folder / f"detectors-{plan[:12]}-{first:06d}.safetensors"
        part = None if file is None else kept_tensors(file)
        if part is None:
            trace = follow(denoiser, prompts[rows], ids[rows], course(settings), seed=seed, batch=settings.batch)
            scores = {name: torch.from_numpy(values) for name, values in scored(trace, settings).items()}
            part = scores | {"picture.ending": trace.ending[:, 0].clone(), "picture.latents": trace.latents[:, 0].clone()}
            if file is not None:
                write_atomically(file, save(part))
        parts.append(part)
        if progress:
            progress(min(first + settings.shard, len(asked)), len(asked))
    kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    scores = {name: tensor.numpy() for name, tensor in kept.items() if not name.startswith("picture.")}
    flags, _ = limits(scores, np.arange(len(groups[0].works)), settings.false_positive_rate)
    flagged = np.sum([scores[name] > limit for name, limit in flags.items()], axis=0)
    order = np.lexsort((-scores["entropy_d"], -flagged))
    chosen = [int(row) for row in order if row >= len(groups[0].works)][: settings.matches]
    pictures: dict[str, Image.Image] = {}
    shown, lead = [], []
    opening = int(denoiser.timesteps(settings.steps)[0])
    for place, row in enumerate(chosen, start=1):
        seeds = [derive(seed, "trace", ids[row], draw) for draw in range(settings.draws)]
        weights = noise_difference.significance(denoiser, prompts[row], seeds, opening, at=settings.tokens)
        shown.append(Shown(row, *noise_difference.marked(denoiser, prompts[row], weights)))
        with torch.no_grad():
            (made,) = to_pictures(denoiser.images(kept["picture.latents"][[row]].to(denoiser.device)))
        region = bright_ending.overlay(made, kept["picture.ending"][row])
        work = works.image(asked[row])
        pictures |= {f"prompt-{place}-output.png": made, f"prompt-{place}-region.png": region, f"prompt-{place}-work.png": work}
        lead += [made, region, work] if place <= 3 else []
    if lead:
        pictures = {"most-suspicious.png": strip(lead)} | pictures
    record = witness(works, Evidence(groups, asked, scores), shown, asdict(settings), bool(denoiser.rules))
    return Audit(completed(record, denoiser, works, seed=seed, started=start, passes=before), pictures)
