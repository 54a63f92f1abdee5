"""Debiasing by UCE: its edit against UCE's own solve, its counting against losses by hand, its rule against a replay."""

from typing import Any

import pytest
import torch

from assay.concept import Concept
from assay.denoiser import tensor_digest
from assay.erasure import uce, uce_debias
from assay.errors import Misconfigured
from assay.noise import generator
from assay.testing import KINDS, tiny

pytestmark = pytest.mark.portable

DOCTOR = Concept("doctor", preserve=("sun",))
QUICK: dict[str, Any] = {"attributes": ("red", "blue"), "rounds": 3, "images": 4, "image_steps": 2, "trials": 2, "tolerance": 0.0}


@pytest.fixture(scope="module")
def denoiser():
    return tiny("sd-epsilon")


def quick(**changes: Any) -> uce_debias.Settings:
    return uce_debias.Settings(**(QUICK | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_after_one_round_is_uce_s(kind):
    """By hand: alpha = step x (wanted - counted of the bare model); then UCE's solve toward c + sum alpha a, layer by layer.

    One image has one attribute: either way the equal shares are off by a half before and after, and the later edit is kept.
    """
    model = tiny(kind)
    chosen = quick(rounds=1, images=1, step=0.3)
    latents = uce_debias.draw(model, ["doctor"], chosen, 0)
    alphas = 0.3 * (torch.tensor([0.5, 0.5]) - uce_debias.counted(model, DOCTOR, latents, chosen, 0))
    assert sorted(alphas.abs().tolist()) == pytest.approx([0.15, 0.15])
    targets, _ = uce.paired_states(model, [("doctor", "")], "all")
    ids = model.family.tokenize(["red", "blue"])[0].tolist()
    ends = [row.index(model.family.encoders[0][0].eos_token_id) - 1 for row in ids]
    states = model.conditioning(["red", "blue"]).states
    moved = targets + sum(alpha * states[row, end] for row, (alpha, end) in enumerate(zip(alphas, ends, strict=True)))
    change = uce.solve(targets, moved, uce.preserved_states(model, ["", "sun"], "all"))
    patch = uce_debias.erase(model, DOCTOR, chosen)
    expected = {f"delta/{name}": (weight.double() @ change).float() for name, weight in model.group("cross_attention.kv").items()}
    assert all(torch.allclose(patch.tensors[name], tensor, rtol=1e-3, atol=1e-5) for name, tensor in expected.items())


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v"])
def test_images_are_counted_under_the_prompt_that_predicts_their_noise_best(kind):
    model = tiny(kind)
    chosen = quick(attributes=("red", "blue", "green"), trials=3)
    latents = torch.randn(5, *model.latent_shape, generator=generator(4))
    shares = uce_debias.counted(model, DOCTOR, latents, chosen, 9)
    rng = generator(9, "uce_debias", "trials")
    t = ((torch.arange(3) + torch.rand(3, generator=rng)) / 3 * 1000).long()
    noise = torch.randn((3, *model.latent_shape), generator=rng)
    votes = []
    for latent in latents:
        losses = [
            float(sum(model.loss(latent[None], t[[i]], noise[[i]], model.conditioning([f"{word} doctor"])) for i in range(3)))
            for word in ("red", "blue", "green")
        ]
        votes.append(losses.index(min(losses)))
    assert shares.tolist() == pytest.approx([votes.count(place) / 5 for place in range(3)])


def test_a_family_is_asked_for_by_its_members_names_alone(denoiser):
    """Image i shows member i modulo their number and is classified as that member; a style in the prompt would settle the attribute."""
    cats = Concept("cat", "object", members=("cat", "kitten"), styles=("red", "blue"))
    assert uce_debias.named(cats) == [("cat", "cat"), ("kitten", "kitten")]
    chosen = quick(images=2, trials=3, attributes=("red style", "blue style"), template="{concept}, {attribute}")
    latents = uce_debias.draw(denoiser, ["cat", "kitten"], chosen, 0)
    apart = [uce_debias.counted(denoiser, Concept(name), latent[None], chosen, 0) for name, latent in zip(("cat", "kitten"), latents, strict=True)]
    assert torch.equal(uce_debias.counted(denoiser, cats, latents, chosen, 0), (apart[0] + apart[1]) / 2)


def test_it_stops_where_shares_are_as_wanted(denoiser):
    """With the shares that the bare model has, nothing is to be done: one drawing, no change."""
    chosen = quick(tolerance=0.01)
    now = uce_debias.counted(denoiser, DOCTOR, uce_debias.draw(denoiser, ["doctor"], chosen, 0), chosen, 0)
    settled = quick(tolerance=0.01, shares=tuple(now.tolist()))
    calls = []
    before = denoiser.passes
    patch = uce_debias.erase(denoiser, DOCTOR, settled, progress=lambda *call: calls.append(call))
    assert calls == [(4, 4, {"off": 0.0})]
    assert denoiser.passes - before == uce_debias.cost(quick(rounds=0))["passes"]
    assert all(tensor.abs().max() == 0 for tensor in patch.tensors.values())


def test_takes_the_passes_it_says_and_restores_the_base(denoiser):
    before, passes = {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}, denoiser.passes

    def stop(done, total, figures):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uce_debias.erase(denoiser, DOCTOR, quick(shares=(0.99, 0.01)), progress=stop)
    assert denoiser.passes - passes == uce_debias.cost(quick(rounds=1))["passes"]
    assert {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()} == before


@pytest.mark.parametrize(
    "bad",
    [
        {"attributes": ("red",)},
        {"attributes": ("red", "red")},
        {"attributes": ("red", " ")},
        {"shares": (0.5,)},
        {"shares": (0.9, 0.9)},
        {"template": "{colour} {concept}"},
        {"template": "{concept.colour} {attribute}"},
        {"template": "{concept[colour]} {attribute}"},
        {"template": "a {concept}"},
        {"images": 0},
        {"image_steps": 1001},
        {"trials": 0},
        {"rounds": -1},
        {"step": 0.0},
        {"lam": 0.0},
        {"tolerance": -1.0},
    ],
)
def test_refuses_settings_out_of_range(denoiser, bad: dict[str, Any]):
    with pytest.raises(Misconfigured):
        uce_debias.erase(denoiser, DOCTOR, quick(**bad))
