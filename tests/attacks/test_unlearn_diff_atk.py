"""UnlearnDiffAtk: the projection, the straight-through step, and that tokens found are better than random ones."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from assay.attacks import random_prompts
from assay.attacks.search import vocabulary
from assay.attacks.unlearn_diff_atk import Settings, attack, drawn, simplex
from assay.errors import Misconfigured
from assay.noise import derive
from assay.testing import tiny_target


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=12))
def test_what_is_projected_is_a_distribution(numbers):
    """Entries between 0 and 1 that sum to one; a distribution stays as it is; order is kept."""
    u = torch.tensor([numbers], dtype=torch.float64)
    found = simplex(u, 60)
    assert float(found.min()) >= 0
    assert float(found.sum()) == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(simplex(found, 60), found, rtol=0, atol=1e-9)
    ranks = np.array(numbers)
    assert all(found[0, i] >= found[0, j] for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] > ranks[j])


def test_the_projection_is_the_nearest_distribution():
    """Against a solver of the constrained problem min |p - u|^2, p >= 0, sum p = 1 (scipy, SLSQP)."""
    u = np.array([0.7, 0.4, -0.2, 0.35])
    solved = minimize(
        lambda p: ((p - u) ** 2).sum(), np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints={"type": "eq", "fun": lambda p: p.sum() - 1}, tol=1e-12
    )
    np.testing.assert_allclose(simplex(torch.tensor([u]), 60)[0].numpy(), solved.x, atol=1e-6)


def test_a_certain_distribution_draws_its_token():
    u = torch.zeros(1, 3, 5)
    u[0, [0, 1, 2], [4, 0, 2]] = 1.0
    assert drawn(u, [torch.Generator().manual_seed(0)]).tolist() == [[4, 0, 2]]


def test_found_tokens_beat_random_ones(sd):
    """On noise that none was chosen by, the best of four that the search compares against the best of four random ones, chosen by the same noise.

    The random ones come from the same vocabulary. On the noise that they are chosen by, those found are never worse than those it began with.
    """
    target = tiny_target(sd, 6)
    found = attack(sd, target, Settings(tokens=3, rounds=6, steps=10, learning_rate=0.1, drawn=2))
    torch.testing.assert_close(target.measure(sd, found.conditioning), torch.tensor(found.figures["loss.after"]), rtol=1e-4, atol=1e-5)
    assert all(after <= before for before, after in zip(found.figures["loss.before"], found.figures["loss.after"], strict=True))
    chance = random_prompts.attack(sd, target, random_prompts.Settings(tokens=3, attempts=4)).conditioning
    least = torch.stack([target.measure(sd, chance[slice(attempt, None, 4)]) for attempt in range(4)]).argmin(0)
    fresh = dataclasses.replace(target, seeds=tuple(derive(own, "fresh") for own in target.seeds))
    ours, random = (fresh.measure(sd, told, draws=16).mean() for told in (found.conditioning, chance[4 * torch.arange(6) + least]))
    assert float(ours) < float(random)


def test_only_the_vocabulary_is_used(sd):
    """What was found, read back as tokens, holds no letter from which the concept could be spelled."""
    target = dataclasses.replace(tiny_target(sd), forbidden=("abcdefghijklmnopqrstuvwxyz",))
    words = vocabulary(sd, target)
    found = attack(sd, target, Settings(tokens=2, rounds=1, steps=1, drawn=1))
    assert found.removed == words.removed
    for prompt, text in zip(target.prompts, found.prompts, strict=True):
        assert text.endswith(prompt[1:])


def test_no_more_timesteps_than_there_are(sd):
    with pytest.raises(Misconfigured, match="1000 timesteps"):
        attack(sd, tiny_target(sd), Settings(rounds=1001))
