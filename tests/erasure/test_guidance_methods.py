"""The methods that sample by a rule: which rule they make, and that it does to images what it says."""

from dataclasses import replace

import pytest
import torch

from assay.concept import Concept, together
from assay.erasure import fair_diffusion, negative_prompt, sega, sld
from assay.errors import Misconfigured
from assay.guidance import Rule
from assay.patched import Patched
from assay.testing import tiny

STYLE = Concept("twemoji", "style", "noto", subjects=("cat",))
FAMILY = Concept("cat", "object", "dog", members=("black cat", "cat face"))


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-v")


def sample(denoiser, patch=None, **options):
    with Patched(denoiser, [] if patch is None else [(patch, 1.0)]):
        return denoiser.sample(["cat, twemoji style", "dog, noto style"], [1, 2], steps=4, **options)


def test_prompts_are_the_concept_in_words(denoiser):
    """By hand: a style is "NAME style", an object its name, whatever the family's titles; those given take their place."""
    for method in (negative_prompt, sld, sega):
        for concept, phrase in ((STYLE, "twemoji style"), (FAMILY, "cat"), (Concept("a red hat"), "a red hat")):
            (rule,) = method.erase(denoiser, concept).rules
            assert [prompt for prompt, _ in rule.prompts] == [phrase]
        (rule,) = method.erase(denoiser, STYLE, method.Settings(prompts=("a", "b"))).rules
        assert [prompt for prompt, _ in rule.prompts] == ["a", "b"]


def test_several_concepts_at_once(denoiser):
    """By hand: each is guided away from, each of their anchors to once; as attributes they are dealt out among themselves."""
    both = together([STYLE, Concept("openmoji", "style", "noto")])
    phrases = ("twemoji style", "openmoji style")
    assert negative_prompt.erase(denoiser, both).rules[0].prompts == tuple((phrase, 0.5) for phrase in phrases)
    assert sld.erase(denoiser, both).rules[0].prompts == tuple((phrase, 1.0) for phrase in phrases)
    expected = (*((phrase, -1.0) for phrase in phrases), ("noto style", 1.0))
    assert sega.erase(denoiser, both, sega.Settings(toward_anchor=True)).rules[0].prompts == expected
    assert fair_diffusion.erase(denoiser, both).rules[0].prompts == tuple((phrase, 0.5) for phrase in phrases)


def test_the_rules_by_hand(denoiser):
    assert negative_prompt.erase(denoiser, STYLE, negative_prompt.Settings(prompts=("a", "b"), strength=0.5)).rules == (
        Rule("negative_prompt", (("a", 0.5), ("b", 0.5)), (("strength", 0.5),)),
    )
    assert sld.erase(denoiser, STYLE, sld.Settings(**sld.PRESETS["max"])).rules == (
        Rule("sld", (("twemoji style", 1.0),), (("scale", 5000.0), ("threshold", 1.0), ("warmup", 0.0), ("momentum", 0.5), ("beta", 0.7))),
    )
    assert sega.erase(denoiser, STYLE, sega.Settings(toward_anchor=True)).rules[0].prompts == (("twemoji style", -1.0), ("noto style", 1.0))
    assert fair_diffusion.erase(denoiser, STYLE).rules[0].prompts == (("twemoji style", 0.5), ("noto style", 0.5))
    assert fair_diffusion.erase(denoiser, FAMILY, fair_diffusion.Settings(shares=(3.0, 1.0))).rules[0].prompts == (
        ("black cat", 0.75),
        ("cat face", 0.25),
    )


def test_a_certain_attribute_is_an_edit_towards_it_and_away_from_the_other(denoiser):
    numbers = {"scale": 3.0, "threshold": 0.5, "warmup": 1, "momentum": 0.3, "beta": 0.6}
    certain = fair_diffusion.erase(denoiser, STYLE, fair_diffusion.Settings(shares=(0.0, 1.0), **numbers))
    edit = sega.erase(denoiser, STYLE, sega.Settings(toward_anchor=True, **numbers))
    assert torch.equal(sample(denoiser, certain), sample(denoiser, edit))


def test_nothing_happens_during_warm_up(denoiser):
    """A warm-up as long as the sampling leaves plain guidance, to the last bit but those that a larger batch rounds otherwise."""
    for method, settings in ((sld, sld.Settings(warmup=4)), (sega, sega.Settings(warmup=4)), (fair_diffusion, fair_diffusion.Settings(warmup=4))):
        torch.testing.assert_close(sample(denoiser, method.erase(denoiser, STYLE, settings)), sample(denoiser), rtol=1e-4, atol=1e-4)
        on = sample(denoiser, method.erase(denoiser, STYLE, replace(settings, warmup=0)))
        assert (on - sample(denoiser)).abs().max() > 1e-3


def test_safe_guidance_leaves_what_is_far_on_the_safe_side_alone(denoiser):
    """p - c is never below -1000, so mu is 0 everywhere and gamma too."""
    patch = sld.erase(denoiser, STYLE, sld.Settings(threshold=-1000.0, warmup=0))
    torch.testing.assert_close(sample(denoiser, patch), sample(denoiser), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        (negative_prompt, {"strength": -1.0}),
        (negative_prompt, {"strength": float("nan")}),
        (sld, {"scale": -1.0}),
        (sld, {"warmup": -1}),
        (sld, {"momentum": 2.0}),
        (sld, {"beta": 1.0}),
        (sega, {"scale": -1.0}),
        (sega, {"threshold": 1.5}),
        (fair_diffusion, {"scale": float("nan")}),
        (fair_diffusion, {"shares": (1.0,)}),
        (fair_diffusion, {"shares": (0.0, 0.0)}),
        (fair_diffusion, {"shares": (1.0, -0.5)}),
        (fair_diffusion, {"attributes": ("a",)}),
        (fair_diffusion, {"attributes": ("a", "a")}),
    ],
)
def test_refuses_settings_out_of_range(denoiser, method, bad):
    with pytest.raises(Misconfigured):
        method.erase(denoiser, STYLE, method.Settings(**bad))


def test_refuses_to_go_toward_no_anchor(denoiser):
    with pytest.raises(Misconfigured, match="anchor"):
        sega.erase(denoiser, Concept("cat"), sega.Settings(toward_anchor=True))
    with pytest.raises(Misconfigured, match="two"):
        fair_diffusion.erase(denoiser, Concept("cat"))
