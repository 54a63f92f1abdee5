"""Expected values: for Gaussian data the error is a linear function of noise and work, written out in float64."""

import numpy as np
import pytest

from assay.memorization import loss


def errors(exact, x0, tape, wording):
    rows = []
    for place, t in enumerate(exact.passes.timesteps):
        a, s = exact.scales(t)
        noise = tape.noise[:, place].double()  # (n, draws, ...)
        x_t = a * x0[:, None] + s * noise
        predicted = exact.slope(t) * (x_t - a * exact.centres(wording)[:, None])
        rows.append((predicted - noise).square().mean((2, 3, 4)).mean(1).numpy())
    return np.stack(rows, 1)


def test_plain_loss_and_its_timesteps(tape, exact, x0):
    for wording in ("caption", "another"):
        expected = errors(exact, x0, tape, wording)
        np.testing.assert_allclose(loss.by_timestep(tape, wording), -expected, rtol=1e-4)
        np.testing.assert_allclose(loss.plain(tape, wording), -expected.mean(1), rtol=1e-4)


def test_calibration_is_the_fall_of_the_logarithm(tape, exact, x0):
    there, here = errors(exact, x0, tape, "empty"), errors(exact, x0, tape, "caption")
    np.testing.assert_allclose(loss.calibrated(tape), np.log(there / here).mean(1), rtol=1e-3, atol=1e-5)


def test_calibration_cancels_what_both_wordings_share(tape):
    # Errors ten times as large at one timestep under both wordings leave the score where it was, and drag the plain loss.
    import dataclasses

    grown = {name: tensor.clone() for name, tensor in tape.noised.items()}
    for tensor in grown.values():
        tensor[:, 0] = tape.noise[:, 0] + 10**0.5 * (tensor[:, 0] - tape.noise[:, 0])
    harder = dataclasses.replace(tape, noised=grown)
    np.testing.assert_allclose(loss.calibrated(harder), loss.calibrated(tape), atol=1e-4)
    assert (loss.plain(harder) < 2 * loss.plain(tape)).all()


def test_a_wording_against_itself_is_nothing(tape):
    assert loss.calibrated(tape, "empty") == pytest.approx(0)
