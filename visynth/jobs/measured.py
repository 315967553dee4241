"""The real images of a comparison, by row: classes, groups, weights, features, augmented copies; and cells of them.

``trial`` and ``evaluate`` compare arms on the same kind of cells; they differ in where the synthetic images come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError
from visynth.core.files import cache_folder
from visynth.core.progress import NowAndThen, Progress, no_progress, time_left
from visynth.data.imageset import Item, Lazy
from visynth.data.transforms import CANDIDATES, augment, cutmix
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractors import extractor
from visynth.metrics.patchcore import PatchCore, fit_patchcore
from visynth.verdict.cells import Cell, Extra
from visynth.verdict.learners import Learner

Rows = NDArray[np.int64]
CHUNK = 256  # images between two looks at the clock
COPIES_PER_IMAGE = 3  # augmented copies of each real image, per candidate
CUTMIX = "cutmix"
FEWEST = 5  # groups of defect-free images, for distances from them
MIXED = 0.5  # of so many augmented images as of the other candidates: each costs its features in its own cell


@runtime_checkable
class Checked(Protocol):
    """A learner that can say beforehand whether it fits the images."""

    def check(self, names: Sequence[str], images: Sequence[Any], progress: Progress = no_progress) -> None:
        """Raise a UsageError if it does not; ``names`` are the classes by their numbers. Its fits may tell ``progress``."""


@dataclass
class Distances:
    """A memory bank of defect-free images, which the classes of a split share, and the distances of rows from it: each without
    the groups behind the row, which for what is made may be others with each class."""

    core: PatchCore
    of: dict[tuple[int, frozenset[str]], float] = field(default_factory=dict)


@dataclass(kw_only=True)
class MeasuredSet:
    """The real images that arms are fitted and tested on. A row is a place in ``items`` and in the bank.

    Attributes:
        items: the real images.
        image: the pixels of a row.
        bank: their features, by row, and behind them those of all synthetic and augmented images.
        positive: by class, whether each row shows it.
        groups: of each row.
        weights: images of the whole set that each row stands for when it is tested on.
        good: the defect-free class, if any.
        augmented: ``{class: {candidate: {row: bank rows of its augmented copies}}}``.
    """

    items: list[Item]
    image: Callable[[int], Any]
    bank: FeatureBank
    positive: dict[str, NDArray[np.bool_]]
    groups: list[str]
    weights: NDArray[np.float64]
    good: str | None = None
    augmented: dict[str, dict[str, dict[int, list[int]]]] = field(default_factory=dict)
    _distances: dict[tuple[int, ...], Distances] = field(default_factory=dict)

    @cached_property
    def group_of(self) -> dict[str, str]:
        """Group of each image by its name."""
        return {item.name: item.group for item in self.items}

    @cached_property
    def labels(self) -> Rows | None:
        """Number of each row's class among ``positive``; None where an image has several or none."""
        if any(len(item.labels) != 1 for item in self.items):
            return None
        numbers = {name: k for k, name in enumerate(self.positive)}
        return np.array([numbers[item.labels[0]] for item in self.items], dtype=np.int64)

    def number(self, name: str) -> int:
        """Of a class among ``positive``."""
        return list(self.positive).index(name)

    def add_augmented(self, name: str, rows: Sequence[int], seed: int, progress: Progress = no_progress) -> None:
        """Augmented copies of some rows of a class, once; each image is asked for once for all of them."""
        if name in self.augmented:
            return
        plan = [(row, candidate, copy) for row in rows for candidate in CANDIDATES for copy in range(COPIES_PER_IMAGE)]
        last: list[Any] = [None, None]

        def make(entry: tuple[int, str, int]) -> Any:
            row, candidate, copy = entry
            if last[0] != row:
                last[:] = row, self.image(row)
            return augment(last[1], candidate, seeding.derive("augment", seed, row, copy, candidate))[0]

        places = add_features(self.bank, Lazy(make, plan), f"{name}: augmented images", progress, cache=False)
        augmented: dict[str, dict[int, list[int]]] = {candidate: {} for candidate in CANDIDATES}
        for (row, candidate, _), place in zip(plan, places, strict=True):
            augmented[candidate].setdefault(row, []).append(int(place))
        self.augmented[name] = augmented

    def cell(
        self,
        name: str,
        *,
        train: Rows,
        test: Rows,
        draw: int = 0,
        fold: int = 0,
        more: Rows | None = None,
        oracle: bool = False,
        augmented: int = 0,
        seed: int = 0,
    ) -> Cell:
        """One comparison of one class, without synthetic images yet.

        Args:
            name: the class.
            train: rows that the arms learn from.
            test: rows that they are tested on.
            draw: number of the draw.
            fold: of the fold within it.
            more: rows that the oracle adds; those of other classes are left out.
            oracle: whether there is an oracle.
            augmented: classically augmented images of the training rows, of those that :meth:`add_augmented` made.
            seed: of their choice.
        """
        own = np.array([row for row in ([] if more is None else more) if self.positive[name][row]], dtype=np.int64)
        extras = {}
        for candidate in CANDIDATES if augmented else ():
            places = self.augmented[name][candidate]
            pool = [(place, self.groups[row]) for row in train.tolist() for place in places.get(row, ())]
            stream = seeding.rng(seeding.derive("augmented", seed, draw, fold), candidate)
            order = stream.permutation(len(pool))[:augmented]
            rows = np.array([pool[i][0] for i in order], dtype=np.int64)
            extras[candidate] = Extra(rows, [frozenset({pool[i][1]}) for i in order], self.number(name))
        return Cell(
            draw,
            fold,
            train,
            own,
            test,
            self.positive[name],
            self.groups,
            self.weights,
            augmented=extras,
            has_oracle=oracle,
            labels=self.labels,
        )

    def with_cutmix(self, cell: Cell, name: str, augmented: int, seed: int) -> Cell:
        """The cell with CutMix within the class among its classic candidates: made for this cell alone, so that it is asked for
        once, when the cell is fitted."""
        if not cell.augmented:
            return cell
        count = max(1, round(MIXED * augmented))
        mixed = self._cutmix(name, cell.train, count, seeding.derive(seed, cell.draw, cell.fold))
        return cell if mixed is None else replace(cell, augmented={**cell.augmented, CUTMIX: mixed})

    def _cutmix(self, name: str, train: Rows, count: int, seed: int) -> Extra | None:
        """Boxes of one training image of a class on another one, of another group where there are several; None where there
        is but one image."""
        own = [int(row) for row in train if self.positive[name][row]]
        if len(own) < 2:
            return None
        stream = seeding.rng(seeding.derive("cutmix", seed), name)
        pairs = []
        for first in (own[int(k)] for k in stream.integers(0, len(own), count)):
            others = [row for row in own if self.groups[row] != self.groups[first]] or [r for r in own if r != first]
            pairs.append((first, others[int(stream.integers(0, len(others)))]))

        def mix(number: int) -> Any:
            first, second = pairs[number]
            return cutmix(self.image(first), self.image(second), seeding.derive(seed, number))

        rows = self.bank.add(Lazy(mix, range(count)), cache=False)
        return Extra(rows, [frozenset({self.groups[a], self.groups[b]}) for a, b in pairs], self.number(name))

    def with_distances(self, cell: Cell) -> Cell:
        """The cell with the distance of its images, real and made, from its defect-free training images of other groups;
        as it is where these are of fewer than five groups (what leaves its own one out of so few
        lies farther off than a fresh image), or without patches."""
        if self.good is None:
            return cell
        free = [int(row) for row in cell.train if self.positive[self.good][row] and int(row) in self.bank.patches]
        groups = [self.groups[row] for row in free]
        if len(set(groups)) < FEWEST:
            return cell
        extras = [e for e in (cell.synthetic, cell.control, *cell.augmented.values()) if e is not None]
        real = np.concatenate([cell.train, cell.more, cell.test])
        behind = {int(row): frozenset({self.groups[int(row)]}) for row in real}
        behind |= {
            int(row): parents for extra in extras for row, parents in zip(extra.rows, extra.parents, strict=True)
        }
        if not all(row in self.bank.patches for row in behind):
            return cell
        known = self._distances.get(tuple(free))
        if known is None:
            core = fit_patchcore([self.bank.patches[row] for row in free], groups)
            known = self._distances.setdefault(tuple(free), Distances(core))
        new = [entry for entry in behind.items() if entry not in known.of]
        scores = known.core.scores([self.bank.patches[row] for row, _ in new], [groups for _, groups in new])
        known.of |= zip(new, scores.tolist(), strict=True)
        distances = np.full(len(self.bank), np.nan)
        distances[list(behind)] = [known.of[entry] for entry in behind.items()]
        return replace(cell, anomaly=distances)


