"""Masks of labelled pixels: found beside the images, checked against them, and judged for what they show.

A mask belongs to an image when it has the same path below the masks' folder, whatever the ending and with the usual
suffixes. A mask is *unreliable* when pasting it would not paste what one sees; :func:`mask_problem` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core.codec import EXTENSIONS, Array, decode_values
from visynth.core.errors import DataError, choices, raise_all
from visynth.core.pictures import few_values
from visynth.data.folder import MASK_SUFFIXES
from visynth.data.imageset import ImageSet, Item, in_threads

Mask = NDArray[np.bool_]
EMPTY = "the mask is empty"
SIDE = 2  # pixels on each side of an outline that are compared, averaged over
BOX = 7  # pixels square
CLEAR = 2.0  # times the usual change of values across an outline, from which on it shows something
LOSSY = (".jpg", ".jpeg", ".webp")
RIPPLES = 64  # values up to which a lossy file may hold nothing but ripples
NUMBERS = 32  # values below which a mask holds numbers of classes
FEW_PLACES = 4  # places around a mask without which there is no usual change


def attach_masks(images: ImageSet, folder: str | Path, suffix: str | None = None) -> ImageSet:
    """The set with each image's mask file from ``folder/<class>/<stem>.*``; images without one keep none.

    The mask of ``a/x.png`` is ``a/x.*``, ``a/x.png.*`` or, with one of the usual suffixes (or the given one),
    ``a/x_mask.*``. How many files are the mask of no image is told in ``notes``.

    Raises:
        DataError: no folder, no mask meets any image, two masks of one image, or masks differ from their images in size
            (all listed).
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"there is no mask folder {root}. Masks have the paths of their images below it.")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        for stem in _stems(path.relative_to(root), (suffix,) if suffix else MASK_SUFFIXES):
            by_stem.setdefault(stem, []).append(path)
    masks = {item.name: by_stem.get(Path(item.name).with_suffix("").as_posix(), []) for item in images.items}
    raise_all(
        f"masks in {root}",
        [
            f"{name} has several masks: {choices(p.name for p in paths)}"
            for name, paths in masks.items()
            if len(paths) > 1
        ],
    )
    items = [replace(item, mask=masks[item.name][0] if masks[item.name] else item.mask) for item in images.items]
    if not any(item.mask for item in items):
        shown = files[0].relative_to(root).as_posix() if files else "nothing"
        raise DataError(
            f"no mask in {root} belongs to an image of {images.root}: the images are named like "
            f"{images.items[0].name!r}, the masks like {shown!r}. Give the folder whose layout mirrors the images', "
            "and --mask-suffix if masks "
            "have more in their names than their images."
        )
    used = {path for paths in masks.values() for path in paths}
    unused = [path.relative_to(root).as_posix() for path in files if path not in used]
    note = f"{len(unused)} files in {root} are the mask of no image, for instance {unused[0]}" if unused else ""
    checked = replace(images, items=tuple(items), notes=(*images.notes, *([note] if note else [])))
    check_masks(checked)
    return checked


def _stems(path: Path, suffixes: Sequence[str]) -> list[str]:
    """Names of the images that a mask file may belong to, without endings."""
    stem = path.with_suffix("")
    if stem.suffix.lower() in EXTENSIONS:  # x.png.png, x.bmp.png
        stem = stem.with_suffix("")
    stems = [stem.as_posix()]
    for suffix in suffixes:
        if stem.name.lower().endswith(suffix.lower()) and len(stem.name) > len(suffix):
            stems.append(stem.with_name(stem.name[: -len(suffix)]).as_posix())
    return stems


def check_masks(images: ImageSet) -> None:
    """Every mask can be read and has its image's size, or one error that names all that do not."""

    def problem(item: Item) -> str | None:
        if item.mask is None:
            return None
        try:
            mask = decode_values(item.mask, images.limits)
        except DataError as error:
            return f"mask {item.mask.name} of {item.name} {error}"
        shape = images.look(item).size
        if mask.shape[:2] != shape:
            return f"mask of {item.name} is {mask.shape[0]}x{mask.shape[1]}, the image is {shape[0]}x{shape[1]}"
        return None

    raise_all("masks", [p for p in in_threads(problem, images.items) if p])


def load_mask(images: ImageSet, item: Item, label: str | None = None) -> Mask | None:
    """The labelled pixels ``[H, W]`` of an image: its mask file (see :func:`labelled`), else its annotated regions of a
    class, else None."""
    if item.mask is not None:
        return labelled(decode_values(item.mask, images.limits), item.mask.suffix.lower() in LOSSY)
    outlines = [outline for name, outline in item.regions if label in (None, name)]
    if not outlines:
        return None
    height, width = item.size or images.look(item).size
    whole = np.zeros((height, width), bool)
    for outline in outlines:
        whole |= region(outline, height, width)
    return whole


