"""Pictures of any size on a canvas of one size, at native scale: padded by reflection or cropped, never squashed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.data.decode import Array
from visynth.errors import DataError

GRANULE = 32  # the total stride of the usual backbones


def choose_size(shapes: Sequence[tuple[int, int]], limit: int = 288) -> tuple[int, int]:
    """A square canvas for pictures of these (height, width): the median side, rounded up to 32, at most ``limit``.

    Example:
        >>> choose_size([(64, 64), (64, 64)])
        (64, 64)
        >>> choose_size([(300, 240), (600, 310)])
        (288, 288)
    """
    if not shapes:
        raise DataError("there are no pictures to choose a canvas for.")
    side = float(np.median([side for shape in shapes for side in shape]))
    rounded = max(GRANULE, int(-(-side // GRANULE)) * GRANULE)
    return (min(rounded, limit),) * 2


def window(image: Array, size: tuple[int, int], centre: tuple[float, float] | None = None) -> Array:
    """The part of ``[H, W, C]`` of ``size`` around ``centre`` (row, column; by default the middle), at native scale.

    Pixels beyond the border are reflected, so that no edge appears that the object does not have.

    Example:
        >>> window(np.zeros((10, 40, 1), np.uint8), (16, 16)).shape
        (16, 16, 1)
    """
    rows, columns = (
        _positions(length, want, None if centre is None else centre[axis])
        for axis, (length, want) in enumerate(zip(image.shape[:2], size, strict=True))
    )
    return image[rows][:, columns]


def corner(shape: tuple[int, int], size: tuple[int, int], centre: tuple[float, float] | None = None) -> tuple[int, int]:
    """Row and column of the window's first pixel in the image; negative where it is padded."""
    top, left = (
        _start(length, want, None if centre is None else centre[axis])
        for axis, (length, want) in enumerate(zip(shape, size, strict=True))
    )
    return top, left


def _start(length: int, want: int, centre: float | None) -> int:
    middle = length / 2 if centre is None else centre
    start = round(middle - want / 2)
    return (length - want) // 2 if length <= want else min(max(start, 0), length - want)


def _positions(length: int, want: int, centre: float | None) -> NDArray[np.int64]:
    positions = np.arange(want) + _start(length, want, centre)
    period = max(2 * (length - 1), 1)  # reflect without repeating the border pixel, as often as needed
    positions = np.abs(positions) % period
    return np.where(positions >= length, period - positions, positions)


def resize_to(image: Array, side: tuple[int, int]) -> Array:
    """``[H, W, C]`` resized to (height, width): area averaging when shrinking, linear when growing."""
    if image.shape[:2] == side:
        return image
    shrink = image.shape[0] * image.shape[1] > side[0] * side[1]
    out = cv2.resize(image, (side[1], side[0]), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    return out[:, :, None] if out.ndim == 2 else out
