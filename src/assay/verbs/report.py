"""`report`: one HTML page from the records in a folder, or the check of a signed folder."""

from __future__ import annotations

from pathlib import Path

from assay.errors import Misconfigured, Missing
from assay.jobs.outcome import Outcome
from assay.reports.render import write_report
from assay.reports.signing import verify as verify_folder


def report(folder: str | Path, *, verify: bool = False, key: str | Path | None = None) -> Outcome:
    """Write `report.html` into a folder of records, or verify that nothing in it has changed since it was signed.

    Args:
        folder: what `assay run` or another command wrote.
        verify: check instead of write.
        key: the signer's public key; needed to verify.

    Returns:
        The outcome; its file `report` is the page.

    Raises:
        Missing: there is no such folder.
        Misconfigured: `verify` without a key, or a key without `verify`.
        Mismatch: the folder is signed, and another page would be written; or, with `verify`, it is not as it was signed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Missing(f"There is no folder {folder}.", "Give a folder that an assay command wrote.")
    if verify:
        if key is None:
            raise Misconfigured("Verifying needs the signer's public key.", "Give it with `--key PUB.pem`; do not take it from the folder itself.")
        names = verify_folder(folder, Path(key))
        return Outcome("report", folder, None, extra={"verified": len(names), "lines": [f"{len(names)} files are as they were signed."]})
    if key is not None:
        raise Misconfigured("A key is for verifying, and a page was asked for.", "Add `--verify`, or leave the key out.")
    page = write_report(folder)
    return Outcome("report", folder, None, {"report": str(page)}, extra={"lines": [str(page)]})
