"""`OutFolder`: a folder that belongs to one plan, so that running the same command again goes on, and another command is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary, finalize

from assay.errors import Misconfigured, Mismatch, NoRoom
from assay.record import digest_of, write_atomically


class OutFolder:
    """The folder a command writes to, held against other processes; as a context it gives itself back if what is done in it fails too early.

    Args:
        path: the folder; made if absent.
        plan: all that the result depends on, as JSON-able data.

    Raises:
        Mismatch: the folder holds something else.
        Misconfigured: a number of the plan is not finite.
        NoRoom: it cannot be written, another command is writing it, or less than 64 MB are free.
    """

    def __init__(self, path: str | Path, plan: dict[str, Any]) -> None:
        """Take up the folder, or make it.

        Raises:
            NoRoom: less than 64 MB are free.
        """
        self.path = Path(path)
        self.plan = plain(plan)
        self.digest = digest_of(self.plan)
        self.check(self.path, self.plan)
        with contextlib.suppress(OSError):  # where it cannot be made, writing into it says why
            self.path.mkdir(parents=True, exist_ok=True)
        self._hold = hold(self.path)
        self.check(self.path, self.plan)  # another command may have taken it until now
        if not (self.path / "plan.json").exists():  # one that is signed stays as it is, byte by byte
            write_atomically(self.path / "plan.json", (json.dumps(self.plan, indent=1) + "\n").encode())
        for left in self.path.rglob("*.part"):  # of a run that was killed
            left.unlink() if left.is_file() else shutil.rmtree(left)
        if shutil.disk_usage(self.path).free < 64 * 2**20:
            raise NoRoom(f"Less than 64 MB are free at {self.path}.", "Free some space, or choose another folder with `--out`.")

    @staticmethod
    def check(path: Path, plan: dict[str, Any]) -> None:
        """Raise if the folder cannot take this plan; write nothing.

        Raises:
            Mismatch: the folder holds something else.
            Misconfigured: a number of the plan is not finite.
        """
        wanted = plain(plan)
        if path.exists() and not path.is_dir():
            raise Mismatch(f"{path} is a file.", "Choose a folder with `--out`.")
        if not path.exists() or all(entry.suffix == ".part" for entry in path.iterdir()):
            return
        try:
            known = dict(json.loads((path / "plan.json").read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise Mismatch(f"{path} is not empty and was not written by assay.", "Choose an empty or new folder with `--out`.") from error
        if "setup" not in known:  # of an earlier version, whose plans did not say it
            wanted.pop("setup", None)
        if known != wanted:
            keys = [key for key in {*known, *wanted} if known.get(key) != wanted.get(key)]
            raise Mismatch(
                f"{path} belongs to another plan: it differs in {', '.join(sorted(keys))}.", "Choose another folder with `--out`, or remove this one."
            )

    def __truediv__(self, name: str) -> Path:
        """Return a path inside the folder."""
        return self.path / name

    def __enter__(self) -> Self:
        """Return the folder."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the folder back after a failure, to the command as it should have been."""
        if kind is not None:
            self.abandon()
            self._hold = None  # a notebook keeps the failure, and with it this folder

    def abandon(self) -> None:
        """Remove the folder if nothing but the plan is in it."""
        with contextlib.suppress(OSError):
            if [entry.name for entry in self.path.iterdir()] == ["plan.json"]:
                shutil.rmtree(self.path)

    @property
    def done(self) -> bool:
        """Whether the plan's record is there."""
        return (self.path / "record.json").exists()


class Hold:
    """A lock on a folder: given up when no `OutFolder` of this process has it any more, and no process that was forked meanwhile lives."""


HELD: WeakValueDictionary[tuple[int, int], Hold] = WeakValueDictionary()
"""The folders that this process holds, by device and inode."""


def hold(folder: Path) -> Hold | None:
    """Hold a folder against other processes, without a file in it; None where the system or its disk has no such locks.

    Raises:
        NoRoom: another process holds it.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        about, held = os.fstat(handle), Hold()
        finalize(held, os.close, handle)
        if (before := HELD.get((about.st_dev, about.st_ino))) is not None:
            return before
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise NoRoom(f"{folder} is being written by another command.", "Wait for its end, or choose another folder with `--out`.") from error
    except (ImportError, OSError):
        return None
    HELD[about.st_dev, about.st_ino] = held
    return held


def plain(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan as JSON gives it back.

    Raises:
        Misconfigured: a number is not finite: it is no setting that could be asked for again, or be equal to itself.
    """
    try:
        return json.loads(json.dumps(plan, default=str, allow_nan=False))
    except ValueError as error:
        raise Misconfigured("A number among the settings is not finite.", "Give a finite one.") from error
