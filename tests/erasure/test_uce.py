"""UCE against least squares solved separately for every layer, and its limits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.concept import Concept, together
from assay.erasure import uce
from assay.errors import Misconfigured
from assay.noise import generator
from assay.patched import Patched
from assay.testing import KINDS, tiny

pytestmark = pytest.mark.portable

STYLE = Concept("twemoji", "style", "noto", preserve=("fluent", "openmoji"), subjects=("cat", "red heart"))


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def least_squares(weight, targets, anchors, preserved, erase_scale, preserve_scale, lam):
    """Minimise the sum whose minimiser is Eq. 7 by numpy's lstsq over the stacked rows: no normal equations, no Cholesky, one layer alone."""
    weight, targets, anchors, preserved = (tensor.detach().cpu().double().numpy() for tensor in (weight, targets, anchors, preserved))
    inputs = [np.sqrt(erase_scale) * targets, np.sqrt(preserve_scale) * preserved, np.sqrt(lam) * np.eye(weight.shape[1])]
    outputs = [np.sqrt(erase_scale) * anchors @ weight.T, np.sqrt(preserve_scale) * preserved @ weight.T, np.sqrt(lam) * weight.T]
    return np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)[0].T


def states(seed, *shape):
    return torch.randn(shape, generator=generator(seed, "states", *shape))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(0, 20), st.floats(1e-3, 10), st.floats(0, 3), st.floats(0, 3))
def test_agrees_with_least_squares_on_random_states(seed, erased, kept, lam, erase_scale, preserve_scale):
    targets, anchors, preserved, weight = (
        states(seed, erased, 12),
        states(seed + 1, erased, 12),
        states(seed + 2, kept, 12),
        states(seed, 7, 12).double(),
    )
    ours = weight + weight @ uce.solve(targets, anchors, preserved, erase_scale=erase_scale, preserve_scale=preserve_scale, lam=lam)
    expected = least_squares(weight, targets, anchors, preserved, erase_scale, preserve_scale, lam)
    assert np.linalg.norm(ours.numpy() - expected) < 1e-8 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v", "sdxl"])
@pytest.mark.parametrize("tokens", ["all", "last"])
def test_every_layer_of_a_pipeline_agrees_with_least_squares(kind, tokens):
    model = tiny(kind)
    targets, anchors = uce.paired_states(model, STYLE.pairs(), tokens)
    preserved = uce.preserved_states(model, STYLE.preserved(), tokens)
    change = uce.solve(targets, anchors, preserved, preserve_scale=0.5)
    patch = uce.erase(model, STYLE, uce.Settings(preserve_scale=0.5, tokens=tokens))
    for name, weight in model.group("cross_attention.kv").items():
        expected = least_squares(weight, targets, anchors, preserved, 1.0, 0.5, 0.1)
        ours = weight.double() + weight.double() @ change
        assert np.linalg.norm(ours.numpy() - expected) < 1e-8 * np.linalg.norm(expected)
        assert np.abs(patch.tensors[f"delta/{name}"].numpy() - (expected - weight.double().numpy())).max() < 1e-6  # rounding to float32


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_the_pipeline_tells_its_network(kind):
    """Against `encode_prompt` of diffusers. Words of three letters, which are three tokens, differ from the first on, and so does all behind them."""
    model = tiny(kind)

    def told(prompt):
        with torch.no_grad():
            return model.pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0][0, 1:]

    for side, prompt in zip(uce.paired_states(model, [("cat", "dog")], "all"), ("cat", "dog"), strict=True):
        torch.testing.assert_close(side.float(), told(prompt), rtol=0, atol=1e-5)
    for side, prompt in zip(uce.paired_states(model, [("cat", "dog")], "last"), ("cat", "dog"), strict=True):
        torch.testing.assert_close(side.float(), told(prompt)[2:3], rtol=0, atol=1e-5)


def test_nothing_changes_where_target_and_anchor_agree():
    """With c* = c the sum over c* - c is empty: D is zero, W is W0."""
    same = states(0, 9, 12)
    assert uce.solve(same, same, states(1, 4, 12)).abs().max() == 0


def test_a_large_ridge_keeps_the_old_weights():
    """D is at most |shift| / lam, because every eigenvalue of the inverted sum is at least lam."""
    targets, anchors = states(0, 9, 12), states(1, 9, 12)
    shift = ((anchors - targets).double().T @ targets.double()).norm()
    for lam in (1e3, 1e6, 1e12):
        assert uce.solve(targets, anchors, states(2, 4, 12), lam=lam).norm() <= shift / lam


