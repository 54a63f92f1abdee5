"""Numbers as a reader wants them: rounded to what the interval supports, aligned at the point, with units that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

THIN = "\u202f"
MINUS = "\u2212"
NONE = "–"
FIGURE_SPACE = "\u2007"
POINT_SPACE = "\u2008"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def fixed(value: float, decimals: int) -> str:
    """Write a number with that many decimals, a true minus sign, and thin spaces between thousands from 10,000 up."""
    text = f"{value:,.{decimals}f}" if abs(value) >= 10_000 else f"{value:.{decimals}f}"
    text = text if any(digit in text for digit in "123456789") else text.removeprefix("-")
    return text.replace(",", THIN).replace("-", MINUS)


def scientific(value: float) -> str:
    """Write a number as a product with a power of ten, two decimals."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.replace('-', MINUS)}×10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def number(value: float | None, decimals: int | None = None) -> str:
    """Write a number with `decimals`, or with three significant digits and no idle zeros where none are given."""
    if value is None or not math.isfinite(value):
        return NONE
    if value and not 1e-4 <= abs(value) < 1e15:
        return scientific(value)
    if decimals is None:
        text = fixed(value, 0 if value == int(value) else max(0, 2 - math.floor(math.log10(abs(value)))))
        return text.rstrip("0").rstrip(".") if "." in text else text
    return fixed(value, decimals)


def with_interval(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """Write a figure and its interval with the same decimals: two significant digits of the interval's width.

    Returns:
        The figure, and `[low, high]` or an empty string.
    """
    if value is None or low is None or high is None:
        return number(value), ""
    width = high - low
    decimals = max(0, 1 - math.floor(math.log10(width))) if width > 0 else None
    if decimals is not None and decimals <= 6:
        return fixed(value, decimals), f"[{fixed(low, decimals)}, {fixed(high, decimals)}]"
    return number(value), f"[{number(low)}, {number(high)}]"


def column(values: Sequence[float | None]) -> list[str]:
    """Write the numbers of a column with the same decimals: three significant digits of the largest; smaller ones keep their own."""
    finite = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    whole = all(v == int(v) for v in finite)
    decimals = 0 if whole or not finite else max(0, 2 - math.floor(math.log10(max(finite))))
    return [number(v, decimals) if v is None or not v or abs(v) >= 0.5 * 10**-decimals else number(v) for v in values]


def aligned(texts: Sequence[str]) -> list[str]:
    """Return what to put behind each right-aligned number so that the points stand under each other."""
    tails = [len(text.partition(".")[2]) if "×" not in text else 0 for text in texts]
    longest = max(tails, default=0)
    return [(POINT_SPACE if longest and not tail else "") + FIGURE_SPACE * (longest - tail) for tail in tails]


def duration(seconds: float) -> str:
    """Write a duration in the two largest units that matter."""
    if seconds < 60:
        return f"{number(round(seconds, 2 if seconds < 10 else 0))} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """Write a number of bytes in binary units."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"
