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
    assert nemo.chosen({"layer": z}, 2.0, 0) == {"layer": {0}}
    assert nemo.chosen({"layer": z}, 9.0, 1) == {"layer": {0}}
    assert nemo.chosen({"layer": z}, 1.0, 0) == {"layer": {0, 1}}


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
    assert all(len(rows) for rows in gone.values())
    with Patched(denoiser, [(patch, 1.0)]):
        active = nemo.activations(denoiser, nemo.check(denoiser, WORK, QUICK), ["anything", WORK.name])
        assert all((active[name][:, rows] == 0).all() for name, rows in gone.items())
    assert {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()} == before


def test_nothing_is_cut_of_a_prompt_that_is_not_memorised(denoiser):
    patch = nemo.erase(denoiser, WORK, nemo.Settings(tau=2.0, seeds=2))  # no similarity is above 1
    assert all(patch.change(name).abs().max() == 0 for name in patch.names)


def test_what_the_search_keeps_suffices(denoiser):
    """Between the score as it is and that without any neuron lies a tau that the search reaches, with fewer than all."""
    weights = nemo.check(denoiser, WORK, QUICK)
    noise = normal(denoiser.latent_shape, range(3))
    plain = nemo.score(denoiser, WORK.name, noise)
    with nemo.cut(weights, {name: set(range(len(weight))) for name, weight in weights.items()}):
        least = nemo.score(denoiser, WORK.name, noise)
    assert least < plain
    tau = (plain + least) / 2
    excited = {name: torch.arange(len(weight), 0, -1).float() + 10 for name, weight in weights.items()}  # all above any threshold
    found = nemo.search(denoiser, weights, excited, WORK.name, noise, tau, QUICK)
    with nemo.cut(weights, found):
        assert nemo.score(denoiser, WORK.name, noise) < tau
    assert 0 < sum(map(len, found.values())) < sum(map(len, weights.values()))


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
