"""Expected values come from hashlib and torch's own generators."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.noise import derive, generator, normal, numpy_generator, secret_generator

KEYS = st.one_of(st.integers(), st.text("abc:12", max_size=4))


def test_a_seed_is_the_first_63_bits_of_sha256():
    digest = int(hashlib.sha256(b"int:7\x1fstr:step\x1fint:3").hexdigest(), 16)
    assert derive(7, "step", 3) == digest >> (256 - 63)


@given(first=st.lists(KEYS, max_size=4), second=st.lists(KEYS, max_size=4))
def test_different_keys_have_different_seeds(first, second):
    assert (derive(*first) == derive(*second)) == (first == second)
    assert 0 <= derive(*first) < 2**63


def test_numbers_are_not_their_digits():
    assert len({derive(1), derive("1"), derive(1, 1), derive(11), derive("1", 1)}) == 5


@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), data=st.data())
def test_a_row_of_noise_depends_on_its_seed_alone(seeds, data):
    order = data.draw(st.permutations(range(len(seeds))))
    whole, mixed = normal((2, 3), seeds), normal((2, 3), [seeds[index] for index in order])
    assert torch.equal(whole[order], mixed)
    assert torch.equal(whole[0], torch.randn(2, 3, generator=torch.Generator().manual_seed(seeds[0])))


def test_generators_are_seeded_by_name():
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))
    assert not torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "y")))
    assert numpy_generator(1, "x").random() == np.random.default_rng(derive(1, "x")).random()


def test_a_secret_generator_has_128_bits_of_sha256_for_a_key():
    """Keys of numpy's Philox from hashlib; a secret may have more bits than a seed."""
    secret = 2**127 + 5
    key = int(hashlib.sha256(f"int:{secret}\x1fstr:step".encode()).hexdigest(), 16) >> 128
    assert secret_generator(secret, "step").random() == np.random.Generator(np.random.Philox(key=key)).random()
    assert torch.equal(torch.randn(2, generator=torch.Generator().manual_seed(5)), torch.randn(2, generator=torch.Generator().manual_seed(5 + 2**32)))


def test_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    generator(1), numpy_generator(1), normal((2,), [1])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
