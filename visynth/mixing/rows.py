"""Synthetic rows in batches that are already made: for loaders that have no positions to replace.

A :class:`BatchMixer` takes a batch as the user's loader gave it, before or after its way to the device, and exchanges some
rows. How many, which classes and which images follow from the number of the batch; which rows, from that and the
labels in the batch: rows of classes that receive synthetic samples stay.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.core.codec import Array
from visynth.core.errors import UsageError, choices
from visynth.mixing.adapter import Adapter
from visynth.mixing.agreement import check_values
from visynth.mixing.ahead import Draw, ReadAhead, converted_row, reading_loader
from visynth.mixing.batch_rows import (
    check_row,
    count_rows,
    device_of,
    entry_of,
    only_one,
    put_rows,
    row_of,
    shown_labels,
    soft_labels,
)
from visynth.mixing.convert import Converter, fast_adapter, find_converter
from visynth.mixing.fields import Fields, learn_fields
from visynth.mixing.layout import FLAG, WEIGHT, Layout, check_growth
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
from visynth.mixing.sources import GeneratedSource, RenderedSource, as_array, truths
from visynth.mixing.targets import ClassTarget, Truth, probabilities

WATCHED = 50  # batches whose further fields are compared with what was learned of them


@dataclass(frozen=True)
class BatchPlan:
    """Synthetic rows of one loader, whatever their source.

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
        workers: of the loader of rendered images.
        context: how that one starts them.
        within: rows are exchanged within their class, because the loader's own sampler decides how often each class
            comes.
        tell: called with the way that was found for images, once.
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


@dataclass(frozen=True)
class Learned:
    """The first batch's lessons.

    Attributes:
        layout: of batches.
        slots: how many synthetic rows each batch has.
        convert: of a synthetic image into a row.
        fields: further fields of rows.
        fast: the conversion of a whole batch on its device, where there is one.
    """

    layout: Layout
    slots: Slots
    convert: Converter
    fields: Fields
    fast: Adapter | None


