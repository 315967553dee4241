"""The dataset that stands in for the user's: some positions of an epoch are synthetic, all others are theirs.

Which positions are replaced is a function of (seed, epoch) alone, so that every rank and every loader worker agrees
without talking, and the user's sampler, batch size and epoch length stay what they were.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from visynth import seeds as seeding
from visynth.data.adapter import Adapter, Shape, check_extras, label_like
from visynth.data.decode import decode
from visynth.data.synthetic import as_picture, by_label
from visynth.errors import UsageError, choices
from visynth.manifest import Renders


@dataclass(frozen=True)
class Mix:
    """How much of what.

    Attributes:
        counts: synthetic images wanted per class, which weight the slots.
        slots: positions of an epoch that are synthetic.
        spread: share of the slots dealt out evenly over all rendered classes, so that "synthetic" does not spell "rare".
        seed: of positions and pictures.
    """

    counts: Mapping[str, int]
    slots: int
    spread: float
    seed: int


class MixedDataset(Dataset[Any]):
    """The user's dataset with some positions replaced, of the same length.

    Args:
        real: map-style, giving ``(image, label)`` or dicts.
        renders: the rendered set.
        labels: the label of each real sample, or None where they are not known.
        indices: ``{class name: label}`` as the user's dataset numbers them.
        mix: how much of what.
        transform: for rendered pictures; by default the dataset's own, else an :class:`Adapter`.
        image_key: and
        label_key: of dict samples.
    """

    def __init__(
        self,
        real: Any,
        renders: Renders,
        labels: Sequence[int] | None,
        indices: Mapping[str, int],
        mix: Mix,
        transform: Callable[[Any], Any] | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
    ) -> None:
        self.real, self.renders, self.mix, self.indices = real, renders, mix, dict(indices)
        self.places = {name: rows for name, rows in by_label(renders.records).items() if name in self.indices}
        self.allowed = replaceable(len(real), labels, {self.indices[name] for name, n in mix.counts.items() if n})
        if mix.slots > len(self.allowed):
            warnings.warn(
                f"{mix.slots} synthetic samples were asked for, but only {len(self.allowed)} of {len(real)} positions belong to classes that "
                "receive none: the share is capped there. Lower share, or balance fewer classes.",
                stacklevel=3,
            )
        sample = real[0]
        self.shape = Shape.of(sample, image_key, label_key)
        check_extras(sample, self.shape)
        self.example = sample
        self.target = find_attribute(real, "target_transform")
        self._check_label(labels)
        self.convert: Any = _converter(real, sample[self.shape.image], transform, self._any_picture())
        self.quick = isinstance(self.convert, _Through) and self.convert.reads(self._any_picture())
        # Shared memory, because persistent loader workers keep their copy of the dataset for all epochs.
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.epoch_of: Callable[[], int | None] | None = None
        self.starts = 0
        self._plan: tuple[int, dict[int, int]] = (-1, {})

    def __len__(self) -> int:
        return len(self.real)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "real" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.real, name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "epoch_of": None}  # it holds the trainer, which loader workers must not get

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __getitem__(self, index: int) -> Any:
        index = int(index)
        row = self.plan().get(index)
        if row is None:
            return self.real[index]
        record = self.renders.records[row]
        path = self.renders.folder / record.file_name
        # Our own 8-bit PNG files need no safe decoder: read as torchvision reads a user's, they cost what a real one costs.
        image = self.convert.from_file(path) if self.quick else self.convert(decode(path))
        return self.shape.put(self.example, image, self._label(self.indices[record.label]))

    def _label(self, index: int) -> Any:
        """A class index as the user's dataset gives it, through its ``target_transform`` where it has one."""
        real = self.example[self.shape.label]
        moved = self.target(index) if callable(self.target) else index
        return moved if type(moved) is type(real) and not isinstance(moved, int) else label_like(real, int(moved))

    def _check_label(self, labels: Sequence[int] | None) -> None:
        """What we make of the first sample's own label must be that label."""
        real = self.example[self.shape.label]
        made = self._label(0 if labels is None else int(labels[0]))
        if labels is not None and not np.array_equal(np.asarray(made), np.asarray(real)):
            raise UsageError(
                f"the first training sample has the label {real!r}, but its entry in the dataset's labels makes {made!r}: "
                "give labels= to WithSynthetic as the samples carry them."
            )

    def plan(self) -> dict[int, int]:
        """``{position: row of the rendered set}`` of the current epoch."""
        epoch = int(self.epoch)
        if self._plan[0] != epoch:
            self._plan = (epoch, plan_epoch(self.allowed, self.places, self.mix, epoch))
        return self._plan[1]

    def _any_picture(self) -> Any:
        return decode(self.renders.folder / self.renders.records[0].file_name)


