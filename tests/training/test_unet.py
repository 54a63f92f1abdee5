"""Expected values come from the rules in DESIGN (canaries) and from the loss written out again."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from assay.noise import generator, normal
from assay.training.loop import Schedule
from assay.training.unet import UNetSettings, build, exposures, train

TINY = UNetSettings(
    widths=(8, 8), attention=(False, True), heads=2, groups=4, empty=0.0, schedule=Schedule(steps=60, batch=8, learning_rate=1e-2, warmup=5, ema=0.9)
)
SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def unet(settings: UNetSettings = TINY):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(settings, latent_channels=2, latent_size=4, text_width=6)


TEXT = normal((3, 4, 6), [3])[0]


def test_every_copy_of_a_canary_keeps_its_caption():
    captions = [["a", "b"], ["one"], ["x", "y", "z"], ["never"]]
    assert exposures(captions, [1, 3, 5, 0]) == [
        (0, ["a", "b"]),  # an ordinary work: any of its captions
        *[(1, ["one"])] * 3,
        *[(2, ["x"]), (2, ["y"]), (2, ["z"]), (2, ["x"]), (2, ["y"])],
    ]


@given(st.lists(st.tuples(st.lists(st.text(max_size=2), min_size=1, max_size=3), st.integers(0, 6)), max_size=6))
def test_an_epoch_shows_every_work_as_often_as_it_has_copies(works):
    epoch = exposures([captions for captions, _ in works], [copies for _, copies in works])
    for index, (captions, copies) in enumerate(works):
        shown = [texts for work, texts in epoch if work == index]
        assert len(shown) == copies
        assert all(set(texts) <= set(captions) for texts in shown)
        assert copies < 2 or all(len(texts) == 1 for texts in shown)


def test_works_and_copies_must_agree():
    with pytest.raises(ValueError, match="shorter"):
        exposures([["a"], ["b"]], [1])


def test_the_network_has_the_shape_it_was_given():
    model = unet()
    assert model.config.block_out_channels == (8, 8)
    assert sum(name.endswith("attn2.to_k") for name, _ in model.named_modules()) == 1 + 1 + 2  # one down, one in the middle, two up


def test_loss_falls_on_a_toy():
    # One image: the noise can be read off the input but for the image, which is learnt.
    run = train(unet(), normal((1, 2, 4, 4), [1]).reshape(1, 2, 4, 4), TEXT, [(0, [1])], TINY, SCHEDULER, seed=1)
    assert sum(run.losses[-10:]) < 0.7 * sum(run.losses[:10])


@pytest.mark.parametrize(("gamma", "floor"), [(0.0, 0.2), (5.0, 0.0), (5.0, 0.2), (5.0, 1.0)])
def test_the_first_loss_is_the_formula(gamma, floor):
    # Eq. 8 of Hang et al. 2023 and, from below, Sec. 4 of Salimans and Ho 2022, drawing from the same generator in the same order.
    settings = UNetSettings(widths=(8, 8), attention=(False, True), heads=2, groups=4, gamma=gamma, floor=floor, empty=0.5, schedule=TINY.schedule)
    latents, epoch = normal((3, 2, 4, 4), [1])[0], [(0, [1, 2]), (2, [2]), (1, [1])]
    model = unet(settings)
    rng = generator(1, "step", 0)
    drawn = torch.randint(3, (8,), generator=rng)
    which, emptied, jitter = (torch.rand(8, generator=rng) for _ in range(3))
    text = torch.tensor([0 if empty < 0.5 else epoch[row][1][int(u * len(epoch[row][1]))] for row, u, empty in zip(drawn, which, emptied)])
    t = torch.tensor([int((index + u) / 8 * 1000) for index, u in enumerate(jitter.double())])
    clean = latents[[epoch[row][0] for row in drawn]]
    noise = torch.randn(clean.shape, generator=rng)
    with torch.no_grad():
        predicted = model(SCHEDULER.add_noise(clean, noise, t), t, TEXT[text]).sample
    alpha = SCHEDULER.alphas_cumprod[t].double()
    snr = (alpha / (1 - alpha)).tolist()
    weight = torch.tensor([min(max(each, floor), gamma) / each if gamma else 1.0 for each in snr])
    expected = ((predicted - noise).double().square().mean((1, 2, 3)) * weight).mean()
    run = train(model, latents, TEXT, epoch, settings, SCHEDULER, seed=1, until=1)
    assert run.losses[0] == pytest.approx(expected.item(), rel=1e-5)


def test_the_last_timestep_is_never_passed(monkeypatch):
    # float32 rounds 7 + (1 - 2 ** -24) up to 8, which is the whole schedule.
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 1 - 2**-24))
    run = train(unet(), normal((1, 2, 4, 4), [1]).reshape(1, 2, 4, 4), TEXT, [(0, [1])], TINY, SCHEDULER, seed=1, until=1)
    assert len(run.losses) == 1


def test_a_resumed_training_ends_with_the_same_bytes(tmp_path):
    latents, epoch = normal((2, 2, 4, 4), [1])[0], [(0, [1]), (1, [2])]

    def go(folder, until):
        model = unet()
        steps = []
        run = train(model, latents, TEXT, epoch, TINY, SCHEDULER, seed=1, folder=folder, until=until, progress=lambda step, *_: steps.append(step))
        run.use_average()
        return run.losses, model.state_dict(), steps

    go(tmp_path, 3)
    losses, resumed, steps = go(tmp_path, 6)
    assert steps == [4, 5, 6]
    expected, whole, _ = go(None, 6)
    assert losses == expected
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_training_leaves_the_model_frozen_in_evaluation_mode():
    model = unet()
    train(model, normal((1, 2, 4, 4), [1]).reshape(1, 2, 4, 4), TEXT, [(0, [1])], TINY, SCHEDULER, seed=1, until=1)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
