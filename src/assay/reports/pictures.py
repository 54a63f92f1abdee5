"""The pictures that records need: labelled grids of small images, enlarged without blur, saved beside the record by their hash."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from assay.record import Picture, write_atomically

INK = (45, 45, 48)
PAPER = (255, 255, 255)
LINES = 3


def grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    scale: int = 2,
    gap: int = 6,
    label_size: int = 13,
) -> Image.Image:
    """Lay images out in rows on white, pixels enlarged as squares, with labels left and above.

    Args:
        rows: images by row; None leaves a cell empty, smaller images are centred.
        row_labels: one per row, or none at all.
        column_labels: one per column, or none at all; wrapped to the column's width.
        scale: whole factor of enlargement.
        gap: pixels between cells.
        label_size: height of the letters in pixels.
    """
    images = [image for row in rows for image in row if image is not None]
    width = max((image.width for image in images), default=1) * scale
    height = max((image.height for image in images), default=1) * scale
    count = max((len(row) for row in rows), default=0)
    font = ImageFont.load_default(label_size)
    line = round(label_size * 1.3)
    left_texts = [_wrap(label, font, 12 * label_size, max(1, min(LINES, height // line))) for label in row_labels]
    top_texts = [_wrap(label, font, width, LINES) for label in column_labels]
    left = round(max((font.getlength(text) for lines in left_texts for text in lines), default=0)) + (2 * gap if left_texts else gap)
    top = max((len(lines) for lines in top_texts), default=0) * line + gap * (2 if top_texts else 1)
    canvas = Image.new("RGB", (left + count * (width + gap), top + len(rows) * (height + gap)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for x, lines in enumerate(top_texts):
        middle = left + x * (width + gap) + width / 2
        for place, text in enumerate(lines):
            pen.text((middle, top - gap - (len(lines) - place - 0.5) * line), text, INK, font, anchor="mm")
    for y, row in enumerate(rows):
        upper = top + y * (height + gap)
        for place, text in enumerate(left_texts[y] if y < len(left_texts) else []):
            pen.text((left - gap, upper + height / 2 + (place + 0.5 - len(left_texts[y]) / 2) * line), text, INK, font, anchor="rm")
        for x, image in enumerate(row):
            if image is not None:
                _paste(canvas, image, scale, (left + x * (width + gap), upper), (width, height))
    return canvas


def side_by_side(images: Sequence[Image.Image], labels: Sequence[str], scale: int = 2, gap: int = 6) -> Image.Image:
    """Lay images out in one row with a label above each: a base beside its edits, a work beside its copy."""
    return grid([images], (), labels, scale, gap)


def save_picture(image: Image.Image, folder: str | Path, name: str, caption: str) -> Picture:
    """Write a picture as PNG beside a record and return its entry, with the hash of the file.

    Args:
        image: what to save.
        folder: the record's folder.
        name: of the file, relative to the folder; `.png` is added where it is missing.
        caption: what is to be seen, in a sentence.
    """
    file = name if name.endswith(".png") else f"{name}.png"
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    write_atomically(Path(folder) / file, buffer.getvalue())
    return Picture(file=file, sha256=hashlib.sha256(buffer.getvalue()).hexdigest(), caption=caption)


def captioned(image: Image.Image, text: str, width: int, frame: tuple[int, int, int], label_size: int = 9) -> Image.Image:
    """Return an image in a coloured frame, with up to three lines of text below it, in a tile of one size for all texts.

    Args:
        image: as it is.
        text: broken at spaces; what does not fit ends in an ellipsis.
        width: of the tile in pixels, at least the image's and its frame's.
        frame: its colour.
        label_size: height of the letters in pixels.
    """
    font, line = ImageFont.load_default(label_size), round(label_size * 1.2)
    width = max(width, image.width + 4)
    tile = Image.new("RGB", (width, image.height + 6 + LINES * line), PAPER)
    pen = ImageDraw.Draw(tile)
    left = (width - image.width) // 2
    pen.rectangle((left - 2, 0, left + image.width + 1, image.height + 3), outline=frame, width=2)
    tile.paste(image, (left, 2))
    for place, words in enumerate(_wrap(text, font, width - 2, LINES)):
        pen.text((width / 2, image.height + 6 + (place + 0.5) * line), words, INK, font, anchor="mm")
    return tile


def small_png(image: Image.Image, most: int = 100_000, texts: Mapping[str, str] = {}) -> bytes:
    """Return a picture as a PNG of at most `most` bytes: in fewer and fewer colours, and then smaller; `texts` go into it by name."""
    colours, told = 256, PngInfo()
    for name, text in texts.items():
        told.add_itxt(name, text)
    while True:
        buffer = io.BytesIO()
        image.quantize(colours).save(buffer, "PNG", optimize=True, pnginfo=told)
        if buffer.tell() <= most:
            return buffer.getvalue()
        if colours > 32:
            colours //= 2
        else:
            image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)


def _paste(canvas: Image.Image, image: Image.Image, scale: int, corner: tuple[int, int], cell: tuple[int, int]) -> None:
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    place = (corner[0] + (cell[0] - large.width) // 2, corner[1] + (cell[1] - large.height) // 2)
    canvas.paste(large, place, large.convert("RGBA").getchannel("A"))


def _wrap(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float, most: int) -> list[str]:
    """Break a label at spaces into at most `most` lines no wider than `width`; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    for word in _spelled(label, font).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    kept, left_out = lines[:most], lines[most:]
    if left_out:
        kept[-1] = f"{kept[-1]} {' '.join(left_out)}"
    return [_clip(line, font, width) for line in kept]


def _spelled(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Spell a text with what the font has: else the letter without its accents, else a question mark; a space for what cannot be printed.

    Half a character, from a token of some of its bytes, is such a question mark.
    """

    def drawn(letter: str) -> bytes:
        ground = Image.new("L", (64, 64))
        ImageDraw.Draw(ground).text((0, 0), letter, 255, font)
        return ground.tobytes()

    lacking = drawn("\uffff")  # of no character, so of none that a font has

    def spelled(letter: str) -> str:
        plain = unicodedata.normalize("NFKD", letter)[0]
        return next((one for one in (letter, plain) if drawn(one) != lacking), "?") if letter.isprintable() else " "

    return text.translate({ord(letter): spelled(letter) for letter in set(text)})


def _clip(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