def test_a_large_weight_meets_the_anchor_exactly():
    """With one target and s_e -> infinity the erased state is read as the anchor: (I + D) c = c*."""
    target, anchor = states(0, 1, 12).double(), states(1, 1, 12).double()
    change = uce.solve(target, anchor, states(2, 4, 12), erase_scale=1e12)
    assert torch.allclose(target @ (torch.eye(12) + change).T, anchor, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(0, 100), min_size=2, max_size=4))
def test_what_is_preserved_moves_less_the_more_it_weighs(seed, weights):
    """The part of a minimised sum that is weighted by s_p cannot rise as s_p grows: else the other minimiser would be better for both."""
    targets, anchors, preserved, weight = states(seed, 5, 12), states(seed + 1, 5, 12), states(seed + 2, 6, 12), states(seed + 3, 7, 12).double()
    moved = [
        float((weight @ uce.solve(targets, anchors, preserved, preserve_scale=scale) @ preserved.double().T).norm()) for scale in sorted(weights)
    ]
    assert all(later <= earlier * (1 + 1e-9) + 1e-12 for earlier, later in pairwise(moved))


def test_the_rank_of_the_change_is_at_most_the_number_of_erased_tokens():
    """D = (sum of n outer products) A^-1; what is preserved adds no rank."""
    change = uce.solve(states(0, 3, 12), states(1, 3, 12), states(2, 40, 12))
    assert torch.linalg.matrix_rank(change, rtol=1e-10) == 3


def test_the_scaled_ridge_does_not_depend_on_the_scale_of_the_states():
    """Eq. 7 is homogeneous once lam is measured in the states' mean square: D(a c) = D(c); 128 c is exact in float32."""
    one, two, three = (states(seed, 6, 12) for seed in range(3))
    expected = uce.solve(one, two, three, scale_lam=True)
    assert torch.allclose(uce.solve(128 * one, 128 * two, 128 * three, scale_lam=True), expected, rtol=1e-9, atol=1e-12)


B, E = 0, 9


@pytest.mark.parametrize(
    ("target", "anchor", "tokens", "places"),
    [  # by hand: B begin, E end and padding; words are other numbers
        ([B, 5, E, E, E], [B, 6, E, E, E], "all", ([1, 2, 3, 4], [1, 2, 3, 4])),
        ([B, 1, 5, 2, E, E], [B, 1, 6, 2, E, E], "last", ([2], [2])),
        ([B, 1, 5, 2, E, E], [B, 1, 6, 2, E, E], "all", ([2, 3, 4, 5], [2, 3, 4, 5])),
        ([B, 4, 5, 2, E, E, E], [B, 6, 2, E, E, E, E], "all", ([1, 2, 3, 4, 5, 6], [1, 1, 2, 3, 5, 6])),
        ([B, 6, 2, E, E, E, E], [B, 4, 5, 2, E, E, E], "all", ([1, 2, 3, 4, 5, 6], [2, 3, 4, 4, 5, 6])),
        ([B, 4, 5, 2, E, E, E], [B, 6, 2, E, E, E, E], "last", ([2], [1])),
        ([B, 4, 5, E, E], [B, E, E, E, E], "all", ([1, 2, 3, 4], [1, 1, 1, 4])),
        ([B, 4, 5, E, E], [B, E, E, E, E], "last", ([2], [1])),
        ([B, 4, 4, E, E], [B, 4, E, E, E], "all", ([2, 3, 4], [2, 2, 4])),
        ([B, 4, E, E, E], [B, 4, E, E, E], "all", ([], [])),
    ],
)
def test_tokens_are_aligned_from_the_end(target, anchor, tokens, places):
    assert uce.align(target, anchor, E, tokens) == places


def test_reads_the_anchor_where_the_concept_was(denoiser):
    """With hardly any ridge and little to keep, K and V of the concept become the anchor's, up to the fit: 23 tokens in 16 dimensions."""
    concept = Concept("cat", anchor="dog")
    patch = uce.erase(denoiser, concept, uce.Settings(lam=1e-6, preserve_scale=1e-3))
    rows = uce.paired_states(denoiser, concept.pairs(), "all")
    for name, weight in denoiser.group("cross_attention.kv").items():
        old, goal = (rows[side] @ weight.T for side in (0, 1))
        new = rows[0] @ (weight + patch.tensors[f"delta/{name}"]).T
        assert (new - goal).norm() < 0.2 * (old - goal).norm()


