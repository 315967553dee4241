"""Copies: synthetic images that are a training image again: as it was, mirrored, turned, or with other light.

Each image is compared as a standardised grey copy of 32 x 32 pixels within a disc, with every training image in 24 turns
and mirrored: light, contrast and colour then make no difference, and what is left is the picture. How near two *different*
pictures of the class come, is measured on the real ones: between images of different groups, since shots of one part are
near by right. What comes nearer than half of that is a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError

Greys = NDArray[np.float32]  # [n, 32, 32], see visynth.data.looks.grey_copy
TURNS = 24  # of a full turn
QUANTILE = 0.01  # of the distances between images of different groups
CLOSER = 0.5  # part of that distance below which one is a copy
TOLERATED = 0.01  # share of copies that is no finding
LEAST = 3  # training images and groups


@dataclass(frozen=True)
class Copies:
    """Copies among synthetic images, and among fresh real ones by the same measure.

    Attributes:
        found: copies.
        of: synthetic images.
        fresh: copies among real images that the generator never saw.
        of_fresh: those images.
        threshold: distance (1 - correlation) below which an image is a copy.
        nearest: training image of each synthetic one.
        distances: to it.
    """

    found: int
    of: int
    fresh: int
    of_fresh: int
    threshold: float
    nearest: NDArray[np.int64]
    distances: NDArray[np.float64]

    @property
    def share(self) -> float:
        return self.found / max(self.of, 1)

    @property
    def limits(self) -> tuple[float, float]:
        """95 % interval of the share (Clopper and Pearson, 1934)."""
        from scipy.stats import beta

        low = 0.0 if not self.found else float(beta.ppf(0.025, self.found, self.of - self.found + 1))
        high = 1.0 if self.found == self.of else float(beta.ppf(0.975, self.found + 1, self.of - self.found))
        return low, high

    @property
    def flagged(self) -> bool:
        """Whether there are more copies than are tolerated, and than fresh real images have."""
        return self.limits[0] > max(TOLERATED, self.fresh / max(self.of_fresh, 1))

    def to_json(self) -> dict[str, Any]:
        low, high = self.limits
        return {
            "found": self.found, "of": self.of, "low": round(low, 4), "high": round(high, 4), "fresh": self.fresh,
            "of_fresh": self.of_fresh, "threshold": round(self.threshold, 5), "flagged": self.flagged,
        }  # fmt: skip


def find_copies(train: Greys, groups: Sequence[str], made: Greys, fresh: Greys | None = None) -> Copies:
    """Copies of training images of one class.

    Args:
        train: grey copies of the training images ``[n, 32, 32]``.
        groups: of each.
        made: of the synthetic images ``[m, 32, 32]``.
        fresh: of real images of other groups.

    Raises:
        DataError: fewer than three training images or groups, or no synthetic one.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> train = rng.normal(size=(6, 32, 32)).astype(np.float32)
        >>> others = rng.normal(size=(6, 32, 32)).astype(np.float32)
        >>> find_copies(train, list("aabbcc"), train[:, ::-1]).found, find_copies(train, list("aabbcc"), others).found
        (6, 0)
    """
    if len(train) < LEAST or len(set(groups)) < LEAST or not len(made):
        raise DataError(
            f"copies need {LEAST} training images and groups and a synthetic image, but there are {len(train)}, "
            f"{len(set(groups))} and {len(made)}."
        )
    turned = np.stack([_turned(image) for image in train])  # [n, ways, pixels]
    between = _distances(turned, _standardised(train))
    own = np.asarray(groups)
    between[own[:, None] == own[None]] = np.inf  # shots of one part are near by right
    threshold = CLOSER * float(np.quantile(between.min(axis=1), QUANTILE))
    distances = _distances(turned, _standardised(made))
    nearest = distances.argmin(axis=1)
    own_distances = distances[np.arange(len(made)), nearest]
    fresh_found = 0
    if fresh is not None and len(fresh):
        fresh_found = int((_distances(turned, _standardised(fresh)).min(axis=1) < threshold).sum())
    return Copies(
        int((own_distances < threshold).sum()), len(made), fresh_found, 0 if fresh is None else len(fresh), threshold,
        nearest.astype(np.int64), own_distances,
    )  # fmt: skip


def _disc(side: int) -> NDArray[np.bool_]:
    middle = (side - 1) / 2
    rows, columns = np.mgrid[:side, :side] - middle
    return np.asarray(np.hypot(rows, columns) <= side / 2 - 1)


def _standardised(images: Greys) -> NDArray[np.float32]:
    """Pixels of the disc, less their mean and of unit length, ``[n, pixels]``; a blank image is all 0."""
    values = images[:, _disc(images.shape[1])].astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, values / np.maximum(lengths, 1e-6), 0).astype(np.float32)


def _turned(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """An image in every turn, mirrored and not, ``[2 * TURNS, pixels]``; right angles are exact."""
    ways: list[NDArray[Any]] = []
    side = image.shape[0]
    middle = ((side - 1) / 2, (side - 1) / 2)
    for flipped in (image, np.ascontiguousarray(image[:, ::-1])):
        for turn in range(TURNS):
            quarters, rest = divmod(turn, TURNS // 4)
            way: NDArray[Any] = np.ascontiguousarray(np.rot90(flipped, quarters))
            if rest:
                matrix = cv2.getRotationMatrix2D(middle, rest * 360 / TURNS, 1.0)
                border = cv2.BORDER_REFLECT_101
                way = cv2.warpAffine(way, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border)
            ways.append(way)
    return _standardised(np.stack(ways))


def _distances(turned: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.float64]:
    """1 - the largest absolute correlation over all ways, ``[m, n]``; inverted images are copies too."""
    out = np.empty((len(images), len(turned)))
    for k, ways in enumerate(turned):
        out[:, k] = 1 - np.abs(images @ ways.T).max(axis=1)
    return out
