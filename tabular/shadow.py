"""Membership inference by shadow models: generators of the same kind, fitted to rows whose membership we know, teach what a member
looks like from outside.

Shokri et al., "Membership inference attacks against machine learning models" (S&P 2017); on synthetic data Stadler, Oprisanu and
Troncoso, "Synthetic data: anonymisation groundhog day" (USENIX Security 2022). How near a row is to synthetic ones depends on the
row as much as on its membership, so each figure is compared with the same one by models that never saw the row (Watson et al.,
"On the importance of difficulty calibration in membership inference attacks", ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from visynth.core import seeds as seeding
from visynth.tabular.columns import Floats
from visynth.tabular.distances import Space
from visynth.tabular.schema import Table, rows_of, taken

NAME = "shadow models"
NEIGHBOURS = 5
SMALL = 1e-6  # distance below which two are not told apart


@dataclass(frozen=True)
class Rows:
    """Rows under a schema and as they came.

    Attributes:
        table: for distances.
        frame: the same rows, for a model's loss.
    """

    table: Table
    frame: Any

    def take(self, rows: NDArray[np.int64]) -> Rows:
        return Rows(taken(self.table, rows), self.frame.iloc[rows].reset_index(drop=True))

    def __len__(self) -> int:
        return rows_of(self.table)


@dataclass(frozen=True)
class Seen:
    """What a model shows.

    Attributes:
        fake: synthetic rows that it gave.
        losses: its own loss of each row of a frame, where it has one.
    """

    fake: Table
    losses: Callable[[Any], Floats | None] = lambda frame: None


def halves(size: int, count: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows that each of some shadow models is fitted to: halves in pairs that complement each other, so that every row is a stranger
    to one model of each pair."""
    found = []
    for pair in range(-(-count // 2)):
        order = seeding.rng(seed, f"shadow/{pair}").permutation(size)
        found += [np.sort(order[: size // 2]), np.sort(order[size // 2 :])]
    return found[:count]


def shadow_scores(
    model: Seen,
    shadows: Sequence[Seen],
    inside: Sequence[NDArray[np.int64]],
    pool: Rows,
    asked: Sequence[Rows],
    space: Space,
) -> list[Floats]:
    """How likely rows are members of a model, as shadow models teach it.

    Args:
        model: what is attacked.
        shadows: models of the same kind, an even number of at least 4.
        inside: rows of the pool that each of them was fitted to.
        pool: rows of the population; none is a member of the model, or asked about.
        asked: rows of whom it is asked, in any number of parts.
        space: distances between rows.
    """
    views = [_view(space, shadow, pool) for shadow in shadows]
    known = np.stack([~np.isin(np.arange(len(pool)), rows) for rows in inside])  # [shadows, pool]: who never saw a row
    figures, labels = [], []
    for number, view in enumerate(views):
        others = [k for k in range(len(views)) if k != number]
        strangers = known[others].astype(float)
        strangers[:, strangers.sum(axis=0) == 0] = 1.0  # not with two whole pairs
        mean = np.einsum("kn,knf->nf", strangers, np.stack([views[k] for k in others])) / strangers.sum(axis=0)[:, None]
        figures.append(np.hstack([view, view - mean]))
        labels.append(~known[number])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(np.concatenate(figures), np.concatenate(labels))
    scores = []
    for rows in asked:
        own, theirs = _view(space, model, rows), np.mean([_view(space, shadow, rows) for shadow in shadows], axis=0)
        scores.append(np.asarray(classifier.decision_function(np.hstack([own, own - theirs])), np.float64))
    return scores


def _view(space: Space, model: Seen, rows: Rows) -> Floats:
    """How a model sees rows ``[N, F]``: nearness to its nearest synthetic row, to the fifth, and its own loss."""
    distances, _ = space.nearest(rows.table, model.fake, NEIGHBOURS)
    figures: list[Any] = [-np.log(distances[:, 0] + SMALL), -np.log(distances[:, -1] + SMALL)]
    losses = model.losses(rows.frame)
    if losses is not None:
        figures.append(-losses)
    return np.stack(figures, axis=1)
