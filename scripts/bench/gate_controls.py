"""Controls of the gate, through the engine that a trial uses: what should be promoted, and what should not.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/gate_controls.py --reports 50 --workers 2

Features are simulated: a class has a mean of its own, its groups lie about that and its images about their group. The class has
3 training groups of 4 images in each draw, and ``--groups`` test groups; 10 draws x 2 folds, all baselines of the frozen learner
that need no pixels. "Synthetic" images are, in turn, fresh real ones of other groups (the positive control), copies of the
training images with a little noise (nothing new), images of other classes called this one (wrong labels), and noise. A JSON line
for each report; the table is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import joblib
import numpy as np

from visynth.core.report import Report
from visynth.jobs.gate import decide
from visynth.verdict.cells import Cell, Extra
from visynth.verdict.comparison import run_cells
from visynth.verdict.rule import Design
from visynth.verdict.summary import class_verdict, summarise

KINDS = ("fresh reals", "copies", "wrong labels", "noise")
WIDTH = 200
IMAGES, FEW, MADE = 4, 3, 120  # of a group; training groups; synthetic images
OTHERS = 120  # groups of other images, two each
SHIFT, GROUP = 0.8, 0.5  # of the class's mean in 6 dimensions, and of its groups in all: fresh reals gain what tiles do


def report_of(kind: str, groups: int, draws: int, seed: int) -> dict:
    """One report on a class, decided by the gate."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    mean = np.zeros(WIDTH)
    mean[:6] = SHIFT

    def of(count: int, each: int, centre: np.ndarray, spread: float) -> np.ndarray:
        own = centre + rng.normal(0, spread, (count, WIDTH))
        return np.repeat(own, each, axis=0) + rng.normal(0, 1, (count * each, WIDTH))

    total = groups + FEW
    positives = of(total, IMAGES, mean, GROUP)
    negatives = of(OTHERS, 2, np.zeros(WIDTH), 0.3)
    real = np.concatenate([positives, negatives])
    names = [f"p{k}" for k in np.repeat(np.arange(total), IMAGES)] + [f"n{k}" for k in np.repeat(np.arange(OTHERS), 2)]
    group = np.array(names)
    truth = np.arange(len(real)) < len(positives)
    cells, made = [], []
    for draw in range(draws):
        order = rng.permutation(total)
        sides = rng.permutation(OTHERS)
        for fold in range(2):
            few = [f"p{k}" for k in order[fold::2][:FEW]]
            tested = [f"p{k}" for k in order[1 - fold :: 2]]
            train = np.isin(group, [*few, *(f"n{k}" for k in sides[fold::2])])
            test = np.isin(group, [*tested, *(f"n{k}" for k in sides[1 - fold :: 2])])
            own = np.flatnonzero(train & truth)
            if kind == "fresh reals":
                images, parents = of(MADE // IMAGES, IMAGES, mean, GROUP), [frozenset({f"f{k}"}) for k in range(MADE)]
            elif kind == "copies":
                picked = rng.choice(own, MADE)
                images, parents = (
                    real[picked] + rng.normal(0, 0.1, (MADE, WIDTH)),
                    [frozenset({group[k]}) for k in picked],
                )
            elif kind == "wrong labels":
                images, parents = of(MADE // 2, 2, np.zeros(WIDTH), 0.3), [frozenset({f"f{k}"}) for k in range(MADE)]
            else:
                images, parents = rng.normal(0, 2, (MADE, WIDTH)), [frozenset({f"f{k}"}) for k in range(MADE)]
            start = len(real) + sum(map(len, made))
            made.append(images)
            extra = Extra(np.arange(start, start + MADE), parents)
            cells.append(
                Cell(
                    draw,
                    fold,
                    np.flatnonzero(train),
                    np.array([], np.int64),
                    np.flatnonzero(test),
                    truth,
                    names,
                    synthetic=extra,
                )
            )
    table = np.concatenate([real, *made]).astype(np.float32)
    results = run_cells("class", cells, {(0, "max"): table, (0, "mean"): table}, workers=0, seed=seed)
    verdict = class_verdict(results, summarise({"class": results}, design=Design(draws=draws))["class"])
    outcome = decide(Report("trial", "controls", [verdict])).outcome
    difference = verdict.numbers["difference"]["mean"]
    return {
        "kind": kind,
        "groups": groups,
        "seed": seed,
        "gate": outcome,
        "answer": verdict.answer,
        "difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/gate_controls.jsonl"))
    parser.add_argument("--reports", type=int, default=50, help="of each kind and number of groups")
    parser.add_argument("--groups", type=int, nargs="*", default=(8, 20))
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    print(
        "| synthetic images | test groups | reports | promote | reject | insufficient evidence | mean difference in AP |\n"
        + "|---" * 7
        + "|"
    )
    work = joblib.delayed(report_of)
    for groups in given.groups:
        for kind in given.kinds:
            found = joblib.Parallel(given.workers)(
                work(kind, groups, given.draws, seed) for seed in range(given.reports)
            )
            with given.out.open("a") as file:
                file.writelines(json.dumps(one) + "\n" for one in found)
            share = {
                name: np.mean([one["gate"] == name for one in found])
                for name in ("promote", "reject", "insufficient evidence")
            }
            rates = " | ".join(f"{share[name]:.0%}" for name in share)
            mean = np.mean([one["difference"] for one in found])
            print(f"| {kind} | {groups} | {len(found)} | {rates} | {mean:+.3f} |", flush=True)


if __name__ == "__main__":
    main()
