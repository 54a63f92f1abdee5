"""Concept inversion: where the new word stands, whose gradient it follows, and that learning lowers the loss."""

import dataclasses

import pytest
import torch

from assay.attacks.concept_inversion import Settings, attack, start, step_loss, with_name
from assay.attacks.search import Slots, slots
from assay.concept import Concept
from assay.testing import KINDS, tiny, tiny_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a Cat in noto style", "a * in noto style"),
        ("grinning cat, noto style", "grinning * , noto style"),
        ("category", "* category"),
        ("a dog", "* a dog"),
        ("keycap: * on a cat", "keycap: on a *"),
        ("keycap: *, noto style", "* keycap: noto style"),
    ],
)
def test_the_new_word_takes_the_place_of_the_name(text, expected):
    """By hand: whole words alone, whatever their case; before the text where the name is not in it; the text's own stars go."""
    assert with_name(Concept("cat"), text) == expected


def test_several_words_are_one_name():
    assert with_name(Concept("bow and arrow"), "a bow and arrow, noto style") == "a * , noto style"


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_matches_finite_differences(kind):
    """In float64 along random directions (torch.autograd.gradcheck: central differences)."""
    denoiser = tiny(kind)
    target = tiny_target(denoiser)
    for part in denoiser.family.components.values():
        part.double()
    learned = slots(denoiser, list(target.captions), 1)

    def loss(*parts):
        return step_loss(denoiser, target, learned, parts, 3, torch.Generator().manual_seed(4))

    word = tuple(part.double().detach().requires_grad_() for part in start(denoiser, Settings(), 0))
    assert torch.autograd.gradcheck(loss, word, eps=1e-5, atol=1e-7, rtol=1e-4, fast_mode=True)


def test_learning_lowers_the_loss(sd):
    """On the same timesteps and noise, before and after; examples, not judged works, are learned from."""
    target = tiny_target(sd)
    settings = Settings(steps=15, batch=4, learning_rate=0.1)
    found = attack(sd, target, settings, seed=3)
    learned = slots(sd, [with_name(target.concept, caption) for caption in target.captions], 1, "instead", name="*")
    begun = start(sd, settings, 3)
    count = len(target)
    judged = slots(sd, list(found.prompts), 1, "instead", name="*")
    before = judged.encode(sd, [part.detach().expand(count, -1, -1) for part in begun])
    pool = dataclasses.replace(target, prompts=target.captions[:2], latents=target.examples[:2])
    assert isinstance(learned, Slots)
    assert float(pool.measure(sd, found.conditioning).mean()) < float(pool.measure(sd, before).mean())


def test_one_word_serves_all_prompts(sd):
    """Two prompts that read the same are told the same, and the word is the same wherever it stands."""
    target = dataclasses.replace(tiny_target(sd), prompts=("a green hat", "a green hat"))
    found = attack(sd, target, Settings(steps=1, batch=2))
    assert found.prompts == ("a * hat", "a * hat")
    assert torch.equal(found.conditioning.states[0], found.conditioning.states[1])
