"""Ranking metrics with weights per image, so that a bootstrap over groups is one product."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def average_precision(truth: NDArray[np.bool_], scores: Floats, weights: Floats | None = None) -> float:
    """Area under the precision-recall steps, AP = sum of (R_k - R_{k-1}) P_k over the distinct scores, falling.

    Args:
        truth: bool ``[N]``.
        scores: float ``[N]``, larger means more likely; ties are one step.
        weights: float ``[N]`` of at least 0, by default 1.

    Returns:
        AP in [0, 1]; NaN without positive weight.

    Example:
        >>> round(average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7])), 4)
        0.8333
    """
    hits, alarms = _cumulative(truth, scores, weights)
    if hits[-1] <= 0:
        return float("nan")
    precision = hits / np.maximum(hits + alarms, 1e-12)
    recall = hits / hits[-1]
    return float(np.sum(np.diff(np.concatenate([[0.0], recall])) * precision))


def recall_at_fpr(truth: NDArray[np.bool_], scores: Floats, fpr: float = 0.05, weights: Floats | None = None) -> float:
    """Largest recall at a false-positive rate of at most ``fpr``; NaN without positives or negatives.

    Example:
        >>> recall_at_fpr(np.array([True, True, False, False]), np.array([4.0, 2.0, 3.0, 1.0]), fpr=0.0)
        0.5
    """
    hits, alarms = _cumulative(truth, scores, weights)
    if hits[-1] <= 0 or alarms[-1] <= 0:
        return float("nan")
    allowed = alarms / alarms[-1] <= fpr + 1e-12
    return float((hits[allowed] / hits[-1]).max(initial=0.0))


def _cumulative(truth: NDArray[np.bool_], scores: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Weight of true and false positives at each distinct score, falling; images without weight do not count."""
    weight = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(sorted_scores)), len(scores) - 1)
    hits = np.cumsum(weight[order] * truth[order])[last]
    alarms = np.cumsum(weight[order] * ~truth[order])[last]
    return hits, alarms
