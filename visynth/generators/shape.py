"""Other shapes of a defect: its pixels and its mask, bent, turned and scaled together."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]
KNOTS = 4  # points along a side that are moved; between them the displacement is smooth
LEAST = 0.6  # of the mask's area that must be left, measured after scaling: a line of one pixel may break


def warp(
    image: Array,
    masks: tuple[Mask, Mask],
    generator: np.random.Generator,
    *,
    scale: tuple[float, float],
    rotate: float,
    bend: float,
    aspect: float,
) -> tuple[Array, tuple[Mask, Mask]]:
    """An image and two masks under one random smooth map.

    Args:
        image: ``[h, w, C]``.
        masks: the defect, and another that goes with it, bool ``[h, w]``.
        generator: the sample's own randomness.
        scale: smallest and largest factor of size.
        rotate: largest angle, in degrees, either way.
        bend: standard deviation of the displacement, as a share of the defect's larger side.
        aspect: largest change of the ratio of the sides, as a share.

    Returns:
        the same, of another size; as they were where the defect would not survive it.
    """
    tall, wide = image.shape[:2]
    factor = generator.uniform(*scale)
    stretch = 1 + generator.uniform(-aspect, aspect)
    angle = np.deg2rad(generator.uniform(-rotate, rotate))
    knots = generator.normal(0, 1, (2, KNOTS, KNOTS)).astype(np.float32)
    rows, columns = np.nonzero(masks[0].any(1))[0], np.nonzero(masks[0].any(0))[0]
    if not len(rows):
        return image, masks
    extent = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    by = factor * stretch, factor / stretch
    side = max(2, round(tall * by[0])), max(2, round(wide * by[1]))
    ys, xs = np.mgrid[: side[0], : side[1]].astype(np.float32)
    ys, xs = (ys - (side[0] - 1) / 2) / by[0], (xs - (side[1] - 1) / 2) / by[1]
    moved = [cv2.resize(knot, (side[1], side[0]), interpolation=cv2.INTER_CUBIC) * (bend * extent) for knot in knots]
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    from_y = cosine * ys - sine * xs + (tall - 1) / 2 + moved[0]
    from_x = sine * ys + cosine * xs + (wide - 1) / 2 + moved[1]
    maps = from_x.astype(np.float32), from_y.astype(np.float32)
    soft = [
        cv2.remap(mask.astype(np.float32), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101) for mask in masks
    ]
    defect = soft[0] >= 0.5
    if defect.sum() < LEAST * masks[0].sum() * factor**2 or not defect.any():
        return image, masks
    # OpenCV takes four channels at most.
    parts = [
        cv2.remap(
            np.ascontiguousarray(image[:, :, k : k + 4]), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        ).reshape(*side, -1)
        for k in range(0, image.shape[2], 4)
    ]
    return np.concatenate(parts, axis=2), (defect, soft[1] >= 0.5)
