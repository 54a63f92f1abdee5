"""Expected values: backpropagation through the loss with all weights trainable, one work at a time."""

import numpy as np
import pytest
import torch

from assay.errors import Misconfigured
from assay.memorization import gsa
from assay.memorization.tape import Passes, record
from assay.noise import normal

WORDINGS = {"caption": ["red circle", "blue ring"], "empty": ["", ""]}


def test_gradients_are_those_of_the_loss_and_leave_the_weights_alone(denoiser):
    # The same loss written with all weights trainable and one work at a time; the squared error of the noise, whatever the model predicts.
    passes = Passes((200, 600), 1, 200, 100, 40, 40, gradient=True)
    latents, before = normal(denoiser.latent_shape, [1, 2]), denoiser.digest
    made = record(denoiser, latents, ["a", "b"], WORDINGS, passes, seed=0)
    denoiser.unet.requires_grad_(True)
    for row, caption in enumerate(WORDINGS["caption"]):
        clean, noise, t = latents[[row, row]], made.noise[row].flatten(0, 1), torch.tensor([200, 600])
        with torch.enable_grad():
            predicted = denoiser.predict(denoiser.noised(clean, t, noise), t, denoiser.conditioning([caption] * 2))
            (predicted - noise).square().mean().backward()
        squares = [weight.grad.double().square().sum() for name, weight in denoiser.unet.named_parameters() if ".attn2." in name]
        assert float(made.gradient[row]) == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-3)
        np.testing.assert_allclose(gsa.norm(made)[row], -np.log(float(made.gradient[row])))
        denoiser.unet.zero_grad(set_to_none=True)
    denoiser.unet.requires_grad_(False)
    again = record(denoiser, latents, ["a", "b"], WORDINGS, passes, seed=0)
    assert not any(weight.requires_grad for weight in denoiser.unet.parameters())
    assert denoiser.digest == before
    torch.testing.assert_close(again.gradient, made.gradient)


def test_without_gradients_there_is_a_remedy(tape):
    with pytest.raises(Misconfigured, match="without gradients"):
        gsa.norm(tape)
