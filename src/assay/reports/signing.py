"""Sign a folder so that a stranger can tell, offline, whether one byte of it changed: a manifest of SHA-256 digests under Ed25519.

The private key stays with the signer. The public key in the folder is a convenience: whoever verifies should have it by another way.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from assay.errors import BadInput, Misconfigured, Mismatch, Missing, NoRoom
from assay.record import sha256_file, write_atomically

SCHEMA = "assay/manifest/1"
MANIFEST, SIGNATURE, PUBLIC = "manifest.json", "manifest.sig", "public.pem"
NAMED = 5
UNLINKED = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system without hard links answers to one."""


def sign(folder: str | Path, key_path: str | Path | None = None) -> Path:
    """List every file under a folder with its digest, sign the list, and return its path.

    Args:
        folder: what to sign; `public.pem`, `manifest.json` and `manifest.sig` are written into it.
        key_path: PEM file with an Ed25519 private key, made if absent; the default is that of `default_key`. Its public half is put beside it.

    Raises:
        Missing: there is no such folder.
        Misconfigured: the private key lies inside the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Missing(f"There is no folder {folder} to sign.", "Give a folder that an assay command wrote with `--out`.")
    path = check_key(folder, key_path)
    _inventory(folder)
    key = _private_key(path)
    public = key.public_key()
    pem = public.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    write_atomically(folder / PUBLIC, pem)
    with suppress(NoRoom):  # a key may be kept where nothing can be written
        write_atomically(public_key_path(path), pem)
    files = [{"file": name, "sha256": _digest(path), "bytes": path.stat().st_size} for name, path in _inventory(folder).items()]
    manifest = json.dumps({"schema": SCHEMA, "files": files, "public_key": public.public_bytes_raw().hex()}, indent=1).encode() + b"\n"
    write_atomically(folder / SIGNATURE, base64.b64encode(key.sign(manifest)))
    write_atomically(folder / MANIFEST, manifest)  # last: a folder that has one is signed
    return folder / MANIFEST


def check_key(folder: str | Path, key_path: str | Path | None = None) -> Path:
    """Return the private key that `sign` would use, if it can be used; it is made if absent.

    Raises:
        Misconfigured: it lies inside the folder to sign.
    """
    path = Path(key_path) if key_path else default_key()
    if path.resolve().is_relative_to(Path(folder).resolve()):
        raise Misconfigured(
            f"The private key {path} lies inside the folder to sign.", "Keep it elsewhere: whoever gets the folder could sign in your name."
        )
    _private_key(path)
    return path


def verify(folder: str | Path, public_key: str | Path) -> list[str]:
    """Check a signed folder against the signer's public key and return the files that are as they were.

    Args:
        folder: what was signed.
        public_key: PEM file with the signer's public key, obtained from the signer and not from the folder.

    Raises:
        Missing: the folder or its manifest is absent.
        Mismatch: the signature is not of this key, or a file was changed, added or removed.
    """
    return _verify(Path(folder), _public_key(Path(public_key)))


def verify_own(folder: str | Path, key_path: str | Path | None = None) -> list[str]:
    """Check a folder that was signed here, against the public half of one's own private key; what it returns and raises is as in `verify`."""
    return _verify(Path(folder), _private_key(Path(key_path) if key_path else default_key()).public_key())


def signed_as(folder: str | Path, name: str) -> str | None:
    """Return the digest that a folder's manifest gives a file; None where the folder is not signed, or the file is none of those that were.

    Raises:
        BadInput: the manifest is none.
    """
    path = Path(folder) / MANIFEST
    return _listed(path.read_bytes()).get(name, {}).get("sha256") if path.is_file() else None


def public_key_path(key_path: str | Path | None = None) -> Path:
    """Return where the public half of a private key is kept, beside it, to be given to whoever verifies."""
    return (Path(key_path) if key_path else default_key()).with_suffix(".pub.pem")