class BatchMixer:
    """Exchanges rows of batches; see the module's docstring. Everything is learnt from the first batch."""

    def __init__(self, plan: BatchPlan, source: RenderedSource | GeneratedSource) -> None:
        self.plan, self.source = plan, source
        self.stream = SlotStream(plan.names, plan.mix, plan.seed)
        self.receiving = plan.mix.receiving(plan.indices)
        self.learned: Learned | None = None
        self.by_label = names_of_labels({name: label for name, label in plan.indices.items() if name in plan.names})
        self.seen = 0  # batches
        self.counts: Counter[str] = Counter()  # synthetic rows of each class since they were last logged
        self.short = 0  # rows that found no room
        self.done = 0
        self._ahead: ReadAhead | None = None

    def join(self, batch: Any, number: int) -> Any:
        """The batch with its synthetic rows.

        Args:
            batch: what the loader gave; it is not changed.
            number: of the batch, counted over epochs and the same on every rank.
        """
        if batch is None:  # an exhausted loader of a collection
            return None
        options = self.plan.options
        learned = self.learned = self.learned or self._learn(batch)
        layout = learned.layout
        images, labels = layout.get(batch, layout.image), layout.get(batch, layout.label)
        size = count_rows(images)
        shown = shown_labels(labels, size)
        self._see(learned, batch, shown)
        rows, draws = self._chosen(learned.slots, shown, size, number)
        self.counts.update(name for name, _ in draws)
        parts: dict[Any, Any] = {}
        if rows:
            ahead = not self.plan.within and size == learned.slots.size
            synthetic = self._synthetic(learned, draws, number if ahead else None, images)
            parts = self._exchanged(layout, batch, synthetic, rows, number)
            parts |= self._further(learned, batch, draws, rows)
        if options.num_classes and layout.label not in parts:
            parts[layout.label] = soft_labels(labels, options.num_classes)
        return layout.put(batch, parts | self._flags(rows, size, images))

    def _chosen(self, slots: Slots, shown: Sequence[set[int]], size: int, number: int) -> tuple[list[int], list[Draw]]:
        """The rows that are synthetic, and what stands there."""
        if self.plan.within:
            rows, draws = self._rows_within(shown, number)
            self.done += len(rows)
            return rows, draws
        same = size == slots.size
        numbers: Sequence[int] = slots.of(number) if same else slots.of_other_size(number, size, self.plan.seed)
        rows = self._rows(shown, number, len(numbers))
        self.done, self.short = self.done + len(numbers), self.short + len(numbers) - len(rows)
        return rows, [self.stream.at(n) for n in numbers][: len(rows)]

    def close(self) -> None:
        """Let the workers of the loader of rendered images go."""
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
        room = self.plan.mix.room
        free = [row for row in labelled if (not shown[row] & self.receiving if room is None else shown[row] == {room})]
        if room is None and not free and self.receiving >= set(self.plan.indices.values()):
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

    def _learn(self, batch: Any) -> Learned:
        """From the first batch: how a synthetic image becomes a row."""
        plan, options = self.plan, self.plan.options
        layout = Layout.of(batch, options.image_key, options.label_key)
        if options.is_synthetic or options.weight is not None:
            check_growth(batch)
        images = layout.get(batch, layout.image)
        size = count_rows(images)
        # A training resumed at a short batch has the same slots.
        slots = Slots(plan.share_of, plan.size or size, distributed.rank(), distributed.world_size())
        shown = shown_labels(layout.get(batch, layout.label), size)
        masks = [] if layout.mask is None else list(layout.get(batch, layout.mask))
        labels = layout.get(batch, layout.label)
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
        samples = [(None, only_one(shown[row]), row_of(batch, layout, row)) for row in range(len(shown))]
        fields = learn_fields(layout, samples, only_names(plan.indices), options.extra, sharing_names(plan.indices))
        example = self._example(images)
        values = images if isinstance(images, (torch.Tensor, np.ndarray)) else None
        row = images[0]
        real = row.cpu() if isinstance(row, torch.Tensor) else row
        convert = find_converter(plan.dataset, real, real, targets, options.transform, example, values)
        examples = self.source.examples() if isinstance(self.source, RenderedSource) else [example]
        reals = [image.cpu() if isinstance(image, torch.Tensor) else image for image in images]
        try:
            places = hasattr(plan.dataset, "__getitem__") and plan.size is not None
            check_values(convert, plan.dataset if places else None, reals, examples, self._image_of)
        except UsageError as error:
            if "brighter" not in str(error):
                raise
            warnings.warn(
                str(error), stacklevel=2
            )  # one batch may be darker than all others, and ranks see different ones
        fast = fast_adapter(convert, real, example) if isinstance(self.source, GeneratedSource) else None
        if isinstance(images, torch.Tensor):  # told at once, even where the first batch takes no synthetic rows
            check_row(convert(example, Truth(next(iter(plan.indices.values()), 0), None))[0], row)
        plan.tell(convert)
        return Learned(layout, slots, convert, fields, fast)

    def _image_of(self, sample: Any) -> Any:
        """The image of one sample of the user's dataset."""
        layout = Layout.of(sample, self.plan.options.image_key, self.plan.options.label_key)
        return layout.get(sample, layout.image)

    def _see(self, learned: Learned, batch: Any, shown: Sequence[set[int]]) -> None:
        """Note what fields that follow from the label say of labels that come up for the first time."""
        fields, layout = learned.fields, learned.layout
        watched = self.seen < WATCHED and bool(fields.by_label or fields.constant)
        for row, found in enumerate(shown):
            label = only_one(found)
            if watched or any(label is not None and label not in table for table in fields.by_label.values()):
                fields.see(label, lambda key, row=row: entry_of(layout.get(batch, key), row))  # type: ignore[misc]
        self.seen += 1

    def _further(self, learned: Learned, batch: Any, draws: Sequence[Draw], rows: Sequence[int]) -> dict[Any, Any]:
        """Columns of further fields with the synthetic rows' own values."""
        wanted = [learned.fields.values(self.plan.indices.get(name), None) for name, _ in draws]
        columns: dict[Any, Any] = {}
        for key in {key for values in wanted for key in values}:
            column = learned.layout.get(batch, key)
            if isinstance(column, Mapping):
                raise UsageError(
                    f"extra= names {key!r}, whose column in a batch is a dict of columns: backend='samples' fills it, "
                    "before samples are joined."
                )
            some = [(row, values[key]) for row, values in zip(rows, wanted, strict=True) if key in values]
            columns[key] = put_rows(column, [value for _, value in some], [row for row, _ in some])
        return columns

    def _example(self, images: Any) -> Array:
        if isinstance(self.source, RenderedSource):
            return self.source.example()
        samples = self.source.make(self.plan.names[:1], [0], device_of(images))
        return as_array(samples, 0)

    def _synthetic(self, learned: Learned, draws: Sequence[Draw], ahead: int | None, images: Any) -> list[list[Any]]:
        """``[image, label, ...]`` for each draw, in the user's terms; ``ahead`` is the batch's number where its
        images were read ahead."""
        convert = learned.convert
        if isinstance(self.source, RenderedSource):
            if ahead is not None:
                return self._from_loader(self.source, learned, ahead)[: len(draws)]
            return [converted_row(self.source, convert, draw) for draw in draws]
        device = device_of(images)
        names = [name for name, _ in draws]
        samples = self.source.make(names, [n for _, n in draws], device)
        wanted = truths(samples, [self.plan.indices.get(name) for name in names], convert.joint)
        if learned.fast is not None and samples.sizes is None:
            converted = learned.fast.batch(samples.images.to(device))
            target = convert.targets[0]
            return [[image, target.finish(None, truth)] for image, truth in zip(converted, wanted, strict=True)]
        return [convert(as_array(samples, row), truth) for row, truth in enumerate(wanted)]

    def _from_loader(self, source: RenderedSource, learned: Learned, number: int) -> list[list[Any]]:
        """This batch's images, which workers prepared while the batches before were trained on."""
        for _ in range(2):
            if self._ahead is None:
                self._ahead = ReadAhead(
                    reading_loader(
                        source,
                        learned.convert,
                        self.stream,
                        learned.slots,
                        number,
                        seed=self.plan.seed,
                        workers=self.plan.workers,
                        context=self.plan.context,
                    )
                )
            ahead, samples = next(self._ahead)
            if ahead == number:
                return [list(row) for row in zip(*samples, strict=True)]
            self.close()  # batches were skipped: start again from here
        raise AssertionError("the loader of rendered images is out of step")

    def _exchanged(
        self, layout: Layout, batch: Any, synthetic: list[list[Any]], rows: list[int], number: int
    ) -> dict[Any, Any]:
        options = self.plan.options
        columns = dict(zip(parts_of(layout), map(list, zip(*synthetic, strict=True)), strict=True))
        images, labels = layout.get(batch, layout.image), layout.get(batch, layout.label)
        if options.num_classes:
            labels = soft_labels(labels, options.num_classes)
            device = labels.device
            columns[layout.label] = [probabilities(v, options.num_classes).to(device) for v in columns[layout.label]]
        if options.mixup:
            for place, row in enumerate(rows):
                lam = mixing_weight(options, self.plan.seed, number, row, distributed.rank())
                image = torch.as_tensor(columns[layout.image][place]).to(device_of(images))
                halves = (image, columns[layout.label][place]), (images[row], labels[row])
                blended = mix_up(*halves, lam, int(options.num_classes or 0))
                columns[layout.image][place], columns[layout.label][place] = blended
        parts = {
            layout.image: put_rows(images, columns[layout.image], rows, self.plan.private),
            layout.label: put_rows(labels, columns[layout.label], rows),
        }
        if layout.mask is not None:
            parts[layout.mask] = put_rows(layout.get(batch, layout.mask), columns[layout.mask], rows)
        return parts

    def _flags(self, rows: list[int], size: int, images: Any) -> dict[Any, Any]:
        options, device = self.plan.options, device_of(images)
        flags = torch.zeros(size, dtype=torch.bool)
        flags[rows] = True
        parts: dict[Any, Any] = {}
        if options.is_synthetic:
            parts[FLAG] = flags.to(device)
        if options.weight is not None:
            parts[WEIGHT] = torch.where(flags, float(options.weight), 1.0).to(device)
        return parts


# -- the loader of rendered images -----------------------------------------------------------------------------------


# -- batches -----------------------------------------------------------------------------------------------------------
