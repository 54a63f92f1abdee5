"""Differentially private training of a denoiser: what a model learns hardly depends on whether any one work was there.

DP-SGD (Abadi et al. 2016, arXiv 1607.00133, Alg. 1): every work is in a step with probability q, its gradient is clipped to norm C, and normal noise
of deviation sigma C is added to the sum. A work's gradient is that of the mean over K draws of timestep and noise (noise multiplicity: Dockhorn, Cao,
Vahdat and Kreis 2023, "Differentially Private Diffusion Models", TMLR, arXiv 2210.09929), taken before clipping, so that K costs no privacy. With W
the works in a step, n in all and B = q n,

    gradient = (sum over W of clip(mean over k of grad loss(w, t_k, e_k), C) + sigma C N(0, 1)) / B.

Timesteps are stratified over a work's own draws and not over the batch, where they would depend on who else is in it. What follows a gradient (AdamW,
averages) costs nothing. The loss itself is not private and is not kept; the norm of the noised gradient is.

The promise is for one work more or less, shown once an epoch: works with k near-duplicates are promised k times as much epsilon. Text encoder,
autoencoder and base weights are taken as public, and the number of works too. It holds for those who do not know `seed`, a secret of 128 bits from
which works and noise of every step can be drawn again (by a generator that is no proven cipher), and who do not read the last bits of floating-point
numbers (Mironov 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.noise import secret_generator
from assay.training.accounting import Accountant, Mechanism, noise_multiplier
from assay.training.finetune import Student
from assay.training.loop import Progress, Run, Schedule
from assay.training.precision import unfused_attention

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Privacy:
    """What is promised to every work, and how."""

    epsilon: float = 10.0
    """How much likelier, as a logarithm, any outcome may be because of one work; inf adds no noise and promises nothing."""
    delta: float = 1e-5
    """Probability that the promise fails; below 1 / works."""
    clip: float = 1.0
    """Largest norm of a work's gradient; inf clips none, where epsilon is inf too."""
    multiplicity: int = 4
    """Draws of timestep and noise a work and step (Dockhorn et al.: 32 for MNIST, 8 for CIFAR-10's small networks)."""
    accountant: Accountant = "prv"
    """Who reckons: prv, tight, or rdp, quick."""


@dataclass(frozen=True)
class Guarantee:
    """What a training keeps to, as it is written into a patch."""

    epsilon: float
    """Of what was done, by the accountant; at most what was asked for."""
    delta: float
    """Probability that the promise fails."""
    accountant: Accountant
    """Who reckoned."""
    noise_multiplier: float
    """Deviation of the noise over `clip`."""
    sampling_rate: float
    """Probability that a work is in a step."""
    steps: int
    """How many."""
    clip: float
    """Largest norm of a work's gradient."""
    multiplicity: int
    """Draws of timestep and noise a work and step."""
    works: int
    """How many works there are."""
    unit: str = "one work more or less"
    """Whom the promise is made to."""


def guarantee(privacy: Privacy, *, works: int, batch: int, steps: int) -> Guarantee:
    """Choose the noise for a budget.

    Args:
        privacy: the budget.
        works: how many there are.
        batch: works a step, on average.
        steps: how many.

    Raises:
        Misconfigured: a number is out of its range.
        Missing: Opacus is not installed, and epsilon is finite.
        Unsupported: the accountant cannot reckon it.
    """
    if not 1 <= batch <= works or steps < 1 or privacy.multiplicity < 1:
        raise Misconfigured(
            f"{batch} of {works} works a step, {steps} steps and multiplicity {privacy.multiplicity} make no training.", "Take at least 1 of each."
        )
    if not privacy.clip > 0 or not privacy.epsilon > 0 or (math.isinf(privacy.clip) and math.isfinite(privacy.epsilon)):
        raise Misconfigured(
            f"Gradients clipped to {privacy.clip:g} keep no epsilon of {privacy.epsilon:g}.",
            "Both are positive, and `clip` finite where `epsilon` is.",
        )
    if not 0 < privacy.delta < 1 / works:
        raise Misconfigured(
            f"With {works} works a delta of {privacy.delta:g} would allow one to be published outright.", f"Take less than {1 / works:.1e}."
        )
    rate = batch / works
    noise = noise_multiplier(privacy.epsilon, privacy.delta, rate, steps, privacy.accountant)
    spent = Mechanism(noise, rate, steps).epsilon(privacy.delta, privacy.accountant)
    return Guarantee(spent, privacy.delta, privacy.accountant, noise, rate, steps, privacy.clip, privacy.multiplicity, works)


