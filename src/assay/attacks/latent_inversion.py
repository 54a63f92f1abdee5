"""Finds the noise from which the erased model draws a picture of the concept without any words, by inverting its sampler.

After the text-free inversion attack (TINA), of which this keeps that each DDIM step is refined by 25 steps of AdamW at 1e-3, under the empty prompt.
DDIM inversion: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", ICLR 2021, arXiv 2010.02502, Sec. 4.3. Written here from the mathematics,
without sight of the authors' code.

One DDIM step from timestep t to the next cleaner one s is x_s = f_t(x_t) = a_s x0(x_t, t) + s_s e(x_t, t), with x0 and e predicted under the empty
prompt. It is undone from the clean picture upwards: plain inversion, which takes x_s for x_t in the predictions, begins, and the implicit equation is
then solved by descent on

    | f_t(x_t) - x_s |^2.

What comes out at the noisiest timestep is where sampling starts, with the empty prompt and no guidance, by the same steps. A method that changes what
words mean is not touched by words that are not there. Where a sampling rule erases, e is what the rule makes of the predictions without guidance.

Different: the empty prompt's encoding stays as it is (it is not optimised along), and DDIM steps are as many as the judged images have,
where TINA has 50.

Cost a prompt: steps x (2 + `refine` with gradient), times 2 or more under a rule. Known failure: an inverted latent carries the picture with it, so
that nearly anything is drawn again, what the model never saw too: success says little without the rate on a model that never saw the concept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from assay.attacks.target import Attack, Clock, Progress, Target, predict
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning

EACH = True
"""Whether each prompt is attacked by itself."""
IN_WORDS = False
"""Whether it tells the model words or seeds alone, and learns neither embeddings, weights nor latents."""
ON_BASE = False
"""Whether it is led by the model beneath the patches."""


@dataclass(frozen=True)
class Settings:
    """Settings of latent inversion."""

    refine: int = 25
    """Optimiser steps at each DDIM step (TINA: 25); 0 is plain DDIM inversion."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW (TINA: 1e-3)."""


PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "small": {"refine": 4, "learning_rate": 0.01}}
PROBE: dict[str, Any] = {"refine": 1}
"""Settings that show in a second whether the method works on a model."""


def cost(settings: Settings, prompts: int, steps: int) -> dict[str, int]:
    """Return the passes that an attack on so many prompts takes, in samples: `passes` without gradients and `training_passes` with."""
    return {"passes": 2 * prompts * steps, "training_passes": prompts * steps * settings.refine}


def attack(
    denoiser: Denoiser,
    target: Target,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    clock: Clock | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Attack:
    """Invert the work that each prompt asks for.

    Args:
        denoiser: the model with its patches on.
        target: what to bring back; its steps are inverted.
        settings: see `Settings`.
        seed: not used: nothing is drawn.
        clock: leaves out the refinement once its budget is spent; the steps themselves are always done.
        progress: called after every DDIM step with the mean of what is left of the equation.
        folder: not used.

    Returns:
        Latents to start from, under the empty prompt and without guidance, and what was left at every DDIM step.

    Raises:
        Misconfigured: a setting is out of range.
    """
    if settings.refine < 0 or not settings.learning_rate > 0:
        raise Misconfigured("`refine` must not be negative, and `learning_rate` must be positive.", "TINA has 25 and 1e-3.")
    empty, unguided = denoiser.conditioning([""]).expand(len(target)), replace(target, guidance=1.0)
    steps = list(pairs(denoiser, target.steps))
    x, curve, early = target.latents.float(), [], False
    for place, (t, alpha, to) in enumerate(reversed(steps)):
        with torch.no_grad():
            upper = lifted(denoiser, unguided, x, t, alpha, to, empty)
        free = upper.clone().requires_grad_()
        optimizer = torch.optim.AdamW([free], lr=settings.learning_rate, weight_decay=0.0)
        for _ in range(settings.refine):
            if early := clock is not None and clock.over:
                break
            gap = (step(denoiser, unguided, free, t, alpha, to, empty) - x).square().mean((1, 2, 3))
            free.grad = torch.autograd.grad(gap.sum(), free)[0]
            optimizer.step()
        with torch.no_grad():
            curve.append(float((step(denoiser, unguided, free, t, alpha, to, empty) - x).square().mean()))
        x = free.detach()
        if progress:
            progress(place + 1, len(steps), {"left": curve[-1]})
    return Attack(("",) * len(target), empty, start=x, guided=False, curves={"left at each step": curve}, early=early)


def pairs(denoiser: Denoiser, steps: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """Return (timestep, alpha-bar there, alpha-bar of the next cleaner one) of a sampling, noisy to clean."""
    jump = len(denoiser.alphas_cumprod) // steps
    last = torch.as_tensor(denoiser.scheduler.final_alpha_cumprod, device=denoiser.device)
    cleaner = [(t, t - jump) for t in denoiser.timesteps(steps).tolist()]
    return [(t, denoiser.alphas_cumprod[t], denoiser.alphas_cumprod[s] if s >= 0 else last) for t, s in cleaner]


def step(denoiser: Denoiser, target: Target, x_t: torch.Tensor, t: int, alpha: torch.Tensor, to: torch.Tensor, told: Conditioning) -> torch.Tensor:
    """Take one DDIM step to a cleaner timestep: (b, c, h, w)."""
    clean, epsilon = parts(denoiser, target, x_t, t, alpha, told)
    return to.sqrt() * clean + (1 - to).sqrt() * epsilon


def lifted(denoiser: Denoiser, target: Target, x_s: torch.Tensor, t: int, alpha: torch.Tensor, to: torch.Tensor, told: Conditioning) -> torch.Tensor:
    """Undo one DDIM step roughly: x_s stands for x_t in the predictions (Song et al. 2021, Sec. 4.3)."""
    _, epsilon = parts(denoiser, target, x_s, t, alpha, told)
    return alpha.sqrt() * (x_s - (1 - to).sqrt() * epsilon) / to.sqrt() + (1 - alpha).sqrt() * epsilon


def parts(
    denoiser: Denoiser, target: Target, x_t: torch.Tensor, t: int, alpha: torch.Tensor, told: Conditioning
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted clean latents and noise from one pass."""
    raw = predict(denoiser, target, x_t, torch.full((len(x_t),), t, device=denoiser.device), told)
    a, s = alpha.sqrt(), (1 - alpha).sqrt()
    if denoiser.view == "epsilon":
        return (x_t - s * raw) / a, raw
    return a * x_t - s * raw, a * raw + s * x_t
