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
focal               balanced, with the focal loss (Lin et al., ICCV 2017)
ldam                balanced, with margins that grow with rarity (Cao et al., "LDAM", NeurIPS 2019, with its re-weighting)
augment             balanced, with classic augmentations of the class's real images; of several candidates, and of two shares of
                    the class's weight, those with the best inner score
anomaly             no image of the class at all: the distance from defect-free images (Roth et al., "PatchCore", CVPR 2022); it is
                    also a feature that every other arm may choose
synthetic           balanced, with synthetic images of the class, which have a share of the class's weight: a tenth, unless another
                    share, fewer images, a mixture with classic augmentation, or none at all (then as "balanced" or "augment") is
                    better on every inner fold; a tenth where these cannot try it (a trained generator saw all groups). Where the
                    synthesizer makes defect-free images with the same seams, these stand among the rest, so that a seam does not
                    spell "defect"
no_control          as synthetic, without those
oracle              balanced, with all real training images of the class: what synthesis tries to stand in for
==================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.verdict.frozen import ANOMALY
from visynth.verdict.learners import Floats, Ints, Items

Tables = Mapping[tuple[int, str], NDArray[np.float32]]

NEIGHBOURS = 5  # of SMOTE, as in its paper
POOLED = ("mean", "max")  # tables of one vector an image
SHARES = (0.05, 0.1, 0.25, 0.5)  # of the class's weight that synthetic images have, besides none
HALF = 0.5  # of the class's weight to classic augmentations
LITTLE = 0.1  # to synthetic images, unless another share, or none, is better on every inner fold
FEWER = 3  # one of so many synthetic images is tried, too
LESS = 0.25  # of the class's weight to classic augmentations, tried beside half
BASELINES = ("real", "duplicate", "balanced", "logit_adjusted", "smote", "focal", "ldam", "augment", "anomaly", "dense")


@dataclass(frozen=True)
class Extra:
    """Synthetic images: bank rows, per image the groups of the real images behind it, and the number of their class."""

    rows: Ints
    parents: Sequence[frozenset[str]]
    label: int = -1

    def first(self, count: int) -> Extra:
        """The first so many."""
        return Extra(self.rows[:count], self.parents[:count], self.label)


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
        labels: by row, the number of a real image's class; None where images have several.
        anomaly: by bank row, the distance from the defect-free training images of other groups, NaN where it is not known;
            None where there are none.
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
    labels: Ints | None = None
    anomaly: Floats | None = None

    def test_labels(self) -> Ints | None:
        return None if self.labels is None else self.labels[self.test]

    def test_truth(self) -> NDArray[np.bool_]:
        return self.positive[self.test]

    def test_groups(self) -> list[str]:
        return [self.groups[row] for row in self.test]

    def test_weights(self) -> Floats:
        return np.ones(len(self.test)) if self.weights is None else self.weights[self.test]


def compact(cell: Cell, tables: Tables) -> tuple[Cell, Tables]:
    """The cell with only the rows that it uses, those that most arms are fitted on first, and the distances from
    defect-free images as one more table: little to send to another process, and to fit.

    Example:
        >>> cell = Cell(0, 0, np.array([1]), np.array([], int), np.array([0, 3]), np.arange(4) > 2, list("abcd"))
        >>> small, tables = compact(cell, {(0, "max"): np.arange(8.0).reshape(4, 2)})
        >>> small.train.tolist(), small.test.tolist(), small.groups, tables[(0, "max")].tolist()
        ([0], [1, 2], ['b', 'a', 'd'], [[2.0, 3.0], [0.0, 1.0], [6.0, 7.0]])
    """
    extras = [e for e in (cell.synthetic, cell.control, *cell.augmented.values()) if e is not None]
    sides = [cell.train, *(extra.rows for extra in extras), cell.more, cell.test]
    used = np.array(list(dict.fromkeys(np.concatenate(sides).tolist())), np.int64)
    place = np.full(int(used.max()) + 1, -1)
    place[used] = np.arange(len(used))

    def renumbered(extra: Extra | None) -> Extra | None:
        return None if extra is None else replace(extra, rows=place[extra.rows])

    made = {int(row) for extra in extras for row in extra.rows}
    known = np.array([row not in made for row in used.tolist()])
    real = np.where(known, used, cell.train[0])  # rows of what is made have no truth of their own
    small = replace(
        cell,
        **{side: place[getattr(cell, side)] for side in ("train", "more", "test")},
        positive=cell.positive[real],
        groups=[cell.groups[row] if own else "" for row, own in zip(real, known, strict=True)],
        weights=None if cell.weights is None else cell.weights[real],
        labels=None if cell.labels is None else cell.labels[real],
        synthetic=renumbered(cell.synthetic),
        control=renumbered(cell.control),
        augmented={name: replace(e, rows=place[e.rows]) for name, e in cell.augmented.items()},
        anomaly=None if cell.anomaly is None else cell.anomaly[used],
    )
    few = {key: table[used] for key, table in tables.items()}
    if small.anomaly is not None:
        few[ANOMALY] = small.anomaly[:, None].astype(np.float32)
    return small, few


