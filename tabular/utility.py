"""Utility: what synthetic rows are worth to a classifier, measured on real rows that no fit saw.

*Train on synthetic, test on real* (Esteban et al., 2017) replaces the real rows. *Real and synthetic* adds rows of one rare
class to the real ones, against what needs no generator: class weights, random over-sampling and SMOTE. In every cell (a
draw and a fold) the generator is fitted to the cell's training rows alone; how much of the class's weight synthetic rows
get, nothing among the choices, is decided on inner validation rows by a generator that did not see these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import balance as balancing
from visynth.core import seeds as seeding
from visynth.core.errors import DataError, MissingExtra
from visynth.core.progress import Progress, no_progress
from visynth.core.stage import Stage
from visynth.tabular.base import Synthesizer
from visynth.tabular.columns import Category, Floats
from visynth.tabular.conditions import Conditions
from visynth.tabular.learners import Boosted, features
from visynth.tabular.oversampler import Oversampler
from visynth.tabular.schema import Schema, Table, taken
from visynth.verdict.bootstrap import Scored
from visynth.verdict.comparison import Arm, Results, Wording
from visynth.verdict.ranking import average_precision

SHARES = (0.0, 0.25, 0.5, 0.8)  # of the class's weight that synthetic rows may get
INNER_FOLDS = 4  # one of which serves the choice
BUCKETS = 1000  # of rows that are resampled together, where there are more rows than that
LEAST = 4  # rows of the class in a cell
TREES = {
    "max_iter": 100,
    "learning_rate": 0.08,
    "max_leaf_nodes": 15,
    "l2_regularization": 1.0,
    "early_stopping": False,
}

ROWS = Wording(
    items="rows",
    groups="rows",
    recipes={
        "real": "the rows as they are",
        "duplicate": "random over-sampling",
        "balanced": "class weights",
        "smote": "SMOTE",
    },
    helps="add the synthetic rows of balanced.* (column 'synthetic') to your training rows, and keep your own validation as it is",
    precision=0.5,
)


def train_on_synthetic(
    sources: Mapping[str, Table], holdout: Table, schema: Schema, target: str, seeds: Sequence[int] = range(3)
) -> dict[str, tuple[float, float]]:
    """Area under the ROC curve on real held-out rows of boosted trees that were trained on each source.

    Args:
        sources: tables by name: real training rows, synthetic rows of one or more generators.
        holdout: real rows.
        schema: of all of them.
        target: the class column; more than two classes: the mean over one against the rest.
        seeds: of the learner.

    Returns:
        By name, mean and standard deviation over the seeds.
    """
    outcomes = {}
    x, _ = features(holdout, schema, [target])
    for name, table in sources.items():
        own, categorical = features(table, schema, [target])
        if len(np.unique(table[target])) < 2:
            outcomes[name] = (0.5, 0.0)
            continue
        areas = []
        for seed in seeds:
            model = Boosted(categorical, seed).fit(own, table[target])
            areas.append(_mean_auc(model.classes, model.probabilities(x), holdout[target]))
        outcomes[name] = float(np.mean(areas)), float(np.std(areas))
    return outcomes


def _mean_auc(classes: NDArray[np.int64], scores: Floats, truth: NDArray[np.int64]) -> float:
    """Mean over classes of one against the rest; for two classes both say the same."""
    from sklearn.metrics import roc_auc_score

    areas = []
    for label in np.unique(truth):
        own = truth == label
        if 0 < own.sum() < len(own):
            column = np.flatnonzero(classes == label)
            areas.append(roc_auc_score(own, scores[:, column[0]] if len(column) else np.zeros(len(own))))
    return float(np.mean(areas)) if areas else float("nan")


@dataclass(frozen=True)
class Split:
    """One cell: a draw and a fold of it."""

    draw: int
    fold: int
    train: NDArray[np.int64]
    test: NDArray[np.int64]


def splits(
    labels: NDArray[np.int64], draws: int, folds: int, groups: Sequence[str] | None = None, seed: int = 0
) -> Iterator[Split]:
    """Stratified cells; rows of one group are on one side.

    Example:
        >>> cells = list(splits(np.array([0] * 8 + [1] * 4), draws=2, folds=2))
        >>> [(cell.draw, cell.fold, len(cell.train)) for cell in cells]
        [(0, 0, 6), (0, 1, 6), (1, 0, 6), (1, 1, 6)]
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    for draw in range(draws):
        state = seeding.derive("tabular/splits", seed, draw) % 2**32
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        parted = kind(folds, shuffle=True, random_state=state).split(np.zeros(len(labels)), labels, groups)
        for fold, (train, test) in enumerate(parted):
            yield Split(draw, fold, train, test)


