"""Expected values come from what the autoencoder did before its latents were standardised, and from images whose gradients are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.noise import normal, numpy_generator
from assay.training.loop import Schedule
from assay.training.vae import VAESettings, build, denoised, encode, refine, sobel, standardise, train

TINY = VAESettings(
    widths=(8, 8),
    schedule=Schedule(steps=25, batch=4, learning_rate=5e-3, warmup=3, ema=0.9),
    refinement=Schedule(steps=25, batch=4, learning_rate=5e-3, warmup=3, ema=0.9),
)


def vae(scaling: float = 1.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(TINY, 16)
    model.register_to_config(scaling_factor=scaling)
    return model.eval()


@pytest.fixture
def pixels() -> np.ndarray:
    """Twelve flat images with a bright square each."""
    rng = numpy_generator(1)
    images = np.repeat(rng.integers(0, 128, (12, 1, 1, 3), dtype=np.uint8), 16, 1).repeat(16, 2)
    for image in images:
        top, left = rng.integers(0, 10, 2)
        image[top : top + 6, left : left + 6] = 255
    return images


@torch.no_grad()
@pytest.mark.parametrize("scaling", [1.0, 0.18215])
def test_standardising_gives_unit_latents_and_leaves_reconstructions(pixels, scaling):
    model = vae(scaling)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    before = model.encode(images).latent_dist
    mean, decoded = before.mean, model.decode(before.mean).sample
    center, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    assert not torch.allclose(spread, torch.ones(4), atol=0.1)  # there is something to do
    standardise(model, pixels)
    after = model.encode(images).latent_dist
    torch.testing.assert_close(model.decode(after.mean).sample, decoded, rtol=0, atol=1e-4)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)
    shape = (1, 4, 1, 1)
    torch.testing.assert_close(after.mean * spread.reshape(shape) + center.reshape(shape), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.std * spread.reshape(shape), before.std, rtol=1e-3, atol=0)  # noise keeps its share


@torch.no_grad()
def test_encoding_in_batches_is_encoding(pixels):
    model = vae(0.5)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(encode(model, pixels, batch=5), model.encode(images).latent_dist.mean * 0.5, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_ramp():
    # A slope of 3 per pixel to the right, and none downwards: the kernel's halves are 2 pixels apart and their weights sum to 1.
    ramp = (3 * torch.arange(5.0)).expand(2, 1, 5, 5)
    across, down = sobel(ramp).unbind(1)
    assert torch.equal(across.abs(), torch.full((2, 3, 3), 6.0))
    assert not down.any()
    assert sobel(torch.ones(1, 3, 5, 5)).shape == (1, 6, 3, 3)
    assert not sobel(torch.ones(1, 3, 5, 5)).any()


def test_loss_falls_and_training_resumes(pixels, tmp_path):
    model, again = vae(), vae()
    losses = train(model, pixels, TINY, seed=1, folder=tmp_path)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not model.training
    assert train(again, pixels, TINY, seed=1, folder=tmp_path) == losses  # from the finished checkpoint
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(encode(model, pixels).std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)


@torch.no_grad()
def test_refining_leaves_latents_and_brings_reconstructions_nearer(pixels):
    model = vae()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    error = (model.decode(encode(model, pixels)).sample - images).square().mean()
    with torch.enable_grad():
        refine(model, pixels, TINY, seed=1)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(("encoder.", "quant_conv.")))
    assert (model.decode(encode(model, pixels)).sample - images).square().mean() < 0.5 * error
    assert not any(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_refining_on_denoised_latents_brings_what_they_decode_to_nearer(pixels):
    """Latents that lost a part of themselves, as a denoiser's do, and the images they came from: nearer than by the works' own latents alone."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    errors, longer = [], replace(TINY, refinement=replace(TINY.refinement, steps=60))
    for told in (False, True):
        model = vae()
        made = encode(model, pixels) * torch.tensor([1.0, 0, 0, 0])[:, None, None]
        with torch.enable_grad():
            refine(model, pixels, longer, seed=1, denoised=(made, pixels) if told else None)
        errors.append(float((model.decode(made).sample - images).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_denoised_latents_are_what_the_rest_of_a_sampling_makes_of_noised_ones(sd):
    """By hand: noise at the timestep of the first step taken, then one DDIM step on the last timestep (Song et al. 2021, Eq. 12 with eta 0)."""
    clean, seeds = normal(sd.latent_shape, [1, 2]), [3, 4]
    t = sd.timesteps(4)[3:].expand(2)
    a, s = sd.scales(t)
    x = a * clean + s * normal(sd.latent_shape, seeds)
    with torch.no_grad():
        e = sd.predict(x, t, sd.conditioning(["cat", "dog"]))
    last = sd.alphas_cumprod[0]  # `set_alpha_to_one` is off: the last step ends at the first timestep
    expected = last.sqrt() * (x - s * e) / a + (1 - last).sqrt() * e
    torch.testing.assert_close(denoised(sd, clean, ["cat", "dog"], seeds, skip=3, steps=4, guidance=1.0), expected, rtol=1e-4, atol=1e-5)
