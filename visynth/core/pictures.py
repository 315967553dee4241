"""Small image helpers for previews and reports: display values, grids, PNG bytes. Arrays are ``[H, W, C]``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError
from visynth.core.files import write_bytes

Image = NDArray[Any]
FITS = ("crop", "pad", "squash")
GREY = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
FEW_VALUES = 8  # values of a channel up to which an image is line art


def to_display(image: Image) -> NDArray[np.uint8]:
    """Any image of ours as uint8 RGB: 16 bits are scaled by their own range, channels beyond three are left out."""
    if image.dtype == np.uint16:
        low, high = float(image.min()), float(image.max())
        image = ((image.astype(np.float32) - low) * (255.0 / max(high - low, 1.0))).astype(np.uint8)
    image = image.astype(np.uint8)
    channels = image.shape[2]
    return np.ascontiguousarray(image[:, :, :3] if channels >= 3 else np.repeat(image[:, :, :1], 3, axis=2))


def resize(image: Image, size: tuple[int, int]) -> Image:
    """``[H, W, C]`` resized to (height, width), any number of channels: area averaging to shrink, linear to grow.

    Example:
        >>> resize(np.zeros((8, 8, 6), np.uint16), (4, 2)).shape
        (4, 2, 6)
    """
    if image.shape[:2] == size:
        return image
    way = cv2.INTER_AREA if image.shape[0] * image.shape[1] > size[0] * size[1] else cv2.INTER_LINEAR
    parts = [
        image[:, :, first : first + 4] for first in range(0, image.shape[2], 4)
    ]  # OpenCV takes up to four channels
    small = [cv2.resize(np.ascontiguousarray(part), (size[1], size[0]), interpolation=way) for part in parts]
    return np.concatenate([part.reshape(*size, -1) for part in small], axis=2)


def box(mask: NDArray[np.bool_]) -> list[float]:
    """(x1, y1, x2, y2) around a mask, ends exclusive, or an empty list.

    Example:
        >>> area = np.zeros((8, 8), bool); area[2:4, 3:7] = True
        >>> box(area)
        [3.0, 2.0, 7.0, 4.0]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def few_values(image: Image) -> bool:
    """Whether an image is made of few values, as line art and printed boards are: its edges must stay hard and its
    values the same.

    Example:
        >>> few_values(np.array([[[0], [255]]], np.uint8)), few_values(np.arange(256, dtype=np.uint8).reshape(16, 16, 1))
        (True, False)
    """
    values = image.reshape(-1, image.shape[2])
    return all(np.count_nonzero(np.bincount(channel)) <= FEW_VALUES for channel in values.T)


def fit_square(image: NDArray[np.uint8], side: int, fill: int = 255) -> NDArray[np.uint8]:
    """The whole image, its proportions kept, centred on a square of ``side`` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    square = np.full((side, side, image.shape[2]), fill, np.uint8)
    top, left = (side - shape[1]) // 2, (side - shape[0]) // 2
    square[top : top + shape[1], left : left + shape[0]] = small
    return square


def grid(images: Sequence[NDArray[np.uint8]], columns: int, side: int, gap: int = 4) -> NDArray[np.uint8]:
    """RGB images on a white sheet, ``columns`` in a row, each on a square of ``side`` pixels."""
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = gap + index // columns * (side + gap), gap + index % columns * (side + gap)
        sheet[top : top + side, left : left + side] = fit_square(image, side)
    return sheet


def outline(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int] = (255, 80, 0)
) -> NDArray[np.uint8]:
    """A copy of an RGB image with the border of a mask drawn one pixel outside it."""
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    marked = image.copy()
    marked[grown & ~mask] = colour
    return marked


def png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of an RGB image."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def write_png(path: str | Path, image: NDArray[np.uint8]) -> None:
    write_bytes(path, png(image))


def data_uri(image: NDArray[np.uint8]) -> str:
    """An RGB image as a ``data:`` address, for pages that carry their images."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def to_channels(image: Image, channels: int) -> Image:
    """``[H, W, C]`` with the wanted channels: grey is repeated, colour is weighed (ITU-R BT.601), alpha is opaque where
    there is none.

    Where alpha is not wanted, the image is set on black by it: what nobody sees must not be trained on.

    Example:
        >>> to_channels(np.full((2, 2, 1), 9, np.uint8), 3).shape
        (2, 2, 3)
    """
    alpha = image.shape[2] in (2, 4)
    colour = image[:, :, :-1] if alpha else image
    if alpha and channels in (1, 3):
        top = np.iinfo(image.dtype).max
        seen = colour.astype(np.float32) * (image[:, :, -1:].astype(np.float32) / top)
        colour = np.rint(seen).astype(image.dtype)
    if colour.shape[2] > 3:
        raise DataError(f"an image has {image.shape[2]} channels: the trained generators take 1 to 4.")
    if channels in (1, 2) and colour.shape[2] == 3:
        top = np.iinfo(image.dtype).max
        grey = colour.astype(np.float32) @ np.array(GREY, np.float32)
        colour = np.clip(np.rint(grey), 0, top).astype(image.dtype)[:, :, None]
    elif channels in (3, 4) and colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    if channels in (1, 3):
        return colour
    opacity = image[:, :, -1:] if alpha else np.full_like(image[:, :, :1], np.iinfo(image.dtype).max)
    return np.concatenate([colour, opacity], axis=2)


def fit_to(image: Image, size: tuple[int, int], way: str) -> Image:
    """``[H, W, C]`` at (height, width): the middle cropped, padded by reflection, or squashed.

    Example:
        >>> fit_to(np.zeros((10, 20, 1), np.uint8), (8, 8), "crop").shape
        (8, 8, 1)
    """
    height, width = image.shape[:2]
    if way == "squash" or height * size[1] == width * size[0]:
        return resize(image, size)
    factor = (max if way == "crop" else min)(size[0] / height, size[1] / width)
    image = resize(image, (max(1, round(height * factor)), max(1, round(width * factor))))
    height, width = image.shape[:2]
    if way == "crop":
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        return image[top : top + size[0], left : left + size[1]]
    more = size[0] - height, size[1] - width
    edges = (more[0] // 2, more[0] - more[0] // 2, more[1] // 2, more[1] - more[1] // 2)
    return np.asarray(cv2.copyMakeBorder(image, *edges, cv2.BORDER_REFLECT)).reshape(*size, -1)