def clipped_sum(loss: Callable[..., torch.Tensor], parameters: Tensors, samples: Sequence[torch.Tensor], clip: float, chunk: int = 128) -> Tensors:
    """Return the sum of clipped gradients of a loss, a sample at a time.

    Args:
        loss: `loss(parameters, *sample)`, the scalar loss of one sample; torch.func.vmap runs it over many.
        parameters: what it is differentiated by.
        samples: tensors whose first axis is the samples.
        clip: largest norm of a sample's gradient over all parameters together; one that is not finite counts nothing.
        chunk: samples whose gradients are in memory at once.
    """
    total = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *[0] * len(samples)))
    given = {name: tensor.detach() for name, tensor in parameters.items()}
    for start in range(0, len(samples[0]), chunk):
        rows = {name: tensor.flatten(1) for name, tensor in each(given, *(tensor[start : start + chunk] for tensor in samples)).items()}
        norms = torch.stack([tensor.square().sum(1) for tensor in rows.values()]).sum(0).sqrt()
        factors = torch.ones_like(norms) if math.isinf(clip) else (clip / norms.clamp(min=1e-30)).clamp(max=1.0)
        if not bool(norms.isfinite().all()):
            factors = torch.where(norms.isfinite(), factors, 0.0)
            rows = {name: torch.where(norms.isfinite()[:, None], tensor, 0.0) for name, tensor in rows.items()}
        for name, tensor in rows.items():
            total[name] += (factors @ tensor).view_as(total[name])
    return total


class PrivateRun(Run):
    """A training whose gradients are those of DP-SGD. `losses` are the norms of the noised gradients: all else would tell of the works.

    Args:
        parameters: trainable tensors by name; changed in place.
        loss: `loss(parameters, *sample)`, the scalar loss of one work.
        draw: `draw(rows, generator)` makes the samples of the works in a step: tensors whose first axis is `rows`.
        schedule: how long and how fast; its `batch` is not used.
        kept: the noise and the rest.
        seed: of every draw, the noise's too: a secret of 128 bits or more.
        folder: where `checkpoint.safetensors` is kept; None keeps none.
        plan: what the checkpoint belongs to.
        chunk: works whose gradients are in memory at once.
    """

    figure = "gradient"

    def __init__(
        self,
        parameters: Tensors,
        loss: Callable[..., torch.Tensor],
        draw: Callable[[torch.Tensor, np.random.Generator], Sequence[torch.Tensor]],
        schedule: Schedule,
        kept: Guarantee,
        *,
        seed: int,
        folder: Path | None = None,
        plan: str = "",
        chunk: int = 128,
    ) -> None:
        """Take up the checkpoint in `folder`, if there is one."""
        self.draw, self.kept, self.chunk = draw, kept, chunk
        super().__init__(parameters, loss, schedule, seed=seed, folder=folder, plan=plan)

    def gradients(self, rng: torch.Generator) -> float:
        """Give every parameter the noised mean of the clipped gradients of a Poisson sample, and return its norm.

        All draws are from the secret, none from `rng`.
        """
        kept, secret = self.kept, secret_generator(self.seed, "private step", self.step)
        rows = torch.from_numpy(np.flatnonzero(secret.random(kept.works) < kept.sampling_rate))
        if len(rows):
            total = clipped_sum(self.loss, self.parameters, self.draw(rows, secret), kept.clip, self.chunk)
        else:
            total = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}
        for name, parameter in self.parameters.items():
            if kept.noise_multiplier:
                noise = torch.from_numpy(secret.standard_normal(tuple(parameter.shape))).to(parameter.device, parameter.dtype)
                total[name] += kept.noise_multiplier * kept.clip * noise
            parameter.grad = total[name] / (kept.sampling_rate * kept.works)
        return float(torch.stack([(value / (kept.sampling_rate * kept.works)).square().sum() for value in total.values()]).sum().sqrt())


