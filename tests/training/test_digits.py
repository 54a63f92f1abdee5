"""Small trainings of seconds; losses against the noise written out again, digits against scikit-learn's table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from assay.denoiser import tensor_digest, to_pictures
from assay.errors import Misconfigured, Mismatch
from assay.evaluation.membership import Roc
from assay.noise import generator, normal
from assay.training import digits
from assay.training.digits import DigitsSettings, fill_pool, losses, plan_pool, train, works
from assay.training.loop import Schedule
from assay.training.pool import Pool
from assay.training.private import Privacy

SHORT = DigitsSettings(width=16, layers=1, draws=1, schedule=Schedule(steps=3, batch=8, learning_rate=1e-3, warmup=1, ema=0.9))
HALF = np.arange(1797) % 2 == 0


@pytest.fixture(scope="module")
def short():
    return train(HALF, seed=1, settings=SHORT)


def weights(denoiser) -> str:
    return "".join(tensor_digest(tensor) for tensor in denoiser.unet.state_dict().values())


def test_the_works_are_the_digits():
    table = load_digits()
    assert works().column("title") == [str(digit) for digit in table.target]
    # A level of 16 becomes the nearest of 256: at most half of 1/255 off.
    assert digits.pixels()[:, 0].flatten(1).numpy() == pytest.approx(table.data / 16, abs=0.5 / 255 + 1e-6)
    assert set(works().column("license")) == {"CC-BY-4.0"}


def test_latents_are_the_grey_image_and_back(short):
    images = digits.pixels()[:5]
    latents = short.latents(images)
    assert latents.shape == (5, 1, 8, 8)
    torch.testing.assert_close(latents, images[:, :1] * 2 - 1)
    torch.testing.assert_close(short.images(latents), images)


def test_a_training_is_its_seed_and_subset(short):
    assert weights(train(HALF, seed=1, settings=SHORT)) == weights(short)
    assert weights(train(HALF, seed=2, settings=SHORT)) != weights(short)
    assert weights(train(~HALF, seed=1, settings=SHORT)) != weights(short)


def test_a_checkpoint_is_of_one_training_alone(tmp_path):
    """Another subset or seed does not go on from it; the same training does, to the same weights."""
    included = np.arange(len(works())) % 2 == 0
    made = train(included, seed=1, settings=SHORT, folder=tmp_path)
    for other, seed in ((~included, 1), (included, 2)):
        with pytest.raises(Mismatch, match="another training"):
            train(other, seed=seed, settings=SHORT, folder=tmp_path)
    assert train(included, seed=1, settings=SHORT, folder=tmp_path).digest == made.digest


def test_what_makes_no_training_set():
    for included in (np.zeros(1797, bool), np.ones(5, bool)):
        with pytest.raises(Misconfigured, match="no training set"):
            train(included, seed=1, settings=SHORT)


def test_losses_of_a_network_that_predicts_nothing_are_those_of_the_noise(short):
    # With the last layer at zero the loss is the mean square of the noise, whatever the timestep: mean 1, deviation sqrt(2 / (64 draws)).
    blank = train(HALF, seed=1, settings=SHORT)
    with torch.no_grad():
        blank.unet.back.weight.zero_()
        blank.unet.back.bias.zero_()
    settings = replace(SHORT, draws=2)
    found = losses(blank, settings)
    assert found.shape == (1797, 4)
    for place, low in enumerate((0, 50, 150, 400)):
        expected = 0
        for draw in range(2):
            rng = generator(settings.noise, "losses", low, draw)
            torch.rand(1797, generator=rng)  # the timesteps come first
            expected = expected + torch.randn((1797, 1, 8, 8), generator=rng).double().square().mean((1, 2, 3)) / 2
        assert found[:, place] == pytest.approx(np.asarray(expected), rel=1e-5)
    assert (losses(short, SHORT) == losses(short, SHORT)).all()


def test_losses_are_of_timesteps_in_their_range(short):
    seen = []
    short.unet.register_forward_pre_hook(
        lambda _, positional, named: seen.append(positional[1] if len(positional) > 1 else named["timestep"]), with_kwargs=True
    )
    settings = replace(SHORT, draws=5)
    losses(short, settings)
    for place, (low, high) in enumerate([(0, 50), (50, 150), (150, 400), (400, 1000)]):
        t = torch.stack(seen[5 * place : 5 * place + 5])
        assert (t >= low).all()
        assert (t < high).all()
        assert ((t - low) * 5 // (high - low) == torch.arange(5)[:, None]).all()  # stratified
    assert settings.names == ("t0-49", "t50-149", "t150-399", "t400-999")
    assert settings.widths == (50, 100, 250, 600)


def test_over_trained_members_show():
    # Forty digits seen five hundred times each: nothing generalises, so nearly every member's loss is below nearly every other's.
    member = np.arange(1797) < 40
    settings = DigitsSettings(width=64, layers=1, draws=4, schedule=Schedule(steps=600, batch=32, learning_rate=3e-3, warmup=20, ema=0.99))
    found = losses(train(member, seed=1, settings=settings), settings)
    assert Roc(-found[:, 1], member).auc() > 0.95


def test_a_model_is_a_denoiser_like_any_other(short):
    prompts, seeds = ["3", "", "7"], [1, 2, 3]
    images = short.generate(prompts, seeds, steps=3, guidance=2.0)
    assert images.shape == (3, 3, 8, 8)
    torch.testing.assert_close(short.generate(prompts[1:], seeds[1:], steps=3, guidance=2.0), images[1:])
    clean, t, noise = normal((1, 8, 8), [4, 5]), torch.tensor([10, 900]), normal((1, 8, 8), [6, 7])
    both = short.loss(clean, t, noise, short.conditioning(["1", "2"]))
    torch.testing.assert_close(short.loss(clean[1:], t[1:], noise[1:], short.conditioning(["2"])), both[1:])
    assert to_pictures(images)[0].size == (8, 8)
    assert short.pipeline("3", num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


def test_every_digit_is_a_prompt_of_its_own(short):
    states = short.conditioning(["", *map(str, range(10))]).states.flatten(1)
    distances = torch.cdist(states, states) + 9 * torch.eye(11)
    assert distances.min() > 1


def test_a_tiny_pool(tmp_path):
    plan = plan_pool(2, seed=1, repeated=2, repeats=2, settings=SHORT)
    pool = fill_pool(tmp_path, plan, SHORT)
    assert pool.losses.shape == (4, 1797, 4)
    assert pool.names == SHORT.names
    for index in (1, 2):  # a model is made again from its subset and seed
        again = losses(train(plan.included[index], seed=int(plan.seeds[index]), settings=SHORT), SHORT)
        assert (again == pool.losses[index]).all()
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "00001.safetensors").unlink()
    assert (fill_pool(tmp_path, plan, SHORT).losses == pool.losses).all()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole
    read = Pool.read(pool.write(tmp_path / "pool.parquet"))
    assert read.plan.about["settings"]["schedule"]["steps"] == 3
    assert read.plan.about["works"] == works().digest
    with pytest.raises(Misconfigured, match="other settings"):
        fill_pool(tmp_path, plan)
    with pytest.raises(Mismatch, match="another pool"):
        fill_pool(tmp_path, plan_pool(2, seed=2, settings=SHORT), SHORT)


def test_a_private_training_says_what_it_promised():
    privacy = Privacy(epsilon=1.0, delta=1e-4, clip=0.1, multiplicity=2, accountant="rdp")
    denoiser, kept = digits.train_privately(HALF, privacy, seed=1, settings=SHORT)
    assert weights(denoiser) != weights(digits.untrained(seed=1, settings=SHORT))
    assert (kept.works, kept.steps, kept.sampling_rate) == (899, 3, 8 / 899)
    assert 0 < kept.epsilon <= 1
