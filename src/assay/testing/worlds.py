"""A handful of works made in code: coloured shapes in two styles, by named creators, with a repeated work."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageDraw

from assay.attacks.target import Target
from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.noise import derive, numpy_generator
from assay.works.images import encode, identity
from assay.works.table import Works

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "green", "blue", "orange", "purple")
STYLES = ("solid", "outline")


def tiny_works(size: int = 32, seed: int = 0) -> Works:
    """Return 50 works: 5 shapes x 5 colours x 2 styles, split 80/10/10, one repeated 16 times as a canary."""
    generator = numpy_generator(seed, "tiny works")
    rows = []
    for index, (shape, colour, style) in enumerate((s, c, t) for s in SHAPES for c in COLOURS for t in STYLES):
        image = _draw(shape, colour, style == "solid", size, int(generator.integers(-2, 3)))
        title = f"{colour} {shape}"
        split = ("calibration", "holdout")[index // 10 % 2] if index % 10 < 2 else "member"
        rows.append({
            "id": identity(image),
            "image": encode(image),
            "captions": [f"{title}, {style} style"],
            "title": title,
            "tags": [shape, colour],
            "style": style,
            "group": f"shapes/{shape}",
            "creator": f"{style.title()} Studio {index % 3 + 1}",
            "license": "CC0-1.0",
            "source": "made in code",
            "split": split,
            "copies": 16 if index == 5 else int(split == "member"),
            "cluster": index,
            "attributes": [("canary", "one"), ("dose", "16")] if index == 5 else [],
        })
    return Works.from_rows(rows)


def own_among(works: Works, every: int = 6) -> Works:
    """Return works some of which, every so many of the members, somebody asks after: they declare `mine`, and nobody says what they are."""
    rows = [row | {"attributes": sorted(row["attributes"].items())} for row in works]
    for row in [row for row in rows if row["split"] == "member"][::every]:
        row |= {"attributes": [("mine", "yes")], "split": None, "copies": None}
    return Works.from_rows(rows)


def tiny_target(denoiser: Denoiser, size: int = 2) -> Target:
    """Return what an attack on `green` is to bring back of a tiny pipeline: some green works and prompts, and three other green works."""
    works = tiny_works(denoiser.image_size).where(lambda row: row["title"].startswith("green") and row["copies"] == 1)
    pixels = torch.from_numpy(works.pixels(denoiser.image_size)).permute(0, 3, 1, 2) / 255
    latents, titles = denoiser.latents(pixels), works.column("title")
    captions = tuple(captions[0] for captions in works.column("captions"))
    prompts = tuple(f"a {title}" for title in titles[:size])
    seeds = tuple(derive("tiny target", prompt, row) for row, prompt in enumerate(prompts))
    concept = Concept("green", "free", "blue")
    return Target(concept, prompts, latents[:size], seeds, latents[size : size + 3], captions[size : size + 3], ("emerald",), steps=4)


def _draw(shape: str, colour: str, filled: bool, size: int, shift: int) -> Image.Image:
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    low, high, middle = size // 5 + shift, size - size // 5 + shift, size // 2 + shift
    style: dict[str, Any] = {"fill": colour} if filled else {"outline": colour, "width": max(1, size // 16)}
    if shape == "circle":
        pen.ellipse((low, low, high, high), **style)
    elif shape == "square":
        pen.rectangle((low, low, high, high), **style)
    elif shape == "triangle":
        pen.polygon([(middle, low), (high, high), (low, high)], **style)
    elif shape == "cross":
        pen.line((low, low, high, high), fill=colour, width=size // (6 if filled else 12))
        pen.line((low, high, high, low), fill=colour, width=size // (6 if filled else 12))
    else:
        pen.ellipse((low, low, high, high), outline=colour, width=size // (5 if filled else 12))
    return image
