"""P4D: the projection, what the base is asked, both variants, and that looking never loses the best."""

import dataclasses

import pytest
import torch

from assay.attacks.p4d import Settings, asked, attack, nearest, places
from assay.attacks.search import Vocabulary, slots, vocabulary
from assay.concept import Concept
from assay.erasure import uce
from assay.families.sd import Conditioning
from assay.guidance import TELLING, Rule
from assay.noise import derive, generator
from assay.patched import Patched
from assay.testing import tiny_target


def test_embeddings_go_to_the_nearest_token():
    """By hand, in one dimension and two text encoders: distances of 1.6 to 0, 1 and 4 are least to 1; the second encoder can outvote it."""
    ids = torch.tensor([7, 8, 9])
    one, other = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[0.0], [9.0], [0.0]])
    assert nearest([torch.tensor([[[1.6]]])], Vocabulary(ids, (one,), (), ())).tolist() == [[1]]
    assert nearest([torch.tensor([[[1.6]]]), torch.tensor([[[0.0]]])], Vocabulary(ids, (one, other), (), ())).tolist() == [[0]]


def test_the_base_is_asked_and_not_the_patched_model(denoiser):
    """What is wanted is the prediction of the model without its patch, for the same noised works."""
    target = tiny_target(denoiser)
    patch = uce.erase(denoiser, Concept("green", anchor="blue"))
    plain = asked(denoiser, target, 2)
    with Patched(denoiser, [(patch, 1.0)]):
        under = asked(denoiser, target, 2)
        x_t, t, wanted = under[0]
        with torch.no_grad():
            assert not torch.equal(denoiser.predict(x_t, t, denoiser.conditioning(target.prompts), denoiser.view), wanted)
    assert all(torch.equal(mine, yours) for one, other in zip(plain, under, strict=True) for mine, yours in zip(one, other, strict=True))


def test_under_a_rule_the_base_is_guided_plainly(sd):
    """u + g (p - u) with the network's own predictions (Ho and Salimans 2022, Eq. 6)."""
    target = dataclasses.replace(tiny_target(sd), guidance=3.0)
    sd.rules.append(Rule("negative_prompt", (("green", 1.0),)))
    try:
        x_t, t, wanted = asked(sd, target, 1)[0]
    finally:
        sd.rules.clear()
    with torch.no_grad():
        p, u = (sd.predict(x_t, t, sd.conditioning(texts)) for texts in (target.prompts, ["", ""]))
    torch.testing.assert_close(wanted, u + 3 * (p - u), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TELLING)
def test_under_a_rule_that_only_changes_what_is_told_the_base_is_asked_plainly(sd, monkeypatch, name):
    """What is wanted is what is wanted without a rule: the search compares it with plain predictions."""
    target = tiny_target(sd)
    plain = asked(sd, target, 1)[0][2]
    monkeypatch.setattr(sd, "rules", [Rule(name)])
    assert torch.equal(asked(sd, target, 1)[0][2], plain)


def test_the_variants_place_tokens_as_they_say(sd):
    """`a green circle` is 12 letters, each a token: P4D-K has one place after every five, so two; P4D-N has its tokens alone."""
    target = tiny_target(sd)
    alone = places(sd, target, Settings(tokens=4))
    assert alone.places.tolist() == [[1, 2, 3, 4]] * 2
    between = places(sd, target, Settings(variant="k", every=5))
    assert between.places.tolist() == [[6, 12]] * 2


def test_tokens_found_are_never_worse_than_those_it_began_with(sd):
    """The best by fixed noise are kept; those it begins with are random ones of the same vocabulary, and some are beaten."""
    target = tiny_target(sd)
    found = attack(sd, target, Settings(tokens=2, steps=8, pool=4, look=2, learning_rate=0.3))
    loss = target.measure(sd, found.conditioning)
    torch.testing.assert_close(loss, torch.tensor(found.figures["loss.after"]), rtol=1e-4, atol=1e-5)
    assert all(after <= before for before, after in zip(found.figures["loss.before"], found.figures["loss.after"], strict=True))
    assert sum(found.figures["loss.after"]) < sum(found.figures["loss.before"])
    assert found.removed == vocabulary(sd, target).removed


def test_found_tokens_beat_random_ones(sd):
    """On noise that none was chosen by, the best of seven looked at against the best of seven random ones, chosen by the same noise."""
    target = tiny_target(sd, 6)
    found = attack(sd, target, Settings(tokens=2, steps=24, pool=8, look=4, learning_rate=0.3))
    words = vocabulary(sd, target)
    laid, ids = slots(sd, target.prompts, 2, "alone"), words.ids[torch.randint(len(words.ids), (7, 6, 2), generator=generator(1))]
    with torch.no_grad():
        chance = [sd.family.encode(laid.filled(tokens)) for tokens in ids]
    least = torch.stack([target.measure(sd, told) for told in chance]).argmin(0).tolist()
    best = Conditioning.cat([chance[place][[row]] for row, place in enumerate(least)])
    fresh = dataclasses.replace(target, seeds=tuple(derive(own, "fresh") for own in target.seeds))
    ours, random = (fresh.measure(sd, told, draws=16).mean() for told in (found.conditioning, best))
    assert float(ours) < float(random)


def test_a_longer_neighbour_gives_a_prompt_no_more_places(sd):
    """P4D-K on 12 letters beside 3: four places after every three and one; the shorter prompt alone finds what it finds beside the longer."""
    target, settings = tiny_target(sd), Settings(variant="k", steps=3, pool=2, look=1)
    target = dataclasses.replace(target, prompts=(target.prompts[0], "hat"))
    assert places(sd, target, settings).places.tolist() == [[4, 8, 12, 16], [4, 4, 4, 4]]
    both, alone = attack(sd, target, settings), attack(sd, target.part(slice(1, 2)), settings)
    assert both.prompts[1:] == alone.prompts
    torch.testing.assert_close(both.conditioning.states[1:], alone.conditioning.states, rtol=1e-4, atol=1e-5)
    assert both.figures["loss.after"][1:] == pytest.approx(alone.figures["loss.after"], rel=1e-4)


@pytest.mark.parametrize(("every", "expected"), [(3, [4, 8, 12, 16, 20]), (1, list(range(2, 24, 2)))])
def test_a_prompt_too_long_is_cut_to_make_room(sd, every, expected):
    """Of 100 letters the tiny context, which holds 22 tokens, has room for five times three and a free one, or for eleven times one and one."""
    target = dataclasses.replace(tiny_target(sd), prompts=("a" * 100,) * 2)
    laid = places(sd, target, Settings(variant="k", every=every))
    assert laid.places.tolist() == [expected] * 2


@pytest.mark.parametrize("variant", ["n", "k"])
def test_both_variants_find_prompts(sd, variant):
    """P4D-K keeps the letters of the prompt in order, P4D-N has none of it."""
    target = tiny_target(sd)
    found = attack(sd, target, Settings(variant=variant, tokens=3, steps=1, pool=1))
    assert len(found.prompts) == len(target)
    letters = iter(found.prompts[0])
    kept = all(letter in letters for letter in target.prompts[0] if letter != " ")
    assert kept == (variant == "k")
