"""False alarms and power of the verdict's rule, by simulation: scores with the variances of real ones, judged by the rule itself.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/verdict.py --runs 600 --workers 2

Every variance was sized by scores of magnetic_tile (composition minus balanced, in deviations of the negatives): group 0.59,
draw 0.13, group by draw 0.90, image 0.36. Arms: three that are nearly one (real, balanced, duplicate), one that differs as
synthesis does (augment), and synthesis. The true difference in mean AP between synthesis and the best other arm is set by
bisection on many simulated sets. A JSON line for each case; the table is printed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import numpy as np

from visynth.verdict.bootstrap import Bootstrap, Scored, weighted_ap
from visynth.verdict.rule import Comparison, Design, decide, holm

GROUP, DRAW, BOTH, IMAGE = 0.59, 0.13, 0.90, 0.36  # deviations of the difference
COMMON = 0.8  # deviation of groups in all arms
LEVEL = 0.9  # of positives over negatives
WORTH = 0.02
BASELINES = ("real", "balanced", "duplicate", "augment")


@dataclass(frozen=True)
class Case:
    """One design.

    Attributes:
        name: of the row.
        groups: positive test groups in all.
        draws: of training groups.
        folds: by group in each draw; 1: all groups tested in each.
        images: in each group.
        tied: the luck of synthesis is that of the training groups.
        few: training groups in each draw; None for all that are not tested on, which every draw shares.
        trainings: 1 where all draws share one training, as in an evaluation of one rendered set.
        classes: null classes that are named together.
        rivals: synthesizers that are compared.
        quiet: part of the group-by-draw and image deviations that is left (group effects dominate).
        distinct: whether one of the baselines differs from the others, as classic augmentation does.
    """

    name: str
    groups: int
    draws: int = 10
    folds: int = 3
    images: int = 6
    tied: bool = False
    few: int | None = None
    trainings: int | None = None
    classes: int = 1
    rivals: int = 1
    quiet: float = 1.0
    distinct: bool = True

    @property
    def baselines(self) -> tuple[str, ...]:
        return BASELINES if self.distinct else BASELINES[:-1]

    @property
    def design(self) -> Design:
        return Design(draws=self.draws)


def simulate(case: Case, shift: float, level: float, seed: int) -> dict[str, list[Scored]]:
    """Scores of all arms on every cell: synthesis scores its positives by ``shift`` more, "augment" by ``level``."""
    rng = np.random.default_rng(seed)
    groups, negatives = case.groups, 80
    names = [f"p{k}" for k in range(groups)] + [f"n{k}" for k in range(negatives)]
    of = np.repeat(np.arange(groups + negatives), [case.images] * groups + [3] * negatives)
    truth = of < groups
    image = rng.normal(0, 1, len(of)) + np.where(truth, LEVEL, 0)
    image += np.append(rng.normal(0, COMMON, groups), rng.normal(0, 0.3, negatives))[of]
    differing = ["augment", *(f"synthetic{k}" for k in range(case.rivals))]
    of_group = {
        arm: rng.normal(0, GROUP, groups + negatives) * np.where(np.arange(groups + negatives) < groups, 1, 0.3)
        for arm in differing
    }
    # Luck that is a training group's own: of three of them it is as large as that of a draw, and of a draw and a test group.
    luck = {arm: rng.normal(0, DRAW * 3**0.5, groups) for arm in differing}
    pairs = {arm: rng.normal(0, BOTH * case.quiet * 3**0.5, (groups + negatives, groups)) for arm in differing}
    fixed = {arm: rng.normal(0, BOTH * case.quiet, groups + negatives) for arm in differing}
    arms: dict[str, list[Scored]] = {}
    for draw in range(case.draws):
        order = rng.permutation(groups + negatives)
        fold_of = np.zeros(groups + negatives, int)
        fold_of[order] = np.arange(groups + negatives) % case.folds if case.folds > 1 else 0
        ranked = rng.permutation(groups)
        fold_of[ranked] = np.arange(groups) % case.folds
        by_draw = {arm: rng.normal(0, DRAW) for arm in differing}
        mixed = {arm: rng.normal(0, BOTH * case.quiet, groups + negatives) for arm in differing}
        for fold in range(case.folds):
            rows = np.flatnonzero(fold_of[of] == fold)
            if not truth[rows].any():
                continue
            base = image[rows] + rng.normal(0, 0.05, len(rows))
            cells = {
                "real": base,
                "balanced": base + rng.normal(0, 0.05, len(rows)),
                "duplicate": base + rng.normal(0, 0.05, len(rows)),
            }
            training = [g for g in range(groups) if case.folds > 1 and fold_of[g] != fold]
            if case.few is not None:
                training = rng.permutation(training)[: case.few].tolist()
            for arm in differing:
                part = fixed[arm] if case.trainings == 1 else mixed[arm]
                if case.tied and training:
                    part = pairs[arm][:, training].mean(axis=1)
                change = of_group[arm][of[rows]] + part[of[rows]] * np.where(truth[rows], 1, 0.3)
                change += rng.normal(0, IMAGE * case.quiet, len(rows))
                shared = float(np.mean(luck[arm][training])) if case.tied and training else by_draw[arm]
                change += np.where(truth[rows], shared, 0.0)
                cells[arm] = base + change + np.where(truth[rows], shift if arm != "augment" else level, 0.0)
            for arm, scores in cells.items():
                arms.setdefault(arm, []).append(Scored(draw, truth[rows], scores, [names[g] for g in of[rows]]))
    return arms


def shift_for(case: Case, gain: float, sets: int = 100) -> float:
    """Shift at which synthesis has ``gain`` more mean AP than "balanced", by bisection on the same simulated sets."""
    plain = replace(case, classes=1, rivals=1, draws=min(case.draws, 3))
    low, high = -1.5, 3.0
    for _ in range(10):
        middle = (low + high) / 2
        values = []
        for seed in range(sets):
            arms = simulate(plain, middle, 0.0, 10_000 + seed)
            values.append(_mean_ap(arms["synthetic0"]) - _mean_ap(arms["balanced"]))
        low, high = (middle, high) if np.mean(values) < gain else (low, middle)
    return (low + high) / 2


def _mean_ap(cells: list[Scored]) -> float:
    return float(np.mean([weighted_ap(cell.truth, cell.scores, np.ones((1, len(cell.truth))))[0] for cell in cells]))


def answers(case: Case, shift: float, level: float, seed: int, replicates: int) -> dict[str, float]:
    """Share of the classes named together that get each answer, and whether one of them falsely helps."""
    found, p = {}, {}
    for number in range(case.classes):
        arms = simulate(case, shift, level, seed * 100 + number)
        compared = Comparison(arms, Bootstrap(arms["real"], replicates, seed), "ap", case.design)
        baseline = compared.best(case.baselines)
        own = {k: compared.evidence(f"synthetic{k}", case.baselines, baseline) for k in range(case.rivals)}
        best = min(own, key=lambda k: own[k].p_gain())
        p[str(number)] = min(1.0, case.rivals * own[best].p_gain())
        found[str(number)] = own[best], baseline
    adjusted = holm(p)
    verdicts = [decide(one, baseline, WORTH, adjusted[name]) for name, (one, baseline) in found.items()]
    gate = [adjusted[name] <= 0.005 and found[name][0].mean > 0 for name in found]
    return {
        "helps": float(any(v.answer == "helps" for v in verdicts)),
        "does not": float(np.mean([v.answer == "does not" for v in verdicts])),
        "gate": float(any(gate)),
        "gain": float(np.mean([one.mean for one, _ in found.values()])),
    }


def cases() -> list[Case]:
    groups = [Case(f"{n} test groups, 10 draws x 3 folds", n) for n in (3, 5, 8, 12, 20)]
    same = [
        Case(f"{n} test groups, 10 draws x 2 folds, baselines that are nearly one arm", n, folds=2, distinct=False)
        for n in (3, 5, 8, 12, 20)
    ]
    return [
        *groups,
        *same,
        Case("5 draws, 12 groups", 12, draws=5),
        Case("one draw, 5 groups", 5, draws=1),
        Case("one draw, 12 groups", 12, draws=1),
        Case("all training groups in use, luck tied to them, 5 groups", 5, tied=True),
        Case("all training groups in use, luck tied to them, 12 groups", 12, tied=True),
        Case("3 training groups, luck tied to them, 8 groups", 8, tied=True, few=3),
        Case("3 training groups, luck tied to them, 12 groups", 12, tied=True, few=3),
        Case("3 training groups, luck tied to them, 20 groups", 20, tied=True, few=3),
        Case("one training (evaluate), 5 groups", 5, draws=5, folds=1, trainings=1),
        Case("one training (evaluate), 12 groups", 12, draws=5, folds=1, trainings=1),
        Case("2 test groups", 2, folds=2),
        Case("5 groups, group effects dominate", 5, quiet=0.2),
        Case("20 draws, luck tied, 12 groups", 12, draws=20, tied=True),
        Case("12 groups, two synthesizers", 12, rivals=2),
        Case("12 groups, three null classes", 12, classes=3),
        Case("12 groups, ten null classes", 12, classes=10),
    ]


def lines(runs: int, only: str) -> list[tuple[Case, float, int]]:
    """Case, true gain and number of runs of each row."""
    found = []
    for case in cases():
        if only not in case.name:
            continue
        powered = case.classes == 1 and case.rivals == 1
        plain = powered and "test groups" in case.name
        for gain in (0.0, 0.05, 0.1, 0.2) if plain else ((0.0, 0.05, 0.1) if powered else (0.0,)):
            found.append((case, gain, (runs if case.classes < 10 else runs // 3) if not gain else runs // 2))
    return found


def chunk(number: int, case: Case, shift: float, level: float, seeds: range, replicates: int) -> tuple[int, list]:
    """Some runs of a row."""
    return number, [answers(case, shift, level, seed, replicates) for seed in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/verdict.jsonl"))
    parser.add_argument("--runs", type=int, default=600, help="of each null; half as many of each gain")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows = lines(given.runs, given.only)
    pool = joblib.Parallel(given.workers, return_as="generator_unordered")
    keys = sorted(
        {(replace(case, name=""), gain) for case, gain, _ in rows}
        | {(replace(case, name=""), 0.0) for case, _, _ in rows},
        key=str,
    )
    solved = joblib.Parallel(given.workers)(joblib.delayed(shift_for)(case, gain) for case, gain in keys)
    shifts = dict(zip(keys, solved, strict=True))
    print(f"{len(keys)} shifts", flush=True)
    work = joblib.delayed(chunk)
    jobs = []
    for number, (case, gain, runs) in enumerate(rows):
        shift, level = (shifts[replace(case, name=""), value] for value in (gain, 0.0))  # tied arms: the hardest null
        jobs += [
            work(number, case, shift, level, range(k, min(k + 25, runs)), given.replicates) for k in range(0, runs, 25)
        ]
    found: dict[int, list] = {}
    for number, some in pool(jobs):
        found.setdefault(number, []).extend(some)
        if len(found[number]) == rows[number][2]:
            print(json.dumps(_line(rows[number], found[number])), flush=True)
    done = [_line(row, found[number]) for number, row in enumerate(rows)]
    given.out.write_text("".join(json.dumps(line) + "\n" for line in done))
    print("| case | true gain | runs | helps | does not | gate | mean gain seen |\n|---|---|---|---|---|---|---|")
    for line in done:
        rates = " | ".join(f"{line[name]:.1%}" for name in ("helps", "does not", "gate"))
        print(f"| {line['case']} | {line['true gain']:+.2f} | {line['runs']} | {rates} | {line['gain']:+.3f} |")


def _line(row: tuple[Case, float, int], found: list[dict[str, float]]) -> dict:
    case, gain, runs = row
    means = {name: round(float(np.mean([one[name] for one in found])), 4) for name in found[0]}
    return {"case": case.name, "true gain": gain, "runs": runs, **means}


if __name__ == "__main__":
    main()
