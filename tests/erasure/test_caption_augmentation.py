"""Every rule against its stated law, an unchanged rule against plain fine-tuning written out, and the captions of works."""

from dataclasses import replace

import pytest
import torch

from assay.concept import Concept, together
from assay.erasure import caption_augmentation as method
from assay.errors import Misconfigured
from assay.noise import generator, normal
from assay.testing import tiny
from assay.training.finetune import Noised, Student

CAPTIONS = [["cat, twemoji style", "an emoji of cat", "a cat"], ["", "never said"], ["dog, noto style"]]
DRAWS = 400


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def said(denoiser, captions, rule, draws=DRAWS, **more):
    """Return what is told of one work, many times: states (draws, tokens, width)."""
    return method.told(denoiser, [captions] * draws, method.Settings(rule=rule, **more), generator("told", rule)).states


def ids_told(denoiser, captions, monkeypatch, **more):
    """Return the token ids that reach the encoder instead of the caption's own, without special ones."""
    coder, seen = denoiser.pipeline.tokenizer, []
    encode = denoiser.family.encode
    monkeypatch.setattr(denoiser.family, "encode", lambda ids, *rest: (seen.append(ids[0]), encode(ids, *rest))[1])
    said(denoiser, captions, **more)
    return [[token for token in row.tolist() if token not in coder.all_special_ids] for ids in seen for row in ids]


def close_to(count, probability, draws=DRAWS):
    """Within four deviations of a binomial count: missed by one seed in 16,000."""
    return abs(count - draws * probability) <= 4 * (draws * probability * (1 - probability)) ** 0.5


def test_several_captions_are_said_alike_often(denoiser):
    states = said(denoiser, CAPTIONS[0], "multiple")
    plain = denoiser.conditioning(CAPTIONS[0]).states
    counts = [sum(torch.equal(row, one) for row in states) for one in plain]
    assert sum(counts) == DRAWS  # nothing else is ever said
    assert all(close_to(count, 1 / 3) for count in counts)


def test_noise_is_normal_of_the_stated_deviation_around_the_states(denoiser):
    """n normal numbers have a mean within 4 / sqrt(n) and a variance within 4 sqrt(2 / n) of 0 and 1."""
    noise = (said(denoiser, CAPTIONS[0], "noise", 40, noise=0.3) - denoiser.conditioning(CAPTIONS[0][:1]).states).double() / 0.3
    assert abs(float(noise.mean())) < 4 / noise.numel() ** 0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / noise.numel()) ** 0.5
    assert torch.unique(noise[:, 0, 0]).numel() == 40  # anew each time


@pytest.mark.parametrize(("rule", "count", "kept"), [("random", 4, False), ("tokens", 2, True)])
def test_random_tokens_take_the_place_of_a_caption_or_join_it(denoiser, monkeypatch, rule, count, kept):
    own = denoiser.pipeline.tokenizer(CAPTIONS[0][0], add_special_tokens=False).input_ids
    denoiser.conditioning(CAPTIONS[0])  # known, so that the encoder is asked for nothing else
    changed = ids_told(denoiser, CAPTIONS[0], monkeypatch, rule=rule, probability=0.25)
    assert close_to(len(changed), 0.25)
    assert {len(ids) for ids in changed} == {count + kept * len(own)}
    rest = iter(changed[0])
    assert not kept or all(token in rest for token in own)  # its own tokens in their order
    assert len({tuple(ids) for ids in changed}) > len(changed) // 2
    again = ids_told(denoiser, CAPTIONS[0], monkeypatch, rule=rule, probability=1.0, tokens=3, draws=5)
    assert {len(ids) for ids in again} == {3 + kept * len(own)}


def test_words_repeat_alike_often_at_places_alike_often():
    """Of "a b c": the first word put in is one of 3, at one of 4 places; 12 outcomes of which some read the same."""
    draws = generator("words")
    found = [method.repeated("a b c", 1, draws).split() for _ in range(DRAWS)]
    assert all(close_to(sum(words.count(letter) == 2 for words in found), 1 / 3) for letter in "abc")
    assert all(len(words) == 4 for words in found)
    assert close_to(sum(words[0] != "a" for words in found), 2 / 12)  # b or c at the first of four places
    assert close_to(sum(words[3] != "c" for words in found), 2 / 12)
    rest = iter(method.repeated("a b c", 2, draws).split())
    assert all(letter in rest for letter in "abc")


