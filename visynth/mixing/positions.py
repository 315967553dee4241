"""The dataset that stands in for the user's: some positions of an epoch are synthetic, all others are theirs.

Which positions are replaced is a function of (seed, epoch, share) alone, so that every rank and every loader worker
agrees without talking, and the user's sampler, batch size and epoch length stay what they were.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError
from visynth.data.labels import find_attribute
from visynth.mixing.agreement import check_values
from visynth.mixing.convert import Converter, find_converter
from visynth.mixing.fields import learn_fields
from visynth.mixing.layout import FLAG, WEIGHT, Layout, check_growth
from visynth.mixing.options import Options
from visynth.mixing.plan import Mix, names_of_labels, only_names, plan_epoch, plan_within, replaceable, sharing_names
from visynth.mixing.sources import RenderedSource, truth_of
from visynth.mixing.targets import ClassTarget, MaskTarget, Target, check_boxes, labels_in, probabilities, target_of

EXAMPLES = 16  # real samples that are looked at before a training
BILLION = 10**9


class MixedDataset(Dataset[Any]):
    """The user's dataset with some positions replaced, of the same length.

    Args:
        real: map-style, giving ``(image, label)``, dicts or dataclasses.
        source: the rendered set.
        labels: the label of each real sample, or None where they are not known.
        mix: how much of what.
        options: what WithSynthetic was told.
        share_of: share of an epoch; by default always the mix's.
        within: replace within the class, because the loader's own sampler decides how often each class comes.
        drawn: samples of an epoch where the sampler draws from a part of the dataset alone.
    """

    def __init__(
        self,
        real: Any,
        source: RenderedSource,
        labels: Sequence[int] | None,
        mix: Mix,
        options: Options,
        share_of: Callable[[int], float] | None = None,
        within: bool = False,
        drawn: int | None = None,
    ) -> None:
        self.drawn = len(real) if drawn is None else drawn
        self.real, self.source, self.mix, self.options = real, source, mix, options
        self.share_of, self.within = share_of, within
        self.labels = None if labels is None else [int(label) for label in labels]
        receiving = mix.receiving(source.indices)
        self.allowed = replaceable(len(real), labels, receiving, mix.room)
        if not within:
            self._warn_of_caps()
        place, self.example = first_sample(real)
        self.layout = Layout.of(self.example, options.image_key, options.label_key)
        if options.is_synthetic or options.weight is not None:
            check_growth(self.example)
        samples = [(place, self.example), *more_samples(real, self.labels, place, receiving)]
        shown = [(p, self._label_of(p, sample), sample) for p, sample in samples]
        self.fields = learn_fields(
            self.layout, shown, only_names(source.indices), options.extra, sharing_names(source.indices)
        )
        label, mask = self.layout.get(self.example, self.layout.label), self.layout.mask
        masks = [] if mask is None else [self.layout.get(sample, mask) for _, sample in samples]
        self.targets = targets_of(label, masks, real)
        check_targets([self.layout.get(sample, self.layout.label) for _, sample in samples])
        check_labels(
            [(p, sample) for p, sample in samples if self.labels is not None],
            self.labels or [],
            self.layout,
            self.targets[0],
        )
        image = self.layout.get(self.example, self.layout.image)
        reals = [self.layout.get(sample, self.layout.image) for _, sample in samples]
        self.convert: Converter = find_converter(
            real, image, image, self.targets, options.transform, source.example(), stacked(reals)
        )
        check_values(self.convert, real, reals, source.examples(), lambda s: self.layout.get(s, self.layout.image))
        # Shared memory, because persistent loader workers keep their copy of the dataset for all epochs.
        self.now = torch.zeros(3, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.epoch_of: Callable[[], int | None] | None = None
        self.log: Callable[[int, Mapping[str, int]], None] | None = None
        self.starts = 0
        self._plan: tuple[tuple[int, ...], dict[int, int]] = ((-1,), {})
        self._slots: dict[int, int] = {}  # of epochs; they are asked of the trainer, which loader workers do not have
        self.begin(0)
        self._made = True

    def __len__(self) -> int:
        return len(self.real)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "real" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        if "_made" in own and name not in own and not hasattr(type(self), name):
            setattr(self.real, name, value)  # a callback that sets something on the user's dataset must reach it
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        # These hold the trainer, which loader workers must not get.
        return {**self.__dict__, "epoch_of": None, "share_of": None, "log": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def begin(self, epoch: int) -> None:
        """Set the epoch, its slots and those of all epochs before: called in the main process."""
        slots = self.slots(epoch)
        before = epoch * slots if self.share_of is None else sum(self.slots(earlier) for earlier in range(epoch))
        self.now.copy_(torch.tensor([epoch, slots, before]))

    def counts(self) -> Counter[str]:
        """Synthetic samples of each class in the current epoch."""
        return Counter(self.source.renders.records[row].label for row in self.plan().values())

    def slots(self, epoch: int) -> int:
        """Synthetic positions of an epoch (within classes: their share, in billionths)."""
        if epoch not in self._slots:
            share = self.mix.share if self.share_of is None else self.share_of(epoch)
            count = round(share * (BILLION if self.within else self.drawn))
            self._slots[epoch] = count if self.within else min(count, len(self.allowed))
        return self._slots[epoch]

    def plan(self) -> dict[int, int]:
        """``{position: row of the rendered set}`` of the current epoch."""
        now = tuple(self.now.tolist())
        if self._plan[0] != now:
            self._plan = (now, self._planned(*now))
        return self._plan[1]

    def _planned(self, epoch: int, slots: int, before: int) -> dict[int, int]:
        if not self.within:
            return plan_epoch(self.allowed, self.source.places, self.mix, epoch, slots, before)
        classes = names_of_labels(self.source.indices)
        return plan_within(self.labels or [], classes, self.source.places, self.mix, epoch, slots / BILLION)

    def __getitem__(self, index: int) -> Any:
        index = int(index)
        row = self.plan().get(index)
        if row is None:
            sample = self.real[index]
            return self._with_fields(sample, {}, False) if self.options.fields else sample
        renders = self.source.renders
        record = renders.records[row]
        truth = truth_of(record, self.source.indices, self.convert.joint)
        synthetic = self.convert.from_file(renders.folder / record.file_name, truth)
        read = self.options.mixup or self.fields.misses(truth.label)
        sample = self.real[index] if read else None
        sample = self.example if sample is None else sample
        parts = dict(zip(parts_of(self.layout), synthetic, strict=True)) | self.fields.values(truth.label, index)
        if self.options.mixup:
            places = (self.layout.image, self.layout.label)
            lam = mixing_weight(self.options, self.mix.seed, int(self.now[0]), index)
            halves = [parts[place] for place in places], [self.layout.get(sample, place) for place in places]
            parts = dict(zip(places, mix_up(*halves, lam, int(self.options.num_classes or 0)), strict=True))
        return self._with_fields(sample, parts, True)

    def _with_fields(self, sample: Any, parts: dict[Any, Any], synthetic: bool) -> Any:
        options = self.options
        if sample is None:  # a file that could not be read, which the user's collate_fn leaves out
            return None
        if options.num_classes:
            label = parts.get(self.layout.label, self.layout.get(sample, self.layout.label))
            parts[self.layout.label] = probabilities(label, options.num_classes)
        if options.is_synthetic:
            parts[FLAG] = synthetic
        if options.weight is not None:
            parts[WEIGHT] = float(options.weight) if synthetic else 1.0
        return self.layout.put(sample, parts)

    def _label_of(self, place: int, sample: Any) -> int | None:
        """A real sample's own class, or None where it shows none or several."""
        shown = labels_in(self.layout.get(sample, self.layout.label)) if self.labels is None else {self.labels[place]}
        return next(iter(shown)) if len(shown) == 1 else None

    def _warn_of_caps(self) -> None:
        slots = round(self.mix.share * self.drawn)
        if slots > len(self.allowed):
            warnings.warn(
                f"{slots} synthetic samples were asked for, but only {len(self.allowed)} of {len(self.real)} positions "
                "belong to classes that "
                "receive none: the share is capped there. Lower share, or balance fewer classes.",
                stacklevel=4,
            )


