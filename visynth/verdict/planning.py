"""What a test will see, before anybody trains: the smallest effect by the number of test groups, and groups by effect.

The standard error of a difference in AP falls with the root of the number of test groups of the class. Its size is that of
the simulated scores of ``scripts/bench/verdict.py``, which have the variances of a real set (magnetic_tile); another set has
others, so that this is a plan and no promise.
"""

from __future__ import annotations

ERROR = 0.171  # of the difference in AP for one test group, with 10 draws; 0.060 at 8 groups, 0.037 at 20
ONE_DRAW = 1.6  # times as much with one draw
DRAWS = 10
MOST = 2000  # groups that are looked at


def error(groups: int, draws: int = DRAWS) -> float:
    """Standard error of the difference in AP."""
    fall = (ONE_DRAW**2 - 1) / (1 - 1 / DRAWS)  # of the variance, the part that draws take away
    whole = ERROR**2 * (1 + fall * (1 / draws - 1 / DRAWS))
    return float((whole / groups) ** 0.5)


def smallest_effect(groups: int, draws: int = DRAWS, alpha: float = 0.025, power: float = 0.8) -> float:
    """Smallest gain in AP that is found with a power of 80 %, one-sided; infinite below two groups.

    Example:
        >>> round(smallest_effect(8), 2), round(smallest_effect(20), 2)
        (0.2, 0.11)
    """
    from scipy.stats import t

    if groups < 2:
        return float("inf")
    return float(t.ppf(1 - alpha, groups - 1) + t.ppf(power, groups - 1)) * error(groups, draws)


def groups_for(effect: float, draws: int = DRAWS, alpha: float = 0.025, power: float = 0.8) -> int | None:
    """Test groups of the class that find an effect with a power of 80 %; None where not even 2,000 do.

    Example:
        >>> groups_for(0.1)
        25
    """
    return next((n for n in range(2, MOST + 1) if smallest_effect(n, draws, alpha, power) <= effect), None)