def plan_epoch(allowed: Sequence[int], places: Mapping[str, Sequence[int]], mix: Mix, epoch: int) -> dict[int, int]:
    """Which positions are synthetic in an epoch, and which rendered image stands at each.

    Within a class the images come in a shuffled order that goes on over the epochs, so that all are used evenly.

    Example:
        >>> plan_epoch(range(10), {"crack": [0, 1, 2]}, Mix({"crack": 5}, 3, 0.0, seed=1), epoch=0) != {}
        True
    """
    slots = min(mix.slots, len(allowed))
    generator = seeding.rng(seeding.derive("mix", mix.seed, epoch), "positions")
    positions = np.asarray(allowed)[generator.permutation(len(allowed))[:slots]]
    names = sorted(places)
    weights = np.array([mix.counts.get(name, 0) for name in names], dtype=np.float64)
    even = np.full(len(names), 1 / len(names))
    shares = (1 - mix.spread) * weights / weights.sum() + mix.spread * even if weights.sum() else even
    labels = [name for name, count in zip(names, deal(shares, slots), strict=True) for _ in range(count)]
    generator.shuffle(labels)
    plan: dict[int, int] = {}
    used: dict[str, int] = {}
    per_epoch = {name: labels.count(name) for name in set(labels)}
    for position, name in zip(positions.tolist(), labels, strict=True):
        number = epoch * per_epoch[name] + used.get(name, 0)
        used[name] = used.get(name, 0) + 1
        rounds, place = divmod(number, len(places[name]))
        order = _order(len(places[name]), mix.seed, name, rounds)
        plan[position] = places[name][int(order[place])]
    return plan


_orders: dict[tuple[int, int, str, int], Any] = {}


def _order(count: int, seed: int, name: str, rounds: int) -> Any:
    key = (count, seed, name, rounds)
    if key not in _orders:
        if len(_orders) > 256:
            _orders.clear()
        _orders[key] = seeding.rng(seeding.derive("order", seed, name, rounds), "pictures").permutation(count)
    return _orders[key]


def deal(shares: Any, total: int) -> list[int]:
    """Whole numbers that sum to ``total``, by largest remainder.

    Example:
        >>> deal(np.array([0.5, 0.3, 0.2]), 5)
        [3, 1, 1]
    """
    exact = np.asarray(shares, dtype=np.float64) * total
    counts = np.floor(exact).astype(int)
    for place in np.argsort(-(exact - counts), kind="stable")[: total - int(counts.sum())]:
        counts[place] += 1
    return [int(count) for count in counts]


def replaceable(length: int, labels: Sequence[int] | None, receiving: set[int]) -> list[int]:
    """Positions that may be replaced: those of classes that receive no synthetic images, or all where none is such."""
    if labels is None:
        return list(range(length))
    rest = [position for position, label in enumerate(labels) if int(label) not in receiving]
    return rest or list(range(length))


# -- what the user's dataset tells -----------------------------------------------------------------------------------


