"""Recipes read back as they were written, and UNets of another size share everything else with their base."""

from dataclasses import replace

import pytest
import torch

from assay.errors import BadInput, Missing, Unsupported
from assay.testing import tiny, tiny_works
from assay.testing.pipelines import WIDTH
from assay.training.loop import Schedule
from assay.training.recipe import Recipe, untrained
from assay.training.unet import UNetSettings
from assay.training.world import EMOJI32

UNET = UNetSettings(
    widths=(8, 8), attention=(True, True), heads=2, groups=4, schedule=Schedule(steps=20, batch=4, learning_rate=1e-3, warmup=2, ema=0.9)
)


def test_a_recipe_reads_back_as_it_was_written(tmp_path):
    recipe = Recipe(3, UNET, "digest", 20, {"size": 32})
    recipe.save(tmp_path)
    assert Recipe.load(tmp_path) == recipe
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(BadInput, match="no recipe"):
        Recipe.load(tmp_path)
    with pytest.raises(Missing, match="recipe"):
        Recipe.load(tmp_path / "none")


def test_the_average_reaches_back_over_the_same_share_of_the_steps():
    # 1 / (1 - 0.9) = 10 of 20 steps; of 100 steps that is 50, and 1 - 1 / 50 = 0.98.
    recipe = Recipe(0, UNET, "", 20)
    assert recipe.lasting(100).unet.schedule.ema == pytest.approx(0.98)
    assert recipe.lasting(20) == recipe
    assert recipe.lasting(1).unet.schedule.ema == 0  # shorter than the average: no average
    bare = replace(recipe, unet=replace(UNET, schedule=replace(UNET.schedule, ema=0.0)))
    assert bare.lasting(100).unet.schedule.ema == 0


def test_a_smaller_model_shares_all_but_the_unet():
    base = tiny()
    small = untrained(base, UNET, side=8, name="small")
    assert small.latent_shape == (4, 8, 8)
    assert small.image_size == base.image_size // 2
    assert small.pipeline.vae is base.pipeline.vae
    assert small.pipeline.text_encoder is base.pipeline.text_encoder
    assert base.latent_shape == (4, 16, 16)
    assert small.generate(["red circle"], [0], steps=2).shape == (1, 3, 16, 16)
    states = small.conditioning(["red circle"]).states
    assert torch.equal(states, base.conditioning(["red circle"]).states)
    assert states.shape[2] == WIDTH


def test_a_smaller_model_is_trained_on_smaller_images_by_the_same_recipe():
    small, works = untrained(tiny(), UNET, side=8, name="small"), tiny_works()
    unet, run = Recipe(0, UNET, works.digest, 0).retrain(small, works, until=3)
    assert unet.config.sample_size == 8
    assert run.step == 3
    assert [part.shape for part in unet.parameters()] == [part.shape for part in small.unet.parameters()]


def test_a_model_that_predicts_v_is_not_trained_as_one_that_predicts_epsilon(monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    works = tiny_works()
    with pytest.raises(Unsupported, match="v_prediction"):
        Recipe(0, UNET, works.digest, 0).retrain(tiny("sd-v"), works, until=1)


def test_the_small_model_of_the_world_has_less_than_four_million_parameters():
    from assay.training.unet import build

    with torch.device("meta"):
        unet = build(EMOJI32, latent_channels=4, latent_size=8, text_width=192)
    assert sum(part.numel() for part in unet.parameters()) < 4e6
