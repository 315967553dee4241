"""The arms of an honest comparison: same learner, same real images, same total weight, other positives.

A *cell* is one draw of training groups and one fold of test groups, for one class against the rest. Its arms:

==================  ================================================================================================
real                the real images as they are
duplicate           the class's real images repeated to the count that synthesis reaches (the size control)
balanced            the class and the rest at equal weight, as a balanced sampler gives
logit_adjusted      trained as "real", scores moved by the log prior (Menon et al., ICLR 2021, eq. 9): for one class against
                    the rest this moves every score alike, so it changes decisions (macro-F1) but no ranking
smote               balanced, with points between a real image of the class and one of its five nearest of that class in feature
                    space (Chawla et al., "SMOTE", JAIR 2002, section 4.2)
augment             balanced, with classic augmentations of the class's real images at half of its weight; of several candidates
                    the one with the best inner score
synthetic           balanced, with synthetic images of the class, which have a share of the class's weight; of several shares, none
                    among them, the one with the best inner score; half where inner folds cannot try them
synthetic+control   as synthetic, with defect-free images under the same seams among the rest
oracle              balanced, with all real training images of the class: what synthesis tries to stand in for
==================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.verdict.learners import Floats, Ints, Items

NEIGHBOURS = 5  # of SMOTE, as in its paper
POOLED = ("mean", "max")  # tables of one vector an image
SHARES = (0.05, 0.1, 0.25, 0.5)  # of the class's weight that synthetic images have, besides none
HALF = 0.5  # where it is not chosen
BASELINES = ("real", "duplicate", "balanced", "logit_adjusted", "smote", "augment")


@dataclass(frozen=True)
class Extra:
    """Synthetic images: bank rows, and per image the groups of the real images behind it."""

    rows: Ints
    parents: Sequence[frozenset[str]]


@dataclass(frozen=True)
class Cell:
    """One comparison of arms, for one class.

    Attributes:
        draw: number of the draw of training groups.
        fold: number of the fold of test groups.
        train: rows of real images that every arm sees.
        more: rows that only the oracle adds.
        test: rows that are tested on.
        positive: by row, whether a real image shows the class.
        groups: by row, of real images.
        weights: by row, images of the set that a real image stands for when it is tested on; 1 where None.
        synthetic: images of the class.
        control: defect-free images with the traces of synthesis.
        augmented: classically augmented images of the class, by candidate.
        has_oracle: whether the class has more real images in some cell.
    """

    draw: int
    fold: int
    train: Ints
    more: Ints
    test: Ints
    positive: NDArray[np.bool_]
    groups: Sequence[str]
    weights: Floats | None = None
    synthetic: Extra | None = None
    control: Extra | None = None
    augmented: Mapping[str, Extra] = field(default_factory=dict)
    has_oracle: bool = False

    def test_truth(self) -> NDArray[np.bool_]:
        return self.positive[self.test]

    def test_groups(self) -> list[str]:
        return [self.groups[row] for row in self.test]

    def test_weights(self) -> Floats:
        return np.ones(len(self.test)) if self.weights is None else self.weights[self.test]


def compact(
    cell: Cell, tables: Mapping[tuple[int, str], NDArray[np.float32]]
) -> tuple[Cell, dict[tuple[int, str], NDArray[np.float32]]]:
    """The cell with only the rows that it uses, renumbered in order: little to send to another process.

    Example:
        >>> cell = Cell(0, 0, np.array([1]), np.array([], int), np.array([3]), np.arange(4) > 2, list("abcd"))
        >>> small, tables = compact(cell, {(0, "max"): np.arange(8.0).reshape(4, 2)})
        >>> small.train.tolist(), small.test.tolist(), small.groups, tables[(0, "max")].tolist()
        ([0], [1], ['b', 'd'], [[2.0, 3.0], [6.0, 7.0]])
    """
    extras = [e for e in (cell.synthetic, cell.control, *cell.augmented.values()) if e is not None]
    real = np.unique(np.concatenate([cell.train, cell.more, cell.test]))
    used = np.unique(np.concatenate([real, *(extra.rows for extra in extras)])).astype(np.int64)

    def renumbered(extra: Extra | None) -> Extra | None:
        return None if extra is None else Extra(np.searchsorted(used, extra.rows), extra.parents)

    small = replace(
        cell,
        **{side: np.searchsorted(used, getattr(cell, side)) for side in ("train", "more", "test")},
        positive=cell.positive[real],
        groups=[cell.groups[row] for row in real],
        weights=None if cell.weights is None else cell.weights[real],
        synthetic=renumbered(cell.synthetic),
        control=renumbered(cell.control),
        augmented={name: Extra(np.searchsorted(used, e.rows), e.parents) for name, e in cell.augmented.items()},
    )
    return small, {key: table[used] for key, table in tables.items()}


def build_arms(cell: Cell, seed: int, tables: Mapping[tuple[int, str], NDArray[np.float32]]) -> dict[str, Items]:
    """Every arm's training items, but for those with candidates (:func:`augmented_arms`, :func:`synthetic_arms`). The sum
    of weights is the number of real training images in each.

    Args:
        cell: the comparison.
        seed: of what is drawn at random.
        tables: features by (resolution, pooling), ``[bank rows, D]``: SMOTE finds its neighbours in them.
    """
    count = 0 if cell.synthetic is None else len(cell.synthetic.rows)
    positives = int(cell.positive[cell.train].sum())
    real = _items(cell, cell.train)
    arms = {"real": real_items(cell), "balanced": _weighted(real, 1.0), "logit_adjusted": _weighted(real, None)}
    arms["duplicate"] = _weighted(real, None, repeat=(positives + count) / max(positives, 1))
    if count:
        arms["smote"] = _weighted(_smote(cell, real, count, seed, tables) if positives > 1 else real, 1.0)
    if cell.has_oracle:  # in a cell that has no more groups to give, the oracle is the balanced arm
        arms["oracle"] = _weighted(_items(cell, np.concatenate([cell.train, cell.more])), 1.0, total=len(cell.train))
    return arms


def augmented_arms(cell: Cell) -> dict[str, Items]:
    """Training items with each candidate's classically augmented images, weighted as those of the other arms."""
    real = _items(cell, cell.train)
    return {name: _weighted(_joined(real, extra, True), 1.0) for name, extra in cell.augmented.items()}


