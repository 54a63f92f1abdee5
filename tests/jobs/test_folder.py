"""An output folder belongs to one plan and to one command at a time; a command that fails before it wrote anything gives it back."""

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from assay.errors import Mismatch, NoRoom
from assay.jobs.folder import OutFolder

PLAN = {"command": "generate", "seed": 0}
TAKES = "import sys; from assay.jobs.folder import OutFolder; folder = OutFolder(sys.argv[1], {'command': 'generate', 'seed': 0}); print(); input()"


def locked(folder):
    """Whether another process would find the folder held."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def test_a_second_command_at_the_same_time_is_refused(tmp_path):
    """It leaves what the first is writing where it is; once the first was killed, it takes up the folder and clears that away."""
    part = tmp_path / "out/shards/0.safetensors.part"
    with subprocess.Popen([sys.executable, "-c", TAKES, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        part.parent.mkdir()
        part.touch()
        with pytest.raises(NoRoom, match="being written by another command"):
            OutFolder(tmp_path / "out", PLAN)
        assert part.exists()
        first.kill()
    OutFolder(tmp_path / "out", PLAN)
    assert not part.exists()


def test_a_process_and_its_forks_share_what_it_holds_while_any_of_it_is_used(tmp_path):
    """Two folders of one path and a forked worker go on beside each other; nothing but the plan lies in it, and the last one frees it."""
    first, second = OutFolder(tmp_path / "out", PLAN), OutFolder(tmp_path / "out", PLAN)
    worker = multiprocessing.get_context("fork").Process(target=OutFolder, args=(tmp_path / "out", PLAN))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    del first
    assert locked(tmp_path / "out")
    del second
    assert not locked(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plan.json"]


def test_where_there_are_no_locks_it_goes_on_without(tmp_path, monkeypatch):
    """As on a network disk that knows none."""

    def unknown(*_args):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert OutFolder(tmp_path / "out", PLAN).path.exists()


def test_what_fails_before_anything_was_written_gives_the_folder_back(tmp_path):
    """To another plan; with one file in it, it stays."""

    def fails(*names):
        with OutFolder(tmp_path / "out", PLAN) as folder:
            for name in names:
                (folder / name).touch()
            raise ValueError("wrong")

    for names in ([], ["a.png"]):
        with pytest.raises(ValueError, match="wrong"):
            fails(*names)
        assert (tmp_path / "out").exists() == bool(names)
    with pytest.raises(Mismatch, match="differs in seed"):
        OutFolder(tmp_path / "out", PLAN | {"seed": 1})


def test_a_folder_of_an_earlier_version_goes_on(tmp_path):
    """Its plan did not say how prompts become tokens; of those that do, another is another plan."""
    OutFolder(tmp_path / "old", PLAN)
    OutFolder(tmp_path / "old", PLAN | {"setup": "a"})
    OutFolder(tmp_path / "new", PLAN | {"setup": "a"})
    with pytest.raises(Mismatch, match="differs in setup"):
        OutFolder(tmp_path / "new", PLAN | {"setup": "b"})
    assert "setup" in json.loads((tmp_path / "new/plan.json").read_text())
