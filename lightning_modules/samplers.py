"""A tempered class-balanced sampler: seeded, sharded by rank, exact about its epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler, Sampler

from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.core.errors import UsageError


class TemperedSampler(Sampler[int]):
    """Draws classes with probability proportional to ``n ** temper`` and images evenly within a class.

    ``temper=1`` keeps the natural imbalance, ``0`` balances fully, ``0.5`` is the usual middle. Every rank draws the
    same list and takes its share, so ranks never meet the same draw and Lightning may wrap the sampler for DDP.

    Args:
        labels: the class of each image.
        temper: the exponent a of q ~ n^a.
        seed: of the draws; epoch k of one seed is always the same list.
        length: draws per epoch, by default one per image.

    Raises:
        UsageError: no labels, or a temper outside [0, 1].

    Example:
        >>> sampler = TemperedSampler([0] * 90 + [1] * 10, temper=0.0, seed=1)
        >>> 35 < sum(index >= 90 for index in sampler) < 65
        True
    """

    def __init__(
        self, labels: Sequence[int | str], *, temper: float = 0.5, seed: int = 0, length: int | None = None
    ) -> None:
        if not len(labels):
            raise UsageError("TemperedSampler needs at least one label.")
        if not 0 <= temper <= 1:
            raise UsageError(f"temper must be in [0, 1] (1: natural, 0: balanced), but got {temper}.")
        self.probabilities = class_probabilities(labels, temper)
        self.seed, self.epoch = seed, 0
        self.length = len(labels) if length is None else length

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = seeding.rng(seeding.derive("sampler", self.seed, self.epoch), "draws")
        yield from (int(i) for i in generator.choice(len(self.probabilities), size=self.length, p=self.probabilities))


def class_probabilities(labels: Sequence[int | str], temper: float) -> NDArray[np.float64]:
    """Probability of each image under q(class) ~ n^temper, even within a class.

    Example:
        >>> class_probabilities(["a", "a", "a", "b"], 0.0).round(3).tolist()
        [0.167, 0.167, 0.167, 0.5]
    """
    _, inverse, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    weights = (counts.astype(np.float64) ** temper / counts)[inverse]
    return np.asarray(weights / weights.sum(), dtype=np.float64)


class Stream(DistributedSampler[int]):
    """Positions of an endless, seeded stream of draws, from wherever training stands; each rank takes every world-th.

    A position is a number; which image it means is :meth:`StreamOrder.index`'s business, and what noise it gets the
    training module's. So a run that is resumed, split over ranks or given other batches meets the same draws. It is a
    ``DistributedSampler`` because Lightning would wrap any other one under DDP, and shuffle the positions.

    Args:
        start: gives the first position of the next pass; it is asked at each pass.
        length: positions in a pass (an epoch), over all ranks.

    Example:
        >>> list(Stream(lambda: 7, 3))
        [7, 8, 9]
    """

    def __init__(self, start: Callable[[], int], length: int) -> None:
        if length < 1:
            raise UsageError(f"an epoch needs at least one image, but got {length}.")
        self.own_rank, self.world = distributed.rank(), distributed.world_size()
        places: Any = range(length)  # all that is asked of it is its length
        super().__init__(places, num_replicas=self.world, rank=self.own_rank, shuffle=False, drop_last=True)
        self.start = start

    def __len__(self) -> int:
        return max(1, len(self.dataset) // self.world)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        first = self.start() + self.own_rank
        yield from range(first, first + len(self) * self.world, self.world)


class StreamOrder:
    """Order of the stream: independent draws with q(class) ~ n^temper.

    Example:
        >>> order = StreamOrder([0] * 9 + [1], temper=0.0, seed=3)
        >>> [order.index(p) for p in (5, 10**9)] == [order.index(p) for p in (5, 10**9)]
        True
    """

    block = 4096  # draws made together

    def __init__(self, labels: Sequence[int | str], *, temper: float = 0.5, seed: int = 0) -> None:
        if not 0 <= temper <= 1:
            raise UsageError(f"temper must be in [0, 1] (1: natural, 0: balanced), but got {temper}.")
        self.probabilities = class_probabilities(labels, temper)
        self.seed = seed
        self._blocks: dict[int, NDArray[np.int64]] = {}

    def index(self, position: int) -> int:
        """Row of the image at a position."""
        number, place = divmod(int(position), self.block)
        if number not in self._blocks:
            if len(self._blocks) > 3:  # training walks on: only the latest blocks are asked again
                self._blocks.clear()
            generator = seeding.rng(seeding.derive("stream", self.seed, number), "draws")
            count = len(self.probabilities)
            self._blocks[number] = generator.choice(count, size=self.block, p=self.probabilities)
        return int(self._blocks[number][place])
