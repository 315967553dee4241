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
FEWEST = 10  # images a side below which a rate means nothing
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
    x, y = unit(train), unit(synthetic)
    apart = np.unique(x.round(6), axis=0)  # images that are in the set twice would make the threshold 0
    own = distances_within(apart if len(apart) > 2 else x)
    across = _distances(y, x)
    nearest = across.argmin(axis=1)
    distances = across[np.arange(len(y)), nearest]
    threshold = float(np.quantile(own, quantile))
    ratio = float(np.median(distances) / max(float(np.median(own)), 1e-12))
    same = distances < max(threshold, SAME)
    return NearDuplicates(float(same.mean()), threshold, ratio, nearest.astype(np.int64), distances)


def memorization(train: NDArray[Any], held_out: NDArray[Any], synthetic: NDArray[Any]) -> float:
    """Chance that a synthetic image lies nearer to its nearest training image than a fresh real image does to its own: 0.5 where
    nothing is copied, 1 where all is.

    Source: the Mann-Whitney statistic of Meehan et al. (AISTATS 2020), section 3.1, over the whole space; ties count half.

    Args:
        train: features ``[n, D]`` of the images that the generator was fitted on.
        held_out: of real images of the same class that it was not.
        synthetic: of what it makes.

    Raises:
        DataError: too few of them to say anything.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> train, fresh = rng.normal(size=(40, 6)), rng.normal(size=(40, 6))
        >>> memorization(train, fresh, train), 0.3 < memorization(train, fresh, rng.normal(size=(40, 6))) < 0.7
        (1.0, True)
    """
    if min(len(train), len(held_out), len(synthetic)) < FEWEST:
        raise DataError(
            f"memorization needs at least {FEWEST} training, held-out and synthetic images, but there are {len(train)}, "
            f"{len(held_out)} and {len(synthetic)}."
        )
    x = unit(train)
    fresh, made = (_distances(unit(side), x).min(axis=1) for side in (held_out, synthetic))
    difference = fresh[:, None] - made[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def authenticity(train: NDArray[Any], synthetic: NDArray[Any]) -> float:
    """Part of the synthetic images that are farther from their nearest training image than that is from its own nearest one:
    about one half for fresh images, 0 for copies.

    Source: Alaa et al., "How faithful is your synthetic data?" (ICML 2022), section 4.3, with the true nearest neighbours.

    Example:
        >>> authenticity(np.eye(4), np.eye(4)), authenticity(np.eye(4), -np.ones((2, 4)))
        (0.0, 1.0)
    """
    if len(train) < 3 or not len(synthetic):
        raise DataError(
            f"authenticity needs at least 3 training images and a synthetic one, but there are {len(train)}."
        )
    x = unit(train)
    across = _distances(unit(synthetic), x)
    nearest = across.argmin(axis=1)
    return float((across[np.arange(len(across)), nearest] > distances_within(x)[nearest]).mean())


def distances_within(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each unit vector to its nearest other one, ``[n]``."""
    among = _distances(x, x)
    np.fill_diagonal(among, np.inf)
    return np.asarray(among.min(axis=1))


def unit(features: NDArray[Any]) -> NDArray[np.float64]:
    values = features.astype(np.float64)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))


def _distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.clip(2 - 2 * x @ y.T, 0, None)))
