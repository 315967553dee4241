"""Do the frozen learner's defaults hold on sets that they were not settled on?

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/learner_defaults.py --data ../shared/data

The defaults (all scales, maxima and means, C = 0.1) were settled on draws of magnetic_tile. Here the balanced arm, of real images
alone, is fitted on other sets with few groups of a class, by each alternative, on the same draws: mean difference in average
precision to the default with a 95 % t interval over draws and classes. "rule" is what a trial does: the default, and what is
better on every inner fold in its place; "best mean" takes the best of the same nine by their mean over the inner folds.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from visynth.core.files import cache_folder
from visynth.data.imageset import Lazy
from visynth.data.reading import read_images
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractors import extractor
from visynth.verdict.frozen import FrozenLearner
from visynth.verdict.learners import Items, inner_folds
from visynth.verdict.ranking import average_precision

SETS = {"bccd_cells": r"^[^/]*/BloodImage_(\d+)", "neu_det": None, "fire_uia": None}
MOST = 300  # images of a class


def items_of(rows: np.ndarray, positive: np.ndarray, groups: list[str]) -> Items:
    """The balanced arm."""
    own = positive[rows]
    weights = np.where(own, 0.5 / max(own.sum(), 1), 0.5 / max((~own).sum(), 1)) * len(rows)
    return Items(rows, own, weights, [frozenset({groups[r]}) for r in rows], np.ones(len(rows), bool))


def part(tables: dict, resolutions: tuple[int, ...], means: bool) -> dict:
    return {key: value for key, value in tables.items() if key[0] in resolutions and (means or key[1] != "mean")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VISYNTH_DATA", "../shared/data")))
    parser.add_argument("--groups", type=int, nargs="*", default=(3, 5, 8))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    given = parser.parse_args()
    torch.set_num_threads(2)
    rows: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in given.sets:
        root = given.data / name / "images" if (given.data / name / "images").is_dir() else given.data / name
        images = read_images(root, group_pattern=SETS[name])
        kept = [i for c in images.classes for i in [i for i in images.items if i.labels == (c,)][:MOST]]
        bank = FeatureBank(extractor(), cache=cache_folder() / "features")
        bank.add(Lazy(images.image, kept))
        every = bank.tables()
        groups = [item.group or item.name for item in kept]
        for label, count in itertools.product(images.classes, given.groups):
            positive = np.array([item.labels == (label,) for item in kept])
            own = sorted({g for g, p in zip(groups, positive, strict=True) if p})
            if len(own) < count + 5:
                continue
            for draw in range(given.draws):
                rng = np.random.default_rng([draw, count])
                few = {own[k] for k in rng.permutation(len(own))[:count]}
                others = sorted({*groups} - {*own})
                half = {others[k] for k in rng.permutation(len(others))[: len(others) // 2]}
                train = np.array([r for r, g in enumerate(groups) if g in few or g in half])
                # A group of several classes must not stand on both sides.
                test = np.array([r for r, g in enumerate(groups) if g not in few and g not in half])
                if not positive[test].any() or not positive[train].any():
                    continue
                items = items_of(train, positive, groups)
                folds = inner_folds(items, sorted({groups[r] for r in train}), 3, draw)
                found, inner = {}, {}
                spaces = {
                    "all, max and mean": every, "all, max": part(every, (0, 160), False),
                    "native, max": part(every, (0,), False),
                }  # fmt: skip
                for (space, tables), penalty in itertools.product(spaces.items(), (0.01, 0.1, 1.0)):
                    learner = FrozenLearner(penalties=(penalty,))
                    outcome = learner.fit(part(tables, (0, 160), True), items, test, [], 0)
                    found[f"{space}, C {penalty:g}"] = average_precision(positive[test], outcome.scores)
                    if space != "all, max and mean":  # one space: its folds only measure
                        inner[f"{space}, C {penalty:g}"] = learner.fit(tables, items, test, folds, 0).inner
                found["rule"] = average_precision(
                    positive[test], FrozenLearner().fit(every, items, test, folds, 0).scores
                )
                usable = {key: value for key, value in inner.items() if np.isfinite(value)}
                if usable:
                    found["best mean of six"] = found[max(usable, key=usable.__getitem__)]
                for way, value in found.items():
                    rows[name, count][way].append(value)
    ways = list(dict.fromkeys(way for own in rows.values() for way in own))
    print("| set | groups | default AP | " + " | ".join(w for w in ways if w != "all, max and mean, C 0.1") + " |")
    print("|---" * (len(ways) + 2) + "|")
    for (name, count), own in rows.items():
        base = np.array(own["all, max and mean, C 0.1"])
        cells = []
        for way in ways:
            if way == "all, max and mean, C 0.1":
                continue
            change = np.array(own[way]) - base if len(own[way]) == len(base) else np.array([np.nan])
            half = (
                t.ppf(0.975, max(len(change) - 1, 1)) * change.std(ddof=1) / len(change) ** 0.5
                if len(change) > 1
                else np.nan
            )
            cells.append(f"{change.mean():+.3f} ± {half:.3f}")
        print(f"| {name} | {count} | {base.mean():.3f} (n {len(base)}) | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
