"""Interface of learners: the same items, weights and folds for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visynth.core import plugins
from visynth.core.errors import UsageError, choices
from visynth.verdict.linear import Loss

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
IMAGES = (0, "image")  # key of the table with functions that give each row's image, for learners that see pixels


@dataclass(frozen=True)
class Items:
    """Training items of one arm, for one class against the rest.

    Attributes:
        rows: rows of the feature bank, int ``[n]``.
        positive: whether an item is of the class, bool ``[n]``.
        weights: float ``[n]``; the arms of one cell have equal sums.
        parents: per item the groups that it was made from; a real image has its own group.
        real: bool ``[n]``; only real items take part in inner validation.
        partners: a second row per item, and
        mix: how far (0 to 1) the item's features lie from the first row towards the second (SMOTE).
        loss: that a learner of one layer minimises.
        labels: number of each item's own class, int ``[n]``, -1 where it has none; None where images have several.
        even: whether all classes have one weight where all of them are told apart, as ``weights`` has it for this one.
    """

    rows: Ints
    positive: NDArray[np.bool_]
    weights: Floats
    parents: Sequence[frozenset[str]]
    real: NDArray[np.bool_]
    partners: Ints | None = None
    mix: Floats | None = None
    loss: Loss = "logistic"
    labels: Ints | None = None
    even: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def class_weights(self) -> Floats:
        """Weights where all classes are told apart: of equal sums if ``even``, in proportion to ``weights`` within each."""
        if self.labels is None or not self.even:
            return self.weights
        known = np.unique(self.labels[self.labels >= 0])
        weights = np.zeros(len(self))
        for label in known:
            own = self.labels == label
            weights[own] = self.weights[own] / max(float(self.weights[own].sum()), 1e-12)
        return weights * (float(self.weights.sum()) / max(len(known), 1))

    def features(self, table: NDArray[Any]) -> NDArray[Any]:
        """The items' features from a table ``[bank rows, ...]``."""
        values = table[self.rows]
        if self.partners is None or self.mix is None:
            return values
        mix = self.mix.astype(table.dtype).reshape(
            -1, *[1] * (values.ndim - 1)
        )  # tables may hold maps, not only vectors
        return np.asarray(values + mix * (table[self.partners] - values))


@dataclass(frozen=True)
class Predictions:
    """Scores on the test rows, and, of a learner that tells all classes apart, log-probabilities ``[test rows, classes]`` of
    one model of all of them."""

    scores: Floats
    logits: Floats | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of choosing on the inner folds.

    Attributes:
        test: what came of the test rows, or a function that fits on all items and scores them: it is called when scores are first
            asked for, since of many candidates only those that win on the inner folds are.
        inner: validation score of the choice; NaN where there were no folds.
        chosen: the choice.
        by_fold: what ``inner`` is the mean of.
    """

    test: Predictions | Callable[[], Predictions]
    inner: float
    chosen: dict[str, Any] = field(default_factory=dict)
    by_fold: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.test, Predictions) and not callable(self.test):
            raise TypeError(
                f"an outcome needs Predictions(scores) or a function that gives it, but got {type(self.test).__name__}"
            )

    @cached_property
    def tested(self) -> Predictions:
        return self.test if isinstance(self.test, Predictions) else self.test()

    @property
    def scores(self) -> Floats:
        return self.tested.scores

    @property
    def logits(self) -> Floats | None:
        return self.tested.logits


def better(own: Sequence[float], default: Sequence[float]) -> bool:
    """Whether a candidate is better than the default on every inner fold.

    Few groups make noisy folds: whoever takes the best mean of some candidates mostly takes noise, and pays for it on the test
    (``scripts/bench/README.md``). So there is a default, and what is only sometimes better does not replace it.

    Example:
        >>> better([0.5, 0.6], [0.4, 0.5]), better([0.9, 0.5], [0.4, 0.5]), better([], [])
        (True, False, False)
    """
    return len(own) == len(default) > 0 and all(a > b for a, b in zip(own, default, strict=True))


def wins(own: Callable[[int], float], default: Callable[[int], float], folds: int) -> bool:
    """As :func:`better`, for scores that are worked out fold by fold: after one that is lost no further one is.

    Example:
        >>> wins([0.5, 0.6].__getitem__, [0.4, 0.5].__getitem__, 2), wins([0.5].__getitem__, [0.4].__getitem__, 0)
        (True, False)
    """
    return folds > 0 and all(own(fold) > default(fold) for fold in range(folds))


class Learner(Protocol):
    """Fits one class against the rest. Inner folds are sets of groups, held out together.

    Further attributes that a learner may have: ``parallel``, it runs on one thread; ``decides``, it tells all classes apart;
    ``trunk``, the side of the squares whose activations it needs; ``pixels``, it sees the images themselves; ``arms``, those
    that it takes part in; ``chooses = False``, its fits are too dear for inner folds, and each arm is fitted by default.
    """

    def fit(
        self,
        tables: Mapping[tuple[int, str], NDArray[Any]],
        items: Items,
        test: Ints,
        folds: Sequence[frozenset[str]],
        seed: int,
    ) -> Outcome:
        """Choose on the inner folds; the outcome fits on all items and scores the test rows, at once or when it is asked.

        Args:
            tables: features by (resolution, pooling), ``[bank rows, D]``.
            items: the training items.
            test: rows to score.
            folds: sets of groups that are held out in turn.
            seed: of all that is random.
        """
        ...


def learner_of(name: str | Learner) -> Learner:
    """A learner by its registered name, or a training of the user's: a file that ends in .yaml, or the path of a class.

    Raises:
        UsageError: there is no such learner.
    """
    if not isinstance(name, str):
        return name
    if name in plugins.names("learners"):
        return plugins.load("learners", name)()  # type: ignore[no-any-return]
    if "." not in name:
        raise UsageError(
            f"learner must be one of {choices(plugins.names('learners'))}, a configuration of your training "
            f"(training.yaml) or the path of a LightningModule (my_package.MyModule), but got {name!r}."
        )
    return plugins.load("trainings", "learner")(name)  # type: ignore[no-any-return]


def inner_folds(items: Items, groups: Sequence[str], folds: int, seed: int) -> list[frozenset[str]]:
    """Sets of groups to hold out in turn: positive and negative groups are each dealt out evenly.

    Empty when the positives have a single group: there is nothing to choose on.
    """
    from visynth.core import seeds as seeding

    own = dict.fromkeys(groups, False)
    for positive, parents, real in zip(items.positive, items.parents, items.real, strict=True):
        if real and positive:
            own.update(dict.fromkeys(parents, True))
    positives, negatives = ([g for g in sorted(own) if own[g] is kind] for kind in (True, False))
    count = min(folds, len(positives))
    if count < 2:
        return []
    generator = seeding.rng(seeding.derive("inner", seed), "folds")
    dealt: list[set[str]] = [set() for _ in range(count)]
    for names in (positives, negatives):
        for place, index in enumerate(generator.permutation(len(names))):
            dealt[place % count].add(names[index])
    return [frozenset(names) for names in dealt]


def split_parts(items: Items, held: frozenset[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(train, held-out) masks: real images of the held groups are scored, nothing made from those groups is trained
    on."""
    touches = np.array([bool(parents & held) for parents in items.parents])
    return ~touches, touches & items.real
