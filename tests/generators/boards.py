"""Made one-bit boards: traces, islands that are no defects, and defects that live on the edge of a trace or inside one."""

from __future__ import annotations

import cv2
import numpy as np

KINDS = ("spur", "bite", "hole")
SIDE, EDGE = 64, 6
DISTANCE = cv2.DIST_L2, cv2.DIST_MASK_PRECISE


def traces(rng: np.random.Generator) -> np.ndarray:
    """Parallel traces with one bend, bool ``[64, 64]``."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    pitch, width = int(rng.integers(24, 32)), int(rng.integers(7, 11))
    bend, step = int(rng.integers(16, SIDE - 16)), int(rng.integers(-10, 11))
    for y in range(int(rng.integers(4, 16)), SIDE, pitch):
        line = [[-9, y], [bend, y], [bend, y + step], [SIDE + 9, y + step]]
        cv2.polylines(image, [np.array(line)], False, 1, width)
    return np.ascontiguousarray(image.T if rng.random() < 0.5 else image) > 0


def with_islands(own: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The board with up to three islands on free ground, uint8 0 or 255."""
    image = own.astype(np.uint8) * 255
    for _ in range(3):
        free = np.argwhere(cv2.distanceTransform((image == 0).astype(np.uint8), *DISTANCE) > 8)
        if not len(free):
            break
        _blob(image, free[rng.integers(len(free))], (int(rng.integers(3, 6)), int(rng.integers(3, 5))), rng, 255)
    return image


def board(seed: int) -> np.ndarray:
    """A board without a defect ``[64, 64, 1]``."""
    rng = np.random.default_rng(seed)
    return with_islands(traces(rng), rng)[:, :, None]


def defects(kind: str, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boards ``[64, 64, 1]`` with one defect each, and its mask."""
    rng = np.random.default_rng(seed)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    while len(found) < count:
        own = traces(rng)
        image = with_islands(own, rng)
        inside = cv2.distanceTransform(own.astype(np.uint8), *DISTANCE)
        beyond = cv2.distanceTransform((~own).astype(np.uint8), *DISTANCE)
        where = {"spur": (beyond > 0.5) & (beyond < 1.6), "bite": (inside > 0.5) & (inside < 1.6), "hole": inside >= 3}[
            kind
        ]
        where[:EDGE], where[-EDGE:], where[:, :EDGE], where[:, -EDGE:] = False, False, False, False
        spots = np.argwhere(where)
        if not len(spots):
            continue
        size = (int(rng.integers(3, 6)), int(rng.integers(3, 5)))
        if kind == "hole":
            size = (int(rng.integers(2, 4)), int(rng.integers(1, 3)))
        blob = np.zeros((SIDE, SIDE), np.uint8)
        _blob(blob, spots[rng.integers(len(spots))], size, rng, 1)
        mask = (blob > 0) & ((image == 0) if kind == "spur" else (image > 0))
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if mask.sum() < 5 or (kind == "hole" and (grown & (image == 0)).any()):
            continue
        image[mask] = 255 if kind == "spur" else 0
        found.append((image[:, :, None], mask))
    return found


def _blob(image: np.ndarray, at: np.ndarray, size: tuple[int, int], rng: np.random.Generator, value: int) -> None:
    cv2.ellipse(image, (int(at[1]), int(at[0])), size, float(rng.uniform(0, 180)), 0, 360, value, -1)
