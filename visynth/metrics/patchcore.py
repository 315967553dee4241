"""PatchCore: how far an image's patches lie from those of defect-free images. It needs no image of a defect.

Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (CVPR 2022): locally averaged features of the
middle layers (section 3.1), a memory bank that is thinned out greedily (section 3.2, algorithm 1), and the distance to the
nearest entry. An image has the mean of its five largest distances, which one odd patch moves less than their maximum.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError

Patches = NDArray[Any]  # [P, D], those of one image
SIZE = 1500  # entries of the memory bank
POOL = 4  # times as many are looked at when it is thinned out
LARGEST = 5  # distances whose mean an image has


@dataclass(frozen=True)
class PatchCore:
    """A memory bank of defect-free patches.

    Attributes:
        bank: float32 ``[M, D]``.
        groups: of the image that each comes from.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> core = fit_patchcore([rng.normal(size=(9, 4)) for _ in range(6)], list("aabbcc"))
        >>> near, far = core.scores([rng.normal(size=(9, 4)), rng.normal(size=(9, 4)) + 9])
        >>> bool(far > 3 * near)
        True
    """

    bank: NDArray[np.float32]
    groups: NDArray[np.str_]

    def scores(
        self, images: Sequence[Patches], without: Sequence[Collection[str]] | None = None
    ) -> NDArray[np.float64]:
        """Distance of each image from the bank, ``[N]``.

        Args:
            images: the patches of each, ``[P, D]``.
            without: per image the groups whose entries do not count: those that it was made from, or is one of. NaN where
                none are left.
        """
        squares = (self.bank.astype(np.float64) ** 2).sum(axis=1).astype(np.float32)
        minus_twice = np.ascontiguousarray(-2 * self.bank.T)

        @cache
        def counted(groups: frozenset[str]) -> NDArray[np.float32]:
            """Squared lengths; infinite for those that do not count."""
            return np.where(np.isin(self.groups, sorted(groups)), np.float32(np.inf), squares)

        out = np.full(len(images), np.nan)
        for k, patches in enumerate(images):
            own = patches.astype(np.float32)
            lengths = squares if without is None else counted(frozenset(without[k]))
            if not np.isfinite(lengths).any():
                continue
            squared = own @ minus_twice
            squared += lengths
            nearest = squared.min(axis=1) + (own**2).sum(axis=1)
            distances = np.sqrt(np.maximum(nearest, 0))
            out[k] = float(np.sort(distances)[-LARGEST:].mean())
        return out


def fit_patchcore(images: Sequence[Patches], groups: Sequence[str], size: int = SIZE, seed: int = 0) -> PatchCore:
    """A bank of at most ``size`` patches that lie as far apart as a greedy choice finds.

    Args:
        images: patches of defect-free images, ``[P, D]`` each.
        groups: of each image.
        size: of the bank.
        seed: of the patches that are looked at.

    Raises:
        DataError: no image.
    """
    if not images:
        raise DataError("a memory bank of defect-free patches needs a defect-free image.")
    every = np.concatenate([patches.astype(np.float32) for patches in images])
    own = np.repeat(np.asarray(groups, dtype=str), [len(patches) for patches in images])
    order = seeding.rng(seeding.derive("patchcore", seed), "pool").permutation(len(every))[: POOL * size]
    pool, own = every[order], own[order]
    if len(pool) <= size:
        return PatchCore(pool, own)
    lengths = (pool**2).sum(axis=1)
    chosen = [0]
    nearest = lengths + lengths[0] - 2 * pool @ pool[0]
    while len(chosen) < size:
        far = int(nearest.argmax())
        chosen.append(far)
        np.minimum(nearest, lengths + lengths[far] - 2 * pool @ pool[far], out=nearest)
    return PatchCore(pool[chosen], own[chosen])
