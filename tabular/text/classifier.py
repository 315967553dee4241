"""A classifier of texts: weights of words and runs of characters, and a logistic regression. Strong on few short texts, and the
same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError
from visynth.tabular.text.embedding import Weighted

PENALTIES = (1.0, 10.0, 100.0)  # inverse strengths that are tried
FOLDS = 3


class TextClassifier:
    """Class probabilities of texts.

    Args:
        texts: real ones.
        labels: of them.
        balanced: whether classes weigh alike.
        weights: of the texts; 1 where None.
        penalty: inverse strength of the regression's penalty; None chooses it on inner folds.
        seed: of the folds.

    Raises:
        DataError: fewer than two classes.

    Example:
        >>> model = TextClassifier(["good", "very good", "bad", "so bad"], ["+", "+", "-", "-"])
        >>> model.probabilities(["good one"])[0].argmax(), model.classes
        (np.int64(0), ['+', '-'])
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        balanced: bool = True,
        weights: Sequence[float] | None = None,
        penalty: float | None = None,
        seed: int = 0,
    ) -> None:
        self.classes = sorted(set(labels))
        if len(self.classes) < 2:
            raise DataError(f"a classifier needs texts of two classes, but all are {self.classes}.")
        own = np.ones(len(texts)) if weights is None else np.asarray(weights, float)
        y = np.array([self.classes.index(label) for label in labels])
        if balanced:
            sums = np.bincount(y, own)
            own = own * (own.sum() / len(sums) / sums)[y]
        self.space = Weighted(texts)
        x = self.space(texts)
        self.penalty = _chosen(x, y, own, seed) if penalty is None else penalty
        self.model = _regression(self.penalty).fit(x, y, sample_weight=own)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Float64 ``[N, K]``, in the order of ``classes``."""
        return np.asarray(self.model.predict_proba(self.space(texts)))


def _regression(penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=penalty, max_iter=500)


def _chosen(x: Any, y: NDArray[np.int64], weights: NDArray[np.float64], seed: int) -> float:
    """The penalty with the best log-likelihood on inner folds."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int(np.bincount(y).min()))
    if folds < 2:
        return PENALTIES[1]
    losses = []
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(x, y))
    for penalty in PENALTIES:
        loss = 0.0
        for train, test in parts:
            chance = _regression(penalty).fit(x[train], y[train], sample_weight=weights[train]).predict_proba(x[test])
            own = np.clip(chance[np.arange(len(test)), y[test]], 1e-12, 1)
            loss -= float((weights[test] * np.log(own)).sum())
        losses.append(loss)
    return PENALTIES[int(np.argmin(losses))]


def least_probabilities(
    texts: Sequence[str], labels: Sequence[str], most: float, lost: float = 0.05, seed: int = 0
) -> dict[str, float]:
    """For each class the probability that its texts must have to be believed: ``most``, or less where real texts of the class,
    each judged by a classifier that did not see it, would be lost beyond a share.

    Args:
        texts: real ones.
        labels: of them.
        most: probability that is asked for at most.
        lost: share of the real texts of a class that may fall below.
        seed: of the folds.
    """
    from sklearn.model_selection import StratifiedKFold

    classes = sorted(set(labels))
    y = np.array([classes.index(label) for label in labels])
    folds = min(FOLDS, int(np.bincount(y).min()))
    if folds < 2:
        return dict.fromkeys(classes, 0.0)
    own = np.zeros(len(y))
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(y, y):
        model = TextClassifier([texts[k] for k in train], [labels[k] for k in train], seed=seed)
        own[test] = model.probabilities([texts[k] for k in test])[np.arange(len(test)), y[test]]
    return {name: min(most, float(np.quantile(own[y == code], lost))) for code, name in enumerate(classes)}
