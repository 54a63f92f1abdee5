"""Expected values come from the algebra written out in float64 on numbers that float32 holds exactly, from the kept base, and from plain diffusers.

Numbers of the form integer / 64 below 8 add and multiply in float32 without rounding, so that equality can be asked bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, PNDMScheduler
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from assay.denoiser import Denoiser, tensor_digest
from assay.errors import BadInput, Misconfigured, Mismatch, Missing, NoRoom, Unsupported
from assay.guidance import Rule
from assay.loading import load
from assay.noise import derive, generator, normal
from assay.patch import Manifest, Patch
from assay.patched import Patched, export_lora, fuse
from assay.testing.pipelines import tiny_pipeline

NAME, CONV = "unet.a.weight", "unet.conv.weight"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def exact(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-64, 64, shape, generator=generator(seed)).float() / 64


def bare(dtype: torch.dtype = torch.float32) -> Any:
    """Two tensors in place of a model: all that the algebra needs of one."""
    weights = {NAME: normal((5, 4), [1])[0].to(dtype), CONV: normal((3, 2, 3, 3), [2])[0].to(dtype)}
    return SimpleNamespace(name="bare", rules=[], patched=[], replaced={}, weights=lambda: weights, forget_text=lambda: None)


def dense(seed: int, name: str = NAME, shape: tuple[int, ...] = (5, 4)) -> Patch:
    return Patch(Manifest(), {f"delta/{name}": exact(*shape, seed=seed)})


def low_rank(seed: int, name: str = NAME, shape: tuple[int, ...] = (5, 4), rank: int = 2) -> Patch:
    up, down = exact(shape[0], rank, seed=seed), exact(rank, *shape[1:], seed=seed + 1000)
    return Patch(Manifest(), {f"low_rank/{name}/up": up, f"low_rank/{name}/down": down})


def replacing(value: torch.Tensor, name: str = NAME) -> Patch:
    return Patch(Manifest(), {f"set/{name}": value})


def ruled(name: str = "negative_prompt") -> Patch:
    return Patch(Manifest(), rules=(Rule(name, (("green cross", 1.0),), (("strength", 1.0),) if name == "negative_prompt" else ()),))


def copies(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.weights().items()}


def assert_same(model: Any, base: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.weights().items())


KINDS_OF_CHANGE = [dense(1), low_rank(2), dense(3, CONV, (3, 2, 3, 3)), low_rank(4, CONV, (3, 2, 3, 3))]


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    plan=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1.0, -1.0, 0.3, -2.5])), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_taking_patches_off_in_any_order_leaves_the_base_bit_for_bit(dtype, plan, order):
    model = bare(dtype)
    base = copies(model)
    patched = Patched(model)
    for index, coefficient in plan:
        patched.apply(KINDS_OF_CHANGE[index], coefficient)
    changed = any(not torch.equal(tensor, base[name]) for name, tensor in model.weights().items())
    assert changed or sum(coefficient for _, coefficient in plan) == pytest.approx(0) or len(plan) > 1
    order.shuffle(plan)
    for index, _ in plan:
        patched.remove(KINDS_OF_CHANGE[index])
    assert_same(model, base)


@pytest.mark.parametrize("dtype", DTYPES)
@given(order=st.permutations([(0, 1.0), (1, -0.7), (0, 0.3), (0, -1.0), (1, 0.1)]))
def test_order_does_not_matter_bit_for_bit(dtype, order):
    signed = {1.0: KINDS_OF_CHANGE[0], -1.0: -KINDS_OF_CHANGE[0]}  # once as a patch and once as its negative: one change with two signs
    first, second = bare(dtype), bare(dtype)
    patches = [
        (signed.get(coefficient, KINDS_OF_CHANGE[index]), abs(coefficient) if coefficient in signed else coefficient) for index, coefficient in order
    ]
    Patched(first, patches)
    Patched(second, sorted(patches, key=lambda item: (item[0].digest, item[1])))
    assert torch.equal(first.weights()[NAME], second.weights()[NAME])


def test_the_sign_that_comes_first_does_not_matter_bit_for_bit():
    # Changes are added in the order of their digests. `between` lies between a change and its negative, so that it would be added before the one and
    # after the other; numbers of unequal size make float32 round differently then.
    patch = Patch(Manifest(), {f"delta/{NAME}": normal((5, 4), [3])[0] * 1e3})
    ends = sorted(tensor_digest(sign * patch.tensors[f"delta/{NAME}"]) for sign in (1.0, -1.0))
    candidates = (Patch(Manifest(), {f"delta/{NAME}": normal((5, 4), [seed])[0]}) for seed in range(100, 1000))
    between = next(
        other for other in candidates if all(ends[0] < tensor_digest(sign * other.tensors[f"delta/{NAME}"]) < ends[1] for sign in (1.0, -1.0))
    )
    first, second = bare(), bare()
    Patched(first, [(patch, 1.0), (between, 1.0), (-patch, 0.25)])
    Patched(second, [(-patch, 0.25), (between, 1.0), (patch, 1.0)])
    assert torch.equal(first.weights()[NAME], second.weights()[NAME])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("patch", KINDS_OF_CHANGE, ids=["dense", "low rank", "dense convolution", "low-rank convolution"])
def test_weights_are_rounded_once_from_the_base_and_the_sum(dtype, patch):
    model = bare(dtype)
    base = copies(model)
    for key, tensor in base.items():
        model.weights()[key].copy_((tensor.float() * 64).round() / 64)
    base = copies(model)
    (name,) = patch.names
    if f"delta/{name}" in patch.tensors:
        change = patch.tensors[f"delta/{name}"].double()
    else:
        up, down = patch.tensors[f"low_rank/{name}/up"].double(), patch.tensors[f"low_rank/{name}/down"].double()
        change = torch.einsum("or,r...->o...", up, down)
    with Patched(model, [(patch, 2.0), (patch, -0.5)]):
        assert torch.equal(model.weights()[name], (base[name].double() + 1.5 * change).to(dtype))
    assert_same(model, base)


@pytest.mark.parametrize("dtype", DTYPES)
def test_base_plus_a_patch_minus_it_is_the_base(dtype):
    for patch in KINDS_OF_CHANGE:
        model = bare(dtype)
        base = copies(model)
        for pair in ([(patch, 1.0), (-patch, 1.0)], [(patch, 1.0), (patch, -1.0)], [(patch, 0.3), (-patch, 0.3)], [(patch, 0.0)]):
            Patched(model, pair)
            assert_same(model, base)


def test_stacked_low_ranks_are_the_sum():
    first, second = low_rank(5, rank=2), low_rank(6, rank=3)
    total = first + second
    assert total.tensors[f"low_rank/{NAME}/up"].shape == (5, 5)
    change, one, two = total.change(NAME), first.change(NAME), second.change(NAME)
    assert change is not None
    assert one is not None
    assert two is not None
    assert torch.equal(change, one + two)
    difference_of_same = (first + -first).change(NAME)
    assert difference_of_same is not None
    assert not difference_of_same.any()


@given(
    seeds=st.lists(st.integers(0, 50), min_size=2, max_size=3, unique=True), conv=st.booleans(), kinds=st.lists(st.booleans(), min_size=3, max_size=3)
)
def test_a_sum_of_patches_acts_as_the_patches_do_together(seeds, conv, kinds):
    name, shape = (CONV, (3, 2, 3, 3)) if conv else (NAME, (5, 4))
    patches = [low_rank(seed, name, shape) if kind else dense(seed, name, shape) for seed, kind in zip(seeds, kinds)]
    total = sum(patches[1:], patches[0])
    one, other = bare(), bare()
    for model in (one, other):
        model.weights()[name].copy_(exact(*shape, seed=99))
    Patched(one, [(total, 1.0)])
    Patched(other, [(patch, 1.0) for patch in patches])
    assert torch.equal(one.weights()[name], other.weights()[name])


@given(factor=st.sampled_from([0.0, 0.5, -1.0, 3.0, -0.25]))
def test_scaling_a_patch_is_scaling_its_change(factor):
    for patch in KINDS_OF_CHANGE:
        (name,) = patch.names
        change, scaled = patch.change(name), patch.scaled(factor).change(name)
        assert change is not None
        assert torch.equal(scaled, change * factor)


def test_scaling_half_precision_entries_does_not_overflow():
    patch = Patch(Manifest(), {f"delta/{NAME}": torch.full((5, 4), 60000.0, dtype=torch.float16)})
    assert torch.equal(patch.scaled(2.0).change(NAME), torch.full((5, 4), 120000.0))


def test_replacing_a_tensor_or_rows_of_it():
    model = bare()
    base = copies(model)
    value = normal((5, 4), [7])[0]
    with Patched(model, [(replacing(value), 1.0)]):
        assert torch.equal(model.weights()[NAME], value)
    assert_same(model, base)
    rows = Patch(Manifest(), {f"rows/{NAME}/index": torch.tensor([4, 1]), f"rows/{NAME}/values": value[:2]})
    with Patched(model, [(rows, 1.0)]):
        assert torch.equal(model.weights()[NAME][[4, 1]], value[:2])
        assert torch.equal(model.weights()[NAME][[0, 2, 3]], base[NAME][[0, 2, 3]])
    assert_same(model, base)


@given(st.integers(0, 10**6), st.floats(-45, 38), st.sampled_from([(5, 4), (3, 2, 3, 3)]))
def test_eight_bits_move_no_weight_by_more_than_half_a_scale(seed, exponent, shape):
    # Rounding to the nearest of steps of max |row| / 127 errs by half a step; fp32 itself rounds scale, quotient and product, 2 ** -24 each of up to
    # 127 steps. The smallest numbers have an absolute rounding of 2 ** -149 instead, which counts 127 times.
    value = normal((1, *shape), [seed])[0] * torch.tensor(10.0, dtype=torch.float64).pow(exponent).float()
    value = value.nan_to_num(posinf=3e38, neginf=-3e38)
    value[0] = 0
    small = replacing(value).compressed()
    back = small.replacement(NAME)
    assert back is not None
    step = value.double().flatten(1).abs().amax(1) / 127
    error = (back.double() - value.double()).abs().flatten(1).amax(1)
    assert (error <= step * (0.5 + 127 * 2.0**-22) + 128 * 2.0**-149).all()
    assert small.tensors[f"set8/{NAME}/values"].dtype == torch.int8
    assert not back[0].any()
    again = replacing(back).compressed().replacement(NAME)
    assert torch.equal(again, back) or exponent < -37  # what is in 8 bits stays as it is, but for the smallest numbers


def test_what_is_in_eight_bits_reads_back_alike_and_is_a_fourth_as_large(tmp_path):
    value, bias = normal((64, 50), [7, 8])
    patch = Patch(Manifest(method="m", creators=["a"]), {f"set/{NAME}": value, "set/unet.b": bias[0], "delta/unet.c.weight": bias})
    small = patch.compressed()
    assert small.names == patch.names
    assert small.manifest.parents == [patch.digest]
    assert (small.manifest.method, small.manifest.creators) == ("m", ["a"])
    assert torch.equal(small.tensors["set/unet.b"], bias[0])  # one dimension
    assert small.tensors["delta/unet.c.weight"] is bias
    loaded = Patch.load(small.save(tmp_path / "p"))
    assert loaded.digest == small.digest != patch.digest
    assert torch.equal(loaded.replacement(NAME), small.replacement(NAME))
    # By hand, from the file's own numbers: one product each.
    values, scale = loaded.tensors[f"set8/{NAME}/values"], loaded.tensors[f"set8/{NAME}/scale"]
    assert loaded.replacement(NAME)[3, 5].item() == (values[3, 5].float() * scale[3]).item()
    assert values.nbytes + scale.nbytes == 64 * 50 + 4 * 64
    assert not small.linear
    with pytest.raises(Unsupported, match="8 bits"):
        dense(1).compressed()
    with pytest.raises(Unsupported, match="8 bits"):
        small.compressed()


def test_a_replacement_in_eight_bits_goes_on_and_comes_off():
    model = bare()
    base = copies(model)
    small = replacing(normal((5, 4), [7])[0]).compressed()
    with Patched(model, [(small, 1.0)]):
        assert torch.equal(model.weights()[NAME], small.replacement(NAME))
    assert_same(model, base)


@pytest.mark.zoo
def test_eight_bits_hardly_move_the_images_of_the_built_in_model():
    # Measured 2026-11-24: 6.8 MB in place of 13.2, weights moved by 0.65 % of their norm, images by 0.4 to 1.5 of 255 levels (root mean square).
    denoiser = load("emoji64")
    whole = Patch(Manifest(), {f"set/{name}": tensor.half() for name, tensor in denoiser.group("unet").items()})
    small = whole.compressed()
    assert sum(tensor.nbytes for tensor in small.tensors.values()) < 0.52 * sum(tensor.nbytes for tensor in whole.tensors.values())
    prompts = ["cat face, noto style", "red heart, openmoji style", "dog, fluent style", "pizza, twemoji style"]
    plain = denoiser.generate(prompts, [0, 1, 2, 3], steps=10)
    with Patched(denoiser, [(small, 1.0)]):
        moved = (denoiser.generate(prompts, [0, 1, 2, 3], steps=10) - plain).square().mean((1, 2, 3)).sqrt() * 255
    assert 0 < float(moved.max()) < 4


def test_a_saved_patch_has_the_same_bytes_each_time(tmp_path, everything):
    # safetensors itself writes its metadata in the order of a hash map, which differs from call to call.
    written = {everything.save(tmp_path / str(index)).read_bytes() for index in range(8)}
    assert len(written) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert set(file.metadata()) == {"assay", "guidance"}


REFUSED: list[tuple[str, list[tuple[Patch, float]], type[Exception]]] = [
    ("scaled replacement", [(replacing(torch.ones(5, 4)), 0.5)], Unsupported),
    ("negated rule", [(ruled(), -1.0)], Unsupported),
    ("two replacements", [(replacing(torch.ones(5, 4)), 1.0), (replacing(torch.zeros(5, 4)), 1.0)], Mismatch),
    ("replacement and change", [(dense(1), 1.0), (replacing(torch.zeros(5, 4)), 1.0)], Mismatch),
    ("two rules", [(ruled(), 1.0), (ruled("classifier_free"), 1.0)], Unsupported),
    ("unknown rule", [(dense(1), 1.0), (ruled("magic"), 1.0)], Unsupported),
    ("absent tensor", [(dense(1), 1.0), (dense(1, "unet.b.weight"), 1.0)], Unsupported),
    ("transposed change", [(dense(1), 1.0), (dense(1, shape=(4, 5)), 1.0)], Unsupported),
    ("broadcast replacement", [(replacing(torch.ones(1)), 1.0)], Unsupported),
    ("low rank of another shape", [(low_rank(1, shape=(4, 5)), 1.0)], Unsupported),
    ("flattened low rank of a convolution", [(low_rank(1, CONV, (3, 18)), 1.0)], Unsupported),
    ("row out of range", [(Patch(Manifest(), {f"rows/{NAME}/index": torch.tensor([5]), f"rows/{NAME}/values": torch.ones(1, 4)}), 1.0)], Unsupported),
    (
        "rows of another width",
        [(Patch(Manifest(), {f"rows/{NAME}/index": torch.tensor([0]), f"rows/{NAME}/values": torch.ones(1, 3)}), 1.0)],
        Unsupported,
    ),
    ("scaled replacement in 8 bits", [(replacing(torch.ones(5, 4)).compressed(), 0.5)], Unsupported),
    ("replacement in 8 bits and change", [(dense(1), 1.0), (replacing(torch.ones(5, 4)).compressed(), 1.0)], Mismatch),
    ("replacement in 8 bits of another shape", [(replacing(torch.ones(4, 5)).compressed(), 1.0)], Unsupported),
    (
        "too few scales",
        [(Patch(Manifest(), {f"set8/{NAME}/values": torch.ones(5, 4, dtype=torch.int8), f"set8/{NAME}/scale": torch.ones(4)}), 1.0)],
        Unsupported,
    ),
    ("another base", [(dense(1), 1.0), (Patch(Manifest(base={NAME: "0" * 64}), dense(2).tensors), 1.0)], Mismatch),
]


@pytest.mark.parametrize(("patches", "error"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_errors_come_before_any_change(patches, error):
    model = bare()
    base = copies(model)
    with pytest.raises(error):
        Patched(model, patches)
    assert_same(model, base)
    assert not model.rules
    on = Patched(model)
    for patch, coefficient in patches[:-1]:
        on.apply(patch, coefficient)
    before = copies(model)
    with pytest.raises(error):
        on.apply(*patches[-1])
    assert_same(model, before)
    on.clear()
    assert_same(model, base)


def test_sums_that_cannot_be_are_refused():
    with pytest.raises(Mismatch, match=NAME):
        dense(1) + replacing(torch.ones(5, 4))
    with pytest.raises(Mismatch, match=NAME):
        replacing(torch.ones(5, 4)) + replacing(torch.ones(5, 4))
    with pytest.raises(Unsupported, match="rule"):
        ruled() + ruled()
    with pytest.raises(Unsupported):
        -ruled()
    with pytest.raises(Unsupported):
        replacing(torch.ones(5, 4)).scaled(2)
    one = Patch(Manifest(base={NAME: "a" * 64}), dense(1).tensors)
    with pytest.raises(Mismatch, match="different bases"):
        one + Patch(Manifest(base={NAME: "b" * 64}), dense(2).tensors)


def test_a_patch_for_another_base_can_be_forced_and_is_recorded():
    model = bare()
    made_for = {NAME: tensor_digest(model.weights()[NAME])}
    assert not Patched(model, [(Patch(Manifest(base=made_for), dense(1).tensors), 1.0)]).forced  # the right base, though patched meanwhile
    other = bare()
    other.weights()[NAME][0, 0] += 1
    patched = Patched(other, [(Patch(Manifest(base=made_for), dense(1).tensors), 1.0)], force=True)
    assert patched.forced == [NAME]


def test_a_second_patch_of_the_same_base_goes_on_top():
    model = bare()
    made_for = {NAME: tensor_digest(model.weights()[NAME])}
    patched = Patched(model, [(Patch(Manifest(base=made_for), dense(1).tensors), 1.0)])
    patched.apply(Patch(Manifest(base=made_for), dense(2).tensors))
    with pytest.raises(Missing):
        patched.remove(dense(3))


def test_what_was_put_on_last_comes_off_first():
    """Taking the first off below the second would leave the second's tensors on a base that is gone: refused, and both are still on."""
    model = bare()
    base = copies(model)
    outer = Patched(model, [(dense(1), 1.0)])
    once = copies(model)
    inner = Patched(model, [(dense(2), 1.0)])
    twice = copies(model)
    for late in (outer.clear, lambda: outer.remove(dense(1)), lambda: outer.apply(dense(3))):
        with pytest.raises(Misconfigured, match="after these"):
            late()
        assert_same(model, twice)
    inner.clear()
    assert_same(model, once)
    outer.clear()
    assert_same(model, base)
    assert model.patched == []


