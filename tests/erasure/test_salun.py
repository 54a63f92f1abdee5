"""SalUn's mask against sorting by hand; its losses against plain predictions."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.concept import Concept
from assay.erasure import salun
from assay.errors import Misconfigured
from assay.noise import generator
from assay.patched import Patched
from assay.testing import tiny
from assay.training import finetune
from assay.training.finetune import TRAINED, Noised, Student

pytestmark = pytest.mark.portable

CAT = Concept("cat", anchor="dog", preserve=("sun",))
QUICK: dict[str, Any] = {"steps": 3, "batch": 2, "images": 4, "image_steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> salun.Settings:
    return salun.Settings(**(QUICK | changes))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=40), st.floats(0.01, 1.0))
def test_the_mask_keeps_exactly_the_top_share(values, share):
    """Integers make ties: the k largest sizes by numpy's stable sort, ties by place."""
    half = len(values) // 2
    tensors = {"a": torch.tensor(values[:half], dtype=torch.float32).view(1, -1), "b": torch.tensor(values[half:], dtype=torch.float32)}
    masks = salun.top(tensors, share)
    flat = np.concatenate([masks["a"].numpy().ravel(), masks["b"].numpy()])
    count = max(1, round(share * len(values)))
    expected = np.zeros(len(values), bool)
    expected[np.argsort(-np.abs(values), kind="stable")[:count]] = True
    assert masks["a"].shape == (1, half)
    assert np.array_equal(flat, expected)


@pytest.mark.parametrize("group", TRAINED)
def test_nothing_outside_the_mask_changes(denoiser, group):
    chosen = quick(share=0.25, group=group)
    patch = salun.erase(denoiser, CAT, chosen)
    weights = denoiser.group(TRAINED[group])
    assert set(patch.names) == set(weights)
    prompts = [prompt for prompt, _ in CAT.pairs()]
    ((latents, words), _), _ = salun.own_pictures(denoiser, [prompts, CAT.preserved()], 4, seed=0, method="salun", then=0, steps=2, guidance=7.5)
    found = salun.gradients(Student(denoiser, weights), latents, words, 2, 0)
    sizes = np.concatenate([gradient.abs().numpy().ravel() for gradient in found.values()])
    least = np.sort(sizes)[-round(0.25 * len(sizes))]
    moved = 0
    for name, gradient in found.items():
        change = patch.tensors[f"delta/{name}"]
        outside = change[gradient.abs() < least]
        assert not outside.numel() or outside.abs().max() == 0
        moved += int((change != 0).sum())
    assert 0 < moved <= round(0.25 * len(sizes))


def test_the_mask_s_gradient_is_that_of_the_denoising_loss(denoiser):
    """Over all latents at once, with the very draws: one batch is the whole set."""
    student = Student(denoiser, denoiser.group("cross_attention"))
    latents = torch.randn(3, *denoiser.latent_shape, generator=generator(0, "latents"))
    found = salun.gradients(student, latents, ["cat", "dog", "sun"], 8, 5)
    drawn = Noised.draw(denoiser, latents, 3, generator(5, "salun", "mask", 0))
    conditioning = denoiser.conditioning([["cat", "dog", "sun"][row] for row in drawn.rows])
    loss = (student.run(denoiser.predict, drawn.x_t, drawn.t, conditioning, denoiser.view) - drawn.added).square().mean((1, 2, 3)).sum()
    loss.backward()
    for name, master in student.masters.items():
        assert torch.allclose(found[name], master.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
def test_the_relabelling_loss_by_hand(kind):
    model = tiny(kind)
    student = Student(model, model.group("unet"))
    latents = torch.randn(3, *model.latent_shape, generator=generator(0, "latents"))
    drawn = Noised.draw(model, latents, 2, generator(1))
    cat, dog = (model.predict(drawn.x_t, drawn.t, model.conditioning([word] * 2), model.view) for word in ("cat", "dog"))
    value = salun.relabelled(student, drawn, ["cat"] * 2, ["dog"] * 2)
    assert float(value.detach()) == pytest.approx(float((cat - dog).square().mean()), rel=1e-4)
    same = salun.relabelled(student, drawn, ["cat"] * 2, ["cat"] * 2)
    same.backward()
    assert float(same.detach()) == 0
    assert all(master.grad is None or master.grad.abs().max() == 0 for master in student.masters.values())


@pytest.mark.parametrize("changes", [{}, {"image_guidance": 1.0}, {"group": "cross-attention"}])
def test_takes_the_passes_it_says(denoiser, changes):
    before = denoiser.passes
    salun.erase(denoiser, CAT, quick(**changes))
    assert denoiser.passes - before == sum(salun.cost(quick(**changes)).values())


@pytest.mark.long
def test_the_concept_is_predicted_as_its_anchor(denoiser):
    x_t, t = torch.randn(16, *denoiser.latent_shape, generator=generator(2)), torch.randint(1000, (16,), generator=generator(3))

    def look(prompt):
        return denoiser.predict(x_t, t, denoiser.conditioning([prompt] * 16))

    cat, dog = look("cat"), look("dog")
    patch = salun.erase(denoiser, CAT, quick(steps=40, batch=4, learning_rate=2e-3, retain=0.0))
    with torch.no_grad(), Patched(denoiser, [(patch, 1.0)]):
        assert (look("cat") - look("dog")).norm() < 0.6 * (cat - dog).norm()


def test_an_interrupted_erasing_goes_on_to_the_same_bytes(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "EVERY", 2)
    chosen = quick(steps=4, group="cross-attention")
    whole = salun.erase(denoiser, CAT, chosen, folder=tmp_path / "whole")

    def stop(done, total, figures):
        if done == 2 + 1 + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        salun.erase(denoiser, CAT, chosen, folder=tmp_path / "part", progress=stop)
    assert salun.erase(denoiser, CAT, chosen, folder=tmp_path / "part").digest == whole.digest
    assert not list(tmp_path.glob("*/*.safetensors"))


@pytest.mark.parametrize(
    "bad",
    [
        {"group": "xattn"},
        {"share": 0.0},
        {"share": 1.5},
        {"steps": 0},
        {"batch": 0},
        {"images": 0},
        {"image_steps": 1001},
        {"learning_rate": 0.0},
        {"retain": -1.0},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    with pytest.raises(Misconfigured):
        salun.erase(denoiser, CAT, salun.Settings(**bad))


def test_refuses_an_anchor_that_is_the_concept(denoiser):
    with pytest.raises(Misconfigured, match="same prompts"):
        salun.erase(denoiser, Concept("cat", anchor="cat"))
