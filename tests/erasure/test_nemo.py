"""Scores against closed forms, what is cut is exactly silent, and off again the base is as it was, bit for bit."""

import pytest
import torch

from assay.concept import Concept, together
from assay.denoiser import tensor_digest
from assay.erasure import nemo
from assay.errors import Misconfigured
from assay.noise import normal
from assay.patched import Patched
from assay.testing import tiny

WORK = Concept("cat, twemoji style", "work", preserve=("dog, noto style", "red heart, fluent style", "clock"))
QUICK = nemo.Settings(theta=2.0, theta_least=1.0, seeds=3, tau=-2.0)  # below any score: nothing is enough, so that the search goes to the end


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def test_excitement_in_closed_form():
    """Means 2 and 0, deviations of (1, 2, 3) and (-2, 0, 2) over n - 1: 1 and 2."""
    usual = {"layer": torch.tensor([[1.0, -2.0], [2.0, 0.0], [3.0, 2.0]])}
    z = nemo.excitement(usual, {"layer": torch.tensor([[7.0, -3.0]])})["layer"]
    assert z.tolist() == [5.0, 1.5]
    active = {"layer": torch.tensor([0.1, 0.2])}  # the second is the more active, the first the more excited
    assert nemo.chosen({"layer": z}, active, 2.0, 0) == {"layer": {0}}
    assert nemo.chosen({"layer": z}, active, 9.0, 1) == {"layer": {1}}
    assert nemo.chosen({"layer": z}, active, 1.0, 0) == {"layer": {0, 1}}


def test_activations_are_those_of_the_network(denoiser):
    """Against a hook on the projection itself during a pass."""
    weights = nemo.check(denoiser, WORK, QUICK)
    name = next(iter(weights))
    seen = []
    module = denoiser.unet.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    denoiser.predict(normal(denoiser.latent_shape, [0]), torch.tensor([500]), denoiser.conditioning([WORK.name]))
    handle.remove()
    torch.testing.assert_close(nemo.activations(denoiser, weights, [WORK.name])[name][0], seen[0][0].abs().mean(0), rtol=0, atol=1e-6)


def test_structural_similarity_against_its_definition():
    """One window is a whole image: Eq. 13 of Wang et al. in float64, and 1 for an image and itself."""
    a, b = normal((1, 7, 7), [1, 2]).double()
    span = max(a.max(), b.max()) - min(a.min(), b.min())
    low, high = (0.01 * span) ** 2, (0.03 * span) ** 2
    both = ((a - a.mean()) * (b - b.mean())).mean()
    expected = (2 * a.mean() * b.mean() + low) * (2 * both + high)
    expected /= (a.mean() ** 2 + b.mean() ** 2 + low) * (a.var(correction=0) + b.var(correction=0) + high)
    assert float(nemo.ssim(a[None], b[None])) == pytest.approx(float(expected), rel=1e-9)
    assert float(nemo.ssim(a[None], a[None])) == pytest.approx(1.0)


def test_cut_neurons_are_silent_and_the_base_comes_back(denoiser):
    before = {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}
    patch = nemo.erase(denoiser, WORK, QUICK)
    weights = nemo.check(denoiser, WORK, QUICK)
    gone = {name: (patch.change(name).abs().sum(1) > 0).nonzero().flatten() for name in patch.names}
    assert set(patch.names) == set(weights)
    assert any(len(rows) for rows in gone.values())
    with Patched(denoiser, [(patch, 1.0)]):
        active = nemo.activations(denoiser, nemo.check(denoiser, WORK, QUICK), ["anything", WORK.name])
        assert all((active[name][:, rows] == 0).all() for name, rows in gone.items())
    assert {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()} == before


