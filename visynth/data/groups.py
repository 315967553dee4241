"""Near-duplicates, the leak that a random split would make of them, and groups that would prevent it.

Likeness of two images is the mean of two correlations between 32x32 grey copies: of the copies themselves and of
their fine structure (the copy minus its Gaussian blur). On sets without repeats fewer than 1 % of images have a
neighbour above 0.9; on repeated shots of the same part most do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from visynth.data.imageset import ImageSet

ALIKE = 0.9  # likeness from which two images show the same thing
STRICTER = (0.92, 0.94, 0.96, 0.98, 0.99)  # for groups that chain
CHAINED = 0.1  # share of the images from which on a cluster has chained, if it has more than
SMALL = 12  # images
DOMINATES = 0.25  # share of the images that no group should exceed
LEAKS = 0.05  # share of images with a near-duplicate from which a random split is called leaky
GAPS = (1, 2, 3, 5, 10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 2000, 5000)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """Near-duplicates of a set.

    Attributes:
        nearest: for each image its most alike other image, ``[N]``, and
        likeness: how alike it is.
        pairs: all pairs of images of at least ``ALIKE``, ``[P, 2]``, and
        alike: how alike each pair is, ``[P]``.
    """

    nearest: NDArray[np.int64]
    likeness: Floats
    pairs: NDArray[np.int64]
    alike: Floats

    @property
    def repeated(self) -> float:
        """Share of images that have a near-duplicate."""
        return float((self.likeness >= ALIKE).mean())


@dataclass(frozen=True)
class Proposal:
    """Groups found in the data: ``rule`` in words, one group number per image, share of near-duplicates they hold
    together."""

    rule: str
    groups: tuple[str, ...]
    holds: float


def small_copies(grey: Floats) -> Floats:
    """Two unit vectors ``[2, SIDE * SIDE]`` of a grey copy ``[SIDE, SIDE]``: the copy itself and its fine structure, each
    without its mean."""
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 4)
    rows = np.stack([grey.ravel(), fine.ravel()])
    rows -= rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), dtype=np.float32)


def neighbours(copies: Floats, block: int = 1024) -> Neighbours:
    """Nearest neighbours and near-duplicate pairs from ``[N, 2, SIDE * SIDE]`` copies, in blocks of rows."""
    count = len(copies)
    nearest, likeness = np.zeros(count, np.int64), np.full(count, -1, np.float32)
    pairs: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    values: list[Floats] = [np.zeros(0, np.float32)]
    for start in range(0, count, block):
        rows = copies[start : start + block]
        alike = (rows[:, 0] @ copies[:, 0].T + rows[:, 1] @ copies[:, 1].T) / 2
        alike[np.arange(len(rows)), np.arange(start, start + len(rows))] = -1
        nearest[start : start + block], likeness[start : start + block] = alike.argmax(1), alike.max(1)
        left, right = np.nonzero(alike >= ALIKE)
        once = left + start < right
        pairs.append(np.stack([left + start, right], axis=1)[once])
        values.append(alike[left, right][once].astype(np.float32))
    return Neighbours(nearest, likeness, np.concatenate(pairs), np.concatenate(values))


def find_neighbours(images: ImageSet) -> Neighbours:
    """Neighbours of all images of a set."""
    return neighbours(np.stack([small_copies(look.grey) for look in images.looks()]))


def random_split_leak(neighbours: Neighbours, test_share: float = 0.2) -> float:
    """Expected share of test images that a random split leaves a near-duplicate of in training.

    An image with k near-duplicates keeps them all out of training with probability ``test_share ** k``.
    """
    count = len(neighbours.nearest)
    degree = np.bincount(neighbours.pairs.ravel(), minlength=count) if len(neighbours.pairs) else np.zeros(count)
    return float(np.mean(np.where(degree > 0, 1 - test_share**degree, 0.0)))


def across_groups(neighbours: Neighbours, groups: Sequence[str]) -> list[tuple[int, int]]:
    """Near-duplicate pairs whose two images are in different groups."""
    return [(int(a), int(b)) for a, b in neighbours.pairs if groups[a] != groups[b]]


def propose_groups(names: Sequence[str], neighbours: Neighbours) -> Proposal | None:
    """Groups that keep near-duplicates together, or None when the set does not repeat itself.

    File names are tried first (a shared prefix; runs of the last number with small gaps), because a camera that
    shoots a part six times names the shots in a row even where the images differ. A rule *gains* the share of
    near-duplicate neighbours that it holds together beyond what groups of its sizes hold by chance (one big group
    gains nothing), and none whose largest group dominates the set is taken. Of all rules, the one with the largest sum
    of gain and groups per image wins. Where no rule of names gains three quarters, clusters of near-duplicates do; where
    they chain into one that dominates, only pairs that are more alike hold it together.
    """
    if neighbours.repeated < LEAKS:
        return None
    repeated = np.flatnonzero(neighbours.likeness >= ALIKE)

    def holds(groups: NDArray[np.int64]) -> float:
        return float((groups[neighbours.nearest[repeated]] == groups[repeated]).mean())

    def gain(groups: NDArray[np.int64]) -> float:
        return holds(groups) - float(((np.bincount(groups) / len(groups)) ** 2).sum())

    rules = {
        rule: groups
        for rule, groups in _name_rules(names)
        if 1 < groups.max() + 1 < len(names) and np.bincount(groups).max() < DOMINATES * len(names)
    }
    scored = {rule: gain(groups) + (groups.max() + 1) / len(names) for rule, groups in rules.items()}
    best = max(scored, key=lambda rule: scored[rule], default="")
    if not best or gain(rules[best]) < 0.75:
        best, (rules[""], level) = "", _clusters(len(names), neighbours)
    rule = best or f"images that look alike (likeness of at least {ALIKE}" + (
        f", of {level:g} where they would chain)" if not best and level > ALIKE else ")"
    )
    return Proposal(rule, tuple(str(g) for g in rules[best]), holds(rules[best]))


def _name_rules(names: Sequence[str]) -> list[tuple[str, NDArray[np.int64]]]:
    stems = [Path(name).stem for name in names]
    numbers = [re.findall(r"\d+", stem) for stem in stems]
    rules = []
    prefixes = [re.sub(r"[\s_.-]*\d+$", "", stem) for stem in stems]
    rules.append(("the file name before its last number", np.unique(prefixes, return_inverse=True)[1]))
    if all(numbers):
        last = np.array([int(n[-1][-18:]) for n in numbers], dtype=np.int64)
        order = np.argsort(last, kind="stable")
        for gap in GAPS:
            groups = np.empty(len(names), np.int64)
            groups[order] = np.concatenate([[0], np.cumsum(np.diff(last[order]) > gap)])
            rules.append((f"runs of the last number in the file name, gaps of at most {gap}", groups))
    return rules


def _clusters(count: int, neighbours: Neighbours) -> tuple[NDArray[np.int64], float]:
    """Connected near-duplicates, and the likeness that the strictest of them needed."""
    held = np.ones(len(neighbours.pairs), bool)
    groups, level = _connected(count, neighbours.pairs), ALIKE
    for stricter in STRICTER:
        large = np.bincount(groups) > max(SMALL, CHAINED * count)
        if not large.any():
            break
        held &= ~(large[groups[neighbours.pairs[:, 0]]] & (neighbours.alike < stricter))
        groups, level = _connected(count, neighbours.pairs[held]), stricter
    return groups, level


def _connected(count: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)
