from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from assay.reports.pictures import captioned, grid, save_picture, side_by_side, small_png


def solid(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def noise(seed: int, size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8))


def test_a_bare_grid_holds_every_pixel_as_a_square():
    # By hand: gap 2 all round, 8 pixels x scale 3 = 24 a cell; np.kron is nearest-neighbour enlargement by definition.
    cells = [[noise(1), noise(2)], [noise(3), None]]
    made = np.asarray(grid(cells, scale=3, gap=2))
    assert made.shape == (2 + 2 * 26, 2 + 2 * 26, 3)
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            found = made[2 + 26 * y : 26 + 26 * y, 2 + 26 * x : 26 + 26 * x]
            expected = np.full((24, 24, 3), 255) if cell is None else np.kron(np.asarray(cell), np.ones((3, 3, 1), np.uint8))
            np.testing.assert_array_equal(found, expected)


def test_labels_stand_left_and_above_and_leave_the_cells_alone():
    # Labels may only add room at the left and the top: the lower right part is the bare grid.
    cells = [[noise(1, 64), noise(2, 64)]]
    bare, labelled = np.asarray(grid(cells)), np.asarray(grid(cells, ["noto style"], ["cat face", "red apple"]))
    height, width = bare.shape[0] - 6, bare.shape[1] - 6
    np.testing.assert_array_equal(labelled[-height:, -width:], bare[6:, 6:])
    assert (labelled[:-height, -width:] < 128).any()
    assert (labelled[-height:, :-width] < 128).any()


def test_long_labels_stay_within_their_column():
    # The middle column has a white neighbour on each side, above which nothing may be written.
    label = "a title so long that no column could ever hold the whole of it " * 3
    made = np.asarray(grid([[solid((9, 9, 9), (64, 64))] * 3], (), ["", f"{'x' * 90} {label}", ""], scale=1, gap=6))
    head = made[: made.shape[0] - 70]
    assert (head[:, 76:140] < 128).any()
    assert (head[:, :73] == 255).all()
    assert (head[:, 143:] == 255).all()


def test_smaller_images_are_centred_and_transparency_is_white():
    # A 4x4 image in an 8x8 cell leaves 2 pixels on each side.
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    made = np.asarray(grid([[solid((200, 0, 0)), solid((0, 0, 200), (4, 4)), clear]], scale=1, gap=1))
    np.testing.assert_array_equal(made[3:7, 12:16], np.broadcast_to((0, 0, 200), (4, 4, 3)))
    assert (made[1:9, 19:27] == 255).all()


def test_side_by_side_is_a_grid_of_one_row():
    assert side_by_side([noise(1), noise(2)], ["a", "b"]) == grid([[noise(1), noise(2)]], (), ["a", "b"])


def test_a_saved_picture_is_named_by_the_hash_of_its_file(tmp_path):
    # SHA-256 by hashlib over the bytes on disk; PNG is lossless.
    picture = save_picture(noise(5), tmp_path / "new", "pictures/one", "What is seen.")
    path = tmp_path / "new" / picture.file
    assert picture.file == "pictures/one.png"
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(noise(5)))
    assert [p.name for p in path.parent.iterdir()] == ["one.png"]


def test_a_captioned_picture_keeps_its_pixels_in_a_frame():
    """By hand: 8 pixels in a tile of 40, so that columns 16 to 23 and rows 2 to 9 are the picture, whatever the text."""
    image, red = noise(1), (200, 60, 50)
    made = [np.asarray(captioned(image, text, 40, red)) for text in ("", "words that say what was told\x04 at some length, more than fits")]
    assert made[0].shape == made[1].shape
    for tile in made:
        np.testing.assert_array_equal(tile[2:10, 16:24], np.asarray(image))
        assert (tile[0, 14:26] == red).all()
    assert (made[0][14:] == 255).all()
    assert (made[1][14:] < 128).any()
    halves = [np.asarray(captioned(image, text, 40, red)) for text in ("in \ufffd", "in \u079d", "in ?")]
    for half in halves[:2]:
        np.testing.assert_array_equal(half, halves[2])


def test_labels_are_spelled_with_what_the_font_has():
    """The font has one script and no accents: these are dropped, another script is question marks; no label shows the box of a missing glyph."""
    image = noise(1)
    for written, plain in (("piñata", "pinata"), ("cat \u079d", "cat ?"), ("a\x04b", "a b")):
        for at in ({"row_labels": [written]}, {"column_labels": [written]}):
            same = {name: [plain] for name in at}
            np.testing.assert_array_equal(np.asarray(grid([[image]], **at)), np.asarray(grid([[image]], **same)))


def test_a_small_png_fits_its_limit():
    """Noise of 128 x 128 needs about 16 kB in 256 colours: below that fewer colours do, and far below only a smaller picture."""
    image = noise(1, 128)
    for most in (100_000, 14_000, 2_000):
        data = small_png(image, most)
        assert len(data) <= most
    assert Image.open(io.BytesIO(small_png(image, 14_000))).size == (128, 128)
    assert Image.open(io.BytesIO(data)).width < 128
