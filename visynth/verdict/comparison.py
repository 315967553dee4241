"""Does synthesis help? The arms of an honest comparison, run on cells, summed up in a verdict per class.

A *cell* (see :mod:`visynth.verdict.cells`) is one draw of training groups and one fold of test groups for one class.
The engine here does not know where the synthetic images came from: ``trial`` makes them per cell from the training
side, ``evaluate`` takes a rendered set whose generator never saw the test images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from numpy.typing import NDArray

from visynth.core.processes import end_with_parent
from visynth.verdict import cells as arming
from visynth.verdict.bootstrap import Scored
from visynth.verdict.cells import Cell, Tables
from visynth.verdict.learners import Items, Learner, Outcome, better, inner_folds, learner_of, split_parts
from visynth.verdict.ranking import average_precision

if TYPE_CHECKING:
    from visynth.metrics.dense import DenseHead  # it imports torch, which the processes that run cells do without

INNER_FOLDS = 3
DENSE = "dense+synthetic"
DENSE_SHARES = (0.25, 0.75)  # of the class's weight to synthetic images, beside none


@dataclass(frozen=True)
class Arm:
    """An arm on one cell.

    Attributes:
        scores: of the test rows, float ``[N]``.
        inner: average precision over the inner folds; NaN where there were none.
        chosen: what was chosen on them.
        predicted: class number of each test row by one model of all classes, int ``[N]``; None where there is none.
        tried: inner score of each candidate, by its name, for arms that have some.
    """

    scores: NDArray[np.float64]
    inner: float
    chosen: dict[str, Any] = field(default_factory=dict)
    predicted: NDArray[np.int64] | None = None
    tried: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        predicted = None if self.predicted is None else self.predicted.tolist()
        return {**vars(self), "scores": np.asarray(self.scores).tolist(), "predicted": predicted}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Arm:
        predicted = None if kept["predicted"] is None else np.array(kept["predicted"], np.int64)
        return cls(**{**kept, "scores": np.array(kept["scores"], np.float64), "predicted": predicted})


Outcomes = dict[str, Arm]  # by arm


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
        "focal": "the focal loss",
        "ldam": "margins by rarity (LDAM)",
        "augment": "classic augmentation",
        "anomaly": "no image of the class, but the distance from defect-free ones (PatchCore)",
        "dense": "a dense head that is taught by the masks",
    },
    helps="mix renders/ into your training with WithSynthetic, and keep your own validation as it is",
)


@dataclass
class Results:
    """Every arm on every cell of one class.

    Attributes:
        label: the class.
        tested: by arm, its scores on each cell's test rows.
        arms: by arm, inner scores and choices of each cell.
        rows: the test rows of each cell.
        counts: mean numbers of images and groups.
        synthesizer: what made the arm "synthetic".
        rivals: further arms with synthetic images, judged beside it, with what made their images.
        wording: what the compared things are called.
    """

    label: str
    tested: dict[str, list[Scored]] = field(default_factory=dict)
    arms: dict[str, list[Arm]] = field(default_factory=dict)
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    synthesizer: str = "synthesis"
    rivals: dict[str, str] = field(default_factory=dict)
    wording: Wording = IMAGES

    def add(self, cell: Cell, name: str, arm: Arm) -> None:
        """An arm on one more cell."""
        truth, groups, weights = cell.test_truth(), cell.test_groups(), cell.test_weights()
        labels = None if arm.predicted is None else cell.test_labels()
        scored = Scored(cell.draw, truth, arm.scores, groups, weights, labels, arm.predicted)
        self.tested.setdefault(name, []).append(scored)
        self.arms.setdefault(name, []).append(arm)

    def inner(self, name: str) -> float:
        """Mean inner score of an arm over the cells that had one; NaN where none had."""
        values = [arm.inner for arm in self.arms[name] if np.isfinite(arm.inner)]
        return float(np.mean(values)) if values else float("nan")


def run_cells(
    label: str,
    cells: Sequence[Cell],
    tables: Tables,
    *,
    learner: str | Learner = "frozen",
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
    learner: str | Learner = "frozen",
    workers: int = 2,
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> list[Outcomes]:
    """Scores of every arm on every cell's test rows, with what was chosen on the inner folds.

    Args:
        cells: with the bank rows of their images.
        tables: features by (resolution, pooling), ``[bank rows, D]``.
        learner: registered name, or a learner.
        workers: processes for learners that run on one thread; 0 stays in this one.
        seed: of everything random in the arms.
        only: these arms alone.
    """
    parallel = workers > 1 and len(cells) > 1 and getattr(learner_of(learner), "parallel", False)
    if not parallel:
        return [_run_cell(*arming.compact(cell, tables), learner, seed, only) for cell in cells]
    # joblib does not run the caller's script again in its workers: no __main__ guard.
    work = joblib.delayed(_run_for)
    jobs = (work(os.getpid(), *arming.compact(cell, tables), learner, seed, only) for cell in cells)
    return list(joblib.Parallel(workers)(jobs))


def gather(label: str, cells: Sequence[Cell], outcomes: Sequence[Outcomes], synthetic: float) -> Results:
    """Results of a class from the outcomes of its cells; ``synthetic`` is the mean number of synthetic images in
    them."""
    results = Results(label)
    results.rows = [cell.test for cell in cells]
    whole = [name for name in outcomes[0] if all(name in outcome for outcome in outcomes)] if outcomes else []
    for cell, outcome in zip(cells, outcomes, strict=True):
        for name in whole:  # an arm that some cell lacks could not be paired with the others
            results.add(cell, name, outcome[name])
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


def _run_for(
    parent: int, cell: Cell, tables: Tables, learner: str | Learner, seed: int, only: Sequence[str] | None
) -> Outcomes:
    end_with_parent(parent)
    return _run_cell(cell, tables, learner, seed, only)


def _run_cell(
    cell: Cell, tables: Tables, learner: str | Learner, seed: int, only: Sequence[str] | None = None
) -> Outcomes:
    """Every arm of a cell that :func:`visynth.verdict.cells.compact` made small, or ``only`` some."""
    fitter = learner_of(learner)
    arms, chooses = getattr(fitter, "arms", None), getattr(fitter, "chooses", True)
    items = arming.build_arms(cell, seed, tables)
    folds = inner_folds(items["real"], sorted({cell.groups[row] for row in cell.train}), INNER_FOLDS, cell.draw)

    def fitted(arm: Items) -> Outcome:
        return fitter.fit(tables, arm, cell.test, folds, seed)

    def has(name: str) -> bool:
        return (only is None or name in only) and (arms is None or name in arms)

    wanted = [name for name in items if name != "logit_adjusted" and has(name)]
    found = {name: fitted(items[name]) for name in wanted}
    outcomes = {name: arm_of(outcome) for name, outcome in found.items()}
    classic: Choice | None = None
    if cell.augmented and (has("augment") or (has("synthetic") and chooses)):
        classic = _best_classic(cell, fitted, chooses)
        if has("augment"):
            outcomes["augment"] = classic.tested()
    if cell.synthetic is not None and has("synthetic"):
        if chooses:
            balanced = found.get("balanced") or fitted(items["balanced"])
            choice = _best_synthetic(cell, folds, fitted, balanced, classic)
        else:
            choice = _usual_synthetic(cell, fitted)
        outcomes["synthetic"] = choice.tested()
        if cell.control is not None and only is None and has("no_control"):
            bare = choice
            if choice.amount is not None:
                outcome = fitted(arming.synthetic_arm(cell, replace(choice.amount, control=False)))
                bare = replace(choice, outcome=outcome)
            outcomes["no_control"] = bare.tested()
    if only is not None:
        return outcomes
    real = found["real"]
    adjusted = None if real.logits is None else arming.adjust(real.logits, items["real"]).argmax(axis=1)
    outcomes["logit_adjusted"] = replace(outcomes["real"], predicted=adjusted)
    if cell.anomaly is not None and np.isfinite(cell.anomaly[cell.test]).all():
        outcomes["anomaly"] = _by_distance(cell)
    return outcomes


@dataclass(frozen=True)
class Choice:
    """The best of some candidates.

    Attributes:
        outcome: of the best.
        chosen: what it is.
        tried: inner score of each, by name.
        amount: of synthetic images; None where there are none.
    """

    outcome: Outcome
    chosen: dict[str, Any]
    tried: dict[str, float] = field(default_factory=dict)
    amount: arming.Amount | None = None

    def tested(self) -> Arm:
        return arm_of(self.outcome, self.chosen, self.tried)


def arm_of(outcome: Outcome, chosen: Mapping[str, Any] | None = None, tried: dict[str, float] | None = None) -> Arm:
    predicted = None if outcome.logits is None else outcome.logits.argmax(axis=1)
    return Arm(outcome.scores, outcome.inner, {**outcome.chosen, **(chosen or {})}, predicted, tried or {})


def _best_classic(cell: Cell, fitted: Callable[[Items], Outcome], chooses: bool = True) -> Choice:
    """Classic augmentation: the first candidate at half of the class's weight, unless another one, or less of it, is better on
    every inner fold."""
    first = next(iter(cell.augmented))
    candidates = cell.augmented if chooses else [first]
    outcomes = {name: fitted(arming.augmented_arm(cell, name)) for name in candidates}
    if not chooses:
        return Choice(outcomes[first], {"candidate": first, "classic share": arming.HALF})
    candidate = _improved(outcomes, first)
    less = fitted(arming.augmented_arm(cell, candidate, arming.LESS))
    tried = {f"{name} {arming.HALF:g}": outcome.inner for name, outcome in outcomes.items()}
    tried[f"{candidate} {arming.LESS:g}"] = less.inner
    shares = {arming.HALF: outcomes[candidate], arming.LESS: less}
    share = _improved(shares, arming.HALF)
    return Choice(shares[share], {"candidate": candidate, "classic share": share}, tried)


def _usual_synthetic(cell: Cell, fitted: Callable[[Items], Outcome]) -> Choice:
    default = arming.Amount()
    return Choice(fitted(arming.synthetic_arm(cell, default)), {"share": default.share}, {}, default)


def _best_synthetic(
    cell: Cell,
    folds: Sequence[frozenset[str]],
    fitted: Callable[[Items], Outcome],
    balanced: Outcome,
    classic: Choice | None,
) -> Choice:
    """Share, number and mixture of synthetic images, and whether there are any: by default all at a tenth of the class's
    weight, and what is better on every inner fold in its place."""
    assert cell.synthetic is not None
    default = arming.Amount()
    if not _tried(arming.synthetic_arm(cell, default), folds):
        return _usual_synthetic(cell, fitted)
    without: dict[str, Choice] = {"none": Choice(balanced, {"share": 0.0})}
    if classic is not None:
        without["classic"] = replace(classic, chosen={"share": 0.0, **classic.chosen})
    outcomes = {amount: fitted(arming.synthetic_arm(cell, amount)) for amount in map(arming.Amount, arming.SHARES)}
    best = _improved(outcomes, default)
    further = []
    if len(cell.synthetic.rows) >= arming.FEWER:
        further.append(replace(best, images=len(cell.synthetic.rows) // arming.FEWER))
    if classic is not None and best.share + arming.LESS < 1:
        further.append(replace(best, classic=classic.chosen["candidate"]))
    outcomes |= {amount: fitted(arming.synthetic_arm(cell, amount)) for amount in further}
    tried = {name: choice.outcome.inner for name, choice in without.items()}
    tried |= {name_of(amount): outcome.inner for amount, outcome in outcomes.items()}
    winner = _improved({amount: outcomes[amount] for amount in (best, *further)}, best)
    none = [name for name, c in without.items() if better(c.outcome.by_fold, outcomes[winner].by_fold)]
    if none:
        return replace(without[max(none, key=lambda name: _score(without[name].outcome))], tried=tried)
    chosen = {"share": winner.share, "images": winner.images or len(cell.synthetic.rows)}
    if winner.classic is not None:
        chosen["candidate"] = winner.classic
    return Choice(outcomes[winner], chosen, tried, winner)


def _improved(candidates: Mapping[Any, Outcome], default: Any) -> Any:
    """The best of those that are better than the default on every inner fold; else the default."""
    found = [name for name, one in candidates.items() if better(one.by_fold, candidates[default].by_fold)]
    return max(found, key=lambda name: _score(candidates[name]), default=default)


def name_of(amount: arming.Amount) -> str:
    """Name of an amount among those that were tried."""
    extra = f", {amount.images} images" if amount.images else ""
    return f"{amount.share:g}{extra}" + (f", with {amount.classic}" if amount.classic else "")


def _by_distance(cell: Cell) -> Arm:
    """The arm "anomaly": the distance itself is the score, for each class alike."""
    assert cell.anomaly is not None
    known = cell.train[np.isfinite(cell.anomaly[cell.train])]
    inner = average_precision(cell.positive[known], cell.anomaly[known])
    return Arm(cell.anomaly[cell.test].astype(np.float64), inner)


def _tried(items: Items, folds: Sequence[frozenset[str]]) -> bool:
    """Whether some inner fold is trained with synthetic images and tested on the class. A trained generator has seen all
    groups, so that none of its images may be; and one group makes no folds: then a share is not
    chosen, but the default."""
    parts = [split_parts(items, held) for held in folds]
    return any((~items.real[train]).any() and items.positive[held].any() for train, held in parts)


def _score(outcome: Outcome) -> float:
    return float(np.nan_to_num(outcome.inner, nan=-1.0))


def _groups(cell: Cell) -> set[str]:
    """Groups of the class among the test images."""
    return {group for group, positive in zip(cell.test_groups(), cell.test_truth(), strict=True) if positive}


def dense_arms(cell: Cell, head: DenseHead, seed: int = 0) -> Outcomes:
    """The arm "dense", a head that masks teach on the cell's real images, and "dense+synthetic", the same with synthetic images
    and their masks: at the first share, unless another one, or none, is better on every inner fold. Empty where no training
    image of the class has a mask."""
    items = arming.real_items(cell)
    if not head.can_learn(items.rows[items.positive]):
        return {}
    folds = inner_folds(items, sorted({cell.groups[row] for row in cell.train}), INNER_FOLDS, cell.draw)
    plain = head.fit(items, cell.test, folds, seed)
    found = {"dense": arm_of(plain)}
    if cell.synthetic is None or not head.can_learn(cell.synthetic.rows):
        return found
    outcomes: dict[float, Outcome] = {0.0: plain}
    for share in DENSE_SHARES:
        outcomes[share] = head.fit(arming.synthetic_arm(cell, arming.Amount(share)), cell.test, folds, seed)
    best = _improved(outcomes, DENSE_SHARES[0])
    tried = {f"{share:g}": outcome.inner for share, outcome in outcomes.items()}
    found[DENSE] = arm_of(outcomes[best], {"share": best}, tried)
    return found


def add_rival(results: Results, cells: Sequence[Cell], outcomes: Sequence[Outcomes], name: str) -> None:
    """Another synthesizer's arm ``name``, on the same cells: in their outcomes its images stood as "synthetic"."""
    for cell, outcome in zip(cells, outcomes, strict=True):
        results.add(cell, name, outcome["synthetic"])
    results.rivals[name] = name
