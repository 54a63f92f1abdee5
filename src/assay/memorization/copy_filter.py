"""`CopyFilter`: refuses, or draws again, images that are near-copies of works, at a rate of false refusals that is set and can be checked.

An image is a near-copy of a work where the ratio of its distance to that work to its distance to the nearest work of another cluster of
near-duplicates is less than a threshold: the ratio test of Lowe (2004, Int. J. Comput. Vis. 60:91, Sec. 7.1) with the aligned tiled l2 distance
(`evaluation/alignment.py`). Near one of many works that look alike is no copy; nearer to one than to any other is. The threshold is set on works that
copied nothing, the calibration split, so that another such work is refused with at most the stated probability (`evaluation/thresholds.py`). What a
model draws is of another kind, nearer to what it saw: `benchmarks/copy_filter.py` counts refusals of drawings too.

Of pictures that are not square the middle square is compared, as it is of works. What it says is likeness, not cause. The same thing in another style
is no near-copy; a work that was cut, moved, blurred, darkened or compressed is one. A work drawn anew is one as far as its lines stay:
`benchmarks/copy_filter.py` measures how far. Mirrored copies pass, and so do copies of works that are all but the same as others of another cluster.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from assay.denoiser import Denoiser, to_pictures
from assay.errors import Misconfigured, Unsupported
from assay.evaluation.alignment import SIZE, Aligner
from assay.evaluation.thresholds import Threshold, threshold_at
from assay.noise import derive
from assay.works import Works
from assay.works.clusters import close_pairs, declared, join, thumbnails

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
    distance: float
    """Tiled l2 at the best alignment (`evaluation/alignment.py`)."""
    ratio: float
    """That over the distance to the nearest work of another cluster: less than the threshold."""


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
        works: what is protected. Near-duplicates among them, which are no rivals, are those declared and those found (`works/clusters.py`).
        threshold: ratio below which an image is a near-copy.
        calibration: how the threshold was set, if it was.
    """

    def __init__(self, works: Works, threshold: float, calibration: Threshold | None = None) -> None:
        """Prepare the protected works.

        Raises:
            Unsupported: there are fewer than two works, so that no ratio can be taken.
        """
        if len(works) < 2:
            raise Unsupported("A ratio of distances needs at least two protected works.", "Protect more.")
        self.works, self.threshold, self.calibration = works, threshold, calibration
        self.clusters = alike(works)
        self.aligner = Aligner(np.ascontiguousarray(works.pixels(SIZE).transpose(0, 3, 1, 2)))
        self.about = list(zip(*(works.column(name) for name in ("id", "title", "creator")), strict=True))

    @classmethod
    def calibrated(cls, works: Works, *, rate: float = 0.02) -> CopyFilter:
        """Protect the members of a table and set the threshold on its calibration split.

        Args:
            works: with members, and calibration works, of which those with near-duplicates among the members are left out.
            rate: probability that an image which copies nothing is refused.

        Raises:
            Unsupported: there are no members or no calibration works, or too few of these for the rate.
        """
        protected = works.where(lambda row: row["split"] == "member" and row["copies"] > 0)
        innocent = works.where(lambda row: row["split"] == "calibration")
        labels = alike(Works(pa.concat_tables([protected.table, innocent.table])))
        innocent = innocent.take(np.flatnonzero(~np.isin(labels[len(protected) :], labels[: len(protected)])))
        if not len(protected) or not len(innocent):
            raise Unsupported("A filter needs members to protect and calibration works to set its threshold on.", "Declare them in `split`.")
        made = cls(protected, 0.0)
        pixels = torch.from_numpy(np.ascontiguousarray(innocent.pixels(SIZE).transpose(0, 3, 1, 2))) / 255
        found = threshold_at([-match.ratio for match in made.nearest(pixels)], rate)
        if not np.isfinite(found.value):
            raise Unsupported(f"{len(innocent)} calibration works are too few for a rate of {rate:g}.", "Allow more, or declare more works.")
        made.threshold, made.calibration = -found.value, found
        return made

    @property
    def digest(self) -> str:
        """SHA-256 over everything that a refusal depends on."""
        return hashlib.sha256(json.dumps([self.works.digest, float(self.threshold).hex(), self.aligner.shortlist]).encode()).hexdigest()

    def nearest(self, images: torch.Tensor) -> list[Match]:
        """Return for every image (n, 3, h, w) in [0, 1] the protected work that it is nearest to, copy or not."""
        aligned = self.aligner.nearest(images)
        found = []
        for rows, distances in zip(aligned.works, aligned.distances, strict=True):
            others = distances[self.clusters[rows] != self.clusters[rows[0]]]
            rival = float(others[0]) if len(others) else 1.0
            ratio = float(distances[0]) / rival if distances[0] > 1e-6 else 0.0
            id_, title, creator = self.about[rows[0]]
            found.append(Match(id_, title, creator, float(distances[0]), ratio))
        return found

    def matches(self, images: torch.Tensor) -> list[Match | None]:
        """Return for every image (n, 3, h, w) in [0, 1] the protected work that it copies; None where it copies none."""
        return [match if match.ratio < self.threshold else None for match in self.nearest(images)]

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


