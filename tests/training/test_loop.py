"""A linear regression small enough to reckon by hand; the uninterrupted run is what a resumed one must equal, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from assay.errors import BadInput, Mismatch, NoRoom
from assay.noise import generator, normal
from assay.training.loop import Run, Schedule, trainable

SCHEDULE = Schedule(steps=12, batch=4, learning_rate=0.05, warmup=3, decay=0.5, ema=0.9)


def toy(folder: Path | None = None, schedule: Schedule = SCHEDULE, plan: str = "plan", **more) -> Run:
    weights = {"w": normal((3, 2), [1])[0].requires_grad_(), "b": torch.zeros(2, requires_grad=True), "unused": torch.ones(2, requires_grad=True)}
    weights["odd"] = torch.zeros(2, requires_grad=True)
    truth = normal((3, 2), [2])[0]

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        x = torch.randn(schedule.batch, 3, generator=rng)
        return (x @ weights["w"] + weights["b"] + (weights["odd"] if step % 2 else 0) - x @ truth).square().mean()

    return Run(weights, loss, schedule, seed=5, folder=folder, plan=plan, **more)


def assert_same(one: Run, other: Run) -> None:
    assert one.losses == other.losses
    for mine, theirs in ((one.parameters, other.parameters), (one.average, other.average)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path):
    whole = toy()
    whole.run()
    for stop in (1, 5, 11):
        toy(tmp_path / str(stop)).run(stop)
        resumed = toy(tmp_path / str(stop))
        assert resumed.step == stop
        resumed.run()
        assert_same(resumed, whole)
        assert_same(toy(tmp_path / str(stop)), whole)  # nothing is left to do
    assert [path.name for path in (tmp_path / "5").iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_without_counts_goes_on_with_the_steps_of_the_run(tmp_path):
    """As earlier versions wrote them."""
    toy(tmp_path).run(5)
    file = tmp_path / "checkpoint.safetensors"
    counts = {name: value for name, value in load_file(file).items() if name.startswith("count/")}
    assert {name: float(value) for name, value in counts.items()} == {"count/w": 5, "count/b": 5, "count/odd": 2}
    with safe_open(file, "pt") as kept:
        about = kept.metadata()
    save_file({name: value for name, value in load_file(file).items() if name not in counts}, file, about)
    resumed = toy(tmp_path)
    assert {float(state["step"]) for state in resumed.optimizer.state.values()} == {5.0}
    assert len(resumed.run()) == SCHEDULE.steps


def test_killed_between_checkpoints_it_goes_on_from_the_last(tmp_path):
    class Killed(Exception):
        pass

    def kill(step: int, *_: object) -> None:
        if step == 8:
            raise Killed

    run = toy(tmp_path)
    with pytest.raises(Killed):
        run.run(every=3, progress=kill)
    resumed = toy(tmp_path)
    assert resumed.step == 6
    resumed.run()
    whole = toy()
    whole.run()
    assert_same(resumed, whole)


def test_a_step_that_was_broken_off_leaves_no_gradient_behind():
    run, whole = toy(), toy()
    whole.run()
    (run.parameters["w"] * 100).sum().backward()
    run.run()
    assert_same(run, whole)


def test_the_first_step_is_adamws():
    # Loshchilov and Hutter 2019, Alg. 2: after one step the moments cancel, so every weight moves by the rate against the sign of its gradient,
    # and decays by rate x weight decay.
    run = toy(schedule=Schedule(steps=1, batch=4, learning_rate=0.05, warmup=1, decay=0.0, clip=1e9, ema=0.9))
    before = run.parameters["w"].detach().clone()
    run.loss(0, generator(5, "step", 0)).backward()
    assert run.parameters["w"].grad is not None
    sign = run.parameters["w"].grad.sign()
    run.run()
    torch.testing.assert_close(run.parameters["w"].detach(), before * (1 - 0.05 * 0.01) - 0.05 * sign, rtol=0, atol=1e-6)
    decay = 2 / 11  # min(0.9, (1 + 1) / (10 + 1))
    torch.testing.assert_close(run.average["w"], decay * before + (1 - decay) * run.parameters["w"].detach(), rtol=0, atol=1e-6)
    run.use_average()
    assert torch.equal(run.parameters["w"], run.average["w"])


def test_losses_fall():
    losses = toy(schedule=Schedule(steps=200, batch=16, learning_rate=0.05, warmup=3)).run()
    assert sum(losses[-20:]) < sum(losses[:20]) / 20


def test_gradients_are_clipped():
    # With a clip of 0 nothing but weight decay moves the weights.
    run = toy(schedule=Schedule(steps=1, batch=4, learning_rate=0.05, warmup=1, decay=0.0, clip=0.0, weight_decay=0.0))
    before = run.parameters["w"].detach().clone()
    run.run()
    assert torch.equal(run.parameters["w"].detach(), before)


def test_the_rate_warms_up_stays_and_falls():
    schedule = Schedule(steps=20, batch=1, learning_rate=2.0, warmup=4, decay=0.5)
    rates = [schedule.rate(step) for step in range(21)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:11] == [2.0] * 7
    assert rates[10:] == pytest.approx([2.0 * left / 10 for left in range(10, -1, -1)])


@given(steps=st.integers(1, 500), more=st.integers(0, 500), warmup=st.integers(0, 50), decay=st.floats(0, 1), rate=st.floats(1e-6, 1), data=st.data())
def test_a_longer_run_shares_its_beginning_with_a_shorter_one(steps, more, warmup, decay, rate, data):
    short, long = (Schedule(steps=count, batch=1, learning_rate=rate, warmup=warmup, decay=decay) for count in (steps, steps + more))
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < short.rate(step) <= rate
    if step < steps * (1 - decay):
        assert short.rate(step) == long.rate(step)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    toy(tmp_path).run(2)
    with pytest.raises(Mismatch, match="another training"):
        toy(tmp_path, plan="other")


def test_a_checkpoint_of_another_length_is_refused_once_the_rates_differ(tmp_path):
    """40 steps fall from step 20 on, 20 from step 10 on: up to there they are one training, after it they are not; 4 steps have none that is done."""

    def of(steps: int) -> Run:
        return toy(tmp_path, schedule=Schedule(steps=steps, batch=4, learning_rate=0.05, warmup=1, decay=0.5))

    of(20).run(10)
    assert of(40).step == 10
    of(20).run(12)
    with pytest.raises(Mismatch, match="20 steps, 12 of them done; one of 40"):
        of(40)
    with pytest.raises(Mismatch, match="one of 4 "):
        of(4)
    assert of(20).step == 12


def test_a_damaged_checkpoint_is_refused(tmp_path):
    toy(tmp_path).run(2)
    file = tmp_path / "checkpoint.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-10], whole[:20], b"", b"x" * 100):
        file.write_bytes(damaged)
        with pytest.raises(BadInput, match="Remove it"):
            toy(tmp_path)


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NoRoom):
        toy(tmp_path / "file" / "folder").run(1)


def test_without_an_average(tmp_path):
    schedule = Schedule(steps=4, batch=4, learning_rate=0.05, ema=0)
    whole = toy(schedule=schedule)
    whole.run()
    last = whole.parameters["w"].detach().clone()
    whole.use_average()
    assert torch.equal(whole.parameters["w"], last)
    toy(tmp_path, schedule).run(2)
    resumed = toy(tmp_path, schedule)
    resumed.run()
    assert_same(resumed, whole)


def test_trainable_parameters_only():
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert list(trainable(module)) == ["weight"]
