"""From scores to a verdict: bootstrap over draws and groups, paired differences, what the test could have seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding

Floats = NDArray[np.float64]
HELPS, DOES_NOT, CANNOT_TELL = "helps", "does not", "cannot tell"


@dataclass(frozen=True)
class Scored:
    """One arm on one cell's test images.

    Attributes:
        draw: of the cell.
        truth: whether each image is of the class, bool ``[N]``.
        scores: float ``[N]``.
        groups: of each image.
        weights: images of the set that each stands for, float ``[N]``; 1 where None.
    """

    draw: int
    truth: NDArray[np.bool_]
    scores: Floats
    groups: Sequence[str]
    weights: Floats | None = None


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap percentile interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        return {name: (round(value, 5) if np.isfinite(value) else None) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Verdict:
    """Answer for one class, with its reason in a sentence."""

    answer: str
    reason: str
    difference: Interval
    baseline: str
    detectable: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.difference.to_json(), "detectable": round(self.detectable, 5)}


class Bootstrap:
    """Weights per draw and group, the same for every arm, so that differences are paired.

    Draws are resampled, and groups are resampled twice over: those with positives and those without, each among
    themselves, so that no replicate is without positives. Davison and Hinkley, "Bootstrap methods" (1997), section 3.8.
    """

    def __init__(self, cells: Sequence[Scored], replicates: int = 1000, seed: int = 0) -> None:
        generator = seeding.rng(seeding.derive("bootstrap", seed), "weights")
        positive = {g for cell in cells for g, true in zip(cell.groups, cell.truth, strict=True) if true}
        names = sorted({g for cell in cells for g in cell.groups})
        self.index = {name: place for place, name in enumerate(names)}
        self.groups = np.zeros((replicates, len(names)))
        for kind in (True, False):
            own = np.array([place for place, name in enumerate(names) if (name in positive) is kind], dtype=np.int64)
            if len(own):
                self.groups[:, own] = generator.multinomial(len(own), np.full(len(own), 1 / len(own)), replicates)
        draws = sorted({cell.draw for cell in cells})
        self.draw_index = {draw: place for place, draw in enumerate(draws)}
        self._means: dict[tuple[int, str, float], tuple[Sequence[Scored], tuple[float, Floats]]] = {}
        self.draws = generator.multinomial(len(draws), np.full(len(draws), 1 / len(draws)), replicates).astype(
            np.float64
        )

    def mean(self, cells: Sequence[Scored], metric: str, level: float = 0.05) -> tuple[float, Floats]:
        """A metric's mean over cells, and its replicates ``[R]``; worked out once for each arm, which many comparisons ask for.

        Args:
            cells: of one arm.
            metric: ``"ap"``, ``"recall"`` (at a false-positive rate of ``level``) or ``"recall at precision"`` (of ``level``).
            level: of a recall.
        """
        key = id(cells), metric, level
        if key not in self._means:
            self._means[key] = (
                cells,
                self._mean(cells, metric, level),
            )  # the cells are kept, so that their id stays theirs
        return self._means[key][1]

    def _mean(self, cells: Sequence[Scored], metric: str, level: float) -> tuple[float, Floats]:
        measures: dict[str, Callable[..., Floats]] = {
            "ap": weighted_ap,
            "recall": partial(weighted_recall, fpr=level),
            "recall at precision": partial(weighted_recall_at_precision, least=level),
        }
        measure = measures[metric]
        total, weight = np.zeros(len(self.groups)), np.zeros(len(self.groups))
        points = []
        for cell in cells:
            places = np.array([self.index[g] for g in cell.groups])
            weights = np.ones(len(places)) if cell.weights is None else cell.weights
            values = measure(cell.truth, cell.scores, self.groups[:, places] * weights)
            draws = self.draws[:, self.draw_index[cell.draw]] * np.isfinite(values)
            total += draws * np.nan_to_num(values)
            weight += draws
            points.append(float(measure(cell.truth, cell.scores, weights[None])[0]))
        return float(np.nanmean(points)), np.where(weight > 0, total / np.maximum(weight, 1e-12), np.nan)


def weighted_ap(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Average precision ``[R]`` for R rows of image weights; ties are broken against the class.

    Example:
        >>> truth, scores = np.array([True, False, True]), np.array([0.9, 0.8, 0.7])
        >>> weighted_ap(truth, scores, np.ones((1, 3))).round(4).tolist()
        [0.8333]
    """
    order = np.lexsort((truth, -scores))
    positive = truth[order]
    ordered = weights[:, order]
    hits = np.cumsum(ordered * positive, axis=1)
    precision = hits / np.maximum(np.cumsum(ordered, axis=1), 1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((precision * ordered * positive).sum(axis=1) / hits[:, -1])


def weighted_recall(truth: NDArray[np.bool_], scores: Floats, weights: Floats, fpr: float = 0.05) -> Floats:
    """Recall ``[R]`` at a false-positive rate of at most ``fpr``, for R rows of image weights."""
    order = np.lexsort((truth, -scores))
    positive = truth[order]
    ordered = weights[:, order]
    hits, alarms = np.cumsum(ordered * positive, axis=1), np.cumsum(ordered * ~positive, axis=1)
    allowed = alarms <= fpr * alarms[:, -1:] + 1e-9
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((hits * allowed).max(axis=1) / hits[:, -1])


def weighted_recall_at_precision(
    truth: NDArray[np.bool_], scores: Floats, weights: Floats, least: float = 0.5
) -> Floats:
    """Largest recall ``[R]`` at a precision of at least ``least``, for R rows of weights; ties against the class.

    Example:
        >>> truth, scores = np.array([True, False, True]), np.array([0.9, 0.8, 0.7])
        >>> weighted_recall_at_precision(truth, scores, np.ones((1, 3)), 0.9).tolist()
        [0.5]
    """
    order = np.lexsort((truth, -scores))
    positive, ordered = truth[order], weights[:, order]
    hits = np.cumsum(ordered * positive, axis=1)
    enough = hits >= least * np.cumsum(ordered, axis=1) - 1e-9
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((hits * enough).max(axis=1) / hits[:, -1])


def interval(point: float, replicates: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of a confidence level; NaN limits where no replicate is finite."""
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return Interval(point, float("nan"), float("nan"))
    tail = 50 * (1 - level)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Interval(point, float(low), float(high))


def detectable(replicates: Floats, level: float = 0.95) -> float:
    """Smallest true difference found with 80 % power by a two-sided test of 1 - level: at 95 %, (1.96 + 0.84) standard
    errors.

    Example:
        >>> round(detectable(np.array([-1.0, 1.0])), 2), round(detectable(np.array([-1.0, 1.0]), 0.975), 2)
        (2.8, 3.08)
    """
    from statistics import NormalDist

    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(0.8)) * float(np.nanstd(replicates))


def decide(difference: Interval, baseline: str, smallest_seen: float, worth: float, level: float = 0.95) -> Verdict:
    """The three outcomes.

    *helps*: the whole interval is above 0. *does not*: even its upper end is below the gain that would be ``worth``
    having, or the mean is a loss of more than that. *cannot tell*: everything else; the reason says what would be
    needed.

    Example:
        >>> decide(Interval(0.2, 0.1, 0.3), "balanced", 0.1, worth=0.02).answer
        'helps'
        >>> decide(Interval(-0.1, -0.3, 0.05), "balanced", 0.2, worth=0.02).answer
        'does not'
    """
    effect = (
        f"AP {difference.mean:+.3f} ({100 * level:g} % CI {difference.low:+.3f} to {difference.high:+.3f}) against "
        f"{baseline}"
    )
    if difference.low > 0:
        answer, reason = HELPS, f"{effect}: the whole interval is above 0"
    elif difference.high < worth:
        answer, reason = DOES_NOT, f"{effect}: even the upper end is below the {worth:.2f} that would be worth having"
    elif difference.mean <= -worth:
        answer, reason = DOES_NOT, f"{effect}: the measured effect is a loss"
    else:
        answer = CANNOT_TELL
        reason = f"{effect}: the interval holds both nothing and a gain; this test sees effects from {smallest_seen:.2f} AP on"
    return Verdict(answer, reason, difference, baseline, smallest_seen)


def compare(
    results: Mapping[str, Sequence[Scored]],
    first: str,
    second: str,
    bootstrap: Bootstrap,
    metric: str = "ap",
    level: float = 0.95,
) -> tuple[Interval, Floats]:
    """Paired difference of two arms with its interval and replicates."""
    point_a, a = bootstrap.mean(results[first], metric)
    point_b, b = bootstrap.mean(results[second], metric)
    return interval(point_a - point_b, a - b, level), a - b
