"""Precision and recall of synthetic images: does what is made lie where real images are, and does it reach all of them?

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
    if len(support) <= k:
        raise UsageError(f"the neighbourhood of {k} needs more than {k} images, but there are {len(support)}.")
    radius = np.partition(cdist(support, support), k, axis=1)[:, k]  # the nearest is the point itself
    return float((cdist(points, support) <= radius).any(axis=1).mean())


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
