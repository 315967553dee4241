"""What releases cost, against closed forms that were not written by the same hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from visynth.core.errors import UsageError
from visynth.privacy.accounting import ACCOUNTANTS, Release, check_delta, default_delta, epsilon_of, noise_for


def exact(noise: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism: Balle and Wang, "Improving the Gaussian mechanism" (ICML 2018), theorem 8."""
    mu = 1 / noise

    def excess(epsilon: float) -> float:
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - delta)

    return float(brentq(excess, 0, 100))


@pytest.mark.parametrize("noise", [0.8, 2.0, 10.0])
@pytest.mark.parametrize("times", [1, 9])
def test_gaussian_mechanisms_cost_what_their_closed_form_says(noise: float, times: int) -> None:
    truth = exact(noise / math.sqrt(times), 1e-5)  # equal mechanisms compose to one with less noise
    loose, tight = (epsilon_of([Release("", noise, 1.0, times)], 1e-5, accountant) for accountant in ACCOUNTANTS)
    assert truth <= tight <= truth + 0.03
    assert truth <= loose <= 1.35 * truth + 0.05


def test_renyi_divergences_of_full_batches_are_alpha_over_two_sigma_squared() -> None:
    """Mironov (2017), table II, and the conversion of Canonne, Kamath and Steinke (2020), proposition 12."""
    orders = np.array(
        [*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024]
    )
    rdp = 7 * orders / (2 * 3.0**2)
    epsilons = rdp + np.log1p(-1 / orders) - (math.log(1e-6) + np.log(orders)) / (orders - 1)
    assert epsilon_of([Release("", 3.0, 1.0, 7)], 1e-6) == pytest.approx(epsilons.min(), rel=1e-9)


def test_known_schedules() -> None:
    """N = 32,561, delta 1e-5: figures of Opacus 1.6, whose orders end at 63."""
    for epsilon, noise in ((1, 5.20), (3, 2.04), (10, 0.95)):
        assert noise_for(epsilon, 1e-5, 1024 / 32561, 1590) == pytest.approx(noise, rel=0.01)


def test_the_noise_is_the_least_that_stays_within_epsilon() -> None:
    for accountant in ACCOUNTANTS:
        noise = noise_for(2.0, 1e-4, 0.05, 200, accountant=accountant)
        assert epsilon_of([Release("", noise, 0.05, 200)], 1e-4, accountant) <= 2.0
        assert epsilon_of([Release("", 0.99 * noise, 0.05, 200)], 1e-4, accountant) > 2.0


def test_what_was_spent_before_is_counted() -> None:
    before = [Release("histograms", 20.0, 1.0, 3)]
    alone, after = noise_for(1.0, 1e-5, 0.1, 50), noise_for(1.0, 1e-5, 0.1, 50, before=before)
    assert after > alone
    assert epsilon_of([*before, Release("", after, 0.1, 50)], 1e-5) <= 1.0
    with pytest.raises(UsageError, match="spent already"):
        noise_for(1.0, 1e-5, 0.1, 50, before=[Release("", 0.5)])


def test_a_release_that_fails_by_itself_takes_its_delta() -> None:
    plain, failing = Release("", 3.0), Release("", 3.0, delta=0.5e-5)
    assert epsilon_of([failing], 1e-5) == epsilon_of([plain], 0.5e-5)
    assert epsilon_of([failing], 0.5e-5) == math.inf


def test_no_noise_is_no_privacy_and_no_step_costs_nothing() -> None:
    assert epsilon_of([Release("", 0.0)], 1e-5) == math.inf
    assert epsilon_of([Release("", 0.0, steps=0)], 1e-5) == 0.0


def test_delta_stays_below_one_in_the_number_of_units() -> None:
    assert default_delta(1000) == 1e-4 < 1 / 1000
    assert check_delta(None, 1797) == 1e-4
    assert check_delta(1e-3, 999) == 1e-3
    for bad in (1e-3, 0.5, 0.0, -1.0):
        with pytest.raises(UsageError, match="below 1/1000"):
            check_delta(bad, 1000)


def test_wrong_arguments_name_what_is_allowed() -> None:
    with pytest.raises(UsageError, match="'rdp', 'prv'"):
        epsilon_of([], 1e-5, "gdp")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="delta"):
        epsilon_of([], 1.5)
    with pytest.raises(UsageError, match="rate"):
        epsilon_of([Release("", 1.0, rate=2.0)], 1e-5)