def first_sample(dataset: Any, most: int = 32) -> tuple[int, Any]:
    """The first sample that is one: datasets may give None for files that cannot be read, which a collate_fn leaves
    out.

    Raises:
        UsageError: none of the first ones.
    """
    for place in range(min(most, len(dataset))):
        sample = dataset[place]
        if sample is not None:
            return place, sample
    raise UsageError(
        f"the first {min(most, len(dataset))} training samples are None: there is no sample to learn from."
    )


def more_samples(
    dataset: Any, labels: Sequence[int] | None, known: int, first: Collection[int] = ()
) -> list[tuple[int, Any]]:
    """Some further samples: of each class the first and the last (and one between) where labels are known, else spread
    evenly.

    Classes in ``first`` are looked at however many there are.
    """
    if labels is None:
        rows = np.linspace(0, len(dataset) - 1, min(EXAMPLES, len(dataset))).round().astype(int).tolist()
    else:
        own: dict[int, list[int]] = {}
        for place, label in enumerate(labels):
            own.setdefault(label, []).append(place)
        each = max(2, min(4, EXAMPLES // max(len(own), 1)))
        order = sorted(own, key=lambda label: label not in first)
        few = [own[label] for label in order[: max(EXAMPLES // 2, sum(label in first for label in own))]]
        rows = [of[round(k * (len(of) - 1) / (each - 1))] for of in few for k in range(each)]
    samples = [(place, dataset[place]) for place in sorted({*rows} - {known})]
    return [(place, sample) for place, sample in samples if sample is not None]


def stacked(images: Sequence[Any]) -> Any:
    """All values of some images in one row, for their range; None where they are PIL images."""
    if not all(isinstance(image, (torch.Tensor, np.ndarray)) for image in images):
        return None
    return torch.cat([torch.as_tensor(image).detach().cpu().flatten().double() for image in images])


def check_targets(labels: Sequence[Any]) -> None:
    """Refuse detection targets whose boxes cannot be corners in pixels.

    Raises:
        UsageError: see :func:`visynth.mixing.targets.box_problem`.
    """
    for label in labels:
        if isinstance(label, Mapping) and isinstance(label.get("boxes"), torch.Tensor) and label["boxes"].ndim == 2:
            check_boxes(label["boxes"])


def targets_of(label: Any, masks: Sequence[Any], dataset: Any) -> tuple[Target, ...]:
    """Kinds of a sample's label, and of the mask beside it where there are such (several real ones, to see what values
    they hold)."""
    target = target_of(label, find_attribute(dataset, "target_transform"))
    if not masks:
        return (target,)
    beside = target_of(masks[0])
    if isinstance(beside, MaskTarget) and not beside.binary:
        values = set().union(*(labels_in(mask) for mask in masks)) - {0}
        beside = MaskTarget(masks[0], next(iter(values)) if len(values) == 1 else None)
    return (target, beside)


def check_labels(samples: Sequence[tuple[int, Any]], labels: Sequence[int], layout: Layout, target: Target) -> None:
    """Check that our conversion of real samples' labels gives those labels: a dataset may give others than it lists.

    Raises:
        UsageError: the first that differs, with both.
    """
    if not isinstance(target, ClassTarget):
        return
    for place, sample in samples:
        if labels[place] < 0:
            continue
        pairs, real = target.of(labels[place]), layout.get(sample, layout.label)
        if not np.array_equal(np.asarray(pairs), np.asarray(real)):
            raise UsageError(
                f"training sample {place} has the label {real!r}, but its entry in the dataset's labels makes "
                f"{pairs!r}: "
                "give labels= and classes= to WithSynthetic as the samples carry them."
            )


def parts_of(layout: Layout) -> list[Any]:
    """Places of what a converter makes, in its order."""
    return [layout.image, layout.label] if layout.mask is None else [layout.image, layout.label, layout.mask]


def mixing_weight(options: Options, *seed: int) -> float:
    """Weight of the synthetic half under mixup, Beta(a, a) distributed (Zhang et al., "mixup", ICLR 2018, section
    2)."""
    alpha = float(options.mixup or 1.0)
    return float(seeding.rng(seeding.derive("mixup", *seed), "weight").beta(alpha, alpha))


def mix_up(synthetic: Sequence[Any], real: Sequence[Any], lam: float, count: int) -> tuple[Any, torch.Tensor]:
    """``(image, label)`` of a synthetic and a real sample blended alike; labels become probabilities ``[count]``."""
    labels = [probabilities(label, count) for label in (synthetic[1], real[1])]
    return blend(synthetic[0], real[0], lam), lam * labels[0] + (1 - lam) * labels[1]


def blend(synthetic: Any, real: Any, lam: float) -> Any:
    """``lam * made + (1 - lam) * real``, for floating-point tensors or arrays of one shape.

    Raises:
        UsageError: PIL images, integers or other sizes.
    """
    floating = isinstance(synthetic, torch.Tensor) and synthetic.is_floating_point()
    floating = floating or (isinstance(synthetic, np.ndarray) and np.issubdtype(synthetic.dtype, np.floating))
    if not floating or synthetic.shape != real.shape:
        raise UsageError(
            f"mixup needs floating-point images of one size, but the dataset gives {type(real).__name__} "
            f"{list(getattr(real, 'shape', []))} and the synthetic one is {list(getattr(synthetic, 'shape', []))}: let the "
            "transform end so."
        )
    return synthetic * lam + real * (1 - lam)