def synthetic_arms(cell: Cell, *, control: bool = False) -> dict[float, Items]:
    """Training items by the share of the class's weight that its synthetic images have; with the defect-free images that
    have the traces of synthesis where ``control``. Empty where there are none."""
    if cell.synthetic is None or (control and cell.control is None):
        return {}
    mixed = _joined(_items(cell, cell.train), cell.synthetic, True)
    if control and cell.control is not None:
        mixed = _joined(mixed, cell.control, False)
    return {share: _weighted(mixed, 1.0, share=share) for share in SHARES}


def real_items(cell: Cell) -> Items:
    """The arm "real": the training images as they are."""
    return _weighted(_items(cell, cell.train), None)


def adjust(scores: Floats, items: Items) -> Floats:
    """Post-hoc logit adjustment of one-against-rest scores: minus the log odds of the training prior (eq. 9, tau =
    1)."""
    prior = float(items.positive.mean())
    return np.asarray(scores - np.log(prior / (1 - prior)))


def _items(cell: Cell, rows: Ints) -> Items:
    return Items(
        rows=rows,
        positive=cell.positive[rows],
        weights=np.ones(len(rows)),
        parents=[frozenset({cell.groups[row]}) for row in rows],
        real=np.ones(len(rows), bool),
    )


def _joined(items: Items, extra: Extra, positive: bool) -> Items:
    count = len(extra.rows)
    return Items(
        rows=np.concatenate([items.rows, extra.rows]),
        positive=np.concatenate([items.positive, np.full(count, positive)]),
        weights=np.ones(len(items) + count),
        parents=[*items.parents, *extra.parents],
        real=np.concatenate([items.real, np.zeros(count, bool)]),
    )


