"""`Recipe`: how a denoiser was trained, saved in its model folder, so that it can be trained again on other works or with another seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from assay.denoiser import Denoiser, own_values, tensor_digest
from assay.errors import BadInput, Misconfigured, Missing, Unsupported
from assay.noise import derive
from assay.record import digest_of, write_atomically
from assay.training.loop import Progress, Run, Schedule
from assay.training.selection import shown
from assay.training.unet import UNetSettings, build, exposures, train
from assay.works import Works

FILE = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """What a UNet was trained with, on top of a text encoder and an autoencoder that stay fixed."""

    seed: int
    """Of the initial weights and of every draw."""
    unet: UNetSettings
    """Shape, loss and schedule."""
    works: str
    """Digest of the works it was trained on."""
    steps_done: int
    """Steps taken; fewer than scheduled where the training was left off."""
    about: dict[str, Any] = field(default_factory=dict)
    """Whatever else was fixed: settings of the autoencoder and the text encoder, and where the works came from."""

    def save(self, folder: str | Path) -> Path:
        """Write `recipe.json` into a model folder and return its path."""
        path = Path(folder) / FILE
        write_atomically(path, (json.dumps(asdict(self), indent=1) + "\n").encode())
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Recipe:
        """Read the recipe of a model folder.

        Raises:
            Missing: the folder has none.
            BadInput: it is damaged.
        """
        path = Path(folder) / FILE
        try:
            data = json.loads(path.read_text())
            shape: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data["unet"].items()}
            shape["schedule"] = Schedule(**data["unet"]["schedule"])
            if absent := {field.name for field in fields(UNetSettings)} - shape.keys():  # a default of today may not be what it was trained with
                raise BadInput(f"{path} does not say its {', '.join(sorted(absent))}.", "It is of another version of assay; use that one.")
            unet = UNetSettings(**shape)
            return cls(data["seed"], unet, data["works"], data["steps_done"], data["about"])
        except FileNotFoundError as error:
            raise Missing(f"{folder} has no {FILE}.", "Only models made by a recipe of assay can be trained again.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path} is no recipe: {error!r}.", "It may be damaged, or of another version.") from error

    def lasting(self, steps: int) -> Recipe:
        """Return the recipe with another number of steps, and averaged weights that reach back over the same share of them."""
        schedule = self.unet.schedule
        ema = max(0.0, 1 - (1 - schedule.ema) * schedule.steps / steps) if schedule.ema else 0.0
        ema = schedule.ema if steps == schedule.steps else ema  # not through rounding
        return replace(self, unet=replace(self.unet, schedule=replace(schedule, steps=steps, ema=ema)))

    def retrain(
        self,
        denoiser: Denoiser,
        works: Works,
        *,
        keep: Callable[[dict[str, Any]], bool] | None = None,
        seed: int | None = None,
        steps: int | None = None,
        until: int | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> tuple[UNet2DConditionModel, Run]:
        """Train a new UNet from scratch by this recipe.

        Args:
            denoiser: gives the text encoder, the autoencoder and the noise schedule; its UNet is not used.
            works: the table the model was trained on.
            keep: which works to keep, by row; all members by default. Works with `copies` 0 are never shown.
            seed: of this training; the recipe's if None.
            steps: of this training; the recipe's if None. A reference takes the recipe's times its share of the exposures.
            until: stop after this step; a later call with the same `folder` goes on.
            folder: of the checkpoint.
            progress: called after every step.

        Returns:
            The UNet with the averaged weights in, on the denoiser's device, and the run behind it.

        Raises:
            Misconfigured: no work is left to train on.
            Unsupported: the model predicts v.
        """
        if denoiser.native != "epsilon":
            raise Unsupported(f"{denoiser.name} predicts `{denoiser.native}`, and recipes train what predicts epsilon.", "Use such a model.")
        seed = self.seed if seed is None else seed
        seen = material(denoiser, works if keep is None else works.where(keep))
        states = denoiser.conditioning(seen.texts).states.float()
        settings = self.unet if steps is None else replace(self.unet, schedule=replace(self.unet.schedule, steps=steps))
        scheduler: Any = DDPMScheduler.from_config(own_values(denoiser.pipeline.scheduler))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(seed, "unet"))
            unet = build(settings, latent_channels=seen.latents.shape[1], latent_size=seen.latents.shape[2], text_width=states.shape[2])
        torch.nn.Module.to(unet, denoiser.device)  # diffusers' own `to` is not typed for a device
        run = train(
            unet,
            seen.latents,
            states,
            seen.epoch,
            settings,
            scheduler,
            seed=seed,
            folder=folder,
            plan=digest_of([_without_steps(settings), seen.works, tensor_digest(seen.latents), tensor_digest(states), seed]),
            until=until,
            progress=progress,
        )
        run.use_average()
        return unet, run


class Material(NamedTuple):
    """What a training is shown."""

    works: str
    """Digest of the works."""
    latents: torch.Tensor
    """Of the works: (works, c, h, w)."""
    texts: list[str]
    """Every caption once, after the empty prompt."""
    epoch: list[tuple[int, list[int]]]
    """Exposures: row of `latents`, rows of `texts` to draw from."""


def material(denoiser: Denoiser, works: Works) -> Material:
    """Encode the members with copies of a table, and list an epoch of them.

    Raises:
        Misconfigured: no work is left to train on.
    """
    seen = shown(works)
    if not len(seen):
        raise Misconfigured("No works are left to train on.", "Let the filter keep some member works.")
    pixels = torch.from_numpy(seen.pixels(denoiser.image_size)).permute(0, 3, 1, 2)
    latents = torch.cat([denoiser.latents(pixels[start : start + 64].float() / 255) for start in range(0, len(pixels), 64)])
    epoch = exposures(seen.column("captions"), seen.column("copies"))
    texts = ["", *sorted({text for _, group in epoch for text in group} - {""})]
    row = {text: index for index, text in enumerate(texts)}
    return Material(seen.digest, latents, texts, [(work, [row[text] for text in group]) for work, group in epoch])


def untrained(base: Denoiser, settings: UNetSettings, *, side: int, name: str) -> Denoiser:
    """Return a model with the text encoder, the autoencoder and the noise schedule of `base`, and an untrained UNet for latents of another side.

    Args:
        base: a Stable Diffusion pipeline; its parts are shared, not copied.
        settings: shape of the UNet.
        side: of the latents.
        name: what to call it.
    """
    channels = base.latent_shape[0]
    unet = build(settings, latent_channels=channels, latent_size=side, text_width=base.conditioning([""]).states.shape[2])
    torch.nn.Module.to(unet, base.device)
    parts = base.pipeline.components | {"unet": unet}
    return Denoiser(type(base.pipeline)(**parts, requires_safety_checker=False), name)


def _without_steps(settings: UNetSettings) -> dict[str, Any]:
    about = asdict(settings)
    del about["schedule"]["steps"]  # a longer training goes on from a shorter one
    return about
