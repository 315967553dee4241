"""The dataset that stands in for the user's: some positions of an epoch are synthetic, all others are theirs.

Which positions are replaced is a function of (seed, epoch, share) alone, so that every rank and every loader worker agrees
without talking, and the user's sampler, batch size and epoch length stay what they were.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from visynth import seeds as seeding
from visynth.data.convert import Converter, find_converter
from visynth.data.form import FLAG, WEIGHT, Form, check_growth
from visynth.data.labels import find_attribute
from visynth.data.plans import Mix, plan_epoch, replaceable
from visynth.data.policy import Options
from visynth.data.sources import RenderedSource, truth_of
from visynth.data.targets import ClassTarget, Target, probabilities, target_of
from visynth.errors import UsageError


class MixedDataset(Dataset[Any]):
    """The user's dataset with some positions replaced, of the same length.

    Args:
        real: map-style, giving ``(image, label)``, dicts or dataclasses.
        source: the rendered set.
        labels: the label of each real sample, or None where they are not known.
        mix: how much of what.
        options: what WithSynthetic was told.
        share_of: share of an epoch; by default always the mix's.
    """

    def __init__(
        self,
        real: Any,
        source: RenderedSource,
        labels: Sequence[int] | None,
        mix: Mix,
        options: Options,
        share_of: Callable[[int], float] | None = None,
    ) -> None:
        self.real, self.source, self.mix, self.options = real, source, mix, options
        self.share_of = share_of
        self.allowed = replaceable(len(real), labels, mix.receiving(source.indices))
        self._warn_of_caps()
        self.example = real[0]
        self.form = Form.of(self.example, options.image_key, options.label_key)
        self.form.check_extras(self.example)
        if options.is_synthetic or options.weight is not None:
            check_growth(self.example)
        label, mask = self.form.get(self.example, self.form.label), self.form.mask
        self.targets = targets_of(label, None if mask is None else self.form.get(self.example, mask), real)
        self._check_label(labels)
        image = self.form.get(self.example, self.form.image)
        self.convert: Converter = find_converter(real, image, image, self.targets, options.transform, source.example())
        # Shared memory, because persistent loader workers keep their copy of the dataset for all epochs.
        self.now = torch.zeros(3, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.epoch_of: Callable[[], int | None] | None = None
        self.starts = 0
        self._plan: tuple[tuple[int, ...], dict[int, int]] = ((-1,), {})
        self.begin(0)

    def __len__(self) -> int:
        return len(self.real)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "real" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.real, name)

    def __getstate__(self) -> dict[str, Any]:
        # These hold the trainer, which loader workers must not get.
        return {**self.__dict__, "epoch_of": None, "share_of": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def begin(self, epoch: int) -> None:
        """Set the epoch, its slots and those of all epochs before: called in the main process."""
        slots = self.slots(epoch)
        constant = self.share_of is None
        before = epoch * slots if constant else sum(self.slots(earlier) for earlier in range(epoch))
        self.now.copy_(torch.tensor([epoch, slots, before]))

    def slots(self, epoch: int) -> int:
        share = self.mix.share if self.share_of is None else self.share_of(epoch)
        return min(round(share * len(self.real)), len(self.allowed))

    def plan(self) -> dict[int, int]:
        """``{position: row of the rendered set}`` of the current epoch."""
        now = tuple(self.now.tolist())
        if self._plan[0] != now:
            epoch, slots, before = now
            self._plan = (now, plan_epoch(self.allowed, self.source.places, self.mix, epoch, slots, before))
        return self._plan[1]

    def __getitem__(self, index: int) -> Any:
        index = int(index)
        row = self.plan().get(index)
        if row is None:
            sample = self.real[index]
            return self._with_fields(sample, {}, False) if self.options.fields else sample
        renders = self.source.renders
        record = renders.records[row]
        truth = truth_of(record, self.source.indices, self.convert.joint)
        made = self.convert.from_file(renders.folder / record.file_name, truth)
        sample = self.real[index] if self.options.mixup else self.example
        parts = dict(zip(parts_of(self.form), made, strict=True))
        if self.options.mixup:
            places = (self.form.image, self.form.label)
            lam = mixing_weight(self.options, self.mix.seed, int(self.now[0]), index)
            halves = [parts[place] for place in places], [self.form.get(sample, place) for place in places]
            parts = dict(zip(places, mix_up(*halves, lam, int(self.options.num_classes or 0)), strict=True))
        return self._with_fields(sample, parts, True)

    def _with_fields(self, sample: Any, parts: dict[Any, Any], synthetic: bool) -> Any:
        options = self.options
        if options.num_classes:
            label = parts.get(self.form.label, self.form.get(sample, self.form.label))
            parts[self.form.label] = probabilities(label, options.num_classes)
        if options.is_synthetic:
            parts[FLAG] = synthetic
        if options.weight is not None:
            parts[WEIGHT] = float(options.weight) if synthetic else 1.0
        return self.form.put(sample, parts)

    def _check_label(self, labels: Sequence[int] | None) -> None:
        """What we make of the first sample's own label must be that label."""
        target = self.targets[0]
        if labels is None or not isinstance(target, ClassTarget):
            return
        made, real = target.of(int(labels[0])), self.form.get(self.example, self.form.label)
        if not np.array_equal(np.asarray(made), np.asarray(real)):
            raise UsageError(
                f"the first training sample has the label {real!r}, but its entry in the dataset's labels makes {made!r}: "
                "give labels= to WithSynthetic as the samples carry them."
            )

    def _warn_of_caps(self) -> None:
        slots = round(self.mix.share * len(self.real))
        if slots > len(self.allowed):
            warnings.warn(
                f"{slots} synthetic samples were asked for, but only {len(self.allowed)} of {len(self.real)} positions belong to classes that "
                "receive none: the share is capped there. Lower share, or balance fewer classes.",
                stacklevel=4,
            )


