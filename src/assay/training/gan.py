"""A small text-conditional GAN on the works, captions and exposures of a diffusion model, with its text encoder and its autoencoder.

Goodfellow et al. 2014; hinge losses (Lim and Ye 2017; Miyato et al. 2018); the zero-centred gradient penalty on works, R1 (Mescheder et al. 2018),
every few steps with so much more weight (Karras et al. 2020, lazy regularisation); averaged weights of the generator. Both networks step at once,
from one draw of works, captions and noise.

Generator and discriminator see latents: what differs from the diffusion model is how it learns and nothing before or behind that. `GAN` draws images
from captions and seeds as a `Denoiser` does, in one pass and without guidance, so that an audit that only looks at images can be given either.
Augmentation of what the discriminator sees (Zhao et al. 2020) keeps it from knowing its few works by heart, and so bears on memorisation; it is off
unless asked for, as the diffusion model was trained without.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch.nn import functional as F

from assay.denoiser import Denoiser, tensor_digest
from assay.errors import BadInput, Misconfigured, Mismatch, Missing
from assay.noise import derive, normal
from assay.record import digest_of, write_atomically
from assay.training.gan_network import Discriminator, Generator, Shape
from assay.training.loop import Progress, Run, Schedule, trainable
from assay.training.recipe import Material, material
from assay.training.unet import Epoch
from assay.works import Works


@dataclass(frozen=True)
class GANSettings:
    """The networks and their training."""

    shape: Shape = Shape()
    """Sizes of both networks."""
    gamma: float = 0.5
    """R1's weight."""
    interval: int = 4
    """Steps from one R1 penalty to the next; its gradient counts that many times."""
    augmented: bool = False
    """Whether the discriminator sees works and drawings shifted and cut (DiffAugment without colours)."""
    schedule: Schedule = Schedule(steps=8000, batch=32, learning_rate=8e-4, warmup=100, decay=0.5, weight_decay=0.0, clip=1e9, ema=0.998)
    """How long and how fast to train."""


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's hinge loss of scores of works and of drawings: 2 where it cannot tell, 0 where it always does."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """Return the generator's loss of the scores of its drawings."""
    return -fake.mean()


def r1(scores: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return the mean squared norm of the scores' gradient at the works, which itself can be differentiated.

    Args:
        scores: the discriminator's, each depending on its own row of `latents`: (b,).
        latents: of works; they require gradients: (b, ...).
    """
    (gradient,) = torch.autograd.grad(scores.sum(), latents, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def augmented(latents: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Shift each row by up to an eighth of its side and cut a square of half its side out; zeros stand for what is lost (Zhao et al. 2020)."""
    count, _, height, width = latents.shape
    far = max(1, height // 8)
    down, right = (torch.randint(-far, far + 1, (count, 1, 1), generator=rng) for _ in range(2))
    top, left = (torch.randint(0, side, (count, 1, 1), generator=rng) - height // 4 for side in (height, width))
    row, column = torch.arange(height)[:, None], torch.arange(width)
    inside = (row - down >= 0) & (row - down < height) & (column - right >= 0) & (column - right < width)
    cut = (row >= top) & (row < top + height // 2) & (column >= left) & (column < left + width // 2)
    source = (row - down).clamp(0, height - 1) * width + (column - right).clamp(0, width - 1)
    index = source.flatten(1)[:, None].expand(-1, latents.shape[1], -1).to(latents.device)
    return latents.flatten(2).gather(2, index).unflatten(2, (height, width)) * (inside & ~cut)[:, None].to(latents)


class Adversaries(Run):
    """A training of two networks against each other; `losses` are the discriminator's hinge losses.

    Args:
        generator: changed in place, as is the discriminator.
        discriminator: its opponent.
        latents: of the works: (works, c, h, w).
        text: pooled embeddings: (texts, width).
        epoch: exposures of works and captions.
        settings: weights and schedule.
        seed: of every draw.
        folder: of the checkpoint; None keeps none.
        plan: what the checkpoint belongs to.
    """

    figure = "hinge"

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        latents: torch.Tensor,
        text: torch.Tensor,
        epoch: Sequence[tuple[int, Sequence[int]]],
        settings: GANSettings,
        *,
        seed: int,
        folder: Path | None = None,
        plan: str = "",
    ) -> None:
        """Take up the checkpoint in `folder`, if there is one."""
        self.generator, self.discriminator, self.settings = generator, discriminator, settings
        self.latents, self.text, self.epoch = latents.contiguous(memory_format=torch.channels_last), text, Epoch(epoch)
        self.mine, self.opponents = trainable(generator), trainable(discriminator)
        both = {f"generator.{name}": tensor for name, tensor in self.mine.items()}
        both |= {f"discriminator.{name}": tensor for name, tensor in self.opponents.items()}
        of_scores: Any = discriminator_loss  # of both networks' outputs, where other trainings have one of a step
        super().__init__(both, of_scores, settings.schedule, seed=seed, folder=folder, plan=plan)
        for group in self.optimizer.param_groups:
            group["betas"] = (0.0, settings.schedule.beta2)  # no momentum: it swings where two players turn about each other

    def gradients(self, rng: torch.Generator) -> float:
        """Give both networks the gradients of their own losses on one draw, and return the discriminator's loss."""
        batch, settings = self.settings.schedule.batch, self.settings
        works, texts = self.epoch.draw(batch, rng)
        text = self.text[texts.to(self.text.device)]
        noise = torch.randn(batch, settings.shape.noise, generator=rng).to(text)
        fake, real = self.generator(noise, text), self.latents[works.to(self.latents.device)]
        if settings.augmented:
            fake, real = augmented(fake, rng), augmented(real, rng)
        penalised = bool(settings.gamma) and self.step % settings.interval == 0
        real = real.detach().requires_grad_(penalised)
        of_real, of_fake = self.discriminator(real, text), self.discriminator(fake, text)
        value = discriminator_loss(of_real, of_fake)
        total = value + (settings.gamma / 2 * settings.interval * r1(of_real, real) if penalised else 0.0)
        for tensors, loss in ((self.mine, generator_loss(of_fake)), (self.opponents, total)):
            parameters = list(tensors.values())
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
                parameter.grad = gradient
        return float(value.detach())


class GAN:
    """A generator with the text encoder and the autoencoder of a diffusion model: captions and seeds in, images out.

    Args:
        base: lends its text encoder and its autoencoder; its UNet is not used.
        generator: trained; moved to evaluation and frozen.
        discriminator: its opponent as it was at the end.
        shape: of both.
        name: what to call it in records.
    """

    def __init__(self, base: Denoiser, generator: Generator, discriminator: Discriminator, shape: Shape, name: str = "gan") -> None:
        """Freeze the networks."""
        self.base, self.shape, self.name = base, shape, name
        self.generator = generator.eval().requires_grad_(False)
        self.discriminator = discriminator.eval().requires_grad_(False)
        self.passes = 0

    def _tensors(self) -> dict[str, torch.Tensor]:
        parts = {"generator": self.generator, "discriminator": self.discriminator}
        return {f"{part}.{name}": tensor for part, network in parts.items() for name, tensor in network.state_dict().items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the weights of both networks, their names and the model that lends the rest."""
        return digest_of([self.base.digest, {name: tensor_digest(tensor) for name, tensor in sorted(self._tensors().items())}])

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.base.image_size

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *, batch: int = 32, steps: int = 1, guidance: float = 1.0) -> torch.Tensor:
        """Draw images.

        Args:
            prompts: one per image.
            seeds: one per image; an image depends on its own prompt and seed alone.
            batch: images a pass.
            steps: 1; a GAN has no more.
            guidance: 1; a GAN has none.

        Returns:
            Images in [0, 1]: float32, (n, 3, h, w).

        Raises:
            Misconfigured: there is not one prompt for each seed, or more than one step or guidance is asked for.
        """
        if len(prompts) != len(seeds):
            raise Misconfigured(f"There are {len(seeds)} seeds for {len(prompts)} prompts.", "Give one seed for each prompt.")
        if (steps, guidance) != (1, 1):
            raise Misconfigured(f"{self.name} draws in one step without guidance.", "Set `steps` and `guidance` to 1.")
        done = [torch.empty(0, 3, self.image_size, self.image_size)]
        for first in range(0, len(seeds), batch):
            rows = slice(first, first + batch)
            noise = normal((self.shape.noise,), seeds[rows]).to(self.base.device)
            done.append(self.base.images(self.generator(noise, pooled(self.base, prompts[rows]))).cpu())
            self.passes += len(noise)
        return torch.cat(done)

    @torch.no_grad()
    def scores(self, images: torch.Tensor, captions: Sequence[str], *, batch: int = 64) -> torch.Tensor:
        """Return the discriminator's score of images (n, 3, h, w) in [0, 1] with their captions: float32, (n,)."""
        slices = [slice(first, first + batch) for first in range(0, len(images), batch)]
        parts = [self.discriminator(self.base.latents(images[rows]), pooled(self.base, captions[rows])).cpu() for rows in slices]
        return torch.cat(parts) if parts else torch.empty(0)

    def save(self, folder: str | Path) -> None:
        """Write `gan.safetensors` and `gan.json` into `folder`."""
        about = {"schema": "assay/gan/1", "base": self.base.digest, "shape": asdict(self.shape), "digest": self.digest}
        write_atomically(Path(folder) / "gan.safetensors", save({name: tensor.contiguous() for name, tensor in self._tensors().items()}))
        write_atomically(Path(folder) / "gan.json", (json.dumps(about, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: str | Path, base: Denoiser) -> GAN:
        """Read a GAN.

        Args:
            folder: where it was saved.
            base: the model whose text encoder and autoencoder it was trained with.

        Raises:
            Missing: there is none.
            Mismatch: it was trained with those of another model.
            BadInput: a file is damaged.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "gan.json").read_text())
            shape = Shape(**about["shape"] | {"widths": tuple(about["shape"]["widths"])})
            if about["base"] != base.digest:
                raise Mismatch(f"The GAN in {folder} was trained with the autoencoder of another model than {base.name}.", "Load that one.")
            networks = build(base, shape, seed=0)
            stored = load_file(folder / "gan.safetensors")
            for part, network in zip(("generator", "discriminator"), networks, strict=True):
                network.load_state_dict({name.partition(".")[2]: tensor for name, tensor in stored.items() if name.startswith(f"{part}.")})
            found = cls(base, *networks, shape)
        except FileNotFoundError as error:
            raise Missing(f"No GAN in {folder}.", "Train one with `benchmarks/gan.py`.") from error
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise BadInput(f"The GAN in {folder} cannot be read: {error}.", "Its files may be damaged; train it anew.") from error
        if found.digest != about["digest"]:
            raise BadInput(f"The GAN in {folder} is not the one its gan.json describes.", "Its files may be damaged; train it anew.")
        return found


def pooled(base: Denoiser, prompts: Sequence[str]) -> torch.Tensor:
    """Return one embedding a prompt: the state of its last token, which has attended to all others: float32, (n, width)."""
    return base.conditioning(prompts).states[:, -1].float()


def build(base: Denoiser, shape: Shape, *, seed: int) -> tuple[Generator, Discriminator]:
    """Make untrained networks for the latents and texts of a model, with the initial weights of a seed."""
    channels, side, _ = base.latent_shape
    sizes: dict[str, Any] = {"channels": channels, "side": side, "text_width": pooled(base, [""]).shape[1]}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "gan"))
        generator, discriminator = Generator(shape, **sizes), Discriminator(shape, **sizes)
    fast: dict[str, Any] = {"device": base.device, "memory_format": torch.channels_last}  # a fifth less time a step on CPUs
    return generator.to(**fast), discriminator.to(**fast)


def train(
    base: Denoiser,
    works: Works,
    settings: GANSettings = GANSettings(),
    *,
    seed: int,
    folder: Path | None = None,
    until: int | None = None,
    progress: Progress | None = None,
) -> tuple[GAN, Run]:
    """Train a GAN on what a diffusion model was shown: the same works, as often, under the same captions.

    Args:
        base: lends its text encoder and its autoencoder, which stay as they are.
        works: the table; members with copies are shown, each as often an epoch as it has copies.
        settings: networks and schedule.
        seed: of initial weights and every draw.
        folder: of the checkpoint.
        until: stop after this step; a later call with the same `folder` goes on.
        progress: called after every step.

    Returns:
        The GAN, with the generator's averaged weights and the discriminator's last, and the run behind it.

    Raises:
        Misconfigured: no work is left to train on.
    """
    seen: Material = material(base, works)
    text = pooled(base, seen.texts)
    generator, discriminator = build(base, settings.shape, seed=seed)
    about = asdict(settings)
    del about["schedule"]["steps"]
    plan = digest_of(["gan", about, seen.works, tensor_digest(seen.latents), tensor_digest(text), seed])
    run = Adversaries(generator, discriminator, seen.latents, text, seen.epoch, settings, seed=seed, folder=folder, plan=plan)
    run.run(until, progress=progress)
    for name, tensor in run.average.items():
        if name.startswith("generator."):
            with torch.no_grad():
                run.parameters[name].copy_(tensor)
    return GAN(base, generator, discriminator, settings.shape), run
