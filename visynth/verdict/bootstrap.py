"""Scores of arms on cells, and a bootstrap over draws and groups that pairs their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, choices

Floats = NDArray[np.float64]
Metric = Literal["ap", "recall@fpr", "recall@precision", "alarms@recall", "recall", "macro-f1"]
METRICS: tuple[Metric, ...] = get_args(Metric)
NAMED: tuple[Metric, ...] = ("ap", "recall@fpr", "recall", "macro-f1")  # those that a verdict on images may be on
WORDS: Mapping[str, str] = {
    "ap": "AP",
    "recall@fpr": "recall at 5 % false alarms",
    "recall@precision": "recall at half precision",
    "alarms@recall": "false alarms per 1,000 at 80 % recall",
    "recall": "recall",
    "macro-f1": "macro-F1",
}


@dataclass(frozen=True)
class Scored:
    """One arm on one cell's test images.

    Attributes:
        draw: of the cell.
        truth: whether each image is of the class, bool ``[N]``.
        scores: float ``[N]``.
        groups: of each image.
        weights: images of the set that each stands for, float ``[N]``; 1 where None.
        labels: class number of each, int ``[N]``, and
        predicted: that of one model of all classes, for the metrics of decisions.
    """

    draw: int
    truth: NDArray[np.bool_]
    scores: Floats
    groups: Sequence[str]
    weights: Floats | None = None
    labels: NDArray[np.int64] | None = None
    predicted: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.scores).all():
            bad = int((~np.isfinite(self.scores)).sum())
            raise DataError(f"{bad} of {len(self.scores)} scores are not finite numbers, so that they rank nothing.")


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap percentile interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        return {name: (round(value, 5) if np.isfinite(value) else None) for name, value in asdict(self).items()}


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
            metric: one of :data:`METRICS`.
            level: false-positive rate of ``"recall@fpr"``, least precision of ``"recall@precision"``, or recall of
                ``"alarms@recall"``.
        """
        key = id(cells), metric, level
        if key not in self._means:  # the cells are kept, so that their id stays theirs
            self._means[key] = cells, self._mean(cells, metric, level)
        return self._means[key][1]

    def _mean(self, cells: Sequence[Scored], metric: str, level: float) -> tuple[float, Floats]:
        total, weight = np.zeros(len(self.groups)), np.zeros(len(self.groups))
        points = []
        for cell in cells:
            places = np.array([self.index[g] for g in cell.groups])
            values = measure(cell, metric, self.groups[:, places] * own_weights(cell), level)
            draws = self.draws[:, self.draw_index[cell.draw]] * np.isfinite(values)
            total += draws * np.nan_to_num(values)
            weight += draws
            points.append(float(measure(cell, metric, own_weights(cell)[None], level)[0]))
        return float(np.nanmean(points)), np.where(weight > 0, total / np.maximum(weight, 1e-12), np.nan)


def own_weights(cell: Scored) -> Floats:
    """Weight of each test image."""
    return np.ones(len(cell.truth)) if cell.weights is None else cell.weights


def measure(cell: Scored, metric: str, weights: Floats, level: float = 0.05) -> Floats:
    """A metric of one arm on one cell, for R rows of image weights, ``[R]``; NaN where there is nothing to measure.

    Raises:
        UsageError: a metric that is not known, or one of decisions where there are none.
    """
    if metric == "ap":
        return weighted_ap(cell.truth, cell.scores, weights)
    if metric == "recall@fpr":
        return weighted_recall(cell.truth, cell.scores, weights, level)
    if metric == "recall@precision":
        return weighted_recall_at_precision(cell.truth, cell.scores, weights, level)
    if metric == "alarms@recall":
        return 1000 * weighted_alarms(cell.truth, cell.scores, weights, level)
    if metric not in METRICS:
        raise UsageError(f"metric must be one of {choices(METRICS)}, but got {metric!r}.")
    if cell.labels is None or cell.predicted is None:
        raise UsageError(
            f"{metric} needs decisions between all classes: images of one class each, and a learner that tells all of them "
            "apart (the frozen one does)."
        )
    if metric == "recall":
        right = weights[:, cell.truth & (cell.predicted == cell.labels)].sum(axis=1)
        return _ratio(right, weights[:, cell.truth].sum(axis=1))
    scores = []
    for label in np.union1d(cell.labels, cell.predicted):
        true, guess = cell.labels == label, cell.predicted == label
        both = weights[:, true & guess].sum(axis=1)
        scores.append(_ratio(2 * both, weights[:, true].sum(axis=1) + weights[:, guess].sum(axis=1)))
    with np.errstate(invalid="ignore"):
        stacked = np.stack(scores)
        return _ratio(np.nansum(stacked, axis=0), np.isfinite(stacked).sum(axis=0).astype(np.float64))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.where(below > 0, above / np.maximum(below, 1e-12), np.nan)


