"""What releases of private data cost: epsilon of Gaussian mechanisms, on all rows or on rows of Poisson samples.

The sums are Opacus's: by Renyi differential privacy (Mironov, Talwar and Zhang, "Renyi differential privacy of the sampled
Gaussian mechanism", 2019), or by the privacy loss distribution, which is tighter (Gopi, Lee and Wutschitz, "Numerical
composition of differential privacy", NeurIPS 2021).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import MissingExtra, UsageError, choices

Accountant = Literal["rdp", "prv"]
ACCOUNTANTS: tuple[Accountant, ...] = get_args(Accountant)
MOST_NOISE = 1e4  # noise multipliers that are searched
CLOSE = 1e-3  # of the search, relative
# Opacus's own orders end at 63, which is far too few where epsilon is small.
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Release:
    """One use of the private data: Gaussian noise on a sum to which one unit adds a vector of bounded length.

    Attributes:
        what: in words.
        noise: standard deviation of the noise over that length (the noise multiplier).
        rate: probability with which each unit is in the sample of a step; 1 where all are used.
        steps: how often it was done.
        delta: probability with which it may fail by itself (values that are published where a noisy count is large).
        gaussian: False for what has no larger Renyi divergences than such noise, but is something else: the privacy loss
            distribution knows nothing of it.
    """

    what: str
    noise: float
    rate: float = 1.0
    steps: int = 1
    delta: float = 0.0
    gaussian: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def opacus() -> Any:
    """The library, or an error that says how to get it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import opacus as library
    except ImportError:
        raise MissingExtra("differential privacy needs Opacus: pip install 'visynth[dp]'.") from None
    return library


def epsilon_of(releases: Sequence[Release], delta: float, accountant: Accountant = "rdp") -> float:
    """Epsilon of all releases together.

    Args:
        releases: in any order; those of no steps are free.
        delta: in (0, 1); what releases fail by themselves is taken off it.
        accountant: ``"rdp"`` or ``"prv"``.

    Raises:
        UsageError: an accountant that does not exist, a delta or noise that cannot be.

    Example:
        >>> round(epsilon_of([Release("training", noise=2.04, rate=1024 / 32561, steps=1590)], 1e-5), 2)
        3.0
        >>> epsilon_of([], 1e-5)
        0.0
    """
    opacus()
    if accountant not in ACCOUNTANTS:
        raise UsageError(f"accountant must be one of {choices(ACCOUNTANTS)}, but got {accountant!r}.")
    if not 0 < delta < 1:
        raise UsageError(f"delta must be in (0, 1), but got {delta:g}.")
    bad = [r for r in releases if r.noise < 0 or not 0 < r.rate <= 1 or r.steps < 0]
    if bad:
        raise UsageError(
            f"a release has noise of at least 0, a rate in (0, 1] and steps of at least 0, but got {bad[0]}."
        )
    used = [r for r in releases if r.steps]
    if not used:
        return 0.0
    if accountant != "rdp" and not all(r.gaussian for r in used):
        raise UsageError(
            f"{choices(r.what for r in used if not r.gaussian)} is counted by Renyi divergences alone: accountant 'rdp'."
        )
    delta -= sum(r.delta for r in used)
    if delta <= 0 or any(r.noise == 0 for r in used):
        return math.inf
    return _by_rdp(used, delta) if accountant == "rdp" else _by_loss_distribution(used, delta)


def _by_rdp(releases: Sequence[Release], delta: float) -> float:
    from opacus.accountants.analysis import rdp

    total = sum(
        (release.steps * _divergences(release.noise, release.rate) for release in releases), np.zeros(len(ORDERS))
    )
    with _quiet_orders():
        epsilon, _ = rdp.get_privacy_spent(orders=list(ORDERS), rdp=total, delta=delta)
    return max(float(epsilon), 0.0)


@cache
def _divergences(noise: float, rate: float) -> NDArray[np.float64]:
    """Renyi divergences of one step ``[orders]``."""
    from opacus.accountants.analysis import rdp

    return np.asarray(rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(ORDERS)))