def checked_mask(images: ImageSet, item: Item, image: Array) -> tuple[Mask | None, str | None]:
    """An image's mask, and why it should not be pasted onto others, or None; ``image`` is its pixels."""
    mask = load_mask(images, item)
    return mask, None if mask is None else mask_problem(image, mask)


def region(outline: Any, height: int, width: int) -> Mask:
    """An object's pixels ``[H, W]`` from its COCO outline, as pycocotools draws it: polygons together, or run lengths.

    Args:
        outline: polygons [[x1, y1, x2, y2, ...], ...], or {"size", "counts"} with counts as a list or as COCO's packed
            text.
        height: of the image, in pixels.
        width: likewise.
    """
    from pycocotools import mask as coco

    if isinstance(outline, Mapping):
        runs = dict(outline)
        if isinstance(runs["counts"], (list, tuple)):
            runs = coco.frPyObjects({"size": list(runs["size"]), "counts": list(runs["counts"])}, height, width)
        elif isinstance(runs["counts"], str):
            runs["counts"] = runs["counts"].encode()
        return np.asarray(coco.decode(runs), bool)
    runs = coco.merge(coco.frPyObjects([list(map(float, polygon)) for polygon in outline], height, width))
    return np.asarray(coco.decode(runs), bool)


def labelled(values: Array, lossy: bool = False) -> Mask:
    """The labelled pixels of a mask file.

    Numbers of classes (all but the top below 32) label where they are not 0, and 255 above them is void, as in Pascal
    VOC; greys in solid areas are classes or instances too; anything else (soft brushes, lossy formats, floats) labels
    above half of the highest value. Where alpha alone is painted, alpha labels; what alpha hides does not.

    Args:
        values: ``[H, W, C]`` of any type.
        lossy: from a format that leaves ripples.

    Example:
        >>> labelled(np.array([[[0], [40], [200], [255]]], np.uint8)).tolist()
        [[False, False, True, True]]
        >>> labelled(np.array([[[0], [1], [2], [255]]], np.uint8)).tolist()
        [[False, True, True, False]]
    """
    channels = values.shape[2]
    if channels in (2, 4):
        colours, alpha = values[:, :, :-1], values[:, :, -1]
        if colours.min() == colours.max() and alpha.min() < alpha.max():
            return np.asarray(alpha > alpha.max() / 2)
        values = np.where(alpha[:, :, None] > 0, colours, 0)
    whole = np.nan_to_num(values.max(axis=2)) if np.issubdtype(values.dtype, np.floating) else values.max(axis=2)
    top = whole.max()
    if top <= 0 or (lossy and top < RIPPLES):
        return np.zeros(whole.shape, bool)
    kinds = np.unique(whole[whole > 0])
    if not lossy and not np.issubdtype(whole.dtype, np.floating):
        below = kinds[:-1] if top == 255 and len(kinds) > 1 else kinds
        if below[-1] < NUMBERS:  # numbers of classes; 255 beside them says "not to be judged"
            return np.asarray((whole > 0) & ((whole != 255) | (len(below) == len(kinds))))
        flat = whole.astype(np.float32)
        inner = cv2.erode(flat, np.ones((3, 3))) == cv2.dilate(flat, np.ones((3, 3)))
        if np.isin(kinds, whole[inner]).all():  # each in a solid area: classes or instances, not the soft edge of one
            return np.asarray(whole > 0)
    return np.asarray(whole > top / 2)


def mask_problem(image: Array, mask: Mask, max_area: float = 0.25) -> str | None:
    """Why a mask should not be pasted, or None when it is fine.

    What a mask outlines is seen by its outline: values change across it more than they do across the same outline set
    beside it. The statistic is the mean local difference between the two sides of the outline (within two pixels of it,
    each side averaged over 7x7 pixels); it is compared with that of up to 24 places around. Where hardly any fit,
    inside and surroundings are compared by mean and standard deviation. Images of few values (line art, printed
    boards) have no grain to compare with: there any mask goes.

    Args:
        image: ``[H, W, C]``.
        mask: ``[H, W]``.
        max_area: share of the image from which on a paste would replace the image instead of editing it.

    Example:
        >>> flat = np.full((32, 32, 1), 90, np.uint8)
        >>> mask_problem(flat, np.zeros((32, 32), bool))
        'the mask is empty'
    """
    if not mask.any():
        return EMPTY
    area = float(mask.mean())
    if area > max_area:
        return f"the mask covers {area:.0%} of the image (limit {max_area:.0%}): a paste would replace the image"
    if mask.all() or few_values(image):
        return None
    own, around = outline_contrast(image, mask)
    if len(around) >= FEW_PLACES:
        usual = float(np.median(around))
        if own > CLEAR * usual or own > float(np.quantile(around, 0.95)):
            return None
        return (
            f"the outline shows nothing: values change by {own:.1f} grey levels across it, by {usual:.1f} across "
            "the same outline set beside it"
        )
    return _alike_inside(image, mask)


