"""Statistics of features as torchmetrics: synchronised over ranks, of fixed size, whatever number of batches each rank
saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError


class FeatureStats(Metric):
    """Count, sum and sum of products of features ``[N, D]``, in float64: mean and covariance without keeping an image.

    Example:
        >>> stats = FeatureStats(2)
        >>> stats.update(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
        >>> [part.tolist() for part in stats.compute()]
        [[1.0, 2.0], [[2.0, 2.0], [2.0, 2.0]]]
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        values = features.double()
        self.count += len(values)
        self.total += values.sum(0)
        self.products += values.T @ values

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean ``[D]`` and covariance ``[D, D]``.

        Raises:
            DataError: fewer than two images over all ranks.
        """
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 images, but there are {int(self.count)}.")
        mean = self.total / self.count
        return mean, (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def set_dtype(self, dst_type: Any) -> FeatureStats:
        """Stays in float64: half or single precision would lose the covariance."""
        return self


def _joined(ranks: Tensor) -> Tensor:
    """States of all ranks ``[world, size, ...]`` one below the other; torchmetrics' "cat" would leave a tensor state
    stacked."""
    return ranks.flatten(0, 1)


class FeatureReservoir(Metric):
    """An even sample of at most ``size`` features with their labels, allocated once on every rank.

    Each feature has a priority from a counter-based generator; those with the highest stay. So the sample is even over
    everything that any rank saw, however unevenly, and no list grows and no gather waits for a rank that had fewer
    batches. (An even reservoir by priorities: Efraimidis and Spirakis, "Weighted random sampling with a reservoir",
    2006, with equal weights.)

    Args:
        width: of a feature.
        size: that are kept, at most.
        seed: of the sample.
        rank: of this process.
        by_class: as many of each class as there is room for, so that a rare class is kept whole where it can be; by default
            all features are alike. What each rank keeps of a class is never less than what all together keep.

    Example:
        >>> pool = FeatureReservoir(2, size=3)
        >>> pool.update(torch.arange(10.0).reshape(5, 2), torch.arange(5))
        >>> [tuple(part.shape) for part in pool.compute()]
        [(3, 2), (3,)]
    """

    full_state_update = False
    features: Tensor
    labels: Tensor
    priorities: Tensor

    def __init__(
        self, width: int, size: int = 5000, seed: int = 0, rank: int = 0, by_class: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if size < 1:
            raise UsageError(f"a reservoir holds at least one feature, but size is {size}.")
        self.size, self.seed, self.source, self.by_class = size, seed, rank, by_class
        self.met = 0
        self.add_state("features", torch.zeros(size, width), dist_reduce_fx=_joined)
        self.add_state("labels", torch.full((size,), -1, dtype=torch.int64), dist_reduce_fx=_joined)
        self.add_state("priorities", torch.full((size,), -1.0, dtype=torch.float64), dist_reduce_fx=_joined)

    def update(self, features: Tensor, labels: Tensor | None = None) -> None:
        count = len(features)
        if not count:
            return
        drawn = seeding.rng(seeding.derive("reservoir", self.seed, self.source, self.met), "priority").random(count)
        self.met += count
        given = torch.zeros(count, dtype=torch.int64) if labels is None else labels
        everything = (
            torch.cat([self.features, features.detach().to(self.features)]),
            torch.cat([self.labels, given.to(self.labels)]),
            torch.cat([self.priorities, torch.from_numpy(drawn).to(self.priorities)]),
        )
        keep = self._first(everything[2], everything[1])[: self.size].sort().values
        self.features, self.labels, self.priorities = (part[keep] for part in everything)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Features ``[n, D]`` and labels ``[n]``, n at most ``size``."""
        order = self._first(self.priorities, self.labels)[: self.size]
        order = order[self.priorities[order] >= 0]
        return self.features[order], self.labels[order]

    def _first(self, priorities: Tensor, labels: Tensor) -> Tensor:
        """Rows in the order in which they are kept; empty ones, of negative priority, are the last."""
        order = priorities.argsort(descending=True)
        if not self.by_class:
            return order
        own = labels[order]
        place = torch.zeros_like(own)  # among those of its class, which stand in the order of their priorities
        for label in set(own.tolist()):
            of = own == label
            place[of] = torch.arange(int(of.sum()), device=own.device)
        place[priorities[order] < 0] = len(order)
        return order[place.argsort(stable=True)]

    def reset(self) -> None:
        super().reset()
        self.met = 0

    def set_dtype(self, dst_type: Any) -> FeatureReservoir:
        return self


def split(features: Tensor, labels: Tensor, classes: int) -> list[NDArray[np.float32]]:
    """Features per class."""
    values, own = features.cpu().numpy(), labels.cpu().numpy()
    return [values[own == label] for label in range(classes)]