def _smote(
    cell: Cell, items: Items, count: int, seed: int, tables: Mapping[tuple[int, str], NDArray[np.float32]]
) -> Items:
    """The items and ``count`` points between a real image of the class and one of its nearest in the class.

    Source: Chawla et al., "SMOTE: Synthetic Minority Over-sampling Technique", JAIR 16 (2002), section 4.2, with its k
    = 5.
    """
    generator = seeding.rng(seeding.derive("smote", seed, cell.draw, cell.fold), "pairs")
    own = items.rows[items.positive]
    near = nearest_in_class(own, tables, NEIGHBOURS)
    first = generator.integers(0, len(own), count)
    second = near[first, generator.integers(0, near.shape[1], count)]
    joined = _joined(
        items,
        Extra(
            own[first],
            [frozenset({cell.groups[own[a]], cell.groups[own[b]]}) for a, b in zip(first, second, strict=True)],
        ),
        True,
    )
    zeros = np.zeros(len(items))
    return Items(
        **{name: getattr(joined, name) for name in ("rows", "positive", "weights", "parents", "real")},
        partners=np.concatenate([items.rows, own[second]]),
        mix=np.concatenate([zeros, generator.random(count)]),
    )


def nearest_in_class(rows: Ints, tables: Mapping[tuple[int, str], NDArray[np.float32]], k: int) -> Ints:
    """For each of some rows the k nearest others among them, nearest first, ``[n, min(k, n - 1)]``, as places in
    ``rows``.

    Distance is Euclidean over all pooled tables (every resolution and pooling, each scaled to one mean squared
    deviation), so that an arm's neighbours do not depend on which table its learner chooses later.

    Example:
        >>> line = np.array([[0.0], [10.0], [1.0], [11.0]], np.float32)
        >>> nearest_in_class(np.arange(4), {(0, "max"): line}, 1).ravel().tolist()
        [2, 3, 0, 1]
    """
    squared = np.zeros((len(rows), len(rows)))
    for (_, pool), table in tables.items():
        if pool not in POOLED:
            continue
        values = table[rows].astype(np.float64)
        values -= values.mean(axis=0)
        lengths = (values**2).sum(axis=1)
        distances = np.maximum(lengths[:, None] + lengths[None, :] - 2 * values @ values.T, 0)
        squared += distances / max(float(lengths.mean()), 1e-12)
    np.fill_diagonal(squared, np.inf)  # an image is not its own neighbour; an equal one may be
    return np.argsort(squared, axis=1, kind="stable")[:, : min(k, len(rows) - 1)]


def _weighted(
    items: Items, balance: float | None, *, repeat: float = 1.0, total: int | None = None, share: float = HALF
) -> Items:
    """Weights that sum to the number of real items (or ``total``); ``balance`` is the weight of class to rest, and
    ``share`` the part of the class's that what is made has: sixty synthetic images must not drown ten real ones."""
    weights = np.where(items.positive, repeat, 1.0)
    if balance is not None:
        of_class = balance / (1 + balance)
        made = items.positive & ~items.real
        own = items.positive & items.real
        if made.any() and own.any():
            weights = np.where(made, share / (1 - share) * own.sum() / made.sum(), weights)
        sums = {kind: weights[items.positive == kind].sum() for kind in (True, False)}
        weights = weights * np.where(
            items.positive, of_class / max(sums[True], 1e-12), (1 - of_class) / max(sums[False], 1e-12)
        )
    weights = weights * ((int(items.real.sum()) if total is None else total) / weights.sum())
    return Items(items.rows, items.positive, weights, items.parents, items.real, items.partners, items.mix)
