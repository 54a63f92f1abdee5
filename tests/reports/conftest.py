from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dossiers import build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete dossier of three stages, one of them with two records; not to be changed."""
    return build(tmp_path_factory.mktemp("dossier") / "assay-out")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the dossier for a test to change."""
    return shutil.copytree(built, tmp_path / "assay-out", ignore=shutil.ignore_patterns("report.html"))
