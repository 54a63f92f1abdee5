"""Shared by all tests: no network, one tiny pipeline of each kind for the whole session, hypothesis without randomness of its own.

The session's pipelines are shared: a test that changes weights must put them back (or make its own with `tiny`).
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

from assay.denoiser import Denoiser
from assay.testing import KINDS, tiny

torch.set_num_threads(1)  # tiny tensors are slower on more, and sums are then split the same way on every machine

settings.register_profile("assay", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(HealthCheck))
settings.load_profile("assay")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start what takes long first; everything else stays in its order."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def pipelines() -> dict[str, Denoiser]:
    return {kind: tiny(kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def denoiser(request: pytest.FixtureRequest, pipelines: dict[str, Denoiser]) -> Denoiser:
    """Each tiny pipeline in turn."""
    return pipelines[request.param]


@pytest.fixture
def sd(pipelines: dict[str, Denoiser]) -> Denoiser:
    """The tiny Stable Diffusion that predicts epsilon."""
    return pipelines["sd-epsilon"]


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What assay rounds to float32 stays in float64, so that derivatives of a model in float64 can be held against differences to many digits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
