"""Expected values come from the formulas of the papers, written out again element by element in float64, and from diffusers' negative prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import Unsupported
from assay.guidance import RULES, TELLING, Predictions, Rule
from assay.noise import normal, uniform

SLD = {"scale": 3.0, "threshold": 0.4, "warmup": 1.0, "momentum": 0.5, "beta": 0.7}
SEGA = {"scale": 2.0, "threshold": 0.6, "warmup": 1.0, "momentum": 0.5, "beta": 0.7}
PROMPTS = (("x", -1.0), ("y", 1.0))
EVERY = {
    "classifier_free": Rule("classifier_free"),
    "negative_prompt": Rule("negative_prompt", (("x", 0.25), ("y", 0.75)), (("strength", 0.7),)),
    "sld": Rule("sld", (("x", 1.0), ("y", 0.5)), tuple(SLD.items())),
    "sega": Rule("sega", PROMPTS, tuple(SEGA.items())),
    "fair_diffusion": Rule("fair_diffusion", (("x", 0.3), ("y", 0.5), ("z", 0.2)), tuple(SEGA.items())),
    "random_tokens": Rule("random_tokens"),
    "embedding_noise": Rule("embedding_noise"),
    "lower_magnitude": Rule("lower_magnitude", settings=(("target", 0.0), ("steps", 2.0))),
}
OFF = {"negative_prompt": "strength", "sld": "scale", "sega": "scale", "fair_diffusion": "scale"}
"""Rule -> the setting that makes it plain guidance at 0."""


def course(rule: Rule, seed: int = 1, steps: int = 4, images: int = 3, to_epsilon: float = 1.0) -> list[Predictions]:
    """Predictions for every step of a batch; image i is the same in every batch."""
    parts = 2 + len(rule.prompts)
    draws = normal((steps, parts, 2, 3, 3), range(seed, seed + images))
    coins = uniform(range(seed, seed + images), "rule")
    return [
        Predictions(draws[:, step, 0], draws[:, step, 1], tuple(draws[:, step, 2:].unbind(1)), step, steps, to_epsilon, coins)
        for step in range(steps)
    ]


def follow(rule: Rule, predictions: list[Predictions], guidance: float = 4.0) -> torch.Tensor:
    memory: dict[str, torch.Tensor] = {}
    return torch.stack([rule.combine(one, guidance, memory) for one in predictions])


def by_hand(rule: Rule, predictions: list[Predictions], guidance: float) -> np.ndarray:
    """One number at a time: image, then step, then element."""
    numbers = RULES[rule.name][1] | dict(rule.settings)
    weights = [weight for _, weight in rule.prompts]
    shape = predictions[0].empty.shape
    out = np.zeros((len(predictions), *shape))
    for image in range(shape[0]):
        if rule.name == "fair_diffusion":
            assert predictions[0].coins is not None
            coin, chosen = float(predictions[0].coins[image]), 0
            while chosen < len(weights) - 1 and coin >= sum(weights[: chosen + 1]):
                chosen += 1
            signs = [1.0 if index == chosen else -1 / (len(weights) - 1) for index in range(len(weights))]
        else:
            signs = weights
        nu = np.zeros(shape[1:])
        for step, one in enumerate(predictions):
            u, p = one.empty[image].double().numpy(), one.prompt[image].double().numpy()
            concepts = [concept[image].double().numpy() for concept in one.concepts]
            if rule.name in ("classifier_free", "negative_prompt", *TELLING):
                n = u + (numbers.get("strength", 0) if concepts else 0) * sum(w * (c - u) for w, c in zip(weights, concepts, strict=True))
                out[step, image] = (1 - guidance) * n + guidance * p
                continue
            gamma = np.zeros_like(u)
            for sign, c in zip(signs, concepts, strict=True):
                for channel in range(shape[1]):
                    sizes = sorted(abs(one.to_epsilon * (c - u)[channel].ravel()))
                    place = numbers["threshold"] * (len(sizes) - 1)
                    low = math.floor(place)
                    least = sizes[low] + (place - low) * (sizes[min(low + 1, len(sizes) - 1)] - sizes[low])
                    for at in np.ndindex(shape[2:]):
                        where = (channel, *at)
                        push, gap = one.to_epsilon * (c[where] - u[where]), one.to_epsilon * (p[where] - c[where])
                        if rule.name == "sld":
                            gamma[where] += sign * push * (min(1.0, numbers["scale"] * abs(gap)) if gap < numbers["threshold"] else 0.0)
                        elif abs(push) >= least * (1 - 1e-6):
                            gamma[where] += sign * numbers["scale"] * push
            gamma += numbers["momentum"] * nu
            nu = numbers["beta"] * nu + (1 - numbers["beta"]) * gamma
            shown = gamma / one.to_epsilon if step >= numbers["warmup"] else np.zeros_like(gamma)
            out[step, image] = u + guidance * (p - u) + (-guidance * shown if rule.name == "sld" else shown)
    return out


@pytest.mark.parametrize("to_epsilon", [1.0, 0.3])
@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_follows_its_recursion(name, to_epsilon):
    for guidance in (1.0, 4.0):
        predictions = course(EVERY[name], to_epsilon=to_epsilon)
        expected = by_hand(EVERY[name], predictions, guidance)
        torch.testing.assert_close(follow(EVERY[name], predictions, guidance).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(OFF))
def test_a_rule_of_no_strength_is_plain_guidance_exactly(name):
    rule = Rule(name, EVERY[name].prompts, (*EVERY[name].settings, (OFF[name], 0.0)))
    predictions = course(rule)
    assert torch.equal(follow(rule, predictions), follow(Rule("classifier_free"), predictions))
    assert not torch.equal(follow(EVERY[name], predictions), follow(Rule("classifier_free"), predictions))


@pytest.mark.parametrize("name", sorted(RULES))
def test_an_image_does_not_depend_on_its_batch(name):
    """Row 1 of a batch of three is the batch of its seed alone."""
    whole, alone = (follow(EVERY[name], course(EVERY[name], seed, images=images)) for seed, images in ((1, 3), (2, 1)))
    assert torch.equal(whole[:, 1:2], alone)


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_mean_the_same_in_epsilon_and_v(name):
    """v = (e - s x) / a for all predictions of a step alike, so that the combinations differ by the same map."""
    a, s = 0.6, 0.8
    in_epsilon = course(EVERY[name])
    x = normal((4, 2, 3, 3), [9])[0]
    in_v = []
    for k, one in enumerate(in_epsilon):
        empty, prompt, *concepts = ((part - s * x[k]) / a for part in (one.empty, one.prompt, *one.concepts))
        in_v.append(Predictions(empty, prompt, tuple(concepts), k, 4, a, one.coins))
    back = a * follow(EVERY[name], in_v) + s * x[:, None]
    torch.testing.assert_close(back, follow(EVERY[name], in_epsilon), rtol=0, atol=2e-5)


def test_warm_up_feeds_the_momentum_alone():
    """With beta 0 and one step of warm-up, nu is the hidden gamma of that step: gamma_1 = own + momentum x gamma_0."""
    rule = Rule("sega", (("x", 1.0),), (("scale", 1.0), ("threshold", 0.0), ("warmup", 1.0), ("momentum", 1.0), ("beta", 0.0)))
    predictions = course(rule, steps=2)
    first, second = follow(rule, predictions)
    plain = follow(Rule("classifier_free"), predictions)
    assert torch.equal(first, plain[0])
    gammas = [one.concepts[0] - one.empty for one in predictions]
    torch.testing.assert_close(second - plain[1], gammas[0] + gammas[1], rtol=0, atol=1e-5)


@given(st.integers(0, 19).map(lambda twentieths: twentieths / 20))  # float32 cannot tell 1e-9 from 0
def test_the_threshold_leaves_alone_its_share_of_every_channel(threshold):
    rule = Rule("sega", (("x", 1.0),), (("threshold", threshold), ("warmup", 0.0)))
    predictions = course(rule, steps=1)
    moved = follow(rule, predictions)[0] != follow(Rule("classifier_free"), predictions)[0]
    # Of 9 sizes those at or above the quantile, which lies threshold x 8 places up from the smallest.
    assert (moved.flatten(2).sum(-1) == 9 - math.ceil(threshold * 8 - 1e-9)).all()


def test_attributes_are_drawn_in_their_shares():
    """At an extreme scale the sign of gamma says what was drawn: counts of 3 attributes among 600 seeds, within 5 binomial deviations."""
    shares, seeds = (0.2, 0.5, 0.3), range(600)
    rule = Rule("fair_diffusion", tuple(zip("xyz", shares, strict=True)), (("scale", 1.0), ("threshold", 0.0), ("warmup", 0.0), ("momentum", 0.0)))
    ones = torch.eye(3)[:, None, :, None, None].expand(3, 600, 3, 1, 1)  # concept i moves channel i alone
    predictions = Predictions(torch.zeros(600, 3, 1, 1), torch.zeros(600, 3, 1, 1), tuple(ones), 0, 1, coins=uniform(seeds, "rule"))
    made = rule.combine(predictions, 4.0)[:, :, 0, 0]
    assert set(made.unique().tolist()) == {1.0, -0.5}
    assert (made.sum(1) == 0).all()
    for index, share in enumerate(shares):
        assert abs(int((made[:, index] == 1).sum()) - 600 * share) < 5 * math.sqrt(600 * share * (1 - share))


def test_a_share_of_all_is_certain():
    rule = Rule("fair_diffusion", (("x", 1.0), ("y", 0.0)), tuple(SEGA.items()))
    certain = Rule("sega", (("x", 1.0), ("y", -1.0)), tuple(SEGA.items()))
    assert torch.equal(follow(rule, course(rule, images=20)), follow(certain, course(certain, images=20)))


def test_negative_prompt_replaces_the_empty_one():
    rule = Rule("negative_prompt", (("x", 1.0),))
    (one,) = course(rule, steps=1)
    swapped = Predictions(one.concepts[0], one.prompt, (), 0, 1)
    torch.testing.assert_close(rule.combine(one, 4.0), Rule("classifier_free").combine(swapped, 4.0), rtol=0, atol=2e-6)


def test_an_unknown_rule_or_setting_is_refused_with_the_known_ones():
    with pytest.raises(Unsupported, match=r"`magic`.*classifier_free"):
        Rule("magic").combine(course(Rule("magic"))[0], 4.0)
    with pytest.raises(Unsupported, match=r"`speed`.*threshold"):
        Rule("sld", (), (("speed", 1.0),)).check()


def test_sampling_by_a_rule_is_sampling_with_a_negative_prompt(denoiser, monkeypatch):
    # diffusers' negative prompt is this rule at strength 1; `negative` was compared with diffusers in test_denoiser.
    expected = denoiser.sample(["red circle"], [1], steps=2, negative=["green cross"])
    plain = denoiser.sample(["red circle"], [1], steps=2)
    monkeypatch.setattr(denoiser, "rules", [Rule("negative_prompt", (("green cross", 1.0),))])
    torch.testing.assert_close(denoiser.sample(["red circle"], [1], steps=2), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(denoiser, "rules", [Rule("negative_prompt", (("green cross", 1.0),), (("strength", 0.0),))])
    torch.testing.assert_close(denoiser.sample(["red circle"], [1], steps=2), plain, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2


@pytest.mark.parametrize("name", sorted(RULES))
def test_sampling_by_any_rule_does_not_depend_on_batches(denoiser, monkeypatch, name):
    """The network's own sums differ between batch sizes by rounding; the rule adds nothing to that, and starts every batch with no memory."""
    rule = Rule(name, EVERY[name].prompts, tuple((key, 0.0 if key == "warmup" else value) for key, value in EVERY[name].settings))
    monkeypatch.setattr(denoiser, "rules", [rule])
    prompts, seeds = ["red circle", "green cross", "blue ring"], [1, 2, 3]
    whole = denoiser.sample(prompts, seeds, steps=3)
    torch.testing.assert_close(denoiser.sample(prompts, seeds, steps=3, batch=2), whole, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(denoiser.sample(prompts[1:2], seeds[1:2], steps=3), whole[1:2], rtol=1e-3, atol=1e-3)
    passes = denoiser.passes
    denoiser.sample(prompts, seeds, steps=3)
    before = 3 * (1 + 2) if name == "lower_magnitude" else 0  # the empty prompt once, then every step of the search
    assert denoiser.passes - passes == before + 3 * 3 * (2 + len(rule.prompts))