def test_a_patch_that_fails_half_way_goes_off_again(monkeypatch):
    """Out of memory at its second tensor: the first is taken back, and what was on before stays on."""
    model = bare()
    base, first = copies(model), dense(1)
    both = Patch(Manifest(), dense(2).tensors | dense(3, CONV, (3, 2, 3, 3)).tensors)
    patched = Patched(model, [(first, 1.0)])
    before, change = copies(model), Patch.change

    def fails(self, name):
        if name == both.names[1]:
            raise torch.OutOfMemoryError
        return change(self, name)

    monkeypatch.setattr(Patch, "change", fails)
    with pytest.raises(torch.OutOfMemoryError):
        patched.apply(both)
    assert_same(model, before)
    assert patched.stack == [(first, 1.0)]
    patched.clear()
    assert_same(model, base)


def test_a_failure_in_the_middle_restores_the_base():
    model = bare()
    base = copies(model)
    model.forget_text = lambda: 1 / 0
    late = Patch(Manifest(), {"delta/text_encoder.x": torch.ones(2)})
    model.weights()["text_encoder.x"] = base["text_encoder.x"] = torch.zeros(2)
    with pytest.raises(ZeroDivisionError):
        Patched(model, [(dense(1), 1.0), (late, 1.0)])
    assert torch.equal(model.weights()[NAME], base[NAME])


