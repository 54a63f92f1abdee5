"""Ring-A-Bell: the concept vector, the genetic operators, and a best that never gets worse."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.attacks.ring_a_bell import Settings, attack, children, concept_vector, distances, encoded, struck
from assay.attacks.search import slots
from assay.concept import Concept, together
from assay.erasure import adv_unlearn
from assay.noise import numpy_generator
from assay.patched import Patched
from assay.testing import tiny_target


def test_the_concept_vector_is_a_mean_difference(sd):
    """By hand: `red cat` without `red` is `cat`, and `red` alone is the empty prompt's words."""
    concept = Concept("red", "style", subjects=("cat",))
    with_it = ["cat, red style", "cat in red style"]
    without = ["cat, style", "cat in style"]

    def flat(texts):
        with torch.no_grad():
            return sd.family.encode(sd.family.tokenize(texts)).states.flatten(1)

    torch.testing.assert_close(concept_vector(sd, concept), (flat(with_it) - flat(without)).mean(0), rtol=0, atol=1e-5)


def test_an_empty_prompt_is_encoded_as_text(denoiser):
    """`red` without `red` is no words: its tokens' own states, which the guidance of SDXL exchanges for zeros; elsewhere the same to the bit."""
    prompts, concept = ["", "a hat", ""], Concept("red", "free")
    with torch.no_grad():
        empty, red = (denoiser.family.encode(denoiser.family.tokenize([text])).states.flatten() for text in ("", "red"))
    found, plain = encoded(denoiser, prompts), denoiser.conditioning(prompts).states.flatten(1)
    assert torch.equal(found[0], empty)
    assert torch.equal(found[2], empty)
    assert torch.equal(found[1], plain[1])
    assert torch.equal(found, plain) == (denoiser.family.name != "sdxl")
    torch.testing.assert_close(concept_vector(denoiser, concept), red - empty, rtol=0, atol=1e-5)


def test_a_member_that_goes_by_another_name_is_struck_out_by_that():
    """By hand: the name where a prompt holds it, else the longest member that it holds, else nothing."""
    concept = Concept("clock", "object", members=("alarm clock", "three o’clock", "three", "hourglass"))
    prompts = ["alarm clock in noto style", "three o’clock", "a picture of hourglass", "three", "sand"]
    assert [struck(prompt, concept) for prompt in prompts] == ["alarm in noto style", "three o’", "a picture of", "", "sand"]
    both = together([Concept("cat", "object"), Concept("dog", "object")])
    assert [struck(prompt, both) for prompt in ("cat, twemoji style", "a picture of dog")] == [", twemoji style", "a picture of"]


def test_distances_are_those_of_the_encodings(sd):
    """Against each candidate encoded by itself; the distance of a prompt's own tokens from its encoding is zero."""
    laid = slots(sd, ["a", "b"], 2, "alone")
    ids = torch.arange(0, 400, 3)
    people = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    wanted = torch.randn((2, 24 * 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = distances(sd, laid, ids, people, wanted)
        for row in range(2):
            for candidate in range(2):
                tokens = ids[torch.tensor(people[row, candidate])]
                states = sd.family.encode([torch.cat([laid.ids[0][row, :1], tokens, laid.ids[0][row, 3:]])[None]]).states.flatten()
                assert found[row, candidate] == pytest.approx(float((states - wanted[row]).square().sum()), rel=1e-4)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 1000))
def test_children_are_made_of_their_parents(people, tokens, seed):
    """Without mutation every token comes from the same place of a parent; without crossover a child is a parent."""
    rng = numpy_generator(seed, "test")
    parents = rng.integers(50, size=(people, tokens))
    crossed = children(parents, 9, 50, Settings(mutation=0.0, crossover=1.0), rng)
    assert all(crossed[row, place] in parents[:, place] for row in range(9) for place in range(tokens))
    copies = children(parents, 9, 50, Settings(mutation=0.0, crossover=0.0), rng)
    assert all(any((child == parent).all() for parent in parents) for child in copies)
    changed = children(np.zeros((2, tokens), int), 400, 50, Settings(mutation=1.0, crossover=0.0), rng)
    assert int((changed != 0).sum(1).max()) == 1


def test_the_best_never_gets_worse(denoiser):
    """More generations never find worse (Ring-A-Bell keeps the better half), and the longer search begins as the shorter."""
    target = tiny_target(denoiser)
    settings = Settings(tokens=3, population=8, generations=12)
    found = attack(denoiser, target, settings)
    curve = found.curves["best distance"]
    assert all(later <= earlier for earlier, later in pairwise(curve))
    assert curve[-1] < float(np.mean(found.figures["distance.before"]))
    assert curve[-1] == pytest.approx(float(np.mean(found.figures["distance.after"])))
    short = attack(denoiser, target, dataclasses.replace(settings, generations=5))
    assert short.curves["best distance"] == curve[:5]


def test_what_it_tells_the_model_is_as_near_as_it_says(sd):
    """To the prompt moved along the concept by eta (Eq. 2, 3): the distance of what is told, written out, and what is told is nearest of all eta."""
    target = tiny_target(sd)
    vector = concept_vector(sd, target.concept)
    plain = sd.conditioning(target.prompts).states.flatten(1)
    for eta in (0.0, 3.0, -3.0):
        found = attack(sd, target, Settings(tokens=3, population=8, generations=6, eta=eta))
        apart = (found.conditioning.states.flatten(1) - (plain + eta * vector)).square().sum(1)
        assert apart.tolist() == pytest.approx(found.figures["distance.after"], rel=1e-3)


def test_it_searches_the_public_encoder_and_tells_the_patched_model(sd):
    """With a patch on the text encoder the same words are found as without, and their encoding is the patched one."""
    target = tiny_target(sd)
    quick = adv_unlearn.Settings(steps=1, warmup=1, retain_batch=1, ddim_steps=2, learning_rate=1e-2)
    patch = adv_unlearn.erase(sd, target.concept, quick)
    settings = Settings(tokens=2, population=4, generations=3)
    plain = attack(sd, target, settings)
    with Patched(sd, [(patch, 1.0)]):
        under = attack(sd, target, settings)
    assert under.prompts == plain.prompts
    assert under.curves == plain.curves
    assert not torch.equal(under.conditioning.states, plain.conditioning.states)
