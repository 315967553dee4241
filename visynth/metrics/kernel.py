"""Kernel inception distance with an interval and, for scale, the same distance between halves of the real images.

Source: Binkowski et al., "Demystifying MMD GANs" (ICLR 2018), section 4: squared MMD with k(x, y) = (x.y / d + 1)^3,
unbiased, Gretton et al., "A kernel two-sample test" (JMLR 2012), eq. 3. Unbiased means that equal distributions give 0
on average and negative values half the time, however few images there are: that is why it leads here, and not FID.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError

Floats = NDArray[np.float64]
FEWEST = 20  # images a side below which nothing is said
BLOCKS = 10
HALVINGS = 40


@dataclass(frozen=True)
class Kid:
    """KID of two sets.

    Attributes:
        value: the unbiased estimate; it may be negative.
        low: and
        high: its 95 % interval, by leaving out blocks.
        null: mean of the same estimate between random halves of the real images, brought to the noise of n and m
            images,
        null_high: and its 95th percentile: below it, the images could be real ones.
        real: images on the real side.
        fake: images on the other.
    """

    value: float
    low: float
    high: float
    null: float
    null_high: float
    real: int
    fake: int

    def to_json(self) -> dict[str, float | int]:
        return {name: round(v, 6) if isinstance(v, float) else v for name, v in vars(self).items()}

    def __str__(self) -> str:
        return (
            f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}], real halves {self.null:.4f} (95 %: "
            f"{self.null_high:.4f}), n = {self.real} and {self.fake}"
        )


def kernel(x: Floats, y: Floats) -> Floats:
    """(x.y / d + 1)^3 of all pairs, ``[n, m]``."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def mmd2(xx: Floats, yy: Floats, xy: Floats) -> float:
    """Unbiased squared MMD from kernel matrices (Gretton et al., eq. 3).

    Example:
        >>> x = np.array([[0.0], [1.0]]); y = np.array([[2.0], [3.0]])
        >>> mmd2(kernel(x, x), kernel(y, y), kernel(x, y))
        297.5
    """
    n, m = len(xx), len(yy)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kid_value(real: NDArray[Any], fake: NDArray[Any]) -> float:
    """The bare estimate for features ``[n, D]`` and ``[m, D]``."""
    x, y = real.astype(np.float64), fake.astype(np.float64)
    return mmd2(kernel(x, x), kernel(y, y), kernel(x, y))


def kid(real: NDArray[Any], fake: NDArray[Any], seed: int = 0) -> Kid:
    """KID with its interval and null.

    The interval is the delete-a-block jackknife of the U-statistic over 10 blocks of images (Arvesen, "Jackknifing
    U-statistics", 1969): each block is left out of its side in turn. It tells what other images of the same sources
    would give.

    Args:
        real: features ``[n, D]``.
        fake: features ``[m, D]``.
        seed: which images make a block or a half.

    Raises:
        DataError: fewer than 20 on a side.
    """
    fewest = min(len(real), len(fake))
    if fewest < FEWEST:
        raise DataError(
            f"too few images for KID: {len(real)} real and {len(fake)} made, at least {FEWEST} a side are needed."
        )
    x, y = real.astype(np.float64), fake.astype(np.float64)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    generator = seeding.rng(seeding.derive("kid", seed), "blocks")
    value = mmd2(xx, yy, xy)
    variance = 0.0
    for side, count in ((0, len(x)), (1, len(y))):
        without = []
        for block in np.array_split(generator.permutation(count), min(BLOCKS, count)):
            keep = np.setdiff1d(np.arange(count), block)
            parts = (xx[np.ix_(keep, keep)], yy, xy[keep]) if side == 0 else (xx, yy[np.ix_(keep, keep)], xy[:, keep])
            without.append(mmd2(*parts))
        blocks = len(without)
        variance += (blocks - 1) / blocks * float(((np.array(without) - np.mean(without)) ** 2).sum())
    half = 1.96 * variance**0.5
    # Halves are noisier than the sets that are compared: the variance of MMD^2 without a difference goes as (1/n +
    # 1/m)^2.
    small, large = len(x) // 2, len(x) - len(x) // 2
    null = null_of(xx, generator) * ((1 / len(x) + 1 / len(y)) / (1 / small + 1 / large))
    return Kid(value, value - half, value + half, float(null.mean()), float(np.percentile(null, 95)), len(x), len(y))


def null_of(xx: Floats, generator: np.random.Generator) -> Floats:
    """The estimate between random halves of one set, given its kernel matrix."""
    values = []
    for _ in range(HALVINGS):
        order = generator.permutation(len(xx))
        a, b = order[: len(xx) // 2], order[len(xx) // 2 :]
        values.append(mmd2(xx[np.ix_(a, a)], xx[np.ix_(b, b)], xx[np.ix_(a, b)]))
    return np.array(values)