def test_a_sum_remembers_where_it_came_from():
    first = Patch(Manifest(made_for="erase cats", license="CC-BY-4.0", creators=["B"], base={NAME: "a" * 64}), dense(1).tensors)
    second = Patch(
        Manifest(made_for="erase dogs", license="CC0-1.0", creators=["A", "B"], base={CONV: "b" * 64}), low_rank(2, CONV, (3, 2, 3, 3)).tensors
    )
    about = (first + second).manifest
    assert (about.made_for, about.license, about.creators) == ("erase cats + erase dogs", "CC-BY-4.0 AND CC0-1.0", ["A", "B"])
    assert about.parents == [first.digest, second.digest]
    assert about.base == {NAME: "a" * 64, CONV: "b" * 64}


@pytest.fixture
def everything() -> Patch:
    shared = exact(2, 4, seed=3)
    tensors = {
        **dense(1, CONV, (3, 2, 3, 3)).tensors,
        f"low_rank/{NAME}/up": exact(5, 2, seed=4),
        f"low_rank/{NAME}/down": shared,
        "low_rank/unet.c.weight/up": exact(5, 2, seed=4).half(),
        "low_rank/unet.c.weight/down": shared,  # memory that two entries share
        "rows/text_encoder.t/index": torch.tensor([1, 3]),
        "rows/text_encoder.t/values": exact(4, 2, seed=5).T,  # not contiguous
        "set/vae.w": exact(3, seed=6),
        "set8/vae.v/values": torch.tensor([[-127, 3], [0, 0]], dtype=torch.int8),
        "set8/vae.v/scale": torch.tensor([0.25, 0.0]),
    }
    return Patch(
        Manifest(method="m", settings={"rate": 0.1, "which": ["a"]}, creators=["Ä"]),
        tensors,
        (Rule("negative_prompt", (("é", 1.0),), (("strength", 0.5),)),),
    )


