"""A low-rank student against a model whose weights were changed by hand."""

from __future__ import annotations

import pytest
import torch

from assay.errors import Misconfigured, Unsupported
from assay.noise import generator
from assay.patch import Manifest, Patch
from assay.patched import Patched
from assay.testing import tiny
from assay.training.low_rank import LowRank, matrices

pytestmark = pytest.mark.portable


@pytest.fixture(scope="module", params=["sd-epsilon", "sdxl"])
def denoiser(request):
    return tiny(request.param)


def inputs(denoiser):
    x_t = torch.randn(2, *denoiser.latent_shape, generator=generator(0, "inputs"))
    return x_t, torch.tensor([100, 900]), denoiser.conditioning(["a cat", ""])


def student(denoiser, rank=3, moved=True):
    made = LowRank(denoiser, matrices(denoiser.group("attention")), rank, seed=1)
    if moved:
        with torch.no_grad():
            for name, master in made.masters.items():
                master.copy_(0.1 * torch.randn(master.shape, generator=generator(2, name)))
    return made


def test_starts_at_the_model_as_it_is(denoiser):
    with torch.no_grad():
        assert torch.equal(student(denoiser, moved=False).run(denoiser.predict, *inputs(denoiser)), denoiser.predict(*inputs(denoiser)))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_predicts_as_its_patch_does_and_as_weights_changed_by_hand(denoiser, sign):
    made = student(denoiser)
    made.sign = sign
    by_hand = Patch(
        Manifest(), {f"delta/{name}": sign * made.masters[f"{name}/up"].detach() @ made.masters[f"{name}/down"].detach() for name in made.weights}
    )
    with torch.no_grad():
        predicted = made.run(denoiser.predict, *inputs(denoiser))
        for patch in (Patch(Manifest(), made.changes()), by_hand):
            with Patched(denoiser, [(patch, 1.0)]):
                torch.testing.assert_close(denoiser.predict(*inputs(denoiser)), predicted, rtol=1e-4, atol=1e-5)
        assert (predicted - denoiser.predict(*inputs(denoiser))).abs().max() > 1e-3


def test_gradients_follow_the_chain_rule(denoiser):
    """With G the gradient of W itself, up's is G down^T and down's is up^T G."""
    made = student(denoiser)
    name = next(name for name in made.weights if ".to_v." in name)
    whole = {key: tensor.detach() for key, tensor in made.standing().items()}
    whole[name].requires_grad_()
    torch.func.functional_call(made, whole, (denoiser.predict, *inputs(denoiser)), tie_weights=False).square().sum().backward()
    made.run(denoiser.predict, *inputs(denoiser)).square().sum().backward()
    gradient, up, down = whole[name].grad, made.masters[f"{name}/up"], made.masters[f"{name}/down"]
    assert gradient is not None
    torch.testing.assert_close(up.grad, gradient @ down.detach().T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(down.grad, up.detach().T @ gradient, rtol=1e-3, atol=1e-4)


def test_the_rank_is_as_asked_and_at_most_the_matrix_s(denoiser):
    for rank in (2, 1000):
        made = student(denoiser, rank)
        for name, weight in made.weights.items():
            assert made.masters[f"{name}/down"].shape == (min(rank, *weight.shape), weight.shape[1])
            assert made.masters[f"{name}/up"].shape == (weight.shape[0], min(rank, *weight.shape))


def test_refuses_what_has_no_rank(denoiser):
    with pytest.raises(Misconfigured, match="rank"):
        LowRank(denoiser, matrices(denoiser.group("attention")), 0, seed=0)
    with pytest.raises(Unsupported, match="matrix"):
        LowRank(denoiser, denoiser.group("unet"), 2, seed=0)