def alike(works: Works) -> np.ndarray:
    """Label works by near-duplicates, those declared as a cluster and those found joined: int32, (n,)."""
    _, first, codes = np.unique(declared(works.column("cluster")), return_index=True, return_inverse=True)
    known = np.stack([first[codes], np.arange(len(works))], axis=1)
    return join(len(works), np.concatenate([known, close_pairs(thumbnails(works.pixels(SIZE)))]))


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
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Call the pipeline; see its own arguments. Generators go on from where they are when an image is drawn again.

        Args:
            prompt: one or several.
            num_images_per_prompt: images of each.
            generator: one for all, or one per image.
            output_type: pil, np or pt.
            return_dict: whether to return the pipeline's output, or the same as a tuple.
            **options: of the pipeline; further prompts, as `negative_prompt` and `prompt_2`, are one for all or one for each.

        Returns:
            The pipeline's output, with refused images grey; what it says of each image, as of its own checker, is of the drawing that is shown.

        Raises:
            Misconfigured: the output type is another, as of latents, which cannot be looked at; or prompts are given as embeddings, or latents
                to draw from, and again from.
        """
        if options.get("latents") is not None and self.retries:
            raise Misconfigured("Given latents draw the same image each time.", "Give a generator instead, or filter with `retries=0`.")
        if output_type not in ("pil", "np", "pt"):
            raise Misconfigured(f"Images of type `{output_type}` cannot be looked at.", "Ask for pil, np or pt.")
        if embedded := [name for name, value in options.items() if name.endswith("embeds") and value is not None]:
            raise Misconfigured(f"`{embedded[0]}` cannot be filtered: which images are of which prompt is unknown.", "Give prompts as text.")
        several = [prompt] if isinstance(prompt, str) else list(prompt)
        count = len(several) * num_images_per_prompt
        whole: Any = None

        def of(name: str, value: Any, rows: list[int]) -> Any:
            if "prompt" not in name or not isinstance(value, (str, list, tuple)):
                return value
            each = [value] * len(several) if isinstance(value, str) else value
            return [each[row // num_images_per_prompt] for row in rows]

        def draw(rows: list[int], _: int) -> torch.Tensor:
            nonlocal whole
            given = {name: of(name, value, rows) for name, value in options.items()}
            own = [generator[row] for row in rows] if isinstance(generator, list) else generator
            output = self.pipeline(prompt=of("prompt", several, rows), generator=own, output_type="pt", **given)
            whole = whole or output
            for name, value in output.items():
                if isinstance(value, list) and len(value) == len(rows) and output is not whole:
                    for row, one in zip(rows, value, strict=True):
                        whole[name][row] = one
            return output.images

        self.last = self.copies.screen(draw, count, retries=self.retries)
        images = self.last.images
        whole.images = images if output_type == "pt" else images.permute(0, 2, 3, 1).numpy() if output_type == "np" else to_pictures(images)
        return whole if return_dict else whole.to_tuple()