def test_saving_and_loading_keeps_every_bit(tmp_path, everything):
    loaded = Patch.load(everything.save(tmp_path / "deep" / "patch.safetensors"))
    assert (loaded.manifest, loaded.rules, loaded.digest) == (everything.manifest, everything.rules, everything.digest)
    assert all(
        torch.equal(tensor, everything.tensors[key]) and tensor.dtype == everything.tensors[key].dtype for key, tensor in loaded.tensors.items()
    )
    assert loaded.tensors.keys() == everything.tensors.keys()
    assert Patch.load(tmp_path / "deep").digest == everything.digest
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["patch.safetensors"]


def test_files_that_are_no_patch(tmp_path, everything):
    whole = everything.save(tmp_path / "whole").read_bytes()
    files = {
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:40],
        "empty": b"",
        "text": b"not a patch at all, but long enough to look at",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="no patch"):
            Patch.load(tmp_path / name)
    with pytest.raises(Missing):
        Patch.load(tmp_path / "absent")
    with pytest.raises(Missing):
        Patch.load(tmp_path)


def test_safetensors_that_are_no_patch(tmp_path):
    def refused(tensors: dict[str, torch.Tensor], about: dict[str, str] | None, words: str) -> None:
        save_file(tensors, tmp_path / "p", about)
        with pytest.raises(BadInput, match=words):
            Patch.load(tmp_path / "p")

    ones, fine = torch.ones(2), {"assay": Manifest().model_dump_json(), "guidance": "[]"}
    refused({"x": ones}, None, "no patch")
    refused({"x": ones}, {"assay": "{", "guidance": "[]"}, "no patch")
    for guidance in ("{", "[1]", '[{"name": "x"}]', '[{"name": "x", "prompt": "", "settings": []}]'):
        refused({"delta/x": ones}, fine | {"guidance": guidance}, "no patch")
    refused({"magic/x": ones}, fine, "magic")
    refused({"delta": ones}, fine, "incomplete")
    refused({"low_rank/x/up": ones}, fine, "incomplete")
    refused({"rows/x/index": ones, "rows/x/other": torch.zeros(2)}, fine, "incomplete")
    two = torch.ones(2, 2)
    index = torch.tensor([0, 1])
    for tensors, words in (
        ({"delta/up": torch.tensor([1.0, float("nan")])}, "not finite"),
        ({"low_rank/x/up": two, "low_rank/x/down": torch.tensor([[1.0, float("inf")]] * 2)}, "not finite"),
        ({"low_rank/x/up": two, "low_rank/x/down": torch.ones(3, 2)}, "factors of x"),
        ({"low_rank/x/up": torch.ones(2, 2, 1), "low_rank/x/down": two}, "factors of x"),
        ({"low_rank/x/up": two, "low_rank/x/down": ones}, "factors of x"),
        ({"rows/x/index": ones, "rows/x/values": two}, "index of the rows of x"),
        ({"rows/x/index": index[None], "rows/x/values": two[:1]}, "index of the rows of x"),
        ({"rows/x/index": index, "rows/x/values": torch.ones(3, 2)}, "index of the rows of x"),
        ({"delta/x": two, "set/x": two.clone()}, "two ways, delta and set"),
        ({"delta/x": two, "low_rank/x/up": two.clone(), "low_rank/x/down": two.clone()}, "two ways, delta and low_rank"),
        ({"set/x": two, "set8/x/values": torch.ones(2, 2, dtype=torch.int8), "set8/x/scale": ones}, "two ways, set and set8"),
    ):
        refused(tensors, fine, words)
    newer = json.dumps({"format": "assay/patch/2"})
    refused({"delta/x": ones}, fine | {"assay": newer}, "newer")


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    """As of an eraser that diverged: the file of before stays."""
    good, bad = (Patch(Manifest(), {"delta/x": torch.tensor([1.0, value])}) for value in (2.0, float("nan")))
    good.save(tmp_path / "p")
    with pytest.raises(Unsupported, match="not finite"):
        bad.save(tmp_path / "p")
    assert Patch.load(tmp_path / "p").digest == good.digest
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


