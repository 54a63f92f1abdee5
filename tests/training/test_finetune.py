"""A student against plain gradients and a plain copy of the model; latents against the sampler."""

import copy
from dataclasses import dataclass

import pytest
import torch

from assay.concept import Concept
from assay.errors import Misconfigured, Unsupported
from assay.noise import generator
from assay.patched import Patched
from assay.testing import KINDS, tiny
from assay.training import finetune
from assay.training.finetune import Student, own_latents

pytestmark = pytest.mark.portable


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    batch: int = 2
    learning_rate: float = 1e-2


@pytest.fixture(scope="module", params=["sd-epsilon", "sdxl"])
def denoiser(request):
    return tiny(request.param)


def inputs(denoiser):
    x_t = torch.randn(2, *denoiser.latent_shape, generator=generator(0, "inputs"))
    return x_t, torch.tensor([100, 900]), denoiser.conditioning(["a cat", ""])


@pytest.mark.parametrize("group", ["cross_attention.kv", "unet"])
def test_gradients_are_those_of_the_model_itself(denoiser, group):
    student = Student(denoiser, denoiser.group(group))
    student.run(denoiser.predict, *inputs(denoiser)).square().sum().backward()
    plain = copy.deepcopy(denoiser)
    weights = plain.group(group)
    for tensor in weights.values():
        tensor.requires_grad_()
    plain.predict(*inputs(denoiser)).square().sum().backward()
    for name, tensor in weights.items():
        assert torch.equal(student.masters[name].grad, tensor.grad)
    assert all(tensor.grad is None for tensor in denoiser.weights().values())


def test_the_text_encoder_can_train_too(denoiser):
    group = denoiser.group("token_embeddings")
    student = Student(denoiser, group)
    student.run(denoiser.family.encode, denoiser.family.tokenize(["a cat"])).states.square().sum().backward()
    ids = {token for side in denoiser.family.tokenize(["a cat"]) for token in side.flatten().tolist()}
    for master in student.masters.values():
        rows = set(master.grad.abs().sum(1).nonzero().flatten().tolist())
        assert rows
        assert rows <= ids  # a token that is not in the prompt has no gradient


def test_the_patch_makes_the_model_the_student(denoiser):
    student = Student(denoiser, denoiser.group("cross_attention"))

    def loss(step, _):
        return student.run(denoiser.predict, *inputs(denoiser)).square().mean()

    before = denoiser.predict(*inputs(denoiser))
    settings = Settings()
    patch = finetune.finetune(student, loss, finetune.schedule(settings), method="test", settings=settings, concept=Concept("cat"), seed=0)
    assert torch.equal(denoiser.predict(*inputs(denoiser)), before)
    with torch.no_grad(), Patched(denoiser, [(patch, 1.0)]):
        after = denoiser.predict(*inputs(denoiser))
    assert torch.allclose(after, student.run(denoiser.predict, *inputs(denoiser)).detach(), atol=1e-5)
    assert after.square().mean() < before.square().mean()


def test_latents_are_the_sampler_s_and_are_kept(denoiser, tmp_path):
    prompts, seeds = ["a cat", "a dog", "the sun"], [1, 2, 3]
    calls = []
    expected = denoiser.sample(prompts, seeds, steps=2)
    made = own_latents(denoiser, prompts, seeds, folder=tmp_path, batch=2, progress=lambda *call: calls.append(call), steps=2)
    assert torch.allclose(made, expected, atol=1e-5)
    assert calls == [(1, 2, {}), (2, 2, {})]
    before = denoiser.passes
    again = own_latents(denoiser, prompts, seeds, folder=tmp_path, batch=2, steps=2)
    assert torch.equal(again, made)
    assert denoiser.passes == before
    files = sorted(tmp_path.glob("latents-*.safetensors"))
    assert len(files) == 2
    files[0].write_bytes(b"damaged")
    assert torch.equal(own_latents(denoiser, prompts, seeds, folder=tmp_path, batch=2, steps=2), made)
    other = own_latents(denoiser, prompts, [1, 2, 4], folder=tmp_path, batch=2, steps=2)
    assert torch.equal(other[:2], made[:2])
    assert not torch.equal(other[2], made[2])


def test_latents_follow_the_patches_that_are_on(denoiser, tmp_path):
    """Kept latents of the bare model must not be taken for those of a patched one."""
    student = Student(denoiser, denoiser.group("unet"))
    settings = Settings()

    def loss(*_):
        return student.run(denoiser.predict, *inputs(denoiser)).square().mean()

    patch = finetune.finetune(student, loss, finetune.schedule(settings), method="test", settings=settings, concept=Concept("cat"), seed=0)
    bare = own_latents(denoiser, ["a cat"], [1], folder=tmp_path, steps=2)
    with Patched(denoiser, [(patch, 1.0)]):
        patched = own_latents(denoiser, ["a cat"], [1], folder=tmp_path, steps=2)
    assert not torch.equal(bare, patched)


def test_says_when_training_diverged(denoiser):
    student = Student(denoiser, denoiser.group("cross_attention.kv"))
    settings = Settings()

    def loss(*_):
        return sum(master.sum() for master in student.masters.values()) * float("inf")

    with pytest.raises(Misconfigured, match="diverged"):
        finetune.finetune(student, loss, finetune.schedule(settings), method="test", settings=settings, concept=Concept("cat"), seed=0)


def test_refuses_float16():
    model = tiny("sd-epsilon")
    model.pipeline.to(torch.float16)
    with pytest.raises(Unsupported, match="float16"):
        Student(model, model.group("unet"))


def test_few_stand_for_all():
    for count in (0, 3, 7, 15):
        drawn = finetune.spread("abcde", count, 0, "test")
        assert drawn == finetune.spread("abcde", count, 0, "test")
        assert {drawn.count(letter) for letter in "abcde"} <= {count // 5, -(-count // 5)}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_denoiser_s_own(kind):
    """For epsilon and v, at the same draws made by hand."""
    model = tiny(kind)
    latents = torch.randn(5, *model.latent_shape, generator=generator(0, "latents"))
    noised = finetune.Noised.draw(model, latents, 3, generator(1))
    draws = generator(1)
    rows = torch.randint(5, (3,), generator=draws)
    t = torch.randint(1000, (3,), generator=draws)
    noise = torch.randn(3, *model.latent_shape, generator=draws)
    prompts = ["a cat", "the sun", ""]
    ours = Student(model, model.group("unet")).losses(noised, prompts)
    assert torch.allclose(ours, model.loss(latents[rows], t, noise, model.conditioning(prompts)), rtol=1e-4)
    assert noised.rows == rows.tolist()
