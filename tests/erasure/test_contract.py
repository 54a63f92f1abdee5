"""What every method of erasing must keep, on every kind of tiny pipeline."""

import dataclasses
import inspect
from importlib import import_module

import pytest
import torch

from assay.concept import Concept
from assay.denoiser import tensor_digest
from assay.errors import Unsupported
from assay.patch import Patch
from assay.patched import Patched
from assay.settings import read, resolve
from assay.testing import KINDS, tiny
from assay.verbs import erase as verbs
from assay.verbs.methods import table

CONCEPT = Concept("twemoji", "style", "noto", preserve=("fluent",), subjects=("cat",))
METHODS = {
    "uce": ({}, "cross_attention.kv"),
    "uce_debias": ({"attributes": ("red", "blue"), "rounds": 1, "images": 1, "image_steps": 2, "trials": 1}, "cross_attention.kv"),
    "esd": ({"steps": 2, "batch": 2, "ddim_steps": 3, "learning_rate": 1e-2}, "cross_attention"),
    "rece": ({}, "cross_attention.kv"),
    "concept_ablation": ({"steps": 2, "batch": 2, "images": 3, "image_steps": 2, "learning_rate": 1e-2}, "cross_attention.kv"),
    "forget_me_not": (
        {"steps": 2, "batch": 2, "images": 3, "image_steps": 2, "learning_rate": 1e-2, "inversion_steps": 2, "group": "cross-attention"},
        "cross_attention",
    ),
    "maximise_loss": ({"steps": 2, "batch": 2, "images": 3, "image_steps": 2, "learning_rate": 1e-2, "group": "cross-attention"}, "cross_attention"),
    "salun": ({"steps": 2, "batch": 2, "images": 3, "image_steps": 2, "learning_rate": 1e-2, "group": "cross-attention"}, "cross_attention"),
    "inverse_lora": ({"rank": 2, "steps": 2, "surroundings": 2, "batch": 2, "images": 2, "image_steps": 2, "learning_rate": 1e-2}, "attention"),
    "adv_unlearn": (
        {"steps": 2, "warmup": 1, "batch": 2, "attack_steps": 1, "retain_batch": 2, "ddim_steps": 2, "learning_rate": 1e-2},
        "text_encoder",
    ),
    "eraseflow": ({"rank": 2, "steps": 2, "batch": 2, "ddim_steps": 3, "early": 1, "late": 1, "learning_rate": 1e-2}, "attention"),
    "adversarial_finetune": (
        {"steps": 1, "batch": 1, "images": 1, "image_steps": 2, "attack_steps": 1, "learning_rate": 1e-2, "group": "cross-attention"},
        "cross_attention",
    ),
    "caption_augmentation": (
        {"steps": 1, "batch": 2, "images": 2, "image_steps": 2, "learning_rate": 1e-2, "warmup": 0, "group": "cross-attention"},
        "cross_attention",
    ),
    "nemo": ({"theta": 1.7, "theta_least": 1.7, "seeds": 2, "others": 4, "tau": -2.0, "blocks": "all"}, "cross_attention.kv"),
    "wanda": ({"sparsity": 0.1, "joined": 1, "image_steps": 2}, "not_cross_attention"),
    "embedding_noise": ({}, None),
    "random_tokens": ({"probability": 1.0, "inserted": 0}, None),
    "lower_magnitude": ({"target": 0.0}, None),
    "negative_prompt": ({}, None),
    "sld": ({"warmup": 0, "threshold": 1.0}, None),
    "sega": ({"warmup": 0}, None),
    "fair_diffusion": ({"warmup": 0}, None),
}
"""Method -> settings that are quick, and the group that it declares; none for methods that sample by a rule."""
PARTS = {"nemo": ".to_v.", "wanda": ".ff.net.2."}
"""Methods that change a part of their group -> what its names have in them."""
MADE_FOR = ("erase twemoji", "debias twemoji", "balance twemoji style, noto style", "keep copies from coming out")


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def denoiser(kind):
    return tiny(kind)


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    module = import_module(f"assay.erasure.{request.param}")
    quick, group = METHODS[request.param]
    return module, module.Settings(**quick), group


@pytest.fixture(scope="module")
def made(denoiser, method):
    """The method's patch with seed 7, and what it told of its progress."""
    module, settings, _ = method
    calls = []
    return module.erase(denoiser, CONCEPT, settings, seed=7, progress=lambda *told: calls.append(told)), calls


def digests(denoiser):
    return {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}


