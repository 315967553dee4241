"""Where a defect may go: where its surroundings fit. The ring around its mask is matched with a background.

A crack starts at an edge, a spur grows on a trace, a stain lies on the open surface: what a defect looks like depends on
where it is, and a classifier that has seen it elsewhere learns that wrong places are defects. Masked template matching
finds the places; the image's border is a part of the surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
SIDE = 96  # pixels of the shorter side at which places are looked for
BORDER = -4.0  # what lies beyond the image, in standard deviations of the image: no pixel is so dark
EDGE = 2.0  # the same where values are compared as they are, in the range from black to white
FIRM = 1e-3  # standard deviation of a ring below which it is flat, and fits wherever it is flat


@dataclass(frozen=True)
class Template:
    """A defect's surroundings at the resolution at which places are looked for.

    Attributes:
        values: float32 ``[h, w]``; beyond the defect's own image ``BORDER``, or ``EDGE`` for hard ones.
        weights: of the pixels that are compared, float32 ``[h, w]``: 1 beside the mask, less further away, 0 beyond.
        mask: the defect, bool ``[h, w]``; its pixels are not compared, and must come to lie inside the image.
        factor: pixels of the original to one of these.
        hard: values are compared as they are, else after taking off mean and deviation of the ring.
    """

    values: Floats
    weights: Floats
    mask: Mask
    factor: int
    hard: bool


@dataclass(frozen=True)
class Ground:
    """A background at that resolution, with a border around it.

    Attributes:
        values: float32 ``[H + 2 pad, W + 2 pad]``.
        pad: pixels of the border.
    """

    values: Floats
    pad: int


@dataclass(frozen=True)
class Fit:
    """A place, and how well it fits.

    Attributes:
        top: row of the window's corner in the background, in pixels of the original; may be below 0 where the window sticks
            out of the image as it does in the defect's own image.
        left: column of it.
        error: 0 where the ring fits exactly; for hard images the share of the ring's pixels that differ, else 1 minus the
            correlation.
    """

    top: int
    left: int
    error: float


def grey(image: NDArray[Any]) -> Floats:
    """One channel in [0, 1], ``[H, W]``, of ``[H, W, C]``."""
    return np.asarray(image.astype(np.float32).mean(axis=2) / np.iinfo(image.dtype).max, dtype=np.float32)


def factor_of(shape: tuple[int, ...]) -> int:
    """Pixels to one at the resolution at which places on an image of this shape are looked for.

    Example:
        >>> factor_of((64, 64)), factor_of((400, 300))
        (1, 3)
    """
    return max(1, round(min(shape[:2]) / SIDE))


def template(window: Floats, mask: Mask, outside: Mask, width: int, factor: int, hard: bool) -> Template:
    """A defect's window as it is looked for.

    Args:
        window: grey values ``[h, w]`` around the defect, ``width`` pixels and more on each side of its mask.
        mask: the defect in it.
        outside: pixels of the window that lie beyond the defect's own image.
        width: of the ring, in pixels.
        factor: see :func:`factor_of`.
        hard: see :class:`Template`.
    """
    weights = _nearness(mask, width)
    if factor == 1:
        small, small_mask, beyond = window, mask, outside
    else:
        small, beyond = _shrunk(window, factor), _shrunk(outside, factor) >= 0.5
        small_mask = _shrunk(mask, factor) > 0
        weights = np.where(small_mask, np.float32(0), _shrunk(weights, factor))
    if hard:
        values = np.where(beyond, np.float32(EDGE), small)
    else:
        inside = (weights > 0) & ~beyond
        own = small[inside] if inside.any() else small
        values = np.where(beyond, np.float32(BORDER), (small - own.mean()) / max(float(own.std()), FIRM))
    return Template(np.ascontiguousarray(values, np.float32), weights, small_mask, factor, hard)


def ground(image: Floats, factor: int, pad: int, hard: bool) -> Ground:
    """A background as it is searched: grey values ``[H, W]`` with a border of ``pad`` pixels, after shrinking."""
    small = _shrunk(image, factor)
    if not hard:
        small = (small - small.mean()) / max(float(small.std()), FIRM)
    value = EDGE if hard else BORDER
    return Ground(np.pad(small, pad, constant_values=value).astype(np.float32), pad)


def errors(wanted: Template, where: Ground) -> Floats:
    """How badly the ring fits, by place of the window's corner on the padded background, ``[H', W']``; infinite where a
    pixel of the mask would lie beyond the image.

    Example:
        >>> scene = np.zeros((20, 20), np.float32); scene[:, 10:] = 1
        >>> mask = np.zeros((9, 9), bool); mask[4, 4] = True
        >>> own = template(scene[5:14, 6:15], mask, np.zeros_like(mask), 3, 1, hard=True)
        >>> place = np.unravel_index(errors(own, ground(scene, 1, 9, hard=True)).argmin(), (30, 30))
        >>> int(place[1]) - 9  # a column on, and the edge would be elsewhere; any row is as good
        6
    """
    tall, wide = wanted.values.shape
    if tall > where.values.shape[0] or wide > where.values.shape[1] or not wanted.weights.any():
        return np.full((1, 1), np.inf, np.float32)
    if wanted.hard:  # OpenCV squares the mask with the difference
        squares = cv2.matchTemplate(where.values, wanted.values, cv2.TM_SQDIFF, mask=np.sqrt(wanted.weights))
        found = squares / wanted.weights.sum()
    else:
        found = 1.0 - _correlation(where.values, wanted.values, wanted.weights)
    beyond = (where.values == (EDGE if wanted.hard else BORDER)).astype(np.float32)
    lost = cv2.matchTemplate(beyond, wanted.mask.astype(np.float32), cv2.TM_CCORR)
    return np.where(lost > 0.5, np.float32(np.inf), np.maximum(found, 0)).astype(np.float32)


def _correlation(image: Floats, pattern: Floats, weights: Floats) -> Floats:
    """Pearson's weighted correlation, by place; 0 where either side is flat."""
    total = float(weights.sum())
    centred = pattern - float((pattern * weights).sum()) / total
    spread = float((centred**2 * weights).sum())
    centred = centred * weights
    sums = cv2.matchTemplate(image, weights, cv2.TM_CCORR)
    squares = cv2.matchTemplate(image**2, weights, cv2.TM_CCORR)
    products = cv2.matchTemplate(image, centred, cv2.TM_CCORR)
    variance = np.maximum(squares - sums**2 / total, 0)
    flat = variance < total * FIRM
    return np.where(flat, 0.0, products / np.sqrt(np.maximum(variance * spread, 1e-12))).astype(np.float32)


