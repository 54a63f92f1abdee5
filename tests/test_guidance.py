"""Expected values come from the formulas of Ho and Salimans 2022 and from diffusers' negative prompts."""

from __future__ import annotations

import pytest
import torch

from assay.errors import Unsupported
from assay.guidance import RULES, Predictions, Rule
from assay.noise import normal


@pytest.fixture
def predictions() -> Predictions:
    return Predictions(*normal((3, 1, 4, 2, 2), [1])[0], step=0, steps=2)


def test_classifier_free_guidance(predictions):
    rule = Rule("classifier_free")
    for guidance in (0.0, 1.0, 4.0):
        expected = (1 - guidance) * predictions.empty.double() + guidance * predictions.prompt.double()
        torch.testing.assert_close(rule.combine(predictions, guidance).double(), expected, rtol=0, atol=2e-6)


def test_negative_prompt_replaces_the_empty_one(predictions):
    swapped = Predictions(predictions.concept, predictions.prompt, predictions.empty, 0, 2)
    plain = Rule("classifier_free")
    torch.testing.assert_close(Rule("negative_prompt", "x").combine(predictions, 4.0), plain.combine(swapped, 4.0), rtol=0, atol=2e-6)
    off = Rule("negative_prompt", "x", (("strength", 0.0),))
    assert torch.equal(off.combine(predictions, 4.0), plain.combine(predictions, 4.0))


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_mean_the_same_in_epsilon_and_v(predictions, name):
    # v = (e - s x) / a for all three predictions alike.
    a, s, x = 0.6, 0.8, normal((1, 4, 2, 2), [9])[0]
    views = [(tensor - s * x) / a for tensor in (predictions.empty, predictions.prompt, predictions.concept)]
    in_v = Rule(name, "x", (("strength", 0.7),)).combine(Predictions(*views, 0, 2), 4.0)
    in_epsilon = Rule(name, "x", (("strength", 0.7),)).combine(predictions, 4.0)
    torch.testing.assert_close(a * in_v + s * x, in_epsilon, rtol=0, atol=1e-5)


def test_an_unknown_rule_is_refused_with_the_known_ones(predictions):
    with pytest.raises(Unsupported, match=r"`magic`.*classifier_free"):
        Rule("magic").combine(predictions, 4.0)


def test_sampling_by_a_rule_is_sampling_with_a_negative_prompt(denoiser, monkeypatch):
    # diffusers' negative prompt is this rule at strength 1; `negative` was compared with diffusers in test_denoiser.
    expected = denoiser.sample(["red circle"], [1], steps=2, negative=["green cross"])
    plain = denoiser.sample(["red circle"], [1], steps=2)
    monkeypatch.setattr(denoiser, "rules", [Rule("negative_prompt", "green cross")])
    torch.testing.assert_close(denoiser.sample(["red circle"], [1], steps=2), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(denoiser, "rules", [Rule("negative_prompt", "green cross", (("strength", 0.0),))])
    torch.testing.assert_close(denoiser.sample(["red circle"], [1], steps=2), plain, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2
