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
STANDS = 0.95  # share of the mask that must stand on the object
SIDE = 48  # pixels of the shorter side at which places are looked for
FIRM = 1e-3  # variance of a ring, in those of its image, below which it is flat, and fits wherever it is flat
BEYOND = 4.0  # what the share of the ring costs that lies beyond one image and inside the other
HALF = 0.5 - 1e-4  # of a square: its mean is rounded
EQUAL = 1e-3  # of places whose errors differ by less, any may come first


@dataclass(frozen=True)
class Template:
    """A defect's surroundings at the resolution at which places are looked for.

    Attributes:
        values: float32 ``[h, w]``; 0 beyond the defect's own image.
        outside: 1 beyond it, else 0, float32 ``[h, w]``.
        weights: of the pixels that are compared, float32 ``[h, w]``: 1 beside the mask, less further away, 0 beyond.
        mask: the defect, bool ``[h, w]``; its pixels are not compared, and must come to lie inside the image.
        factor: pixels of the original to one of these.
        hard: values are compared as they are, else after taking off mean and deviation of the ring.
    """

    values: Floats
    outside: Floats
    weights: Floats
    mask: Mask
    factor: int
    hard: bool


@dataclass(frozen=True)
class Ground:
    """A background at that resolution, with a border around it.

    Attributes:
        values: float32 ``[H + 2 pad, W + 2 pad]``, 0 in the border.
        inside: 1 in the image and 0 in the border, of that shape.
        stand: 1 where a defect may stand, of that shape.
        pad: pixels of the border.
        real: the border is that of the photograph, not of a part that was cut from it: only then may a ring stick out.
    """

    values: Floats
    inside: Floats
    stand: Floats
    pad: int
    real: bool = True