def rare_class(
    frame: Any,
    schema: Schema,
    target: str,
    label: str,
    make: Callable[[int], Synthesizer],
    *,
    draws: int = 5,
    folds: int = 3,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    stage: Stage | None = None,
    progress: Progress = no_progress,
) -> Results:
    """Every arm on every cell for one class against the rest.

    Args:
        frame: real rows.
        schema: of them.
        target: the class column.
        label: name of the class.
        make: a fresh generator, from a seed.
        draws: repetitions with other folds.
        folds: test parts of each.
        groups: of each row (customer, machine, patient): rows of one group are never on both sides.
        seed: of everything random.
        stage: keeps finished cells.
        progress: receives lines.

    Raises:
        DataError: too few rows of the class for the folds.
    """
    table = schema.table(frame)
    code = list(map(str, getattr(schema[target], "categories", ()))).index(label)
    positive = table[target] == code
    if positive.sum() < LEAST * folds:
        raise DataError(f"class {label!r} has {int(positive.sum())} rows: {folds} folds need {LEAST * folds} at least.")
    of_class = len({groups[int(row)] for row in np.flatnonzero(positive)}) if groups is not None else folds
    if of_class < folds:
        raise DataError(f"class {label!r} has rows of {of_class} groups: {folds} folds need as many at least.")
    results = Results(label, wording=ROWS)
    cells = list(splits(positive.astype(np.int64), draws, folds, groups, seed))
    made = []
    for number, cell in enumerate(cells):
        key = {"label": label, "draw": cell.draw, "fold": cell.fold}
        outcome = None if stage is None else stage.get(**key)
        if outcome is None:
            own_seed = seeding.derive("cell", seed, cell.draw, cell.fold)
            outcome = _cell(table, schema, target, code, cell, make, groups, own_seed)
            if stage is not None:
                stage.put(outcome, **key)
        truth = positive[cell.test]
        names = resampled_together(cell.test, truth, groups)
        for arm, (scores, inner, chosen) in outcome["arms"].items():
            values = np.array(scores)
            results.tested.setdefault(arm, []).append(Scored(cell.draw, truth, values, names))
            tested = Arm(values, float("nan") if inner is None else inner, chosen)
            results.arms.setdefault(arm, []).append(tested)
        results.rows.append(cell.test)
        made.append(outcome["synthetic"])
        progress(f"  {label}: cell {number + 1} of {len(cells)}")
    results.synthesizer = make(0).network
    results.counts = {
        "train": float(np.mean([positive[cell.train].sum() for cell in cells])),
        "test": float(np.mean([positive[cell.test].sum() for cell in cells])),
        "prevalence": float(positive.mean()),
        "synthetic": float(np.mean(made)),
    }
    if groups is not None:
        for side in ("train", "test"):
            own = [len({groups[row] for row in getattr(cell, side) if positive[row]}) for cell in cells]
            results.counts[f"{side} groups"] = float(np.mean(own))
    return results


def resampled_together(rows: NDArray[np.int64], truth: NDArray[np.bool_], groups: Sequence[str] | None) -> list[str]:
    """Names of what the bootstrap draws as one: the group, else the row; many rows share one of some hundred buckets."""
    if groups is not None:
        return [str(groups[row]) for row in rows]
    return [f"{'+' if true else '-'}{row % BUCKETS}" for row, true in zip(rows.tolist(), truth, strict=True)]


def _cell(
    table: Table,
    schema: Schema,
    target: str,
    code: int,
    cell: Split,
    make: Callable[[int], Synthesizer],
    groups: Sequence[str] | None,
    seed: int,
) -> dict[str, Any]:
    """Scores of every arm on the cell's test rows, its inner score, and what was chosen."""
    positive = table[target] == code
    inner_test = _inner_test(cell.train, positive, groups, seed)
    inner_train = np.setdiff1d(cell.train, inner_test)
    judged: dict[str, dict[float, float]] = {}
    if positive[inner_train].sum() >= 2 and positive[inner_test].any():
        inner = _Arms(table, schema, target, code, inner_train, make, seed)
        for name, share in inner.choices:
            scores = inner.scores(name, share, inner_test)
            judged.setdefault(name, {})[share] = average_precision(positive[inner_test], scores)
    outer = _Arms(table, schema, target, code, cell.train, make, seed)
    arms: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _ in outer.choices):
        by_share = judged.get(name, {})
        best = max(by_share, key=lambda share: by_share[share]) if by_share else 0.0
        share = best if name == "synthetic" else 0.0
        chosen = {"share": share} if name == "synthetic" else {}
        arms[name] = [outer.scores(name, share, cell.test).tolist(), by_share.get(share), chosen]
    return {"arms": arms, "synthetic": outer.count}


