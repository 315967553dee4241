"""Places for a defect: on the object, inside the image, near its own place."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
TRIES = 25


def foreground(image: NDArray[Any]) -> Mask:
    """The object on a plain ground, or everything where there is no plain ground.

    Otsu's threshold parts the grey values; a ground is believed only when one side holds nearly all of the image's
    border, is much more even than the whole and leaves a fair part of the image to the object.

    Args:
        image: ``[H, W, C]``.

    Example:
        >>> scene = np.zeros((40, 40, 1), np.uint8); scene[10:30, 10:30] = 200
        >>> int(foreground(scene).sum())
        400
    """
    grey = image.astype(np.float32).mean(axis=2)
    low, high = float(grey.min()), float(grey.max())
    everything = np.ones(grey.shape, bool)
    if high - low < 1:
        return everything
    scaled = ((grey - low) * (255 / (high - low))).astype(np.uint8)
    level, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    bright = scaled > level
    border = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    ground = bright if border.mean() > 0.5 else ~bright
    plain = border.mean() > 0.9 or border.mean() < 0.1
    even = float(scaled[ground].std()) < 0.25 * float(scaled.std())
    if not (plain and even and 0.1 < ground.mean() < 0.9):
        return everything
    filled = cv2.morphologyEx((~ground).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return filled.astype(bool)


def place(
    mask: Mask,
    home: tuple[float, float],
    allowed: Mask,
    shift: int,
    generator: np.random.Generator,
) -> tuple[int, int] | None:
    """Row and column for the top left corner of ``mask`` so that all of it stands on ``allowed``.

    Args:
        mask: the defect's own small mask ``[h, w]``.
        home: relative position (0 to 1) of the defect's centre in the image that it comes from.
        allowed: ``[H, W]`` of the image that it goes to.
        shift: largest move from home, in pixels.
        generator: the sample's own randomness.

    Returns:
        the best of 25 tries that stands on ``allowed`` with at least 95 % of its pixels, or None.
    """
    height, width = allowed.shape
    tall, wide = mask.shape
    if tall > height or wide > width:
        return None
    area = int(mask.sum())
    best: tuple[float, int, int] = (0.0, 0, 0)
    for _ in range(TRIES):
        top = _near(home[0] * height - tall / 2, shift, height - tall, generator)
        left = _near(home[1] * width - wide / 2, shift, width - wide, generator)
        on = float((allowed[top : top + tall, left : left + wide] & mask).sum()) / max(area, 1)
        if on > best[0]:
            best = (on, top, left)
        if on == 1.0:
            break
    return (best[1], best[2]) if best[0] >= 0.95 else None


def _near(wish: float, shift: int, last: int, generator: np.random.Generator) -> int:
    """A start in [0, last], even over those within ``shift`` of the wish, else the nearest there is."""
    low, high = max(0, round(wish) - shift), min(last, round(wish) + shift)
    return int(generator.integers(low, high + 1)) if low <= high else min(max(round(wish), 0), last)
