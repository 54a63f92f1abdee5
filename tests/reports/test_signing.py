"""What a signature is for: one changed byte, one file more or less, another key or another list, and `verify` says so."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import stat
from pathlib import Path

import pytest

from assay.errors import AssayError, BadInput, Misconfigured, Mismatch, Missing, NoRoom
from assay.jobs.folder import OutFolder
from assay.reports import signing
from assay.reports.signing import default_key, sign, verify


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A signed folder, the public key kept outside of it, and the private key."""
    folder = tmp_path / "out"
    (folder / "audit" / "images").mkdir(parents=True)
    draw = random.Random(0)
    for name, count in (("dossier.json", 40), ("report.html", 300), ("audit/images/a-0.png", 90), ("audit/empty.txt", 0), ("été – 1.txt", 5)):
        (folder / name).write_bytes(draw.randbytes(count))
    key = tmp_path / "keys" / "signing.pem"
    sign(folder, key)
    public = tmp_path / "published.pem"
    shutil.copy(folder / "public.pem", public)
    return folder, public, key


def test_a_signed_folder_verifies_and_every_file_is_listed(signed):
    folder, public, _ = signed
    # By definition of the manifest: every file under the folder but the manifest and its signature, sorted.
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert verify(folder, public) == [name for name in files if name not in {"manifest.json", "manifest.sig"}]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema"] == "assay/manifest/1"
    assert {item["file"]: item["bytes"] for item in manifest["files"]}["report.html"] == 300


def test_any_flipped_bit_of_any_file_is_found(signed):
    # The bar of the issue: one changed byte fails. Every byte of the signature (base64 could hide spare bits) and of the key, a sample elsewhere.
    folder, public, _ = signed
    draw = random.Random(1)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        places = range(len(data)) if path.name in {"manifest.sig", "public.pem"} else draw.sample(range(len(data)), min(len(data), 25))
        for place in places:
            changed = bytearray(data)
            changed[place] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(Mismatch):
                verify(folder, public)
        path.write_bytes(data)
    assert verify(folder, public)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda folder: (folder / "audit/extra.txt").write_text("x"), "added: audit/extra.txt"),
        (lambda folder: (folder / "audit/manifest.json").write_text("{}"), "added: audit/manifest.json"),
        (lambda folder: (folder / "audit/empty.txt").unlink(), "missing: audit/empty.txt"),
        (lambda folder: (folder / "audit/empty.txt").write_text("x"), "changed: audit/empty.txt"),
        (lambda folder: (folder / "report.html").rename(folder / "report2.html"), "missing: report.html; added: report2.html"),
        (lambda folder: (folder / "manifest.sig").write_text("not base64"), "was changed after signing"),
        (lambda folder: (folder / "manifest.sig").write_bytes((folder / "manifest.sig").read_bytes() + b"\n"), "was changed after signing"),
    ],
)
def test_the_error_names_what_is_wrong(signed, harm, named):
    # The words are those of the harm done: what a reader must be told to find the file.
    folder, public, _ = signed
    harm(folder)
    with pytest.raises(Mismatch, match=named):
        verify(folder, public)


def test_another_key_is_told_from_another_manifest(signed, tmp_path):
    # A second key signs a copy of the same files: the manifest is sound, but not by the signer we trust.
    folder, public, _ = signed
    copy = shutil.copytree(folder, tmp_path / "copy")
    sign(copy, tmp_path / "other.pem")
    assert verify(copy, copy / "public.pem")
    with pytest.raises(Mismatch, match="another key"):
        verify(copy, public)


def test_a_manifest_rewritten_to_fit_fails(signed):
    # An attacker changes a file and its digest in the list: only the signature can tell.
    folder, public, _ = signed
    (folder / "report.html").write_text("all is well")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [item for item in manifest["files"] if item["file"] != "report.html"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Mismatch, match="changed after signing"):
        verify(folder, public)


