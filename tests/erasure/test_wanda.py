"""Norms and choice against loops over single numbers, and that exactly the chosen weights go."""

import pytest
import torch

from assay.concept import Concept
from assay.denoiser import tensor_digest
from assay.erasure import wanda
from assay.errors import Misconfigured, Unsupported
from assay.noise import derive, generator
from assay.patched import Patched
from assay.testing import tiny

WORK = Concept("cat, twemoji style", "work", preserve=("dog, noto style", "clock"))
QUICK = wanda.Settings(sparsity=0.1, joined=2, image_steps=3, seeds=2)


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def test_chosen_weights_against_a_loop_over_single_weights():
    """Sun et al., Eq. 1, in Python's floats: a weight is chosen if fewer than k of its row score higher, and it scores higher than the reference."""
    draws = generator("wanda")
    weight, norms, reference = torch.randn(7, 20, generator=draws), torch.rand(20, generator=draws), torch.rand(20, generator=draws)
    found = wanda.chosen(weight, norms.double(), reference.double(), 0.26)
    keep = int(0.26 * 20)
    assert keep == 5
    for row, numbers in enumerate(weight.tolist()):
        scores = [abs(number) * norm for number, norm in zip(numbers, norms.tolist(), strict=True)]
        others = [abs(number) * norm for number, norm in zip(numbers, reference.tolist(), strict=True)]
        for column, score in enumerate(scores):
            important = sum(other > score for other in scores) < keep
            assert bool(found[row, column]) == (important and score > others[column])
    assert found.any()
    assert not wanda.chosen(weight, norms.double(), 2 * norms.double(), 1.0).any()  # the reference scores higher everywhere
    assert wanda.chosen(weight, 2 * norms.double(), norms.double(), 1.0).all()


@pytest.mark.parametrize("count", [2, wanda.BATCH + 1])
def test_norms_are_those_of_what_enters_the_layer(denoiser, count):
    """Against passes of the network by hand: the sampler's start under guidance, the prompt's half and the empty prompt's; rows of length 1."""
    names = list(wanda.check(denoiser, QUICK))
    name, prompts = names[0], ["cat, twemoji style", "a dog"] * count
    prompts = prompts[:count]
    batches = []
    found = wanda.column_norms(denoiser, names, prompts, QUICK, 3, batches.append)
    assert {tuple(norms.shape) for norms in found.values()} <= {(2, weight.shape[1]) for weight in wanda.check(denoiser, QUICK).values()}
    assert batches == list(range(1, -(-count // wanda.BATCH) + 1))
    heard = []
    module = denoiser.unet.get_submodule(name.removeprefix("unet.").removesuffix(".weight"))
    handle = module.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    steps = denoiser.timesteps(3)
    seeds = [derive(3, "wanda", row) for row in range(count)]
    for step in range(2):
        x = denoiser.sample(prompts, seeds, steps=3, guidance=7.5, stop=step)
        heard.clear()
        for said in (prompts, [""] * count):
            denoiser.predict(x, steps[step].expand(count), denoiser.conditioning(said), denoiser.view)
        total = torch.zeros(found[name].shape[1], dtype=torch.float64)
        for row in torch.cat(heard).flatten(0, 1).double():
            total += (row / row.square().sum().sqrt()) ** 2
        torch.testing.assert_close(found[name][step], total.sqrt(), rtol=1e-4, atol=1e-6)
    handle.remove()


def test_exactly_the_chosen_weights_go_and_come_back(denoiser):
    before = {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}
    figures = []
    patch = wanda.erase(denoiser, WORK, QUICK, progress=lambda *told: figures.append(told))
    weights = wanda.check(denoiser, QUICK)
    assert patch.names == sorted(weights)
    gone = {name: patch.change(name) != 0 for name in patch.names}
    assert all((patch.change(name)[gone[name]] == -weights[name][gone[name]]).all() for name in patch.names)
    assert figures[-1][2]["pruned"] == pytest.approx(sum(float(mask.sum()) for mask in gone.values()) / sum(mask.numel() for mask in gone.values()))
    rows = {name: mask.sum(1) for name, mask in gone.items()}
    assert all(count.max() <= 2 * int(0.1 * weights[name].shape[1]) for name, count in rows.items())  # a union of two steps
    with Patched(denoiser, [(patch, 1.0)]):
        assert all((denoiser.weights()[name][mask] == 0).all() for name, mask in gone.items())
    assert {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()} == before


def test_nothing_is_pruned_of_what_the_reference_asks_for_itself(denoiser):
    """A concept that is its own reference scores no higher than it."""
    same = Concept("clock", "work", preserve=("clock",))
    patch = wanda.erase(denoiser, same, wanda.Settings(sparsity=0.5, joined=1, image_steps=2, reference="preserved"))
    assert all(patch.change(name).abs().max() == 0 for name in patch.names)


@pytest.mark.parametrize(
    "bad", [{"sparsity": 0.0}, {"sparsity": 1.5}, {"sparsity": 1e-4}, {"joined": 0}, {"joined": 51}, {"seeds": 0}, {"reference": "others"}]
)
def test_refuses_settings_out_of_range(denoiser, bad):
    passes = denoiser.passes
    with pytest.raises(Misconfigured):
        wanda.erase(denoiser, WORK, wanda.Settings(**{"sparsity": 0.1, **bad}))
    assert denoiser.passes == passes


def test_refuses_a_model_without_feed_forward_layers(denoiser, monkeypatch):
    rest = {name: tensor for name, tensor in denoiser.weights().items() if ".ff." not in name}
    monkeypatch.setattr(denoiser, "weights", lambda: rest)
    with pytest.raises(Unsupported, match="feed-forward"):
        wanda.erase(denoiser, WORK, QUICK)
