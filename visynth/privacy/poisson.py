"""Poisson samples of rows: each is in a step's batch with one probability, on its own. What the accountant counts on.

Which rows are drawn is a function of (key, step); see :mod:`visynth.privacy.secret`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from visynth.core.errors import DataError
from visynth.privacy.secret import secret_rng


def poisson_rows(key: str, step: int, count: int, rate: float) -> NDArray[np.int64]:
    """Rows of a step, rising; each of ``count`` is there with probability ``rate``.

    Example:
        >>> poisson_rows("0" * 64, 0, 5, 1.0).tolist()
        [0, 1, 2, 3, 4]
    """
    return np.flatnonzero(secret_rng(key, f"rows/{step}").random(count) < rate)


class EmptyBatch(dict[str, Tensor]):
    """A step for which no row was drawn: there is noise all the same."""


@dataclass(frozen=True)
class PlacedRows:
    """Which row a place means: places of a step follow those of the one before, copies of a row stand side by side.

    Attributes:
        count: rows of the data.
        multiplicity: copies of a row in its batch.

    Example:
        >>> [PlacedRows(3, 2).index(place) for place in (24, 25, 29)]
        [0, 0, 2]
    """

    count: int
    multiplicity: int
    digest = ""

    def index(self, place: Any) -> Any:
        """The row of a place, or those of an array of places."""
        return place // self.multiplicity % self.count


@dataclass(frozen=True)
class PlacedGroups:
    """Which row a place means where a unit (a patient) has several rows: its copies are its rows in turn.

    Attributes:
        rows: of all units, one unit after the other ``[rows]``.
        starts: of each unit in ``rows``, and the end ``[units + 1]``.
        multiplicity: rows of a unit in its batch.

    Example:
        >>> groups = PlacedGroups.of(["ann", "bob", "ann"], 2)
        >>> [int(groups.index(place)) for place in range(4)]
        [0, 2, 1, 1]
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    multiplicity: int

    @classmethod
    def of(cls, groups: Sequence[Any], multiplicity: int) -> PlacedGroups:
        """By the group of each row; units are in the order of their names.

        Raises:
            DataError: rows without a group.
        """
        missing = sum(group is None or group != group or str(group) == "" for group in groups)
        if missing:
            raise DataError(
                f"{missing} of {len(groups)} rows have no group: they would count as one unit. Name a group for each."
            )
        _, owner, sizes = np.unique(np.asarray(groups, str), return_inverse=True, return_counts=True)
        return cls(np.argsort(owner, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]), multiplicity)

    @property
    def digest(self) -> str:
        """Hash of which rows are one unit."""
        return hashlib.sha256(self.rows.tobytes() + self.starts.tobytes()).hexdigest()

    @property
    def count(self) -> int:
        """Units."""
        return len(self.starts) - 1

    def index(self, place: Any) -> Any:
        """The row of a place, or those of an array of places."""
        draw, copy = place // self.multiplicity, place % self.multiplicity
        step, unit = draw // self.count, draw % self.count
        first, turn = self.starts[unit], step * self.multiplicity + copy
        return self.rows[first + turn % (self.starts[unit + 1] - first)]


class PoissonBatches(Sampler[list[int]]):
    """Batches of places ``[rows times multiplicity]``, from the step on where training stands.

    A place is a number of its own for every copy of every row in every step, so that what a module draws by place (noise,
    augmentation) is new each time; :class:`PlacedRows` says which row it means.

    Args:
        rows: which row a place means.
        rate: probability of each unit.
        key: see :mod:`visynth.privacy.secret`.
        first: gives the step to begin with.
        length: batches of an epoch.

    Example:
        >>> batches = list(PoissonBatches(PlacedRows(3, 2), 1.0, "0" * 64, lambda: 4, 1))
        >>> batches
        [[24, 25, 26, 27, 28, 29]]
    """

    def __init__(
        self, rows: PlacedRows | PlacedGroups, rate: float, key: str, first: Callable[[], int], length: int
    ) -> None:
        self.rows, self.rate, self.key, self.first, self.length = rows, rate, key, first, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        start = self.first()
        for step in range(start, start + self.length):
            yield self.places(step).tolist()

    def places(self, step: int) -> NDArray[np.int64]:
        """Places of a step."""
        count, multiplicity = self.rows.count, self.rows.multiplicity
        units = poisson_rows(self.key, step, count, self.rate) + step * count
        return (units[:, None] * multiplicity + np.arange(multiplicity)).reshape(-1)


class PoissonLoader(DataLoader[Any]):
    """A loader that Lightning may resume in the middle of an epoch: its batches start at the step where training stands."""

    def state_dict(self) -> dict[str, Any]:
        return {"resumes": "by steps_done"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the count is in the callback."""


def collated(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """A collate function that knows empty batches."""
    return lambda items: collate(items) if batch_rows(items) or _plain_items(items) else EmptyBatch()


def _plain_items(items: Any) -> bool:
    """Whether a list of rows holds any, though none is a tensor."""
    return isinstance(items, list) and bool(items)


def batch_rows(batch: Any) -> int:
    """Rows of a batch: those of the first tensor in it."""
    for value in _tensors(batch):
        return len(value)
    return 0


def rows_of_batch(batch: Any, part: slice) -> Any:
    """A part of a batch's rows, in the batch's own form."""
    if isinstance(batch, Tensor):
        return batch[part]
    if isinstance(batch, dict):
        return type(batch)({name: rows_of_batch(value, part) for name, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(rows_of_batch(value, part) for value in batch))
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        held = all(isinstance(value, (Tensor, dict, list, tuple)) for value in batch)
        return type(batch)(rows_of_batch(value, part) for value in batch) if held else batch[part]  # type: ignore[call-arg]
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for value in batch:
            yield from _tensors(value)
