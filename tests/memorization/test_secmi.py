"""Expected values: with a linear denoiser every step multiplies the distance to the centre, so the whole way is a product (float64)."""

import numpy as np

from assay.memorization import secmi


def factor(exact, t, to):
    # x = a c + y; x_0 = (x - s g y) / a = c + y (1 - s g) / a; the next x is a' x_0 + s' g y = a' c + y (a' (1 - s g) / a + s' g).
    (a, s), (b, r), g = exact.scales(t), exact.scales(to), exact.slope(t)
    return b * (1 - s * g) / a + r * g


def test_the_error_is_the_product_of_steps(tape, exact, x0):
    centre = exact.centres()
    away = x0 - exact.scales(0)[0] * centre
    for t in (0, 20, 40):
        away = away * factor(exact, t, t + 20)
    np.testing.assert_allclose(tape.inverted.double(), exact.scales(60)[0] * centre + away, rtol=1e-3, atol=1e-4)
    back = factor(exact, 60, 80) * factor(exact, 80, 60)
    expected = -((back - 1) * away).square().sum((1, 2, 3))
    np.testing.assert_allclose(secmi.stat(tape), expected, rtol=0.02)  # a difference of float32 latents: four digits are lost


def test_a_work_nearer_to_the_centre_scores_higher(tape, exact, x0):
    # The error is proportional to the squared distance from the centre: the order of the works is that of their distances.
    away = (x0 - exact.scales(0)[0] * exact.centres()).square().sum((1, 2, 3)).numpy()
    assert np.argsort(-secmi.stat(tape)).tolist() == np.argsort(away).tolist()
