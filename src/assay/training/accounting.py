"""What a differentially private training costs: epsilon for a noise multiplier, and a noise multiplier for an epsilon.

The mechanism is the Gaussian one on Poisson samples, composed over the steps, for neighbours that differ by one work more or less. Opacus's
accountants do the work: `prv` composes the privacy loss itself by Fourier transform (Gopi, Lee and Wutschitz 2021, arXiv 2106.02848) and is tight to
0.01; `rdp` composes Renyi divergences (Mironov, Talwar and Zhang 2019, arXiv 1908.10530; converted as Balle et al. 2020, Thm. 21): quick and loose.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from assay.errors import Misconfigured, Missing, Unsupported

Accountant = Literal["prv", "rdp"]


@dataclass(frozen=True)
class Mechanism:
    """The subsampled Gaussian mechanism, step after step."""

    noise_multiplier: float
    """Deviation of the noise over the largest norm of one work's gradient; 0 promises nothing."""
    sampling_rate: float
    """Probability that a work is in a step."""
    steps: int
    """How many steps were taken."""

    def epsilon(self, delta: float, accountant: Accountant = "prv") -> float:
        """Return the epsilon of (epsilon, delta)-differential privacy, an upper bound; infinite without noise.

        Args:
            delta: probability that the bound fails, between 0 and 1; below 1 / works to mean anything.
            accountant: who reckons.

        Raises:
            Misconfigured: a number is out of its range.
            Missing: Opacus is not installed.
            Unsupported: the accountant cannot reckon this mechanism.
        """
        self._check(delta)
        if self.steps == 0:
            return 0.0
        if self.noise_multiplier == 0:
            return math.inf
        return _told(self, delta, accountant)

    def _check(self, delta: float) -> None:
        if not (0 <= self.noise_multiplier < math.inf and 0 < self.sampling_rate <= 1 and self.steps >= 0 and 0 < delta < 1):
            raise Misconfigured(
                f"Noise of {self.noise_multiplier}, sampling rate {self.sampling_rate}, {self.steps} steps and delta {delta} are no mechanism.",
                "Noise and steps are not negative, the rate is in (0, 1] and delta in (0, 1).",
            )


@cache
def noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int, accountant: Accountant = "prv") -> float:
    """Return the least noise that keeps to a budget, to one part in a thousand; 0 for an infinite epsilon.

    Args:
        epsilon: the budget, positive.
        delta: probability that the bound fails.
        sampling_rate: probability that a work is in a step.
        steps: how many will be taken.
        accountant: who reckons.

    Raises:
        Misconfigured: a number is out of its range.
        Missing: Opacus is not installed.
        Unsupported: the accountant cannot reckon it, or no noise suffices.
    """
    if not epsilon > 0 or steps < 1:
        raise Misconfigured(f"A budget of {epsilon} over {steps} steps cannot be kept.", "Give a positive epsilon, and one step or more.")
    Mechanism(1.0, sampling_rate, steps)._check(delta)
    if math.isinf(epsilon):
        return 0.0

    def spent(noise: float) -> float:
        return Mechanism(noise, sampling_rate, steps).epsilon(delta, accountant)

    # Renyi's bound is quick and near: it says where to begin.
    high = noise_multiplier(epsilon, delta, sampling_rate, steps, "rdp") if accountant == "prv" else 1.0
    step = 1.25 if accountant == "prv" else 2.0
    while spent(high) > epsilon:
        high *= step
        if high > 2**20:
            raise Unsupported(f"No noise keeps epsilon {epsilon:g} at delta {delta:g} over {steps} steps.", "Allow more, or take fewer steps.")
    low = high / step
    while low > 2**-6 and spent(low) <= epsilon:  # below that no accountant answers, nor would it mean much
        low, high = low / step, low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
    return high


def _told(mechanism: Mechanism, delta: float, accountant: Accountant) -> float:
    try:
        from opacus.accountants import PRVAccountant, RDPAccountant
    except ImportError as error:
        raise Missing("Accounting for privacy needs Opacus.", "Run `pip install 'assay[privacy]'`.") from error
    kinds: dict[str, Any] = {"prv": PRVAccountant, "rdp": RDPAccountant}
    if accountant not in kinds:
        raise Misconfigured(f"There is no accountant `{accountant}`.", f"Choose one of {', '.join(kinds)}.")
    if accountant == "prv" and mechanism.sampling_rate == 1:
        raise Unsupported("The accountant `prv` divides by the share of works left out, which is none at a sampling rate of 1.", "Use `rdp`.")
    told = kinds[accountant]()
    told.history = [(mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the best order is the last: the bound holds, only looser
            found = float(told.get_epsilon(delta=delta))
    except (ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise Unsupported(f"The accountant `{accountant}` gives up: {error}.", "Use the other one, or more noise.") from error
    if math.isnan(found):
        raise Unsupported(f"The accountant `{accountant}` finds no epsilon.", "Use the other one, or more noise.")
    return found
