from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from assay.errors import BadInput
from assay.works import images
from assay.works.images import decode, encode, fit, identity

PIXELS = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)  # red, then blue to its right


def stored(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_identity_is_the_hash_of_size_and_rgb():
    """Expected: SHA-256 written out by hand from the definition in the docstring."""
    assert identity(Image.fromarray(PIXELS)) == hashlib.sha256(b"2x1" + bytes([255, 0, 0, 0, 0, 255])).hexdigest()


def test_identity_ignores_format_and_metadata():
    """Expected: one id, since all of these formats are lossless."""
    kinds = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True}), ("PNG", {"exif": Image.Exif()})]
    assert len({identity(decode(stored(noise(), kind, **options))) for kind, options in kinds}) == 1


def test_identity_knows_the_shape():
    """Expected: different, since the same bytes in another shape are another picture."""
    assert identity(Image.new("RGB", (2, 1))) != identity(Image.new("RGB", (1, 2)))


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, PIXELS), (3, PIXELS[:, ::-1]), (6, PIXELS.transpose(1, 0, 2)), (8, PIXELS[:, ::-1].transpose(1, 0, 2))],
)
def test_exif_orientation_is_applied(orientation, expected):
    """Expected: the EXIF standard; 6 is shown turned clockwise, which brings the left pixel to the top, 8 the other way."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(stored(Image.fromarray(PIXELS), exif=exif))), expected)


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", (0, 51), (204, 204, 204)),
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 128 * 257, (128, 128, 128)),
        ("I;16", 65535, (255, 255, 255)),
    ],
)
def test_every_mode_comes_to_rgb(mode, pixel, expected):
    """Expected: alpha a over white is a x colour + (1 - a) x 255, with 51 / 255 = 1/5; 16 bits divided by 257."""
    assert decode(stored(Image.new(mode, (1, 1), pixel))).getpixel((0, 0)) == expected


def test_a_transparent_palette_lies_on_white():
    """Expected: the index declared transparent is white, the other keeps its colour."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    decoded = decode(stored(image, transparency=0))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]


def test_sixteen_bits_of_another_format():
    """Expected: 32768 of a maximum of 65535 is 127.5 of 255, which is stored as 128: 32768 / 257 = 127.502."""
    assert decode(b"P5 1 1 65535\n" + (32768).to_bytes(2, "big")).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("array", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 10**6, np.int32)])
def test_samples_without_a_known_white_are_refused(array):
    """Expected: an error, where Pillow would clip to black or white."""
    with pytest.raises(BadInput, match="32 bits"):
        decode(stored(Image.fromarray(array), "TIFF"))


def test_the_first_frame_of_an_animation_counts():
    """Expected: red, the colour of the first of two frames."""
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert decode(stored(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_file_is_refused(kind):
    """Expected: an error, since half of the bytes of noise cannot hold its pixels."""
    data = stored(noise(), kind)
    with pytest.raises(BadInput, match=r"cannot be decoded|no format"):
        decode(data[: len(data) // 2], name="this")


@pytest.mark.parametrize("data", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\n"])
def test_what_is_no_image_is_refused_by_name(data):
    """Expected: an error with the name given, and without the address of a buffer, so that reasons can be counted."""
    with pytest.raises(BadInput, match=r"^cat\.png ") as caught:
        decode(data, name="cat.png")
    assert "0x" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA"]), st.integers(0, 10**6), st.binary(min_size=1, max_size=6))
def test_damaged_bytes_raise_nothing_else(kind, position, patch):
    """Expected: a picture or `BadInput`; any other exception would end an import."""
    data = bytearray(stored(noise(8), kind))
    position %= len(data)
    data[position : position + len(patch)] = patch
    with suppress(BadInput):
        assert decode(bytes(data)).mode == "RGB"


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    """Expected: the limit is the last size that passes."""
    monkeypatch.setattr(images, "MAX_PIXELS", 4)
    assert decode(stored(Image.new("RGB", (2, 2)))).size == (2, 2)
    with pytest.raises(BadInput, match="5x1"):
        decode(stored(Image.new("RGB", (5, 1))))


def test_a_bomb_is_refused_by_its_header():
    """Expected: an error at once; the header claims 12 GB of pixels and the file has none of them."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + struct.pack(">I", 0) + b"IDAT"
    with pytest.raises(BadInput, match=r"65000x65000|exceeds limit"):
        decode(data)


def test_threads_decode_side_by_side_and_leave_the_warnings_alone():
    """Expected: the pixels that went in, from each of 400 files in 8 threads, and the filters of warnings as they were."""
    before = list(warnings.filters)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 256, (9, 9, 3), dtype=np.uint8) for _ in range(400)]
    data = [stored(Image.fromarray(one), ("PNG", "BMP")[number % 2]) for number, one in enumerate(drawn)]
    with ThreadPoolExecutor(8) as pool:
        for one, image in zip(drawn, pool.map(decode, data), strict=True):
            assert np.array_equal(np.asarray(image), one)
    assert warnings.filters == before


def test_too_many_bytes_are_refused(monkeypatch):
    """Expected: an error one byte past the limit."""
    data = stored(Image.new("RGB", (2, 2)))
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    assert decode(data).size == (2, 2)
    with pytest.raises(BadInput, match="MiB"):
        decode(data + b" ")


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_storing_loses_nothing(pixels):
    """Expected: the pixels that went in."""
    assert np.array_equal(np.asarray(decode(encode(Image.fromarray(pixels)))), pixels)


def test_fit_cuts_the_middle_square():
    """Expected: columns 1 and 2 of 4, not resampled, since the height is right already."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(fit(Image.fromarray(pixels), 2)), pixels[:, 1:3])


def test_fit_scales_the_shorter_side():
    """Expected: one colour stays that colour under any resampling."""
    fitted = fit(Image.new("RGB", (100, 37), (9, 99, 199)), 16)
    assert (fitted.size, fitted.getcolors()) == ((16, 16), [(256, (9, 99, 199))])
