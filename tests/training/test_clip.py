"""Expected values: a tokenizer must give back what it was given; a contrastive loss that guesses is the logarithm of the batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import CLIPTokenizer

from assay.noise import generator, normal, numpy_generator
from assay.training.clip import END, START, CLIPSettings, build, correlation, train, train_tokenizer
from assay.training.loop import Schedule

CAPTIONS = ["red circle, solid style", "blue ring, outline style", "green circle, solid style", "an emoji of a red ring"]
TINY = CLIPSettings(
    vocabulary=600,
    context=16,
    width=16,
    layers=1,
    heads=2,
    patch=8,
    projection=8,
    schedule=Schedule(steps=80, batch=4, learning_rate=5e-3, warmup=3, ema=0.9),
)

ONE_STEP = replace(TINY, spread=0.0, schedule=Schedule(steps=1, batch=4, learning_rate=1e-3))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS, TINY, tmp_path_factory.mktemp("tokenizer"))


def test_captions_come_back_from_their_tokens(tokenizer):
    for caption in CAPTIONS:
        ids = tokenizer(caption).input_ids
        assert (ids[0], ids[-1]) == (0, 1)  # the start and end that the text tower is built with
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        assert plain.replace(" ", "") == caption.replace(" ", "")


def test_words_of_the_captions_are_learnt(tokenizer):
    assert len(tokenizer("circle", add_special_tokens=False).input_ids) == 1
    assert len(tokenizer("zyzzyva", add_special_tokens=False).input_ids) > 1
    assert tokenizer("Red CIRCLE").input_ids == tokenizer("red circle").input_ids


@given(st.text(max_size=10))
def test_no_character_is_unknown(tokenizer, text):
    # The unknown token is the end token, which would cut the prompt short.
    inner = tokenizer(text.replace("<|", ""), add_special_tokens=False).input_ids
    assert 1 not in inner
    assert all(token < len(tokenizer) for token in inner)


def test_the_saved_tokenizer_is_the_one_that_was_made(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded(CAPTIONS, padding="max_length").input_ids == tokenizer(CAPTIONS, padding="max_length").input_ids
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token, loaded.model_max_length) == (START, END, END, 16)


def clip(vocabulary: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(TINY, vocabulary, 16)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.repeat(numpy_generator(1).integers(0, 256, (4, 1, 1, 3), dtype=np.uint8), 16, 1).repeat(16, 2)


def test_the_text_tower_reads_up_to_the_end_token(tokenizer):
    text = clip(len(tokenizer)).text_model.eval()
    ids = tokenizer(CAPTIONS[:1], padding="max_length", max_length=16, return_tensors="pt").input_ids
    end = ids[0].tolist().index(1)
    with torch.no_grad():
        output = text(ids)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, end])


def test_loss_falls_below_guessing(tokenizer, pixels):
    model = clip(len(tokenizer))
    losses = train(model, tokenizer, pixels, [[caption] for caption in CAPTIONS], TINY, seed=1)
    assert losses[0] > math.log(4) / 2
    assert sum(losses[-10:]) / 10 < math.log(4) / 2  # single steps jump: each crops anew
    assert not model.training


def test_images_that_share_a_caption_are_positives_of_each_other(tokenizer, pixels):
    # Works 0 and 1 share a caption: their rows of the target are halves. The crop and the order are drawn as in training.
    captions = [[CAPTIONS[0]], [CAPTIONS[0]], [CAPTIONS[1]], [CAPTIONS[2]]]
    model = clip(len(tokenizer))
    rng = generator(1, "step", 0)
    rows = torch.randperm(4, generator=rng)
    torch.rand(4, generator=rng)  # which of each work's captions: there is one
    top, left = torch.randint(0, 13, (2,), generator=rng).tolist()
    images = torch.from_numpy(pixels[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
    images = F.pad(images, (6, 6, 6, 6), value=1.0)[:, :, top : top + 16, left : left + 16]
    ids = tokenizer([captions[row][0] for row in rows], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=images).logits_per_image.double()
    expected = 0.0
    for scores in (logits, logits.T):
        for row, work in enumerate(rows.tolist()):
            positives = [column for column, other in enumerate(rows.tolist()) if captions[other] == captions[work]]
            expected -= scores[row].log_softmax(0)[positives].mean().item() / 8
    assert train(model, tokenizer, pixels, captions, ONE_STEP, seed=1) == [pytest.approx(expected, rel=1e-5)]


def test_a_work_drawn_twice_is_its_own_positive(tokenizer, pixels):
    # With one work alone in the pool, whatever its captions, every pair is a positive: the loss of equal targets is at least log 4.
    captions = [CAPTIONS, *([caption] for caption in CAPTIONS[:3])]
    losses = train(clip(len(tokenizer)), tokenizer, pixels, captions, ONE_STEP, seed=1, rows=[0, 0, 0, 0])
    assert losses[0] >= math.log(4) - 1e-6


def test_correlation_is_that_of_numpy():
    states = normal((32, 5), [1])[0] @ normal((5, 5), [2])[0]
    table = np.corrcoef(states.double().numpy(), rowvar=False)
    assert correlation(states).item() == pytest.approx(((table**2).sum() - 5) / 5, rel=1e-3)  # its variances are 1e-4 larger


def test_correlation_counts_the_directions_that_are_filled():
    # Orthogonal columns: 0. Six copies of each of two orthogonal columns: width / directions - 1 = 5.
    columns = torch.linalg.qr(torch.cat([torch.ones(64, 1), normal((64, 12), [1])[0]], 1))[0][:, 1:] * 8
    assert correlation(columns).item() == pytest.approx(0, abs=1e-6)
    assert correlation(columns[:, :2].repeat(1, 6)).item() == pytest.approx(5, rel=1e-3)


def test_spread_fills_more_directions(tokenizer, pixels):
    found = []
    for spread in (0.0, 0.2):
        model = clip(len(tokenizer))
        train(model, tokenizer, pixels, [[caption] for caption in CAPTIONS], replace(TINY, spread=spread), seed=1)
        ids = tokenizer(CAPTIONS, padding="max_length", max_length=16, return_tensors="pt").input_ids
        with torch.no_grad():
            found.append(correlation(model.text_model(ids).last_hidden_state[:, -1]).item())
    assert found[1] < found[0]