def build_arms(cell: Cell, seed: int, tables: Tables) -> dict[str, Items]:
    """Every arm's training items, but for those with candidates (:func:`augmented_arm`, :func:`synthetic_arm`). The sum
    of weights is the number of real training images in each.

    Args:
        cell: the comparison.
        seed: of what is drawn at random.
        tables: features by (resolution, pooling), ``[bank rows, D]``: SMOTE finds its neighbours in them.
    """
    count = 0 if cell.synthetic is None else len(cell.synthetic.rows)
    positives = int(cell.positive[cell.train].sum())
    real = _items(cell, cell.train)
    balanced = _weighted(real, 1.0)
    arms = {"real": real_items(cell), "balanced": balanced, "logit_adjusted": _weighted(real, None)}
    arms["duplicate"] = _weighted(real, None, repeat=(positives + count) / max(positives, 1))
    if count:
        arms["smote"] = _weighted(_smote(cell, real, count, seed, tables) if positives > 1 else real, 1.0)
    arms |= {"focal": replace(balanced, loss="focal"), "ldam": replace(balanced, loss="ldam")}
    if cell.has_oracle:  # in a cell that has no more groups to give, the oracle is the balanced arm
        arms["oracle"] = _weighted(_items(cell, np.concatenate([cell.train, cell.more])), 1.0, total=len(cell.train))
    return arms


def augmented_arm(cell: Cell, candidate: str, share: float = HALF) -> Items:
    """Training items with a candidate's classically augmented images, which have a share of the class's weight."""
    return _weighted(_joined(_items(cell, cell.train), cell.augmented[candidate], True), 1.0, share=share)


@dataclass(frozen=True)
class Amount:
    """How much of what is mixed with the real images of a class.

    Attributes:
        share: of the class's weight to synthetic images.
        images: how many of them; None for all there are.
        classic: candidate of classic augmentation that is mixed in as well, with :data:`LESS` of the class's weight.
        control: whether defect-free images with the traces of synthesis stand among the rest, where there are some.
    """

    share: float = LITTLE
    images: int | None = None
    classic: str | None = None
    control: bool = True


def synthetic_arm(cell: Cell, amount: Amount) -> Items:
    """Training items with synthetic images of the class."""
    assert cell.synthetic is not None
    extra = cell.synthetic if amount.images is None else cell.synthetic.first(amount.images)
    parts = [(extra, amount.share)]
    if amount.classic is not None:
        parts.append((cell.augmented[amount.classic], LESS))
    items = _items(cell, cell.train)
    shares = np.full(len(items), np.nan)
    for part, share in parts:
        items = _joined(items, part, True)
        shares = np.append(shares, np.full(len(part.rows), share / len(part.rows)))
    if amount.control and cell.control is not None:
        items = _joined(items, cell.control, False)
        shares = np.append(shares, np.full(len(cell.control.rows), np.nan))
    return _weighted(items, 1.0, shares=shares)