@dataclass(frozen=True)
class Fit:
    """A place, and how well it fits.

    Attributes:
        top: row of the window's corner in the background, in pixels of the original; may be below 0 where the window sticks
            out of the image as it does in the defect's own image.
        left: column of it.
        error: 0 where the ring fits exactly; for hard images the share of the ring's pixels that differ, else 1 minus the
            correlation; and four times the share of it that lies beyond one image and inside the other.
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
        (1, 6)
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
    small_mask, beyond = _shrunk(mask, factor) > 0, _shrunk(outside, factor) >= HALF
    weights = np.where(small_mask, np.float32(0), _shrunk(_nearness(mask, width), factor))
    values = np.where(beyond, np.float32(0), _shrunk(window, factor))
    return Template(values, beyond.astype(np.float32), weights, small_mask, factor, hard)


def ground(image: Floats, stand: Mask, factor: int, pad: int, real: bool = True) -> Ground:
    """A background as it is searched: grey values ``[H, W]`` and where a defect may stand, with a border of ``pad`` pixels,
    after shrinking."""
    small = _shrunk(image, factor)
    inside = np.pad(np.ones(small.shape, np.float32), pad)
    return Ground(np.pad(small, pad), inside, np.pad(_shrunk(stand, factor), pad), pad, real)


def errors(wanted: Template, where: Ground) -> Floats:
    """How badly the ring fits, by place of the window's corner on the padded background, ``[H', W']``; infinite where the
    mask would lie beyond the image, or not on the object.

    Example:
        >>> scene = np.zeros((20, 20), np.float32); scene[:, 10:] = 1
        >>> mask = np.zeros((9, 9), bool); mask[4, 4] = True
        >>> own = template(scene[5:14, 6:15], mask, np.zeros_like(mask), 3, 1, hard=True)
        >>> place = np.unravel_index(errors(own, ground(scene, scene >= 0, 1, 9)).argmin(), (30, 30))
        >>> int(place[1]) - 9  # a column on, and the edge would be elsewhere; any row is as good
        6
    """
    tall, wide = wanted.values.shape
    total = float(wanted.weights.sum())
    if tall > where.values.shape[0] or wide > where.values.shape[1] or total == 0:
        return np.full((1, 1), np.inf, np.float32)
    own = wanted.weights * (1 - wanted.outside)  # of the pixels inside the defect's own image
    both = _slid(where.inside, own)
    sticks_out = np.maximum(float(own.sum()) - both, 0)
    astray = sticks_out + _slid(where.inside, wanted.weights * wanted.outside)
    if wanted.hard:
        found = np.asarray(_squares(where, wanted.values, own) / np.maximum(both, 1e-6), np.float32)
    else:
        found = 1 - _correlation(where, wanted.values, own, both)
    whole = np.maximum(found, 0) + BEYOND * np.maximum(astray, 0) / total
    mask = wanted.mask.astype(np.float32)
    area = float(mask.sum())
    lost = (area - _slid(where.inside, mask) > 0.5) | (_slid(where.stand, mask) < STANDS * area - 0.01)
    if not where.real:
        lost |= sticks_out > 0.05
    return np.where(lost, np.float32(np.inf), whole).astype(np.float32)


def best_places(wanted: Template, where: Ground, count: int, generator: np.random.Generator) -> list[Fit]:
    """The places that fit best, best first, no two closer than a quarter of the window: else all would be one place. Of those
    that fit equally well, any come first."""
    found = errors(wanted, where)
    found = found + generator.random(found.shape, dtype=np.float32) * np.float32(EQUAL)
    apart = max(1, round(min(wanted.values.shape) / 4))
    places: list[Fit] = []
    for _ in range(count):
        top, left = divmod(int(found.argmin()), found.shape[1])
        error = float(found[top, left])
        if not np.isfinite(error):
            break
        corner = ((top - where.pad) * wanted.factor, (left - where.pad) * wanted.factor)
        places.append(Fit(*corner, error))
        found[max(top - apart, 0) : top + apart + 1, max(left - apart, 0) : left + apart + 1] = np.inf
    return places


def refined(wanted: Template, image: Floats, stand: Mask, near: Fit, reach: int, real: bool = True) -> Fit:
    """The best place within ``reach`` pixels of one that was found on a shrunk image, at full resolution.

    Args:
        wanted: the template at factor 1.
        image: the background's grey values ``[H, W]``.
        stand: where a defect may stand on it.
        near: the place.
        reach: pixels in every direction.
        real: see :class:`Ground`.
    """
    tall, wide = wanted.values.shape
    pad = max(tall, wide) + reach
    whole = ground(image, stand, 1, pad, real)
    top, left = max(near.top - reach + pad, 0), max(near.left - reach + pad, 0)
    part = np.s_[top : top + tall + 2 * reach, left : left + wide + 2 * reach]
    values, inside, standing = (np.ascontiguousarray(a[part]) for a in (whole.values, whole.inside, whole.stand))
    found = errors(wanted, Ground(values, inside, standing, 0, real))
    row, column = divmod(int(found.argmin()), found.shape[1])
    error = float(found[row, column])
    return Fit(top + row - pad, left + column - pad, error) if np.isfinite(error) else near


def _slid(image: Floats, weights: Floats) -> Floats:
    """Weighted sum of the image under the window, by place of its corner."""
    return np.asarray(cv2.matchTemplate(image, weights.astype(np.float32), cv2.TM_CCORR), dtype=np.float32)


def _squares(where: Ground, pattern: Floats, weights: Floats) -> Floats:
    """Weighted squared differences over the pixels that lie inside both images, by place."""
    crossed = _slid(where.values**2, weights) - 2 * _slid(where.values, weights * pattern)
    return crossed + _slid(where.inside, weights * pattern**2)


def _correlation(where: Ground, pattern: Floats, weights: Floats, both: Floats) -> Floats:
    """Pearson's weighted correlation over the pixels that lie inside both images, by place; 0 where one side is flat, 1
    where both are.

    Args:
        where: the background; its values are 0 beyond the image.
        pattern: of the template.
        weights: of its pixels, 0 beyond its image.
        both: sum of the weights inside both, by place.
    """
    image = where.inside > 0
    level, scale = (float(f(where.values[image])) if image.any() else 0.0 for f in (np.mean, np.std))
    scale = max(scale, 1e-6)
    # In deviations of the image around middles: sums of squares lose less where numbers are small.
    middle = float((pattern * weights).sum()) / max(float(weights.sum()), 1e-6)
    own = (pattern - np.float32(middle)) / np.float32(scale)
    values = np.where(image, (where.values - level) / scale, 0).astype(np.float32)
    count = np.maximum(both, 1e-6)
    sum_values, sum_own = _slid(values, weights), _slid(where.inside, own * weights)
    products = _slid(values, own * weights) - sum_values * sum_own / count
    spread_values = _slid(values**2, weights) - sum_values**2 / count
    spread_own = _slid(where.inside, own**2 * weights) - sum_own**2 / count
    flat = [spread < count * FIRM for spread in (spread_values, spread_own)]
    found = np.where(flat[0] | flat[1], 0, products / np.sqrt(np.maximum(spread_values * spread_own, 1e-12)))
    return np.where(flat[0] & flat[1], 1, found).astype(np.float32)


def _nearness(mask: Mask, width: int) -> Floats:
    """1 beside a mask, falling to a quarter at ``width`` pixels from it, 0 beyond, on it and on its very edge, whose pixels
    belong to both."""
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.where((distance < 1.5) | (distance > width), 0, 1 - 0.75 * distance / width).astype(np.float32)


def _shrunk(values: Mask | Floats, factor: int) -> Floats:
    """Means of squares of ``factor`` pixels; what lacks to a whole number of them is filled by the last pixels."""
    height, width = (-(-length // factor) for length in values.shape)
    bottom, right = (count * factor - n for count, n in zip((height, width), values.shape, strict=True))
    whole = cv2.copyMakeBorder(values.astype(np.float32), 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    # OpenCV's means over areas: with numpy's, half of the time of a search went here.
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.float32)
