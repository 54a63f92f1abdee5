"""What every attack is given and what it returns: works of the concept to bring back, and what the model is to be told to draw them again.

An attack sees the model with its patches on, pictures of the concept and the prompts that will be judged. It never sees the judge, nor the seeds of
the images that are judged: whoever calls it draws those afterwards, by `Attack.sample`, and counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.guidance import TELLING, Predictions, Rule
from assay.noise import derive, normal, uniform
from assay.patch import Patch
from assay.patched import Patched
from assay.record import write_atomically

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Target:
    """What is to be brought back."""

    concept: Concept
    """What was taken out."""
    prompts: tuple[str, ...]
    """The prompts under attack, n."""
    latents: torch.Tensor
    """Clean latents of the work that each prompt asks for: (n, c, h, w)."""
    seeds: tuple[int, ...]
    """A seed of each prompt's own draws, n; none of them draws a judged image."""
    examples: torch.Tensor
    """Clean latents of works of the concept for attacks that serve all prompts at once: (m, c, h, w)."""
    captions: tuple[str, ...]
    """The captions of the examples, m."""
    forbidden: tuple[str, ...] = ()
    """Words that stand for the concept besides its own name; attacks that search tokens use none of them."""
    steps: int = 20
    """DDIM steps of the images that are judged."""
    guidance: float = 4.0
    """Scale of classifier-free guidance of the images that are judged."""

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            Misconfigured: they differ in number, or there is nothing to attack.
        """
        if not self.prompts or not len(self.prompts) == len(self.latents) == len(self.seeds) or not len(self.examples) == len(self.captions) > 0:
            raise Misconfigured(
                f"There are {len(self.prompts)} prompts, {len(self.latents)} works, {len(self.seeds)} seeds, {len(self.examples)} examples.",
                "Give a work and a seed for each prompt, a caption for each example, and at least one of each.",
            )

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.prompts)

    def part(self, rows: slice) -> Target:
        """Return the target of some of the prompts."""
        return replace(self, prompts=self.prompts[rows], latents=self.latents[rows], seeds=self.seeds[rows])

    def draw(self, denoiser: Denoiser, *keys: int | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a timestep (n,) and noise (n, c, h, w) for each prompt, by its own seed and `keys`."""
        t = (uniform(self.seeds, *keys, "t") * len(denoiser.alphas_cumprod)).long()
        return t.to(denoiser.device), normal(denoiser.latent_shape, [derive(seed, *keys) for seed in self.seeds]).to(denoiser.device)

    @torch.no_grad()
    def measure(self, denoiser: Denoiser, conditioning: Conditioning, draws: int = 4) -> torch.Tensor:
        """Return the denoising loss of each prompt's work under a conditioning: (n,), the mean over even timesteps and fixed noise."""
        total = torch.zeros(len(self), device=denoiser.device)
        for index in range(draws):
            _, noise = self.draw(denoiser, "measure", index)
            t = torch.full((len(self),), int(len(denoiser.alphas_cumprod) * (index + 0.5) / draws), device=denoiser.device)
            total += losses(denoiser, self, self.latents, t, noise, conditioning)
        return total / draws


@dataclass(frozen=True)
class Attack:
    """What an attack found. Row r of whatever it holds is attempt r % `attempts` at prompt r // `attempts`."""

    prompts: tuple[str, ...]
    """In words, for each row; where embeddings were found, what surrounds them."""
    conditioning: Conditioning | None = None
    """What the model is told in each row; None: the prompts."""
    start: torch.Tensor | None = None
    """What each row is drawn from, instead of noise: (rows, c, h, w)."""
    patch: Patch | None = None
    """What is put on the model, on top of its patches."""
    attempts: int = 1
    """Attempts at each prompt, which succeed together if any does."""
    guided: bool = True
    """Whether images are drawn with classifier-free guidance."""
    curves: dict[str, list[float]] = field(default_factory=dict)
    """What the attack minimised, step by step, by name."""
    figures: dict[str, list[float]] = field(default_factory=dict)
    """Figures of each prompt, by name."""
    removed: tuple[str, ...] = ()
    """Tokens that the search left out, because they could spell a forbidden word."""
    early: bool = False
    """Whether the budget ended it."""

    def sample(self, denoiser: Denoiser, seeds: Sequence[int], target: Target, **options: Any) -> torch.Tensor:
        """Draw a latent for each row, (rows, c, h, w), by the steps and the guidance of the target; options are those of `Denoiser.sample`."""
        told = list(self.prompts) if self.conditioning is None else self.conditioning
        guidance = target.guidance if self.guided else 1.0
        with Patched(denoiser, [] if self.patch is None else [(self.patch, 1.0)]):
            return denoiser.sample(told, seeds, steps=target.steps, guidance=guidance, start=self.start, **options)

    def save(self, path: Path) -> None:
        """Write the attack into one file, and its patch beside it."""
        tensors = {} if self.start is None else {"start": self.start}
        if self.conditioning is not None:
            tensors |= {"states": self.conditioning.states} | {f"extra/{name}": tensor for name, tensor in self.conditioning.extra.items()}
        if self.patch is not None:
            self.patch.save(path.with_suffix(".patch.safetensors"))
        about = {name: getattr(self, name) for name in ("prompts", "attempts", "guided", "curves", "figures", "removed", "early")}
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(path, to_bytes(plain, {"attack": json.dumps(about | {"patch": self.patch is not None})}))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Attack | None:
        """Read what `save` wrote; None where there is nothing, or nothing whole."""
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                about, tensors = json.loads(file.metadata()["attack"]), {name: file.get_tensor(name) for name in list(file.keys())}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        patch = Patch.load(path.with_suffix(".patch.safetensors")) if about.pop("patch") else None
        extra = {name.removeprefix("extra/"): tensor for name, tensor in tensors.items() if name.startswith("extra/")}
        told = Conditioning(tensors["states"], extra) if "states" in tensors else None
        return cls(
            **about | {name: tuple(about[name]) for name in ("prompts", "removed")}, conditioning=told, start=tensors.get("start"), patch=patch
        )

    @classmethod
    def cat(cls, parts: Sequence[Attack]) -> Attack:
        """Join attacks on parts of a target; curves become means weighted by the parts' rows, over the steps that all took."""
        first, sizes = parts[0], torch.tensor([len(part.prompts) for part in parts], dtype=torch.float64)
        if len(parts) == 1:
            return first
        told = [part.conditioning for part in parts if part.conditioning is not None]
        starts = [part.start for part in parts if part.start is not None]
        curves = {}
        for name in first.curves:
            shared = min(len(part.curves[name]) for part in parts)
            rows = torch.tensor([part.curves[name][:shared] for part in parts], dtype=torch.float64)
            curves[name] = ((sizes / sizes.sum()) @ rows).tolist()
        return replace(
            first,
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            conditioning=Conditioning.cat(told) if told else None,
            start=torch.cat(starts) if starts else None,
            curves=curves,
            figures={name: [value for part in parts for value in part.figures[name]] for name in first.figures},
            early=any(part.early for part in parts),
        )


