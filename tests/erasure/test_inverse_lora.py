"""Inverse LoRA: the algebra of plug-ins, the two stages against each other, and the loss written out again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from assay.concept import Concept, together
from assay.denoiser import tensor_digest
from assay.erasure import inverse_lora
from assay.errors import Misconfigured, Unsupported
from assay.noise import derive, generator, normal
from assay.patched import Patched
from assay.testing import tiny
from assay.training import finetune

STYLE = Concept("twemoji", "style", "noto", subjects=("cat", "red heart"))
QUICK: dict[str, Any] = {"rank": 2, "steps": 2, "surroundings": 2, "batch": 2, "images": 3, "image_steps": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> inverse_lora.Settings:
    return inverse_lora.Settings(**(QUICK | changes))


def start(denoiser, concept=STYLE, **changes: Any) -> inverse_lora.Training:
    settings = quick(**changes)
    training = inverse_lora.Training(denoiser, concept, settings, inverse_lora.check(denoiser, settings), seed=0)
    training.draw(None, None)
    return training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plug_in_brings_the_base_back_bit_for_bit(dtype):
    model = tiny("sd-epsilon")
    model.pipeline.to(dtype)
    patch = inverse_lora.erase(model, STYLE, quick())
    before = {name: tensor_digest(tensor) for name, tensor in model.weights().items()}
    with Patched(model, [(patch, 1.0)]) as changed:
        assert {name: tensor_digest(tensor) for name, tensor in changed.weights().items()} != before
    with Patched(model, [(patch, 1.0), (-patch, 1.0)]) as whole:
        assert {name: tensor_digest(tensor) for name, tensor in whole.weights().items()} == before


def test_without_surroundings_the_patch_is_the_first_stage_with_its_sign_turned(denoiser):
    """The first stage alone, trained by a plain loop of Adam over the same loss with clipping, then negated."""
    training = start(denoiser, surroundings=0)
    optimizer = torch.optim.Adam(list(training.student.masters.values()), lr=1e-2)
    for step in range(2):
        loss = training.loss(step, generator(0, "step", step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(training.student.masters.values()), 1.0)
        optimizer.step()
    patch = inverse_lora.erase(denoiser, STYLE, quick(surroundings=0))
    masters = training.student.masters
    for name in patch.names:
        learned = masters[f"{name}/up"].detach() @ masters[f"{name}/down"].detach()
        torch.testing.assert_close(patch.change(name), -learned, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
@pytest.mark.parametrize("stage", [0, 1])
def test_the_loss_of_a_stage_is_the_denoising_loss_on_its_own_images(kind, stage):
    """Before any step the student is the model: the loss is that of `Denoiser.loss` on what `Denoiser.sample` gives for its prompts."""
    model = tiny(kind)
    training = start(model)
    step = 2 * stage
    value = float(training.loss(step, generator(5, "draws")).detach())
    rng = generator(5, "draws")
    rows, t = torch.randint(3, (2,), generator=rng).tolist(), torch.randint(1000, (2,), generator=rng)
    seeds = [derive(0, "inverse_lora", stage, index) for index in range(3)]
    style = ("twemoji", "noto")[stage]
    assert all(f"{style} style" in prompt for prompt in training.prompts[stage])
    clean = model.sample(training.prompts[stage], seeds, steps=2, guidance=7.5)[rows]
    noise = torch.randn(clean.shape, generator=rng)
    with torch.no_grad():
        expected = model.loss(clean, t, noise, model.conditioning([training.captions[row] for row in rows])).mean()
    assert value == pytest.approx(float(expected), rel=1e-4)


def test_captions_leave_the_style_out_and_keep_the_object(denoiser):
    for training in (start(denoiser), start(denoiser, together([STYLE, Concept("openmoji", "style", "noto", subjects=("cat",))]))):
        assert set(training.captions) <= {"cat", "red heart"}
    target = start(denoiser, captions="target")
    assert target.captions == target.prompts[0]
    robot = Concept("r2d2", "object", "robot", styles=("noto",))
    for captions in ("content", "target"):
        training = start(denoiser, robot, captions=captions)
        assert training.captions == training.prompts[0]
        assert all("r2d2" in prompt for prompt in training.prompts[0])


@pytest.mark.long
def test_forgets_the_concept_for_its_surroundings(denoiser):
    """The denoising loss of anchor images under the concept's captions falls below the base's, at noise that was never drawn."""
    settings = quick(rank=4, steps=20, surroundings=80, batch=8, images=8, captions="target")
    patch = inverse_lora.erase(denoiser, STYLE, settings)
    training = start(denoiser, images=16)
    t, noise = torch.randint(1000, (16,), generator=generator(1, "t")), torch.randn(16, *denoiser.latent_shape, generator=generator(1, "noise"))
    told = denoiser.conditioning(training.prompts[0])
    with torch.no_grad():
        before = denoiser.loss(training.latents[1], t, noise, told).mean()
        with Patched(denoiser, [(patch, 1.0)]):
            after = denoiser.loss(training.latents[1], t, noise, told).mean()
    assert after < before


def test_takes_the_passes_that_it_says(denoiser):
    for settings in (quick(), quick(surroundings=0), quick(image_guidance=1.0)):
        before = denoiser.passes
        inverse_lora.erase(denoiser, STYLE, settings)
        assert denoiser.passes - before == sum(inverse_lora.cost(settings).values())


def test_an_interrupted_erasing_goes_on_to_the_same_bytes(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "EVERY", 4)
    settings = quick(steps=3, surroundings=3, batch=1)
    whole = inverse_lora.erase(denoiser, STYLE, settings, folder=tmp_path / "whole")

    def stop(done, total, figures):
        if done == 2 + 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inverse_lora.erase(denoiser, STYLE, settings, folder=tmp_path / "part", progress=stop)
    passes = denoiser.passes
    resumed = inverse_lora.erase(denoiser, STYLE, settings, folder=tmp_path / "part")
    assert denoiser.passes - passes == 2  # from step 4 to 6, with the latents kept
    assert resumed.digest == whole.digest
    assert not list(tmp_path.glob("*/*"))


def test_one_killed_at_its_end_hands_over_the_inverse_too(denoiser, tmp_path, monkeypatch):
    """After the last checkpoint was written and before it was removed: no step is left that would say which stage it is."""
    settings = quick(steps=2, surroundings=2, batch=1)
    whole = inverse_lora.erase(denoiser, STYLE, settings)
    unlink = Path.unlink

    def killed(path, **options):
        if path.name == "checkpoint.safetensors":
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            inverse_lora.erase(denoiser, STYLE, settings, folder=tmp_path)
    assert inverse_lora.erase(denoiser, STYLE, settings, folder=tmp_path).digest == whole.digest


@pytest.mark.parametrize(
    "bad",
    [{"rank": 0}, {"steps": 0}, {"surroundings": -1}, {"batch": 0}, {"images": 0}, {"image_steps": 0}, {"learning_rate": 0.0}, {"captions": "none"}],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    passes = denoiser.passes
    with pytest.raises(Misconfigured):
        inverse_lora.erase(denoiser, STYLE, quick(**bad))
    assert denoiser.passes == passes


def test_refuses_float16():
    model = tiny("sd-epsilon")
    model.pipeline.to(torch.float16)
    with pytest.raises(Unsupported, match="float16"):
        inverse_lora.erase(model, STYLE, quick())


def test_what_is_handed_over_unlearns_what_was_learned():
    """On the pictures and captions of the first stage, at fixed noise: the plug-in lowers the loss of the base, the patch, its inverse, raises it."""
    model = tiny("sd-epsilon")
    changes = {"surroundings": 0, "captions": "target", "steps": 10, "batch": 3, "learning_rate": 1e-3}
    training = start(model, **changes)
    patch = inverse_lora.erase(model, STYLE, quick(**changes))
    latents, told = training.latents[0], model.conditioning(training.captions)
    t, noise = torch.tensor([200, 500, 800]), normal(model.latent_shape, [1, 2, 3])

    def loss(*patches) -> float:
        with Patched(model, [(one, 1.0) for one in patches]), torch.no_grad():
            return float(model.loss(latents, t, noise, told).mean())

    assert loss(-patch) < loss() < loss(patch)
