"""Exposing the probabilities of cross-attention: they are all there, in order, and nothing else changes."""

import pytest
import torch

from assay.attention import cross_layers, exposed
from assay.noise import normal


def test_exposing_changes_no_prediction(denoiser):
    x_t, t = normal(denoiser.latent_shape, [1, 2]), torch.tensor([3, 700])
    conditioning = denoiser.conditioning(["cat", ""])
    before, kept = denoiser.predict(x_t, t, conditioning), denoiser.unet.attn_processors
    with exposed(denoiser.unet) as maps:
        assert torch.allclose(denoiser.predict(x_t, t, conditioning), before, atol=1e-4)
    layers = sum(name.endswith(".attn2.processor") for name in kept)
    assert len(maps) == layers
    assert all(one.shape[0] == 2 and one.shape[3] == conditioning.states.shape[1] for one in maps)
    assert all(torch.allclose(one.sum(3), torch.ones(()), atol=1e-5) for one in maps)
    with pytest.raises(KeyError), exposed(denoiser.unet):
        raise KeyError
    assert {name: type(processor) for name, processor in denoiser.unet.attn_processors.items()} == {name: type(one) for name, one in kept.items()}


def test_layers_are_named_in_the_order_of_a_pass(denoiser):
    """Hooks on the attention modules themselves say in which order a pass comes by."""
    seen, modules = [], dict(denoiser.unet.named_modules())
    names = cross_layers(denoiser.unet)
    handles = [modules[name.removesuffix(".processor")].register_forward_hook(lambda *_, name=name: seen.append(name)) for name in sorted(names)]
    denoiser.predict(normal(denoiser.latent_shape, [1]), torch.tensor([3]), denoiser.conditioning(["cat"]))
    for handle in handles:
        handle.remove()
    assert seen == names
