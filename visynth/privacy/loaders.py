"""A user's loader as one of Poisson samples of the same data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from visynth.privacy.poisson import PlacedGroups, PlacedRows, PoissonBatches, PoissonLoader, collated


class PlainLoader:
    """A user's loader of a map-style dataset, to be sampled by chance."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.rows = len(loader.dataset)  # type: ignore[arg-type]
        self.expected = int(loader.batch_size or 1)

    @property
    def groups(self) -> Sequence[Any] | None:
        """The group of each row, if the dataset says so."""
        groups: Sequence[Any] | None = getattr(self.loader.dataset, "groups", None)
        return groups

    def private(self, batches: PoissonBatches) -> DataLoader[Any]:
        """The same dataset, collated and loaded in the same way."""
        loader = self.loader
        return PoissonLoader(
            _Places(loader.dataset, batches.rows),
            batch_sampler=batches,
            collate_fn=collated(loader.collate_fn),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            persistent_workers=loader.persistent_workers,
            timeout=loader.timeout,
            multiprocessing_context=loader.multiprocessing_context,
        )


class _Places(Dataset[Any]):
    """A dataset by places of :class:`PoissonBatches`."""

    def __init__(self, dataset: Any, rows: PlacedRows | PlacedGroups) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return self.rows.count

    def __getitem__(self, place: int) -> Any:
        return self.dataset[self.rows.index(place)]