def test_differences_span_each_channel_and_pairs_are_all_compared(denoiser):
    noise = normal(denoiser.latent_shape, [1, 2, 3])
    found = nemo.differences(denoiser, WORK.name, noise)
    assert (found.amin((2, 3)) == 0).all()
    assert (found.amax((2, 3)) == 1).all()
    pairs = {(a, b): float(nemo.ssim(found[[a]], found[[b]])) for a in range(3) for b in range(3) if a != b}
    expected = [max(value for (a, _), value in pairs.items() if a == row) for row in range(3)]
    assert nemo.alike(found).tolist() == pytest.approx(expected, abs=1e-5)
    assert nemo.score(denoiser, WORK.name, noise) == pytest.approx(max(expected), abs=1e-5)


def test_nothing_is_cut_of_a_prompt_that_is_not_memorised(denoiser):
    patch = nemo.erase(denoiser, WORK, nemo.Settings(tau=2.0, seeds=2))  # no similarity is above 1
    assert all(patch.change(name).abs().max() == 0 for name in patch.names)


def guilty(culprits, tried):
    """Return a similarity that falls by 0.4 with each of two neurons, and by a little with every other of layer b."""

    def similarity(neurons):
        tried.append({name: set(rows) for name, rows in neurons.items()})
        fallen = sum(row in neurons[name] for name, row in culprits)
        return 1 - 0.4 * fallen - 0.001 * len(neurons["b"])

    return similarity


@pytest.mark.parametrize(("culprits", "rounds"), [([("a", 3), ("b", 1)], 3), ([("a", 3), ("a", 0)], 1)])
def test_the_search_keeps_exactly_what_memorisation_needs(culprits, rounds):
    """Alg. 3 and 4 by hand, tau 0.5: excitements of 5.5 and 4.6 are above the first and the third threshold."""
    excited = {"a": torch.tensor([5.2, 0.0, 0.0, 5.5]), "b": torch.tensor([0.0, 4.6, 0.0])}
    active = {"a": torch.tensor([0.0, 2.0, 1.0, 0.0]), "b": torch.tensor([2.0, 0.0, 1.0])}
    tried = []
    assert nemo.search(guilty(culprits, tried), excited, active, 0.5, nemo.Settings()) == {
        layer: {row for name, row in culprits if name == layer} for layer in "ab"
    }
    assert tried[0] == {"a": {0, 3}, "b": set()}  # theta 5, k 0
    if rounds == 3:
        assert tried[1] == {"a": {0, 1, 3}, "b": {0}}  # theta 4.75 and the most active of each layer
        assert tried[2] == {"a": {0, 1, 2, 3}, "b": {0, 1, 2}}  # theta 4.5 and the two most active
    assert tried[rounds] == {"a": set(), "b": tried[rounds - 1]["b"]}  # the first layer is given back as a trial


def test_where_the_lowest_threshold_does_not_suffice_what_it_reached_is_the_bound():
    """Cutting neuron 1 brings back similarity: it goes, as the rest falls below what was reached; nothing else does."""
    excited = {"a": torch.tensor([6.0, 6.0])}
    settings = nemo.Settings(theta=5.0, theta_least=5.0)

    def similarity(neurons):
        return 1 - 0.2 * (0 in neurons["a"]) + 0.1 * (1 in neurons["a"])

    assert nemo.search(similarity, excited, excited, 0.5, settings) == {"a": {0}}


def test_blocks_can_be_all(denoiser):
    assert len(nemo.check(denoiser, WORK, nemo.Settings(blocks="all"))) > len(nemo.check(denoiser, WORK, nemo.Settings()))


@pytest.mark.parametrize("bad", [{"theta": 0.5}, {"theta_step": 0.0}, {"seeds": 1}, {"others": 1}, {"top": -1}, {"blocks": "up"}])
def test_refuses_settings_out_of_range(denoiser, bad):
    passes = denoiser.passes
    with pytest.raises(Misconfigured):
        nemo.erase(denoiser, WORK, nemo.Settings(**bad))
    assert denoiser.passes == passes


def test_refuses_to_compare_with_nothing(denoiser):
    with pytest.raises(Misconfigured, match="nothing to compare"):
        nemo.erase(denoiser, Concept("cat", "work"), QUICK)
    assert len(together([WORK, Concept("clock face", "work", preserve=("dog", "cat"))]).preserved()) >= 3
