"""The Frechet distance of two Gaussians, from float64 statistics; called FID with Inception features only.

Source: Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium" (NeurIPS
2017), eq. 6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError

Floats = NDArray[np.float64]
SIZES, REPEATS = 6, 5  # of the parts that an extrapolation draws its line through


def frechet_distance(mean_a: Floats, cov_a: Floats, mean_b: Floats, cov_b: Floats) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), by the symmetric form tr sqrt(S C_b S) with S = sqrt(C_a).

    Args:
        mean_a: ``[D]``.
        cov_a: ``[D, D]``.
        mean_b: ``[D]``.
        cov_b: ``[D, D]``.

    Example:
        >>> one = np.eye(2)
        >>> frechet_distance(np.zeros(2), one, np.array([3.0, 4.0]), 4 * one)
        27.0
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = root @ cov_b @ root
    crossed = np.sqrt(np.clip(np.linalg.eigvalsh((middle + middle.T) / 2), 0, None)).sum()
    gap = mean_a - mean_b
    return max(0.0, round(float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * crossed), 9))


def needed(width: int) -> int:
    """Images a side without which a covariance of that many features is singular: D + 1."""
    return width + 1


def frechet_of(real: NDArray[Any], fake: NDArray[Any]) -> float:
    """The distance of two sets of features ``[n, D]``.

    Raises:
        DataError: fewer than D + 1 on a side; the message says what to use instead.
    """
    fewest, width = min(len(real), len(fake)), real.shape[1]
    if fewest < needed(width):
        raise DataError(
            f"a Frechet distance of {width} features needs at least {needed(width)} images a side, but there are "
            f"{fewest}: its value would be that of the "
            "sample size. Use KID, or reduced_frechet."
        )
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return frechet_distance(real.mean(0), np.cov(real.T), fake.mean(0), np.cov(fake.T))


def reduced_frechet(real: NDArray[Any], fake: NDArray[Any]) -> tuple[float, int]:
    """The distance in the real features' first principal components, n / 5 of them, for small sets.

    Returns:
        the distance, and the number of components, which belongs into its name (``fd_..._pca12``): distances of other
        numbers of components are not comparable.

    Raises:
        DataError: fewer than 10 a side.
    """
    fewest = min(len(real), len(fake))
    if fewest < 10:
        raise DataError(f"a reduced Frechet distance needs at least 10 images a side, but there are {fewest}.")
    kept = min(fewest // 5, real.shape[1])
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    centre = real.mean(0)
    _, _, axes = np.linalg.svd(real - centre, full_matrices=False)
    return frechet_of((real - centre) @ axes[:kept].T, (fake - centre) @ axes[:kept].T), kept


def extrapolated_frechet(real: NDArray[Any], fake: NDArray[Any], seed: int = 0) -> float:
    """The distance that endless images of the same two sources would have: with n images it is too large by a part that goes as
    1/n, so that a line through its values for parts of the sets meets 0 of 1/n at the limit. It may come out slightly negative.

    Source: Chong and Forsyth, "Effectively unbiased FID and Inception Score and where to find them" (CVPR 2020), section 4,
    here with parts of both sides, which both are small.

    Args:
        real: features ``[n, D]``.
        fake: features ``[m, D]``.
        seed: of the parts.

    Raises:
        DataError: half of a side is no more than D images.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = rng.normal(size=(400, 5)), rng.normal(size=(400, 5))
        >>> frechet_of(a, b) > 0.02 > extrapolated_frechet(a, b)
        True
    """
    fewest = min(len(real), len(fake))
    if fewest // 2 < needed(real.shape[1]):
        raise DataError(
            f"an extrapolated Frechet distance of {real.shape[1]} features needs at least {2 * needed(real.shape[1])} images "
            f"a side, but there are {fewest}: use KID."
        )
    stream = seeding.rng(seeding.derive("frechet", seed), "parts")
    parts = np.repeat(np.linspace(0.5, 1.0, SIZES), REPEATS)
    values = []
    for part in parts:
        sides = (side[stream.permutation(len(side))[: max(round(part * len(side)), 2)]] for side in (real, fake))
        values.append(frechet_of(*sides))
    _, limit = np.polyfit(1 / parts, values, 1)
    return float(limit)
