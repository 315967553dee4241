"""Properties of training images in memory that networks are built for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.codec import Array
from visynth.core.errors import DataError

SIGMA_DATA = 0.5  # of centred images that are not measured (Karras et al., EDM, table 1)


@dataclass(frozen=True)
class Facts:
    """Properties of the data that a network is built for.

    Attributes:
        classes: names, in label order.
        counts: training images per class.
        channels: 1 to 4.
        size: (height, width).
        dtype: ``"uint8"`` or ``"uint16"``.
        mean: per channel, of values in [-1, 1].
        sigma_data: standard deviation around the mean, over all channels; measured, not assumed.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    channels: int
    size: tuple[int, int]
    dtype: str
    mean: tuple[float, ...]
    sigma_data: float

    def public(self) -> Facts:
        """Without what was measured: no counts, and the mean and deviation of no data."""
        return replace(self, counts=(0,) * len(self.classes), mean=(0.0,) * self.channels, sigma_data=SIGMA_DATA)

    def to_json(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Facts:
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Pool:
    """Images of one size in memory: ``[N, C, H, W]`` uint8 or uint16, labels ``[N]``, and the group of each, if there are any."""

    images: Array
    labels: NDArray[np.int64]
    groups: tuple[str, ...] | None = None


def measure(pool: Pool, classes: Sequence[str]) -> Facts:
    """Facts of a pool; mean and deviation are those of values in [-1, 1].

    Raises:
        DataError: all images are the same plain image.
    """
    top = np.iinfo(pool.images.dtype).max
    parts = range(0, len(pool.images), 256)  # as floats at once a large pool would take eight times its memory
    mean = sum(_values(pool.images[k : k + 256], top).sum(axis=(0, 2, 3)) for k in parts) * (
        pool.images.shape[1] / pool.images.size
    )
    squares = sum(
        float(((_values(pool.images[k : k + 256], top) - mean[None, :, None, None]) ** 2).sum()) for k in parts
    )
    deviation = (squares / pool.images.size) ** 0.5
    if deviation < 1e-4:
        raise DataError("the training images are all one plain colour: there is nothing to learn.")
    counts = np.bincount(pool.labels, minlength=len(classes))
    return Facts(
        tuple(classes),
        tuple(int(c) for c in counts),
        pool.images.shape[1],
        (pool.images.shape[2], pool.images.shape[3]),
        pool.images.dtype.name,
        tuple(round(float(m), 6) for m in mean),
        round(deviation, 6),
    )


def _values(images: Array, top: int) -> NDArray[np.float64]:
    return np.asarray(images, np.float64) * (2 / top) - 1