def _inner_test(
    train: NDArray[np.int64], positive: NDArray[np.bool_], groups: Sequence[str] | None, seed: int
) -> NDArray[np.int64]:
    """About a quarter of the training rows, of each class; whole groups where there are some."""
    own = None if groups is None else [groups[row] for row in train]
    folds = min(INNER_FOLDS, int(positive[train].sum()))
    if folds < 2:
        return train[:0]
    first = next(splits(positive[train].astype(np.int64), 1, folds, own, seed))
    return train[first.test]


class _Arms:
    """The arms of one set of training rows."""

    def __init__(
        self,
        table: Table,
        schema: Schema,
        target: str,
        code: int,
        train: NDArray[np.int64],
        make: Callable[[int], Synthesizer],
        seed: int,
    ) -> None:
        self.schema, self.target, self.code, self.seed = schema, target, code, seed
        self.train = taken(table, train)
        matrix, self.categorical = features(table, schema, [target])
        self.all, self.x, self.y = matrix, matrix[train], self.train[target] == code
        positives = int(self.y.sum())
        self.count = max(min(len(train) - 2 * positives, balancing.CAP * positives), 1)
        generator = make(seed % 2**31).fit_table(schema, self.train, target, members="none")
        self.synthetic = self._of_class(generator, code, self.count)
        self.smote = self._by_smote(max(len(train) - 2 * positives, 1))

    def _of_class(self, generator: Synthesizer, code: int, count: int) -> Floats:
        """Features of so many rows of a generator's class."""
        asked = Conditions({self.target: (np.full(count, code), np.ones(count, bool))}, {})
        generator.fitted.check_seen(asked)
        table, _ = generator.rows(np.arange(count), self.seed, asked)
        return features(table, generator.schema, [self.target])[0]

    def _by_smote(self, count: int) -> Floats | None:
        """Features of rows by SMOTE, of the class against the rest: other classes may be too small for it."""
        binary = Category(self.target, "categorical", "str", categories=("rest", "class"))
        columns = tuple(binary if c.name == self.target else c for c in self.schema.columns)
        table = {**self.train, self.target: self.y.astype(np.int64)}
        try:
            smote = Oversampler().fit_table(replace(self.schema, columns=columns), table, self.target, members="none")
        except MissingExtra:
            return None
        return self._of_class(smote, 1, count)

    @property
    def choices(self) -> list[tuple[str, float]]:
        """Arms with the shares to choose from."""
        plain = ["real", "duplicate", "balanced", *(["smote"] if self.smote is not None else [])]
        return [*((name, 0.0) for name in plain), *(("synthetic", share) for share in SHARES)]

    def scores(self, name: str, share: float, test: NDArray[np.int64]) -> Floats:
        """Scores of test rows by the arm's classifier."""
        x, y, weights = self.x, self.y, np.ones(len(self.y))
        if name in ("balanced", "synthetic"):
            weights = np.where(y, len(y) / 2 / max(y.sum(), 1), len(y) / 2 / max((~y).sum(), 1))
        if name == "duplicate":
            missing = max(int((~y).sum() - y.sum()), 0)
            more = x[seeding.rng(self.seed, "tabular/duplicate").choice(np.flatnonzero(y), missing)]
        elif name == "smote" and self.smote is not None:
            more = self.smote
        else:
            more = self.synthetic if share else x[:0]
        own = np.ones(len(more))
        if name == "synthetic" and share:
            own *= share * len(y) / 2 / len(more)
            weights = np.where(y, weights * (1 - share), weights)
        rows, truth = np.concatenate([x, more]), np.concatenate([y, np.ones(len(more), bool)])
        model = Boosted(self.categorical, self.seed, **TREES).fit(rows, truth, np.concatenate([weights, own]))
        return model.probabilities(self.all[test])[:, 1]
