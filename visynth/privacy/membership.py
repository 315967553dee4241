"""Membership inference: how well a score tells members (what a generator was trained on) from controls (what it was not).

Attacks give scores, higher where membership is likelier; here they become an area under the ROC curve and hits at low
false-positive rates, with intervals. Nothing here is a guarantee, and figures by record are never given out: they would be a
leak themselves (Ganev and De Cristofaro, S&P 2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError

Floats = NDArray[np.float64]
RATES = (0.01, 0.001)  # false-positive rates at which hits are told
LEVEL = 0.95
FEW = 5  # on a side, below which even a perfect order may be luck: of five and five it is one in 252
SURE = 3.0  # standard errors from which a leak is said: of twenty attacks that find nothing, hardly one passes
SURE_CONTROLS = 10  # controls above a threshold, below which the threshold itself is too uncertain to say a leak


@dataclass(frozen=True)
class Membership:
    """Outcome of one membership inference.

    Attributes:
        attack: its name.
        auc: area under the ROC curve: 0.5 where members cannot be told from controls.
        low: lower end of its 95 % interval.
        high: upper end.
        hits: by false-positive rate, the share of members found with its 95 % interval (Clopper-Pearson); a rate below
            one in the number of controls is not claimed.
        members: rows attacked.
        controls: rows held against them.
        leaks: whether more than chance was shown: the area by three standard errors, or hits by as much.
    """

    attack: str
    auc: float
    low: float
    high: float
    hits: dict[str, tuple[float, float, float]]
    members: int
    controls: int
    leaks: bool


def membership(name: str, members: Floats, controls: Floats, seed: int = 0) -> Membership:
    """How well a score tells members from controls.

    Args:
        name: of the attack.
        members: scores, higher where membership is likelier ``[N]``.
        controls: scores ``[M]``.
        seed: of the interval's resampling.

    Raises:
        DataError: scores that are not finite.

    Example:
        >>> outcome = membership("copy", np.ones(50), np.zeros(50))
        >>> outcome.auc, outcome.leaks
        (1.0, True)
    """
    if not (np.isfinite(members).all() and np.isfinite(controls).all()):
        raise DataError(f"the attack {name!r} gives scores that are no finite numbers: nothing can be said of it.")
    whole = area(members, controls)
    generator = seeding.rng(seed, f"attack/{name}")
    draws = [
        area(generator.choice(members, len(members)), generator.choice(controls, len(controls))) for _ in range(200)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    sure = whole - 0.5 > SURE * float(np.std(draws)) and min(len(members), len(controls)) >= FEW
    hits = {f"{rate:g}": _hits(members, controls, rate) for rate in RATES if rate * len(controls) >= 1}
    certain = {rate: own for rate, own in hits.items() if float(rate) * len(controls) >= SURE_CONTROLS}
    sure |= any(
        clopper_pearson(round(h * len(members)), len(members), 0.9973)[0] > 2 * float(r)
        for r, (h, _, _) in certain.items()
    )
    return Membership(name, whole, float(low), float(high), hits, len(members), len(controls), sure)


def area(members: Floats, controls: Floats) -> float:
    """Area under the ROC curve: the chance that a member's score is above a control's; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([members, controls]))[: len(members)].sum()
    return float((ranks - len(members) * (len(members) + 1) / 2) / (len(members) * len(controls)))


def _hits(members: Floats, controls: Floats, rate: float) -> tuple[float, float, float]:
    """Members above the score that at most a share of the controls exceeds, with the interval."""
    threshold = np.sort(controls)[-int(np.floor(rate * len(controls))) - 1]
    found = int((members > threshold).sum())
    low, high = clopper_pearson(found, len(members))
    return found / len(members), low, high


def clopper_pearson(found: int, of: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson, Biometrika 1934).

    Example:
        >>> tuple(round(v, 4) for v in clopper_pearson(0, 100))
        (0.0, 0.0362)
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if found == 0 else float(beta.ppf(tail, found, of - found + 1))
    high = 1.0 if found == of else float(beta.ppf(1 - tail, found + 1, of - found))
    return low, high


def closer_share(
    members: tuple[Floats, NDArray[np.int64]], controls: tuple[Floats, NDArray[np.int64]]
) -> tuple[float, float, float]:
    """Share of synthetic records that are closer to a member than to any of as many controls, with its 95 % interval: 0.5 is
    chance, and ties count half.

    Args:
        members: distance ``[M]`` of each synthetic record to the nearest member, and which one that is ``[M]``.
        controls: the same of controls.

    Example:
        >>> near, far = (np.zeros(50), np.arange(50)), (np.ones(50), np.arange(50))
        >>> closer_share(near, far)[0], closer_share(near, near)[0]
        (1.0, 0.5)
    """
    (first, ours), (second, theirs) = members, controls
    wins = (first < second) + (first == second) / 2
    share = float(wins.mean())
    # Who is nearest to several synthetic records counts several times: its side is one coin, not many.
    weights = [np.bincount(ours, wins), np.bincount(theirs, 1 - wins)]
    spread = float(np.sqrt(sum((w**2).sum() for w in weights))) / (2 * len(wins))
    return share, share - 1.96 * spread, share + 1.96 * spread