def weighted_ap(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Average precision ``[R]`` for R rows of image weights; equal scores are one step, as on inner folds.

    Example:
        >>> truth, scores = np.array([True, False, True]), np.array([0.9, 0.8, 0.7])
        >>> weighted_ap(truth, scores, np.ones((1, 3))).round(4).tolist()
        [0.8333]
    """
    hits, alarms = _steps(truth, scores, weights)
    precision = hits / np.maximum(hits + alarms, 1e-12)
    gained = np.diff(hits, axis=1, prepend=0)
    return _ratio((precision * gained).sum(axis=1), hits[:, -1])


def weighted_recall(truth: NDArray[np.bool_], scores: Floats, weights: Floats, fpr: float = 0.05) -> Floats:
    """Recall ``[R]`` at a false-positive rate of at most ``fpr``, for R rows of image weights; NaN without negatives."""
    hits, alarms = _steps(truth, scores, weights)
    allowed = alarms <= fpr * alarms[:, -1:] + 1e-9
    return np.where(alarms[:, -1] > 0, _ratio((hits * allowed).max(axis=1), hits[:, -1]), np.nan)


def weighted_recall_at_precision(
    truth: NDArray[np.bool_], scores: Floats, weights: Floats, least: float = 0.5
) -> Floats:
    """Largest recall ``[R]`` at a precision of at least ``least``, for R rows of weights.

    Example:
        >>> truth, scores = np.array([True, False, True]), np.array([0.9, 0.8, 0.7])
        >>> weighted_recall_at_precision(truth, scores, np.ones((1, 3)), 0.9).tolist()
        [0.5]
    """
    hits, alarms = _steps(truth, scores, weights)
    enough = hits >= least * (hits + alarms) - 1e-9
    return _ratio((hits * enough).max(axis=1), hits[:, -1])


def weighted_alarms(truth: NDArray[np.bool_], scores: Floats, weights: Floats, recall: float = 0.8) -> Floats:
    """Least part ``[R]`` of the images without the class that are called where at least ``recall`` of those with it are, for R
    rows of weights; NaN without negatives.

    Example:
        >>> truth, scores = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.6])
        >>> weighted_alarms(truth, scores, np.ones((1, 4)), 0.5).tolist(), weighted_alarms(truth, scores, np.ones((1, 4))).tolist()
        ([0.0], [0.5])
    """
    hits, alarms = _steps(truth, scores, weights)
    enough = hits >= recall * hits[:, -1:] - 1e-9
    least = np.where(enough, alarms, np.inf).min(axis=1)
    return np.where(hits[:, -1] > 0, _ratio(least, alarms[:, -1]), np.nan)


def _steps(truth: NDArray[np.bool_], scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of true and of false positives ``[R, steps]`` at each distinct score, falling."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    positive, ordered = truth[order], weights[:, order]
    return np.cumsum(ordered * positive, axis=1)[:, last], np.cumsum(ordered * ~positive, axis=1)[:, last]


def interval(point: float, replicates: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of a confidence level; NaN limits where no replicate is finite."""
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return Interval(point, float("nan"), float("nan"))
    tail = 50 * (1 - level)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Interval(point, float(low), float(high))


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
