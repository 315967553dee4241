"""How much of a rare class's weight extra samples get, nothing among the choices, by logistic regressions on held-out parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.progress import Progress, no_progress
from visynth.core.stage import Stage
from visynth.tabular.utility import Split, splits
from visynth.verdict.bootstrap import Scored
from visynth.verdict.comparison import Arm, Results
from visynth.verdict.ranking import average_precision

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PENALTIES = (1.0, 10.0, 100.0)


class Cells(Protocol):
    """How many cells there are, and their seed."""

    @property
    def draws(self) -> int: ...

    @property
    def folds(self) -> int: ...

    @property
    def seed(self) -> int: ...


class Fits:
    """Fits of one cell with one kind of extra samples.

    Args:
        x: rows of the real training samples, of the extra ones, and of the test samples.
        positive: by real training sample.
        parts: of the real training samples.
        extra: places among the extra samples that a fit takes: under None for the test, under a part those that were made
            without it; the parts that are named are judged on.
        penalty: of the regression; None chooses it on inner folds, without extra samples.
        penalties: to choose from.
    """

    def __init__(
        self,
        x: Any,
        positive: NDArray[np.bool_],
        parts: Ints,
        extra: Mapping[int | None, Ints],
        penalty: float | None,
        penalties: Sequence[float] = PENALTIES,
    ) -> None:
        self.x, self.positive, self.parts, self.extra = x, positive, parts, extra
        self.count = int(max((len(rows) and int(rows.max()) + 1 for rows in extra.values()), default=0))
        self.penalty = 0.0
        self.penalty = penalty or max(penalties, key=lambda own: self.inner(penalty=own))

    def tested(self, **options: Any) -> list[float]:
        """Scores of the test samples."""
        first = len(self.positive) + self.count
        return [float(v) for v in self._scores(np.arange(first, self.x.shape[0]), **options)]

    def inner(self, **options: Any) -> float:
        """Mean average precision on held-out parts."""
        values = []
        for part in (own for own in self.extra if own is not None):
            rows = np.flatnonzero(self.parts == part)
            if self.positive[rows].any() and (self.positive & (self.parts != part)).any():
                values.append(average_precision(self.positive[rows], self._scores(rows, without=part, **options)))
        return float(np.mean(values)) if values else 0.0

    def _scores(
        self,
        rows: Ints,
        *,
        balanced: bool = True,
        repeat: bool = False,
        share: float = 0.0,
        without: int | None = None,
        penalty: float | None = None,
    ) -> Floats:
        """Log-odds of some rows by a model of the training samples and, with a share of the class's weight, the extra ones."""
        from sklearn.linear_model import LogisticRegression

        real = np.flatnonzero(self.parts != without)
        y = self.positive[real]
        own, rest = int(y.sum()), int((~y).sum())
        weights = np.where(y, len(y) / 2 / max(own, 1), len(y) / 2 / max(rest, 1)) if balanced else np.ones(len(y))
        if repeat:  # whole copies, as over-sampling has them
            weights = np.where(y, max(rest // max(own, 1), 1), 1.0)
        more = self.extra[without] + len(self.positive) if share else np.zeros(0, np.int64)
        added = np.zeros(0)
        if len(more):
            added = np.full(len(more), share * weights[y].sum() / len(more))
            weights = np.where(y, weights * (1 - share), weights)
        model = LogisticRegression(C=penalty or self.penalty, max_iter=500)
        truth = np.concatenate([y, np.ones(len(more), bool)])
        model.fit(self.x[np.concatenate([real, more])], truth, np.concatenate([weights, added]))
        return np.asarray(model.decision_function(self.x[rows]))


def best(fits: Mapping[float, Fits], *names: str) -> list[Any]:
    """The share with the best inner score, the first of equal ones: its scores, its inner score, and the choice, which stands
    under further names in words."""
    inner = {share: one.inner(share=share) for share, one in fits.items()}
    share = max(inner, key=lambda own: inner[own])
    chosen = {"share": share, **dict.fromkeys(names, f"{share:.0%} of the class's weight")}
    return [fits[share].tested(share=share), inner[share], chosen]


def run_cells(
    results: Results,
    positive: NDArray[np.bool_],
    groups: Sequence[str],
    cells: Cells,
    outcome_of: Callable[[Split, int], Mapping[str, Any]],
    stage: Stage | None = None,
    progress: Progress = no_progress,
) -> None:
    """Work out every cell that is not kept yet, and gather what came of them.

    Args:
        results: that get arms, scores, rows and counts.
        positive: which samples are of the class.
        groups: of each sample; those of one group are on one side, and resampled together.
        cells: how many, and their seed.
        outcome_of: scores of all arms of a cell, from it and its seed, as plain JSON: ``arms`` (scores of the test samples, inner
            score or None, choice), ``train`` and ``synthetic`` (numbers).
        stage: keeps finished cells.
        progress: receives a line for each.
    """
    counts: dict[str, list[float]] = {"train": [], "test": [], "synthetic": []}
    todo = list(splits(positive.astype(np.int64), cells.draws, cells.folds, groups, cells.seed))
    for number, split in enumerate(todo):
        key = {"label": results.label, "draw": split.draw, "fold": split.fold}
        outcome = None if stage is None else stage.get(**key)
        if outcome is None:
            outcome = outcome_of(split, seeding.derive("cell", cells.seed, split.draw, split.fold))
            if stage is not None:
                stage.put(outcome, **key)
        for arm, (scores, inner, chosen) in outcome["arms"].items():
            values, names = np.array(scores), [groups[row] for row in split.test]
            results.tested.setdefault(arm, []).append(Scored(split.draw, positive[split.test], values, names))
            results.arms.setdefault(arm, []).append(Arm(values, float("nan") if inner is None else inner, chosen))
        results.rows.append(split.test)
        counts["train"].append(outcome["train"])
        counts["test"].append(float(positive[split.test].sum()))
        counts["synthetic"].append(outcome["synthetic"])
        progress(f"  {results.label}: cell {number + 1} of {len(todo)}, {outcome['synthetic']} {results.wording.items}")
    results.counts = {name: float(np.mean(values)) for name, values in counts.items()}
    results.counts["prevalence"] = float(positive.mean())


def chosen_shares(results: Results) -> Mapping[str, int]:
    """How often each share of synthetic samples was chosen.

    Example:
        >>> results = Results("a")
        >>> results.arms["synthetic"] = [Arm(np.zeros(1), 0.5, {"share": 0.0}), Arm(np.zeros(1), 0.5, {"share": 0.0})]
        >>> chosen_shares(results)
        {'0': 2}
    """
    counts: dict[str, int] = {}
    for arm in results.arms["synthetic"]:
        name = f"{(arm.chosen or {}).get('share', 0.0):g}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