class Draws:
    """What a step needs of each of its works: K timesteps, noises and captions.

    Args:
        denoiser: whose timesteps they are.
        latents: of the works: (works, c, h, w).
        texts: encodings of all captions; row 0 is the empty prompt.
        captions: rows of `texts` to draw from, for every work.
        multiplicity: K.
        empty: fraction of the captions replaced by the empty prompt.
    """

    def __init__(
        self, denoiser: Denoiser, latents: torch.Tensor, texts: Conditioning, captions: Sequence[Sequence[int]], multiplicity: int, empty: float
    ) -> None:
        """Keep captions as a table.

        Raises:
            Misconfigured: there are not as many captions as latents, or a work has none.
        """
        if len(latents) != len(captions) or not all(captions):
            raise Misconfigured(f"{len(latents)} works do not fit captions of {len(captions)}.", "Give every work one caption or more.")
        self.latents, self.texts, self.multiplicity, self.empty = latents, texts, multiplicity, empty
        self.timesteps = len(denoiser.alphas_cumprod)
        self.counts = torch.tensor([len(rows) for rows in captions])
        self.table = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(rows)) for rows in captions], batch_first=True)

    def __call__(self, rows: torch.Tensor, rng: np.random.Generator) -> list[torch.Tensor]:
        """Return clean latents (b, c, h, w), timesteps (b, K), noise (b, K, c, h, w) and what the network is told: (b, K, ...) each."""
        shape = len(rows), self.multiplicity
        place = (torch.from_numpy(rng.random(shape)) * self.counts[rows][:, None]).long()
        which = self.table[rows[:, None], place]
        which = torch.where(torch.from_numpy(rng.random(shape)) < self.empty, 0, which)
        within = (torch.arange(self.multiplicity) + torch.from_numpy(rng.random(shape))) / self.multiplicity
        t = (within * self.timesteps).long().clamp(max=self.timesteps - 1)
        noise = torch.from_numpy(rng.standard_normal((*shape, *self.latents.shape[1:]), np.float32))
        device = self.latents.device
        told = [tensor[which.to(device)] for tensor in (self.texts.states, *self.texts.extra.values())]
        return [self.latents[rows.to(device)], t.to(device), noise.to(device), *told]


def sample_loss(student: Student, names: Sequence[str]) -> Callable[..., torch.Tensor]:
    """Return the loss of one work as a function of the student's weights and of what `Draws` gives: the mean over its draws.

    Args:
        student: what trains.
        names: of the further inputs of the network, in the order of `Conditioning.extra`.
    """

    def loss(masters: Tensors, clean: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, states: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        kept, student.masters = student.masters, masters
        try:
            told = Conditioning(states, dict(zip(names, extra, strict=True)))
            return student.run(student.denoiser.loss, clean.expand(len(t), *clean.shape), t, noise, told).mean()
        finally:
            student.masters = kept

    return loss


def train(
    student: Student,
    latents: torch.Tensor,
    texts: Conditioning,
    captions: Sequence[Sequence[int]],
    privacy: Privacy,
    schedule: Schedule,
    *,
    seed: int,
    empty: float = 0.1,
    folder: Path | None = None,
    plan: str = "",
    chunk: int = 128,
    progress: Progress | None = None,
) -> Guarantee:
    """Train a student's weights to the end, privately; they are the averaged ones afterwards, where the schedule keeps an average.

    Args:
        student: of some weights of a model, whole (`Student`) or by low rank (`LowRank`).
        latents: of the works, each once: (works, c, h, w).
        texts: encodings of all captions; row 0 is the empty prompt.
        captions: rows of `texts` to draw from, for every work.
        privacy: the budget.
        schedule: how long and how fast; `batch` is the works a step on average, `clip` acts on the noised gradient.
        seed: of every draw, the noise's too: a secret, such as `secrets.randbits(128)`.
        empty: fraction of the captions replaced by the empty prompt.
        folder: of the checkpoint, which holds nothing that is not private.
        plan: what the checkpoint belongs to.
        chunk: works whose gradients are in memory at once, with latents of up to 16 x 16; fewer with larger ones.
        progress: called after every step with the norm of the noised gradient.

    Returns:
        What was promised.

    Raises:
        Misconfigured: a number is out of its range, or the training diverged.
        Missing: Opacus is not installed, and epsilon is finite.
        Unsupported: the accountant cannot reckon the budget.
    """
    draws = Draws(student.denoiser, latents, texts, captions, privacy.multiplicity, empty)
    kept = guarantee(privacy, works=len(latents), batch=schedule.batch, steps=schedule.steps)
    loss = sample_loss(student, list(texts.extra))
    chunk = max(1, chunk * 16**4 // max(16, latents.shape[-1]) ** 4)  # attention maps, made whole, grow with the fourth power of the side
    run = PrivateRun(student.masters, loss, draws, schedule, kept, seed=seed, folder=folder, plan=plan, chunk=chunk)
    with unfused_attention(student.denoiser.unet):
        run.run(progress=progress)
    if not (all(map(math.isfinite, run.losses)) and all(bool(master.isfinite().all()) for master in student.masters.values())):
        raise Misconfigured("The training diverged: its weights are not finite.", "Lower the learning rate.")
    run.use_average()
    return kept
