"""The cells of a trial: which groups train and test in each, with classic augmentation of the training side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError
from visynth.core.progress import Progress
from visynth.data.splits import group_folds, pick_groups
from visynth.jobs.preflight import headroom_note
from visynth.jobs.trial.data import TrialData
from visynth.jobs.trial.options import TrialOptions
from visynth.verdict.cells import Cell
from visynth.verdict.comparison import run_cells
from visynth.verdict.planning import smallest_effect
from visynth.verdict.rule import positive_groups
from visynth.verdict.summary import summarise

Rows = NDArray[np.int64]
ENOUGH = 4  # groups of a class that a training is to have: with fewer, inner folds choose by next to nothing


@dataclass(frozen=True)
class Split:
    """One draw of training groups and one fold of test groups, the same for every class.

    Attributes:
        draw: number of the draw.
        fold: number of the fold within it.
        train: rows that every arm may learn from.
        more: rows of the rare classes that only the oracle adds.
        test: rows that nothing is fitted, composed or chosen on.
    """

    draw: int
    fold: int
    train: Rows
    more: Rows
    test: Rows


def make_splits(data: TrialData, options: TrialOptions) -> list[Split]:
    """Every draw's folds by group; the data's own test split where they have one.

    Raises:
        DataError: the data have a test split, and a rare class is not on both sides of it.
    """
    sides = [i.split for i in data.items]
    for name in data.rare:
        own = {side for side, positive in zip(sides, data.positive[name], strict=True) if positive}
        if "test" in sides and not {"test"} < own:
            raise DataError(f"the data come with a test split, but {name} is not on both sides of it (it is in {own}).")
    splits = []
    for draw in range(options.draws):
        pairs = [_own_split(data, sides)] if "test" in sides else _folds(data, options, draw)
        for fold, (train, test) in enumerate(pairs):
            more = _left_to_the_oracle(data, train, options, draw, fold)
            base = np.array([r for r in train if int(r) not in more], dtype=np.int64)
            oracle = np.array(sorted(more), dtype=np.int64)
            splits.append(Split(draw, fold, base, oracle, np.asarray(test, dtype=np.int64)))
    return splits


def _own_split(data: TrialData, sides: Sequence[str]) -> tuple[Rows, Rows]:
    tested = {data.groups[row] for row, side in enumerate(sides) if side == "test"}
    # A group on both sides would leak, so its training images are left out.
    train = [row for row, side in enumerate(sides) if side != "test" and data.groups[row] not in tested]
    return np.array(train), np.array([row for row, side in enumerate(sides) if side == "test"])


def _folds(data: TrialData, options: TrialOptions, draw: int) -> list[tuple[Rows, Rows]]:
    strata = [
        next((name for name in data.rare if name in i.labels), i.labels[0] if i.labels else "") for i in data.items
    ]
    folds = folds_of([data.findings.images.groups()[name] for name in data.rare], options)
    return list(group_folds(strata, data.groups, folds, seeding.derive("trial", options.seed, draw)))


def folds_of(groups: Sequence[int], options: TrialOptions) -> int:
    """Test folds of each draw, by the named classes' numbers of groups.

    Example:
        >>> [folds_of([n], TrialOptions()) for n in (2, 5, 8)], folds_of([5], TrialOptions(rare_groups=2))
        ([2, 3, 2], 2)
        >>> folds_of([20, 4], TrialOptions(folds=5))
        4
    """
    least = min(groups)
    left = options.rare_groups or ENOUGH  # groups that a training is to have
    return min(least, options.folds or (2 if least // 2 >= left else 3))


def too_few(data: TrialData, splits: Sequence[Split], options: TrialOptions) -> list[str]:
    """A sentence for each rare class of which some training has fewer groups than were asked for."""
    found, wanted = [], options.rare_groups or 0
    for name in data.rare:
        counts = [len({data.groups[row] for row in split.train if data.positive[name][row]}) for split in splits]
        fewer = [count for count in counts if count < wanted]
        if fewer:
            found.append(
                f"{name}: {len(fewer)} of {len(splits)} trainings have fewer than the {wanted} groups that were "
                f"asked for (down to {min(fewer)}): there are no more beside the tested ones (more --folds leave more)"
            )
    return found


def _left_to_the_oracle(data: TrialData, train: Rows, options: TrialOptions, draw: int, fold: int) -> set[int]:
    """Training rows of rare classes beyond ``rare_groups`` groups."""
    dropped: set[int] = set()
    for name in data.rare if options.rare_groups else ():
        own = [row for row in train if data.positive[name][row]]
        count = min(options.rare_groups or 0, len({data.groups[row] for row in own}))
        kept = pick_groups([data.groups[row] for row in own], count, seeding.derive(options.seed, draw, fold, name))
        dropped |= {int(row) for row in own if data.groups[row] not in kept}
    return dropped


def bare_cell(
    data: TrialData, name: str, split: Split, oracle: bool = False, augmented: int = 0, seed: int = 0
) -> Cell:
    """A split as a cell of one class."""
    return data.cell(
        name,
        train=split.train,
        test=split.test,
        draw=split.draw,
        fold=split.fold,
        more=split.more,
        oracle=oracle,
        augmented=augmented,
        seed=seed,
    )


def has_both_sides(data: TrialData, name: str, split: Split) -> bool:
    """A class with fewer groups than folds is missing on one side of some."""
    return bool(data.positive[name][split.train].any() and data.positive[name][split.test].any())


def real_cells(
    data: TrialData, name: str, splits: Sequence[Split], options: TrialOptions, progress: Progress
) -> list[tuple[Split, Cell]]:
    """The splits that have the class on both sides, as cells with the augmented copies of their training images."""
    data.add_augmented(name, np.flatnonzero(data.positive[name]).tolist(), options.seed, progress)
    restricted = {n for split in splits for n in data.rare if data.positive[n][split.more].any()}
    return [
        (split, bare_cell(data, name, split, name in restricted, options.synthetic, options.seed))
        for split in splits
        if has_both_sides(data, name, split)
    ]


@dataclass(frozen=True)
class Headroom:
    """What more real groups of a class would bring.

    Attributes:
        words: the line for the report.
        gain: in AP over the balanced sampler; NaN where there are no more groups to compare with.
    """

    words: str
    gain: float = float("nan")


def headroom(
    data: TrialData, splits: Sequence[Split], options: TrialOptions, progress: Progress
) -> dict[str, Headroom]:
    """Per named class the baseline against the oracle with all reals, on the first draw, before anything is
    synthesised."""
    found: dict[str, Headroom] = {}
    for name in data.rare:
        halves = [half for split in splits if not split.draw for half in _with_an_oracle(data, name, split, options)]
        cells = [bare_cell(data, name, half, oracle=True) for half in halves if has_both_sides(data, name, half)]
        cells = [cell for cell in cells if len(cell.more)]
        if not cells:
            found[name] = Headroom(f"{name}: headroom unknown, there are no more real groups to compare with")
            continue
        results = run_cells(name, cells, data.bank.tables(), learner="frozen", workers=0, seed=options.seed)
        summary = summarise({name: results}, candidate="oracle")[name]
        means = {row["name"]: row["mean"] for row in summary.rows}
        what = "" if options.rare_groups else " (half of the groups against all of them)"
        # What the whole trial will see, not this first draw.
        seen = min(smallest_effect(positive_groups(results.tested["real"]), options.draws), 1.0)
        note = headroom_note(means["balanced"], means["oracle"], seen)
        found[name] = Headroom(
            f"{name}: balanced sampler AP {means['balanced']:.2f}, with all real groups {means['oracle']:.2f}{what}; "
            f"{note}",
            means["oracle"] - means["balanced"],
        )
        progress(f"  {found[name].words}")
    return found


def _with_an_oracle(data: TrialData, name: str, split: Split, options: TrialOptions) -> list[Split]:
    """The split; where all groups are in use, half of the class's against all of them, or nothing where half is too
    few."""
    if options.rare_groups:
        return [split]
    own = [row for row in split.train if data.positive[name][row]]
    groups = [data.groups[row] for row in own]
    if len(set(groups)) < 4:
        return []
    half = pick_groups(groups, max(2, len(set(groups)) // 2), seeding.derive("half", split.draw, split.fold))
    more = np.array([row for row in own if data.groups[row] not in half], dtype=np.int64)
    train = np.array([row for row in split.train if row not in set(more.tolist())], dtype=np.int64)
    return [replace(split, train=train, more=more)]
