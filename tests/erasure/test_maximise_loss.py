"""Gradient ascent: which loss rises, and where it stops."""

from typing import Any

import pytest
import torch

from assay.concept import Concept
from assay.erasure import maximise_loss
from assay.errors import Misconfigured
from assay.noise import generator
from assay.patched import Patched
from assay.testing import tiny
from assay.training.finetune import TRAINED

pytestmark = pytest.mark.portable

CAT = Concept("cat", preserve=("sun",))
QUICK: dict[str, Any] = {"steps": 3, "batch": 2, "images": 4, "image_steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> maximise_loss.Settings:
    return maximise_loss.Settings(**(QUICK | changes))


def concept_loss(denoiser, patch, prompt):
    """Mean loss on latents of the prompt by the bare model, at draws that no training made."""
    latents = denoiser.sample([prompt] * 8, list(range(8)), steps=2, guidance=1.0)
    t, noise = torch.arange(50, 1000, 125), torch.randn(latents.shape, generator=generator(7))
    with torch.no_grad(), Patched(denoiser, [(patch, 1.0)] if patch else []):
        return float(denoiser.loss(latents, t, noise, denoiser.conditioning([prompt] * 8)).mean())


def test_the_concept_s_loss_rises_and_what_is_retained_less(denoiser):
    patch = maximise_loss.erase(denoiser, CAT, quick(steps=30, batch=4, learning_rate=3e-3, retain=1.0, image_guidance=1.0))
    rise = {prompt: concept_loss(denoiser, patch, prompt) / concept_loss(denoiser, None, prompt) for prompt in ("cat", "sun")}
    assert rise["cat"] > 1.2
    assert rise["sun"] < rise["cat"]


def test_beyond_the_margin_there_is_no_gradient(denoiser):
    """A margin below every sample's loss leaves nothing to maximise, and nothing is retained: no weight moves."""
    patch = maximise_loss.erase(denoiser, CAT, quick(margin=1e-6, retain=0.0))
    assert all(tensor.abs().max() == 0 for tensor in patch.tensors.values())


@pytest.mark.parametrize("changes", [{}, {"retain": 0.0}, {"image_guidance": 1.0, "group": "cross-attention"}])
def test_takes_the_passes_it_says(denoiser, changes):
    before = denoiser.passes
    patch = maximise_loss.erase(denoiser, CAT, quick(**changes))
    assert denoiser.passes - before == sum(maximise_loss.cost(quick(**changes)).values())
    assert set(patch.names) == set(denoiser.group(TRAINED[quick(**changes).group]))


@pytest.mark.parametrize(
    "bad",
    [
        {"group": "xattn"},
        {"steps": 0},
        {"batch": 0},
        {"images": 0},
        {"image_steps": 1001},
        {"learning_rate": 0.0},
        {"retain": -1.0},
        {"margin": -1.0},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    with pytest.raises(Misconfigured):
        maximise_loss.erase(denoiser, CAT, maximise_loss.Settings(**bad))
