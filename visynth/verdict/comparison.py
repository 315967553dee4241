"""Does synthesis help? The arms of an honest comparison, run on cells, summed up in a verdict per class.

A *cell* (see :mod:`visynth.verdict.cells`) is one draw of training groups and one fold of test groups for one class.
The engine here does not know where the synthetic images came from: ``trial`` makes them per cell from the training
side, ``evaluate`` takes a rendered set whose generator never saw the test images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
from numpy.typing import NDArray

from visynth.core import plugins
from visynth.core.errors import DataError
from visynth.core.processes import end_with_parent
from visynth.core.report import ClassVerdict, arms, text
from visynth.verdict import cells as arming
from visynth.verdict.bootstrap import (
    CANNOT_TELL,
    HELPS,
    Bootstrap,
    Interval,
    Scored,
    Verdict,
    compare,
    decide,
    detectable,
    interval,
)
from visynth.verdict.cells import Cell
from visynth.verdict.learners import inner_folds
from visynth.verdict.ranking import macro_f1

if TYPE_CHECKING:
    from visynth.metrics.dense import DenseHead  # it imports torch, which the processes that run cells do without

Tables = dict[tuple[int, str], NDArray[np.float32]]
# By arm: test scores, inner validation score, choices, test scores after logit adjustment.
Outcomes = dict[str, tuple[NDArray[np.float64], float, dict[str, Any], NDArray[np.float64]]]
INNER_FOLDS = 3
WORTH = 0.02  # AP below which a gain is not worth having
FPR = 0.05


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
    for name, arm in items.items():
        if name == "logit_adjusted" or (only is not None and name not in only):
            continue
        outcome = fitter.fit(tables, arm, cell.test, folds, seed)
        outcomes[name] = (outcome.scores, outcome.inner, outcome.chosen, outcome.scores)
    if only is not None:
        return outcomes
    if cell.augmented:
        fitted = {c: fitter.fit(tables, arm, cell.test, folds, seed) for c, arm in arming.augmented_arms(cell).items()}
        best = max(fitted, key=lambda candidate: np.nan_to_num(fitted[candidate].inner, nan=-1.0))
        outcome = fitted[best]
        outcomes["augment"] = (outcome.scores, outcome.inner, {**outcome.chosen, "candidate": best}, outcome.scores)
    scores, inner, chosen, _ = outcomes["real"]
    outcomes["logit_adjusted"] = (scores, inner, chosen, arming.adjust(scores, items["real"]))
    return outcomes


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


@dataclass(frozen=True)
class Summary:
    """What the results of one class come to; ``verdict`` is that of the synthesizer ``candidate``."""

    verdict: Verdict
    rows: list[dict[str, Any]]
    gap: Interval | None
    headroom: Interval | None
    detectable: float
    recall: Interval
    candidate: str = "synthetic"
    others: Mapping[str, Verdict] = field(default_factory=dict)
    duel: Interval | None = None  # the rival against the arm "synthetic"
    level: float = 0.95  # of each synthesizer's interval
    recipe: str = ""  # the best arm without synthesis, in words


def summarise(results: Results, *, candidate: str = "synthetic", worth: float = WORTH, seed: int = 0) -> Summary:
    """Arms with intervals, the baseline to beat, the verdict, the share of the gap closed.

    The baseline to beat is the best on validation or the best on the test, whichever leaves synthesis less: choosing
    among baselines on few validation groups is noisy, and a weak rival would make an easy "helps". Where several
    synthesizers are judged, the error is shared among them (Bonferroni: two intervals of 97.5 %), and the class has the
    best of their verdicts.
    """
    bootstrap = Bootstrap(results.tested["real"], seed=seed)
    baseline = _baseline(results, bootstrap)
    candidates = [candidate, *results.rivals]
    level = 1 - 0.05 / len(candidates)
    verdicts: dict[str, Verdict] = {}
    for name in candidates:
        difference, replicates = compare(results.tested, name, baseline, bootstrap, level=level)
        verdicts[name] = decide(difference, baseline.replace("_", " "), detectable(replicates, level), worth, level)
    order = {HELPS: 2, CANNOT_TELL: 1}
    best = max(candidates, key=lambda name: (order.get(verdicts[name].answer, 0), verdicts[name].difference.mean))
    difference, replicates = compare(results.tested, best, baseline, bootstrap, level=level)
    recalls, _ = compare(results.tested, best, baseline, bootstrap, "recall")
    headroom = gap = duel = None
    if "oracle" in results.tested:
        headroom, room = compare(results.tested, "oracle", baseline, bootstrap)
        if headroom.low > 0:  # a share of a gap that may be nothing is no number
            shares = np.where(room > 0, replicates / np.where(room > 0, room, 1), np.nan)
            gap = interval(difference.mean / headroom.mean, shares)
    if results.rivals:
        duel, _ = compare(results.tested, results.rivals[0], candidate, bootstrap)
    return Summary(
        verdicts[best],
        _arm_rows(results, bootstrap, baseline, candidates),
        gap,
        headroom,
        detectable(replicates, level),
        recalls,
        best,
        {name: v for name, v in verdicts.items() if name != best},
        duel,
        level,
        _recipe(results, bootstrap),
    )


RECIPES = {
    "real": "the images as they are",
    "duplicate": "repeat the class's images",
    "balanced": "a balanced sampler",
    "logit_adjusted": "logit adjustment",
    "smote": "SMOTE on features",
    "augment": "classic augmentation",
}


def _recipe(results: Results, bootstrap: Bootstrap) -> str:
    """The best arm without synthesis, in words, with what it gains over the images as they are."""
    means = {n: bootstrap.mean(results.tested[n], "ap")[0] for n in arming.BASELINES if n in results.tested}
    best = max(means, key=lambda name: means[name])
    words = RECIPES[best]
    if best == "augment":
        picked = Counter(str(chosen["candidate"]) for chosen in results.chosen["augment"])
        candidate, count = picked.most_common(1)[0]
        words += f" with {candidate} (in {count} of {len(results.rows)} cells)"
    words += f": AP {means[best]:.2f}"
    if best == "real":
        return words
    gain, _ = compare(results.tested, best, "real", bootstrap)
    return f"{words}, {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] against {RECIPES['real']}"


def summarise_classic(results: Results, learner: str, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """Of a class that was measured without synthesis: the best arm in words, and the table of arms."""
    bootstrap = Bootstrap(results.tested["real"], seed=seed)
    rows = _arm_rows(results, bootstrap, _baseline(results, bootstrap), [])
    title = f"{_cells_in_words(results)} ({learner} learner)"
    return _recipe(results, bootstrap), arms(title, rows, "Nothing was synthesised for this class.")


def _cells_in_words(results: Results) -> str:
    counts = results.counts
    made = f"{counts['synthetic']:.0f} synthetic by {results.synthesizer}, " if counts["synthetic"] else ""
    return (
        f"{results.label}: {len(results.rows)} cells, on average {counts['train']:.0f} training images of "
        f"{counts['train groups']:.0f} groups, {made}{counts['test']:.0f} test images of {counts['test groups']:.0f} groups "
        f"({counts['prevalence']:.0%} of all that are tested)"
    )


def _baseline(results: Results, bootstrap: Bootstrap) -> str:
    baselines = [name for name in arming.BASELINES if name in results.tested]
    validated = {
        name: float(np.nanmean(results.inner[name])) if not np.all(np.isnan(results.inner[name])) else -1.0
        for name in baselines
    }
    # Without inner folds (one group) nothing can be chosen on validation: then the balanced sampler is the rival.
    chosen = max(validated, key=lambda name: validated[name]) if max(validated.values()) >= 0 else "balanced"
    # Equal means (logit adjustment ranks as "real" does) go to the one chosen on validation, else to the first in
    # order.
    means = {name: bootstrap.mean(results.tested[name], "ap")[0] for name in baselines}
    return max(baselines, key=lambda name: (means[name], name == chosen))


def _arm_rows(results: Results, bootstrap: Bootstrap, baseline: str, candidates: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    shown = [*arming.BASELINES, "synthetic", *results.rivals, "synthetic+control", "dense", "oracle"]
    for name in [n for n in shown if n in results.tested]:
        mean, replicates = bootstrap.mean(results.tested[name], "ap")
        recall, _ = bootstrap.mean(results.tested[name], "recall", FPR)
        estimate = interval(mean, replicates)
        against, _ = compare(results.tested, name, baseline, bootstrap)
        rows.append(
            {
                "name": name.replace("_", " "),
                **estimate.to_json(),
                "highlight": name in candidates,
                "more": {
                    f"recall at {FPR:.0%} FPR": round(recall, 3),
                    "validation AP": round(float(np.nanmean(results.inner[name])), 3)
                    if np.isfinite(results.inner[name]).any()
                    else "-",
                    f"against {baseline.replace('_', ' ')}": f"{against.mean:+.3f} [{against.low:+.2f}, "
                    f"{against.high:+.2f}]"
                    if name != baseline
                    else "-",
                },
            }
        )
    return rows


def class_verdict(results: Results, summary: Summary, *, masks: bool, macro_f1: Mapping[str, float]) -> ClassVerdict:
    """The verdict with its numbers and with what to do next."""
    answer = summary.verdict.answer
    reason = summary.verdict.reason
    if results.rivals:
        names = {"synthetic": results.synthesizer}
        reason = f"{names.get(summary.candidate, summary.candidate)}: {reason}"
        for name, other in summary.others.items():
            reason += f"; {names.get(name, name)}: {other.answer} ({other.difference.mean:+.3f})"
        if summary.duel is not None:
            reason += (
                f"; {results.rivals[0]} against {results.synthesizer} {summary.duel.mean:+.3f} "
                f"[{summary.duel.low:+.3f}, {summary.duel.high:+.3f}]"
            )
    if summary.gap is not None and summary.gap.mean > 0:
        reason += f"; {summary.gap.mean:.0%} of the gap to all real images is closed"
    if answer == HELPS:
        following = "mix renders/ into your training with WithSynthetic, and keep your own validation as it is"
    elif answer == CANNOT_TELL:
        following = (
            f"collect more groups (parts, scenes, patients) of {results.label}, above all for testing, and run the "
            "trial "
            f"again; best without synthesis was {summary.recipe}"
        )
    else:
        following = f"train without synthetic {results.label}; best without it was {summary.recipe}"
    dense = next((row for row in summary.rows if row["name"] == "dense"), None)
    others = max(row["mean"] for row in summary.rows if row["name"] not in ("dense", "oracle"))
    if masks and dense is not None and dense["mean"] > others:
        following += f". A rival to try: a dense head trained on your masks reached AP {dense['mean']:.2f} here"
    numbers = {
        **summary.verdict.to_json(),
        "recall_difference": summary.recall.to_json(),
        "synthesizer": results.synthesizer if summary.candidate == "synthetic" else summary.candidate,
        "others": {name: v.to_json() for name, v in summary.others.items()},
        "duel": summary.duel.to_json() if summary.duel else None,
        "gap_closed": summary.gap.to_json() if summary.gap else None,
        "headroom": summary.headroom.to_json() if summary.headroom else None,
        "arms": {row["name"]: {k: row[k] for k in ("mean", "low", "high")} for row in summary.rows},
        "macro_f1": {name: round(value, 4) for name, value in macro_f1.items()},
        **{f"{k} per cell".replace(" ", "_"): round(v, 3) for k, v in results.counts.items()},
    }
    return ClassVerdict(results.label, answer, reason, following, numbers)


def arms_block(results: Results, summary: Summary, learner: str, macro_f1: Mapping[str, float]) -> list[dict[str, Any]]:
    """The table of arms, and what the learner chose."""
    rows = [
        {
            **row,
            "more": {
                **row["more"],
                "macro-F1": round(macro_f1[arm], 3) if (arm := row["name"].replace(" ", "_")) in macro_f1 else "-",
            },
        }
        for row in summary.rows
    ]
    title = f"{_cells_in_words(results)} ({learner} learner)"
    note = f"Compared with {summary.verdict.baseline}, the baseline that leaves synthesis least. "
    if summary.headroom is not None:
        note += (
            f"Headroom: with all real groups AP changes by {summary.headroom.mean:+.3f} "
            f"[{summary.headroom.low:+.2f}, {summary.headroom.high:+.2f}]. "
        )
    if summary.gap is not None:
        gap = summary.gap
        note += f"Synthesis closes {gap.mean:.0%} [{gap.low:.0%}, {gap.high:.0%}] of that gap. "
    note += (
        f"Effects smaller than {summary.detectable:.2f} AP are not seen with these data (80 % power, two-sided "
        f"{100 * (1 - summary.level):g} %)."
    )
    blocks = [arms(title, rows, note)]
    picked = Counter(", ".join(f"{k} {v}" for k, v in c.items()) for c in results.chosen.get("synthetic", []))
    if picked:
        blocks.append(
            text(
                "The synthetic arm's choices: " + "; ".join(f"{k} ({n} cells)" for k, n in picked.most_common(3)) + "."
            )
        )
    return blocks


def macro_f1_table(
    results: Mapping[str, Results], labels: Sequence[int], classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Macro-F1 of argmax over one-against-rest scores, per class whose positives change and per arm.

    The scores of the other classes are those of the same arm where it only reweights, and of "balanced" where it adds
    images of one class. Only cells that were run for every class with the same test rows count.
    """
    table: dict[str, dict[str, float]] = {}
    truth = np.asarray(labels)
    for name, own in results.items():
        table[name] = {}
        for arm in own.decisions:
            values = []
            for cell, rows in enumerate(own.rows):
                columns = []
                for other in classes:
                    source = results.get(other)
                    if source is None or cell >= len(source.rows) or not np.array_equal(source.rows[cell], rows):
                        break
                    usual = arm if other == name or arm in ("real", "logit_adjusted", "duplicate") else "balanced"
                    columns.append(source.decisions[usual][cell])
                else:
                    values.append(
                        macro_f1(
                            truth[rows].tolist(),
                            np.argmax(np.stack(columns), axis=0).tolist(),
                            range(len(classes)),
                            own.tested[arm][cell].weights,
                        )
                    )
            if values:
                table[name][arm] = float(np.mean(values))
    return table