def test_the_concept_looks_like_the_anchor_and_others_stay(denoiser):
    """The same noise and timestep: e(concept) moves toward e0(anchor), by more than e(preserved) moves at all."""
    concept = Concept("cat", anchor="dog", preserve=("sun", "red"))
    x_t, t = states(3, 1, *denoiser.latent_shape), torch.tensor([500])

    def look(prompt):
        return denoiser.predict(x_t, t, denoiser.conditioning([prompt]))

    before = {prompt: look(prompt) for prompt in ("cat", "dog", "sun")}
    with torch.no_grad(), Patched(denoiser, [(uce.erase(denoiser, concept, uce.Settings(lam=1e-4)), 1.0)]):
        after = {prompt: look(prompt) for prompt in before}
    gap = (before["cat"] - before["dog"]).norm()
    assert (after["cat"] - before["dog"]).norm() < 0.5 * gap
    assert (after["sun"] - before["sun"]).norm() < 0.5 * (after["cat"] - before["cat"]).norm()


@pytest.mark.parametrize("count", [1, 5, 6, 20])
def test_both_orders_of_the_product_are_the_solve(count):
    """Of width 12, up to five states stay two narrow factors; more become one square one. W0 (I + D) is that of the stacked normal equations."""
    targets, anchors, preserved = states(0, count, 12), states(1, count, 12), states(2, 30, 12)
    weight = states(3, 7, 12).double()
    left, right = uce.factors(targets, anchors, preserved, erase_scale=2.0, preserve_scale=0.5, lam=0.3)
    assert (right is None) == (count > 5)
    c, a, p = targets.double(), anchors.double(), preserved.double()
    gram = 2 * c.T @ c + 0.5 * p.T @ p + 0.3 * torch.eye(12, dtype=torch.float64)
    expected = weight @ (2 * a.T @ c + 0.5 * p.T @ p + 0.3 * torch.eye(12, dtype=torch.float64)) @ torch.linalg.inv(gram)
    assert torch.allclose(weight + uce.applied(weight, left, right), expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(
        uce.solve(targets, anchors, preserved, erase_scale=2.0, preserve_scale=0.5, lam=0.3), left if right is None else left @ right
    )


def test_several_concepts_are_one_solve(denoiser):
    """Each with its own anchor: the rows of all stand in one sum, whose minimiser lstsq finds over the stacked rows."""
    cat, sun = Concept("cat", anchor="dog", preserve=("sun", "red")), Concept("sun", preserve=("blue",))
    both = together([cat, sun])
    patch = uce.erase(denoiser, both)
    rows = [uce.paired_states(denoiser, pairs, "all") for pairs in ([("cat", "dog")], [("sun", "")])]
    targets, anchors = (torch.cat([part[side] for part in rows]) for side in (0, 1))
    preserved = uce.preserved_states(denoiser, ["", "red", "blue"], "all")
    for name, weight in denoiser.group("cross_attention.kv").items():
        expected = least_squares(weight, targets, anchors, preserved, 1.0, 1.0, 0.1)
        assert np.abs(patch.tensors[f"delta/{name}"].numpy() - (expected - weight.double().numpy())).max() < 1e-6


def test_takes_no_pass_of_the_network(denoiser):
    before = denoiser.passes
    uce.erase(denoiser, STYLE)
    assert denoiser.passes == before


@pytest.mark.parametrize("bad", [{"lam": 0.0}, {"lam": float("nan")}, {"erase_scale": -1.0}, {"preserve_scale": -1.0}, {"tokens": "some"}])
def test_refuses_settings_out_of_range(denoiser, bad):
    with pytest.raises(Misconfigured):
        uce.erase(denoiser, STYLE, uce.Settings(**bad))


def test_refuses_an_anchor_that_is_the_concept(denoiser):
    with pytest.raises(Misconfigured, match="same prompts"):
        uce.erase(denoiser, Concept("cat", anchor="cat"))


def test_says_when_the_ridge_is_too_small_to_invert():
    """One erased token gives a matrix of rank 1 in 12 dimensions, beside which 1e-30 vanishes in float64."""
    with pytest.raises(Misconfigured, match="too small"):
        uce.solve(states(0, 1, 12), states(1, 1, 12), states(2, 0, 12), lam=1e-30)
