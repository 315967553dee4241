"""Utility: what synthetic series of a rare class are worth to a classifier of real ones that no fit saw.

The classifier is a logistic regression on random kernels. In each cell the generator is fitted to the cell's training series
alone; how much of the class's weight synthetic ones get, nothing among the choices, is decided on parts of the training
series by generators that were fitted without these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, raise_all
from visynth.core.progress import Progress, no_progress
from visynth.core.stage import Stage
from visynth.tabular.columns import Floats
from visynth.tabular.shares import Fits, Ints, best, run_cells
from visynth.tabular.timeseries.augment import augmented
from visynth.tabular.timeseries.base import SeriesGenerator
from visynth.tabular.timeseries.kernels import Eyes
from visynth.tabular.timeseries.series import Series, of_class
from visynth.tabular.utility import Split
from visynth.verdict.comparison import Results, Wording

SHARES = (0.0, 0.25, 0.5)  # of the class's weight that synthetic series may get
CLASSIC = (0.25, 0.5)  # that augmented ones may get
PENALTIES = (0.001, 0.01, 0.1)
PARTS = 3  # of the training series, each of which is judged by fits on the others
VARIANTS = 4  # augmented ones of each series
LEAST = 4  # series of the class in a fold

SERIES = Wording(
    items="series",
    groups="entities",
    recipes={
        "real": "the series as they are",
        "duplicate": "random over-sampling",
        "balanced": "class weights",
        "augment": "scaling, time warping and noise",
    },
    helps="add the synthetic series of balanced.* (column 'synthetic') to your training series, and keep your own validation as it is",
    precision=0.5,
)


@dataclass(frozen=True)
class SeriesCells:
    """How the cells are made.

    Attributes:
        draws: repetitions with other folds.
        folds: test parts of each.
        synthetic: series of the class to draw in a cell.
        most: pretend that only so many entities of the class exist in training; the rest serves the oracle.
        seed: of everything.
    """

    draws: int = 3
    folds: int = 2
    synthetic: int = 40
    most: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"draws": 1, "folds": 2, "synthetic": 1}
        problems = [
            f"{n} must be at least {k}, but got {getattr(self, n)}" for n, k in least.items() if getattr(self, n) < k
        ]
        if self.most is not None and self.most < 2:
            problems.append(f"rare_series must be at least 2, but got {self.most}")
        raise_all("the options", problems, UsageError)


def rare_series(
    series: Series,
    label: str,
    make: Callable[[int], SeriesGenerator],
    cells: SeriesCells,
    *,
    stage: Stage | None = None,
    progress: Progress = no_progress,
) -> Results:
    """Every arm on every cell for one class against the rest.

    Args:
        series: real ones with a class; those of one group stay together.
        label: the class.
        make: a fresh generator, from a seed.
        cells: how many, and what is in them.
        stage: keeps finished cells.
        progress: receives lines.

    Raises:
        UsageError: no such class.
        DataError: too few series of it.
    """
    raise_all("the series", too_few(series, [label], cells))
    positive, groups = of_class(series, label), list(series.group_names)
    results = Results(label, wording=SERIES, synthesizer=make(0).network)

    def outcome_of(split: Split, seed: int) -> dict[str, Any]:
        return _Cell(series, positive, split.train, split.test, label, cells, make, seed).outcome()

    run_cells(results, positive, groups, cells, outcome_of, stage, progress)
    return results


def too_few(series: Series, labels: Sequence[str], cells: SeriesCells) -> list[str]:
    """What is wrong with classes that have too few entities for the folds."""
    problems = []
    for label in labels:
        positive = of_class(series, label)
        own = len({name for name, true in zip(series.group_names, positive, strict=True) if true})
        if own < LEAST * cells.folds:
            problems.append(
                f"class {label!r} has series of {own} entities: {cells.folds} folds need {LEAST * cells.folds} at least"
            )
    return problems


class _Cell:
    """One comparison of arms."""

    def __init__(
        self, series: Series, positive: NDArray[np.bool_], train: Ints, test: Ints, label: str, cells: SeriesCells,
        make: Callable[[int], SeriesGenerator], seed: int,
    ) -> None:  # fmt: skip
        self.series, self.label, self.cells, self.make, self.seed = series, label, cells, make, seed
        generator, names = seeding.rng(seed, "series/cell"), np.array(series.group_names)
        own = np.unique(names[train[positive[train]]])
        kept = own[generator.permutation(len(own))[: cells.most]]  # entities, of which all series go one way
        left = positive[train] & ~np.isin(names[train], kept)
        self.more, self.test, self.train = train[left], test, train[~left]
        self.positive = positive[self.train]
        self.parts = np.zeros(len(self.train), np.int64)
        self.count = int(np.clip(len(kept), 2, PARTS))
        others = np.setdiff1d(names[self.train], kept)
        for groups in (kept, others):
            part = dict(zip(generator.permutation(groups).tolist(), np.arange(len(groups)) % self.count, strict=True))
            for place, name in enumerate(names[self.train].tolist()):
                self.parts[place] = part.get(name, self.parts[place])

    def outcome(self) -> dict[str, Any]:
        """Scores of every arm on the test part, its inner score and what was chosen, as plain JSON."""
        real = self.series.take(self.train)
        eyes = Eyes.of(real, seed=self.seed)
        x, test = eyes(real), eyes(self.series.take(self.test))
        own = np.flatnonzero(self.positive)
        plain = self._fits(x, test)
        variants = eyes(augmented(real.take(own), VARIANTS, self.seed))
        variant_parts = np.repeat(self.parts[own], VARIANTS)
        without: dict[int | None, Ints] = {part: np.flatnonzero(variant_parts != part) for part in range(self.count)}
        classic = self._fits(x, test, variants, {None: np.arange(len(variants)), **without}, plain.penalty)
        drawn = [eyes(self._drawn(real, None)), *(eyes(self._drawn(real, part)) for part in range(self.count))]
        few = self.cells.synthetic
        places: dict[int | None, Ints] = {None: np.arange(few)}
        places |= {part: np.arange(few) + few * (part + 1) for part in range(self.count)}
        synthetic = self._fits(x, test, np.concatenate(drawn), places, plain.penalty)
        arms: dict[str, list[Any]] = {
            "real": [plain.tested(balanced=False), None, {}],
            "duplicate": [plain.tested(repeat=True), None, {}],
            "balanced": [plain.tested(), None, {}],
            "augment": best(dict.fromkeys(CLASSIC, classic), "candidate"),
            "synthetic": best({share: synthetic if share else plain for share in SHARES}),
        }
        if len(self.more):
            oracle = self._fits(
                x, test, eyes(self.series.take(self.more)), {None: np.arange(len(self.more))}, plain.penalty
            )
            arms["oracle"] = [oracle.tested(share=len(self.more) / (len(self.more) + len(own))), None, {}]
        return {"arms": arms, "train": int(self.positive.sum()), "synthetic": few}

    def _drawn(self, real: Series, part: int | None) -> Series:
        """Series of the class by a generator that did not see a part."""
        seed = seeding.derive("series/fit", self.seed, part) % 2**31
        generator = self.make(seed).fit(real.take(self.parts != part), members="none")
        assert generator.schema.target is not None
        return generator.sample(self.cells.synthetic, conditions={generator.schema.target: self.label}, seed=seed)

    def _fits(
        self,
        x: Floats,
        test: Floats,
        extra: Floats | None = None,
        places: dict[int | None, Ints] | None = None,
        penalty: float | None = None,
    ) -> Fits:
        """Fits on features that are scaled as the real training series have them."""
        mean, scale = x.mean(0), np.where(x.std(0) > 1e-9, x.std(0), 1.0)
        more = x[:0] if extra is None else extra
        rows = (np.concatenate([x, more, test]) - mean) / scale
        nothing: dict[int | None, Ints] = {part: np.zeros(0, np.int64) for part in (None, *range(self.count))}
        return Fits(rows, self.positive, self.parts, places or nothing, penalty, PENALTIES)


def drawn_for(generator: SeriesGenerator, series: Series, count: int, seed: int) -> Series:
    """Synthetic series of the classes in their real shares: what stands beside real ones in measures."""
    target = series.schema.target
    if target is None:
        return generator.sample(count, seed=seed)
    shares = Counter(series.labels())
    counts = {name: max(round(count * number / len(series)), 1) for name, number in sorted(shares.items())}
    return generator.sample_classes(counts, seed=seed)