def test_words_are_repeated_with_the_stated_probability(denoiser):
    states, plain = said(denoiser, CAPTIONS[0], "words", probability=0.25), denoiser.conditioning(CAPTIONS[0][:1]).states[0]
    assert close_to(sum(not torch.equal(row, plain) for row in states), 0.25)


@pytest.mark.parametrize("rule", ["multiple", "noise", "random", "tokens", "words"])
def test_a_rule_touches_only_what_it_says(denoiser, rule):
    """The empty prompt stays; without probability or noise every caption stays; and a row does not depend on those beside it."""
    own = [CAPTIONS[1][:1], CAPTIONS[2]]
    settings = method.Settings(rule=rule, probability=1.0)
    states = method.told(denoiser, own, settings, generator("rows")).states
    assert torch.equal(states[0], denoiser.conditioning([""]).states[0])
    assert torch.equal(states[1], denoiser.conditioning(CAPTIONS[2]).states[0]) == (rule == "multiple")
    assert torch.equal(method.told(denoiser, [CAPTIONS[0], CAPTIONS[2]], settings, generator("rows")).states[1], states[1])
    still = method.told(denoiser, own, replace(settings, probability=0.0, noise=0.0), generator("rows")).states
    assert torch.equal(still[1], denoiser.conditioning(CAPTIONS[2]).states[0])


def test_both_encoders_of_a_pipeline_are_told():
    """The tiny pipeline's encoders write side by side into the states, and the second its pooled state."""
    both = tiny("sdxl")
    told = method.told(both, CAPTIONS[:1], method.Settings(rule="random", probability=1.0), generator("both"))
    plain = both.conditioning(CAPTIONS[0][:1])
    first, second = ((one != other).any() for one, other in zip(told.states.chunk(2, -1), plain.states.chunk(2, -1), strict=True))
    assert first
    assert second
    assert not torch.equal(told.extra["text_embeds"], plain.extra["text_embeds"])


def test_an_unchanged_rule_is_plain_fine_tuning(denoiser):
    """Two steps of AdamW with decay 0.01 and clipping at 1, written out on the same draws: exact."""
    settings = method.Settings(rule="words", probability=0.0, steps=2, batch=3, learning_rate=1e-2, warmup=0, group="cross-attention")
    latents = normal(denoiser.latent_shape, [1, 2, 3])
    patch = method.train(Student(denoiser, method.check(denoiser, settings)), latents, CAPTIONS, settings, concept=Concept("cat"), seed=5)
    plain = Student(denoiser, denoiser.group("cross_attention"))
    optimizer = torch.optim.AdamW(list(plain.masters.values()), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.01, fused=True)
    for step in range(2):
        drawn = Noised.draw(denoiser, latents, 3, generator(5, "step", step))
        optimizer.zero_grad()
        plain.losses(drawn, [CAPTIONS[row][0] for row in drawn.rows]).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(plain.masters.values()), 1.0)
        optimizer.step()
    changes = plain.changes()
    assert patch.tensors.keys() == changes.keys()
    assert all(torch.equal(patch.tensors[key], change) for key, change in changes.items())
    other = method.train(Student(denoiser, plain.weights), latents, CAPTIONS, replace(settings, probability=1.0), concept=Concept("cat"), seed=5)
    assert patch.digest != other.digest


def test_captions_of_works():
    """A work's words are its captions; prompts of a style are works of their own; a work of few captions is said otherwise."""
    work = Concept("cat, noto style", "work", members=("cat, noto style", "a cat"))
    style = Concept("noto", "style", subjects=("cat",))
    assert method.works(together([work, Concept("dog", "work")])) == [["cat, noto style", "a cat"], ["dog"]]
    assert method.works(style) == [["cat, noto style"], ["cat in noto style"]]
    many = method.spoken(["dog", "a dog"], 20)
    assert many[:2] == ["dog", "a dog"]
    assert len(many) == len(set(many)) == 2 + len(method.FORMS)
    assert all("dog" in caption for caption in many)
    assert method.spoken(["dog", "a dog"], 1) == ["dog"]
    assert method.spoken([""], 20) == [""]


@pytest.mark.parametrize(
    "bad",
    [
        {"rule": "plain"},
        {"group": "text"},
        {"probability": 1.5},
        {"noise": -0.1},
        {"tokens": 0},
        {"captions": 0},
        {"steps": 0},
        {"warmup": -1},
        {"learning_rate": 0.0},
        {"image_steps": 100_000},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad):
    passes = denoiser.passes
    with pytest.raises(Misconfigured):
        method.erase(denoiser, Concept("cat", "work"), method.Settings(**bad))
    assert denoiser.passes == passes
