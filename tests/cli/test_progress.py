"""What strangers named never steers a terminal. Expected values: the same characters as Python writes them in a literal."""

import pytest
import torch

from assay.cli.main import main
from assay.cli.progress import Display, printable
from assay.patch import Manifest, Patch
from assay.reports.signing import sign


def test_a_line_shows_what_a_terminal_would_obey():
    """A clear screen, an 8-bit control, a turned direction, ends of lines and half a character are escaped; what joins emoji, and spaces, stay."""
    assert printable("a\x1b[2J\x9b \u202e\n\u2028\udc80") == "a\\x1b[2J\\x9b \\u202e\\n\\u2028\\udc80"
    kept = "été\u00a0\u3000 👩\u200d🎨"
    assert printable(kept) == kept


def test_names_of_strangers_are_only_shown(tmp_path, capsys):
    """The name of a file added to a signed folder, and what a patch says of itself, reach neither stream as they are."""
    folder, evil = tmp_path / "out", "\x1b[2J\nall is well"
    folder.mkdir()
    sign(folder, tmp_path / "key.pem")
    (folder / evil).touch()
    with pytest.raises(SystemExit):
        main(["report", str(folder), "--verify", "--key", str(tmp_path / "key.pub.pem")])
    Patch(Manifest(method=evil, made_for=evil), {"delta/x": torch.ones(1)}).save(tmp_path / "patch")
    main(["patch", "info", str(tmp_path / "patch")])
    Display().say(evil)
    Display()(evil, 1, 1)
    printed = capsys.readouterr()
    assert (len(printed.err.splitlines()), len(printed.out.splitlines())) == (3, 1)
    assert "\x1b" not in printed.err + printed.out
    assert printed.err.count(r"\x1b[2J\nall is well") == 3
    assert printed.out.count(r"\x1b[2J\nall is well") == 2


def test_a_key_is_for_verifying(tmp_path, capsys):
    """Without `--verify` the key would do nothing; with it, the record's words verify again."""
    from assay.record import Record

    folder, key = tmp_path / "out", str(tmp_path / "key.pub.pem")
    folder.mkdir()
    sign(folder, tmp_path / "key.pem")
    with pytest.raises(SystemExit) as left:
        main(["report", str(folder), "--key", key])
    assert left.value.code == 2
    assert "`--verify`" in capsys.readouterr().err
    main(["report", str(folder), "--verify", "--key", key, "--out", str(tmp_path / "noted")])
    again = Record.load(tmp_path / "noted").again
    assert again == ["report", str(folder), "--verify", "--key", key]
    capsys.readouterr()
    main(again)
    assert capsys.readouterr().out == "1 files are as they were signed.\n"
