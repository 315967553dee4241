"""Choose the epoch positions to replace and the rendered image for each: functions of seeds and counts
alone.

Two ways to lay out the same share. :func:`plan_epoch` replaces positions of a map-style dataset, so that every rank and
loader worker agrees without talking. :class:`Slots` and :class:`SlotStream` do it batch by batch, for data that have no
positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding

OTHER, MOST_ROWS = 2**40, 2**16  # numbers of rows of batches of other sizes start here; most of one batch


@dataclass(frozen=True)
class Mix:
    """The synthetic side of a mixture.

    Attributes:
        counts: synthetic images wanted per class, which weight the slots.
        share: fraction of the samples that is synthetic, where it does not change.
        spread: share of the slots dealt out evenly over all classes, so that "synthetic" does not spell "rare".
        seed: of positions and images.
        wanting: the user's labels of classes that the balance would fill, whether their images can be made or not.
        of_class: by class, the part of its own samples that is synthetic, where that was said for each.
        room: the only label whose real samples make room, where the share of every class was said: the largest class. Another
            one that receives none may be as rare as those that do.
    """

    counts: Mapping[str, int]
    share: float
    spread: float
    seed: int
    wanting: frozenset[int] = frozenset()
    of_class: Mapping[str, float] | None = None
    room: int | None = None

    def receiving(self, indices: Mapping[str, int]) -> set[int]:
        """The user's labels of the classes that receive synthetic samples, or should: their real ones make no room."""
        return {indices[name] for name, count in self.counts.items() if count and name in indices} | self.wanting


def class_shares(names: Sequence[str], mix: Mix) -> NDArray[np.float64]:
    """Part of the synthetic slots that each class gets; they sum to 1.

    Example:
        >>> class_shares(["a", "b"], Mix({"a": 3}, 0.5, spread=0.2, seed=0)).round(6).tolist()
        [0.9, 0.1]
    """
    weights = np.array([mix.counts.get(name, 0) for name in names], dtype=np.float64)
    even = np.full(len(names), 1 / len(names))
    return (1 - mix.spread) * weights / weights.sum() + mix.spread * even if weights.sum() else even


def names_of_labels(indices: Mapping[str, int]) -> dict[int, list[str]]:
    """Classes of each of the user's labels: several where they tell fewer apart, such as defect and none.

    Example:
        >>> names_of_labels({"good": 0, "scratch": 1, "spot": 1})
        {0: ['good'], 1: ['scratch', 'spot']}
    """
    names: dict[int, list[str]] = {}
    for name, label in indices.items():
        names.setdefault(label, []).append(name)
    return names


def only_names(indices: Mapping[str, int]) -> dict[int, str]:
    """The name of each label that has one alone: where several share it, it does not follow from the label."""
    return {label: names[0] for label, names in names_of_labels(indices).items() if len(names) == 1}


def sharing_names(indices: Mapping[str, int]) -> set[str]:
    """Names of classes that share a label."""
    return {name for names in names_of_labels(indices).values() if len(names) > 1 for name in names}


def plan_epoch(
    allowed: Sequence[int], places: Mapping[str, Sequence[int]], mix: Mix, epoch: int, slots: int, before: int
) -> dict[int, int]:
    """Choose the positions of an epoch to replace, and the rendered image for each.

    Within a class the images come in a shuffled order that goes on over the epochs, so that all are used evenly.

    Args:
        allowed: positions that may be replaced.
        places: rows of the rendered set by class.
        mix: what is mixed in.
        epoch: number of the epoch.
        slots: positions to replace.
        before: slots of all epochs before.

    Example:
        >>> plan_epoch(range(10), {"crack": [0, 1, 2]}, Mix({"crack": 5}, 0.3, 0.0, seed=1), 0, 3, 0) != {}
        True
    """
    slots = min(slots, len(allowed))
    if not slots:
        return {}
    generator = seeding.rng(seeding.derive("mix", mix.seed, epoch), "positions")
    positions = np.asarray(allowed)[generator.permutation(len(allowed))[:slots]]
    names = sorted(places)
    shares = class_shares(names, mix)
    labels = [name for name, count in zip(names, deal(shares, slots), strict=True) for _ in range(count)]
    generator.shuffle(labels)
    used = {name: int(share * before + 0.5) for name, share in zip(names, shares, strict=True)}
    plan: dict[int, int] = {}
    for position, name in zip(positions.tolist(), labels, strict=True):
        plan[position] = places[name][rendered_place(len(places[name]), mix.seed, name, used[name])]
        used[name] += 1
    return plan


def rendered_place(count: int, seed: int, name: str, number: int) -> int:
    """The place, of ``count`` images, of draw ``number``: a new shuffled order each time that all were used.

    Example:
        >>> sorted(rendered_place(3, 0, "crack", number) for number in range(3))
        [0, 1, 2]
    """
    rounds, place = divmod(number, count)
    return int(_order(count, seed, name, rounds)[place])


@lru_cache(256)
def _order(count: int, seed: int, name: str, rounds: int) -> Any:
    return seeding.rng(seeding.derive("order", seed, name, rounds), "pictures").permutation(count)


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


def replaceable(length: int, labels: Sequence[int] | None, receiving: set[int], room: int | None = None) -> list[int]:
    """Positions that may be replaced: those of classes that receive no synthetic images, or of the largest class where
    all receive; those of label ``room`` alone where it is given.

    Example:
        >>> replaceable(5, [0, 0, 1, -1, 2], {1}), replaceable(3, [0, 0, 1], {0, 1})
        ([0, 1, 4], [0, 1])
    """
    if labels is None:
        return list(range(length))
    if room is not None:
        return [p for p, label in enumerate(labels) if int(label) == room]
    # A sample without a label (-1, as semi-supervised sets have it) is left alone.
    counts = Counter(int(label) for label in labels if int(label) >= 0)
    if counts and set(counts) <= receiving:  # every class receives: the one with most samples makes room
        receiving = receiving - {max(counts, key=lambda label: (counts[label], -label))}
    return [p for p, label in enumerate(labels) if int(label) >= 0 and int(label) not in receiving]