def _verify(folder: Path, key: Ed25519PublicKey) -> list[str]:
    for name in (MANIFEST, SIGNATURE):
        if not (folder / name).is_file():
            raise Missing(f"{folder} holds no {name}: it is not signed.", "Sign it by running `assay run` to its end, or ask for the whole folder.")
    files = _inventory(folder)
    data = (folder / MANIFEST).read_bytes()
    _check_signature(data, (folder / SIGNATURE).read_bytes(), key)
    listed = _listed(data)
    changed = [name for name, item in listed.items() if name in files and not _same(files[name], item)]
    wrong = {"changed": changed, "missing": sorted(listed.keys() - files.keys()), "added": sorted(files.keys() - listed.keys())}
    if any(wrong.values()):
        told = "; ".join(f"{kind}: {_some(names)}" for kind, names in wrong.items() if names)
        raise Mismatch(f"{folder} is not as it was signed: {told}.", "Do not rely on it; ask its signer for the folder again.")
    return list(listed)


def default_key() -> Path:
    """Return where the user's private key is kept: $ASSAY_KEY, else `assay/signing.pem` in $XDG_CONFIG_HOME or ~/.config."""
    if given := os.environ.get("ASSAY_KEY"):
        return Path(given)
    config = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (config if config.is_absolute() else Path.home() / ".config") / "assay" / "signing.pem"


def _inventory(folder: Path) -> dict[str, Path]:
    """Return every file under the folder but the manifest and its signature, by relative posix path, sorted.

    Raises:
        Mismatch: something in it is neither a plain file nor a folder.
    """
    found: dict[str, Path] = {}
    pending = [folder]
    while pending:
        for entry in os.scandir(pending.pop()):
            path = Path(entry.path)
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                pending.append(path)
            elif not stat.S_ISREG(mode):
                raise Mismatch(
                    f"{path} is a link or a device, whose content a signature cannot cover.", "Remove it, or put a plain file in its place."
                )
            else:
                found[path.relative_to(folder).as_posix()] = path
    return {name: found[name] for name in sorted(found) if name not in {MANIFEST, SIGNATURE}}


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.", "Mend its permissions.") from error


def _same(path: Path, item: dict[str, Any]) -> bool:
    return path.stat().st_size == item["bytes"] and _digest(path) == item["sha256"]


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _check_signature(data: bytes, signature: bytes, key: Ed25519PublicKey) -> None:
    try:
        raw = base64.b64decode(signature, validate=True)
        if base64.b64encode(raw) != signature:
            raise ValueError("not the one way to write it")
        key.verify(raw, data)
    except (ValueError, InvalidSignature) as error:
        signer = _claimed_signer(data)
        if signer and signer != key.public_bytes_raw().hex():
            raise Mismatch(f"The folder was signed with another key ({signer[:12]}…).", "Give the public key of whoever signed it.") from error
        raise Mismatch(f"{MANIFEST} or {SIGNATURE} was changed after signing.", "Do not rely on this folder; ask its signer for it again.") from error


def _claimed_signer(data: bytes) -> str:
    try:
        claimed = json.loads(data)["public_key"]
    except (ValueError, KeyError, TypeError):
        return ""
    return claimed if isinstance(claimed, str) else ""


def _listed(data: bytes) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads(data)
        if manifest["schema"] == SCHEMA:
            return {item["file"]: {"bytes": item["bytes"], "sha256": item["sha256"]} for item in manifest["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{MANIFEST} is signed but is no manifest.", "It was not made by assay.") from error
    raise BadInput(f"{MANIFEST} is of version {manifest['schema']}, not {SCHEMA}.", "Verify it with the version of assay that signed it.")


def _private_key(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        _create_key(path)
    try:
        key = forms.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInput(
            f"{path} cannot be read as an unencrypted PEM private key.", "Give another with $ASSAY_KEY, or move it away to have one made."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path} holds a private key that is not Ed25519.", "Make one with `openssl genpkey -algorithm ed25519`.")
    return key


def _create_key(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_new(part, pem)
            with suppress(FileExistsError):  # Neither way overwrites: of two processes that make the first key, both sign with the earlier.
                try:
                    os.link(part, path)
                except OSError as error:
                    if error.errno not in UNLINKED:
                        raise
                    _write_new(path, pem)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise NoRoom(f"No signing key can be made at {path}: {error.strerror or error}.", "Set ASSAY_KEY to a path that can be written.") from error


def _write_new(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = forms.load_pem_public_key(path.read_bytes())
    except FileNotFoundError as error:
        raise Missing(f"There is no public key at {path}.", "Give the PEM file that the signer published, with `--key`.") from error
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise BadInput(f"{path} cannot be read as a PEM public key.", "Give the signer's `public.pem`.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"{path} holds a public key that is not Ed25519.", "Give the signer's `public.pem`.")
    return key
