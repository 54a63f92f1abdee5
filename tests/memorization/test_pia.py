"""Expected values: the two predictions of an exact linear denoiser, in float64."""

import numpy as np
import pytest

from assay.memorization import pia


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_pia_of_a_linear_denoiser(tape, exact, x0, power):
    # e_0 = g_0 (x_0 - a_0 c); the second is g_t (a_t (x_0 - c) + s_t e_0).
    first = exact.slope(0) * (x0 - exact.scales(0)[0] * exact.centres())
    a, s = exact.scales(500)
    second = exact.slope(500) * (a * (x0 - exact.centres()) + s * first)
    expected = -(((first - second).abs() ** power).sum((1, 2, 3)) ** (1 / power))
    np.testing.assert_allclose(pia.pia(tape, power), expected, rtol=1e-4)
    start = first / first.abs().mean((1, 2, 3), keepdim=True) * (2 / np.pi) ** 0.5
    second = exact.slope(500) * (a * (x0 - exact.centres()) + s * start)
    expected = -(((start - second).abs() ** power).sum((1, 2, 3)) ** (1 / power))
    np.testing.assert_allclose(pia.pian(tape, power), expected, rtol=1e-4)