def test_links_are_refused_and_nothing_outside_is_read(signed, tmp_path):
    # A link's target lies outside what the signature covers, so it is refused on both sides.
    folder, public, key = signed
    (tmp_path / "outside.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(Mismatch, match="link"):
        verify(folder, public)
    with pytest.raises(Mismatch, match="link"):
        sign(folder, key)
    (folder / "link.txt").unlink()
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(Mismatch, match="link"):
        verify(folder, public)


def test_absent_things_are_missing_and_not_wrong(signed, tmp_path):
    # `Missing` and `Mismatch` have different remedies.
    folder, public, _ = signed
    with pytest.raises(Missing, match="public key"):
        verify(folder, tmp_path / "nobody.pem")
    with pytest.raises(BadInput, match="public key"):
        verify(folder, folder / "dossier.json")
    (folder / "manifest.sig").unlink()
    with pytest.raises(Missing, match="not signed"):
        verify(folder, public)
    with pytest.raises(Missing, match="no folder"):
        sign(tmp_path / "nowhere")


def test_the_private_key_stays_private(signed, tmp_path):
    # Mode 0600, no part of it in the folder, and never made inside the folder.
    folder, _, key = signed
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_bytes().splitlines()[1]
    assert not any(secret in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert sorted(path.name for path in key.parent.iterdir()) == ["signing.pem", "signing.pub.pem"]
    assert (key.parent / "signing.pub.pem").read_bytes() == (folder / "public.pem").read_bytes()
    with pytest.raises(Misconfigured, match="inside"):
        sign(folder, folder / "key.pem")
    assert not (folder / "key.pem").exists()


def test_a_key_is_made_once_and_then_kept(signed):
    # The same key signs the same bytes to the same signature: Ed25519 is deterministic.
    folder, public, key = signed
    before, signature = key.read_bytes(), (folder / "manifest.sig").read_bytes()
    sign(folder, key)
    assert (key.read_bytes(), (folder / "manifest.sig").read_bytes()) == (before, signature)
    assert verify(folder, public)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EIO])
def test_a_key_is_made_where_there_are_no_hard_links(tmp_path, monkeypatch, code):
    # What FAT and some network drives answer to link(2); any other failure is one, and in neither case does a private key stay behind.
    def link(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "out").mkdir()
    key = tmp_path / "keys" / "signing.pem"
    if code == errno.EIO:
        with pytest.raises(NoRoom, match="No signing key"):
            sign(tmp_path / "out", key)
        assert not list(key.parent.iterdir())
        return
    sign(tmp_path / "out", key)
    before = key.read_bytes()
    signing._create_key(key)  # as by a second process that found none
    assert key.read_bytes() == before
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(path.name for path in key.parent.iterdir()) == ["signing.pem", "signing.pub.pem"]


def test_where_the_key_is_kept(monkeypatch, tmp_path):
    # ASSAY_KEY first, then the XDG base directory specification, which says to ignore a relative XDG_CONFIG_HOME.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ASSAY_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert default_key() == tmp_path / ".config/assay/signing.pem"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert default_key() == tmp_path / "xdg/assay/signing.pem"
    monkeypatch.setenv("ASSAY_KEY", str(tmp_path / "mine.pem"))
    (tmp_path / "out").mkdir()
    sign(tmp_path / "out")
    assert (tmp_path / "mine.pem").is_file()


def test_a_broken_key_is_no_bug(signed, tmp_path):
    # Whatever stands in the key file, the user gets an error to mend, and a key is never overwritten.
    folder, _, _ = signed
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    with pytest.raises(AssayError, match="cannot be read"):
        sign(folder, bad)
    assert "nonsense" in bad.read_text()


def test_one_killed_while_it_signs_can_be_signed_again(tmp_path, monkeypatch):
    """The manifest says that a folder is signed, so it comes last: killed before it, there is none, and signing again makes it whole."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dossier.json").write_text("{}")
    write = signing.write_atomically

    def killed(path: Path, data: bytes) -> None:
        if path.name == signing.MANIFEST:
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(signing, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            sign(tmp_path / "out", tmp_path / "key.pem")
    assert not (tmp_path / "out" / signing.MANIFEST).exists()
    sign(tmp_path / "out", tmp_path / "key.pem")
    assert verify(tmp_path / "out", tmp_path / "out" / signing.PUBLIC)


def test_the_same_plan_in_other_words_leaves_what_was_signed(tmp_path):
    """60 is 60.0, and order means nothing: the folder takes the plan, and its bytes stay."""
    OutFolder(tmp_path, {"budget": 60.0, "seed": 1})
    before = (tmp_path / "plan.json").read_bytes()
    OutFolder(tmp_path, {"seed": 1, "budget": 60})
    assert (tmp_path / "plan.json").read_bytes() == before
