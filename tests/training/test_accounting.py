"""Against figures published by others and against the mechanism's own divergence, which for one step has a closed form."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr

from assay.errors import Misconfigured, Missing, Unsupported
from assay.training.accounting import Mechanism, noise_multiplier


def classical(mechanism: Mechanism, delta: float) -> float:
    """Opacus's Renyi divergences, converted as was usual before 2020: RDP + log(1 / delta) / (order - 1) (Mironov 2017, Prop. 3)."""
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = [1 + tenth / 10 for tenth in range(1, 100)] + list(range(12, 64))
    spent = compute_rdp(q=mechanism.sampling_rate, noise_multiplier=mechanism.noise_multiplier, steps=mechanism.steps, orders=orders)
    return float((np.asarray(spent) - math.log(delta) / (np.array(orders) - 1)).min())


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "published"),
    [
        (1.12, 256 / 60000, 60 * 60000 // 256, 2.92),  # the table of TensorFlow Privacy's tutorial on MNIST
        (1.2, 256 / 60000, 10 * 60000 // 256, 1.20),
        (4.0, 0.01, 10000, 1.26),  # Abadi et al. 2016, Sec. 3.2 (Fig. 2, epoch 100): the moments accountant
    ],
)
def test_meets_published_values(noise, rate, steps, published):
    mechanism = Mechanism(noise, rate, steps)
    assert classical(mechanism, 1e-5) == pytest.approx(published, abs=0.015)
    tight, loose = mechanism.epsilon(1e-5, "prv"), mechanism.epsilon(1e-5, "rdp")
    assert tight < loose < published


def one_step(epsilon: float, noise: float, rate: float) -> float:
    """delta of one step when a work is added: P = (1 - q) N(0, s^2) + q N(1, s^2) against Q = N(0, s^2), the integral of (P - e^epsilon Q)+.

    The ratio P / Q = 1 - q + q exp((2 x - 1) / (2 s^2)) grows with x, so that the integral is over x above where it is e^epsilon. That direction is
    the larger one (Mironov, Talwar and Zhang 2019, Thm. 5).
    """
    x = noise**2 * math.log((math.exp(epsilon) - 1 + rate) / rate) + 0.5
    return float(rate * ndtr((1 - x) / noise) + (1 - rate - math.exp(epsilon)) * ndtr(-x / noise))


@pytest.mark.parametrize(("noise", "rate"), [(0.7, 0.1), (1.0, 0.99)])
def test_one_step_is_its_closed_form(noise, rate):
    exact = brentq(lambda epsilon: one_step(epsilon, noise, rate) - 1e-5, 1e-6, 60)
    mechanism = Mechanism(noise, rate, 1)
    assert exact <= mechanism.epsilon(1e-5, "prv") <= exact + 0.03  # its error is 0.01 to each side
    assert exact <= mechanism.epsilon(1e-5, "rdp")


def test_without_sampling_it_is_the_gaussian_mechanism():
    """Balle and Wang 2018, Thm. 8: delta = Phi(1 / 2s - e s) - exp(e) Phi(-1 / 2s - e s); T steps of s are one of s / sqrt(T)."""
    noise = 4.0 / 3
    exact = brentq(lambda e: ndtr(0.5 / noise - e * noise) - math.exp(e) * ndtr(-0.5 / noise - e * noise) - 1e-5, 0, 50)
    assert exact <= Mechanism(4.0, 1.0, 9).epsilon(1e-5, "rdp") <= 1.1 * exact
    with pytest.raises(Unsupported, match="rdp"):
        Mechanism(4.0, 1.0, 9).epsilon(1e-5, "prv")


def test_the_least_noise_keeps_to_the_budget():
    epsilon = 0.5
    noise = noise_multiplier(epsilon, 1e-5, 0.05, 100, "rdp")
    assert Mechanism(noise, 0.05, 100).epsilon(1e-5, "rdp") <= epsilon < Mechanism(noise / 1.002, 0.05, 100).epsilon(1e-5, "rdp")
    tighter = noise_multiplier(epsilon, 1e-5, 0.05, 100, "prv")
    assert 0.8 * noise < tighter < noise
    assert Mechanism(tighter, 0.05, 100).epsilon(1e-5, "prv") <= epsilon


def test_the_ends_of_the_scale():
    assert noise_multiplier(math.inf, 1e-5, 0.1, 10) == 0
    assert Mechanism(0.0, 0.1, 10).epsilon(1e-5) == math.inf
    assert Mechanism(1.0, 0.1, 0).epsilon(1e-5) == 0


def test_refuses_what_is_no_mechanism():
    for wrong in (Mechanism(-1, 0.1, 1), Mechanism(1, 0.0, 1), Mechanism(1, 1.1, 1), Mechanism(1, 0.1, -1), Mechanism(math.nan, 0.1, 1)):
        with pytest.raises(Misconfigured, match="no mechanism"):
            wrong.epsilon(1e-5)
    for epsilon, steps in ((0, 10), (-1, 10), (math.nan, 10), (1, 0)):
        with pytest.raises(Misconfigured, match="budget"):
            noise_multiplier(epsilon, 1e-5, 0.1, steps)
    with pytest.raises(Misconfigured, match="delta"):
        noise_multiplier(1.0, 1.0, 0.1, 10)
    with pytest.raises(Misconfigured, match="accountant"):
        Mechanism(1, 0.1, 1).epsilon(1e-5, "gdp")  # pyright: ignore[reportArgumentType]


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(Missing, match=r"assay\[privacy\]"):
        Mechanism(1.0, 0.1, 10).epsilon(1e-5)
    assert Mechanism(0.0, 0.1, 10).epsilon(1e-5) == math.inf  # without noise there is nothing to reckon