def targets_of(label: Any, mask: Any, dataset: Any) -> tuple[Target, ...]:
    """Kinds of a sample's label, and of the mask beside it where there is one."""
    found = target_of(label, find_attribute(dataset, "target_transform"))
    return (found,) if mask is None else (found, target_of(mask))


def parts_of(form: Form) -> list[Any]:
    """Places of what a converter makes, in its order."""
    return [form.image, form.label] if form.mask is None else [form.image, form.label, form.mask]


def mixing_weight(options: Options, *seed: int) -> float:
    """Weight of the synthetic half under mixup, Beta(a, a) distributed (Zhang et al., "mixup", ICLR 2018, section 2)."""
    alpha = float(options.mixup or 1.0)
    return float(seeding.rng(seeding.derive("mixup", *seed), "weight").beta(alpha, alpha))


def mix_up(made: Sequence[Any], real: Sequence[Any], lam: float, count: int) -> tuple[Any, torch.Tensor]:
    """``(image, label)`` of a synthetic and a real sample blended alike; labels become probabilities ``[count]``."""
    labels = [probabilities(label, count) for label in (made[1], real[1])]
    return blend(made[0], real[0], lam), lam * labels[0] + (1 - lam) * labels[1]


def blend(made: Any, real: Any, lam: float) -> Any:
    """``lam * made + (1 - lam) * real``, for floating-point tensors or arrays of one shape.

    Raises:
        UsageError: PIL images, integers or other sizes.
    """
    floating = isinstance(made, torch.Tensor) and made.is_floating_point()
    floating = floating or (isinstance(made, np.ndarray) and np.issubdtype(made.dtype, np.floating))
    if not floating or made.shape != real.shape:
        raise UsageError(
            f"mixup needs floating-point images of one size, but the dataset gives {type(real).__name__} "
            f"{list(getattr(real, 'shape', []))} and the synthetic one is {list(getattr(made, 'shape', []))}: let the transform end so."
        )
    return made * lam + real * (1 - lam)
