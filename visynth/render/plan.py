"""The plan: which image gets which class and which seed, fixed before the first one is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError
from visynth.core.files import hash_json
from visynth.core.manifest import SCHEMA

SHARD = 64


@dataclass(frozen=True)
class Planned:
    """One image to make."""

    index: int
    label: int
    seed: int


@dataclass(frozen=True)
class RenderPlan:
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
        shard_size: images per shard; shards never share a micro-batch.
        purpose: ``"training"``, or ``"looking"`` for sets that WithSynthetic refuses.
    """

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

    def __post_init__(self) -> None:
        seeding.checked(self.seed)
        if not sum(self.targets.values()):
            raise UsageError(
                f"there is nothing to render: every class of {dict(self.targets)} has 0 images to add. Ask for more "
                "with --to N or --per-class N."
            )

    def to_json(self) -> dict[str, Any]:
        """The plan as stored; its hash names it."""
        return {
            **asdict(self),
            "schema": SCHEMA,
            "classes": list(self.classes),
            "targets": dict(self.targets),
            "options": dict(self.options),
        }

    @property
    def hash(self) -> str:
        return hash_json(self.to_json())

    @property
    def total(self) -> int:
        return sum(self.targets.values())

    @property
    def shards(self) -> int:
        return -(-self.total // self.shard_size)

    def shard(self, number: int) -> list[Planned]:
        """The images of one shard.

        Example:
            >>> plan = RenderPlan("d", "trained", ("a", "b"), {"a": 3, "b": 3}, 0, {}, "png", 16, shard_size=2)
            >>> [sorted(image.label for image in plan.shard(s)) for s in range(plan.shards)]
            [[0, 1], [0, 1], [0, 1]]
        """
        span = range(number * self.shard_size, number * self.shard_size + self.count(number))
        return [Planned(i, self._order[i], seeding.derive(self.generator, self.seed, i)) for i in span]

    def count(self, number: int) -> int:
        """Number of images in a shard."""
        return min(self.shard_size, self.total - number * self.shard_size)

    @cached_property
    def _order(self) -> list[int]:
        return balanced_order([self.targets.get(name, 0) for name in self.classes])


def balanced_order(counts: Sequence[int]) -> list[int]:
    """Class numbers spread so evenly that every stretch holds its share of each class to within one.

    Image k of n of a class stands at position (k + 1/2) / n of the whole.

    Example:
        >>> balanced_order([4, 2])
        [0, 1, 0, 0, 1, 0]
    """
    labels = np.repeat(np.arange(len(counts)), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts]) if counts else np.zeros(0)
    return [int(label) for label in labels[np.lexsort((labels, places))]]
