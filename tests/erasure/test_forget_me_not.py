"""Forget-Me-Not: which attention its loss touches, and where prompts name the concept."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.attention import exposed
from assay.concept import Concept, together
from assay.erasure import forget_me_not as fmn
from assay.errors import Misconfigured
from assay.noise import generator
from assay.patched import Patched
from assay.testing import KINDS, tiny
from assay.training import finetune
from assay.training.finetune import TRAINED

pytestmark = pytest.mark.portable

CAT = Concept("cat", "object", styles=("noto",))
QUICK: dict[str, Any] = {"steps": 3, "batch": 2, "images": 4, "image_steps": 2, "learning_rate": 1e-3, "inversion_steps": 2}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> fmn.Settings:
    return fmn.Settings(**(QUICK | changes))


def point(denoiser, count=2):
    rng = generator(0, "point", count)
    return torch.randn(count, *denoiser.latent_shape, generator=rng), torch.randint(1000, (count,), generator=rng)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=5, max_size=5).filter(any))
def test_the_loss_touches_only_the_listed_tokens(seed, listed):
    """Its value is the root of the sum of squares by hand; its gradient is p / loss at listed tokens and zero at all others."""
    maps = [torch.rand(2, 3, side, 5, generator=generator(seed, side), dtype=torch.float32).requires_grad_() for side in (4, 9)]
    places = torch.stack([torch.tensor(listed), torch.tensor(listed[::-1])])
    loss = fmn.attention_norm(maps, places)
    squares = 0.0
    for one in maps:
        for row in range(2):
            for token in range(5):
                if places[row, token]:
                    squares += float(one[row, :, :, token].detach().double().square().sum())
    assert float(loss.detach()) == pytest.approx(squares**0.5, rel=1e-5)
    loss.backward()
    for one in maps:
        expected = one.detach() * places[:, None, None, :] / squares**0.5
        assert torch.allclose(one.grad, expected, rtol=1e-4, atol=1e-7)


def test_where_a_prompt_names_the_concept(denoiser):
    """By hand: the tokenizer of the tiny pipelines has one token a letter and one a mark; place 0 is the begin token; there are 24 tokens."""
    words = fmn.Words(denoiser, CAT)
    assert words.places("cat, noto style", pads=False).nonzero().flatten().tolist() == [1, 2, 3]
    assert words.places("a cat", pads=False).nonzero().flatten().tolist() == [2, 3, 4]
    assert words.places("a cat", pads=True).nonzero().flatten().tolist() == [2, 3, 4, *range(5, 24)]
    assert not words.places("concert", pads=False).any()
    twemoji = fmn.Words(denoiser, Concept("twemoji", "style", subjects=("sun",)))
    assert twemoji.places("sun, twemoji style", pads=False).nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10, 11]
    both = fmn.Words(denoiser, together([CAT, Concept("sun", "object")]))
    assert both.places("cat sun", pads=False).nonzero().flatten().tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_learned_embeddings_stand_at_the_concept_s_words(kind):
    model = tiny(kind)
    words = fmn.Words(model, CAT)
    prompts = ["cat, noto style", "a dog"]
    plain = model.family.encode(model.family.tokenize(prompts))
    with torch.no_grad():
        assert torch.allclose(words.encode(prompts).states, plain.states, atol=1e-5)
        for master in words.masters.values():
            master.add_(torch.linspace(-1, 1, master.shape[1]))  # not a constant, which layer normalisation takes out
        moved = words.encode(prompts)
    assert torch.allclose(moved.states[:, 0], plain.states[:, 0], atol=1e-5)  # causal: the begin token comes first
    assert not torch.allclose(moved.states[0, 1], plain.states[0, 1], atol=1e-2)
    assert torch.allclose(moved.states[1], plain.states[1], atol=1e-5)  # a prompt without the concept
    words.encode(prompts).states.square().sum().backward()
    assert all(master.grad is not None for master in words.masters.values())


def test_inversion_lowers_the_denoising_loss(denoiser):
    """On the latents it learned from, at draws that it never made."""
    words = fmn.Words(denoiser, CAT)
    prompts = ["cat"] * 4
    latents = torch.randn(4, *denoiser.latent_shape, generator=generator(0, "latents"))
    t, noise = torch.tensor([100, 300, 500, 900]), torch.randn(latents.shape, generator=generator(1))
    with torch.no_grad():
        before = denoiser.loss(latents, t, noise, words.encode(prompts)).mean()
        plain = {name: master.clone() for name, master in words.masters.items()}
    fmn.invert(words, latents, prompts, quick(inversion_steps=60, inversion_batch=4, inversion_rate=3e-2), 0, None, "", None)
    with torch.no_grad():
        assert denoiser.loss(latents, t, noise, words.encode(prompts)).mean() < before
    assert not any(torch.equal(master, plain[name]) for name, master in words.masters.items())


def test_attention_leaves_the_concept_s_tokens(denoiser):
    """Measured from outside, at noise that the training never drew."""
    x_t, t = point(denoiser, 8)
    conditioning = denoiser.conditioning(["cat, noto style"] * 8)
    places = fmn.Words(denoiser, CAT).places("cat, noto style", pads=False).expand(8, -1)

    def attention():
        with torch.no_grad(), exposed(denoiser.unet) as maps:
            denoiser.predict(x_t, t, conditioning)
        return float(fmn.attention_norm(maps, places))

    before = attention()
    patch = fmn.erase(denoiser, CAT, quick(steps=40, learning_rate=1e-2, pads=False, inversion_steps=0))
    with Patched(denoiser, [(patch, 1.0)]):
        assert attention() < 0.7 * before


@pytest.mark.parametrize("changes", [{}, {"inversion_steps": 0}, {"image_guidance": 1.0, "group": "cross-attention", "inversion_batch": 2}])
def test_takes_the_passes_it_says(denoiser, changes):
    before = denoiser.passes
    patch = fmn.erase(denoiser, CAT, quick(**changes))
    assert denoiser.passes - before == sum(fmn.cost(quick(**changes)).values())
    assert set(patch.names) == set(denoiser.group(TRAINED[quick(**changes).group]))


def test_an_interrupted_erasing_goes_on_to_the_same_bytes(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "EVERY", 2)
    chosen = quick(steps=5, inversion_steps=5, group="cross-attention")
    whole = fmn.erase(denoiser, CAT, chosen, folder=tmp_path / "whole")

    def stop(done, total, figures):
        if done == 1 + 5 + 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fmn.erase(denoiser, CAT, chosen, folder=tmp_path / "part", progress=stop)
    before = denoiser.passes
    assert fmn.erase(denoiser, CAT, chosen, folder=tmp_path / "part").digest == whole.digest
    assert denoiser.passes - before == 3 * 2  # three steps of two samples: images and inversion are read
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "bad",
    [
        {"group": "xattn"},
        {"steps": 0},
        {"batch": 0},
        {"images": 0},
        {"image_steps": 1001},
        {"learning_rate": 0.0},
        {"inversion_steps": -1},
        {"inversion_batch": 0},
        {"inversion_rate": 0.0},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    with pytest.raises(Misconfigured):
        fmn.erase(denoiser, CAT, fmn.Settings(**bad))


def test_refuses_a_prompt_that_is_cut_before_the_concept(denoiser):
    """24 tokens, one a letter: the concept's words do not fit behind 30 letters."""
    with pytest.raises(Misconfigured, match="does not hold"):
        fmn.erase(denoiser, Concept("cat", "style", subjects=("abcdefghij abcdefghij abcdefghij",)), quick())
