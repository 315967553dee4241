"""Does synthesis help? The arms of an honest comparison, run on cells, summed up in a verdict per class.

A *cell* (see :mod:`visynth.verdict.cells`) is one draw of training groups and one fold of test groups for one class.
The engine here does not know where the synthetic images came from: ``trial`` makes them per cell from the training
side, ``evaluate`` takes a rendered set whose generator never saw the test images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from numpy.typing import NDArray

from visynth.core import plugins
from visynth.core.errors import DataError
from visynth.core.processes import end_with_parent
from visynth.verdict import cells as arming
from visynth.verdict.bootstrap import (
    Scored,
)
from visynth.verdict.cells import Cell
from visynth.verdict.learners import Items, Outcome, inner_folds, split_parts

if TYPE_CHECKING:
    from visynth.metrics.dense import DenseHead  # it imports torch, which the processes that run cells do without

Tables = dict[tuple[int, str], NDArray[np.float32]]
# By arm: test scores, inner validation score, choices, test scores after logit adjustment.
Outcomes = dict[str, tuple[NDArray[np.float64], float, dict[str, Any], NDArray[np.float64]]]
INNER_FOLDS = 3


@dataclass(frozen=True)
class Wording:
    """What the compared things are called.

    Attributes:
        items: what is classified.
        groups: what belongs together, and what to collect more of.
        recipes: the arms without synthesis, in words.
        helps: what to do where synthesis helps.
        precision: at which recall is told as well; None: not at all.
    """

    items: str
    groups: str
    recipes: Mapping[str, str]
    helps: str
    precision: float | None = None


IMAGES = Wording(
    items="images",
    groups="groups (parts, scenes, patients)",
    recipes={
        "real": "the images as they are",
        "duplicate": "repeat the class's images",
        "balanced": "a balanced sampler",
        "logit_adjusted": "logit adjustment",
        "smote": "SMOTE on features",
        "augment": "classic augmentation",
    },
    helps="mix renders/ into your training with WithSynthetic, and keep your own validation as it is",
)


@dataclass
class Results:
    """Every arm on every cell of one class: test scores, inner validation scores and choices."""

    label: str
    tested: dict[str, list[Scored]] = field(default_factory=dict)
    inner: dict[str, list[float]] = field(default_factory=dict)
    chosen: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    decisions: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)  # as tested, after logit adjustment
    rows: list[NDArray[np.int64]] = field(default_factory=list)  # the test rows of each cell
    counts: dict[str, float] = field(default_factory=dict)
    synthesizer: str = "synthesis"  # what made the arm "synthetic"
    rivals: list[str] = field(default_factory=list)  # arms of other synthesizers, judged beside it
    wording: Wording = IMAGES

    def add(
        self,
        cell: Cell,
        name: str,
        scores: NDArray[np.float64],
        inner: float,
        chosen: dict[str, Any],
        decision: NDArray[np.float64],
    ) -> None:
        scored = Scored(cell.draw, cell.test_truth(), scores, cell.test_groups(), cell.test_weights())
        self.tested.setdefault(name, []).append(scored)
        self.inner.setdefault(name, []).append(inner)
        self.chosen.setdefault(name, []).append(chosen)
        self.decisions.setdefault(name, []).append(decision)


def run_cells(
    label: str,
    cells: Sequence[Cell],
    tables: Tables,
    *,
    learner: str = "frozen",
    workers: int = 2,
    seed: int = 0,
) -> Results:
    """Fit every arm of every cell, see :func:`fit_cells`, and gather what comes out.

    Args:
        label: the class.
    """
    outcomes = fit_cells(cells, tables, learner=learner, workers=workers, seed=seed)
    counts = [0 if cell.synthetic is None else len(cell.synthetic.rows) for cell in cells]
    return gather(label, cells, outcomes, float(np.mean(counts)))


def fit_cells(
    cells: Sequence[Cell],
    tables: Tables,
    *,
    learner: str = "frozen",
    workers: int = 2,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> list[Outcomes]:
    """Scores of every arm on every cell's test rows, with what was chosen on the inner folds.

    Args:
        cells: with the bank rows of their images.
        tables: features by (resolution, pooling), ``[bank rows, D]``.
        learner: registered name.
        workers: processes for learners that run on one thread; 0 stays in this one.
        seed: of everything random in the arms.
        only: these arms alone.
    """
    parallel = workers > 1 and len(cells) > 1 and getattr(plugins.load("learners", learner), "parallel", False)
    if not parallel:
        return [_run_cell(cell, tables, learner, seed, only) for cell in cells]
    # joblib does not run the caller's script again in its workers: no __main__ guard.
    work = joblib.delayed(_run_for)
    jobs = (work(os.getpid(), *arming.compact(cell, tables), learner, seed, only) for cell in cells)
    return list(joblib.Parallel(workers)(jobs))


def gather(label: str, cells: Sequence[Cell], outcomes: Sequence[Outcomes], synthetic: float) -> Results:
    """Results of a class from the outcomes of its cells; ``synthetic`` is the mean number of synthetic images in
    them."""
    results = Results(label)
    results.rows = [cell.test for cell in cells]
    for cell, outcome in zip(cells, outcomes, strict=True):
        for name, (scores, inner, chosen, decision) in outcome.items():
            results.add(cell, name, scores, inner, chosen, decision)
    groups = [len({cell.groups[r] for r in cell.train if cell.positive[r]}) for cell in cells]
    results.counts = {
        "train": float(np.mean([cell.positive[cell.train].sum() for cell in cells])),
        "train groups": float(np.mean(groups)),
        "test": float(np.mean([cell.test_truth().sum() for cell in cells])),
        "test groups": float(np.mean([len(_groups(cell)) for cell in cells])),
        "prevalence": float(np.mean([np.average(cell.test_truth(), weights=cell.test_weights()) for cell in cells])),
        "synthetic": synthetic,
    }
    return results


def _run_for(parent: int, cell: Cell, tables: Tables, learner: str, seed: int, only: Sequence[str] | None) -> Outcomes:
    end_with_parent(parent)
    return _run_cell(cell, tables, learner, seed, only)


def _run_cell(cell: Cell, tables: Tables, learner: str, seed: int, only: Sequence[str] | None = None) -> Outcomes:
    fitter = plugins.load("learners", learner)()
    items = arming.build_arms(cell, seed, tables)
    folds = inner_folds(items["real"], sorted({cell.groups[row] for row in cell.train}), INNER_FOLDS, cell.draw)
    outcomes: Outcomes = {}

    def fitted(arm: Items) -> Outcome:
        outcome: Outcome = fitter.fit(tables, arm, cell.test, folds, seed)
        return outcome

    def keep(name: str, outcome: Outcome, **chosen: Any) -> None:
        outcomes[name] = (outcome.scores, outcome.inner, {**outcome.chosen, **chosen}, outcome.scores)

    plain = {n: fitted(arm) for n, arm in items.items() if n != "logit_adjusted" and (only is None or n in only)}
    for name, outcome in plain.items():
        keep(name, outcome)
    if cell.synthetic is not None and (only is None or "synthetic" in only):
        arms = arming.synthetic_arms(cell)
        if _tried(arms[arming.HALF], folds):
            # No synthetic image is a choice, too: then the arm is the balanced one.
            none = plain["balanced"] if "balanced" in plain else fitted(items["balanced"])
            share, outcome = _best({0.0: none, **{s: fitted(arm) for s, arm in arms.items()}})
        else:
            share, outcome = arming.HALF, fitted(arms[arming.HALF])
        keep("synthetic", outcome, share=share)
        if cell.control is not None and only is None:
            seams = arming.synthetic_arms(cell, control=True)
            keep("synthetic+control", fitted(seams[share]) if share else none, share=share)
    if only is not None:
        return outcomes
    if cell.augmented:
        candidate, outcome = _best({c: fitted(arm) for c, arm in arming.augmented_arms(cell).items()})
        keep("augment", outcome, candidate=candidate)
    scores, inner, chosen, _ = outcomes["real"]
    outcomes["logit_adjusted"] = (scores, inner, chosen, arming.adjust(scores, items["real"]))
    return outcomes


def _tried(items: Items, folds: Sequence[frozenset[str]]) -> bool:
    """Whether some inner fold is trained with synthetic images and tested on the class. A trained generator has seen all
    groups, so that none of its images may be; and one group makes no folds: then a share is not chosen, but half."""
    parts = [split_parts(items, held) for held in folds]
    return any((~items.real[train]).any() and items.positive[held].any() for train, held in parts)


def _best(candidates: Mapping[Any, Outcome]) -> tuple[Any, Outcome]:
    """The candidate with the best inner score; the first of equal ones."""
    best = max(candidates, key=lambda name: np.nan_to_num(candidates[name].inner, nan=-1.0))
    return best, candidates[best]


def _groups(cell: Cell) -> set[str]:
    """Groups of the class among the test images."""
    return {group for group, positive in zip(cell.test_groups(), cell.test_truth(), strict=True) if positive}


def add_dense(results: Results, cells: Sequence[Cell], head: DenseHead, seed: int = 0) -> None:
    """The arm "dense": the mask-supervised head on each cell's real images.

    Raises:
        DataError: in some cell no training image of the class has a mask: the arm is given for all cells or for none.
    """
    without = [cell for cell in cells if not head.can_learn(cell.train[cell.positive[cell.train]])]
    if without:
        raise DataError(
            f"the dense head learns where the class is from masks, but in {len(without)} of {len(cells)} cells no "
            "training image of "
            f"{results.label} has one."
        )
    for cell in cells:
        items = arming.real_items(cell)
        folds = inner_folds(items, sorted({cell.groups[row] for row in cell.train}), INNER_FOLDS, cell.draw)
        outcome = head.fit(items, cell.test, folds, seed)
        results.add(cell, "dense", outcome.scores, outcome.inner, outcome.chosen, outcome.scores)


def add_rival(results: Results, cells: Sequence[Cell], outcomes: Sequence[Outcomes], name: str) -> None:
    """Another synthesizer's arm ``name``, on the same cells: in their outcomes its images stood as "synthetic"."""
    for cell, outcome in zip(cells, outcomes, strict=True):
        scores, inner, chosen, decision = outcome["synthetic"]
        results.add(cell, name, scores, inner, chosen, decision)
    results.rivals.append(name)


# -- summing up ------------------------------------------------------------------------------------------------------
