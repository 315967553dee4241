"""Native-scale crops of defects and of defect-free surroundings, each with the hole that is to be painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, choices
from visynth.data.imageset import ImageSet, Item
from visynth.data.masks import checked_mask
from visynth.generators.blend import grow
from visynth.generators.compose import Composition
from visynth.generators.compose_fit import Source, fit_composition, guess_good
from visynth.generators.diffusion import to_values
from visynth.generators.inpainting import GROW, pad_mask, pad_to, surroundings
from visynth.lightning_modules.data import StreamData
from visynth.lightning_modules.data_checks import hold_out
from visynth.lightning_modules.facts import Facts

Array = NDArray[Any]
Mask = NDArray[np.bool_]
CUT = 0.25  # share of defect crops whose hole leaves a part of the defect to be seen, as when windows follow each other
FREE = 0.3  # share of crops without a defect
MEASURED = 512  # crops over which the standard deviation is measured


@dataclass(frozen=True)
class CropSource:
    """A training image, padded to the window at least, and its defect's pixels (none in defect-free images)."""

    image: Array
    mask: Mask
    where: NDArray[np.int64]  # (row, column) of the defect's pixels


class Crops(Dataset[dict[str, Tensor]]):
    """Crops by stream position; position p of one seed is always the same crop with the same hole.

    Classes are drawn with q ~ n^temper among defects, groups evenly within a class, images evenly within a group.
    """

    def __init__(
        self, composition: Composition, sources: Sequence[Source], window: int, temper: float, seed: int
    ) -> None:
        self.window, self.seed = window, seed
        self.shapes = [defect.mask for defect in composition.defects]
        usable = {defect.name for defect in composition.defects}
        self.sources_of: list[list[list[CropSource]]] = []  # by class and group
        for name in composition.classes:
            free = name == composition.classes[-1]
            own = [s for s in sources if s.label == name and (free or s.name in usable)]
            self.sources_of.append([[_crop_source(s, window, free) for s in group] for group in seeding.by_group(own)])
        self.counts = tuple(sum(map(len, groups)) for groups in self.sources_of)
        defects = np.array(self.counts[:-1], dtype=np.float64) ** temper
        self.shares = np.append(defects / defects.sum() * (1 - FREE), FREE)

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Tensor]:
        crops = [self.crop(int(p)) for p in positions]
        return {
            "image": torch.from_numpy(np.stack([image for image, _, _ in crops])),
            "mask": torch.from_numpy(np.stack([mask for _, mask, _ in crops])),
            "label": torch.tensor([label for _, _, label in crops]),
            "position": torch.tensor(list(positions), dtype=torch.int64),
        }

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([position]).items()}

    def crop(self, position: int) -> tuple[Array, Mask, int]:
        """Image ``[C, S, S]``, hole ``[1, S, S]`` and label."""
        generator = seeding.rng(position, f"crops/{self.seed}")
        label = int(
            np.searchsorted(np.cumsum(self.shares), generator.random(), side="right").clip(max=len(self.shares) - 1)
        )
        source = seeding.draw_even(self.sources_of[label], generator)
        if len(source.where):
            anchor = source.where[int(generator.integers(len(source.where)))]
            top, left = (
                self._start(int(a), length, generator) for a, length in zip(anchor, source.mask.shape, strict=True)
            )
            hole = grow(source.mask[self._part(top, left)], GROW + int(generator.integers(0, 4)))
            if generator.random() < CUT:
                hole = _half(hole, (int(anchor[0]) - top, int(anchor[1]) - left), generator)
        else:
            top, left = (int(generator.integers(0, length - self.window + 1)) for length in source.mask.shape)
            hole = self._stray_hole(generator)
        image = source.image[self._part(top, left)]
        for axis in (0, 1):
            if generator.random() < 0.5:
                image, hole = np.flip(image, axis), np.flip(hole, axis)
        return np.ascontiguousarray(image.transpose(2, 0, 1)), np.ascontiguousarray(hole)[None], label

    def _part(self, top: int, left: int) -> tuple[slice, slice]:
        return slice(top, top + self.window), slice(left, left + self.window)

    def _start(self, anchor: int, length: int, generator: np.random.Generator) -> int:
        """Where a window may start that holds the anchor, a little away from its edge."""
        margin = self.window // 8
        start = anchor - int(generator.integers(margin, self.window - margin))
        return min(max(start, 0), length - self.window)

    def _stray_hole(self, generator: np.random.Generator) -> Mask:
        """A defect's shape anywhere in the window."""
        shape = self.shapes[int(generator.integers(len(self.shapes)))]
        rows, columns = np.nonzero(shape)
        pick = int(generator.integers(len(rows)))
        target = generator.integers(0, self.window, 2)
        y, x = rows - rows[pick] + target[0], columns - columns[pick] + target[1]
        inside = (y >= 0) & (y < self.window) & (x >= 0) & (x < self.window)
        hole = np.zeros((self.window, self.window), bool)
        hole[y[inside], x[inside]] = True
        return grow(hole, GROW)