# With whole pipelines


def lora(denoiser: Denoiser, rank: int = 3) -> Patch:
    """Low ranks on linear layers, a convolution and the text encoders, of unequal ranks."""
    weights = denoiser.weights()
    names = [*denoiser.group("cross_attention.kv"), "unet.conv_in.weight", next(key for key in weights if key.endswith("mlp.fc1.weight"))]
    names += [key for key in weights if key.startswith("text_encoder_2.") and key.endswith("q_proj.weight")]
    tensors = {}
    for index, name in enumerate(names):
        shape, size = weights[name].shape, rank + index % 2
        tensors[f"low_rank/{name}/up"] = normal((shape[0], size), [derive(name, "up")])[0] / 4
        tensors[f"low_rank/{name}/down"] = normal((size, *shape[1:]), [derive(name, "down")])[0] / 4
    return Patch(Manifest(base={name: tensor_digest(weights[name]) for name in names}, made_for="test"), tensors)


@pytest.fixture
def base(denoiser: Denoiser) -> Iterator[dict[str, torch.Tensor]]:
    """The weights before the test, which must be there after it."""
    before = copies(denoiser)
    yield before
    assert_same(denoiser, before)
    assert not denoiser.rules
    assert not denoiser.replaced


def test_images_change_under_a_patch_and_come_back(denoiser, base):
    options: dict[str, Any] = {"prompts": ["red circle"], "seeds": [1], "steps": 2}
    denoiser.forget_text()  # what else a prompt was encoded with changes its last bits
    plain, digest = denoiser.generate(**options), denoiser.digest
    with Patched(denoiser, [(lora(denoiser), 1.0)]):
        assert (denoiser.generate(**options) - plain).abs().max() > 0.01
    assert torch.equal(denoiser.generate(**options), plain)
    assert denoiser.digest == digest


