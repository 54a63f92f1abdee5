"""A private LoRA of a tiny pipeline: what its patch says, and what it leaves alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from assay.denoiser import tensor_digest
from assay.errors import Misconfigured, Unsupported
from assay.noise import normal
from assay.patch import Patch
from assay.patched import Patched
from assay.testing import tiny_works
from assay.training.accounting import Mechanism
from assay.training.private import Privacy
from assay.training.private_low_rank import Settings, finetune

SETTINGS = Settings(privacy=Privacy(1.0, 1e-3, multiplicity=2, accountant="rdp"), group="cross_attention.kv", rank=2, steps=3, batch=4)


@pytest.fixture(scope="module")
def works():
    return tiny_works()


def test_makes_a_patch_that_says_what_it_promises(denoiser, works, tmp_path):
    before = {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}
    patch = finetune(denoiser, works, SETTINGS, seed=987654321, folder=tmp_path)
    assert before == {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}
    assert not list(tmp_path.iterdir())
    patch = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    kept = patch.manifest.settings["guarantee"]
    assert {key: kept[key] for key in ("delta", "accountant", "steps", "works", "clip", "multiplicity")} == {
        "delta": 1e-3, "accountant": "rdp", "steps": 3, "works": 50, "clip": 1.0, "multiplicity": 2,
    }  # fmt: skip
    assert kept["sampling_rate"] == 4 / 50
    assert Mechanism(kept["noise_multiplier"], 4 / 50, 3).epsilon(1e-3, "rdp") == kept["epsilon"] <= 1
    assert "987654321" not in json.dumps(patch.manifest.model_dump())  # whoever knows the seed can take the noise away
    assert (patch.manifest.creators, patch.manifest.license) == ([], "")  # one work fewer could be read from them
    assert set(patch.names) == set(denoiser.group("cross_attention.kv"))
    x_t, t, conditioning = normal(denoiser.latent_shape, [1, 2]), torch.tensor([100, 900]), denoiser.conditioning(["red circle", "blue ring"])
    with torch.no_grad():
        plain = denoiser.predict(x_t, t, conditioning)
        with Patched(denoiser, [(patch, 1.0)]):
            assert not torch.equal(denoiser.predict(x_t, t, conditioning), plain)
        assert torch.equal(denoiser.predict(x_t, t, conditioning), plain)


def test_is_its_seed(sd, works):
    first, again, other = (finetune(sd, works, SETTINGS, seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest


def test_without_noise_it_learns(sd, works):
    settings = replace(SETTINGS, privacy=Privacy(math.inf, 1e-3, math.inf, multiplicity=1), steps=12, batch=8, learning_rate=2e-2, ema=0.0)
    patch = finetune(sd, works, settings, seed=1)
    latents = sd.latents(torch.from_numpy(works.pixels(sd.image_size)).permute(0, 3, 1, 2) / 255)
    t, noise = torch.arange(50) * 20, normal(sd.latent_shape, range(50))
    told = sd.conditioning([captions[0] for captions in works.column("captions")])
    with torch.no_grad():
        before = sd.loss(latents, t, noise, told).mean()
        with Patched(sd, [(patch, 1.0)]):
            assert sd.loss(latents, t, noise, told).mean() < 0.99 * before
    assert patch.manifest.settings["guarantee"]["epsilon"] == math.inf


def test_refuses_before_anything_is_done(sd, works):
    with pytest.raises(Misconfigured, match="published outright"):
        finetune(sd, works, replace(SETTINGS, privacy=Privacy(8.0, 0.1)), seed=1)
    with pytest.raises(Misconfigured, match="no works"):
        finetune(sd, works.where(lambda row: False), SETTINGS, seed=1)
    for group in ("text_encoder", "token_embeddings", "decoder"):
        with pytest.raises(Misconfigured, match="the loss reaches nothing"):
            finetune(sd, works, replace(SETTINGS, group=group), seed=1)
    with pytest.raises(Unsupported, match="group"):
        finetune(sd, works, replace(SETTINGS, group="nothing"), seed=1)
