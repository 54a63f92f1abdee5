"""Decode, identify and store single images, with limits: a file that is too large or too odd raises instead of filling the memory."""

from __future__ import annotations

import hashlib
import io
import warnings
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from assay.errors import BadInput

MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
MAX_SIDE = 16_383
"""The longest side that WebP can store."""
ONE_AT_A_TIME = Lock()
"""Held while warnings are caught, which threads would undo for each other."""
PLAIN = {"JPEG", "PNG", "WEBP"}
"""Formats that hold no more pixels than their header says, so that they give no warning later and are decoded side by side."""


def decode(data: bytes, *, name: str = "the image") -> Image.Image:
    """Decode an image file to RGB: EXIF orientation applied, transparency laid on white, first frame of an animation.

    Args:
        data: the bytes of a file in any format that Pillow reads.
        name: what to call it in an error.

    Raises:
        BadInput: the bytes are no image, are truncated, or hold more than 64 megapixels or 64 MiB.
    """
    if len(data) > MAX_BYTES:
        raise BadInput(f"{name} is {len(data) / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} MiB are read.", "Resize it, or leave it out.")
    try:
        with ONE_AT_A_TIME, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(f"{name} is {image.width}x{image.height}; at most {MAX_PIXELS / 10**6:g} megapixels are read.", "Resize it.")
            if image.format == "EPS":
                raise BadInput(f"{name} is PostScript, a program that is run to be seen.", "Convert it to PNG.")
            if image.format not in PLAIN:
                image.load()
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, name)
    except BadInput:
        raise
    except UnidentifiedImageError as error:
        raise BadInput(f"{name} is in no format that Pillow reads.", "Replace the file, or leave it out.") from error
    except Exception as error:  # on damaged bytes a decoder may raise anything
        raise BadInput(f"{name} cannot be decoded: {error}.", "Replace the file, or leave it out.") from error


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Bring any mode to RGB: transparency laid on white, 16 bits scaled to 8, where Pillow alone would clip them to white.

    Raises:
        BadInput: the samples are floating-point or wider than 16 bits, so that their white is unknown.
    """
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
        if samples.min() >= 0 and samples.max() < 2**16:
            return Image.fromarray((samples / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise BadInput(f"{name} has samples of 32 bits, whose white is unknown.", "Convert it to 8 or 16 bits.")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def encode(image: Image.Image) -> bytes:
    """Encode as lossless WebP, the smallest lossless form for drawings that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=100, method=4, exact=True)
    return buffer.getvalue()


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` with Lanczos and cut the middle square: (size, size) RGB."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def identity(image: Image.Image) -> str:
    """Return the id of a work: SHA-256 of "WIDTHxHEIGHT" and the decoded RGB bytes, in hexadecimal.

    Two files with the same pixels have the same id, whatever their format or metadata.
    """
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update((image if image.mode == "RGB" else image.convert("RGB")).tobytes())
    return digest.hexdigest()
