"""RECE against least squares over stacked matrices, layer by layer and round by round."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.concept import Concept
from assay.erasure import rece, uce
from assay.errors import Misconfigured
from assay.noise import generator
from assay.testing import KINDS, tiny

pytestmark = pytest.mark.portable

STYLE = Concept("twemoji", "style", "noto", preserve=("fluent", "openmoji"), subjects=("cat", "red heart"))


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def draw(seed, *shape):
    return torch.randn(shape, generator=generator(seed, "rece", *shape), dtype=torch.float64)


def attack(new, old, states, lam):
    """Minimise sum |W c' - W0 c|^2 + lam |c'|^2 by numpy's lstsq over the stacked matrices: no normal equations."""
    width = states.shape[1]
    inputs = np.concatenate([*new, np.sqrt(lam) * np.eye(width)])
    outputs = np.concatenate([matrix @ states.T for matrix in old] + [np.zeros((width, len(states)))])
    return np.linalg.lstsq(inputs, outputs, rcond=None)[0].T


def edit(weight, targets, anchors, preserved, preserve_scale, lam):
    """Minimise UCE's sum for one matrix by lstsq over the stacked rows."""
    inputs = np.concatenate([targets, np.sqrt(preserve_scale) * preserved, np.sqrt(lam) * np.eye(weight.shape[1])])
    outputs = np.concatenate([anchors @ weight.T, np.sqrt(preserve_scale) * preserved @ weight.T, np.sqrt(lam) * weight.T])
    return np.linalg.lstsq(inputs, outputs, rcond=None)[0].T


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(1e-3, 10))
def test_the_attack_agrees_with_least_squares(seed, layers, lam):
    old = [draw(seed + layer, 7, 12) for layer in range(layers)]
    product, states = draw(seed + 50, 12, 12), draw(seed + 51, 9, 12)
    gram = torch.stack([matrix.T @ matrix for matrix in old]).sum(0)
    found = rece.adversarial(gram, product, states, lam).numpy()
    expected = attack([(matrix @ product).numpy() for matrix in old], [matrix.numpy() for matrix in old], states.numpy(), lam)
    assert np.linalg.norm(found - expected) < 1e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_every_layer_agrees_with_the_same_steps_one_matrix_at_a_time(kind, rounds):
    model = tiny(kind)
    chosen = rece.Settings(rounds=rounds, preserve_scale=0.5)
    patch = rece.erase(model, STYLE, chosen)
    targets, anchors = (side.double().numpy() for side in uce.paired_states(model, STYLE.pairs(), "all"))
    preserved = uce.preserved_states(model, STYLE.preserved(), "all").double().numpy()
    group = model.group("cross_attention.kv")
    old = [weight.detach().double().numpy() for weight in group.values()]
    new = [edit(weight, targets, anchors, preserved, 0.5, 0.1) for weight in old]
    for _ in range(rounds):
        found = attack(new, old, targets, 0.1)
        new = [edit(weight, found, anchors, preserved, 0.5, 0.1) for weight in new]
    for name, before, after in zip(group, old, new, strict=True):
        assert np.abs(patch.tensors[f"delta/{name}"].numpy() - (after - before)).max() < 1e-5 * np.abs(after - before).max() + 1e-7


def test_without_rounds_it_is_uce(denoiser):
    shared = {"lam": 0.3, "preserve_scale": 0.7, "tokens": "last"}
    ours, theirs = (
        rece.erase(denoiser, STYLE, rece.Settings(rounds=0, **shared)).tensors,
        uce.erase(denoiser, STYLE, uce.Settings(**shared)).tensors,
    )
    assert all(torch.allclose(ours[name], tensor, atol=1e-6) for name, tensor in theirs.items())


def test_a_round_takes_from_the_attack_what_it_found(denoiser):
    """What the first round's c' recovered, it recovers less of after the round: the edit maps that very c' to the anchor."""
    group = [weight.detach().double() for weight in denoiser.group("cross_attention.kv").values()]
    gram = torch.stack([matrix.T @ matrix for matrix in group]).sum(0)
    targets, _ = uce.paired_states(denoiser, STYLE.pairs(), "all")
    shares = []
    for rounds in (0, 1):
        patch = rece.erase(denoiser, STYLE, rece.Settings(rounds=rounds, attack_lam=1e-3))
        name, weight = next(iter(denoiser.group("cross_attention.kv").items()))
        product = torch.eye(16, dtype=torch.float64) + torch.linalg.lstsq(weight.double(), patch.tensors[f"delta/{name}"].double()).solution
        if not rounds:
            found = rece.adversarial(gram, product, targets, 1e-3)
        shares.append(rece.share(gram, product, found, targets))
    assert shares[1] < shares[0] <= 1


def test_takes_no_pass_of_the_network(denoiser):
    before = denoiser.passes
    rece.erase(denoiser, STYLE)
    assert denoiser.passes == before


@pytest.mark.parametrize(
    "bad", [{"rounds": -1}, {"attack_lam": 0.0}, {"attack_lam": float("nan")}, {"lam": 0.0}, {"preserve_scale": -1.0}, {"tokens": "some"}]
)
def test_refuses_settings_out_of_range(denoiser, bad):
    with pytest.raises(Misconfigured):
        rece.erase(denoiser, STYLE, rece.Settings(**bad))