def find_labels(dataset: Any) -> list[int] | None:
    """Labels of a dataset without loading images: ``targets``, ``labels`` or ``samples``, through Subset and ConcatDataset."""
    if isinstance(dataset, Subset):
        inner = find_labels(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [find_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part or []]
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            try:
                flat = np.asarray(values)
            except ValueError:  # several labels a sample, of different number
                continue
            if flat.ndim == 1 and np.issubdtype(flat.dtype, np.integer):
                return [int(v) for v in flat]
    samples = getattr(dataset, "samples", None)
    if (
        isinstance(samples, list)
        and samples
        and isinstance(samples[0], tuple)
        and isinstance(samples[0][-1], (int, np.integer))
    ):
        return [int(sample[-1]) for sample in samples]
    return None


def find_attribute(dataset: Any, name: str) -> Any:
    """An attribute of a dataset or of what it wraps, or None."""
    while dataset is not None:
        value = getattr(dataset, name, None)
        if value is not None:
            return value
        dataset = dataset.datasets[0] if isinstance(dataset, ConcatDataset) else getattr(dataset, "dataset", None)
    return None


def map_classes(
    dataset: Any, renders: Renders, classes: Mapping[str, int] | Sequence[str] | None, labels: Sequence[int] | None
) -> dict[str, int]:
    """``{rendered class: the user's label}``.

    Given ``classes`` decide; else the dataset's ``class_to_idx`` or ``classes``; else the generator's order where the counts agree.

    Raises:
        UsageError: a rendered class without a label; the message lists both sides.
    """
    rendered = [name for name, count in renders.counts().items() if count]
    told: dict[str, int]
    if classes is not None:
        told = dict(classes) if isinstance(classes, Mapping) else {name: place for place, name in enumerate(classes)}
    elif find_attribute(dataset, "class_to_idx") is not None:
        told = {str(name): int(place) for name, place in find_attribute(dataset, "class_to_idx").items()}
    elif find_attribute(dataset, "classes") is not None:
        told = {str(name): place for place, name in enumerate(find_attribute(dataset, "classes"))}
    elif labels is not None and len(set(labels)) == len(renders.classes):
        told = {name: place for place, name in enumerate(renders.classes)}
    else:
        seen = (
            "labels that cannot be read without loading images"
            if labels is None
            else f"the labels {sorted(set(labels))}"
        )
        raise UsageError(
            f"the rendered classes {choices(renders.classes)} must be matched with {seen}: give classes={{name: label}} to WithSynthetic."
        )
    missing = [name for name in rendered if name not in told]
    if missing:
        raise UsageError(
            f"rendered classes {choices(missing)} are not among the dataset's {choices(told)}: give classes={{name: label}} to WithSynthetic."
        )
    return {name: told[name] for name in rendered}


def _converter(
    dataset: Any, real_image: Any, transform: Callable[[Any], Any] | None, picture: Any
) -> Callable[[Any], Any]:
    """Rendered array -> the user's image: the given transform, the dataset's own where it gives the same, else an Adapter."""
    if transform is not None:
        return _Through(transform, "picture")
    own = find_attribute(dataset, "transform")
    for given in ("RGB", "picture", "array") if callable(own) else ():
        candidate = _Through(own, given)
        # Trying a transform draws random numbers: the user's own stream must not notice.
        with random_state_kept():
            try:
                if _alike(candidate(picture), real_image):
                    return candidate
            except Exception:  # a transform made for another input: the next way of giving it may fit
                continue
    return Adapter.like(real_image)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leaves the global random states of torch, numpy and Python as they were."""
    ours, theirs = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(theirs)


@dataclass(frozen=True)
class _Through:
    """A transform applied to a rendered array, given as ``"RGB"`` PIL image, as ``"picture"`` (PIL where it can be) or as ``"array"``."""

    transform: Callable[[Any], Any]
    given: str

    def reads(self, picture: Any) -> bool:
        """Whether pictures of this kind can go from their file to the transform without an array between."""
        return self.given != "array" and isinstance(as_picture(picture), Image.Image)

    def from_file(self, path: Path) -> Any:
        with Image.open(path) as image:
            image.load()
            return self.transform(image.convert("RGB") if self.given == "RGB" else image)

    def __call__(self, picture: Any) -> Any:
        if self.given == "array":
            return self.transform(picture)
        image = as_picture(picture)
        return self.transform(image.convert("RGB") if self.given == "RGB" else image)


def _alike(made: Any, real: Any) -> bool:
    """Same type, dtype and number of channels; sizes may differ where the user's do."""
    if type(made) is not type(real):
        return False
    if isinstance(real, (torch.Tensor, np.ndarray)):
        return bool(
            made.dtype == real.dtype
            and made.ndim == real.ndim
            and (made.shape == real.shape or made.shape[0] == real.shape[0])
        )
    return getattr(made, "mode", None) == getattr(real, "mode", None)
