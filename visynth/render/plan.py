"""The plan: which image gets which class and which seed, and which shard makes it, fixed before the first one is made."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from math import gcd
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, choices
from visynth.core.files import hash_json
from visynth.core.manifest import SCHEMA

SHARD = 64
ATTEMPTS = 4  # draws of an image until it counts as failed
FORMATS = ("folders", "webdataset", "parquet")
GOLDEN = 0.6180339887498949


class ShardPlan(ABC):
    """What the loop over shards needs to know of a plan, whatever it renders: a set whose items are dealt out to shards.

    Attributes:
        what: the items, in words.
        targets: items of each class.
        shard_size: most items of a shard.
    """

    what: ClassVar[str]
    targets: Mapping[str, int]
    shard_size: int

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The plan as stored; its hash names it."""

    @cached_property
    def hash(self) -> str:
        return hash_json(self.to_json())

    @property
    def sizes(self) -> dict[str, int]:
        """Items of every class, in the classes' order."""
        return dict(self.targets)

    @property
    def total(self) -> int:
        return sum(self.targets.values())

    @property
    def shards(self) -> int:
        return -(-self.total // self.shard_size)

    def places(self, number: int) -> list[range]:
        """Numbers of a shard's items within each class."""
        return shard_places(list(self.sizes.values()), self.shards, number)

    def count(self, number: int) -> int:
        """Items of a shard."""
        return len(range(residue(number, self.shards), self.total, self.shards))

    def counts(self, number: int) -> dict[str, int]:
        """Items of each class in a shard: its share to within one."""
        return {name: len(own) for name, own in zip(self.sizes, self.places(number), strict=True)}

    def shard_of(self, name: str) -> int:
        """Shard that made a file; an archive has its number in its name."""
        return int(re.findall(r"\d+", name)[0])


@dataclass(frozen=True)
class Planned:
    """One image to make: the ``number``-th of its class."""

    label: int
    number: int
    seed: int


@dataclass(frozen=True)
class RenderPlan(ShardPlan):
    """Everything that decides the bytes of a rendered set.

    Attributes:
        generator: digest.
        kind: the generator's kind, for the provenance mark.
        classes: the generator's class names.
        targets: images per class.
        seed: of the whole set.
        options: sampler options that differ from the generator's own.
        encoding: ``"png"`` or ``"tiff"``.
        micro_batch: images computed together.
        threads: torch threads while sampling.
        shard_size: most images of a shard; shards never share a micro-batch.
        purpose: ``"training"``, or ``"looking"`` for sets that WithSynthetic refuses.
        format: ``"folders"`` (class folders), ``"webdataset"`` (tar shards) or ``"parquet"``.
        attempts: draws of an image until it counts as failed.
        filters: digests of the filters that refuse images, by registered name.
    """

    what: ClassVar = "images"

    generator: str
    kind: str
    classes: tuple[str, ...]
    targets: Mapping[str, int]
    seed: int
    options: Mapping[str, Any]
    encoding: str
    micro_batch: int
    threads: int = 1
    shard_size: int = SHARD
    purpose: Literal["training", "looking"] = "training"
    format: Literal["folders", "webdataset", "parquet"] = "folders"
    attempts: int = ATTEMPTS
    filters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seeding.checked(self.seed)
        if not sum(self.targets.values()):
            raise UsageError(
                f"there is nothing to render: every class of {dict(self.targets)} has 0 images to add. Ask for more "
                "with --to N or --per-class N."
            )
        if self.format not in FORMATS:
            raise UsageError(f"format must be one of {choices(FORMATS)}, but got {self.format!r}.")
        if self.shard_size < 1 or self.attempts < 1:
            raise UsageError(
                f"shard_size and attempts must be at least 1, but got {self.shard_size} and {self.attempts}."
            )

    def to_json(self) -> dict[str, Any]:
        """The plan as stored; its hash names it."""
        return {
            **asdict(self),
            "schema": SCHEMA,
            "classes": list(self.classes),
            "targets": dict(self.targets),
            "options": dict(self.options),
            "filters": dict(self.filters),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> RenderPlan:
        """The plan again."""
        return cls(**{own.name: said[own.name] for own in fields(cls)} | {"classes": tuple(said["classes"])})

    @property
    def sizes(self) -> dict[str, int]:
        return {name: self.targets.get(name, 0) for name in self.classes}

    def shard(self, number: int) -> list[Planned]:
        """The images of one shard, each class spread evenly over it.

        Example:
            >>> plan = RenderPlan("d", "trained", ("a", "b"), {"a": 3, "b": 3}, 0, {}, "png", 16, shard_size=2)
            >>> [sorted(image.label for image in plan.shard(s)) for s in range(plan.shards)]
            [[0, 1], [0, 1], [0, 1]]
        """
        places = self.places(number)
        numbers = [iter(own) for own in places]
        order = balanced_order([len(own) for own in places])
        return [self.planned(label, next(numbers[label])) for label in order]

    def planned(self, label: int, number: int, attempt: int = 0) -> Planned:
        """The ``number``-th image of a class; another attempt is another draw."""
        parts = (attempt,) if attempt else ()
        return Planned(label, number, seeding.derive(self.generator, self.seed, self.classes[label], number, *parts))

    def shard_of(self, name: str) -> int:
        """Shard that made a file.

        Example:
            >>> plan = RenderPlan("d", "trained", ("a", "b"), {"a": 3, "b": 3}, 0, {}, "png", 16, shard_size=2)
            >>> [i.number for i in plan.shard(plan.shard_of("b/00000002.png")) if i.label == 1]
            [2]
        """
        if self.format != "folders":
            return super().shard_of(name)
        folder, _, file = name.partition("/")
        label = self.classes.index(folder)
        return shard_of(sum(list(self.sizes.values())[:label]) + int(file.partition(".")[0]), self.shards)


def shard_places(sizes: Sequence[int], shards: int, number: int) -> list[range]:
    """Numbers, within each class, of the images that one shard holds.

    All images, sorted by class, are dealt out like cards: shard s takes every S-th, from a place of its own. So every
    shard holds each class to within one image of its share, and nothing larger than a shard is ever in memory.

    Args:
        sizes: images of each class.
        shards: S.
        number: of the shard.

    Example:
        >>> [[list(own) for own in shard_places([5, 2], 3, s)] for s in range(3)]
        [[[0, 3], [1]], [[2], [0]], [[1, 4], []]]
    """
    first = residue(number, shards)
    places, begin = [], 0
    for size in sizes:
        offset = (first - begin) % shards
        places.append(range(offset, size, shards))
        begin += size
    return places


def residue(number: int, shards: int) -> int:
    """Place from which a shard is dealt. Consecutive shards lie about a golden section apart, so that the shards of a
    run that was stopped hold a fair share of every class together.

    Example:
        >>> [residue(s, 8) for s in range(8)]
        [0, 5, 2, 7, 4, 1, 6, 3]
    """
    step = max(round(GOLDEN * shards), 1)
    while gcd(step, shards) != 1:
        step += 1
    return number * step % shards


def shard_of(place: int, shards: int) -> int:
    """Shard that holds an image, by its place among all images sorted by class.

    Example:
        >>> [shard_of(residue(s, 8), 8) for s in range(8)]
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if shards == 1:
        return 0
    step = residue(1, shards)
    return place * pow(step, -1, shards) % shards


def balanced_order(counts: Sequence[int]) -> list[int]:
    """Class numbers spread so evenly that every stretch holds its share of each class to within one.

    Image k of n of a class stands at position (k + 1/2) / n of the whole.

    Example:
        >>> balanced_order([4, 2])
        [0, 1, 0, 0, 1, 0]
    """
    labels: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts]) if counts else np.zeros(0)
    return [int(label) for label in labels[np.lexsort((labels, places))]]
