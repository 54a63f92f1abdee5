"""The search for hidden works: its starts, what it lowers, and the base's loss beside it."""

import pytest
import torch

from assay.attacks.hidden_or_removed import Settings, attack, repeated, scrambled, starts
from assay.concept import Concept
from assay.erasure import uce
from assay.guidance import Rule
from assay.patched import Patched
from assay.testing import tiny_target


def test_the_first_start_is_the_prompt_and_the_others_are_random_tokens(denoiser):
    """As long as the prompt, without special tokens in between, and another for each attempt and prompt."""
    target = tiny_target(denoiser)
    begun = starts(denoiser, target, 3)
    own = denoiser.conditioning(target.prompts).states
    assert torch.equal(begun.states[[0, 3]], own)
    assert len({tuple(row.flatten().tolist()) for row in begun.states[[1, 2, 4, 5]]}) == 4
    for ids, plain in zip(scrambled(denoiser, "a green hat", 5), denoiser.family.tokenize(["a green hat"]), strict=True):
        special = torch.isin(plain, torch.tensor([512, 513]))
        assert torch.equal(torch.isin(ids, torch.tensor([512, 513])), special)
        assert torch.equal(ids[special], plain[special])


def test_attempts_have_draws_of_their_own(sd):
    target = tiny_target(sd)
    whole = repeated(target, 2)
    assert whole.prompts == (target.prompts[0],) * 2 + (target.prompts[1],) * 2
    assert len(set(whole.seeds)) == 4
    assert torch.equal(whole.latents, target.latents[[0, 0, 1, 1]])


def test_the_search_lowers_the_loss(sd):
    """On fixed noise that the search does not draw, below that of the prompts' own words: the same noise before and after, for every prompt."""
    target = tiny_target(sd)
    found = attack(sd, target, Settings(attempts=1, steps=12, samples=2))
    before, after = found.figures["loss.before"], found.figures["loss.after"]
    assert found.conditioning is not None
    assert after == pytest.approx(target.measure(sd, found.conditioning).tolist(), rel=1e-5)
    assert all(now < then for then, now in zip(before, after, strict=True))


def test_a_search_that_stands_still_is_no_gain(sd):
    """A step too small to be seen, from the prompt's own words: the loss after is the loss before."""
    found = attack(sd, tiny_target(sd), Settings(attempts=1, steps=1, samples=1, learning_rate=1e-12))
    assert found.figures["loss.after"] == pytest.approx(found.figures["loss.before"], rel=1e-5)


def test_the_base_is_measured_beside_the_patched_model(sd):
    """Without a patch the two losses are one; with it, the base's stays and the patched model's is another."""
    target, quick = tiny_target(sd), Settings(attempts=1, steps=1, samples=1)
    plain = attack(sd, target, quick).figures
    assert plain["loss.base"] == plain["loss.before"]
    with Patched(sd, [(uce.erase(sd, Concept("green", anchor="blue")), 1.0)]):
        under = attack(sd, target, quick).figures
    assert under["loss.base"] == plain["loss.base"]
    assert under["loss.before"] != plain["loss.before"]


def test_under_a_rule_the_base_is_guided_too(sd, monkeypatch):
    """A rule that erases nothing, of strength 0, leaves the loss of the base, up to rounding."""
    monkeypatch.setattr(sd, "rules", [Rule("negative_prompt", (("green", 1.0),), (("strength", 0.0),))])
    found = attack(sd, tiny_target(sd), Settings(attempts=1, steps=1, samples=1)).figures
    assert found["loss.base"] == pytest.approx(found["loss.before"], rel=1e-4)
    assert len(sd.rules) == 1