def test_only_declared_tensors_change(denoiser, base):
    patch = lora(denoiser)
    with Patched(denoiser, [(patch, 1.0)]):
        changed = {name for name, tensor in denoiser.weights().items() if not torch.equal(tensor, base[name])}
    assert changed == set(patch.names)


def test_a_models_digest_is_that_of_its_base_while_patches_are_on(tmp_path, sd):
    from assay.testing import tiny

    model = tiny()
    with Patched(model, [(lora(model), 1.0)]):
        assert model.digest == sd.digest


def test_a_patch_with_a_rule_samples_by_it(denoiser, base):
    expected = denoiser.sample(["red circle"], [1], steps=2, negative=["green cross"])
    with Patched(denoiser, [(ruled(), 1.0)]):
        torch.testing.assert_close(denoiser.sample(["red circle"], [1], steps=2), expected, rtol=1e-4, atol=1e-4)


def test_a_second_rule_is_refused_on_a_model_that_is_sampled_by_one(denoiser, base):
    """Also where another caller put the first on; what changes weights alone goes beside it."""
    with Patched(denoiser, [(ruled(), 1.0)]):
        with pytest.raises(Unsupported, match="one sampling rule"):
            Patched(denoiser, [(ruled("classifier_free"), 1.0)])
        with Patched(denoiser, [(lora(denoiser), 1.0)]) as inner:
            assert inner.rules