def check_learner(
    learner: Learner, name: str, metric: str, data: MeasuredSet, progress: Progress = no_progress
) -> None:
    """Refuse early what will not do: a metric of decisions where there will be none, or a training that does not fit the
    images.

    Args:
        learner: as :func:`visynth.verdict.learners.learner_of` gives it, and
        name: what it was called by.
        metric: of the verdict.
        data: the images.
        progress: told what a cell takes, and how far it is.

    Raises:
        UsageError: images of several classes, or a learner that tells one class from the rest alone; a module or a DataModule
            that these images do not fit.
    """
    problems = []
    pixels = getattr(learner, "pixels", False)
    if data.labels is None and (metric in ("recall", "macro-f1") or pixels):
        problems.append("images have one class each, and these do not")
    if metric in ("recall", "macro-f1") and not getattr(learner, "decides", False):
        problems.append(f"the learner tells all classes apart, and {name} does not (frozen does)")
    if problems:
        what = f"metric {metric}" if not pixels else f"learner {name}"
        raise UsageError(f"{what} needs that " + "; and that ".join(problems) + ".")
    if isinstance(learner, Checked):
        first = [int(np.flatnonzero(own)[0]) for own in data.positive.values() if own.any()]
        learner.check(list(data.positive), [data.image(row) for row in first], progress)


def add_features(
    bank: FeatureBank, images: Sequence[Any], what: str, progress: Progress, *, cache: bool = True
) -> Rows:
    """Features of images, as :meth:`visynth.metrics.bank.FeatureBank.add` computes them, with a line of progress now
    and then."""
    rows, begun, seldom = [], time.monotonic(), NowAndThen(progress)
    for first in range(0, len(images), CHUNK):
        rows.append(bank.add(images[first : first + CHUNK], cache=cache))
        done = first + len(rows[-1])
        if done < len(images):
            left = (time.monotonic() - begun) / done * (len(images) - done)
            seldom(f"  {what}: {done} of {len(images)}, {time_left(left)}")
    return np.concatenate(rows) if rows else np.zeros(0, np.int64)


def new_bank(learner: Learner, cache: bool, patches: bool = False) -> FeatureBank:
    """An empty bank with all that a learner needs; ``cache`` keeps the features of real images on disk, and ``patches`` are
    those of a distance from defect-free images."""
    return FeatureBank(
        extractor(),
        cache=cache_folder() / "features" if cache else None,
        trunk=getattr(learner, "trunk", 0),
        keep_images=getattr(learner, "pixels", False),
        keep_patches=patches,
    )
