"""How much variety synthetic images of a class have: effective number, modes, and images that repeat each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError
from visynth.metrics.memorization import QUANTILE, SAME, distances_within, unit

Features = NDArray[Any]
MODES = 10  # clusters of real images, at most
PER_MODE = 10  # real images that a cluster holds on average, at least
PART = 0.1  # of its fair share of the synthetic images: a mode with less is lost


def vendi(features: Features) -> float:
    """Vendi score: the effective number of different images among n, 1 to n, by the entropy of the eigenvalues of their cosine
    similarities. It grows with n: compare sets of one size (:func:`vendi_ratio`).

    Source: Friedman and Dieng, "The Vendi score" (TMLR 2023), definition 3.1.

    Args:
        features: ``[n, D]``.

    Example:
        >>> vendi(np.eye(4)), vendi(np.ones((4, 3)))
        (4.0, 1.0)
    """
    if not len(features):
        raise DataError("a Vendi score needs at least one image.")
    values = unit(features)
    gram = values @ values.T if len(values) <= values.shape[1] else values.T @ values  # they share their eigenvalues
    found = np.clip(np.linalg.eigvalsh(gram / len(values)), 0, None)
    found = found[found > 1e-12]
    return round(float(np.exp(-(found * np.log(found)).sum())), 9)


def vendi_ratio(real: Features, fake: Features, seed: int = 0) -> float:
    """Vendi score of synthetic images over that of as many real ones, both about the real mean: 1 is as varied as real images,
    far below 1 is much the same image again and again.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> real = rng.normal(size=(80, 8))
        >>> 0.8 < vendi_ratio(real[:40], real[40:]) < 1.2, vendi_ratio(real, real[:1].repeat(20, axis=0)) < 0.2
        (True, True)
    """
    count = min(len(real), len(fake))
    stream = seeding.rng(seeding.derive("vendi", seed), "rows")
    centre = real.mean(axis=0)  # what all images share says nothing about variety
    own = [side[stream.permutation(len(side))[:count]] - centre for side in (real, fake)]
    return vendi(own[1]) / vendi(own[0])


def mode_coverage(real: Features, fake: Features, seed: int = 0) -> float:
    """Part of the real images that belong to a cluster which synthetic images reach, at a tenth of its fair share or more.

    Clusters are k-means of the real images, one for every ten of them, ten at most.

    Raises:
        DataError: fewer than 20 real images, which do not make two clusters.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> real = np.concatenate([rng.normal(0, 0.1, (30, 3)), rng.normal(5, 0.1, (10, 3))])
        >>> mode_coverage(real, real), mode_coverage(real, real[:30])
        (1.0, 0.75)
    """
    from sklearn.cluster import KMeans

    count = min(MODES, len(real) // PER_MODE)
    if count < 2:
        raise DataError(f"modes need at least {2 * PER_MODE} real images, but there are {len(real)}.")
    model = KMeans(count, n_init=4, random_state=seeding.derive("modes", seed) % 2**32).fit(real.astype(np.float64))
    shares = np.bincount(model.labels_, minlength=count) / len(real)
    reached = np.bincount(model.predict(fake.astype(np.float64)), minlength=count) / len(fake)
    return float(shares[reached >= PART * shares].sum())


def repeats(real: Features, fake: Features, quantile: float = QUANTILE) -> float:
    """Part of the synthetic images that have another synthetic one nearer than real images have each other (their ``quantile``):
    about that quantile for real images of the same number.

    Example:
        >>> repeats(np.eye(8), np.eye(8)[[0, 0, 1, 2]])
        0.5
    """
    if min(len(real), len(fake)) < 3:
        raise DataError(f"repeats need at least 3 images a side, but there are {len(real)} and {len(fake)}.")
    threshold = max(float(np.quantile(distances_within(np.unique(unit(real).round(6), axis=0)), quantile)), SAME)
    return float((distances_within(unit(fake)) < threshold).mean())