def test_a_fused_folder_makes_the_same_images(tmp_path, denoiser, base):
    options: dict[str, Any] = {"prompts": ["red circle"], "seeds": [1], "steps": 2}
    patch = lora(denoiser)
    denoiser.forget_text()  # other tests may have encoded the prompt in a larger batch, which rounds differently
    with Patched(denoiser, [(patch, 1.0)]):
        expected = denoiser.generate(**options)
    (tmp_path / "deep" / "model.part" / "left over").mkdir(parents=True)
    folder = fuse(denoiser, [(patch, 1.0)], tmp_path / "deep" / "model")
    assert torch.equal(load(folder).generate(**options), expected)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert not (folder / "left over").exists()
    with pytest.raises(Mismatch, match="exists"):
        fuse(denoiser, [(patch, 1.0)], folder)


@pytest.mark.parametrize("scheduler", [PNDMScheduler, EulerDiscreteScheduler])
def test_a_fused_folder_keeps_what_another_scheduler_left_at_its_defaults(tmp_path, scheduler):
    """Made in memory, a scheduler's configuration names the settings that it left at its defaults, which are not DDIM's; a saved one does not."""
    pipeline = tiny_pipeline()
    pipeline.scheduler = scheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    with pytest.raises(Unsupported, match="steps_offset"):
        fuse(Denoiser(pipeline), [], tmp_path / "model")
    pipeline.scheduler.register_to_config(steps_offset=1)
    model = Denoiser(pipeline)
    options: dict[str, Any] = {"prompts": ["red circle"], "seeds": [1], "steps": 2}
    expected = model.generate(**options)
    loaded = load(fuse(model, [], tmp_path / "model"))
    assert loaded.digest == model.digest
    assert torch.equal(loaded.generate(**options), expected)
    assert torch.equal(model.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert model.timesteps(4).tolist() == [751, 501, 251, 1]  # leading: DDIM's steps are of one length


def test_fusing_what_cannot_be_fused(tmp_path, sd):
    before = copies(sd)
    with pytest.raises(Unsupported, match="rules"):
        fuse(sd, [(ruled(), 1.0)], tmp_path / "model")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NoRoom):
        fuse(sd, [(lora(sd), 1.0)], tmp_path / "file" / "model")
    assert_same(sd, before)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_exported_lora_works_in_plain_diffusers(tmp_path, denoiser, base):
    # PEFT adds (x A) B to x W instead of x (W + A B): the same up to float32's rounding, 1e-5 of an image's range.
    options: dict[str, Any] = {"prompts": ["red circle", "a"], "seeds": [1, 2], "steps": 2}
    plain = denoiser.generate(**options)
    patch = lora(denoiser) + lora(denoiser, rank=1)
    with Patched(denoiser, [(patch, 1.0)]):
        expected = denoiser.generate(**options)
    assert (expected - plain).abs().max() > 0.01
    denoiser.pipeline.save_pretrained(tmp_path / "m")
    export_lora(patch, tmp_path)
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "m")
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in options["seeds"]]
    images = pipeline(options["prompts"], num_inference_steps=2, guidance_scale=4.0, generator=generators, output_type="pt").images
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_lora_files_hold_one_rank(tmp_path):
    # Older diffusers rescale modules whose rank is not the commonest one.
    path = export_lora(low_rank(1, rank=1) + low_rank(2, CONV, (3, 2, 3, 3), rank=3), tmp_path)
    shapes = {key: tuple(tensor.shape) for key, tensor in load_file(path).items()}
    assert shapes == {
        "unet.a.lora_A.weight": (3, 4),
        "unet.a.lora_B.weight": (5, 3),
        "unet.conv.lora_A.weight": (3, 2, 3, 3),
        "unet.conv.lora_B.weight": (3, 3, 1, 1),
    }


def test_what_no_lora_file_can_hold(tmp_path: Path):
    embedding = "text_encoder.embeddings.token_embedding.weight"
    for patch in (dense(1), ruled(), Patch(Manifest()), low_rank(1, "vae.decoder.conv_in.weight"), low_rank(1, embedding)):
        with pytest.raises(Unsupported):
            export_lora(patch, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rule_takes_the_numbers_of_a_methods_settings():
    """Numbers in their order as floats; words, lists and switches are the method's own; settings stay whole in the manifest."""

    @dataclass(frozen=True)
    class Settings:
        prompts: tuple[str, ...] = ("cat",)
        scale: float = 2.5
        toward: bool = True
        warmup: int = 3

    made = Patch.by_rule("sega", Settings(), "erase cats", [("cat", 0.5)])
    assert made.rules == (Rule("sega", (("cat", 0.5),), (("scale", 2.5), ("warmup", 3.0))),)
    assert made.manifest.settings == {"prompts": ("cat",), "scale": 2.5, "toward": True, "warmup": 3}
    assert (made.manifest.method, made.manifest.made_for, made.tensors) == ("sega", "erase cats", {})
