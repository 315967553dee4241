"""Groups that look like one part: local features of some images of each group, matched after alignment.

Groups say which images belong together (one part, one scene, one patient), and a split by group is only as good as they
are. Images of one part under other light, or turned, are no near-duplicates of each other, but their local features
(SIFT) lie in the same places after a rotation, a shift and a change of scale. Sources: Lowe, "Distinctive image
features from scale-invariant keypoints" (IJCV 2004), section 7.1 (ratio of the two nearest, 0.75 here); Arandjelovic
and Zisserman, "Three things everyone should know" (CVPR 2012), section 3 (square roots of the descriptors); Fischler
and Bolles, "Random sample consensus" (CACM 1981).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.core.codec import Array
from visynth.core.pictures import resize
from visynth.data.imageset import ImageSet, in_threads

FEATURES = 300  # of an image, the strongest
IMAGES = 3  # of a group, spread over its names
BUDGET = 45_000  # features that vote, over all images; the time goes with its square
VOTES = 8  # features of two groups that are nearest to each other, from which on the pair is aligned
PAIRS = 400  # pairs aligned, those with most votes
AGREE = 18  # matches that one rotation, shift and scale must explain; parts that only look alike reach 14
SIDE = 512  # images are shrunk to the area of this square
SCALE = (0.8, 1.25)  # images of one part have about one scale
ONE_DESIGN = 0.5  # share of the groups that hang together, from which on they share a design, not a part


@dataclass(frozen=True)
class Features:
    """Places ``[n, 2]`` (x, y) in pixels and unit descriptors ``[n, 128]`` of an image, the strongest first."""

    places: NDArray[np.float32]
    descriptors: NDArray[np.float32]


@dataclass(frozen=True)
class Alignment:
    """Alignment of two images: ``agreeing`` of ``matches`` feature pairs fit a turn (degrees), a shift and a
    ``scale``."""

    agreeing: int
    matches: int
    scale: float
    degrees: float

    @property
    def holds(self) -> bool:
        """Whether this is no coincidence."""
        return self.agreeing >= AGREE and self.agreeing >= 0.7 * self.matches and SCALE[0] <= self.scale <= SCALE[1]


@dataclass(frozen=True)
class SamePart:
    """Two groups whose images show one part, with the two images that say so."""

    groups: tuple[str, str]
    images: tuple[str, str]
    alignment: Alignment

    def __str__(self) -> str:
        match = self.alignment
        return (
            f"groups {self.groups[0]} and {self.groups[1]}: {match.agreeing} of {match.matches} local features of "
            f"{self.images[0]} and "
            f"{self.images[1]} agree (turned by {match.degrees:.0f} degrees)"
        )


@dataclass(frozen=True)
class PartCheck:
    """Result of matching groups.

    Attributes:
        pairs: groups that look like one part, the surest first.
        checked: groups that took part, of
        groups: in all; more than fit the budget are not looked at.
        one_design: most groups hang together: parts of one design or on one fixture, which local features cannot tell
            apart.
    """

    pairs: tuple[SamePart, ...]
    checked: int
    groups: int
    one_design: bool = False


def images_to_match(images: ImageSet) -> list[str]:
    """Names of the images whose local features :func:`find_same_parts` needs: up to three of each group."""
    _, chosen = _chosen(images)
    return [images.items[row].name for _, row in chosen]


def find_same_parts(images: ImageSet, features: Mapping[str, Features] | None = None) -> PartCheck:
    """Pairs of groups that look like one part.

    Up to three images of each group vote with their local features for the group that each feature's nearest one is in;
    pairs with votes are aligned image by image, and count where one rotation, shift and scale explains the matches.

    Args:
        images: with a group for every image.
        features: by name, of :func:`images_to_match`; computed where they are not given.
    """
    checked, chosen = _chosen(images)
    if features is None:
        local = in_threads(lambda row: local_features(images.image(images.items[row[1]])), chosen)
    else:
        local = [features[images.items[row].name] for _, row in chosen]
    own = np.array([place for place, _ in chosen], dtype=np.int64)
    votes = _votes([f.descriptors for f in local], own, len(checked))
    of_group: dict[int, list[int]] = {}
    for row, (place, _) in enumerate(chosen):
        of_group.setdefault(place, []).append(row)
    pairs = in_threads(lambda pair: _best(local, of_group[pair[0]], of_group[pair[1]]), votes)
    same = [
        SamePart(
            (checked[a], checked[b]),
            (images.items[chosen[first][1]].name, images.items[chosen[second][1]].name),
            alignment,
        )
        for (a, b), (alignment, first, second) in zip(votes, pairs, strict=True)
        if alignment.holds
    ]
    same.sort(key=lambda pair: (-pair.alignment.agreeing, pair.groups))
    largest = max((len(part) for part in components([pair.groups for pair in same])), default=0)
    return PartCheck(
        tuple(same), len(checked), len(_spread(images)), largest > 4 and largest > ONE_DESIGN * len(checked)
    )


def components(pairs: Sequence[tuple[str, str]]) -> list[set[str]]:
    """Names that hang together by pairs.

    Example:
        >>> [sorted(part) for part in components([("a", "b"), ("c", "d"), ("b", "e")])]
        [['a', 'b', 'e'], ['c', 'd']]
    """
    parts: list[set[str]] = []
    for first, second in pairs:
        joined = {first, second}.union(*(part for part in parts if part & {first, second}))
        parts = [part for part in parts if not part & joined] + [joined]
    return sorted(parts, key=min)


def merged(groups: Sequence[str], check: PartCheck) -> list[str]:
    """Groups with those that look like one part under the name of the first of them."""
    name = {member: min(part) for part in components([pair.groups for pair in check.pairs]) for member in part}
    return [name.get(group, group) for group in groups]


def local_features(image: Array) -> Features:
    """SIFT features of a grey copy whose contrast is evened out tile by tile (CLAHE), so that dark exposures have
    theirs.

    Args:
        image: ``[H, W, C]`` uint8 or uint16.
    """
    height, width = image.shape[:2]
    factor = min(1.0, SIDE / (height * width) ** 0.5)
    small = resize(image, (max(8, round(height * factor)), max(8, round(width * factor)))) if factor < 1 else image
    grey = small.astype(np.float32).mean(axis=2) * (255 / np.iinfo(image.dtype).max)
    even = cv2.createCLAHE(4, (4, 4)).apply(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    sift: Any = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=0.03)  # type: ignore[attr-defined]
    points, values = sift.detectAndCompute(even, None)
    if values is None or not len(points):
        return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    strongest = np.argsort([-point.response for point in points], kind="stable")[:FEATURES]
    roots = np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-9))
    return Features(np.array([points[i].pt for i in strongest], np.float32), roots[strongest].astype(np.float32))


def align(first: Features, second: Features) -> Alignment:
    """Matches of two images' features that are much nearer than the next ones, and the similarity that explains most of
    them."""
    nothing = Alignment(0, 0, 0.0, 0.0)
    if min(len(first.places), len(second.places)) < AGREE:
        return nothing
    alike = first.descriptors @ second.descriptors.T
    rows = np.arange(len(alike))
    nearest = alike.argmax(axis=1)
    best = alike[rows, nearest].copy()
    alike[rows, nearest] = -np.inf
    squares = np.maximum(2 - 2 * np.stack([best, alike.max(axis=1)]), 0)  # of distances to the nearest and the next
    clear = squares[0] < 0.75**2 * squares[1]
    if clear.sum() < AGREE:
        return Alignment(0, int(clear.sum()), 0.0, 0.0)
    partners = nearest[clear]
    matrix, fits = cv2.estimateAffinePartial2D(
        first.places[clear], second.places[partners], method=cv2.RANSAC, ransacReprojThreshold=4, maxIters=1000
    )
    if matrix is None:
        return Alignment(0, int(clear.sum()), 0.0, 0.0)
    # Several features of one image that all meet one point of the other say nothing.
    agreeing = min(
        len(np.unique(places[fits.ravel() == 1], axis=0)) for places in (first.places[clear], second.places[partners])
    )
    scale, degrees = (
        float(np.hypot(matrix[0, 0], matrix[1, 0])),
        float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))),
    )
    return Alignment(agreeing, int(clear.sum()), scale, degrees)


def _spread(images: ImageSet) -> Mapping[str, list[int]]:
    """Up to three rows of each group: the first by name, the last, and the one between."""
    groups: dict[str, list[int]] = {}
    for row, item in enumerate(images.items):
        groups.setdefault(item.group or item.name, []).append(row)
    return {
        group: sorted({rows[round(k * (len(rows) - 1) / (IMAGES - 1))] for k in range(IMAGES)})
        for group, rows in groups.items()
    }


def _chosen(images: ImageSet) -> tuple[list[str], list[tuple[int, int]]]:
    """Groups that take part, and (place of the group, row of the image) for each of their images that is matched."""
    rows = _spread(images)
    order = sorted(rows)
    most = min(BUDGET // (20 * IMAGES), len(order))  # below twenty features an image has no voice
    checked = [order[round(k * (len(order) - 1) / max(most - 1, 1))] for k in range(most)]
    return checked, [(place, index) for place, group in enumerate(checked) for index in rows[group]]


def _votes(descriptors: Sequence[NDArray[np.float32]], own: NDArray[np.int64], groups: int) -> list[tuple[int, int]]:
    """Pairs of groups by how many features have their nearest one, of all other groups, in the other; most first."""
    each = max(20, BUDGET // max(len(descriptors), 1))
    values = np.concatenate([d[:each] for d in descriptors])
    group = np.repeat(own, [min(each, len(d)) for d in descriptors])
    counts = np.zeros((groups, groups), np.int64)
    for start in range(0, len(values), 1024):
        rows = group[start : start + 1024]
        alike = values[start : start + 1024] @ values.T
        alike[rows[:, None] == group[None, :]] = -1
        best = alike.argmax(axis=1)
        near = alike[np.arange(len(best)), best] > 0.8
        np.add.at(counts, (rows[near], group[best[near]]), 1)
    both = counts + counts.T
    first, second = np.nonzero(np.triu(both, 1) >= VOTES)
    order = np.argsort(-both[first, second], kind="stable")[:PAIRS]
    return [(int(first[i]), int(second[i])) for i in order]


def _best(local: Sequence[Features], first: Sequence[int], second: Sequence[int]) -> tuple[Alignment, int, int]:
    tried = [(align(local[a], local[b]), a, b) for a in first for b in second]
    return max(tried, key=lambda t: (t[0].holds, t[0].agreeing))
