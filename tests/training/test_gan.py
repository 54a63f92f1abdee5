"""Losses against closed forms on a linear discriminator in float64; images against what they may depend on; the uninterrupted run, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput, Misconfigured, Mismatch, Missing
from assay.evaluation.centroid import CentroidJudge
from assay.memorization import nearest
from assay.noise import generator, normal
from assay.testing import tiny, tiny_works
from assay.training.gan import GAN, Adversaries, GANSettings, augmented, build, discriminator_loss, generator_loss, pooled, r1, train
from assay.training.gan_network import Discriminator, Generator, Shape
from assay.training.loop import Schedule
from assay.training.unet import Epoch

SHAPE = Shape(noise=4, style=16, widths=(16, 8), groups=4)
SETTINGS = GANSettings(
    shape=SHAPE, gamma=10.0, interval=3, schedule=Schedule(steps=8, batch=4, learning_rate=1e-3, warmup=2, weight_decay=0, clip=1e9, ema=0.9)
)


@pytest.fixture(scope="module")
def base():
    return tiny()


@pytest.fixture(scope="module")
def works():
    return tiny_works()


@pytest.fixture(scope="module")
def gan(base):
    return GAN(base, *build(base, SHAPE, seed=1), SHAPE)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_hinge_losses_are_their_definition(real, fake):
    # Miyato et al. 2018: -E min(0, D(x) - 1) - E min(0, -D(G) - 1), and -E D(G).
    expected = -np.mean([min(0.0, x - 1) for x in real]) - np.mean([min(0.0, -x - 1) for x in fake])
    of_real, of_fake = torch.tensor(real, dtype=torch.float64), torch.tensor(fake, dtype=torch.float64)
    assert float(discriminator_loss(of_real, of_fake)) == pytest.approx(expected, abs=1e-12)
    assert float(generator_loss(of_fake)) == pytest.approx(-np.mean(fake), abs=1e-12)


def test_r1_of_a_projection_discriminator_without_layers_is_the_squared_norm_of_its_weights():
    # D(x, y) = (w + V y) . x has the gradient w + V y everywhere: R1 is the mean of |w + V y|^2, and its own gradient in w is 2 mean(w + V y).
    x, y = normal((6,), range(5)).double(), normal((3,), range(5, 10)).double()
    w, v = normal((6,), [20])[0].double().requires_grad_(), normal((6, 3), [21])[0].double()
    x.requires_grad_()
    penalty = r1(((w + y @ v.T) * x).sum(1), x)
    slope = w.detach() + y @ v.T
    torch.testing.assert_close(penalty.detach(), slope.square().sum(1).mean(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(gradient, 2 * slope.mean(0), rtol=1e-12, atol=0)


def test_r1_of_the_network_is_that_of_differences():
    network = Discriminator(SHAPE, channels=2, side=4, text_width=3).double()
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.copy_(normal(parameter.shape, [number])[0].double() * 0.3)
    x, text = normal((2, 4, 4), [100, 101]).double().requires_grad_(), normal((3,), [200, 201]).double()
    found, total, h = r1(network(x, text), x), 0.0, 1e-6
    with torch.no_grad():
        for row in range(2):
            for place in range(32):
                step = torch.zeros(2, 32, dtype=torch.float64)
                step[row, place] = h
                ends = [network(x + sign * step.view_as(x), text)[row] for sign in (1, -1)]
                total += float((ends[0] - ends[1]) / (2 * h)) ** 2 / 2
    assert float(found.detach()) == pytest.approx(total, rel=1e-6)


def test_the_projection_is_the_only_way_text_enters_the_discriminator():
    # Miyato and Koyama 2018: without V, the score does not depend on the text; with it, it is affine in the embedding V y.
    network = Discriminator(SHAPE, channels=2, side=4, text_width=3)
    x, text = normal((2, 4, 4), [1, 2]), normal((3,), [3, 4])
    with torch.no_grad():
        told = network(x, text)
        network.text = torch.nn.Linear(3, SHAPE.style, bias=False)
        one, two = text, normal((3,), [5, 6])
        middle = network(x, (one + two) / 2)
        torch.testing.assert_close(middle, (network(x, one) + network(x, two)) / 2)
        network.text.weight.zero_()
        assert torch.equal(network(x, one), network(x, two))
    assert not torch.allclose(told, middle)


def test_an_image_depends_on_its_own_prompt_and_seed_alone(gan):
    prompts, seeds = ["red circle", "blue ring", "red circle", "red circle"], [1, 1, 2, 1]
    state = torch.random.get_rng_state()
    images = gan.generate(prompts, seeds, batch=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert images.shape == (4, 3, 32, 32)
    assert ((images >= 0) & (images <= 1)).all()
    torch.testing.assert_close(images[0], images[3], rtol=0, atol=1e-5)  # in another batch
    torch.testing.assert_close(images[:1], gan.generate(prompts[:1], seeds[:1]), rtol=0, atol=1e-5)
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    assert not torch.allclose(images[0], images[2], atol=1e-3)
    assert gan.generate([], []).shape == (0, 3, 32, 32)


def test_a_gan_has_one_step_and_no_guidance(gan):
    before = gan.passes
    for options in ({"steps": 2}, {"guidance": 4.0}):
        with pytest.raises(Misconfigured, match="one step"):
            gan.generate(["red circle"], [1], **options)
    with pytest.raises(Misconfigured, match="seeds"):
        gan.generate(["red circle"], [1, 2])
    assert gan.passes == before


def test_scores_are_the_discriminator_s_of_latents_and_pooled_text(gan, base, works):
    images, captions = torch.from_numpy(works.pixels(32)[:3]).permute(0, 3, 1, 2) / 255, [texts[0] for texts in works.column("captions")[:3]]
    found = gan.scores(images, captions, batch=2)
    states = base.conditioning(captions).states
    assert torch.equal(pooled(base, captions), states[:, -1])
    expected = gan.discriminator(base.latents(images), states[:, -1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_augmentation_shifts_and_cuts():
    # A picture of its own indices from 1: what is left over of every row is a shift of it by at most 1 of 8, 0 elsewhere; 16 of 64 are cut at most.
    rows = 200
    image = (torch.arange(64.0) + 1).view(1, 1, 8, 8).expand(rows, 2, 8, 8)
    made = augmented(image, generator(0, "augment"))
    assert torch.equal(made[:, 0], made[:, 1])
    shifts, fewest = set(), 64
    for picture in made[:, 0]:
        place = picture.nonzero()
        source = picture[place[:, 0], place[:, 1]].long() - 1
        found = set(zip((place[:, 0] - source // 8).tolist(), (place[:, 1] - source % 8).tolist(), strict=True))
        assert len(found) == 1
        shifts |= found
        fewest = min(fewest, len(place))
    assert shifts == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    assert fewest >= 64 - 15 - 16  # seven rows and columns are left of the shift, less the square


def test_a_resumed_training_ends_with_the_same_bytes(base, works, tmp_path):
    class Killed(Exception):
        pass

    def kill(step: int, *_: object) -> None:
        if step == 6:
            raise Killed

    whole, run = train(base, works, SETTINGS, seed=3)
    train(base, works, SETTINGS, seed=3, folder=tmp_path, until=5)
    with pytest.raises(Killed):
        train(base, works, SETTINGS, seed=3, folder=tmp_path, progress=kill)
    resumed, again = train(base, works, SETTINGS, seed=3, folder=tmp_path)
    assert resumed.digest == whole.digest
    assert run.losses == again.losses
    assert train(base, works, SETTINGS, seed=4)[0].digest != whole.digest
    with pytest.raises(Mismatch):
        train(base, works, replace(SETTINGS, gamma=0.0), seed=3, folder=tmp_path)


def test_a_step_gives_each_network_the_gradient_of_its_own_loss(base):
    # By the definitions, each from passes of its own: hinge and R1 with the weight 10 / 2 every third step for D, minus D's score for G.
    mine, opponent = build(base, SHAPE, seed=3)
    latents, text, epoch = normal(base.latent_shape, range(3)), normal((16,), range(10, 14)), [(0, [0]), (1, [1, 2]), (2, [3]), (2, [3])]
    run = Adversaries(mine, opponent, latents, text, epoch, SETTINGS, seed=3)
    for step, penalised in ((0, True), (1, False)):
        run.step = step
        value = run.gradients(generator(3, "step", step))
        rng = generator(3, "step", step)
        rows, texts = Epoch(epoch).draw(4, rng)
        fake = mine(torch.randn(4, SHAPE.noise, generator=rng), text[texts])
        real = latents[rows].requires_grad_()
        scores = opponent(real, text[texts])
        hinge = (1 - scores).clamp(min=0).mean() + (1 + opponent(fake.detach(), text[texts])).clamp(min=0).mean()
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        expected = hinge + (3 * 10 / 2 * slope.square().sum((1, 2, 3)).mean() if penalised else 0)
        assert value == pytest.approx(float(hinge.detach()), rel=1e-5)
        for network, loss in ((opponent, expected), (mine, -opponent(fake, text[texts]).mean())):
            for parameter, gradient in zip(network.parameters(), torch.autograd.grad(loss, list(network.parameters())), strict=True):
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
    assert run.optimizer.param_groups[0]["betas"] == (0.0, 0.99)


def test_what_is_saved_is_what_is_loaded(gan, base, works, tmp_path):
    gan.save(tmp_path)
    loaded = GAN.load(tmp_path, base)
    assert loaded.digest == gan.digest
    assert torch.equal(loaded.generate(["red circle"], [5]), gan.generate(["red circle"], [5]))
    with pytest.raises(Mismatch):
        GAN.load(tmp_path, tiny(seed=1))
    with pytest.raises(Missing):
        GAN.load(tmp_path / "nowhere", base)
    file = tmp_path / "gan.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BadInput):
        GAN.load(tmp_path, base)


def test_the_audit_of_nearest_works_takes_a_gan(gan, works, tmp_path):
    # 50 tiny works, one canary: what is called memorised of an untrained generator must be at the level of what it was never shown: nothing.
    settings = nearest.Settings(images=2, steps=1, guidance=1.0, members=6, batch=16, matches=2)
    judge, before = CentroidJudge(works), gan.passes
    made = nearest.audit(gan, works, settings, judge=judge, seed=0, folder=tmp_path)
    value = {metric.name: metric for metric in made.record.metrics}
    assert set(value) == {"false_positives.calibration", "false_positives.holdout", "memorised.members", "memorised.k16"}
    assert made.record.passes == gan.passes - before == nearest.cost(works, settings)["passes"]
    assert made.record.digests["model"] == gan.digest
    again = nearest.audit(gan, works, settings, judge=judge, seed=0, folder=tmp_path)
    assert again.record.metrics == made.record.metrics
    with pytest.raises(Misconfigured, match="one step"):
        nearest.audit(gan, works, replace(settings, steps=2), judge=judge, seed=0)


def test_a_generator_that_copies_is_caught(base, works):
    """Planted: a generator that draws the canary's latent for the canary's caption, and what it draws anyway for all others."""
    canary = works.attribute("canary").index("one")
    caption = works.column("captions")[canary][0]
    latent = base.latents(torch.from_numpy(works.pixels(32)[[canary]]).permute(0, 3, 1, 2) / 255)
    mark = pooled(base, [caption])

    class Copier(Generator):
        def forward(self, noise: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            same = torch.isclose(text, mark, atol=1e-5).all(1)[:, None, None, None]
            return torch.where(same, latent, super().forward(noise, text))

    _, discriminator = build(base, SHAPE, seed=1)
    channels, side, _ = base.latent_shape
    copier = Copier(SHAPE, channels=channels, side=side, text_width=mark.shape[1])
    settings = nearest.Settings(images=1, steps=1, guidance=1.0, members=6, false_positive_rate=0.2)
    # The tiny autoencoder is untrained: it is the decoded work that is copied, so works are compared as it decodes them.
    pictures = base.images(base.latents(torch.from_numpy(works.pixels(32)).permute(0, 3, 1, 2) / 255))
    made = nearest.audit(GAN(base, copier, discriminator, SHAPE), decoded(works, pictures), settings, judge=CentroidJudge(works), seed=0)
    value = {metric.name: metric.value for metric in made.record.metrics}
    assert value["memorised.k16"] == 1
    assert value["false_positives.calibration"] == 0


def decoded(works, images):
    """Return the works with other pictures."""
    from PIL import Image

    from assay.works.images import encode

    arrays = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return works.with_columns(image=[encode(Image.fromarray(array)) for array in arrays])
