"""The one view over any diffusers text-to-image pipeline; all mathematics of assay goes through it.

Letters, as in Ho et al. 2020 and Song et al. 2021: x_t = a_t x_0 + s_t e with a_t = sqrt(alphas_cumprod[t]) and s_t = sqrt(1 - alphas_cumprod[t]);
the velocity is v = a_t e - s_t x_0 (Salimans and Ho 2022, App. D).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from PIL import Image

from assay.errors import Misconfigured, Unsupported
from assay.families import family_of
from assay.families.groups import GROUPS, in_group
from assay.families.sd import Conditioning
from assay.guidance import Memory, Predictions, Rule, check_scale
from assay.noise import normal, uniform
from assay.record import digest_of
from assay.retelling import retold, told

View = Literal["epsilon", "x0", "v"]
CACHED = 2048
"""Prompts whose encodings are kept."""
DECODED = 4 * 512 * 512
"""Pixels decoded at a time."""
SAMPLED = 8 * 64 * 64
"""Places of latents sampled at a time: 8 images of 512 x 512, whose attention maps fill several gigabytes where they are made whole."""
OF_SAVING = ("architectures", "dtype", "torch_dtype", "transformers_version")
"""What a configuration says of how the weights were saved, not of what they do."""


class Denoiser:
    """A text-to-image pipeline seen as mathematics.

    Args:
        pipeline: a loaded pipeline of a supported family.
        name: what to call it in records.
    """

    def __init__(self, pipeline: Any, name: str = "model") -> None:
        """Freeze the weights and take over the noise schedule.

        Raises:
            Unsupported: the scheduler's noise schedule or its prediction type is not supported, or the pipeline's parts do not fit each other.
        """
        self.pipeline = pipeline
        self.family = family_of(pipeline)
        self.name = name
        if not hasattr(pipeline.scheduler, "alphas_cumprod"):
            kind = type(pipeline.scheduler).__name__
            hint = "Models that were trained as DDPM are supported."
            raise Unsupported(f"{name} is sampled by {kind}, which has no variance-preserving noise schedule.", hint)
        self.family.check(name)
        self.family.freeze()
        self.scheduler: Any = ddim_of(pipeline.scheduler, name)
        self.native: str = self.scheduler.config.prediction_type
        if self.native not in ("epsilon", "v_prediction"):
            raise Unsupported(f"{name} predicts `{self.native}`.", "Models that predict epsilon or v are supported.")
        self.view: View = "epsilon" if self.native == "epsilon" else "v"
        self.replaced: dict[str, torch.Tensor] = {}  # weights as loaded, of the tensors that patches have changed
        self.patched: list[Any] = []  # what has put patches on, the last one last
        self.rules: list[Rule] = []
        self.passes = 0
        self._cache: dict[str, Conditioning] = {}

    @property
    def unet(self) -> torch.nn.Module:
        """The network that denoises."""
        return self.pipeline.unet

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device  # what diffusers says it looks up in every module, at every pass

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return next(self.unet.parameters()).dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one latent: (c, h, w)."""
        side = self.pipeline.unet.config.sample_size
        return self.pipeline.unet.config.in_channels, side, side

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.latent_shape[1] * self.pipeline.vae_scale_factor

    @property
    def at_once(self) -> int:
        """Images that are decoded or encoded at a time, at most, as memory allows."""
        return max(1, DECODED // self.image_size**2)

    @cached_property
    def alphas_cumprod(self) -> torch.Tensor:
        """alpha-bar of every timestep: float32, (timesteps,)."""
        return self.scheduler.alphas_cumprod.to(self.device)

    def weights(self) -> dict[str, torch.Tensor]:
        """Every tensor that a patch can change, by name: COMPONENT.PARAMETER."""
        return {f"{part}.{name}": tensor for part, module in self.family.components.items() for name, tensor in module.named_parameters()}

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """Return the weights of a named group.

        Args:
            name: one of `GROUPS`. `not_cross_attention` is the UNet's linear and convolution layers outside cross-attention.

        Raises:
            Unsupported: the group is unknown, or empty in this model.
        """
        if name not in GROUPS:
            raise Unsupported(f"There is no weight group `{name}`.", f"Choose one of {', '.join(GROUPS)}.")
        found = {key: tensor for key, tensor in self.weights().items() if in_group(key, tensor, name)}
        if not found:
            raise Unsupported(f"{self.name} has no weights in the group `{name}`.", "Choose another group.")
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the fp32 bytes of every weight as loaded (patches do not count), its name and the noise schedule."""
        schedule = self.scheduler.config
        about = [self.native, schedule.timestep_spacing, schedule.steps_offset, schedule.set_alpha_to_one, tensor_digest(self.alphas_cumprod)]
        total = hashlib.sha256(json.dumps(about).encode())
        for key, tensor in sorted((self.weights() | self.replaced).items()):
            total.update(f"{key}:{tensor_digest(tensor)}".encode())
        return total.hexdigest()

    @cached_property
    def setup(self) -> str:
        """SHA-256 over what else a drawing depends on: how prompts become tokens, and the configuration of every component; of no path or version."""
        about: list[Any] = [self.pipeline.config.get("force_zeros_for_empty_prompt")]
        for module in self.family.components.values():
            config: Any = module.config
            settings = config.to_diff_dict() if hasattr(config, "to_diff_dict") else config
            about.append({key: value for key, value in settings.items() if not key.startswith("_") and key not in OF_SAVING})
        for tokenizer, _ in self.family.encoders:
            how = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {"model": {}}
            steps = [how["model"].get("merges"), *(how.get(step) for step in ("normalizer", "pre_tokenizer", "post_processor"))]
            about.append([tokenizer.get_vocab(), steps, tokenizer.pad_token_id, tokenizer.model_max_length])
        return digest_of(about)

    @torch.no_grad()
    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts without gradients; every distinct prompt is encoded once. The empty prompt is encoded as guidance does."""
        if "" in prompts and "" not in self._cache:
            self._cache[""] = self.family.unconditional(1)
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._cache))
        for start in range(0, len(new), 128):
            batch = self.family.encode(self.family.tokenize(new[start : start + 128]))
            self._cache |= {prompt: batch[[row]] for row, prompt in enumerate(new[start : start + 128])}
        found = Conditioning.cat([self._cache[prompt] for prompt in prompts])
        for oldest in list(self._cache)[: max(0, len(self._cache) - CACHED)]:
            del self._cache[oldest]
        return found

    def forget_text(self) -> None:
        """Drop cached encodings: call after a text encoder has changed."""
        self._cache.clear()

    @torch.no_grad()
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images (b, 3, h, w) in [0, 1] to the means of their latents: (b, c, h/f, w/f), scaled as the UNet expects."""
        vae = self.pipeline.vae
        mean = vae.encode(images.to(vae.device, vae.dtype) * 2 - 1).latent_dist.mean
        return (mean.float() - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor

    def images(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents (b, c, h, w) to images in [0, 1]: (b, 3, h * f, w * f), float32.

        Raises:
            Unsupported: they are not finite, which would be judged as black.
        """
        vae = self.pipeline.vae
        plain = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        decoded = vae.decode(plain.to(vae.device, vae.dtype)).sample.float()
        if not bool(decoded.isfinite().all()):
            raise Unsupported(f"{self.name} draws what is not finite.", "Use float32, or put its patches on by smaller factors.")
        return (decoded / 2 + 0.5).clamp(0, 1)

    def scales(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a_t and s_t for timesteps (b,), shaped to multiply latents: (b, 1, 1, 1) each."""
        alpha = self.alphas_cumprod[t.to(self.device)][:, None, None, None]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def noised(self, clean: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return x_t for clean latents, timesteps (b,) and noise."""
        a, s = self.scales(t)
        return a * clean + s * noise

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, view: View = "epsilon") -> torch.Tensor:
        """Predict from noisy latents.

        Args:
            x_t: noisy latents: (b, c, h, w).
            t: timesteps: int64, (b,).
            conditioning: of batch b.
            view: what to return, whatever the network was trained to predict.

        Returns:
            Epsilon, x0 or v: float32, (b, c, h, w).
        """
        self.passes += len(x_t)
        raw = self.unet(x_t.to(self.dtype), t.to(self.device), **self.family.unet_inputs(conditioning), return_dict=False)[0].float()
        if view == self.view:
            return raw
        a, s = self.scales(t)
        if self.native == "epsilon":
            clean = (x_t - s * raw) / a
            return clean if view == "x0" else a * raw - s * clean
        return a * x_t - s * raw if view == "x0" else a * raw + s * x_t

    def loss(self, clean: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the denoising loss of every sample against the network's own target, with given noise: float32, (b,)."""
        a, s = self.scales(t)
        target = noise if self.view == "epsilon" else a * noise - s * clean
        return (self.predict(self.noised(clean, t, noise), t, conditioning, self.view) - target).square().mean((1, 2, 3))

    def timesteps(self, steps: int) -> torch.Tensor:
        """Return the sampler's timesteps, noisy to clean: int64, (steps,).

        Raises:
            Misconfigured: the model has not so many.
        """
        return self._scheduler(steps).timesteps

    def _scheduler(self, steps: int) -> Any:
        scheduler, most = copy.deepcopy(self.scheduler), len(self.alphas_cumprod)
        if 1 <= steps <= most:
            scheduler.set_timesteps(steps)
            if int(scheduler.timesteps.max()) < most:
                return scheduler
        raise Misconfigured(f"The model cannot be sampled in {steps} steps.", f"Choose from 1 to {most - 1}.")

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str] | Conditioning,
        seeds: Sequence[int],
        *,
        steps: int = 20,
        guidance: float = 4.0,
        negative: Sequence[str] | None = None,
        eta: float = 0.0,
        stop: int | None = None,
        start: torch.Tensor | None = None,
        skip: int = 0,
        batch: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Sample latents by DDIM (Song et al. 2021, Eq. 12).

        Args:
            prompts: one per image, or their conditioning.
            seeds: one per image; an image's noise depends on its own seed alone.
            steps: DDIM steps.
            guidance: scale of classifier-free guidance, at least 1, which samples without.
            negative: negative prompts, one per image.
            eta: 0 is deterministic, 1 adds DDPM's noise.
            stop: leave off after this many steps and return x_t of the next timestep.
            start: what to begin with instead of each seed's noise: (n, c, h, w).
            skip: leave out this many first steps, where `start` is x_t of a later timestep.
            batch: images a pass, at most; fewer where latents are large.
            progress: called with images done and images in all.

        Returns:
            Latents: float32, (n, c, h, w).

        Raises:
            Misconfigured: there is not one prompt, and one negative prompt if any, for each seed, or `guidance` is below 1.
        """
        check_scale(guidance)
        if len(prompts) != len(seeds) or len(seeds if negative is None else negative) != len(seeds):
            raise Misconfigured(
                f"There are {len(seeds)} seeds for {len(prompts)} prompts.", "Give one seed, and one negative prompt or none, for each prompt."
            )
        done, batch = [], min(batch, max(1, SAMPLED // self.latent_shape[1] ** 2))
        for first in range(0, len(seeds), batch):
            rows = slice(first, first + batch)
            conditioning = told(self, prompts[rows], seeds[rows])
            away = None if negative is None else list(negative[rows])
            begun = start if start is None else start[rows]
            done.append(self._sample_batch(conditioning, seeds[rows], steps, guidance, away, eta, slice(skip, stop), begun))
            if progress:
                progress(min(first + batch, len(seeds)), len(seeds))
        return torch.cat(done) if done else torch.empty(0, *self.latent_shape)

    def _sample_batch(
        self,
        conditioning: Conditioning,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        negative: list[str] | None,
        eta: float,
        taken: slice,
        start: torch.Tensor | None,
    ) -> torch.Tensor:
        count, scheduler = len(seeds), self._scheduler(steps)
        draws = normal((steps + 1 if eta else 1, *self.latent_shape), seeds).to(self.device)
        x = draws[:, 0] * scheduler.init_noise_sigma if start is None else start.to(self.device)
        parts = [retold(self, conditioning, x, seeds, int(scheduler.timesteps[taken.start]))]
        rule = self.rules[-1] if self.rules else Rule("classifier_free")
        if guidance != 1 or self.rules:
            parts.append(self.conditioning(negative) if negative else self.conditioning([""]).expand(count))
        parts += [self.conditioning([prompt]).expand(count) for prompt, _ in rule.prompts]
        coins = uniform(seeds, "rule").to(self.device) if self.rules else None
        memory: Memory = {}
        joined = Conditioning.cat(parts)
        for index, t in list(enumerate(scheduler.timesteps))[taken]:
            times = torch.full((count * len(parts),), int(t), device=self.device)
            raw = self.predict(x.repeat(len(parts), 1, 1, 1), times, joined, self.view).chunk(len(parts))
            combined = raw[0]
            if len(parts) > 1:
                to_epsilon = 1.0 if self.view == "epsilon" else float(self.alphas_cumprod[t].sqrt().clamp(min=1e-6))  # may be 0 at the first step
                combined = rule.combine(Predictions(raw[1], raw[0], tuple(raw[2:]), index, steps, to_epsilon, coins), guidance, memory)
            x = scheduler.step(combined, t, x, eta=eta, variance_noise=draws[:, index + 1] if eta else None).prev_sample
        return x

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *, batch: int = 32, **options: Any) -> torch.Tensor:
        """Sample and decode: images in [0, 1], float32, (n, 3, h, w). Options are those of `sample`."""
        latents = self.sample(prompts, seeds, batch=batch, **options)
        if not len(latents):
            return torch.empty(0, 3, self.image_size, self.image_size)
        each = min(batch, self.at_once)
        with torch.no_grad():
            return torch.cat([self.images(latents[start : start + each]) for start in range(0, len(latents), each)])


def ddim_of(scheduler: Any, name: str) -> Any:
    """Return DDIM with the noise schedule of another scheduler, which samples the model called `name`.

    Raises:
        Unsupported: DDIM has no such schedule.
    """
    config, kind = own_values(scheduler), type(scheduler).__name__
    unlike = Unsupported(f"{name} is sampled by {kind} with a noise schedule that DDIM does not have.", "Give it a DDIMScheduler.")
    if not isinstance(scheduler, DDIMScheduler) and config.get("timestep_spacing") == "linspace":
        config["timestep_spacing"] = "leading"  # DDIM takes steps of one whole length
    try:
        made: Any = DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    except NotImplementedError as error:  # DDIM raises it where it does not know the name of a schedule; told as every such refusal
        raise unlike from error
    end = -1 if config.get("rescale_betas_zero_snr") else None  # some keep the last alpha-bar above 0
    if not torch.allclose(made.alphas_cumprod[:end], scheduler.alphas_cumprod[:end].cpu()):
        raise unlike
    return made


def own_values(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's configuration for one of another class, which would put its own defaults in the place of this one's."""
    return {**scheduler.config, "_use_default_values": []}


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's fp32 bytes in hexadecimal."""
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """Turn images (n, 3, h, w) in [0, 1] into Pillow images, rounding to the nearest of 256 levels."""
    return [Image.fromarray(row) for row in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()]
