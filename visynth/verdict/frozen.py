"""The frozen learner: logistic regression on pooled features, with resolution, pooling and C chosen on inner folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.verdict.learners import Floats, Ints, Items, Outcome, split_parts
from visynth.verdict.ranking import average_precision

Table = NDArray[np.float32]
STRIDES = "several strides"


@dataclass(frozen=True)
class FrozenLearner:
    """L2-regularised logistic regression (scikit-learn), one class against the rest.

    At each resolution there are the mean of the last maps, their maximum, and, where the features have them, several
    strides: that maximum beside maxima and minima of finer maps, each block scaled to one mean squared norm, in which small
    defects are seen. Every choice (resolution, pooling, C) has the best mean average precision over the inner folds,
    where only real images of held-out groups are scored and nothing made from them is trained on. Weak baselines make
    straw men, so every arm makes this choice for itself.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> table = np.concatenate([rng.normal(0, 1, (40, 5)), rng.normal(2, 1, (20, 5))]).astype(np.float32)
        >>> rows = np.arange(60); odd = rows % 2 == 1
        >>> items = Items(rows[odd], rows[odd] >= 40, np.ones(30), [frozenset({str(r)}) for r in rows[odd]], np.ones(30, bool))
        >>> outcome = FrozenLearner().fit({(0, "max"): table}, items, rows[~odd], [], seed=0)
        >>> average_precision(rows[~odd] >= 40, outcome.scores) > 0.9
        True
    """

    parallel = True  # one thread each: cells may run in several processes
    penalties: tuple[float, ...] = (0.001, 0.01, 0.1)

    def fit(
        self, tables: dict[tuple[int, str], Table], items: Items, test: Ints, folds: Sequence[frozenset[str]], seed: int
    ) -> Outcome:
        """Choose on the inner folds, fit on all items, score the test rows (decision values)."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # these matrices are small: two threads take six times as long as one
            return self._fit(tables, items, test, folds)

    def _fit(
        self, tables: dict[tuple[int, str], Table], items: Items, test: Ints, folds: Sequence[frozenset[str]]
    ) -> Outcome:
        pooled = _spaces(tables)
        parts = [split_parts(items, held) for held in folds]
        parts = [(train, held) for train, held in parts if items.positive[held].any() and items.positive[train].any()]
        best: tuple[float, tuple[int, str], float] = (
            -1.0,
            next(iter(pooled)),
            self.penalties[len(self.penalties) // 2],
        )
        spaces = {}
        for key, blocks in pooled.items():
            spaces[key] = _rotate(*_joined([(items.features(table), table[test]) for table in blocks]))
            values = spaces[key][0]
            for penalty in self.penalties if parts else ():
                scores = []
                for train, held in parts:
                    coefficients, bias = logistic(values[train], items.positive[train], items.weights[train], penalty)
                    scores.append(average_precision(items.positive[held], values[held] @ coefficients + bias))
                score = float(np.mean(scores))
                if score > best[0]:
                    best = (score, key, penalty)
        inner, key, penalty = best
        values, test_values = spaces[key]
        coefficients, bias = logistic(values, items.positive, items.weights, penalty)
        chosen = {"resolution": key[0] or "native", "pooling": key[1], "C": penalty}
        return Outcome(test_values @ coefficients + bias, inner if parts else float("nan"), chosen)


def _spaces(tables: dict[tuple[int, str], Table]) -> dict[tuple[int, str], list[Table]]:
    """What may be chosen: the tables that each consists of."""
    spaces = {key: [table] for key, table in tables.items() if key[1] in ("mean", "max")}
    for resolution in sorted({key[0] for key in spaces}):
        finer = [table for (own, pool), table in tables.items() if own == resolution and "@" in pool]
        if finer and (resolution, "max") in tables:
            spaces[(resolution, STRIDES)] = [tables[(resolution, "max")], *finer]
    return spaces


def _joined(blocks: Sequence[tuple[Table, Table]]) -> tuple[Table, Table]:
    """Blocks of features side by side; of several each is scaled so that the training rows' deviations have the same mean
    squared norm."""
    if len(blocks) == 1:
        return blocks[0]
    scaled = []
    for train, test in blocks:
        spread = float(((train - train.mean(axis=0)) ** 2).sum(axis=1).mean())
        factor = np.float32(1 / max(spread, 1e-12) ** 0.5)
        scaled.append((train * factor, test * factor))
    return np.concatenate([own for own, _ in scaled], axis=1), np.concatenate([own for _, own in scaled], axis=1)


def _rotate(train: Table, test: Table) -> tuple[Floats, Floats]:
    """Both sets in the basis of the training rows' own span.

    An L2-penalised linear fit lies in the span of its rows, so fitting n rows needs n dimensions, not 1280; scores are
    the same. The constant factor brings the mean squared norm to 1280, so that C means the same for every table.
    """
    centre = train.mean(axis=0)
    shifted = (train - centre).astype(np.float64)
    scale = np.sqrt(1280 / max(float((shifted**2).sum(axis=1).mean()), 1e-12))
    if shifted.shape[0] >= shifted.shape[1]:
        return shifted * scale, (test - centre).astype(np.float64) * scale
    # The eigenvectors of the n x n products give the same basis as an SVD of the rows, in a third of the time.
    values, vectors = np.linalg.eigh(shifted @ shifted.T)
    kept = values > 1e-10 * max(float(values[-1]), 1e-300)
    basis = shifted.T @ (vectors[:, kept] / np.sqrt(values[kept]))
    return shifted @ basis * scale, (test - centre).astype(np.float64) @ basis * scale


def logistic(
    values: NDArray[Any], positive: NDArray[np.bool_], weights: Floats, penalty: float
) -> tuple[Floats, float]:
    """Weights ``[D]`` and bias of an L2-regularised logistic regression with inverse strength ``penalty`` (C)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=penalty, solver="lbfgs", max_iter=300, tol=1e-3)
    model.fit(values, positive, sample_weight=weights)
    return model.coef_[0], float(model.intercept_[0])
