"""Paired tiles before and after a disaster, in the layout of xBD, and crops of their buildings.

xBD (Gupta et al., "xBD: a dataset for assessing building damage from satellite imagery", CVPR workshops 2019) names its
files ``images/<event>_<number>_{pre,post}_disaster.png`` and ``labels/<event>_<number>_post_disaster.json``, where each
building is a WKT polygon in pixels with a ``subtype`` of damage. The set itself is not shipped, and none of our figures
come from satellite images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core.codec import DEFAULT_LIMITS, Limits, decode
from visynth.core.errors import DataError, raise_all
from visynth.data.imageset import ImageSet, Item, build

DAMAGE = ("no-damage", "minor-damage", "major-damage", "destroyed", "un-classified")
POINT = re.compile(r"(-?\d+(?:\.\d+)?)\s+(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Building:
    """An outline in pixels of the tile, and its damage."""

    damage: str
    outline: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Pair:
    """One place before and after."""

    name: str
    event: str
    before: Path
    after: Path
    buildings: tuple[Building, ...]

    def images(self, limits: Limits = DEFAULT_LIMITS) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both tiles ``[H, W, C]``.

        Raises:
            DataError: they are of different sizes.
        """
        before, after = decode(self.before, limits), decode(self.after, limits)
        if before.shape != after.shape:
            raise DataError(
                f"{self.name}: the tile before is {before.shape}, the tile after {after.shape}: a pair must match."
            )
        return before, after


@dataclass(frozen=True)
class PairCrop:
    """A building in both tiles: ``before`` and ``after`` ``[S, S, C]``, its ``mask [S, S]`` and its damage."""

    before: NDArray[Any]
    after: NDArray[Any]
    mask: NDArray[np.bool_]
    damage: str


def read_pairs(root: str | Path) -> list[Pair]:
    """The pairs of a folder with ``images/`` and ``labels/``, sorted by name.

    Raises:
        DataError: no such folders, tiles without their other half, labels that cannot be read (all listed).
    """
    root = Path(root)
    images, labels = root / "images", root / "labels"
    if not images.is_dir() or not labels.is_dir():
        raise DataError(f"{root} is not of the xBD layout: it needs the folders images/ and labels/.")
    problems: list[str] = []
    pairs = []
    tiles = {p.stem: p for p in sorted(images.iterdir()) if p.suffix.lower() in (".png", ".tif", ".tiff")}
    for stem, after in tiles.items():
        if stem.endswith("_pre_disaster") and stem.replace("_pre_", "_post_") not in tiles:
            problems.append(f"{after.name} has no tile after")
        if not stem.endswith("_post_disaster"):
            continue
        before = tiles.get(stem.replace("_post_", "_pre_"))
        if before is None:
            problems.append(f"{after.name} has no tile before")
            continue
        try:
            buildings = _buildings(labels / f"{stem}.json")
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"labels/{stem}.json cannot be read ({error!r})")
            continue
        name = stem.removesuffix("_post_disaster")
        pairs.append(Pair(name, name.rsplit("_", 1)[0], before, after, buildings))
    raise_all(str(root), problems)
    if not pairs:
        raise DataError(f"{images} holds no tile named ..._post_disaster.png.")
    return pairs


def read_xbd(root: str | Path, damages: Sequence[str] = DAMAGE[:4]) -> ImageSet:
    """The tiles after, as a set whose classes are kinds of damage: an image has every class that a building of it has.

    Groups are events, so that no disaster is on both sides of a split; polygons give masks.
    """
    items = []
    for pair in read_pairs(root):
        own = [b for b in pair.buildings if b.damage in damages]
        regions = tuple((b.damage, [[v for point in b.outline for v in point]]) for b in own)
        items.append(
            Item(
                pair.after,
                f"images/{pair.after.name}",
                tuple(d for d in damages if any(b.damage == d for b in own)),
                group=pair.event,
                regions=regions,
            )
        )
    labels = {label for item in items for label in item.labels}
    return build(Path(root), items, [d for d in damages if d in labels])


def building_crops(pair: Pair, side: int, margin: float = 0.5) -> Iterator[PairCrop]:
    """Each building of a pair in a square window, ``margin`` of its longer side around it, at ``side`` pixels.

    Args:
        pair: from :func:`read_pairs`.
        side: of the crops.
        margin: share of the building's longer side that is shown around it.
    """
    before, after = pair.images()
    height, width = before.shape[:2]
    for building in pair.buildings:
        points = np.array(building.outline)
        low, high = points.min(axis=0), points.max(axis=0)
        length = max(4, round(float((high - low).max()) * (1 + 2 * margin)))
        length = min(length, height, width)
        middle = (low + high) / 2
        left, top = (
            int(np.clip(round(m - length / 2), 0, end - length)) for m, end in zip(middle, (width, height), strict=True)
        )
        canvas = np.zeros((length, length), np.uint8)
        cv2.fillPoly(canvas, [np.round(points - [left, top]).astype(np.int32)], 1)
        part = np.s_[top : top + length, left : left + length]
        mask = cv2.resize(canvas.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR) >= 0.5
        yield PairCrop(_resized(before[part], side), _resized(after[part], side), mask, building.damage)


def _resized(image: NDArray[Any], side: int) -> NDArray[Any]:
    way = cv2.INTER_AREA if image.shape[0] > side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=way)).reshape(side, side, -1)


def _buildings(path: Path) -> tuple[Building, ...]:
    annotation = json.loads(path.read_text(encoding="utf-8"))
    buildings = []
    for feature in annotation["features"]["xy"]:
        properties = feature["properties"]
        if properties.get("feature_type", "building") != "building":
            continue
        outline = _outline(feature["wkt"])
        buildings.append(Building(str(properties.get("subtype", "un-classified")), outline))
    return tuple(buildings)


def _outline(wkt: str) -> tuple[tuple[float, float], ...]:
    """The outer ring of a WKT polygon.

    Example:
        >>> _outline("POLYGON ((1 2, 3 4.5, 5 6, 1 2), (0 0, 1 1, 2 2, 0 0))")
        ((1.0, 2.0), (3.0, 4.5), (5.0, 6.0))
    """
    head, _, rest = wkt.partition("((")
    if head.strip().upper() != "POLYGON" or not rest:
        raise ValueError(f"not a WKT polygon: {wkt[:40]!r}")
    points = [(float(x), float(y)) for x, y in POINT.findall(rest.split(")")[0])]
    if len(points) > 1 and points[0] == points[-1]:
        points = points[:-1]
    if len(points) < 3:
        raise ValueError(f"a polygon of {len(points)} points: {wkt[:40]!r}")
    return tuple(points)