def real_items(cell: Cell) -> Items:
    """The arm "real": the training images as they are."""
    return _weighted(_items(cell, cell.train), None)


def adjust(logits: Floats, items: Items) -> Floats:
    """Post-hoc logit adjustment: log-probabilities ``[m, K]`` minus the log of each class's share of the training images
    (eq. 9, tau = 1)."""
    assert items.labels is not None
    counts = np.bincount(items.labels[items.labels >= 0], minlength=logits.shape[1])
    return np.asarray(logits - np.log(np.maximum(counts, 1) / max(counts.sum(), 1)))


def _items(cell: Cell, rows: Ints) -> Items:
    return Items(
        rows=rows,
        positive=cell.positive[rows],
        weights=np.ones(len(rows)),
        parents=[frozenset({cell.groups[row]}) for row in rows],
        real=np.ones(len(rows), bool),
        labels=None if cell.labels is None else cell.labels[rows],
    )


def _joined(items: Items, extra: Extra, positive: bool) -> Items:
    count = len(extra.rows)
    return Items(
        rows=np.concatenate([items.rows, extra.rows]),
        positive=np.concatenate([items.positive, np.full(count, positive)]),
        weights=np.ones(len(items) + count),
        parents=[*items.parents, *extra.parents],
        real=np.concatenate([items.real, np.zeros(count, bool)]),
        labels=None if items.labels is None else np.append(items.labels, np.full(count, extra.label)),
    )


def _smote(cell: Cell, items: Items, count: int, seed: int, tables: Tables) -> Items:
    """The items and ``count`` points between a real image of the class and one of its nearest in the class.

    Source: Chawla et al., "SMOTE: Synthetic Minority Over-sampling Technique", JAIR 16 (2002), section 4.2, with its k
    = 5.
    """
    generator = seeding.rng(seeding.derive("smote", seed, cell.draw, cell.fold), "pairs")
    own = items.rows[items.positive]
    near = nearest_in_class(own, tables, NEIGHBOURS)
    first = generator.integers(0, len(own), count)
    second = near[first, generator.integers(0, near.shape[1], count)]
    label = -1 if items.labels is None else int(items.labels[items.positive][0])
    parents = [frozenset({cell.groups[own[a]], cell.groups[own[b]]}) for a, b in zip(first, second, strict=True)]
    joined = _joined(items, Extra(own[first], parents, label), True)
    zeros = np.zeros(len(items))
    return replace(
        joined,
        partners=np.concatenate([items.rows, own[second]]),
        mix=np.concatenate([zeros, generator.random(count)]),
    )


def nearest_in_class(rows: Ints, tables: Tables, k: int) -> Ints:
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
    items: Items,
    balance: float | None,
    *,
    repeat: float = 1.0,
    total: int | None = None,
    share: float = HALF,
    shares: Floats | None = None,
) -> Items:
    """Weights that sum to the number of real items (or ``total``).

    Args:
        items: to be weighted.
        balance: weight of class to rest; None leaves them as they are.
        repeat: how often each image of the class stands there.
        total: sum of the weights.
        share: part of the class's weight that what is made of it has: sixty synthetic images must not drown ten real ones.
        shares: by item, its own part of the class's weight; NaN where it shares in what is left, in place of ``share``.
    """
    weights = np.where(items.positive, repeat, 1.0)
    if balance is not None:
        of_class = balance / (1 + balance)
        made = items.positive & ~items.real
        own = items.positive & items.real
        if made.any() and own.any():
            part = np.where(made, share / made.sum(), np.nan) if shares is None else shares
            left = 1 - float(part[made].sum())
            weights = np.where(items.positive, np.where(made, part, left / own.sum()), weights)
        sums = {kind: weights[items.positive == kind].sum() for kind in (True, False)}
        weights = weights * np.where(
            items.positive, of_class / max(sums[True], 1e-12), (1 - of_class) / max(sums[False], 1e-12)
        )
    weights = weights * ((int(items.real.sum()) if total is None else total) / weights.sum())
    return replace(items, weights=weights, even=balance is not None)
