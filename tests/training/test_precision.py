"""Expected values come from the same passes in fp32 with the processors the model came with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from assay.noise import normal
from assay.training.loop import Schedule
from assay.training.precision import autocast, native, unfused_attention
from assay.training.unet import UNetSettings, build, train

TINY = UNetSettings(widths=(8, 8), attention=(False, True), heads=2, groups=4, schedule=Schedule(steps=3, batch=4, learning_rate=1e-3))


def unet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(TINY, latent_channels=2, latent_size=4, text_width=6)


def test_unfused_attention_is_the_same_function_and_goes_again():
    model = unet().eval()
    kept = model.attn_processors
    inputs = (normal((3, 2, 4, 4), [1])[0], torch.tensor([0, 500, 999]), normal((3, 4, 6), [2])[0])
    with torch.no_grad():
        fused = model(*inputs).sample
        with unfused_attention(model):
            assert {type(processor).__name__ for processor in model.attn_processors.values()} == {"AttnProcessor"}
            torch.testing.assert_close(model(*inputs).sample, fused, rtol=1e-4, atol=1e-5)
    assert model.attn_processors == kept


def test_processors_come_back_after_an_error():
    model = unet()
    kept = model.attn_processors
    with pytest.raises(KeyboardInterrupt), unfused_attention(model):
        raise KeyboardInterrupt
    assert model.attn_processors == kept


def test_training_in_bf16_starts_from_the_loss_of_fp32_and_keeps_fp32_weights():
    latents, text, scheduler = normal((3, 2, 4, 4), [1])[0], normal((2, 4, 6), [2])[0], DDPMScheduler(beta_schedule="scaled_linear")
    epoch = [(0, [1]), (1, [1]), (2, [1])]
    exact = train(unet(), latents, text, epoch, TINY, scheduler, seed=1)
    model = unet()
    rounded = train(model, latents, text, epoch, replace(TINY, precision="bf16"), scheduler, seed=1)
    assert rounded.losses[0] != exact.losses[0]
    assert rounded.losses[0] == pytest.approx(exact.losses[0], rel=2**-6)  # bf16 keeps 8 bits; the loss averages 128 errors
    assert all(tensor.dtype == torch.float32 for tensor in [*model.parameters(), *rounded.average.values()])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_are_computed_in_the_precision_asked_for(precision):
    with autocast(precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def test_processors_without_bf16_train_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert native() == "fp32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert native() == "bf16"