class Clock:
    """A budget of wall time, for loops that can stop after any step.

    Args:
        seconds: the budget; None has no end.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """Start the clock.

        Raises:
            Misconfigured: the budget is not positive.
        """
        if seconds is not None and not seconds > 0:
            raise Misconfigured(f"A budget must be positive; got {seconds}.", "Give seconds, or leave it out.")
        self.end = None if seconds is None else time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether the budget is spent."""
        return self.end is not None and time.monotonic() >= self.end


def losses(denoiser: Denoiser, target: Target, clean: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """Return the denoising loss of latents (b, c, h, w) as the sampler would predict, (b,): through the sampling rule, if a patch carries one."""
    a, s = denoiser.scales(t)
    added = noise if denoiser.view == "epsilon" else a * noise - s * clean
    return (predict(denoiser, target, denoiser.noised(clean, t, noise), t, conditioning) - added).square().mean((1, 2, 3))


def predict(denoiser: Denoiser, target: Target, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """Return what a sampler follows, in the network's own view: (b, c, h, w).

    That is the network's prediction; where a patch carries a sampling rule, which plain prediction would pass by, the rule's combination at the
    target's guidance, without momentum, which only whole samplings have, and with coins at one half, where samplings toss them. Rules that only
    change what the model is told leave its predictions alone.
    """
    rule, count = by_rule(denoiser), len(x_t)
    if rule is None:
        return denoiser.predict(x_t, t, conditioning, denoiser.view)
    parts = [conditioning, *(denoiser.conditioning([prompt]).expand(count) for prompt in ("", *(prompt for prompt, _ in rule.prompts)))]
    raw = denoiser.predict(x_t.repeat(len(parts), 1, 1, 1), t.repeat(len(parts)), Conditioning.cat(parts), denoiser.view).chunk(len(parts))
    steps, combined = denoiser.timesteps(target.steps), []
    for row in range(count):
        one, coin = slice(row, row + 1), torch.full((1,), 0.5)
        scale = 1.0 if denoiser.view == "epsilon" else float(denoiser.alphas_cumprod[t[row]].sqrt().clamp(min=1e-6))
        index = int((steps > int(t[row])).sum())
        said = Predictions(raw[1][one], raw[0][one], tuple(part[one] for part in raw[2:]), index, target.steps, scale, coin)
        combined.append(rule.combine(said, target.guidance))
    return torch.cat(combined)


def by_rule(denoiser: Denoiser) -> Rule | None:
    """Return the sampling rule that combines predictions where plain prediction would pass it by; None where there is none."""
    return denoiser.rules[-1] if denoiser.rules and denoiser.rules[-1].name not in TELLING else None


@contextmanager
def as_loaded(denoiser: Denoiser) -> Generator[None, None, None]:
    """Take every patch and every rule off for a while: the public base, which attackers often have."""
    weights, rules = denoiser.weights(), list(denoiser.rules)
    kept = {name: weights[name].detach().clone() for name in denoiser.replaced}

    def put(values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                weights[name].copy_(value)
        if any(name.startswith("text_encoder") for name in values):
            denoiser.forget_text()

    try:
        put(denoiser.replaced)
        denoiser.rules[:] = []
        yield
    finally:
        put(kept)
        denoiser.rules[:] = rules
