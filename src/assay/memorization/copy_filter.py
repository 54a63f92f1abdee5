"""`CopyFilter`: refuses, or draws again, images that are near-copies of works, at a rate of false refusals that is set and can be checked.

An image is a near-copy of a work where at least `agreement` of three measures (tiled l2, a DCT hash, a judge's features; `looks.py`) find it more
alike that work than their thresholds. Thresholds are set together on works that nobody copied, the calibration split: each is compared with all
protected works and its largest similarity in every measure counts, so that an innocent image is refused with at most the stated probability
(`evaluation/thresholds.py`), the more surely as a refusal asks that the measures agree on one work.

What it says is likeness, not cause. The same thing in another style is not a near-copy; a work that was redrawn, blurred or recoloured is one as far
as the thresholds reach, which `benchmarks/copy_filter.py` measures. Mirrored copies are compared as they are and pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from assay.denoiser import Denoiser, to_pictures
from assay.errors import Misconfigured, Unsupported
from assay.evaluation.features import resized
from assay.evaluation.thresholds import Joint, joint_threshold
from assay.judge import JudgeLike
from assay.memorization.looks import SIZE, Looks, looks, tables
from assay.noise import derive
from assay.works import Works

BLANK = 0.5
"""What is shown in place of a refused image: grey."""


class Match(NamedTuple):
    """The protected work that an image copies."""

    id: str
    """Of the work."""
    title: str | None
    """Its title, if it declares one."""
    creator: str | None
    """Who made it, if it says."""
    similarity: tuple[float, float, float]
    """In the three measures, higher is more alike: minus tiled l2, 1 - share of different bits, cosine."""


class Screened(NamedTuple):
    """Images that went through the filter."""

    images: torch.Tensor
    """In [0, 1]: float32, (n, 3, h, w); a refused one is grey."""
    refused: list[Match | None]
    """What each image copied that could not be drawn otherwise; None where it passed."""
    draws: list[int]
    """How often each image was drawn."""


class CopyFilter:
    """Tells near-copies of protected works; see the module.

    Args:
        works: what is protected.
        judge: gives the third measure.
        thresholds: of the three measures, higher is more alike.
    """

    def __init__(self, works: Works, judge: JudgeLike, thresholds: Joint) -> None:
        """Describe the protected works."""
        self.works, self.judge, self.thresholds = works, judge, thresholds
        self.known = _seen(works, judge)

    @classmethod
    def calibrated(cls, works: Works, judge: JudgeLike, *, rate: float = 0.01, agreement: int = 2) -> CopyFilter:
        """Protect the members of a table and set the thresholds on its calibration split.

        Args:
            works: with members, and calibration works without near-duplicates among them.
            judge: gives the third measure.
            rate: probability that an image which copies nothing is refused.
            agreement: how many of the three measures must find the same work.

        Raises:
            Unsupported: there are no members or no calibration works, or too few of these for the rate.
            Misconfigured: the rate or the agreement is out of range.
        """
        if agreement not in (1, 2, 3):
            raise Misconfigured(f"Between 1 and 3 measures can agree; got {agreement}.", "Use 2.")
        protected = works.where(lambda row: row["split"] == "member" and row["copies"] > 0)
        innocent = works.where(lambda row: row["split"] == "calibration")
        if not len(protected) or not len(innocent):
            raise Unsupported("A filter needs members to protect and calibration works to set its thresholds on.", "Declare them in `split`.")
        unset = cls(protected, judge, Joint((np.inf,) * 3, agreement, 0.0, 0))
        most = np.concatenate([np.stack([table.max(1) for table in three], 1) for _, three in tables(_seen(innocent, judge), unset.known)])
        chosen = joint_threshold(most, rate, agreement)
        if not np.isfinite(chosen.values).all():
            raise Unsupported(f"{len(innocent)} calibration works are too few for a rate of {rate:g}.", "Allow more, or declare more works.")
        unset.thresholds = chosen
        return unset

    @property
    def digest(self) -> str:
        """SHA-256 over everything that a refusal depends on."""
        about = [self.works.digest, self.judge.digest, [float(value).hex() for value in self.thresholds.values], self.thresholds.least]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def matches(self, images: torch.Tensor) -> list[Match | None]:
        """Return for every image (n, 3, h, w) in [0, 1] the protected work that it copies, the most alike if there are several; None if none."""
        found: list[Match | None] = []
        if not len(images):
            return found
        columns = {name: self.works.column(name) for name in ("id", "title", "creator")}
        limits = np.array(self.thresholds.values)
        pixels = (resized(images.detach().cpu()) * 255).round().to(torch.uint8).numpy()
        for _, three in tables(looks(pixels, self.judge), self.known):
            table = np.stack(three, 2)  # (b, works, 3)
            copied = (table > limits).sum(2) >= self.thresholds.least
            nearest = np.where(copied, table[..., 0], -np.inf).argmax(1)
            for row, work in enumerate(nearest.tolist()):
                if copied[row, work]:
                    id_, title, creator = (columns[name][work] for name in ("id", "title", "creator"))
                    found.append(Match(id_, title, creator, tuple(table[row, work].tolist())))
                else:
                    found.append(None)
        return found

    def screen(self, draw: Callable[[list[int], int], torch.Tensor], count: int, *, retries: int = 2) -> Screened:
        """Draw images, draw near-copies again, and refuse what still is one.

        Args:
            draw: given which images and how often they have been drawn, returns them: (b, 3, h, w) in [0, 1].
            count: images.
            retries: how often a near-copy is drawn again.

        Raises:
            Misconfigured: `retries` is negative.
        """
        if retries < 0:
            raise Misconfigured("`retries` cannot be negative.", "0 refuses without drawing again.")
        images: list[torch.Tensor] = [torch.empty(0)] * count
        refused: list[Match | None] = [None] * count
        draws, open_ = [0] * count, list(range(count))
        for attempt in range(retries + 1):
            if not open_:
                break
            made = draw(open_, attempt).float().cpu()
            for row, image, match in zip(open_, made, self.matches(made), strict=True):
                images[row], refused[row], draws[row] = image, match, attempt + 1
            open_ = [row for row in open_ if refused[row] is not None]
        for row in open_:
            images[row] = torch.full_like(images[row], BLANK)
        return Screened(torch.stack(images) if images else torch.empty(0, 3, SIZE, SIZE), refused, draws)

    def generate(self, denoiser: Denoiser, prompts: Sequence[str], seeds: Sequence[int], *, retries: int = 2, **options: Any) -> Screened:
        """Generate as `Denoiser.generate` does, without near-copies; an image that is drawn again gets a seed made from its own."""

        def draw(rows: list[int], attempt: int) -> torch.Tensor:
            chosen = [derive(seeds[row], "copy", attempt) if attempt else seeds[row] for row in rows]
            return denoiser.generate([prompts[row] for row in rows], chosen, **options)

        return self.screen(draw, len(seeds), retries=retries)

    def guard(self, pipeline: Any, *, retries: int = 2) -> Guarded:
        """Put the filter behind a diffusers pipeline: call what is returned as the pipeline is called."""
        return Guarded(pipeline, self, retries)


class Guarded:
    """A diffusers text-to-image pipeline that draws no near-copies.

    Args:
        pipeline: any whose call takes `prompt`, `generator` and `output_type` and returns `images`.
        copies: the filter.
        retries: how often a near-copy is drawn again.
    """

    def __init__(self, pipeline: Any, copies: CopyFilter, retries: int) -> None:
        """Keep the three."""
        self.pipeline, self.copies, self.retries = pipeline, copies, retries
        self.last: Screened | None = None
        """What the last call drew, refused and drew again."""

    def __call__(
        self, prompt: str | Sequence[str], *, num_images_per_prompt: int = 1, generator: Any = None, output_type: str = "pil", **options: Any
    ) -> Any:
        """Call the pipeline; see its own arguments. Generators go on from where they are when an image is drawn again.

        Args:
            prompt: one or several.
            num_images_per_prompt: images of each.
            generator: one for all, or one per image.
            output_type: pil, np or pt.
            **options: of the pipeline; lists with one entry per prompt are repeated with it.

        Returns:
            The pipeline's output, with refused images grey.

        Raises:
            Misconfigured: the output type is another, as of latents, which cannot be looked at.
        """
        if output_type not in ("pil", "np", "pt"):
            raise Misconfigured(f"Images of type `{output_type}` cannot be looked at.", "Ask for pil, np or pt.")
        several = [prompt] if isinstance(prompt, str) else list(prompt)
        count = len(several) * num_images_per_prompt
        output: Any = None

        def of(value: Any, rows: list[int]) -> Any:
            return [value[row // num_images_per_prompt] for row in rows] if isinstance(value, list) and len(value) == len(several) else value

        def draw(rows: list[int], _: int) -> torch.Tensor:
            nonlocal output
            given = {name: of(value, rows) for name, value in options.items()}
            if isinstance(given.get("negative_prompt"), str):
                given["negative_prompt"] = [given["negative_prompt"]] * len(rows)
            own = [generator[row] for row in rows] if isinstance(generator, list) else generator
            output = self.pipeline(prompt=of(several, rows), generator=own, output_type="pt", **given)
            return output.images

        self.last = self.copies.screen(draw, count, retries=self.retries)
        images = self.last.images
        output.images = images if output_type == "pt" else images.permute(0, 2, 3, 1).numpy() if output_type == "np" else to_pictures(images)
        return output


def _seen(works: Works, judge: JudgeLike) -> Looks:
    return looks(np.ascontiguousarray(works.pixels(SIZE).transpose(0, 3, 1, 2)), judge)