def test_is_deterministic_and_declares_what_it_does(denoiser, method, made):
    module, settings, group = method
    before, gradients = digests(denoiser), [tensor.requires_grad for tensor in denoiser.weights().values()]
    patch = module.erase(denoiser, CONCEPT, settings, seed=7)
    assert patch.digest == made[0].digest
    assert digests(denoiser) == before
    assert [tensor.requires_grad for tensor in denoiser.weights().values()] == gradients
    declared = denoiser.group(group) if group else {}
    part = PARTS.get(module.__name__.rpartition(".")[2], "")
    declared = {name: weight for name, weight in declared.items() if part in name}
    low_rank = any(key.startswith("low_rank/") for key in patch.tensors)
    assert set(patch.names) == {name for name, weight in declared.items() if weight.ndim == 2 or not low_rank}
    assert len(patch.rules) == (0 if group else 1)
    assert all(rule.check() is None for rule in patch.rules)
    assert patch.manifest.method == module.__name__.rpartition(".")[2]
    assert patch.manifest.settings == dataclasses.asdict(settings)
    assert patch.manifest.made_for in MADE_FOR
    assert patch.manifest.base == {name: before[name] for name in patch.names}
    assert patch.rules or any(patch.change(name).abs().max() > 0 for name in patch.names)


def test_the_table_of_methods_says_that_it_works(kind, method, made):
    row = next(row for row in table("erasure") if row["module"] == method[0].__name__)
    assert made[0].names or made[0].rules
    assert row["works_on"][kind] == "yes"


def test_does_the_same_after_saving_and_comes_off(denoiser, made, tmp_path):
    patch, _ = made
    loaded = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    before, plain = digests(denoiser), denoiser.sample(["cat, twemoji style"], [1], steps=2)
    outputs = []
    for one in (patch, loaded):
        with Patched(denoiser, [(one, 1.0)]):
            outputs.append(denoiser.sample(["cat, twemoji style"], [1], steps=2))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], plain)
    assert digests(denoiser) == before
    assert torch.equal(denoiser.sample(["cat, twemoji style"], [1], steps=2), plain)


def test_strength_scales_the_change_and_zero_is_the_identity(denoiser, method, made):
    module, settings, group = method
    factor = next(name for name in ("strength", "scale", "probability") if hasattr(settings, name))
    half, none = (module.erase(denoiser, CONCEPT, dataclasses.replace(settings, **{factor: value}), seed=7) for value in (0.5, 0.0))
    whole = made[0]
    assert group is None or getattr(settings, factor) == 1
    assert all(torch.equal(half.change(name), 0.5 * whole.change(name)) for name in whole.names)  # halving is exact in binary
    assert all(none.change(name).abs().max() == 0 for name in none.names)
    before, plain = digests(denoiser), denoiser.sample(["cat, twemoji style"], [1], steps=2)
    with Patched(denoiser, [(none, 1.0)]):
        assert digests(denoiser) == before
        after = denoiser.sample(["cat, twemoji style"], [1], steps=2)
    # A rule adds rows to the network's batches, whose sums are then rounded otherwise.
    torch.testing.assert_close(after, plain, rtol=0, atol=0 if group else 1e-4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_base(denoiser, method, error):
    module, settings, _ = method
    before = digests(denoiser)

    def stop(*_):
        raise error

    with pytest.raises(error):
        module.erase(denoiser, CONCEPT, settings, progress=stop)
    assert digests(denoiser) == before


def test_reports_progress_to_the_end(made):
    _, calls = made
    assert [done for done, _, _ in calls] == list(range(1, calls[0][1] + 1))
    assert all(isinstance(value, float) for _, _, figures in calls for value in figures.values())


def test_an_empty_group_is_refused_before_anything_is_done(denoiser, method, monkeypatch):
    """A model without the group's weights, feigned: the others are all there is."""
    module, settings, group = method
    if group is None:
        pytest.skip("a rule needs no weights")
    gone = set(denoiser.group(group.partition(".")[0]))
    rest = {name: tensor for name, tensor in denoiser.weights().items() if name not in gone}
    monkeypatch.setattr(denoiser, "weights", lambda: rest)
    passes = denoiser.passes
    with pytest.raises(Unsupported, match=group):
        module.erase(denoiser, CONCEPT, settings)
    assert denoiser.passes == passes


def test_settings_can_be_read_without_importing(method):
    module, _, _ = method
    source = read(module.__name__)
    assert source.summary.endswith(".")
    assert [(field.name, field.default) for field in source.fields] == [(field.name, field.default) for field in dataclasses.fields(module.Settings)]
    assert all(field.help.endswith(".") for field in source.fields)
    assert not {field.name for field in source.fields} & set(inspect.signature(verbs.erase).parameters)  # they share one command line
    assert source.presets == module.PRESETS
    assert resolve(module.Settings, module.PRESETS, "paper", {}) == module.Settings()
    resolve(module.Settings, module.PRESETS, "small", {})