def plan_within(
    labels: Sequence[int],
    classes: Mapping[int, Sequence[str]],
    places: Mapping[str, Sequence[int]],
    mix: Mix,
    epoch: int,
    share: float,
) -> dict[int, int]:
    """Like :func:`plan_epoch`, for loaders that draw by a sampler of their own: positions are replaced within their
    class.

    Of each class that receives, ``share`` of the positions are synthetic (of the others that can be made, ``spread``
    times as many), so that the sampler's counts of every class stay what they are.

    Args:
        labels: of the positions.
        classes: names of each label that can be made.
        places: rows of the rendered set by class.
        mix: what is mixed in.
        epoch: number of the epoch.
        share: of the positions of a class.
    """
    plan: dict[int, int] = {}
    own: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        own.setdefault(int(label), []).append(position)
    for label, given in sorted(classes.items()):
        names = [name for name in given if places.get(name)]
        if not names or label not in own:
            continue
        count = round(within_share(names, mix, share) * len(own[label]))
        stream = seeding.derive("within", mix.seed, epoch, names[0])
        order = iter(seeding.rng(stream, "positions").permutation(len(own[label])).tolist())
        for name, part in zip(names, deal(class_shares(names, mix), count), strict=True):
            for number in range(part):
                row = rendered_place(len(places[name]), mix.seed, name, epoch * len(own[label]) + number)
                plan[own[label][next(order)]] = places[name][row]
    return plan


def within_share(names: Sequence[str], mix: Mix, share: float) -> float:
    """Part of a label's own samples that is synthetic where a sampler keeps the classes' counts.

    Example:
        >>> mix = Mix({"scratch": 3}, 0.5, 0.1, seed=0)
        >>> within_share(["scratch", "spot"], mix, 0.5), within_share(["good"], mix, 0.5)
        (0.5, 0.05)
    """
    if mix.of_class is not None:
        return sum(mix.of_class.get(name, 0.0) for name in names) / len(names)
    return share if any(mix.counts.get(name, 0) for name in names) else share * mix.spread


class Slots:
    """Numbers of the synthetic samples of each batch: consecutive over batches, every ``world``-th for a rank.

    Over the first k batches of all ranks exactly ``floor(sum of share * size * world)`` samples are synthetic, whatever
    the rank, and a batch's numbers follow from its own number: a resumed training goes on with the same ones.

    Args:
        share: share of batch k.
        size: samples of a batch.
        rank: this process, of
        world: processes.

    Example:
        >>> slots = Slots(lambda batch: 0.3, 4)
        >>> [len(slots.of(batch)) for batch in range(5)]
        [1, 1, 1, 1, 2]
    """

    def __init__(self, share: Callable[[int], float], size: int, rank: int = 0, world: int = 1) -> None:
        self.share, self.size, self.rank, self.world = share, size, rank, world
        self._batch, self._sum = 0, 0.0

    def of(self, batch: int) -> range:
        """Numbers of this rank's synthetic samples in a batch."""
        if batch < self._batch:
            self._batch, self._sum = 0, 0.0
        while self._batch < batch:
            self._sum += self._wanted(self._batch)
            self._batch += 1
        # The sum of many floats may fall a hair below a whole number.
        first, last = (int(value + 1e-6) for value in (self._sum, self._sum + self._wanted(batch)))
        return range(first + (self.rank - first) % self.world, last, self.world)

    def of_other_size(self, batch: int, size: int, seed: int) -> list[int]:
        """Numbers for a batch of another size than the first one's, the last of an epoch for instance: its own share,
        rounded by chance."""
        draw = seeding.rng(seeding.derive("size", seed, batch, self.rank), "slots").random()
        first = OTHER + (batch * self.world + self.rank) * MOST_ROWS
        return [first + k for k in range(min(int(self.share(batch) * size + draw), MOST_ROWS))]

    def _wanted(self, batch: int) -> float:
        return self.share(batch) * self.size * self.world


class SlotStream:
    """Class and number within the class of synthetic sample ``n``: dealt out evenly in blocks, shuffled within.

    Example:
        >>> stream = SlotStream(["a", "b"], Mix({"a": 1}, 0.5, 0.5, seed=0), seed=3)
        >>> [sum(stream.at(n)[0] == name for n in range(2 * stream.block)) for name in "ab"]
        [1536, 512]
    """

    block = 1024

    def __init__(self, names: Sequence[str], mix: Mix, seed: int) -> None:
        self.names, self.seed = list(names), seed
        self.counts = deal(class_shares(self.names, mix), self.block)
        self._blocks: dict[int, list[tuple[str, int]]] = {}

    def at(self, number: int) -> tuple[str, int]:
        """``(class, how many of that class came before)``."""
        block, place = divmod(number, self.block)
        if block not in self._blocks:
            if len(self._blocks) > 3:  # training walks on: only the latest blocks are asked again
                self._blocks.clear()
            labels = [name for name, count in zip(self.names, self.counts, strict=True) for _ in range(count)]
            seeding.rng(seeding.derive("slots", self.seed, block), "classes").shuffle(labels)
            used = {name: block * count for name, count in zip(self.names, self.counts, strict=True)}
            row = []
            for name in labels:
                row.append((name, used[name]))
                used[name] += 1
            self._blocks[block] = row
        return self._blocks[block][place]
