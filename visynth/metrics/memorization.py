"""NearDuplicates: synthetic images that lie closer to a training image than training images lie to each other.

Source of the ratio: Meehan, Chaudhuri and Dasgupta, "A non-parametric test to detect data-copying in generative models"
(AISTATS 2020), here per image and with the real set's own near-duplicates as the measure. Distances are Euclidean
between unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError

SAME = 1e-4  # distance of unit vectors that is nothing but rounding
QUANTILE = 0.05  # of real images' distances to their nearest other real one: closer than that is called a copy


@dataclass(frozen=True)
class NearDuplicates:
    """Nearest training neighbours of synthetic images.

    Attributes:
        share: of the synthetic images that are near-duplicates; about 0.05 is what fresh real images would have.
        threshold: distance below which one is.
        ratio: median distance of synthetic images to training over that among training images; far below 1 means copying.
        nearest: training row of each synthetic image.
        distances: to it.
    """

    share: float
    threshold: float
    ratio: float
    nearest: NDArray[np.int64]
    distances: NDArray[np.float64]

    def to_json(self) -> dict[str, float]:
        return {"share": round(self.share, 4), "threshold": round(self.threshold, 5), "ratio": round(self.ratio, 4)}


def near_duplicates(train: NDArray[Any], synthetic: NDArray[Any], quantile: float = QUANTILE) -> NearDuplicates:
    """Compare synthetic images with training images of the same class by features ``[n, D]`` and ``[m, D]``.

    Example:
        >>> train = np.eye(8)
        >>> near_duplicates(train, train[:2]).share, near_duplicates(train, -train[:2]).share
        (1.0, 0.0)
    """
    if len(train) < 3 or not len(synthetic):
        raise DataError(
            f"near-duplicates need at least 3 training images and a synthetic one, but there are {len(train)} and {len(synthetic)}."
        )
    x, y = _unit(train), _unit(synthetic)
    apart = np.unique(x.round(6), axis=0)  # images that are in the set twice would make the threshold 0
    among = _distances(apart, apart) if len(apart) > 2 else _distances(x, x)
    np.fill_diagonal(among, np.inf)
    own = among.min(axis=1)
    across = _distances(y, x)
    nearest = across.argmin(axis=1)
    distances = across[np.arange(len(y)), nearest]
    threshold = float(np.quantile(own, quantile))
    ratio = float(np.median(distances) / max(float(np.median(own)), 1e-12))
    same = distances < max(threshold, SAME)
    return NearDuplicates(float(same.mean()), threshold, ratio, nearest.astype(np.int64), distances)


def _unit(features: NDArray[Any]) -> NDArray[np.float64]:
    values = features.astype(np.float64)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))


def _distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.clip(2 - 2 * x @ y.T, 0, None)))
