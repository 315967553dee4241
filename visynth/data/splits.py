"""Splits by group: images of one tile, patient or scene never stand on both sides."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError

Indices = NDArray[np.int64]


def group_folds(labels: Sequence[str], groups: Sequence[str], folds: int, seed: int) -> list[tuple[Indices, Indices]]:
    """(train, test) index pairs; every image is tested once, classes are spread as evenly as the groups allow.

    Args:
        labels: the class that is to be spread, one per image.
        groups: the group of each image.
        folds: how many parts.
        seed: which assignment of groups to folds.

    Raises:
        DataError: fewer groups than folds.

    Example:
        >>> pairs = group_folds(["a", "a", "b", "b"], ["1", "2", "3", "4"], folds=2, seed=0)
        >>> sorted(int(i) for _, test in pairs for i in test)
        [0, 1, 2, 3]
    """
    from sklearn.model_selection import StratifiedGroupKFold

    count = len(set(groups))
    if count < folds:
        raise DataError(
            f"{folds} folds need at least {folds} groups, but there are {count}: use fewer folds or more data."
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seeding.derive("folds", seed) % 2**32)
    with warnings.catch_warnings():
        # A class with fewer groups than folds is expected here; callers check what they need.
        warnings.filterwarnings("ignore", message="The least populated class in y", category=UserWarning)
        pairs = splitter.split(np.zeros(len(labels)), np.asarray(labels), np.asarray(groups))
        return [(np.asarray(train), np.asarray(test)) for train, test in pairs]


def pick_groups(groups: Sequence[str], count: int, seed: int) -> set[str]:
    """``count`` of the distinct groups, drawn without regard to the order in which they come."""
    names = sorted(set(groups))
    if count > len(names):
        raise DataError(f"{count} groups were asked for, but there are {len(names)}.")
    order = seeding.rng(seeding.derive("groups", seed), "pick").permutation(len(names))
    return {names[i] for i in order[:count]}
