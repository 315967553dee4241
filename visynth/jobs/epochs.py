"""Epochs of a training whose items have weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from visynth.core import seeds as seeding
from visynth.verdict.learners import Floats


class Epochs(Sampler[int]):
    """Epochs of a fixed length in which each item comes in proportion to its weight, as evenly as whole numbers allow: by
    systematic sampling (Madow, 1949), one random offset an epoch. With equal weights each comes once, as in any training.

    Example:
        >>> sorted(Epochs(np.ones(4), 4, seed=0))
        [0, 1, 2, 3]
        >>> sorted(Epochs(np.array([2.0, 1.0, 1.0]), 8, seed=0))
        [0, 0, 0, 0, 1, 1, 2, 2]
    """

    def __init__(self, weights: Floats, length: int, seed: int) -> None:
        self.weights, self.length, self.seed, self.epoch = weights / weights.sum(), length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        stream = seeding.rng(seeding.derive("epoch", self.seed, self.epoch), "order")
        self.epoch += 1
        order = stream.permutation(len(self.weights))  # which item an uneven rest falls to is drawn, too
        ends = np.cumsum(self.weights[order])
        ends[-1] = 1.0
        points = (np.arange(self.length) + stream.random()) / self.length
        chosen = order[np.searchsorted(ends, points, side="right")]
        return iter(chosen[stream.permutation(self.length)].tolist())
