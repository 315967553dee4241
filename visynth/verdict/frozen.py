"""The frozen learner: a linear model on pooled features of several scales at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.processes import one_thread
from visynth.verdict.learners import Floats, Ints, Items, Outcome, Predictions, split_parts, wins
from visynth.verdict.linear import logistic, softmax
from visynth.verdict.ranking import average_precision

Table = NDArray[np.float32]
Tables = Mapping[tuple[int, str], Table]
Key = tuple[
    str, str, bool
]  # of a space: resolutions, poolings, and whether the distance from defect-free images is in it
Choice = tuple[Key, float]  # a space and C
ANOMALY = (0, "anomaly")  # key of the table with each row's distance from defect-free images
NORM = 1280.0  # mean squared norm of training rows, so that C means the same in every space
JITTER = 1e-9  # of the mean squared norm: makes the products of repeated rows invertible


@dataclass(frozen=True)
class Space:
    """Features of all rows, in as few numbers as tell them apart.

    Attributes:
        rows: float64 ``[rows, d]``. Where there are fewer rows than features, the products of all rows are all that an
            L2-penalised linear model depends on, and their Cholesky factor has the same products in as many numbers as
            there are rows before it; a row's later ones are 0.
        triangular: whether they are that factor.
    """

    rows: Floats
    triangular: bool

    def of(self, items: Items, test: Ints) -> tuple[Floats, Floats]:
        """The items' and the test rows' features, without numbers in which all of the items are 0."""
        used = self.rows.shape[1]
        if self.triangular:
            used = 1 + int(max(items.rows.max(), -1 if items.partners is None else items.partners.max()))
        return items.features(self.rows[:, :used]), self.rows[test][:, :used]


@dataclass(frozen=True)
class FrozenLearner:
    """An L2-regularised linear model, one class against the rest, and one of all classes where images have one each.

    Features of several scales stand side by side, each at the same weight: at each resolution the maximum of the last maps,
    with maxima and minima of finer maps where the features have them, in which small defects are seen. One sum of all is
    better, and less noisy, than one scale that is picked by few images (``scripts/bench/README.md``). By default maxima and
    means at all resolutions are taken, and the middle C. What is better on every inner fold replaces that, in turn: native
    scale alone or maxima alone; another C; and the distance from defect-free images as one more feature. On inner folds only
    real images of held-out groups are scored, and nothing made from them is trained on. Weak baselines make straw men, so
    every arm makes these choices for itself.

    The features are centred and scaled by the real training rows, in all arms of a cell alike.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> table = np.concatenate([rng.normal(0, 1, (40, 5)), rng.normal(2, 1, (20, 5))]).astype(np.float32)
        >>> rows = np.arange(60); odd = rows % 2 == 1
        >>> items = Items(rows[odd], rows[odd] >= 40, np.ones(30), [frozenset({str(r)}) for r in rows[odd]], np.ones(30, bool))
        >>> outcome = FrozenLearner().fit({(0, "max"): table}, items, rows[~odd], [], seed=0)
        >>> average_precision(rows[~odd] >= 40, outcome.scores) > 0.9
        True
    """

    decides = True  # between all classes, too
    parallel = True  # one thread each: cells may run in several processes
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0)
    _kept: dict[int, tuple[Tables, dict[Key, Space]]] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": {}}  # what was worked out here is much to send to another process

    def fit(
        self,
        tables: Tables,
        items: Items,
        test: Ints,
        folds: Sequence[frozenset[str]],
        seed: int,
    ) -> Outcome:
        """Choose on the inner folds; the outcome's scores are decision values."""
        with one_thread():
            return self._fit(self._spaces(tables, items), items, test, folds)

    def _spaces(self, tables: Tables, items: Items) -> dict[Key, Space]:
        """Spaces of tables, once for all arms that are fitted on them."""
        if id(tables) not in self._kept:
            self._kept.clear()
            reference = items.rows[items.real]
            spaces = spaces_of(tables)
            every = [*(tuple(names) for scales in spaces.values() for names in scales), (ANOMALY,)]
            of = {names: Scale([tables[n] for n in names], reference) for names in set(every) if names[0] in tables}
            found = {}
            for key, scales in spaces.items():
                parts = [of[tuple(names)] for names in scales]
                found[(*key, False)] = _space(parts)
                if ANOMALY in tables:
                    found[(*key, True)] = _space([*parts, of[(ANOMALY,)]])
            self._kept[id(tables)] = tables, found  # the tables are kept, so that their id stays theirs
        return self._kept[id(tables)][1]

    def _fit(
        self,
        spaces: Mapping[Key, Space],
        items: Items,
        test: Ints,
        folds: Sequence[frozenset[str]],
    ) -> Outcome:
        parts = [split_parts(items, held) for held in folds]
        parts = [(train, held) for train, held in parts if items.positive[held].any() and items.positive[train].any()]

        @cache
        def features_of(space: Key) -> tuple[Floats, Floats]:
            return spaces[space].of(items, test)

        @cache
        def on(fold: int, space: Key, penalty: float) -> float:
            train, held = parts[fold]
            values, _ = features_of(space)
            weights, bias = logistic(values[train], items.positive[train], items.weights[train], penalty, items.loss)
            return average_precision(items.positive[held], values[held] @ weights + bias)

        def inner(space: Key, penalty: float) -> tuple[float, ...]:
            return tuple(on(fold, space, penalty) for fold in range(len(parts)))

        def beats(one: tuple[Key, float], other: tuple[Key, float]) -> bool:
            return wins(lambda fold: on(fold, *one), lambda fold: on(fold, *other), len(parts))

        best, penalty = self._choice(spaces, beats, lambda one: float(np.mean(inner(*one))))
        by_fold = inner(best, penalty)
        features_of.cache_clear()  # of many candidates that wait to be tested, none holds its features

        def tested() -> Predictions:
            with one_thread():
                values, test_values = features_of(best)
                weights, bias = logistic(values, items.positive, items.weights, penalty, items.loss)
                logits = None if items.labels is None else _of_all(values, items, penalty, test_values)
                return Predictions(test_values @ weights + bias, logits)

        chosen = {"resolution": best[0], "pooling": best[1], "C": penalty}
        if any(space[2] for space in spaces):
            chosen["anomaly score"] = "too" if best[2] else "no"
        return Outcome(tested, float(np.mean(by_fold)) if by_fold else float("nan"), chosen, by_fold)

    def _choice(
        self, spaces: Collection[Key], beats: Callable[[Choice, Choice], bool], mean: Callable[[Choice], float]
    ) -> Choice:
        """Space and C: the defaults, and in turn what beats them."""
        middle = self.penalties[len(self.penalties) // 2]
        plain = [space for space in spaces if not space[2]]
        default = plain[0], middle
        best = max([c for c in ((s, middle) for s in plain[1:]) if beats(c, default)], key=mean, default=default)
        rivals = [(best[0], penalty) for penalty in self.penalties if penalty != middle]
        best = max([c for c in rivals if beats(c, best)], key=mean, default=best)
        further = (best[0][0], best[0][1], True), best[1]
        return further if further[0] in spaces and beats(further, best) else best


def _of_all(values: Floats, items: Items, penalty: float, test: Floats) -> Floats:
    """Log-probabilities of all classes by one model of the same features and C."""
    assert items.labels is not None
    own = items.labels >= 0
    return softmax(values[own], items.labels[own], items.class_weights()[own], penalty, test)


def spaces_of(tables: Iterable[tuple[int, str]]) -> dict[tuple[str, str], list[list[tuple[int, str]]]]:
    """What may be chosen, the default first: resolutions and poolings, with the tables of each scale.

    Example:
        >>> spaces = spaces_of([(0, "mean"), (0, "max"), (0, "max@8"), (160, "mean"), (160, "max"), (64, "trunk")])
        >>> spaces["native", "max"], [*spaces]
        ([[(0, 'max'), (0, 'max@8')]], [('all', 'max and mean'), ('all', 'max'), ('native', 'max')])
    """
    known = list(tables)
    resolutions = sorted({resolution for resolution, pool in known if pool in ("mean", "max")})
    scales = {
        resolution: [key for key in known if key[0] == resolution and (key[1] == "max" or "@" in key[1])]
        for resolution in resolutions
    }
    scales = {resolution: names for resolution, names in scales.items() if names}
    means = [[key] for key in known if key[1] == "mean"]
    spaces = {}
    if means:
        spaces["all", "max and mean"] = [*scales.values(), *means]
    if scales:
        spaces["all", "max"] = list(scales.values())
    if 0 in scales and len(scales) > 1:
        spaces["native", "max"] = [scales[0]]
    return spaces


class Scale:
    """Tables side by side, centred by the reference rows, each scaled so that its deviations there have the same mean squared
    norm; that of all is 1. Spaces share their scales, so that the products of the rows are worked out once for all of them."""

    def __init__(self, blocks: Sequence[Table], reference: Ints) -> None:
        parts = []
        for block in blocks:
            values = block.astype(np.float64) - np.nanmean(block[reference], axis=0, dtype=np.float64)
            values = np.nan_to_num(values)  # what is unknown lies in the middle
            spread = float((values[reference] ** 2).sum(axis=1).mean())
            parts.append(values * (1 / len(blocks) / max(spread, 1e-12)) ** 0.5)
        self.values: Floats = np.concatenate(parts, axis=1)

    @cached_property
    def products(self) -> Floats:
        """Inner products of all rows."""
        return np.asarray(self.values @ self.values.T)


def _space(scales: Sequence[Scale]) -> Space:
    """Scales side by side, each with the same mean squared norm, and the whole with :data:`NORM`."""
    factor = NORM / len(scales)
    count = len(scales[0].values)
    if count > sum(scale.values.shape[1] for scale in scales):
        return Space(np.concatenate([scale.values for scale in scales], axis=1) * factor**0.5, False)
    products = factor * np.sum([scale.products for scale in scales], axis=0)
    diagonal = np.arange(count)
    products[diagonal, diagonal] += JITTER * max(float(products[diagonal, diagonal].mean()), 1e-300)
    return Space(np.asarray(np.linalg.cholesky(products), np.float64), True)
