"""Precision, recall, density and coverage of synthetic images: does what is made lie where real images are, and does it reach all of them?

Source: Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models" (NeurIPS 2019), eqs.
1 and 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from visynth.core.errors import UsageError

Features = NDArray[np.float32]
NEIGHBOURS = 3


def within(points: Features, support: Features, k: int = NEIGHBOURS) -> float:
    """Share of points that lie within the distance from some support point to its k-th nearest other one.

    Args:
        points: ``[n, D]``.
        support: ``[m, D]``, more than k.
        k: neighbours.

    Raises:
        UsageError: too few support points.

    Example:
        >>> line = np.arange(10, dtype=np.float32)[:, None]
        >>> within(line + 0.4, line), within(line + 100, line)
        (1.0, 0.0)
    """
    return float(_reached(points, support, k).any(axis=1).mean())


def recall(real: Features, fake: Features, k: int = NEIGHBOURS) -> float:
    """Share of real images that are among what is made: low when the generator has collapsed.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
        >>> recall(draws, draws[:1].repeat(100, axis=0) + 0.01 * draws[:100]) < 0.05
        True
    """
    return within(real, fake, k)


def precision(real: Features, fake: Features, k: int = NEIGHBOURS) -> float:
    """Share of synthetic images that are among the real ones."""
    return within(fake, real, k)


def density(real: Features, fake: Features, k: int = NEIGHBOURS) -> float:
    """How many real neighbourhoods a synthetic image lies in, on average, over the k that it would be expected to: about 1 for
    fresh real images, more where they crowd among typical ones. Unlike precision, one outlier among the real images hardly
    changes it.

    Source: Naeem et al., "Reliable fidelity and diversity metrics for generative models" (ICML 2020), eq. 3.

    Example:
        >>> line = np.arange(10, dtype=np.float32)[:, None]
        >>> density(line, line + 100), round(density(line, line[4:6] + 0.25), 2)
        (0.0, 1.33)
    """
    return float(_reached(fake, real, k).sum() / (k * len(fake)))


def coverage(real: Features, fake: Features, k: int = NEIGHBOURS) -> float:
    """Share of real images in whose neighbourhood there is a synthetic one. For n fresh real images against n it is
    :func:`expected_coverage` on average.

    Source: Naeem et al., eq. 4.

    Example:
        >>> line = np.arange(10, dtype=np.float32)[:, None]
        >>> coverage(line, line + 0.4), coverage(line, line[:1])
        (1.0, 0.3)
    """
    return float(_reached(fake, real, k).any(axis=0).mean())


def expected_coverage(real: int, fake: int, k: int = NEIGHBOURS) -> float:
    """Coverage of n real images by m fresh ones: 1 less the chance that of a real image's n + m - 1 neighbours the nearest k are
    all real (Naeem et al., eq. 7).

    Example:
        >>> round(expected_coverage(1000, 1000), 3)
        0.875
    """
    missed = 1.0
    for j in range(k):
        missed *= (real - 1 - j) / (real + fake - 1 - j)
    return 1 - missed


def _reached(points: Features, support: Features, k: int) -> NDArray[np.bool_]:
    """Whether each point lies within the k-th neighbour's distance of each support point, ``[n, m]``."""
    if len(support) <= k:
        raise UsageError(f"the neighbourhood of {k} needs more than {k} images, but there are {len(support)}.")
    radius = np.partition(cdist(support, support), k, axis=1)[:, k]  # the nearest is the point itself
    return np.asarray(cdist(points, support) <= radius)
