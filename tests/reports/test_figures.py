from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from assay.record import Curve
from assay.reports.figures import THEME, draw

NAMESPACE = "{http://www.w3.org/2000/svg}"


def curve(lines: dict, scale: str = "linear", title: str = "Recall") -> Curve:
    return Curve.model_validate({"title": title, "x_label": "k", "y_label": "share", "lines": lines, "x_scale": scale})


TWO = {"one": [(0, 0.1, 0.0, 0.2), (4, 0.5, None, None), (64, 0.9, 0.7, 1.0)], "two": [(0, 0.1, 0.0, 0.2), (64, 0.2, 0.1, 0.3)]}


@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
@pytest.mark.parametrize("lines", [TWO, {"one": [(1, 3.0, None, None)]}, {}, {"none": []}, {f"line {i}": TWO["two"] for i in range(9)}])
def test_every_curve_is_sound_xml_in_the_pages_colours(lines, scale):
    # XML by the standard parser; a fixed colour would not turn with the theme.
    svg = draw(curve(lines, scale))
    ElementTree.fromstring(svg)
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
    assert set(re.findall(r"var\((--[\w-]+)\)", svg)) <= {*THEME.values(), "--sans"}
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_text_stays_text():
    # The words of the curve, and its x values as ticks, as elements that can be searched, read aloud and set in the reader's font.
    tree = ElementTree.fromstring(draw(curve(TWO, "symlog")))
    texts = [element.text for element in tree.iter(f"{NAMESPACE}text")]
    assert {"k", "share", "one", "two", "0", "4", "64"} <= set(texts)


@pytest.mark.parametrize(("scale", "expected"), [("log", {"0.02", "0.05", "0.1", "0.2", "0.5", "1"}), ("symlog", {"0.1", "1"})])
def test_many_places_on_a_logarithmic_scale_have_plain_numbers(scale, expected):
    # Ticks between the ends of 0.02 to 1: at 1, 2 and 5 times powers of ten; and no TeX, which would be shown as it is written.
    points = [(0.02 * 50 ** (step / 19), step / 19, None, None) for step in range(20)]
    svg = draw(curve({"one": points}, scale))
    assert expected <= {element.text for element in ElementTree.fromstring(svg).iter(f"{NAMESPACE}text")}
    assert "$" not in svg


def test_a_rate_of_zero_lies_at_the_foot_of_a_logarithmic_scale():
    # The scale begins at the smallest rate above zero, 0.01, with plain ticks at 1, 2 and 5 times powers of ten; zero has no logarithm to fail on.
    made = curve({"one": [(0.01, 0.0, 0.0, 0.05), (0.1, 0.01, None, None), (1, 1.0, None, None)]}, "log").model_copy(update={"y_scale": "log"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a drawing larger than its figure
        svg = draw(made)
    assert {"0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"} <= {element.text for element in ElementTree.fromstring(svg).iter(f"{NAMESPACE}text")}
    assert "nan" not in svg
    assert "inf" not in svg


def test_what_lies_at_the_foot_is_said():
    # Without the words a rate of zero, or an interval down to it, would read as 0.01; where nothing is zero, or the scale has a zero, none are due.
    def label(points: list, scale: str) -> bool:
        svg = draw(curve({"one": points}, "linear").model_copy(update={"y_scale": scale}))
        texts = {element.text for element in ElementTree.fromstring(svg).iter(f"{NAMESPACE}text")}
        assert texts & {"share", "share; 0 lies at the foot"}
        return "share; 0 lies at the foot" in texts

    zero, down_to_zero, above = [(1, 0.0, None, None)], [(1, 0.01, 0.0, 0.1)], [(1, 0.01, 0.005, 0.1)]
    assert [label([*points, (2, 1.0, None, None)], "log") for points in (zero, down_to_zero, above)] == [True, True, False]
    assert not label(zero, "linear")


def test_ids_are_prefixed_and_every_reference_is_met():
    # Two drawings on one page may not share an id.
    first, second = (draw(curve(TWO), name) for name in ("figure-1", "figure-2"))
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'href="#([^"]+)"|url\(#', first)) - {""} <= ids[0]


def test_hostile_words_are_only_words():
    # `<script>` must come out escaped, and an odd dollar sign is no formula.
    hostile = "<script>alert('$')</script> 5 $ \"x\""
    made = curve({hostile: TWO["one"], "_under": TWO["two"]}, title=hostile)
    svg = draw(made.model_copy(update={"x_label": hostile}))
    tree = ElementTree.fromstring(svg)
    assert "<script" not in svg
    assert tree.get("aria-label") == hostile
    assert [element.text for element in tree.iter(f"{NAMESPACE}text")].count(hostile) == 2


def test_drawing_is_repeatable_and_leaves_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    assert draw(curve(TWO)) == draw(curve(TWO))
    assert dict(mpl.rcParams) == before
