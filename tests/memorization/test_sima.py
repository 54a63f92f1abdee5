"""Expected values: norms of an exact linear denoiser's predictions, in float64."""

import dataclasses

import numpy as np

from assay.memorization import sima
from assay.memorization.tape import record

WORDINGS = {"caption": ["red", "red", "blue"], "empty": [""] * 3}


def test_sima_is_the_norm_of_the_prediction_for_the_work_as_it_is(tape, exact, x0):
    expected = -((exact.predict(x0, 150).abs() ** 4).sum((1, 2, 3)) ** 0.25)
    np.testing.assert_allclose(sima.sima(tape), expected, rtol=1e-4)


def test_monte_carlo_takes_the_norm_of_the_mean_over_draws(tape, exact, x0):
    sizes = []
    for place, t in enumerate(exact.passes.timesteps):
        a, s = exact.scales(t)
        draws = [exact.predict(a * x0 + s * noise, t) - noise for noise in tape.noise[:, place].double().unbind(1)]
        sizes.append(((sum(draws) / len(draws)).abs() ** 4).sum((1, 2, 3)) ** 0.25)
    np.testing.assert_allclose(sima.monte_carlo(tape), -np.mean([size.numpy() for size in sizes], 0), rtol=1e-4)


def test_with_many_draws_it_is_the_norm_of_the_expectation(gaussian, exact, latents, x0):
    # For a linear denoiser E e(a x_0 + s n, t) = e(a x_0, t): no noise at all. What is left of 400 draws is (s g - 1) times their mean, of deviation
    # 0.05 a place; it adds in squares to what is there.
    made = record(gaussian, latents, ["a", "b", "c"], WORDINGS, dataclasses.replace(exact.passes, timesteps=(200,), draws=400), seed=0, batch=400)
    expected = (exact.predict(exact.scales(200)[0] * x0, 200).abs() ** 4).sum((1, 2, 3)) ** 0.25
    np.testing.assert_allclose(sima.monte_carlo(made), -expected, rtol=0.02)
