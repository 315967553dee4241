"""Masks of labelled pixels: found beside the images, checked against them, and judged for what they show.

A mask belongs to an image when it has the same path below the masks' folder, whatever the ending. Any value but 0 is
defect. A mask is *unreliable* when pasting it would not paste what one sees; :func:`judge` says why.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.data.decode import EXTENSIONS, Array, decode
from visynth.data.items import ImageSet, Item, in_threads
from visynth.errors import DataError, raise_all

Mask = NDArray[np.bool_]


def attach_masks(images: ImageSet, folder: str | Path) -> ImageSet:
    """The set with each image's mask file from ``folder/<class>/<stem>.*``; images without one keep none.

    Raises:
        DataError: no folder, no mask meets any image, or masks differ from their images in size (all told).
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"there is no mask folder {root}. Masks have the paths of their images below it.")
    by_stem = {
        p.relative_to(root).with_suffix("").as_posix(): p
        for p in sorted(root.rglob("*"))
        if p.suffix.lower() in EXTENSIONS
    }
    items = [
        replace(item, mask=by_stem.get(Path(item.name).with_suffix("").as_posix(), item.mask)) for item in images.items
    ]
    if not any(item.mask for item in items):
        shown = next(iter(by_stem), "nothing")
        raise DataError(
            f"no mask in {root} belongs to an image of {images.root}: the images are named like "
            f"{images.items[0].name!r}, the masks like {shown!r}. Give the folder whose layout mirrors the images'."
        )
    checked = replace(images, items=tuple(items))
    check_masks(checked)
    return checked


def check_masks(images: ImageSet) -> None:
    """Every mask can be read and has its image's size, or one error that names all that do not."""

    def problem(item: Item) -> str | None:
        if item.mask is None:
            return None
        try:
            mask = decode(item.mask, images.limits)
        except DataError as error:
            return f"mask {item.mask.name} of {item.name} {error}"
        shape = images.image(item).shape[:2]
        if mask.shape[:2] != shape:
            return f"mask of {item.name} is {mask.shape[0]}x{mask.shape[1]}, the image is {shape[0]}x{shape[1]}"
        return None

    raise_all("masks", [p for p in in_threads(problem, images.items) if p])


def load_mask(images: ImageSet, item: Item, label: str | None = None) -> Mask | None:
    """The labelled pixels ``[H, W]`` of an image: its mask file, else its polygons of a class, else None."""
    if item.mask is not None:
        values = decode(item.mask, images.limits)
        colours = values[:, :, : values.shape[2] - (values.shape[2] in (2, 4))]  # without alpha
        # JPEG leaves small ripples around a mask: half of the brightest value parts it from them.
        floor = 0 if item.mask.suffix.lower() not in (".jpg", ".jpeg") else int(values.max()) // 2
        return np.asarray((colours > floor).any(axis=2))
    outlines = [points for name, points in item.polygons if label in (None, name)]
    if not outlines:
        return None
    height, width = images.image(item).shape[:2]
    canvas = np.zeros((height, width), np.uint8)
    for points in outlines:
        cv2.fillPoly(canvas, [np.round(np.array(points).reshape(-1, 2)).astype(np.int32)], 1)
    return canvas.astype(bool)


def judge(image: Array, mask: Mask, max_area: float = 0.25, min_contrast: float = 0.35) -> str | None:
    """Why a mask should not be pasted, or None when it is fine.

    The test of visibility compares the pixels inside with a ring outside: their means in units of the ring's
    standard deviation, or their standard deviations as a ratio. Where both are alike, the mask covers nothing to be seen.

    Args:
        image: ``[H, W, C]``.
        mask: ``[H, W]``.
        max_area: share of the image from which on a paste would replace the picture instead of editing it.
        min_contrast: smallest contrast in standard deviations.

    Example:
        >>> flat = np.full((32, 32, 1), 90, np.uint8)
        >>> judge(flat, np.zeros((32, 32), bool))
        'the mask is empty'
    """
    if not mask.any():
        return "the mask is empty"
    area = float(mask.mean())
    if area > max_area:
        return f"the mask covers {area:.0%} of the image (limit {max_area:.0%}): a paste would replace the picture"
    grey = image.astype(np.float32).mean(axis=2)
    width = max(3, round(0.5 * np.sqrt(mask.sum())))
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((2 * width + 1,) * 2, np.uint8)).astype(bool) & ~mask
    if not outside.any():
        return "the mask leaves nothing around it to compare with"
    inside_mean, inside_std = float(grey[mask].mean()), float(grey[mask].std())
    ring_mean, ring_std = float(grey[outside].mean()), float(grey[outside].std())
    contrast = abs(inside_mean - ring_mean) / max(ring_std, 1.0)
    texture = abs(np.log2(max(inside_std, 1.0) / max(ring_std, 1.0)))
    if contrast < min_contrast and texture < min_contrast:
        return f"inside and around the mask look alike (contrast {contrast:.2f} standard deviations): it shows nothing"
    return None
