"""The toys themselves: a folder must hold what memory held, and a seed must name the weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline

from assay.loading import load
from assay.noise import derive
from assay.testing import KINDS, save_tiny, tiny, tiny_works
from assay.testing.pipelines import tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_pipeline_is_the_one_in_memory_bit_for_bit(tmp_path, kind):
    made, loaded = tiny(kind), load(save_tiny(tmp_path / "m", kind))
    assert made.weights().keys() == loaded.weights().keys()
    assert all(torch.equal(tensor, loaded.weights()[name]) for name, tensor in made.weights().items())
    assert made.native == loaded.native == ("v_prediction" if kind == "sd-v" else "epsilon")
    images = [model.generate(["red circle"], [1], steps=2) for model in (made, loaded)]
    assert torch.equal(*images)
    assert not list((tmp_path / "m").rglob("*.bin"))


def test_a_seed_names_the_weights(sd):
    again, other = tiny(), tiny(seed=1)
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in sd.weights().items())
    assert not torch.equal(sd.weights()["unet.conv_in.weight"], other.weights()["unet.conv_in.weight"])


def test_making_a_pipeline_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    tiny(seed=derive("any"))
    assert torch.equal(torch.get_rng_state(), before)


def test_pipelines_have_the_declared_sizes(denoiser):
    assert (denoiser.latent_shape, denoiser.image_size) == ((4, 16, 16), 32)
    assert denoiser.generate(["a"], [1], steps=1).shape == (1, 3, 32, 32)
    assert isinstance(denoiser.pipeline, DiffusionPipeline)


def test_the_tokenizer_knows_every_byte():
    words = tokenizer()
    assert len(words) == 514  # 256 bytes inside a word, 256 at its end, start and end
    assert words.decode(words("Blue ring é 🙂").input_ids, skip_special_tokens=True).strip() == "blue ring é 🙂"


def test_the_works_are_fifty_different_ones():
    works = tiny_works()
    assert len(works) == 50 == len(set(works.column("id")))
    counts = {split: works.column("split").count(split) for split in ("member", "calibration", "holdout")}
    assert counts == {"member": 40, "calibration": 6, "holdout": 4}
    assert [copies for copies in works.column("copies") if copies > 1] == [16]
    assert all(copies == 0 for copies, split in zip(works.column("copies"), works.column("split")) if split != "member")
    assert works.column("id") == tiny_works().column("id")
    assert works.column("id") != tiny_works(seed=1).column("id")
