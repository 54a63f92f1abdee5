"""The `assay` command: what goes wrong becomes one paragraph and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

import click

from assay.cli.commands import cli
from assay.cli.progress import printable
from assay.errors import AssayError, NoRoom


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the console script.

    Raises:
        OSError: for any reason but a full or read-only disk or too long a name, which is a bug.
        RuntimeError: for any reason but full memory, which is a bug.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # transformers talks while it is imported
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    if broken := [word for word in arguments if not word.isascii() and word.encode(errors="ignore").decode() != word]:
        _fail(as_json, "Misconfigured", f"{broken[0]!r} is no text in Unicode.", "Write it in the encoding of this terminal, or in UTF-8.")
    try:
        cli.main(arguments, standalone_mode=False)
    except AssayError as error:
        _fail(as_json, type(error).__name__, error.message, error.hint)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):  # click turns the second into the first
        if as_json:
            click.echo(import_module("assay.jobs.outcome").interrupted_json())
        sys.stderr.write("\ninterrupted; the same command goes on from here\n")
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        usage = f"See `{context.command_path} --help`." if context else "See `assay --help`."
        _fail(as_json, "Misconfigured", error.format_message(), usage)
    except MemoryError as error:
        _full(as_json, error)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        _full(as_json, error)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _fail(as_json, "Misconfigured", f"A name is too long: {error.filename}.", "Choose a shorter one.")
        if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
            raise
        full = NoRoom(
            f"{error.filename or 'The output'} cannot be written: {error.strerror}.", "Free some space, or choose another folder with `--out`."
        )
        _fail(as_json, "NoRoom", full.message, full.hint)


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch says that memory is full, on a CPU or on another device."""
    torch = sys.modules.get("torch")
    return (torch is not None and isinstance(error, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _full(as_json: bool, error: Exception) -> None:
    why = str(error).split("\n")[0][:200] or type(error).__name__
    _fail(as_json, "Unsupported", f"There is not enough memory: {why}.", "Give fewer works, images or prompts at a time, or another `--device`.")


def _fail(as_json: bool, kind: str, message: str, hint: str) -> None:
    if as_json:
        click.echo(import_module("assay.jobs.outcome").error_json(kind, message, hint))
    sys.stderr.write(printable(f"error: {message} {hint}") + "\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