class DefectCrops(StreamData):
    """Training crops for :class:`visynth.lightning_modules.Inpainting`.

    Args:
        data: as :func:`visynth.read_images` takes it.
        masks: folder of masks that mirrors the images' layout (COCO polygons need none).
        window: side of the crops in pixels, at native scale.
        good: the defect-free class; guessed when not given.
        classes: defect classes; by default all that have reliable masks.
        batch_size: per process.
        temper: defect classes are drawn with q ~ n^temper.
        groups: CSV with columns file,group.
        group_pattern: regular expression on image names whose first group is the group.
        held_out: share of the images, by group, that are kept for ``visynth evaluate``.
        epoch_images: crops in one epoch over all ranks.
        seed: of the crops and the held-out images.
        num_workers: of the loader.
        max_bad_fraction: share of unusable files up to which they are left out.

    Raises:
        UsageError: the defect-free class cannot be guessed; a window too small.
        DataError: no class has reliable masks; no defect-free images.
    """

    def __init__(
        self,
        data: str,
        masks: str | None = None,
        window: int = 64,
        good: str | None = None,
        classes: list[str] | None = None,
        batch_size: int = 32,
        temper: float = 0.5,
        groups: str | None = None,
        group_pattern: str | None = None,
        held_out: float = 0.0,
        epoch_images: int = 20_000,
        seed: int = 0,
        num_workers: int = 0,
        max_bad_fraction: float = 0.05,
    ) -> None:
        super().__init__()
        if window < 16 or batch_size < 1 or not 0 <= held_out < 0.9:
            raise UsageError(
                f"window must be at least 16 pixels, batch_size at least 1 and held_out in [0, 0.9), but got {window}, "
                f"{batch_size}, {held_out}."
            )
        self.data, self.masks, self.window, self.good, self.classes = data, masks, window, good, classes
        self.batch_size, self.temper, self.groups, self.group_pattern = batch_size, temper, groups, group_pattern
        self.held_out, self.epoch_images, self.seed, self.num_workers = held_out, epoch_images, seed, num_workers
        self.max_bad_fraction = max_bad_fraction
        self.sources: Sequence[Source] | None = None
        self.composition: Composition | None = None
        self.crops: Crops | None = None

    @classmethod
    def of(cls, sources: Sequence[Source], good: str, **kwargs: Any) -> DefectCrops:
        """The same, of images in memory."""
        data = cls("", good=good, **kwargs)
        data.sources = sources
        return data

    def setup(self, stage: str | None = None) -> None:
        if self.crops is not None:
            return
        if self.sources is None:
            self.sources = self._read()
        sources = self.sources
        fitted = fit_composition(sources, good=str(self.good), classes=self.classes)
        self.composition = fitted.generator
        self.crops = Crops(self.composition, sources, self.window, self.temper, self.seed)
        spec = self.composition.spec
        batch = self.crops.__getitems__(range(MEASURED))
        known = to_values(batch["image"])
        _, level = surroundings(known, batch["mask"].float())
        self._facts = Facts(
            self.composition.classes,
            self.crops.counts,
            spec.channels,
            (self.window, self.window),
            spec.dtype,
            (0.0,) * spec.channels,  # every window is measured from its own level
            round(max(float((known - level).square().mean().sqrt()), 1e-3), 6),
        )

    def _read(self) -> list[Source]:
        self.images = hold_out(self.read(), self.held_out, self.seed)
        images = self.images
        sources = [_source(images, item) for item in images.items if item.split in ("", "train")]
        masked = {name: sum(s.mask is not None for s in sources if s.label == name) for name in images.classes}
        self.good = self.good or guess_good(images.classes, masked, images.counts())
        if self.good is None:
            raise UsageError(
                f"which class is defect-free cannot be guessed from {choices(images.classes)}: name it with good."
            )
        return sources

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        assert self.crops is not None
        return self.stream(self.crops)

    def reference(self) -> tuple[list[Array], NDArray[np.int64], tuple[str, ...]]:
        """The real training images ``[H, W, C]``, their labels and the class names."""
        self.setup()
        assert self.composition is not None
        assert self.sources is not None
        classes = self.composition.classes
        own = [s for s in self.sources if s.label in classes]
        return [s.image for s in own], np.array([classes.index(s.label) for s in own], dtype=np.int64), classes


def _crop_source(source: Source, window: int, free: bool) -> CropSource:
    image = pad_to(source.image, window)
    empty = np.zeros(source.image.shape[:2], bool)
    mask = pad_mask(empty if free or source.mask is None else source.mask, image.shape[:2])
    return CropSource(image, mask, np.argwhere(mask))


def _half(hole: Mask, anchor: tuple[int, int], generator: np.random.Generator) -> Mask:
    """The part of a hole on one side of a line through the anchor."""
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.indices(hole.shape)
    side = (rows - anchor[0]) * np.sin(angle) + (columns - anchor[1]) * np.cos(angle) >= 0
    return np.asarray(hole & side)


def _source(images: ImageSet, item: Item) -> Source:
    image = images.image(item)
    return Source(item.name, item.label, item.group or item.name, image, *checked_mask(images, item, image))
