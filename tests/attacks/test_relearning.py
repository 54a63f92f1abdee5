"""Relearning: an adapter of the declared group, on top of patches, that lowers the loss on what it learned from."""

import dataclasses

import pytest
import torch

from assay.attacks.relearning import Settings, attack
from assay.attacks.target import Clock
from assay.concept import Concept
from assay.erasure import uce
from assay.patched import Patched
from assay.testing import tiny_target


def test_the_adapter_is_low_rank_and_of_its_group(sd):
    """Matrices of the attention layers alone, and a rank of at most 2."""
    made = attack(sd, tiny_target(sd), Settings(rank=2, steps=2, batch=1, learning_rate=1e-2)).patch
    assert set(made.names) == {name for name, weight in sd.group("attention").items() if weight.ndim == 2}
    assert all(int(torch.linalg.matrix_rank(made.change(name))) <= 2 for name in made.names)


def test_training_lowers_the_loss_on_what_it_learned_from(sd):
    """On fixed noise, the examples under their captions, without and with the adapter."""
    target = tiny_target(sd)
    found = attack(sd, target, Settings(steps=15, batch=3, learning_rate=2e-2))
    learned = dataclasses.replace(target, prompts=target.captions, latents=target.examples, seeds=(1, 2, 3))
    told = sd.conditioning(target.captions)
    before = learned.measure(sd, told)
    with Patched(sd, [(found.patch, 1.0)]):
        after = learned.measure(sd, told)
        of_target = target.measure(sd, sd.conditioning(target.prompts))
    assert float(after.mean()) < float(before.mean())
    torch.testing.assert_close(torch.tensor(found.figures["loss.after"]), of_target, rtol=1e-3, atol=1e-4)


def test_it_goes_on_top_of_patches_and_comes_off(sd):
    """Drawn through the attack, latents differ from the patched model's; afterwards the patched model draws as before."""
    target = tiny_target(sd)
    erased = uce.erase(sd, Concept("green", anchor="blue"))
    with Patched(sd, [(erased, 1.0)]):
        plain = sd.sample(target.prompts, [1, 2], steps=target.steps)
        found = attack(sd, target, Settings(steps=3, batch=1, learning_rate=1e-1))
        assert not torch.equal(found.sample(sd, [1, 2], target), plain)
        assert torch.equal(sd.sample(target.prompts, [1, 2], steps=target.steps), plain)


def test_an_interrupted_training_goes_on(sd, tmp_path):
    """Stopped after 20 of 22 steps and called again, it ends with the adapter of a training left alone."""
    target, settings = tiny_target(sd), Settings(rank=1, group="cross_attention", steps=22, batch=1)
    whole = attack(sd, target, settings)

    def stop(done, *_):
        if done == 21:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack(sd, target, settings, progress=stop, folder=tmp_path)
    assert list(tmp_path.iterdir())
    calls = []
    again = attack(sd, target, settings, progress=lambda done, *_: calls.append(done), folder=tmp_path, clock=Clock(600))
    assert calls[0] == 21
    assert again.patch.digest == whole.patch.digest
    assert not list(tmp_path.iterdir())


def test_on_an_erasure_that_changes_nothing_it_has_succeeded_before_it_begins(sd):
    """UCE of strength 0, and steps too small to be seen: loss and pictures before and after are those of the base."""
    target, nothing = tiny_target(sd), Settings(steps=1, batch=1, learning_rate=1e-12)
    base = target.measure(sd, sd.conditioning(target.prompts))
    drawn = sd.sample(target.prompts, [1, 2], steps=target.steps)
    identity = uce.erase(sd, Concept("green", anchor="blue")).scaled(0.0)
    with Patched(sd, [(identity, 1.0)]):
        found = attack(sd, target, nothing)
        for name in ("loss.before", "loss.after"):
            assert found.figures[name] == pytest.approx(base.tolist(), rel=1e-4)
        torch.testing.assert_close(found.sample(sd, [1, 2], target), drawn, rtol=1e-3, atol=1e-3)