def _by_loss_distribution(releases: Sequence[Release], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    # A rate of exactly 1 has no subsampled loss variable there; this one differs by nothing that can be seen.
    accountant.history = [(r.noise, min(r.rate, 1 - 1e-9), r.steps) for r in releases]
    with _quiet_orders():  # it bounds its domain by Renyi orders
        return max(float(accountant.get_epsilon(delta, eps_error=0.01)), 0.0)


@contextmanager
def _quiet_orders() -> Iterator[None]:
    """Without the warning that the best order is the largest: epsilon is then larger than need be, and still true."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        yield


def statement(
    releases: Sequence[Release], delta: float, accountant: Accountant, unit: str, sampler: str, **more: Any
) -> dict[str, Any]:
    """What releases cost together, and what that rests on: for cards, checkpoints and reports.

    Args:
        releases: all that the generator learned of the data.
        delta: of all of them.
        accountant: by which the noise was chosen.
        unit: what is protected.
        sampler: how units were drawn, in words.
        more: further entries.
    """
    known: Sequence[Accountant] = ACCOUNTANTS if all(r.gaussian for r in releases) else ("rdp",)
    by = {name: epsilon_of(releases, delta, name) for name in known}
    return {
        "epsilon": by[accountant],
        "delta": delta,
        "accountant": accountant,
        **{f"epsilon by {name}": value for name, value in by.items()},
        "unit": unit,
        "adjacency": f"one {unit} more or less; their number is taken as known",
        "sampler": sampler,
        **more,
        "releases": [release.to_json() for release in releases],
    }


def option_problems(epsilon: float, max_grad_norm: float, **counts: int | None) -> list[str]:
    """What is wrong with options of a private fit, in words.

    Example:
        >>> option_problems(0.0, 1.0, steps=None, batch_size=0)
        ['epsilon must be a number above 0, but got 0.0', 'batch_size must be at least 1, but got 0']
    """
    problems = []
    if not 0 < epsilon < math.inf:
        problems.append(f"epsilon must be a number above 0, but got {epsilon}")
    if not max_grad_norm > 0:
        problems.append(f"max_grad_norm must be above 0, but got {max_grad_norm}")
    for name, value in counts.items():
        if value is not None and value < 1:
            problems.append(f"{name} must be at least 1, but got {value}")
    return problems


def noise_for(
    epsilon: float,
    delta: float,
    rate: float,
    steps: int,
    *,
    before: Sequence[Release] = (),
    accountant: Accountant = "rdp",
) -> float:
    """The least noise multiplier with which some steps, after other releases, stay within an epsilon.

    Args:
        epsilon: of everything together.
        delta: likewise.
        rate: of the Poisson sample of each step.
        steps: of the training.
        before: what was released already.
        accountant: ``"rdp"`` or ``"prv"``.

    Raises:
        UsageError: what was released before costs as much already.

    Example:
        >>> noise = noise_for(3.0, 1e-5, 1024 / 32561, 1590)
        >>> 2.03 < noise < 2.05, epsilon_of([Release("", noise, 1024 / 32561, 1590)], 1e-5) <= 3
        (True, True)
    """

    def spent(noise: float) -> float:
        return epsilon_of([*before, Release("training", noise, rate, steps)], delta, accountant)

    if spent(MOST_NOISE) > epsilon:
        raise UsageError(
            f"epsilon {epsilon:g} is spent already: what was released before the training costs "
            f"{epsilon_of(before, delta, accountant):.3g} (delta {delta:g}). Ask for more, or give preprocessing less."
        )
    low, high = 1e-2, 1.0
    while spent(high) > epsilon:
        low, high = high, 2 * high
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
    return high


def default_delta(units: int) -> float:
    """The largest power of ten below one in the number of units.

    Example:
        >>> default_delta(32_561), default_delta(300)
        (1e-05, 0.001)
    """
    return float(f"1e{-math.floor(math.log10(units)) - 1}")


def check_delta(delta: float | None, units: int) -> float:
    """A delta that is below one in the number of units.

    Raises:
        UsageError: it is not: publishing one unit as it is would be allowed.
    """
    if delta is None:
        return default_delta(units)
    if not 0 < delta < 1 / units:
        raise UsageError(
            f"delta {delta:g} is not below 1/{units} = {1 / units:.2g}: at that delta a generator may publish a unit as it "
            f"is. Take {default_delta(units):g}, or leave it out."
        )
    return float(delta)
