"""What synthesis is worth to a rare class: sets x classes x numbers of training groups, all arms on identical draws.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/rare_class.py run --data ../shared/data --out bench/rare_class
    .venv/bin/python scripts/bench/rare_class.py table --out bench/rare_class

Each cell (set, class, groups, learner, synthetic images, generator) is a trial of its own, in which that class alone is scarce: a
JSON line for every draw with each arm's mean over the folds, and one with the verdict, its p-values and the gate's decision.
Cells that are there are skipped. The table adjusts the p-values of the classes of a set for each other (Holm).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from visynth.data.imageset import ImageSet
    from visynth.jobs.trial.cells import Split
    from visynth.jobs.trial.data import TrialData

SEEN = ("exp1_", "exp2_")  # exposures of the class that training has under the shift; the test has the others
GROUPS = (2, 3, 5, 8)
METRICS = ("ap", "recall@fpr", "macro-f1")


@dataclass(frozen=True)
class Set:
    """How a set is read, and its classes that are made rare."""

    classes: tuple[str, ...]
    images: str
    masks: str | None = None
    groups: str | None = None
    pattern: str | None = None
    most: int = 10**6  # images of a class, drawn at random


TILES = Set(("blowhole", "crack", "break"), "magnetic_tile/images", "magnetic_tile/masks", "magnetic_tile/groups.csv")
SETS = {
    "magnetic_tile": TILES,
    "magnetic_tile, shift": TILES,
    "bccd_cells": Set(("Platelets", "WBC"), "bccd_cells", pattern=r"^[^/]*/BloodImage_(\d+)", most=600),
    "neu_det": Set(("scratches", "inclusion", "crazing"), "neu_det/images", most=150),
}


@dataclass(frozen=True)
class Cell:
    """One trial."""

    set: str
    label: str
    groups: int
    learner: str = "frozen"
    synthetic: int = 100
    learned: str = "none"

    @property
    def file(self) -> str:
        made = f"{self.synthetic}-{self.learned}"
        return f"{self.set.replace(', ', '_')}-{self.label}-{self.groups}-{self.learner}-{made}.jsonl"


def run(cell: Cell, data: Path, out: Path, draws: int, folds: int, minutes: float, workers: int, device: str) -> None:
    """Measure a cell, unless it is there."""
    if (out / cell.file).is_file():
        return
    import torch

    from visynth.core.stage import Stage
    from visynth.data.reading import read_images
    from visynth.jobs.preflight import preflight
    from visynth.jobs.trial.data import measured_items, read_trial_data
    from visynth.jobs.trial.measuring import Trial
    from visynth.jobs.trial.options import TrialOptions
    from visynth.metrics.extractors import extractor
    from visynth.verdict.bootstrap import measure, own_weights
    from visynth.verdict.summary import class_verdict, summarise

    torch.set_num_threads(workers)
    extractor().network.to(device)
    started = time.monotonic()
    of = SETS[cell.set]
    masks, groups = (None if part is None else data / part for part in (of.masks, of.groups))
    images = some(read_images(data / of.images, masks=masks, groups=groups, group_pattern=of.pattern), of.most)
    options = TrialOptions(
        rare_groups=cell.groups, draws=draws, folds=folds, minutes=minutes, others=False, learned=cell.learned,
        learner=cell.learner, workers=workers, synthetic=cell.synthetic,
    )  # fmt: skip

    def keep(images: ImageSet, good: str | None) -> set[str]:
        return {item.name for item in measured_items(images, good, options.seed)}

    measured = read_trial_data(preflight(images, [cell.label], grouped=True, keep=keep), options, print)
    out.mkdir(parents=True, exist_ok=True)
    stage = Stage(out / f"{cell.file}.work", {"draws": draws, "folds": folds, "cell": cell.file})
    trial = Trial(measured, options, stage, lambda words: print(f"{cell.file}: {words}", flush=True))
    if cell.set.endswith("shift"):
        trial.splits = [shifted(split, measured, cell.label) for split in trial.splits]
    trial.measure()
    results = trial.results[cell.label]
    if "synthetic" not in results.tested:
        print(f"{cell.file}: nothing was synthesised. {' '.join(trial.notes)}", flush=True)
        stage.clear()
        return
    summary = summarise({cell.label: results}, design=trial.design())[cell.label]
    verdict = class_verdict(results, summary)
    common = {"set": cell.set, "class": cell.label, "groups": cell.groups, "learner": cell.learner}
    common |= {"images": cell.synthetic, "learned": cell.learned}
    lines: list[dict[str, Any]] = []
    for draw in range(draws):
        arms: dict[str, dict[str, float]] = {}
        for name, tested in results.tested.items():
            own = [one for one in tested if one.draw == draw]
            for metric in METRICS:
                if metric == "macro-f1" and any(one.predicted is None for one in own):
                    continue
                values = [float(measure(one, metric, own_weights(one)[None])[0]) for one in own]
                arms.setdefault(name, {})[metric] = round(float(np.nanmean(values)), 5)
        lines.append({**common, "draw": draw, "synthesizer": results.synthesizer, "arms": arms})
    seconds = round(time.monotonic() - started)
    # The verdict's own "groups" are those of the tests.
    lines.append({**verdict.numbers, **common, "answer": verdict.answer, "reason": verdict.reason, "seconds": seconds})
    (out / cell.file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    stage.clear()


def some(images: ImageSet, most: int) -> ImageSet:
    """At most so many images of each class."""
    kept: set[str] = set()
    for name in images.classes:
        own = [item.name for item in images.items if item.labels == (name,)]
        kept |= {own[k] for k in np.random.default_rng(0).permutation(len(own))[:most]}
    return images.select(lambda item: item.name in kept)


def shifted(split: Split, data: TrialData, name: str) -> Split:
    """The split with a coverage shift: the class's training images are of few exposures, its test images of the others.
    What training loses goes to the oracle, which has every exposure."""

    def seen(row: int) -> bool:
        return Path(data.items[row].name).name.startswith(SEEN)

    own = data.positive[name]
    lost = [row for row in split.train.tolist() if own[row] and not seen(row)]
    train = [row for row in split.train.tolist() if not own[row] or seen(row)]
    test = [row for row in split.test.tolist() if not own[row] or not seen(row)]
    more = sorted({*split.more.tolist(), *lost})
    return replace(split, train=np.array(train), test=np.array(test), more=np.array(more, dtype=np.int64))


def table(out: Path) -> str:
    """The verdicts of each set and number of groups, adjusted for its classes."""
    from visynth.verdict.rule import ALARM, holm

    found: dict[tuple[str, int, str, int, str], dict[str, dict[str, Any]]] = {}
    for file in sorted(out.glob("*.jsonl")):
        line = json.loads(file.read_text().splitlines()[-1])
        cell = line["set"], line["groups"], line["learner"], line.get("images", 100), line.get("learned", "none")
        found.setdefault(cell, {})[line["class"]] = line
    text = (
        "| set | training groups | synthetic images | class | real | best arm without synthesis | synthesis | "
        "dense head with composites | "
        "all real groups | difference [95 % CI] | p, adjusted | part of the gap | verdict | gate at 0.5 % |\n"
        + "|---" * 14
        + "|\n"
    )
    for (name, groups, _, images, learned), lines in sorted(found.items()):
        adjusted = holm({label: line["adjusted"] for label, line in lines.items()})
        made = str(images) if learned == "none" else f"{images}, {learned}"
        for label, line in lines.items():
            arms = {arm: row["mean"] for arm, row in line["arms"].items()}
            difference, gap = line["difference"], line["gap_closed"]
            shown = adjusted[label] <= ALARM and difference["mean"] > 0
            answer = "helps" if shown else ("cannot tell" if line["answer"] == "helps" else line["answer"])
            accepted = "promote" if adjusted[label] <= 0.005 and difference["mean"] > 0 else "-"
            part = "-" if gap is None else f"{gap['mean']:.0%} [{gap['low']:.0%}, {gap['high']:.0%}]"
            cells = [
                name, str(groups), made, label, _of(arms, "real"), f"{_of(arms, line['baseline'])} ({line['baseline']})",
                _of(arms, "synthetic"), _of(arms, "dense+synthetic"), _of(arms, "oracle"),
                f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]",
                f"{adjusted[label]:.3f}", part, answer, accepted,
            ]  # fmt: skip
            text += "| " + " | ".join(cells) + " |\n"
    return text


def _of(arms: dict[str, float], name: str) -> str:
    return f"{arms[name]:.3f}" if name in arms else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VISYNTH_DATA", "../shared/data")))
    parser.add_argument("--out", type=Path, default=Path("bench/rare_class"))
    parser.add_argument("--groups", type=int, nargs="*", default=GROUPS)
    parser.add_argument("--sets", nargs="*", choices=SETS)
    parser.add_argument("--classes", nargs="*")
    parser.add_argument("--learner", default="frozen")
    parser.add_argument("--synthetic", type=int, default=100, help="images of a class in a cell")
    parser.add_argument("--learned", default="none", help="generator to train in each draw and fold")
    parser.add_argument("--minutes", type=float, default=600, help="of a trial: what is left of them trains generators")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--workers", type=int, default=2, help="processes of each")
    parser.add_argument("--device", default="cpu", help="of the features")
    given = parser.parse_args()
    if given.verb == "table":
        print(table(given.out))
        return
    wanted = [
        Cell(name, label, groups, given.learner, given.synthetic, given.learned)
        for groups in given.groups
        for name, one in SETS.items()
        if not given.sets or name in given.sets
        for label in one.classes
        if not given.classes or label in given.classes
    ]
    arguments = (given.data, given.out, given.draws, given.folds, given.minutes, given.workers, given.device)
    if given.jobs == 1:
        for cell in wanted:
            run(cell, *arguments)
    else:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            for task in [pool.submit(run, cell, *arguments) for cell in wanted]:
                task.result()
    print(table(given.out))


if __name__ == "__main__":
    main()
