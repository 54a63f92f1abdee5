"""The filtered vocabulary, which no attack can spell the concept with, and free places in prompts."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.attacks import p4d, random_prompts, ring_a_bell, unlearn_diff_atk
from assay.attacks.search import Slots, arrange, body, own_words, slots, spells, spoken, vocabulary
from assay.concept import Concept, together
from assay.denoiser import Denoiser
from assay.errors import Misconfigured, Unsupported
from assay.noise import derive, normal
from assay.testing import KINDS, tiny, tiny_target
from assay.testing.pipelines import tiny_pipeline, tokenizer

PIECES = ["c", "a", "t", "ca", "at", "cat", "s", "o", "k", "it", "ty", "y"]


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.booleans()), max_size=8), st.sampled_from(["cat", "kitty"]))
def test_no_allowed_tokens_spell_a_forbidden_word(tokens, word):
    """Tokens joined as a byte-pair vocabulary joins them, those that end a word with a space behind: the word never stands by itself."""
    allowed = [(piece, final) for piece, final in tokens if not spells(piece, final, word)]
    text = "".join(piece + (" " if final else "") for piece, final in allowed)
    assert word not in text.split()


def test_what_spells_a_word():
    """By hand: what holds it, and pieces of it that can be joined; a letter that is a word by itself can stay."""
    assert spells("cats", True, "cat")
    assert spells("at", True, "cat")
    assert spells("c", False, "cat")
    assert not spells("a", True, "cat")
    assert not spells("dog", True, "cat")


def test_the_vocabulary_leaves_out_what_spells_the_concept(denoiser):
    """The tiny vocabulary has letters only: of `green` and `emerald` the letters that another letter follows are gone, the final ones stay."""
    target = tiny_target(denoiser)
    words = vocabulary(denoiser, target)
    entries = tokenizer().get_vocab()
    assert words.forbidden == ("green", "emerald")
    gone = {entries[letter] for letter in set("greenemerald") | set("GREENEMERALD")}
    assert set(words.ids.tolist()) == set(range(512)) - gone
    assert {piece.lower() for piece in words.removed} == set("greenmald")
    assert [table.shape for table in words.tables] == [(len(words.ids), 16)] * len(denoiser.family.encoders)
    for table, (_, encoder) in zip(words.tables, denoiser.family.encoders, strict=True):
        assert torch.equal(table[0], encoder.get_input_embeddings().weight[words.ids[0]])


def test_a_vocabulary_that_is_empty_or_not_shared_is_refused(sd):
    target = tiny_target(sd)
    everything = tuple("".join(chr(code) for code in range(start, start + 30)) for start in range(33, 127, 30))
    assert len(vocabulary(sd, dataclasses.replace(target, forbidden=everything)).ids) < 512 - 60
    other = tokenizer()
    other.add_tokens(["extra"])
    pipeline = tiny_pipeline("sdxl")
    pipeline.tokenizer_2 = other
    model = Denoiser(pipeline)
    with pytest.raises(Unsupported, match="different vocabularies"):
        vocabulary(model, tiny_target(model))


def test_a_concept_goes_by_the_words_of_its_name():
    """Little words stand for nothing; of several concepts every name counts."""
    assert own_words(Concept("Bow and arrow")) == ["bow", "arrow"]
    assert own_words(Concept("twemoji style", "style")) == ["twemoji"]
    assert own_words(Concept("ox")) == ["ox"]  # its only word
    assert own_words(together([Concept("cat", "object"), Concept("dog", "object")])) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [("before", [-1, -1, 1, 2, 3, 4]), ("alone", [-1, -1]), ("between", [1, 2, -1, 3, 4, -1]), ("instead", [1, -1, -1, 4])],
)
def test_free_places_lie_where_they_are_asked_for(where, expected):
    """By hand, for the prompt 1 2 3 4, the name 2 3 and two places, one after every two tokens."""
    assert arrange([1, 2, 3, 4], 2, where, 2, [2, 3]) == expected


def test_free_places_past_the_end_and_without_the_name():
    assert arrange([1, 2], 3, "between", 2) == [1, 2, -1, -1, -1]
    assert arrange([1, 2], 1, "instead", name=[7]) == [-1, 1, 2]


def test_a_prompt_with_tokens_put_back_is_the_prompt(denoiser):
    """Free places instead of a name, filled with the name's own tokens, are the tokenizer's ids; and so are those of a prompt behind a prefix."""
    coder = denoiser.family.encoders[0][0]
    name = body(coder, "red")
    laid = slots(denoiser, ["a red hat", "red"], len(name), "instead", name="red")
    filled = laid.filled(torch.tensor([name, name]))
    assert all(torch.equal(ids, expected) for ids, expected in zip(filled, denoiser.family.tokenize(["a red hat", "red"]), strict=True))
    prefix = slots(denoiser, ["hat"], len(name)).filled(torch.tensor([name]))
    assert all(torch.equal(ids, expected) for ids, expected in zip(prefix, denoiser.family.tokenize(["red hat"]), strict=True))
    assert spoken(denoiser, prefix[0]) == ("red hat",)


def test_a_long_prompt_gives_way_and_too_many_places_are_refused(sd):
    """The tiny context has 24 places, of which 22 can be filled."""
    long = "abcdefgh " * 4
    for where in ("before", "between"):
        laid = slots(sd, [long], 6, where)
        assert laid.ids[0].shape == (1, 24)
        assert laid.places.shape == (1, 6)
        assert int(laid.ids[0][0, 23]) == sd.family.encoders[0][0].eos_token_id
    with pytest.raises(Misconfigured, match="23 free tokens"):
        slots(sd, ["a"], 23)


def test_embeddings_of_tokens_encode_as_the_tokens_do(denoiser):
    """Whether free places hold tokens or those tokens' embeddings, the model is told the same."""
    laid = slots(denoiser, ["red hat", "cat"], 2)
    tokens = torch.tensor([[5, 300], [40, 400]])
    embeddings = [encoder.get_input_embeddings().weight[tokens] for _, encoder in denoiser.family.encoders]
    with torch.no_grad():
        by_token, by_embedding = denoiser.family.encode(laid.filled(tokens)), laid.encode(denoiser, embeddings)
    torch.testing.assert_close(by_embedding.states, by_token.states, rtol=0, atol=0)
    assert by_embedding.extra.keys() == by_token.extra.keys()
    for name in by_token.extra:
        torch.testing.assert_close(by_embedding.extra[name], by_token.extra[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sdxl"])
def test_gradients_of_the_encoding_match_finite_differences(kind):
    """In float64, for every number of an embedding in a free place (torch.autograd.gradcheck: central differences)."""
    denoiser = tiny(kind)
    for _, encoder in denoiser.family.encoders:
        encoder.double()
    laid = slots(denoiser, ["cat"], 1)
    weight = torch.randn(laid.encode(denoiser, _doubles(denoiser)).states.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def total(*embeddings):
        told = laid.encode(denoiser, embeddings)
        return (told.states * weight).sum() + sum(tensor.double().sum() for tensor in told.extra.values())

    assert torch.autograd.gradcheck(total, tuple(part.requires_grad_() for part in _doubles(denoiser)), eps=1e-6, atol=1e-6)


def _doubles(denoiser):
    return [torch.randn((1, 1, 16), generator=torch.Generator().manual_seed(1), dtype=torch.float64) for _ in denoiser.family.encoders]


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [unlearn_diff_atk, p4d])
def test_what_moves_tokens_is_the_gradient_at_the_tokens(kind, method, monkeypatch):
    """Expected: central differences in float64 along random directions, of the papers' losses as written in the modules' heads, at what was tried.

    UnlearnDiffAtk: |e(x_t, t, p + c) - noise|^2 over mixtures of tokens, at those that were drawn. P4D: |e0(x_t, t, c) - e(x_t, t, p)|^2 over
    embeddings, at the nearest ones; e0 is the same model here, told the prompt.
    """
    denoiser, tried, handed = tiny(kind, seed=1), [], []
    for part in denoiser.family.components.values():
        part.double()
    target = tiny_target(denoiser)
    target = dataclasses.replace(target, latents=target.latents.double())
    words, encode = vocabulary(denoiser, target), Slots.encode
    monkeypatch.setattr(
        unlearn_diff_atk, "uniform_start", lambda *asked: torch.rand(len(asked[0]), *asked[1:], dtype=torch.float64, generator=_draws())
    )
    monkeypatch.setattr(Slots, "encode", lambda laid, *told: tried.append((laid, told[1])) or encode(laid, *told))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: handed.extend(part.grad for part in self.param_groups[0]["params"]))
    settings = {"rounds": 1, "steps": 1, "drawn": 0} if method is unlearn_diff_atk else {"steps": 1, "pool": 1, "look": 1}
    method.attack(denoiser, target, method.Settings(tokens=2, **settings))
    (laid, at), *_ = tried
    at = [part.detach() for part in at]
    if method is unlearn_diff_atk:
        t = denoiser.timesteps(1).expand(len(target))
        noise = normal(denoiser.latent_shape, [derive(own, "unlearn diff atk", 0) for own in target.seeds])
    else:
        t, noise = target.draw(denoiser, "p4d", 0)
    x_t = denoiser.noised(target.latents, t, noise)
    a, s = (scale.double() for scale in denoiser.scales(t))
    wanted = {"epsilon": noise, "v": a * noise - s * target.latents}[denoiser.view]
    with torch.no_grad():
        if method is p4d:
            wanted = denoiser.predict(x_t, t, denoiser.conditioning(target.prompts), denoiser.view)

        def loss(sign):
            moved = [part + sign * 1e-4 * way for part, way in zip(at, ways, strict=True)]
            return (denoiser.predict(x_t, t, encode(laid, denoiser, moved), denoiser.view) - wanted).square().mean((1, 2, 3)).sum()

        draws = _draws()
        for _ in range(3):
            along = [torch.randn(part.shape, dtype=torch.float64, generator=draws) for part in handed]
            ways = [along[0] @ table for table in words.tables] if method is unlearn_diff_atk else along
            expected = float(loss(1) - loss(-1)) / 2e-4
            assert sum(float((slope * way).sum()) for slope, way in zip(handed, along, strict=True)) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def _draws():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (unlearn_diff_atk, {"tokens": 2, "rounds": 1, "steps": 2, "drawn": 2}),
        (p4d, {"tokens": 2, "steps": 2, "pool": 2, "look": 1}),
        (ring_a_bell, {"tokens": 2, "population": 4, "generations": 2}),
        (random_prompts, {"tokens": 2}),
    ],
)
def test_attacks_in_words_put_nothing_into_free_places_that_the_vocabulary_forbids(sd, monkeypatch, method, settings):
    """Whatever is put there, tried or told, is of the vocabulary; here it allows five tokens, which chance alone would hardly keep to."""
    target, tried, filled = tiny_target(sd), [], Slots.filled
    words = vocabulary(sd, target)
    words = dataclasses.replace(words, ids=words.ids[40:45], tables=tuple(table[40:45] for table in words.tables))
    monkeypatch.setattr(method, "vocabulary", lambda *_: words)

    def spied(laid, tokens):
        tried.append(tokens.flatten())
        return filled(laid, tokens)

    monkeypatch.setattr(Slots, "filled", spied)
    method.attack(sd, target, method.Settings(**settings))
    assert torch.isin(torch.cat(tried), words.ids).all()
