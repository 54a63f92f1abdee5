"""Expected values: words counted by hand, means of errors on the tape, and quartiles by hand."""

import numpy as np
import pytest

from assay.memorization import clid


def test_captions_are_cut_by_words():
    assert clid.reduced("a red fox, noto style", 4) == ["", "a", "a red", "a red fox,"]  # floor(5 i / 4) = 0, 1, 2, 3
    assert clid.reduced("fox", 3) == ["", "", ""]
    assert clid.names(3) == ["empty", "reduced 1", "reduced 2"]


def test_discrepancy_is_the_mean_fall_of_the_loss(tape):
    losses = {name: ((tape.noised[name] - tape.noise).double() ** 2).mean((1, 2, 3, 4, 5)).numpy() for name in ("caption", "empty", "another")}
    expected = (losses["empty"] + losses["another"]) / 2 - losses["caption"]
    np.testing.assert_allclose(clid.discrepancy(tape, pieces=("empty", "another")), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(clid.discrepancy(tape, "another"), losses["empty"] - losses["another"], rtol=1e-4, atol=1e-7)
    assert clid.discrepancy(tape, "empty") == pytest.approx(0)


def test_scales_come_from_the_reference_alone():
    # Of 0, 1, 2, 3, 4 the median is 2 and the quartiles are 1 and 3; of 0, 10, ..., 40 they are 20, 10 and 30.
    discrepancies, losses = np.array([0.0, 1, 2, 3, 4, 100]), np.array([0.0, 10, 20, 30, 40, -60])
    reference = np.arange(6) < 5
    expected = 0.9 * (discrepancies - 2) / 2 + 0.1 * (losses - 20) / 20
    np.testing.assert_allclose(clid.combined(discrepancies, losses, reference), expected)


def test_scores_that_do_not_differ_are_no_division_by_zero():
    np.testing.assert_allclose(clid.combined(np.ones(4), np.zeros(4), np.ones(4, bool)), 0)
