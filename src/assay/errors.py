"""What can go wrong through no fault of assay: one root, and a child for each kind of remedy.

The message of every error is one paragraph: what happened, why, and what to do. The command line prints it and exits with 2;
anything that is not an `AssayError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class AssayError(Exception):
    """Root of every error that a user can mend.

    Args:
        message: what happened and why, in one or two sentences.
        hint: what to do about it, as an imperative sentence.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the message and the hint apart, so that `--json` can report both."""
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class Misconfigured(AssayError):
    """An argument, a setting or a plan file is wrong."""


class Unsupported(AssayError):
    """The thing asked for is sound, but this model, method or machine cannot do it."""


class Missing(AssayError):
    """A file, a model, a concept, an optional package or a key is not where it was said to be."""


class Mismatch(AssayError):
    """Two things that must agree do not: a patch and its base, a plan and the folder it resumes, a signature and its file."""


class BadInput(AssayError):
    """A file is there but cannot be read as what it should be."""


class NoRoom(AssayError):
    """The output cannot be written: the disk is full, the folder is read-only, or another command is writing it."""
