"""The search within the training against the loss itself; surrogates by the seed of their row; and the rules' settings that are refused."""

from importlib import import_module

import pytest
import torch

from assay.concept import Concept
from assay.erasure import adversarial_finetune as method
from assay.errors import Misconfigured
from assay.noise import generator, normal
from assay.testing import tiny
from assay.training.finetune import Student

PROMPTS = ["cat, twemoji style", "dog, noto style"]
QUICK = method.Settings(image_steps=2, attack_steps=12, attack_rate=0.05)


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-v")


def test_the_search_lowers_the_loss_of_the_memorised_image(denoiser):
    """Measured apart, as the mean over 20 timesteps and noises that the search did not draw."""
    student = Student(denoiser, denoiser.group("cross_attention"))
    clean = normal(denoiser.latent_shape, [1, 2])

    def loss(told):
        draws = [(torch.full((2,), 25 + 50 * index), normal(denoiser.latent_shape, [100 + index, 200 + index])) for index in range(20)]
        with torch.no_grad():
            return sum(float(denoiser.loss(clean, t, noise, told).mean()) for t, noise in draws) / len(draws)

    plain = denoiser.conditioning(PROMPTS)
    found = method.searched(student, clean, PROMPTS, QUICK, generator("search"))
    assert loss(found) < loss(plain)
    unmoved = method.searched(student, clean, PROMPTS, method.Settings(attack_steps=0), generator("search"))
    assert torch.equal(unmoved.states, plain.states)


def test_the_objective_is_that_of_the_head_of_the_module(denoiser, monkeypatch):
    """By hand, at the start, from the denoiser's own losses: of surrogates under what the search found and under their prompts, and of what is kept.

    The search is stood in for by the states of "moon", so that what it finds cannot be mistaken for the prompts.
    """
    given, made, pictures = [], [], method.own_pictures
    monkeypatch.setattr(method, "finetune", lambda student, loss, *_, **__: given.append((student, loss)))
    monkeypatch.setattr(method, "own_pictures", lambda *asked, **how: made.append(pictures(*asked, **how)) or made[-1])
    monkeypatch.setattr(method, "searched", lambda student, clean, prompts, *_: made.append(clean) or denoiser.conditioning(["moon"] * len(prompts)))
    concept = Concept(PROMPTS[0], "work", preserve=("sun", "green"))
    settings = method.Settings(steps=1, batch=3, images=4, image_steps=2, retain=0.5)
    method.erase(denoiser, concept, settings, seed=2)
    ((_, loss),) = given
    value = float(loss(0, generator(0, "step")).detach())
    ((remembered, prompts), (kept, calm)), _ = made[0]
    surrogates, source = method.other_pictures(denoiser, prompts, settings, 2), generator(0, "step")

    def drawn(clean):
        rows = torch.randint(len(clean), (3,), generator=source)
        t = torch.randint(1000, (3,), generator=source)
        return rows.tolist(), clean[rows], t, torch.randn(clean[rows].shape, generator=source)

    with torch.no_grad():
        rows, *noised = drawn(surrogates)
        assert torch.equal(made[1], remembered[rows])
        expected = sum(denoiser.loss(*noised, denoiser.conditioning(told)).mean() for told in (["moon"] * 3, [prompts[row] for row in rows]))
        rows, *noised = drawn(kept)
        expected += 0.5 * denoiser.loss(*noised, denoiser.conditioning([calm[row] for row in rows])).mean()
    assert value == pytest.approx(float(expected), rel=1e-4)


def test_surrogates_are_drawn_by_row_and_differ_from_plain_images(denoiser):
    both = method.other_pictures(denoiser, PROMPTS, QUICK, 3)
    assert both.shape == (2, *denoiser.latent_shape)
    torch.testing.assert_close(method.other_pictures(denoiser, PROMPTS[:1], QUICK, 3), both[:1], rtol=0, atol=1e-4)
    assert not torch.equal(both, method.other_pictures(denoiser, PROMPTS, QUICK, 4))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("adversarial_finetune", {"steps": 0}),
        ("adversarial_finetune", {"attack_steps": -1}),
        ("adversarial_finetune", {"attack_rate": 0.0}),
        ("adversarial_finetune", {"inserted": 0}),
        ("adversarial_finetune", {"group": "text"}),
        ("embedding_noise", {"scale": -0.1}),
        ("embedding_noise", {"scale": float("inf")}),
        ("random_tokens", {"probability": 1.5}),
        ("random_tokens", {"inserted": -1}),
        ("lower_magnitude", {"target": -1.0}),
        ("lower_magnitude", {"steps": 0}),
        ("lower_magnitude", {"strength": 2.0}),
    ],
)
def test_refuses_settings_out_of_range(denoiser, name, bad):
    one, passes = import_module(f"assay.erasure.{name}"), denoiser.passes
    with pytest.raises(Misconfigured):
        one.erase(denoiser, Concept(PROMPTS[0], "work"), one.Settings(**bad))
    assert denoiser.passes == passes
