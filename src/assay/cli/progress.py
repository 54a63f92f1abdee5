"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere, nothing with `--quiet`."""

from __future__ import annotations

import sys
import time
from unicodedata import category

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of characters that do something on a terminal in place of being shown: control, format, halves of characters, ends of lines."""
JOINERS = "\u200c\u200d"
"""Format characters that only join letters and emoji, or keep them apart."""


def printable(line: str) -> str:
    """Return a line that a terminal only shows, whoever named what stands in it: characters that it would obey are written as in `repr`."""
    return "".join(char.encode("unicode_escape").decode() if category(char) in OBEYED and char not in JOINERS else char for char in line)


class Display:
    """Shows how far the work is.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        """Start the clock."""
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()
        self.started: dict[str, float] = {}
        self.shown = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` units of a stage are done."""
        now = time.monotonic()
        begun = self.started.setdefault(stage, now)
        finished = done >= total
        if self.quiet or (not finished and now - self.shown < (0.2 if self.terminal else 5.0)):
            return
        self.shown = now
        left = (now - begun) / done * (total - done) if done else 0.0
        text = printable(f"{stage}: {done}/{total}{f', {left:.0f} s left' if done and not finished else ''}{f', {note}' if note else ''}")
        if self.terminal:
            width = 24
            filled = round(width * done / max(1, total))
            sys.stderr.write(f"\r\x1b[2K[{'#' * filled}{'.' * (width - filled)}] {text}" + ("\n" if finished else ""))
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a line of talk."""
        if not self.quiet:
            sys.stderr.write(("\r\x1b[2K" if self.terminal else "") + printable(text) + "\n")
            sys.stderr.flush()
