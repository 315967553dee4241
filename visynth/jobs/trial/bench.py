"""The cells of a trial: which groups train and test in each, and what is synthesised from the training side of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visynth.core import plugins
from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, VisynthError, choices
from visynth.core.files import cache_folder
from visynth.data.imageset import ImageSet, Item
from visynth.data.masks import judge, load_mask, remembered
from visynth.data.splits import group_folds, pick_groups
from visynth.data.transforms import CANDIDATES, augment
from visynth.generators.compose_fit import Fitted, Source, fit_composition
from visynth.jobs.preflight import Preflight, headroom_note
from visynth.jobs.trial.synthesis import KINDS, Studio, learned_extra
from visynth.metrics.bank import FeatureBank
from visynth.metrics.dense import DenseHead, coverage
from visynth.metrics.extractors import extractor
from visynth.verdict.cells import Cell, Extra
from visynth.verdict.comparison import run_cells, summarise

Say = Callable[[str], None]
COPIES = 4  # augmented copies of each real image, per candidate
KEPT_PER_GROUP = 2  # images of the defect-free class per group in the arms, at most
KEPT = 320  # and in all


@dataclass(frozen=True)
class TrialOptions:
    """What a trial may be told.

    Attributes:
        rare_groups: groups of each rare class that training sees in a draw; None uses all and has no oracle.
        draws: repetitions with other folds and other training groups.
        folds: test folds per draw.
        synthetic: synthetic images of a class in a cell.
        minutes: budget; draws that do not fit are left out, and the report says so.
        seed: of everything.
        workers: processes for fitting the arms.
        learner: registered name.
        others: also give a verdict for the other classes that can be composed.
        dense: also measure a dense head taught by the masks, as a rival.
        cache: keep features of real images on disk.
        learned: also train a generator in each cell: ``"auto"`` where preflight says it suits and the minutes allow it, ``"none"``,
            ``"inpaint"``, ``"diffusion"`` or ``"projection"``.
        learn_size: pixels that the learned generator works on; 0 chooses.
    """

    rare_groups: int | None = None
    draws: int = 5
    folds: int = 3
    synthetic: int = 100
    minutes: float = 10.0
    seed: int = 0
    workers: int = 2
    learner: str = "frozen"
    others: bool = True
    dense: bool = True
    cache: bool = True
    learned: str = "auto"
    learn_size: int = 0

    def __post_init__(self) -> None:
        least = {"draws": 1, "folds": 2, "synthetic": 1, "workers": 0, "seed": 0, "learn_size": 0}
        problems = [
            f"{name} must be at least {low}, but got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) < low
        ]
        if self.rare_groups is not None and self.rare_groups < 1:
            problems.append(
                f"rare_groups must be at least 1, or not given for all there are, but got {self.rare_groups}"
            )
        if not self.minutes > 0:
            problems.append(f"minutes must be above 0, but got {self.minutes:g}")
        if 0 < self.learn_size < 8 or self.learn_size % 8:
            problems.append(f"learn_size must be a multiple of 8, or 0 to choose, but got {self.learn_size}")
        if self.learned not in KINDS:
            problems.append(f"learned must be one of {choices(KINDS)}, but got {self.learned!r}")
        if self.learner not in plugins.names("learners"):
            problems.append(f"learner must be one of {choices(plugins.names('learners'))}, but got {self.learner!r}")
        if problems:
            raise UsageError("trial: " + "; ".join(problems) + ".")


@dataclass
class Workbench:
    """Decoded images, masks and features of the set that a trial works on."""

    images: ImageSet
    items: list[Item]
    sources: list[Source]
    bank: FeatureBank
    positive: dict[str, np.ndarray[Any, np.dtype[np.bool_]]]
    groups: list[str]
    judge: Callable[[Any, Any], str | None] = field(default_factory=lambda: remembered(judge))
    augmented: dict[tuple[str, str], dict[int, list[int]]] = field(default_factory=dict)


def make_workbench(flight: Preflight, options: TrialOptions, say: Say) -> Workbench:
    """Images in memory and their features; of the defect-free class two images a group are enough to learn from."""
    images = flight.images
    kept: list[Item] = []
    seen: dict[str, int] = {}
    for item in images.items:
        if item.labels == (flight.good,):
            seen[item.group] = seen.get(item.group, 0) + 1
            if seen[item.group] > KEPT_PER_GROUP:
                continue
        kept.append(item)
    plain = [i for i in kept if i.labels == (flight.good,)]
    if len(plain) > KEPT:
        order = seeding.rng(seeding.derive("kept", options.seed), "trial").permutation(len(plain))
        dropped = {plain[i].name for i in order[KEPT:]}
        kept = [i for i in kept if i.name not in dropped]
    sources = [
        Source(i.name, i.labels[0] if len(i.labels) == 1 else "", i.group, images.image(i), load_mask(images, i))
        for i in kept
    ]
    bank = FeatureBank(
        extractor(),
        cache=cache_folder() / "features" if options.cache else None,
        trunk=getattr(plugins.load("learners", options.learner), "trunk", 0),
    )
    say(f"features of {len(kept)} images at {', '.join(bank.name(r) for r in bank.resolutions)}")
    bank.add([s.image for s in sources])
    positive = {name: np.array([name in i.labels for i in kept]) for name in images.classes}
    return Workbench(images, kept, sources, bank, positive, [i.group for i in kept])


Layout = list[tuple[int, int, np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def make_layout(flight: Preflight, bench: Workbench, options: TrialOptions) -> Layout:
    """(draw, fold, train rows, rows only the oracle adds, test rows), the same for every class."""
    splits = [i.split for i in bench.items]
    for name in flight.rare:
        sides = {split for split, own in zip(splits, bench.positive[name], strict=True) if own}
        if "test" in splits and not {"test"} < sides:
            raise DataError(
                f"the data come with a test split, but {name} is not on both sides of it (it is in {sides})."
            )
    strata = [
        next((name for name in flight.rare if name in i.labels), i.labels[0] if i.labels else "") for i in bench.items
    ]
    layout: Layout = []
    for draw in range(options.draws):
        if "test" in splits:
            test_groups = {bench.groups[r] for r, s in enumerate(splits) if s == "test"}
            pairs = [
                (
                    # A group on both sides would leak, so its training images are left out.
                    np.array([r for r, s in enumerate(splits) if s != "test" and bench.groups[r] not in test_groups]),
                    np.array([r for r, s in enumerate(splits) if s == "test"]),
                )
            ]
        else:
            folds = min(options.folds, *(flight.images.groups()[name] for name in flight.rare))
            pairs = group_folds(strata, bench.groups, folds, seeding.derive("trial", options.seed, draw))
        for fold, (train, test) in enumerate(pairs):
            dropped: set[int] = set()
            for name in flight.rare if options.rare_groups else ():
                own = [r for r in train if bench.positive[name][r]]
                count = min(options.rare_groups or 0, len({bench.groups[r] for r in own}))
                kept = pick_groups(
                    [bench.groups[r] for r in own], count, seeding.derive(options.seed, draw, fold, name)
                )
                dropped |= {int(r) for r in own if bench.groups[r] not in kept}
            base = np.array([r for r in train if int(r) not in dropped], dtype=np.int64)
            layout.append(
                (draw, fold, base, np.array(sorted(dropped), dtype=np.int64), np.asarray(test, dtype=np.int64))
            )
    return layout


def bare_cell(
    bench: Workbench,
    name: str,
    train: Any,
    test: Any,
    draw: int,
    fold: int,
    more: Any = (),
    extras: Mapping[str, Extra] | None = None,
    oracle: bool = False,
) -> Cell:
    own = np.array([r for r in more if bench.positive[name][r]], dtype=np.int64)
    return Cell(draw, fold, train, own, test, bench.positive[name], bench.groups, extras or {}, oracle)


def headroom(flight: Preflight, bench: Workbench, layout: Layout, options: TrialOptions, say: Say) -> str:
    """Baseline against the oracle with all reals, on the first draw, before anything is synthesised."""
    lines = []
    for name in flight.rare:
        cells = []
        for draw, fold, train, more, test in layout:
            if draw:
                continue
            rows, extra = train, more
            if not options.rare_groups:  # all groups are in use: compare half of them with all of them
                own = [r for r in train if bench.positive[name][r]]
                names = [bench.groups[r] for r in own]
                if len(set(names)) < 4:
                    continue  # half of so few is no baseline
                half = pick_groups(names, max(2, len(set(names)) // 2), seeding.derive("half", draw, fold))
                extra = np.array([r for r in own if bench.groups[r] not in half], dtype=np.int64)
                rows = np.array([r for r in train if r not in set(extra.tolist())], dtype=np.int64)
            cell = bare_cell(bench, name, rows, test, draw, fold, extra, oracle=True)
            if cell.positive[cell.train].any() and cell.test_truth().any() and len(cell.more):
                cells.append(cell)
        if not cells:
            lines.append(f"{name}: headroom unknown, there are no more real groups to compare with")
            continue
        summary = summarise(
            run_cells(name, cells, bench.bank.tables(), learner="frozen", workers=0, seed=options.seed),
            candidate="oracle",
        )
        means = {row["name"]: row["mean"] for row in summary.rows}
        what = "" if options.rare_groups else " (half of the groups against all of them)"
        lines.append(
            f"{name}: baseline AP {means['balanced']:.2f}, oracle AP {means['oracle']:.2f}{what}; {headroom_note(means['balanced'], means['oracle'], summary.detectable)}"
        )
        say(f"  {lines[-1]}")
    return "; ".join(lines)


def make_cells(
    flight: Preflight,
    bench: Workbench,
    name: str,
    layout: Layout,
    options: TrialOptions,
    deadline: float,
    say: Say,
    studio: Studio | None = None,
) -> list[Cell]:
    """Synthesise for every draw and fold from its own training side, and gather the rows.

    Composition synthesises, or the ``studio``'s generators where one is given.
    """
    _augment(bench, name, options)
    cells: list[Cell] = []
    begun = time.monotonic()
    restricted = {n for *_, more, _ in layout for n in flight.rare if bench.positive[n][more].any()}
    for number, (draw, fold, train, more, test) in enumerate(layout):
        spent = time.monotonic() - begun
        finished_draws = fold == 0 and number > 0
        if studio is None and finished_draws and time.monotonic() + 3 * options.folds * spent / number > deadline:
            break
        if not bench.positive[name][train].any() or not bench.positive[name][test].any():
            continue  # a class with fewer groups than folds is missing on one side of some
        own = [bench.sources[r] for r in train if bench.sources[r].label in (name, flight.good)]
        try:
            if studio is not None:
                extras = {
                    "synthetic": learned_extra(
                        studio, bench, name, train.tolist(), options.synthetic, draw, fold, options.seed
                    )
                }
            else:
                fitted = fit_composition(own, good=str(flight.good), classes=[name], judge=bench.judge)
                extras = _synthesise(bench, fitted, options, draw, fold)
        except VisynthError as error:
            say(f"  {name}: draw {draw + 1}, fold {fold + 1} has no synthesis: {str(error).splitlines()[0]}")
            continue
        extras |= _augmented(bench, name, train, options, draw, fold)
        cells.append(bare_cell(bench, name, train, test, draw, fold, more, extras, name in restricted))
        if fold == 0:
            say(f"  {name}: draw {draw + 1} of {options.draws}, {spent:.0f} s")
    return cells


def _synthesise(bench: Workbench, fitted: Fitted, options: TrialOptions, draw: int, fold: int) -> dict[str, Extra]:
    count, controls = options.synthetic, max(1, options.synthetic // 3)
    made_seeds = [seeding.derive("trial", options.seed, draw, fold, k) for k in range(count + controls)]
    samples = fitted.generator.sample(made_seeds, [0] * count + [1] * controls)
    rows = bench.bank.add([samples.crop(k).permute(1, 2, 0).numpy() for k in range(len(samples))], cache=False)
    group_of = {s.name: s.group for s in bench.sources}
    parents = [frozenset(group_of[p] for p in names) for names in samples.parents or ()]
    return {"synthetic": Extra(rows[:count], parents[:count]), "control": Extra(rows[count:], parents[count:])}


def make_dense_head(bench: Workbench, say: Say) -> DenseHead:
    say("dense head: features of every place")
    places = bench.bank.places([s.image for s in bench.sources])
    return DenseHead(places, [None if s.mask is None else coverage(s.mask) for s in bench.sources])


def _augment(bench: Workbench, name: str, options: TrialOptions) -> None:
    """Augmented copies of every real image of a class, made once: a cell uses those of its own training images."""
    own = np.flatnonzero(bench.positive[name]).tolist()
    for candidate in CANDIDATES:
        pairs = [(row, copy) for row in own for copy in range(COPIES)]
        pictures = [
            augment(bench.sources[row].image, candidate, seeding.derive("augment", options.seed, row, copy, candidate))[
                0
            ]
            for row, copy in pairs
        ]
        rows = bench.bank.add(pictures, cache=False)
        made: dict[int, list[int]] = {}
        for (row, _), place in zip(pairs, rows, strict=True):
            made.setdefault(row, []).append(int(place))
        bench.augmented[(name, candidate)] = made


def _augmented(
    bench: Workbench, name: str, train: Any, options: TrialOptions, draw: int, fold: int
) -> dict[str, Extra]:
    extras = {}
    for candidate in CANDIDATES:
        made = bench.augmented[(name, candidate)]
        pool = [(place, bench.groups[row]) for row in train.tolist() if row in made for place in made[row]]
        order = seeding.rng(seeding.derive("augmented", options.seed, draw, fold), candidate).permutation(len(pool))[
            : options.synthetic
        ]
        extras[f"augment/{candidate}"] = Extra(
            np.array([pool[i][0] for i in order], dtype=np.int64), [frozenset({pool[i][1]}) for i in order]
        )
    return extras
