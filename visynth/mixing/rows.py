"""Synthetic rows in batches that are already made: for loaders that have no positions to replace.

A :class:`Joiner` takes a batch as the user's loader gave it, before or after its way to the device, and exchanges some
rows. How many, which classes and which pictures follow from the number of the batch; which rows, from that and the
labels in the batch: rows of classes that receive synthetic samples stay.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.core.codec import Array
from visynth.core.errors import UsageError, choices
from visynth.mixing.agreement import check_values
from visynth.mixing.convert import Converter, fast_adapter, find_converter
from visynth.mixing.fields import Fields, learn_fields
from visynth.mixing.layout import FLAG, WEIGHT, Form, check_growth, keys_of
from visynth.mixing.options import Options
from visynth.mixing.plan import (
    MOST_ROWS,
    Mix,
    Slots,
    SlotStream,
    class_shares,
    names_of_labels,
    only_names,
    sharing_names,
    within_share,
)
from visynth.mixing.positions import check_targets, mix_up, mixing_weight, parts_of, targets_of
from visynth.mixing.sources import GeneratedSource, RenderedSource, as_array, truth_of, truths
from visynth.mixing.targets import ClassTarget, Truth, labels_in, probabilities

WATCHED = 50  # batches whose further fields are compared with what was learned of them
Draw = tuple[str, int]  # class, and number within the class


@dataclass(frozen=True)
class Plan:
    """What the synthetic rows of one loader are; the same for both sources.

    Attributes:
        names: classes that synthetic samples are drawn from.
        indices: ``{class: the user's label}``.
        mix: how much of what.
        options: what WithSynthetic was told.
        share_of: share of batch number k.
        dataset: the user's, where there is one to look at, or None.
        seed: of this loader.
        private: batches come from worker processes, so that nobody else can hold their tensors: rows are exchanged in
            place.
        workers: of the loader of rendered pictures.
        context: how that one starts them.
        within: rows are exchanged within their class, because the loader's own sampler decides how often each class
            comes.
        tell: called with the way that was found for pictures, once.
        size: rows of a batch where the loader says so, or None.
    """

    names: tuple[str, ...]
    indices: dict[str, int]
    mix: Mix
    options: Options
    share_of: Callable[[int], float]
    dataset: Any
    seed: int
    private: bool = False
    workers: int = 0
    context: Any = None
    within: bool = False
    tell: Callable[[Converter], None] = lambda convert: None
    size: int | None = None


class Joiner:
    """Exchanges rows of batches; see the module's docstring. Everything is learnt from the first batch."""

    def __init__(self, plan: Plan, source: RenderedSource | GeneratedSource) -> None:
        self.plan, self.source = plan, source
        self.stream = SlotStream(plan.names, plan.mix, plan.seed)
        self.receiving = plan.mix.receiving(plan.indices)
        self.form: Form | None = None
        self.slots: Slots | None = None
        self.convert: Converter | None = None
        self.fast: Any = None
        self.by_label = names_of_labels({name: label for name, label in plan.indices.items() if name in plan.names})
        self.fields: Fields | None = None
        self.seen = 0  # batches
        self.counts: Counter[str] = Counter()  # synthetic rows of each class since they were last logged
        self.short = 0  # rows that found no room
        self.done = 0
        self._ahead: _Ahead | None = None

    def join(self, batch: Any, number: int) -> Any:
        """The batch with its synthetic rows.

        Args:
            batch: what the loader gave; it is not changed.
            number: of the batch, counted over epochs and the same on every rank.
        """
        if batch is None:  # an exhausted loader of a collection
            return None
        options = self.plan.options
        first = self.form is None
        if self.form is None:
            self.form = Form.of(batch, options.image_key, options.label_key)
            if options.is_synthetic or options.weight is not None:
                check_growth(batch)
        form = self.form
        images = form.get(batch, form.image)
        size = _rows_of(images)
        if self.slots is None:
            told = self.plan.size or size  # a training resumed at a short batch has the same slots
            self.slots = Slots(self.plan.share_of, told, distributed.rank(), distributed.world_size())
        labels = form.get(batch, form.label)
        shown = _shown(labels, size)
        if first:
            self._learn(batch, images, shown)
        self._see(batch, shown)
        rows, draws = self._chosen(shown, size, number)
        self.counts.update(name for name, _ in draws)
        parts: dict[Any, Any] = {}
        if rows:
            ahead = not self.plan.within and size == self.slots.size
            made = self._made(draws, number if ahead else None, images)
            parts = self._exchanged(batch, made, rows, number)
            parts |= self._further(batch, draws, rows)
        if options.num_classes and form.label not in parts:
            parts[form.label] = _soft(labels, options.num_classes)
        return form.put(batch, parts | self._flags(rows, size, images))

    def _chosen(self, shown: Sequence[set[int]], size: int, number: int) -> tuple[list[int], list[Draw]]:
        """The rows that are synthetic, and what stands there."""
        assert self.slots is not None
        if self.plan.within:
            rows, draws = self._rows_within(shown, number)
            self.done += len(rows)
            return rows, draws
        same = size == self.slots.size
        numbers: Sequence[int] = (
            self.slots.of(number) if same else self.slots.of_other_size(number, size, self.plan.seed)
        )
        rows = self._rows(shown, number, len(numbers))
        self.done, self.short = self.done + len(numbers), self.short + len(numbers) - len(rows)
        return rows, [self.stream.at(n) for n in numbers][: len(rows)]

    def close(self) -> None:
        """Let the workers of the loader of rendered pictures go."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def warn_if_short(self) -> None:
        """Tell once where many rows found no room: called at the end of training."""
        if self.done and self.short > 0.1 * self.done:
            warnings.warn(
                f"{self.short} of {self.done} synthetic samples found no room: their batches held too few samples of "
                "classes that "
                "receive none. Lower share, take larger batches, or balance fewer classes.",
                stacklevel=3,
            )

    # -- one batch ------------------------------------------------------------------------------------------------

    def _rows(self, shown: Sequence[set[int]], number: int, count: int) -> list[int]:
        """Rows that make room, drawn among those of classes that receive nothing; of the batch's largest class where
        all receive."""
        if not count:
            return []
        labelled = [row for row, found in enumerate(shown) if not any(label < 0 for label in found)]  # -1: not labelled
        free = [row for row in labelled if not shown[row] & self.receiving]
        if not free and self.receiving >= set(self.plan.indices.values()):
            counts = Counter(label for row in labelled for label in shown[row])
            largest = max(counts, key=lambda label: (counts[label], -label), default=None)
            free = [row for row in labelled if shown[row] == {largest}]
        seed = seeding.derive("rows", self.plan.seed, number, distributed.rank())
        chosen = seeding.rng(seed, "rows").permutation(len(free))[:count]
        return sorted(free[place] for place in chosen)

    def _rows_within(self, shown: Sequence[set[int]], number: int) -> tuple[list[int], list[Draw]]:
        """Rows that are exchanged for others of their own class: each class keeps the count that the loader's sampler
        gave it."""
        share = self.plan.share_of(number)
        seed = seeding.derive("within", self.plan.seed, number, distributed.rank())
        chances = seeding.rng(seed, "rows").random(len(shown))
        rows, draws = [], []
        for row, (found, chance) in enumerate(zip(shown, chances, strict=True)):
            names = self.by_label.get(next(iter(found)), []) if len(found) == 1 else []
            part = within_share(names, self.plan.mix, share) if names else 0.0
            if chance < part:
                parts = class_shares(names, self.plan.mix).cumsum()
                name = names[min(int(np.searchsorted(parts, chance / part, "right")), len(names) - 1)]
                rows.append(row)
                draws.append((name, (number * distributed.world_size() + distributed.rank()) * MOST_ROWS + row))
        return rows, draws

    def _learn(self, batch: Any, images: Any, shown: Sequence[set[int]]) -> None:
        """From the first batch: how a synthetic picture becomes a row."""
        assert self.form is not None
        form, plan = self.form, self.plan
        masks = [] if form.mask is None else list(form.get(batch, form.mask))
        labels = form.get(batch, form.label)
        targets = targets_of(labels[0], masks, None)
        if isinstance(targets[0], ClassTarget):
            nameless = [name for name in plan.names if name not in plan.indices]
            if nameless:
                raise UsageError(
                    f"synthetic {choices(nameless)} have no number among the dataset's labels {dict(plan.indices)}: "
                    "give all of them in "
                    "classes={name: label} to WithSynthetic, or render the others alone (--classes)."
                )
        check_targets(list(labels) if isinstance(labels, (list, tuple)) else [])
        samples = [(None, _only(shown[row]), _row_of(batch, form, row)) for row in range(len(shown))]
        self.fields = learn_fields(
            form, samples, only_names(plan.indices), plan.options.extra, sharing_names(plan.indices)
        )
        picture = self._picture(images)
        values = images if isinstance(images, (torch.Tensor, np.ndarray)) else None
        row = images[0]
        real = row.cpu() if isinstance(row, torch.Tensor) else row
        self.convert = find_converter(plan.dataset, real, real, targets, plan.options.transform, picture, values)
        pictures = self.source.examples() if isinstance(self.source, RenderedSource) else [picture]
        reals = [image.cpu() if isinstance(image, torch.Tensor) else image for image in images]
        try:
            places = hasattr(plan.dataset, "__getitem__") and plan.size is not None
            check_values(self.convert, plan.dataset if places else None, reals, pictures, self._image_of)
        except UsageError as error:
            if "brighter" not in str(error):
                raise
            warnings.warn(
                str(error), stacklevel=2
            )  # one batch may be darker than all others, and ranks see different ones
        if isinstance(self.source, GeneratedSource):
            self.fast = fast_adapter(self.convert, real, picture)
        if isinstance(images, torch.Tensor):  # told at once, even where the first batch takes no synthetic rows
            _check_row(self.convert(picture, Truth(next(iter(plan.indices.values()), 0), None))[0], row)
        plan.tell(self.convert)

    def _image_of(self, sample: Any) -> Any:
        """The image of one sample of the user's dataset."""
        form = Form.of(sample, self.plan.options.image_key, self.plan.options.label_key)
        return form.get(sample, form.image)

    def _see(self, batch: Any, shown: Sequence[set[int]]) -> None:
        """Note what fields that follow from the label say of labels that come up for the first time."""
        assert self.fields is not None
        form = self.form
        assert form is not None
        watched = self.seen < WATCHED and bool(self.fields.by_label or self.fields.constant)
        for row, found in enumerate(shown):
            label = _only(found)
            if watched or any(label is not None and label not in table for table in self.fields.by_label.values()):
                self.fields.see(label, lambda key, row=row: _entry(form.get(batch, key), row))  # type: ignore[misc]
        self.seen += 1

    def _further(self, batch: Any, draws: Sequence[Draw], rows: Sequence[int]) -> dict[Any, Any]:
        """Columns of further fields with the synthetic rows' own values."""
        assert self.fields is not None
        assert self.form is not None
        wanted = [self.fields.values(self.plan.indices.get(name), None) for name, _ in draws]
        columns: dict[Any, Any] = {}
        for key in {key for values in wanted for key in values}:
            column = self.form.get(batch, key)
            if isinstance(column, Mapping):
                raise UsageError(
                    f"extra= names {key!r}, whose column in a batch is a dict of columns: backend='samples' fills it, "
                    "before samples are joined."
                )
            some = [(row, values[key]) for row, values in zip(rows, wanted, strict=True) if key in values]
            columns[key] = _put(column, [value for _, value in some], [row for row, _ in some])
        return columns

    def _picture(self, images: Any) -> Array:
        if isinstance(self.source, RenderedSource):
            return self.source.example()
        samples = self.source.make(self.plan.names[:1], [0], _device(images))
        return as_array(samples, 0)

    def _made(self, draws: Sequence[Draw], ahead: int | None, images: Any) -> list[list[Any]]:
        """``[image, label, ...]`` for each draw, in the user's terms; ``ahead`` is the batch's number where its
        pictures were read ahead."""
        assert self.convert is not None
        if isinstance(self.source, RenderedSource):
            if ahead is not None:
                return self._from_loader(ahead)[: len(draws)]
            return [_converted(self.source, self.convert, draw) for draw in draws]
        device = _device(images)
        names = [name for name, _ in draws]
        samples = self.source.make(names, [n for _, n in draws], device)
        told = truths(samples, [self.plan.indices.get(name) for name in names], self.convert.joint)
        if self.fast is not None and samples.sizes is None:
            pictures = self.fast.batch(samples.images.to(device))
            return [
                [picture, self.convert.targets[0].finish(None, truth)]
                for picture, truth in zip(pictures, told, strict=True)
            ]
        return [self.convert(as_array(samples, row), truth) for row, truth in enumerate(told)]

    def _from_loader(self, number: int) -> list[list[Any]]:
        """This batch's pictures, which workers prepared while the batches before were trained on."""
        assert isinstance(self.source, RenderedSource)
        assert self.convert is not None
        assert self.slots is not None
        for _ in range(2):
            if self._ahead is None:
                self._ahead = _Ahead(_loader(self.source, self.convert, self.stream, self.slots, self.plan, number))
            found, made = next(self._ahead)
            if found == number:
                return [list(row) for row in zip(*made, strict=True)]
            self.close()  # batches were skipped: start again from here
        raise AssertionError("the loader of rendered pictures is out of step")

    def _exchanged(self, batch: Any, made: list[list[Any]], rows: list[int], number: int) -> dict[Any, Any]:
        assert self.form is not None
        form, options = self.form, self.plan.options
        columns = dict(zip(parts_of(form), map(list, zip(*made, strict=True)), strict=True))
        images, labels = form.get(batch, form.image), form.get(batch, form.label)
        if options.num_classes:
            labels = _soft(labels, options.num_classes)
            device = labels.device
            columns[form.label] = [probabilities(v, options.num_classes).to(device) for v in columns[form.label]]
        if options.mixup:
            for place, row in enumerate(rows):
                lam = mixing_weight(options, self.plan.seed, number, row, distributed.rank())
                image = torch.as_tensor(columns[form.image][place]).to(_device(images))
                halves = (image, columns[form.label][place]), (images[row], labels[row])
                blended = mix_up(*halves, lam, int(options.num_classes or 0))
                columns[form.image][place], columns[form.label][place] = blended
        parts = {
            form.image: _put(images, columns[form.image], rows, self.plan.private),
            form.label: _put(labels, columns[form.label], rows),
        }
        if form.mask is not None:
            parts[form.mask] = _put(form.get(batch, form.mask), columns[form.mask], rows)
        return parts

    def _flags(self, rows: list[int], size: int, images: Any) -> dict[Any, Any]:
        options, device = self.plan.options, _device(images)
        flags = torch.zeros(size, dtype=torch.bool)
        flags[rows] = True
        parts: dict[Any, Any] = {}
        if options.is_synthetic:
            parts[FLAG] = flags.to(device)
        if options.weight is not None:
            parts[WEIGHT] = torch.where(flags, float(options.weight), 1.0).to(device)
        return parts


# -- the loader of rendered pictures -----------------------------------------------------------------------------------


class _Pictures(Dataset[Any]):
    """Rendered pictures by (class, number), already in the user's terms: ``[images, labels, ...]``, one entry a
    picture."""

    def __init__(self, source: RenderedSource, convert: Converter) -> None:
        self.source, self.convert = source, convert

    def __getitem__(self, wanted: tuple[int, list[Draw]]) -> tuple[int, list[Any]]:
        number, draws = wanted
        rows = [_converted(self.source, self.convert, draw) for draw in draws]
        return number, [_packed(column) for column in zip(*rows, strict=True)]


class _Ahead:
    """Asks a loader with workers for its next batch from a thread: receiving it takes milliseconds that the training
    need not wait for."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._batches = iter(loader)
        self._thread = ThreadPoolExecutor(1, "visynth-pictures") if loader.num_workers else None
        self._next = self._thread.submit(next, self._batches) if self._thread else None

    def __next__(self) -> tuple[int, list[Any]]:
        if self._next is None or self._thread is None:
            found: tuple[int, list[Any]] = next(self._batches)
            return found
        found = self._next.result()
        self._next = self._thread.submit(next, self._batches)
        return found

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)


def _packed(column: Sequence[Any]) -> Any:
    """One tensor where that can be: each tensor that comes from a worker costs the training's process half a
    millisecond."""
    plain = all(type(value) is torch.Tensor for value in column)
    alike = plain and len({(value.shape, value.dtype) for value in column}) == 1
    return torch.stack(list(column)) if alike else list(column)


class _Batches:
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


def _loader(
    source: RenderedSource, convert: Converter, stream: SlotStream, slots: Slots, plan: Plan, first: int
) -> DataLoader[Any]:
    own = Slots(slots.share, slots.size, slots.rank, slots.world)  # it runs ahead of the training's
    seed = seeding.derive("pictures", plan.seed, distributed.rank(), first)
    return DataLoader(
        _Pictures(source, convert),
        batch_size=None,
        sampler=_Batches(stream, own, first),
        num_workers=plan.workers,
        multiprocessing_context=plan.context if plan.workers else None,
        # The seed of the workers is drawn from this one, not from the user's own stream.
        generator=torch.Generator().manual_seed(seed % 2**63),
    )


def _converted(source: RenderedSource, convert: Converter, draw: Draw) -> list[Any]:
    record = source.record(*draw)
    path, truth = source.renders.folder / record.file_name, truth_of(record, source.indices, convert.joint)
    return convert.from_file(path, truth)


# -- batches -----------------------------------------------------------------------------------------------------------


def _rows_of(images: Any) -> int:
    if isinstance(images, (torch.Tensor, np.ndarray)) and images.ndim >= 3:
        return len(images)
    if isinstance(images, (list, tuple)) and images:
        return len(images)
    raise UsageError(
        f"a batch's images must be a tensor [B, C, H, W] or a list of images, but got {type(images).__name__} "
        f"{list(getattr(images, 'shape', []))}: name them with image_key=."
    )


def _shown(labels: Any, size: int) -> list[set[int]]:
    """Classes that each row's label shows."""
    labels = labels.cpu() if isinstance(labels, torch.Tensor) else labels  # once, not once a row
    return [labels_in(labels[row]) for row in range(size)]


def _only(found: set[int]) -> int | None:
    return next(iter(found)) if len(found) == 1 else None


def _row_of(batch: Any, form: Form, row: int) -> Any:
    """One row of a batch as a sample of its own; parts that are no columns stay whole. Of a dataclass, whose own checks
    may want batches, a dict."""
    keys = [key for key in keys_of(batch) or [] if not (hasattr(batch, "_fields") and isinstance(key, int))]
    parts = {key: _entry(form.get(batch, key), row) for key in keys}
    return parts if dataclasses.is_dataclass(batch) else form.put(batch, parts)


def _entry(column: Any, row: int) -> Any:
    if isinstance(column, (torch.Tensor, np.ndarray)):
        return column[row] if column.ndim else column
    return column[row] if isinstance(column, (list, tuple)) and row < len(column) else column


def _device(images: Any) -> torch.device:
    first = images if isinstance(images, torch.Tensor) else images[0] if len(images) else None
    if isinstance(first, Mapping):  # detection targets
        first = next((value for value in first.values() if isinstance(value, torch.Tensor)), None)
    return first.device if isinstance(first, torch.Tensor) else torch.device("cpu")


def _put(values: Any, made: list[Any], rows: list[int], private: bool = False) -> Any:
    """Values with other rows: a tensor (the same one if it is private) or array of its own, or a list."""
    if isinstance(values, (list, tuple)):
        whole = list(values)
        for row, value in zip(rows, made, strict=True):
            whole[row] = _moved(value, _device(values)) if isinstance(whole[row], (torch.Tensor, dict)) else value
        return type(values)(whole)
    if isinstance(values, np.ndarray):
        array = values.copy()
        for row, value in zip(rows, made, strict=True):
            array[row] = np.asarray(value)
        return array
    _check_row(made[0], values[0])
    whole = values if private else values.clone()
    for row, value in zip(rows, made, strict=True):  # one at a time: small enough that no threads have to be woken
        whole[row] = torch.as_tensor(value).as_subclass(torch.Tensor)
    return whole


def _check_row(made: Any, real: Any) -> None:
    if isinstance(real, torch.Tensor) and tuple(torch.as_tensor(made).shape) != tuple(real.shape):
        raise UsageError(
            f"a synthetic image became {list(made.shape)}, but the batch's rows are {list(real.shape)}: give "
            "transform= that ends "
            "as your batches are, or backend='samples', where your own collate_fn joins the samples."
        )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _soft(labels: Any, count: int) -> torch.Tensor:
    if isinstance(labels, torch.Tensor) and labels.ndim == 2 and labels.shape[1] == count:
        return labels.to(torch.float32)
    return torch.stack([probabilities(label, count) for label in labels])
