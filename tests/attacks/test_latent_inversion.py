"""Latent inversion: its steps are the sampler's, undoing one is exact where predictions allow it, and refinement brings the picture back nearer."""

from dataclasses import replace

import pytest
import torch

from assay.attacks.latent_inversion import Settings, attack, lifted, pairs, step
from assay.guidance import Rule
from assay.testing import tiny_target

RULES = [
    None,
    Rule("negative_prompt", (("ring", 1.0),)),
    Rule("sld", (("ring", 1.0),), (("momentum", 0.0), ("warmup", 1.0))),
    Rule("sega", (("ring", -1.0),), (("momentum", 0.0), ("warmup", 1.0))),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "none" if rule is None else rule.name)
def test_its_steps_are_those_of_the_sampler(denoiser, rule, monkeypatch):
    """From the same noise, under the empty prompt and without guidance, taking every step draws what `Denoiser.sample` draws, by a rule too."""
    monkeypatch.setattr(denoiser, "rules", [] if rule is None else [rule])
    target = replace(tiny_target(denoiser), steps=4, guidance=1.0)
    x = torch.randn((2, *denoiser.latent_shape), generator=torch.Generator().manual_seed(3))
    empty = denoiser.conditioning([""]).expand(2)
    expected = denoiser.sample(empty, [0, 0], steps=4, guidance=1.0, start=x)
    with torch.no_grad():
        for t, alpha, to in pairs(denoiser, 4):
            x = step(denoiser, target, x, t, alpha, to, empty)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


def test_undoing_a_step_is_exact_where_the_prediction_does_not_depend_on_x(sd, monkeypatch):
    """With a constant predicted noise the implicit equation is solved by plain inversion: lifting and stepping is the identity."""
    constant = torch.full((1, *sd.latent_shape), 0.3)
    monkeypatch.setattr(sd, "predict", lambda *_: constant)
    target, empty, x = tiny_target(sd), sd.conditioning([""]), torch.randn((1, *sd.latent_shape), generator=torch.Generator().manual_seed(3))
    for t, alpha, to in pairs(sd, 4):
        torch.testing.assert_close(step(sd, target, lifted(sd, target, x, t, alpha, to, empty), t, alpha, to, empty), x, rtol=1e-4, atol=1e-4)


def test_refinement_brings_the_picture_back_nearer(pipelines):
    """The same few steps, with and without refinement, of a model that predicts v."""
    denoiser = pipelines["sd-v"]
    target, errors = tiny_target(denoiser), []
    for refine in (0, 5):
        found = attack(denoiser, target, Settings(refine=refine, learning_rate=0.03))
        errors.append(float((found.sample(denoiser, [0, 0], target) - target.latents).square().mean()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("refine", [0, 2])
def test_what_is_left_is_measured_after_the_last_refinement(sd, refine):
    """By hand, of one DDIM step: the sampler's from what was found, less the picture, squared; without refinement too, where nothing is solved."""
    target = replace(tiny_target(sd), steps=1, guidance=1.0)
    found = attack(sd, target, Settings(refine=refine, learning_rate=0.03))
    with torch.no_grad():
        left = step(sd, target, found.start, *next(iter(pairs(sd, 1))), sd.conditioning([""]).expand(2)) - target.latents
    assert found.curves["left at each step"] == [pytest.approx(float(left.square().mean()), rel=1e-4)]
    assert float(left.abs().max()) > 0


def test_no_words_are_told(sd):
    """What is told is the empty prompt's own encoding, and images are drawn without guidance."""
    target = tiny_target(sd)
    found = attack(sd, target, Settings(refine=0))
    assert found.prompts == ("", "")
    assert not found.guided
    assert torch.equal(found.conditioning.states, sd.conditioning(["", ""]).states)
