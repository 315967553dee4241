"""Sources of synthetic samples: a rendered set on disk, or a generator at work during the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from visynth.core import members as members_file
from visynth.core import seeds as seeding
from visynth.core.artifact import SPEC, read_spec
from visynth.core.codec import Array, read
from visynth.core.errors import DataError, IntegrityError, UsageError, choices
from visynth.core.filters import selected
from visynth.core.manifest import MEMBERS, Record, Renders, decode_mask, is_finished, need_folders, read_renders
from visynth.generators.base import SCHEMA, Generator, Samples, load_generator
from visynth.mixing.dataset import by_label
from visynth.mixing.plan import rendered_place
from visynth.mixing.targets import Truth

if TYPE_CHECKING:
    from visynth.core.members import Member


def is_generator(source: Any) -> bool:
    """Whether a source is a generator, loaded or a folder, rather than a rendered set.

    Raises:
        IntegrityError: there is nothing at that path.
    """
    if isinstance(source, (Generator, Renders)):
        return isinstance(source, Generator)
    folder = Path(source)
    if not folder.is_dir():
        raise IntegrityError(
            f"there is no folder {folder}: give a rendered set ('visynth render' makes one) or a generator's folder "
            "('visynth fit')."
        )
    return (folder / SPEC).is_file() and not is_finished(folder)


def open_renders(source: Any, keep: Mapping[str, Any]) -> Renders:
    """The rendered set of a source, without what is filtered out.

    Raises:
        UsageError: a set that is for looking at only; filters that leave nothing, or that ask for scores which were
            never made.
        IntegrityError: see :func:`visynth.core.manifest.read_renders`.
        DataError: no images.
    """
    renders = need_folders(source if isinstance(source, Renders) else read_renders(source))
    if renders.plan.get("purpose", "training") != "training":
        raise UsageError(
            f"{renders.folder} is for looking at: no class of it was shown to help. Render a set of your own with "
            "'visynth "
            "render' if you want to train on it all the same."
        )
    if not renders.records:
        raise DataError(
            f"{renders.folder} holds no images: there is nothing to mix. Render some with 'visynth render'."
        )
    return selected(renders, keep)


def of_classes(renders: Renders, names: Sequence[str]) -> Renders:
    """The set with the images of some classes alone."""
    return replace(renders, records=tuple(record for record in renders.records if record.label in names))


def truth_of(record: Record, indices: Mapping[str, int], regions: bool = True) -> Truth:
    """Truth of a rendered image from the manifest, in the user's numbers; a mask is decoded only where ``regions``
    are wanted."""
    mask = decode_mask(record.mask) if regions and record.mask is not None else None
    return Truth(indices.get(record.label), mask, record.boxes, record.label)


def has_regions(renders: Renders, name: str) -> bool:
    """Whether images of a class come with masks or boxes."""
    record = next(r for r in renders.records if r.label == name)
    return bool(record.boxes) or record.mask is not None


@dataclass
class RenderedSource:
    """Synthetic sample (class, number) -> image and truth, read from a rendered set.

    Attributes:
        renders: the set.
        indices: ``{class: the user's label}``.
        seed: of the order of the images.
    """

    renders: Renders
    indices: Mapping[str, int]
    seed: int

    def __post_init__(self) -> None:
        self.places = by_label(self.renders.records)

    def record(self, name: str, number: int) -> Record:
        rows = self.places[name]
        return self.renders.records[rows[rendered_place(len(rows), self.seed, name, number)]]

    def example(self) -> Array:
        return read(self.renders.folder / self.renders.records[0].file_name)

    def examples(self, most: int = 8) -> list[Array]:
        """Some images, spread over the set."""
        records = self.renders.records
        rows = sorted({round(k * (len(records) - 1) / (most - 1)) for k in range(most)})
        return [read(self.renders.folder / records[row].file_name) for row in rows]


class GeneratedSource:
    """Synthetic samples made on a device, many at a time, from seeds that follow from their numbers.

    They are made outside autograd (``no_grad``: inference tensors could not enter a training step) and outside the
    user's autocast; ``autocast`` names a dtype of its own.
    """

    def __init__(
        self,
        source: Any,
        seed: int,
        options: Mapping[str, Any],
        autocast: str | None = None,
    ) -> None:
        self.source, self.seed, self.options, self.autocast = source, seed, dict(options), autocast
        self._generator: Generator | None = source if isinstance(source, Generator) else None

    def generator(self, device: torch.device | str) -> Generator:
        """Loaded at its first use, on the device that the training turned out to run on."""
        if self._generator is None:
            self._generator = load_generator(self.source, device=device)
            unknown = [name for name in self.options if name not in self._generator.options]
            if unknown:
                raise UsageError(
                    f"sampler= has unknown options {choices(unknown)}; {self._generator.spec.network} has "
                    f"{choices(self._generator.options)}."
                )
        return self._generator

    def make(self, names: Sequence[str], numbers: Sequence[int], device: torch.device) -> Samples:
        """One sample a (class, number), not bound to a batch size: faster than ``sample``, and not promised to the last
        bit."""
        generator = self.generator(device)
        seeds = [seeding.derive("online", self.seed, name, number) for name, number in zip(names, numbers, strict=True)]
        labels = [generator.classes.index(name) for name in names]
        dtype = None if self.autocast is None else getattr(torch, self.autocast)
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return generator.draw(seeds, labels, **self.options)


def members_of(source: Any) -> Sequence[Member]:
    """The real images behind a source, without loading weights.

    Raises:
        IntegrityError: neither a renders nor a generator folder.
    """
    if isinstance(source, (Generator, Renders)):
        return source.members
    if is_generator(source):
        read_spec(Path(source), (SCHEMA,))  # it says what is missing
        return members_file.read(Path(source) / MEMBERS)
    return read_renders(source).members


def truths(samples: Samples, labels: Sequence[int | None], regions: bool = True) -> list[Truth]:
    """Truths of generated images."""
    if not regions:
        return [Truth(label, None) for label in labels]
    truths_of = []
    for row, label in enumerate(labels):
        height, width = samples.crop(row).shape[-2:]
        mask = None if samples.masks is None else samples.masks[row, :height, :width].cpu().numpy().astype(bool)
        boxes = () if samples.boxes is None else tuple(tuple(map(float, b)) for b in samples.boxes[row].tolist())
        truths_of.append(Truth(label, mask, boxes))
    return truths_of


def as_array(samples: Samples, row: int) -> Array:
    """Image ``row`` as ``[H, W, C]``."""
    return np.ascontiguousarray(samples.crop(row).permute(1, 2, 0).cpu().numpy())
