"""A loader that reads rendered images ahead of the batches that they will stand in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.mixing.convert import Converter
from visynth.mixing.plan import (
    Slots,
    SlotStream,
)
from visynth.mixing.sources import RenderedSource, truth_of

Draw = tuple[str, int]  # class, and number within the class


class RenderedRows(Dataset[Any]):
    """Rendered images by (class, number), already in the user's terms: ``[images, labels, ...]``, one entry an
    image."""

    def __init__(self, source: RenderedSource, convert: Converter) -> None:
        self.source, self.convert = source, convert

    def __getitem__(self, wanted: tuple[int, list[Draw]]) -> tuple[int, list[Any]]:
        number, draws = wanted
        rows = [converted_row(self.source, self.convert, draw) for draw in draws]
        return number, [packed(column) for column in zip(*rows, strict=True)]


class ReadAhead:
    """Asks a loader with workers for its next batch from a thread: receiving it takes milliseconds that the training
    need not wait for."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._batches = iter(loader)
        self._thread = ThreadPoolExecutor(1, "visynth-examples") if loader.num_workers else None
        self._next = self._thread.submit(next, self._batches) if self._thread else None

    def __next__(self) -> tuple[int, list[Any]]:
        if self._next is None or self._thread is None:
            batch: tuple[int, list[Any]] = next(self._batches)
            return batch
        batch = self._next.result()
        self._next = self._thread.submit(next, self._batches)
        return batch

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)


def packed(column: Sequence[Any]) -> Any:
    """One tensor where that can be: each tensor that comes from a worker costs the training's process half a
    millisecond."""
    plain = all(type(value) is torch.Tensor for value in column)
    alike = plain and len({(value.shape, value.dtype) for value in column}) == 1
    return torch.stack(list(column)) if alike else list(column)


class SlotBatches:
    """The draws of each batch from one on, without end."""

    def __init__(self, stream: SlotStream, slots: Slots, first: int) -> None:
        self.stream, self.slots, self.first = stream, slots, first

    def __iter__(self) -> Iterator[tuple[int, list[Draw]]]:
        number = self.first
        while True:
            draws = [self.stream.at(n) for n in self.slots.of(number)]
            if draws:
                yield number, draws
            number += 1


def reading_loader(
    source: RenderedSource,
    convert: Converter,
    stream: SlotStream,
    slots: Slots,
    first: int,
    *,
    seed: int,
    workers: int,
    context: Any,
) -> DataLoader[Any]:
    own = Slots(slots.share, slots.size, slots.rank, slots.world)  # it runs ahead of the training's
    first_seed = seeding.derive("pictures", seed, distributed.rank(), first)
    return DataLoader(
        RenderedRows(source, convert),
        batch_size=None,
        sampler=SlotBatches(stream, own, first),
        num_workers=workers,
        multiprocessing_context=context if workers else None,
        # The seed of the workers is drawn from this one, not from the user's own stream.
        generator=torch.Generator().manual_seed(first_seed % 2**63),
    )


def converted_row(source: RenderedSource, convert: Converter, draw: Draw) -> list[Any]:
    record = source.record(*draw)
    path, truth = source.renders.folder / record.file_name, truth_of(record, source.indices, convert.joint)
    return convert.from_file(path, truth)
