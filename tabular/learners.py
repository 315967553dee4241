"""Classifiers that judge tables, and what they see: boosted trees on raw columns, a linear model on scaled ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from visynth.tabular.columns import Category, Floats
from visynth.tabular.schema import Schema, Table, rows_of

MOST_CATEGORIES = 250  # of a column that trees take as categories; beyond, the frequency order stands for it
ITERATIONS = 200
LEAST_TO_STOP = 20  # rows of a class from which a tenth of them can say when to stop
SMALL = 2_000_000  # numbers of a matrix up to which one thread is faster than two


def features(table: Table, schema: Schema, without: Sequence[str] = ()) -> tuple[Floats, list[bool]]:
    """Columns as one matrix, missing values as NaN, and which of them are categories.

    Args:
        table: values of the modelled columns.
        schema: of the table.
        without: columns to leave out, such as the target.
    """
    columns = [c for c in schema.modelled if c.name not in without]
    matrix = np.empty((rows_of(table), len(columns)))
    for place, column in enumerate(columns):
        values = table[column.name].astype(np.float64)
        matrix[:, place] = np.where(values < 0, np.nan, values) if isinstance(column, Category) else values
    return matrix, [isinstance(c, Category) and len(c.categories) <= MOST_CATEGORIES for c in columns]


class Boosted:
    """Gradient-boosted trees (scikit-learn's histogram trees) on one thread where the matrix is small.

    There, two threads that share a machine wait for one another: 15 to 30 times slower on two cores.

    Args:
        categorical: which columns are categories.
        seed: of the trees.
        options: of ``HistGradientBoostingClassifier``; by default with early stopping on a tenth of the rows.
    """

    def __init__(self, categorical: Sequence[bool], seed: int = 0, **options: Any) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        own = {"max_iter": ITERATIONS, "learning_rate": 0.1, "early_stopping": True, "random_state": seed % 2**32}
        mask = np.array(list(categorical), bool)
        self.model = HistGradientBoostingClassifier(
            categorical_features=mask if mask.any() else None, **{**own, **options}
        )

    def fit(self, x: Floats, y: NDArray[Any], weights: Floats | None = None) -> Self:
        if np.unique(y, return_counts=True)[1].min() < LEAST_TO_STOP:  # no rows of each class to stop by
            self.model.set_params(early_stopping=False)
        with self._threads(x):
            self.model.fit(x, y, sample_weight=weights)
        return self

    def probabilities(self, x: Floats) -> Floats:
        """Probability of each class ``[N, classes]``."""
        with self._threads(x):
            return np.asarray(self.model.predict_proba(x))

    def guesses(self, x: Floats) -> NDArray[Any]:
        """Likeliest class ``[N]``."""
        return np.asarray(self.classes[self.probabilities(x).argmax(axis=1)])

    @property
    def classes(self) -> NDArray[Any]:
        return np.asarray(self.model.classes_)

    @staticmethod
    def _threads(x: Floats) -> Any:
        from threadpoolctl import threadpool_limits

        return threadpool_limits(1 if x.size < SMALL else None)


def scaled(table: Table, schema: Schema, without: Sequence[str] = ()) -> Floats:
    """Columns for a linear model: numbers standardised with a column for missing, categories one-hot (the frequent ones).

    Statistics are of the table itself.
    """
    parts = []
    for column in schema.modelled:
        if column.name in without:
            continue
        values = table[column.name]
        if isinstance(column, Category):
            frequent = np.argsort(-np.bincount(values + 1, minlength=len(column.categories) + 1), kind="stable")[:50]
            parts.append((values[:, None] + 1 == frequent[None]).astype(np.float64))
        else:
            gone = np.isnan(values)
            filled = np.where(gone, np.nanmean(values) if not gone.all() else 0.0, values)
            parts.append(np.stack([(filled - filled.mean()) / (filled.std() or 1.0), gone], axis=1))
    return np.concatenate(parts, axis=1)


def two_sample_scores(
    table: Table, schema: Schema, truth: NDArray[np.int64], folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> Floats:
    """Scores of a logistic regression on held-out folds."""
    from sklearn.linear_model import LogisticRegression

    x, scores = scaled(table, schema), np.zeros(len(truth))
    for train, test in folds:
        scores[test] = LogisticRegression(max_iter=300).fit(x[train], truth[train]).predict_proba(x[test])[:, 1]
    return scores
