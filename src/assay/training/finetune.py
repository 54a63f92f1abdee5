"""Fine-tuning beside a base: float32 copies of some weights stand in for them while they train, and their change becomes a patch.

The model itself is never written, so that it can be asked at any step what it would have said, and nothing needs restoring after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from assay.concept import Concept
from assay.denoiser import Denoiser, tensor_digest
from assay.errors import Misconfigured, Unsupported
from assay.families.sd import Conditioning
from assay.noise import derive, generator
from assay.patch import Manifest, Patch
from assay.patched import standing
from assay.record import digest_of, write_atomically
from assay.training.loop import Loss, Progress, Run, Schedule

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
EVERY = 25
"""Steps between the checkpoints of a fine-tune."""
TRAINED = {"cross-attention": "cross_attention", "full": "unet"}
"""What `group` says in methods that train cross-attention or the whole UNet -> weight group."""


def trained(denoiser: Denoiser, settings: Any) -> dict[str, torch.Tensor]:
    """Return the weights to train on a model's own pictures, if what methods that do so have in common is in order.

    Args:
        denoiser: the model.
        settings: of a method, with `group`, `steps`, `batch`, `images` and `image_steps`.

    Raises:
        Misconfigured: there is no such group, or a number is out of range.
    """
    if settings.group not in TRAINED:
        raise Misconfigured(f"There is no `group` {settings.group}.", f"Groups: {', '.join(TRAINED)}.")
    if min(settings.steps, settings.batch, settings.images, settings.image_steps) < 1 or settings.image_steps > len(denoiser.alphas_cumprod):
        raise Misconfigured(
            "`steps`, `batch`, `images` and `image_steps` must be at least 1.", f"`image_steps` can be as large as {len(denoiser.alphas_cumprod)}."
        )
    return denoiser.group(TRAINED[settings.group])


class Student(torch.nn.Module):
    """A model some of whose weights train, beside the model as it was.

    Args:
        denoiser: the model; its weights stay, as tensors stand in for them during a call.
        weights: the weights to train, by their names in `Denoiser.weights`.
    """

    masters: dict[str, torch.Tensor]
    """What trains: float32 copies."""

    def __init__(self, denoiser: Denoiser, weights: dict[str, torch.Tensor]) -> None:
        """Copy the weights to float32.

        Raises:
            Unsupported: the model is in float16.
        """
        super().__init__()
        if denoiser.dtype == torch.float16:
            raise Unsupported(f"{denoiser.name} is in float16, in which gradients underflow.", "Load it in bfloat16 or float32.")
        for name, module in denoiser.family.components.items():
            setattr(self, name, module)
        self.denoiser = denoiser
        self.weights = weights
        self.masters = {name: tensor.detach().float().clone().requires_grad_() for name, tensor in weights.items()}

    def forward(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Make the call: what `functional_call` needs a module for."""
        return call(*arguments, **options)

    def run(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Make a call of the denoiser with the training weights in place; gradients flow to them.

        Args:
            call: such as `denoiser.predict`, `denoiser.sample` or `denoiser.family.encode`.
            *arguments: of the call.
            **options: of the call.

        Returns:
            What the call returns.
        """
        return torch.func.functional_call(self, self.standing(), (call, *arguments), options, tie_weights=False)

    def standing(self) -> dict[str, torch.Tensor]:
        """Return what stands in for each weight, in its precision."""
        return {name: master.to(self.weights[name].dtype) for name, master in self.masters.items()}

    def losses(self, noised: Noised, prompts: Sequence[str] | Conditioning) -> torch.Tensor:
        """Return the denoising loss of every sample under its prompt or conditioning, against the network's own target: (b,).

        All timesteps weigh the same, as in the papers, whose models were trained so. The built-in model was not (`training/unet.py` weighs by a
        clipped signal-to-noise ratio): there this is not the loss that it was trained by, and holds what it draws less firmly.
        """
        told = prompts if isinstance(prompts, Conditioning) else self.denoiser.conditioning(prompts)
        predicted = self.run(self.denoiser.predict, noised.x_t, noised.t, told, self.denoiser.view)
        return (predicted - noised.added).square().mean((1, 2, 3))

    def changes(self, strength: float = 1.0) -> dict[str, torch.Tensor]:
        """Return the changes so far as entries of a patch, multiplied by `strength`."""
        differences = {name: self.masters[name].detach() - weight.detach().float() for name, weight in self.weights.items()}
        return {f"delta/{name}": (strength * difference).cpu() for name, difference in differences.items()}

    def base(self) -> dict[str, str]:
        """Return the digests of the weights as loaded, below any patches."""
        return {name: tensor_digest(self.denoiser.replaced.get(name, weight)) for name, weight in self.weights.items()}


def schedule(settings: Any, **more: Any) -> Schedule:
    """Return the plain schedule of a short fine-tune: a constant rate, no average, and no decay or clipping unless `more` says so."""
    plain = {"warmup": 0, "decay": 0, "weight_decay": 0, "beta2": 0.999, "clip": math.inf, "ema": 0}
    return Schedule(settings.steps, settings.batch, settings.learning_rate, **(plain | more))


def finetune(
    student: Student,
    loss: Loss,
    plan: Schedule,
    *,
    method: str,
    settings: DataclassInstance,
    concept: Concept,
    seed: int,
    strength: float = 1.0,
    resample: int = 1,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Train a student to the end and return its change.

    Args:
        student: what trains.
        loss: `loss(step, generator)`, the scalar loss of a step.
        plan: how long and how fast.
        method: its name, for the manifest.
        settings: of the method, for the manifest.
        concept: what it is about.
        seed: of every draw.
        strength: factor of the whole change.
        resample: every so many steps something new is sampled; checkpoints are written where that is due, so that nothing sampled need be kept.
        folder: keeps the checkpoint; it and the latents of `own_latents` are removed at the end.
        progress: called after every step.

    Returns:
        A dense change of every weight of the student.

    Raises:
        Misconfigured: the training diverged.
    """
    base = student.base()
    belongs = "" if folder is None else digest_of([method, asdict(settings), asdict(concept), seed, base, standing(student.denoiser)])
    run = Run(student.masters, loss, plan, seed=seed, folder=folder, plan=belongs)
    run.run(every=-(-EVERY // resample) * resample, progress=progress)
    if not (all(map(math.isfinite, run.losses)) and all(bool(master.isfinite().all()) for master in student.masters.values())):
        raise Misconfigured("The training diverged: the loss is not finite.", "Lower `learning_rate`.")
    if folder is not None:
        for kept in [folder / "checkpoint.safetensors", *folder.glob("latents-*.safetensors")]:
            kept.unlink(missing_ok=True)
    return Patch(Manifest(method=method, settings=asdict(settings), made_for=f"erase {concept.name}", base=base), student.changes(strength))


def own_latents(
    denoiser: Denoiser,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    folder: Path | None = None,
    batch: int = 16,
    progress: Progress | None = None,
    **options: Any,
) -> torch.Tensor:
    """Sample latents from the model as it is, to train on; they need no trip through the autoencoder.

    Args:
        denoiser: the model.
        prompts: one per latent.
        seeds: one per latent.
        folder: keeps the latents, so that an interrupted training need not sample them again.
        batch: latents a pass and a file.
        progress: called after every batch with batches done, batches in all and no figures.
        **options: of `Denoiser.sample`.

    Returns:
        Latents: float32, (n, c, h, w).
    """
    model = standing(denoiser)
    parts, starts = [], range(0, len(prompts), batch)
    for done, start in enumerate(starts, 1):
        rows = slice(start, start + batch)
        asked = digest_of([model, prompts[rows], seeds[rows], sorted(options.items())])
        file = None if folder is None else folder / f"latents-{asked[:32]}.safetensors"
        part = None
        if file is not None and file.exists():
            try:
                part = load_file(file)["latents"].to(denoiser.device)
            except (SafetensorError, KeyError, OSError):
                part = None
        if part is None:
            part = denoiser.sample(prompts[rows], seeds[rows], batch=batch, **options)
            if file is not None:
                write_atomically(file, to_bytes({"latents": part.cpu().contiguous()}))
        parts.append(part)
        if progress:
            progress(done, len(starts), {})
    return torch.cat(parts)


def left_off(
    denoiser: Denoiser, sampler: Callable[..., torch.Tensor], prompts: Any, seeds: Sequence[int], taken: int, *, steps: int, guidance: float
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Sample latents part of the way, all to the same step, as methods do that train where their own sampling passes.

    Args:
        denoiser: whose timesteps they are.
        sampler: `Denoiser.sample`, or a student's.
        prompts: one per latent, or their conditioning.
        seeds: one per latent.
        taken: DDIM steps to take.
        steps: of a whole sampling.
        guidance: scale of classifier-free guidance.

    Returns:
        x_t: (b, c, h, w); and the timesteps that it stands for, from and below.
    """
    bounds = [len(denoiser.alphas_cumprod), *denoiser.timesteps(steps).tolist()]
    return sampler(prompts, seeds, steps=steps, guidance=guidance, stop=taken), (bounds[taken + 1], bounds[taken])


def spread(items: Sequence[T], count: int, *keys: int | str) -> list[T]:
    """Return `count` items, none more than once oftener than another, in an order drawn by `keys`: few stand for all."""
    order = torch.randperm(len(items), generator=generator(*keys)).tolist()
    return [items[order[place % len(items)]] for place in range(count)]


@dataclass(frozen=True)
class Noised:
    """Latents as the denoiser sees them in a step of training."""

    x_t: torch.Tensor
    """Noised latents: (b, c, h, w)."""
    t: torch.Tensor
    """Timesteps: (b,)."""
    added: torch.Tensor
    """What the network was trained to predict of them, epsilon or v: (b, c, h, w)."""
    rows: list[int]
    """Which latents they are."""

    @classmethod
    def draw(cls, denoiser: Denoiser, latents: torch.Tensor, batch: int, rng: torch.Generator) -> Noised:
        """Draw latents, timesteps and noise, each uniformly and independently."""
        rows = torch.randint(len(latents), (batch,), generator=rng).tolist()
        t = torch.randint(len(denoiser.alphas_cumprod), (batch,), generator=rng).to(denoiser.device)
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=rng).to(clean)
        a, s = denoiser.scales(t)
        return cls(denoiser.noised(clean, t, noise), t, noise if denoiser.view == "epsilon" else a * noise - s * clean, rows)


def own_pictures(
    denoiser: Denoiser,
    sides: Sequence[Sequence[str]],
    count: int,
    *,
    seed: int,
    method: str,
    then: int,
    folder: Path | None = None,
    progress: Progress | None = None,
    batch: int = 16,
    **options: Any,
) -> tuple[list[tuple[torch.Tensor, list[str]]], Progress | None]:
    """Let the model as it is draw sets of prompts, as latents to train on.

    Args:
        denoiser: the model.
        sides: sets of prompts, each used evenly.
        count: latents of each set.
        seed: of every draw.
        method: whose draws they are.
        then: steps that follow, for the progress.
        folder: keeps the latents.
        progress: called after every batch.
        batch: latents a pass.
        **options: of `Denoiser.sample`.

    Returns:
        Latents (count, c, h, w) and the prompt of each, for each set; and the progress callback of the steps that follow.
    """
    batches = -(-count // batch)
    total = len(sides) * batches + then
    pools = []
    for place, side in enumerate(sides):
        prompts = spread(side, count, seed, method, place)
        seeds = [derive(seed, method, place, number) for number in range(count)]
        report = following(progress, place * batches, total)
        pools.append((own_latents(denoiser, prompts, seeds, folder=folder, progress=report, batch=batch, **options), prompts))
    return pools, following(progress, len(sides) * batches, total)


def following(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Return a progress callback for a stage of a longer course: counted on from `before`, out of `total`."""
    return None if progress is None else lambda done, _, figures: progress(before + done, total, figures)
