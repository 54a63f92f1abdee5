"""What every attack must keep, on every kind of tiny pipeline."""

import dataclasses
import inspect
import math
from importlib import import_module

import pytest
import torch

from assay.attacks.target import Clock
from assay.denoiser import tensor_digest
from assay.errors import Misconfigured
from assay.settings import read, resolve
from assay.testing import KINDS, tiny_target
from assay.verbs import attack as verbs
from assay.verbs.methods import table

METHODS = {
    "random_prompts": {"tokens": 2, "attempts": 2},
    "seed_search": {"attempts": 2},
    "concept_inversion": {"steps": 2, "batch": 2},
    "ring_a_bell": {"tokens": 2, "population": 4, "generations": 2},
    "unlearn_diff_atk": {"rounds": 1, "steps": 2, "drawn": 1},
    "p4d": {"tokens": 2, "steps": 1, "pool": 1, "look": 1},
    "relearning": {"rank": 1, "group": "cross_attention", "steps": 1, "batch": 1},
    "latent_inversion": {"refine": 1},
    "hidden_or_removed": {"attempts": 2, "steps": 1, "samples": 1},
}
"""Method -> settings that are quick."""
WRONG = {
    "random_prompts": {"attempts": 0},
    "seed_search": {"attempts": 0},
    "concept_inversion": {"learning_rate": 0.0},
    "ring_a_bell": {"mutation": 1.5},
    "unlearn_diff_atk": {"rounds": 0},
    "p4d": {"variant": "x"},
    "relearning": {"group": "text_encoder"},
    "latent_inversion": {"refine": -1},
    "hidden_or_removed": {"samples": 0},
}
"""Method -> a setting that it must refuse."""


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    module = import_module(f"assay.attacks.{request.param}")
    return module, module.Settings(**METHODS[request.param])


@pytest.fixture(scope="module")
def grounds(pipelines):
    """Each tiny pipeline with what is to be brought back of it."""
    return {kind: (denoiser, tiny_target(denoiser)) for kind, denoiser in pipelines.items()}


@pytest.fixture
def ground(grounds):
    return grounds["sd-epsilon"]


def digests(denoiser):
    return {name: tensor_digest(tensor) for name, tensor in denoiser.weights().items()}


def told(denoiser, found):
    return denoiser.conditioning(found.prompts).states if found.conditioning is None else found.conditioning.states


@pytest.mark.parametrize("kind", KINDS)
def test_is_deterministic_and_leaves_the_model(grounds, kind, method):
    """Where each prompt is attacked by itself, the second alone gives what it gives beside the first; else the same attack gives the same.

    That is asked of one pipeline; of the others, that the attack runs and leaves them as they were.
    """
    denoiser, target = grounds[kind]
    module, settings = method
    before, gradients = digests(denoiser), [tensor.requires_grad for tensor in denoiser.weights().values()]
    whole = module.attack(denoiser, target, settings, seed=7)
    assert digests(denoiser) == before
    assert [tensor.requires_grad for tensor in denoiser.weights().values()] == gradients
    assert len(whole.prompts) == len(target) * whole.attempts
    assert all(math.isfinite(value) for line in whole.curves.values() for value in line)
    assert all(len(values) == len(target) for values in whole.figures.values())
    drawn = whole.sample(denoiser, list(range(len(whole.prompts))), target)
    assert bool(drawn.isfinite().all())
    assert digests(denoiser) == before
    row = next(row for row in table("attacks") if row["module"] == module.__name__)
    assert row["works_on"][kind] == "yes"  # what `methods.json` says
    if kind != "sd-epsilon":
        return
    rows = slice(whole.attempts, None) if module.EACH else slice(None)
    again = module.attack(denoiser, target.part(slice(1, 2)) if module.EACH else target, settings, seed=7)
    assert whole.prompts[rows] == again.prompts
    torch.testing.assert_close(told(denoiser, whole)[rows], told(denoiser, again), rtol=1e-3, atol=1e-4)
    if whole.start is not None:
        torch.testing.assert_close(whole.start[rows], again.start, rtol=1e-3, atol=1e-3)
    if whole.patch is not None:
        assert whole.patch.digest == again.patch.digest


def test_survives_saving(ground, method, tmp_path):
    """What is read draws the same latents as what was written."""
    denoiser, target = ground
    module, settings = method
    made = module.attack(denoiser, target, settings)
    made.save(tmp_path / "attack.safetensors")
    loaded = type(made).load(tmp_path / "attack.safetensors")
    assert (loaded.prompts, loaded.attempts, loaded.guided, loaded.early) == (made.prompts, made.attempts, made.guided, made.early)
    assert loaded.curves == made.curves
    assert loaded.figures == made.figures
    seeds = list(range(len(made.prompts)))
    assert torch.equal(loaded.sample(denoiser, seeds, target), made.sample(denoiser, seeds, target))


def test_an_interruption_leaves_the_model(ground, method):
    denoiser, target = ground
    module, settings = method
    before = digests(denoiser)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.attack(denoiser, target, settings, progress=stop)
    assert digests(denoiser) == before
    assert denoiser.rules == []


def test_a_spent_budget_still_leaves_something_to_judge(ground, method, monkeypatch):
    """The clock is over before the first step: what was begun with is returned, and said to be early where there were steps to take."""
    denoiser, target = ground
    module, settings = method
    monkeypatch.setattr(Clock, "over", True)
    passes = denoiser.passes
    found = module.attack(denoiser, target, settings, clock=Clock(1e-9))
    assert found.early == (module.__name__.rpartition(".")[2] not in ("random_prompts", "seed_search"))
    assert not found.curves.get("loss")
    assert denoiser.passes - passes <= 4 * len(found.prompts) * 10  # looks at fixed noise, no search
    assert found.sample(denoiser, list(range(len(found.prompts))), target).shape == (len(found.prompts), *denoiser.latent_shape)


def test_wrong_settings_are_refused_before_anything_is_done(ground, method):
    denoiser, target = ground
    module, _ = method
    passes = denoiser.passes
    with pytest.raises(Misconfigured):
        module.attack(denoiser, target, module.Settings(**WRONG[module.__name__.rpartition(".")[2]]))
    assert denoiser.passes == passes


def test_reports_progress_to_the_end(ground, method):
    denoiser, target = ground
    module, settings = method
    calls = []
    module.attack(denoiser, target, settings, progress=lambda done, total, figures: calls.append((done, total, figures)))
    assert [done for done, _, _ in calls] == list(range(1, calls[0][1] + 1))
    assert all(isinstance(value, float) for _, _, figures in calls for value in figures.values())


def test_settings_can_be_read_without_importing(method):
    module, _ = method
    source = read(module.__name__)
    assert source.summary.endswith((".", "?"))
    assert [(field.name, field.default) for field in source.fields] == [(field.name, field.default) for field in dataclasses.fields(module.Settings)]
    assert all(field.help.endswith(".") for field in source.fields)
    assert not {field.name for field in source.fields} & set(inspect.signature(verbs.attack).parameters)  # they share one command line
    assert source.presets == module.PRESETS
    assert resolve(module.Settings, module.PRESETS, "paper", {}) == module.Settings()
    small = resolve(module.Settings, module.PRESETS, "small", {})
    assert sum(module.cost(small, 16, 20).values()) <= sum(module.cost(module.Settings(), 16, 20).values())