def best_places(wanted: Template, where: Ground, count: int) -> list[Fit]:
    """The places that fit best, best first, no two closer than a quarter of the window: else all would be one place."""
    found = errors(wanted, where)
    apart = max(1, round(min(wanted.values.shape) / 4))
    places: list[Fit] = []
    found = found.copy()
    for _ in range(count):
        at = int(found.argmin())
        top, left = divmod(at, found.shape[1])
        error = float(found[top, left])
        if not np.isfinite(error):
            break
        corner = ((top - where.pad) * wanted.factor, (left - where.pad) * wanted.factor)
        places.append(Fit(*corner, error))
        found[max(top - apart, 0) : top + apart + 1, max(left - apart, 0) : left + apart + 1] = np.inf
    return places


def _nearness(mask: Mask, width: int) -> Floats:
    """1 beside a mask, falling to a quarter at ``width`` pixels from it, 0 beyond, on it and on its very edge, whose pixels
    belong to both."""
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.where((distance < 1.5) | (distance > width), 0, 1 - 0.75 * distance / width).astype(np.float32)


def _shrunk(values: Mask | Floats, factor: int) -> Floats:
    """Means of squares of ``factor`` pixels; what lacks to a whole number of them is filled by the last pixels."""
    whole = np.pad(values.astype(np.float32), [(0, -length % factor) for length in values.shape], mode="edge")
    height, width = whole.shape
    return np.asarray(whole.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3)))


def refined(wanted: Template, image: Floats, near: Fit, reach: int) -> Fit:
    """The best place within ``reach`` pixels of one that was found on a shrunk image, at full resolution.

    Args:
        wanted: the template at factor 1.
        image: the background's grey values ``[H, W]``.
        near: the place.
        reach: pixels in every direction.
    """
    tall, wide = wanted.values.shape
    pad = max(tall, wide) + reach
    whole = ground(image, 1, pad, wanted.hard)
    top, left = near.top - reach + pad, near.left - reach + pad
    part = whole.values[max(top, 0) : top + tall + 2 * reach, max(left, 0) : left + wide + 2 * reach]
    found = errors(wanted, Ground(np.ascontiguousarray(part), 0))
    at = int(found.argmin())
    row, column = divmod(at, found.shape[1])
    error = float(found[row, column])
    if not np.isfinite(error):
        return near
    return Fit(max(top, 0) + row - pad, max(left, 0) + column - pad, error)
