import dataclasses

import numpy as np
import pytest
import torch

from assay.errors import Misconfigured, Mismatch
from assay.judge_network import Shape
from assay.noise import generator
from assay.testing import tiny_works
from assay.training.judge import SCHEDULE, JudgeSettings, augment, augment_lightly, recolour, train

TINY = JudgeSettings(
    shape=Shape(widths=(4, 4, 8, 8, 16), style_widths=(4, 8, 8, 8)),
    statistics=2,
    schedule=dataclasses.replace(SCHEDULE, steps=4, batch=8, warmup=2, ema=0.5),
)


@pytest.fixture(scope="module")
def world():
    works = tiny_works(size=64)
    return works.pixels(64), works.column("title"), works.column("group"), works.column("style")


def test_a_resumed_training_gives_the_same_bytes(world, tmp_path):
    whole = train(*world, TINY, seed=0)
    assert train(*world, TINY, seed=0, folder=tmp_path, until=2) is None
    steps = []
    resumed = train(*world, TINY, seed=0, folder=tmp_path, progress=lambda step, *_: steps.append(step))
    assert steps == [3, 4]
    assert whole is not None
    assert resumed is not None
    assert resumed.digest == whole.digest  # over weights, averaged statistics included
    again = train(*world, TINY, seed=1)
    assert again is not None
    assert again.digest != whole.digest


def test_a_checkpoint_of_another_plan_is_refused(world, tmp_path):
    train(*world, TINY, seed=0, folder=tmp_path, plan="a", until=1)
    with pytest.raises(Mismatch):
        train(*world, TINY, seed=0, folder=tmp_path, plan="b", until=2)


def test_training_learns_style(world):
    # Filled against outlined: chance is 50 %; 60 steps of 32 reach far more on works it has seen.
    longer = dataclasses.replace(
        TINY, schedule=dataclasses.replace(SCHEDULE, steps=60, batch=32, warmup=5, ema=0.9, learning_rate=5e-3), statistics=8
    )
    judge = train(*world, longer, seed=0)
    assert judge is not None
    probabilities = judge.probabilities(torch.from_numpy(world[0]).permute(0, 3, 1, 2) / 255)["style"]
    named = [judge.classes["style"][index] for index in probabilities.argmax(1)]
    assert np.mean([name == truth for name, truth in zip(named, world[3])]) > 0.8


def test_statistics_are_those_of_the_fixed_draws(world):
    # After one batch of statistics with cumulative averaging, a layer's running mean is that batch's mean: the first style layer by hand.
    one = dataclasses.replace(TINY, statistics=1)
    judge = train(*world, one, seed=0)
    assert judge is not None
    rng = generator(0, "statistics", 0)
    images = torch.from_numpy(world[0])
    rows = torch.randint(len(images), (8,), generator=rng)
    augment(images[rows], one, rng)
    shown = augment_lightly(images[rows], one, rng)
    with torch.no_grad():
        convolved = judge.network.style_trunk[0](shown)
    torch.testing.assert_close(
        judge.network.style_trunk[1].running_mean, convolved.mean((0, 2, 3)), atol=2e-3, rtol=2e-3
    )  # weights were rounded to fp16


def test_light_augmentation_keeps_colours_and_adds_white():
    # A red square on white, shifted and mirrored: every pixel stays on the line between red (1, -1, -1) and white (1, 1, 1).
    images = torch.full((16, 64, 64, 3), 255, dtype=torch.uint8)
    images[:, 20:40, 20:40] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    shown = augment_lightly(images, TINY, generator("light"))
    torch.testing.assert_close(shown[:, 0], torch.ones(16, 64, 64))
    torch.testing.assert_close(shown[:, 1], shown[:, 2])
    assert 300 < (shown[:, 1] < 0).sum((1, 2)).float().mean() < 500  # 400 red pixels, moved but not scaled


def test_strong_augmentation_without_range_is_at_most_a_mirror():
    still = dataclasses.replace(TINY, rotation=0.0, zoom=0.0, shift=0.0, shear=0.0, colour=0.0)
    images = torch.randint(256, (6, 64, 64, 3), generator=generator("still"), dtype=torch.uint8)
    plain = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    for shown, image in zip(augment(images, still, generator("draw")), plain):
        error = min(float((shown - image).abs().max()), float((shown - image.flip(2)).abs().max()))
        assert error < 1e-4


def test_recolouring_keeps_grey_grey():
    # Rotation about the grey axis, saturation and gain act on chroma or on all channels alike, so equal channels stay equal.
    grey = (torch.rand(32, 1, 8, 8, generator=generator("grey")) * 2 - 1).expand(-1, 3, -1, -1)
    shown = recolour(grey, dataclasses.replace(TINY, colour=1.0), generator("recolour"))
    torch.testing.assert_close(shown[:, 0], shown[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(shown[:, 0], shown[:, 2], atol=1e-5, rtol=0)


def test_images_of_another_size_are_refused(world):
    with pytest.raises(Misconfigured, match="64x64"):
        train(world[0][:, ::2, ::2], *world[1:], TINY, seed=0)