def outline_contrast(image: Array, mask: Mask) -> tuple[float, list[float]]:
    """Mean local difference across a mask's outline, in grey levels of 8 bits, and the same at places around it.

    Places are the mask's own shape moved by 1, 1.5 and 2 times its size in eight directions, as far as they lie on the
    image and beside the mask.
    """
    grey = image.astype(np.float32).mean(axis=2) * (255 / np.iinfo(image.dtype).max)
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, tall, wide = rows[0], columns[0], rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    edge = SIDE + BOX
    shape = np.pad(mask[top : top + tall, left : left + wide], edge).astype(np.uint8)
    kernel = np.ones((2 * SIDE + 1,) * 2, np.uint8)
    inner = (shape - cv2.erode(shape, kernel)).astype(np.float32)
    outer = (cv2.dilate(shape, kernel) - shape).astype(np.float32)
    smooth = np.pad(cv2.GaussianBlur(grey, (0, 0), 1), edge)
    there = np.pad(np.ones((height, width), np.float32), edge)  # what lies beyond the image says nothing

    def at(row: int, column: int) -> float:
        window = np.s_[row : row + tall + 2 * edge, column : column + wide + 2 * edge]
        values, valid = smooth[window], there[window]
        counts = [_sum(side * valid) for side in (inner, outer)]
        sums = [_sum(side * valid * values) for side in (inner, outer)]
        seen = (inner * valid > 0) & (counts[0] > 0.5) & (counts[1] > 0.5)
        if not seen.any():
            return 0.0
        return float(np.abs(sums[0][seen] / counts[0][seen] - sums[1][seen] / counts[1][seen]).mean())

    around = []
    taken = np.pad(mask, edge)
    body = shape[edge:-edge, edge:-edge].astype(bool)
    for factor in (1.0, 1.5, 2.0):
        for down, right in ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)):
            row, column = top + round(down * factor * (tall + 6)), left + round(right * factor * (wide + 6))
            fits = 0 <= row <= height - tall and 0 <= column <= width - wide
            if fits and not (taken[edge + row : edge + row + tall, edge + column : edge + column + wide] & body).any():
                around.append(at(row, column))
    return at(top, left), around


def _sum(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(cv2.boxFilter(values, -1, (BOX, BOX), normalize=False, borderType=cv2.BORDER_CONSTANT))


def _alike_inside(image: Array, mask: Mask, min_contrast: float = 0.35) -> str | None:
    """The test for masks that leave no room around: means in the surroundings' standard deviations, or deviations as a
    ratio."""
    grey = image.astype(np.float32).mean(axis=2)
    width = max(3, round(0.5 * np.sqrt(mask.sum())))
    outside = cv2.dilate(mask.astype(np.uint8), np.ones((2 * width + 1,) * 2, np.uint8)).astype(bool) & ~mask
    inside_mean, inside_std = float(grey[mask].mean()), float(grey[mask].std())
    ring_mean, ring_std = float(grey[outside].mean()), float(grey[outside].std())
    contrast = abs(inside_mean - ring_mean) / max(ring_std, 1.0)
    texture = abs(np.log2(max(inside_std, 1.0) / max(ring_std, 1.0)))
    if contrast < min_contrast and texture < min_contrast:
        return f"inside and around the mask look alike (contrast {contrast:.2f} standard deviations): it shows nothing"
    return None


def at_border(mask: Mask, share: float = 0.06) -> bool:
    """Whether a mask comes as near to the image's border as a share of its shorter side.

    Example:
        >>> mask = np.zeros((100, 200), bool); mask[5, 90] = True
        >>> at_border(mask), at_border(np.roll(mask, 20, axis=0))
        (True, False)
    """
    margin = max(1, round(share * min(mask.shape)))
    return bool(mask.any() and mask.sum() > mask[margin:-margin, margin:-margin].sum())
