"""Facts of each image that reading notes while it checks the file, so that nobody decodes it for them
again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core.codec import DEFAULT_LIMITS, Array, Limits, decode_reduced
from visynth.core.pictures import resize

FULL = 1_000_000  # pixels above which an image is shrunk before its channels are averaged
SIDE = 32  # pixels of the grey copy, square
ENOUGH = (2 * SIDE, 2 * SIDE)  # large JPEGs are decoded no larger than this needs


@dataclass(frozen=True, eq=False)
class Look:
    """One image at a glance.

    Attributes:
        size: (height, width) in pixels, upright.
        channels: 1 to 8.
        dtype: ``"uint8"`` or ``"uint16"``.
        grey: grey copy ``[32, 32]`` float32, in the image's own values.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    grey: NDArray[np.float32]


def look_at(path: Path, limits: Limits = DEFAULT_LIMITS) -> Look:
    """Decode an image to its end; JPEGs of more than a megapixel at a fraction of their size.

    Raises:
        DataError: as :func:`visynth.core.codec.decode`.
    """
    image, size = decode_reduced(path, limits, ENOUGH)
    return Look(size, image.shape[2], image.dtype.name, grey_copy(image))


def grey_copy(image: Array) -> NDArray[np.float32]:
    """The mean of the channels, shrunk to ``[32, 32]`` by area; ``image`` is ``[H, W, C]``.

    Example:
        >>> grey_copy(np.full((64, 48, 3), 7, np.uint8)).shape
        (32, 32)
    """
    height, width = image.shape[:2]
    if height * width > FULL:  # a float copy of a large image would take four times its memory
        factor = (FULL / (height * width)) ** 0.5
        image = resize(image, (max(SIDE, round(height * factor)), max(SIDE, round(width * factor))))
    grey = image.astype(np.float32).mean(axis=2)
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.float32)
