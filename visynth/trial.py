"""The front door: from a folder with a rare class to a verdict per class. It calls the stages and sums up.

    preflight -> for each draw and fold: fit on the training groups, sample, features -> arms -> verdicts
              -> one generator on all training images, rendered -> report

What a trial holds constant: test groups are never trained on, composed from or chosen on; every arm has the same real
images, the same total weight and makes its own choices on inner folds; the test is looked at once, by all arms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visynth import plugins
from visynth import seeds as seeding
from visynth.comparison import Results, add_dense, arms_block, class_verdict, macro_f1_table, run_cells, summarise
from visynth.compose.fit import Fitted, Source, fit_composition
from visynth.data.items import ImageSet, Item
from visynth.data.masks import judge, load_mask
from visynth.data.splits import group_folds, pick_groups
from visynth.data.transforms import CANDIDATES, augment, backend
from visynth.files import ensure_writable
from visynth.metrics.arms import Cell, Extra
from visynth.metrics.dense import DenseHead, coverage
from visynth.metrics.features import FeatureBank, cache_folder, extractor
from visynth.preflight import Preflight, headroom_note, preflight, write_groups
from visynth.report import ClassVerdict, Report, bullets, environment, table, text

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
    """

    rare_groups: int | None = None
    draws: int = 5
    folds: int = 3
    synthetic: int = 60
    minutes: float = 10.0
    seed: int = 0
    workers: int = 2
    learner: str = "frozen"
    others: bool = True
    dense: bool = True
    cache: bool = True


@dataclass
class Workbench:
    """Decoded images, masks and features of the set that a trial works on."""

    images: ImageSet
    items: list[Item]
    sources: list[Source]
    bank: FeatureBank
    positive: dict[str, np.ndarray[Any, np.dtype[np.bool_]]]
    groups: list[str]
    augmented: dict[tuple[str, str], dict[int, list[int]]] = field(default_factory=dict)


def run_trial(
    images: ImageSet,
    rare: Sequence[str],
    out: str | Path,
    *,
    options: TrialOptions | None = None,
    good: str | None = None,
    grouped: bool = False,
    subject: str = "",
    render: int = 60,
    say: Say = lambda words: None,
) -> Report:
    """Run a trial and write ``generator/``, ``renders/``, ``report.json``, ``report.html`` and ``groups.csv`` under ``out``.

    Args:
        images: the set, from :func:`visynth.read_images`; give the training part only.
        rare: classes that matter.
        out: folder for the results.
        options: draws, folds, budget and more.
        good: the defect-free class; guessed when None.
        grouped: whether the images' groups were given by the user.
        subject: what the report is headed with.
        render: synthetic images per composed class in ``renders/``.
        say: receives progress lines.

    Returns:
        the report, as written.

    Raises:
        DataError, UsageError: what :func:`visynth.preflight.preflight` and the composition raise.
    """
    options = options or TrialOptions()
    started = time.monotonic()
    out = ensure_writable(out)
    say("preflight: files, groups, near-duplicates")
    flight = preflight(images, rare, good=good, grouped=grouped)
    write_groups(out / "groups.csv", flight.images)
    bench = _workbench(flight, options, say)
    flight.seconds = time.monotonic() - started
    for line in flight.leak_lines():
        say(f"  {line}")

    scarcity = f", with {options.rare_groups} training groups of {', '.join(rare)}" if options.rare_groups else ""
    report = Report("trial", (subject or images.root.name) + scarcity)
    composable = [name for name in flight.images.classes if flight.suits[name].startswith("composition")]
    asked = [name for name in rare if name in composable]
    others = [name for name in composable if name not in rare] if options.others else []
    results, notes, headroom = _measure(flight, bench, asked, others, options, started, say)
    flight.warnings.append(headroom)
    report.section("Preflight", *flight.blocks(), text(f"Preflight took {flight.seconds:.0f} s."))
    _sum_up(report, flight, bench, results, notes, options)

    if composable:
        fitted = _final_generator(flight, composable)
        _write_outputs(report, flight, bench, fitted, out, render, options, say)
    report.conditions |= _conditions(flight, bench, options, time.monotonic() - started)
    report.write(out)
    say(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


# -- stages ----------------------------------------------------------------------------------------------------------


def _workbench(flight: Preflight, options: TrialOptions, say: Say) -> Workbench:
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


def _measure(
    flight: Preflight,
    bench: Workbench,
    asked: Sequence[str],
    others: Sequence[str],
    options: TrialOptions,
    started: float,
    say: Say,
) -> tuple[dict[str, Results], list[str], str]:
    """Results per class: first those asked for, then the others while time is left."""
    layout = _layout(flight, bench, options)
    notes: list[str] = []
    results: dict[str, Results] = {}
    room = _headroom(flight, bench, layout, options, say)
    deadline = started + 60 * options.minutes
    costs: list[float] = []
    head: DenseHead | None = None
    for name in [*asked, *others]:
        begun = time.monotonic()
        if costs and begun + 1.3 * costs[-1] > deadline:  # a class is measured whole or not at all
            notes.append(f"{name} was not measured: the {options.minutes:g} minutes were used up (raise --minutes)")
            continue
        say(f"{name}: {len(layout)} cells, {options.synthetic} synthetic images each")
        cells = _cells(flight, bench, name, layout, options, deadline, say)
        if len(cells) < len(layout):
            notes.append(f"{name}: {len(cells)} of {len(layout)} cells fitted into the {options.minutes:g} minutes")
        results[name] = run_cells(
            name, cells, bench.bank.tables(), learner=options.learner, workers=options.workers, seed=options.seed
        )
        if options.dense and flight.masked.get(name):
            head = head or _dense_head(bench, say)
            add_dense(results[name], cells, head, options.seed)
        costs.append(time.monotonic() - begun)
    # The classes without synthesis, for the macro-F1 of the whole decision.
    for name in flight.images.classes:
        if name not in results and results:
            longest = max(results.values(), key=lambda r: len(r.rows))
            cells = [
                _bare_cell(bench, name, train, test, draw, fold)
                for (draw, fold, train, _, test) in layout[: len(longest.rows)]
            ]
            cells = [c for c in cells if c.positive[c.train].any()]
            if len(cells) == len(longest.rows):
                results[name] = run_cells(
                    name,
                    cells,
                    bench.bank.tables(),
                    learner=options.learner,
                    workers=options.workers,
                    seed=options.seed,
                )
    return results, notes, room


Layout = list[tuple[int, int, np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def _layout(flight: Preflight, bench: Workbench, options: TrialOptions) -> Layout:
    """(draw, fold, train rows, rows only the oracle adds, test rows), the same for every class."""
    strata = [
        next((name for name in flight.rare if name in i.labels), i.labels[0] if i.labels else "") for i in bench.items
    ]
    splits = [i.split for i in bench.items]
    layout: Layout = []
    for draw in range(options.draws):
        if "test" in splits:
            pairs = [
                (
                    np.array([r for r, s in enumerate(splits) if s != "test"]),
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


def _bare_cell(
    bench: Workbench,
    name: str,
    train: Any,
    test: Any,
    draw: int,
    fold: int,
    more: Any = (),
    extras: Mapping[str, Extra] | None = None,
) -> Cell:
    own = np.array([r for r in more if bench.positive[name][r]], dtype=np.int64)
    return Cell(draw, fold, train, own, test, bench.positive[name], bench.groups, extras or {})


def _headroom(flight: Preflight, bench: Workbench, layout: Layout, options: TrialOptions, say: Say) -> str:
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
                half = pick_groups(names, max(2, len(set(names)) // 2), seeding.derive("half", draw, fold))
                extra = np.array([r for r in own if bench.groups[r] not in half], dtype=np.int64)
                rows = np.array([r for r in train if r not in set(extra.tolist())], dtype=np.int64)
            cell = _bare_cell(bench, name, rows, test, draw, fold, extra)
            if cell.positive[cell.train].any() and len(cell.more):
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


def _cells(
    flight: Preflight, bench: Workbench, name: str, layout: Layout, options: TrialOptions, deadline: float, say: Say
) -> list[Cell]:
    """Synthesise for every draw and fold from its own training side, and gather the rows."""
    _augment(bench, name, options)
    cells: list[Cell] = []
    begun = time.monotonic()
    for number, (draw, fold, train, more, test) in enumerate(layout):
        spent = time.monotonic() - begun
        finished_draws = fold == 0 and number > 0
        if finished_draws and time.monotonic() + 1.5 * spent / number > deadline:
            break
        own = [bench.sources[r] for r in train if bench.sources[r].label in (name, flight.good)]
        fitted = fit_composition(own, good=str(flight.good), classes=[name], judge=judge, card={})
        extras = _synthesise(bench, fitted, options, draw, fold)
        extras |= _augmented(bench, name, train, options, draw, fold)
        cells.append(_bare_cell(bench, name, train, test, draw, fold, more, extras))
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


def _dense_head(bench: Workbench, say: Say) -> DenseHead:
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


# -- outputs ---------------------------------------------------------------------------------------------------------


def _sum_up(
    report: Report,
    flight: Preflight,
    bench: Workbench,
    results: Mapping[str, Results],
    notes: Sequence[str],
    options: TrialOptions,
) -> None:
    measured = {name: r for name, r in results.items() if "synthetic" in r.tested}
    classes = flight.images.classes
    single = [classes.index(i.labels[0]) if len(i.labels) == 1 else -1 for i in bench.items]
    f1 = macro_f1_table(results, single, classes) if -1 not in single else {}  # several labels an image: no argmax
    blocks: list[dict[str, Any]] = []
    for name, own in measured.items():
        summary = summarise(own, seed=options.seed)
        report.verdicts.append(
            class_verdict(own, summary, masks=bool(flight.masked.get(name)), macro_f1=f1.get(name, {}))
        )
        blocks += arms_block(own, summary, options.learner, f1.get(name, {}))
    for name in flight.images.classes:
        if name not in measured and name != flight.good:
            skipped = next((note for note in notes if note.startswith(f"{name} was not")), "")
            why = skipped or (
                flight.suits[name]
                if not flight.suits[name].startswith("composition")
                else "only the named classes were measured"
            )
            report.verdicts.append(
                ClassVerdict(name, "not measured", why, "" if skipped else "train without synthetic images of it")
            )
    if blocks:
        report.section("Arms", *blocks)
    report.section("Notes", bullets(list(notes) or ["every planned cell was run"]))


def _final_generator(flight: Preflight, composable: Sequence[str]) -> Fitted:
    """One generator on every training image, for the user to render from."""
    images = flight.images
    train = images.select(lambda item: item.split in ("", "train"))
    sources = [
        Source(i.name, i.label, i.group, images.image(i), load_mask(images, i))
        for i in train.items
        if len(i.labels) == 1 and i.labels[0] in (*composable, flight.good)
    ]
    members = images.members(lambda item: item.split or "train")
    card = {
        "task": "composition",
        "training images": len(train),
        "licence": "as the images that it was made from",
        "made by": "visynth trial",
    }
    return fit_composition(
        sources, good=str(flight.good), classes=list(composable), judge=judge, members=members, card=card
    )


def _write_outputs(
    report: Report,
    flight: Preflight,
    bench: Workbench,
    fitted: Fitted,
    out: Path,
    count: int,
    options: TrialOptions,
    say: Say,
) -> None:
    """The generator makes every class that can be composed; rendered are those that help, so that mixing is safe."""
    from visynth.render.run import make_plan, render_set
    from visynth.trial_pictures import galleries

    generator = fitted.generator
    generator.save(out / "generator")
    helped = [v.label for v in report.verdicts if v.answer == "helps"]
    chosen = [name for name in helped or flight.rare if name in generator.classes]
    if chosen:
        control = [str(flight.good)] if flight.good in generator.classes else []
        say(f"rendering {count} images of each of {', '.join(chosen)}")
        plan = make_plan(generator, per_class=count, classes=chosen + control, seed=options.seed)
        render_set(generator, plan, _fresh(out / "renders"), workers=0)
        use = (
            "It holds only classes that help, and defect-free controls: it can be mixed into a training as it is."
            if helped
            else "No class was shown to help, so it is for looking at, not for training."
        )
        report.section(
            "What was written", text(f"renders/ has {count} images each of {', '.join(chosen + control)}. {use}")
        )
    report.section("Composites, their parents and the nearest real images", *galleries(generator, bench, options.seed))
    if fitted.left_out or fitted.bad_masks:
        rows = [["class", name, why] for name, why in fitted.left_out.items()]
        rows += [["mask", name, why] for name, why in sorted(fitted.bad_masks.items())[:20]]
        note = f"{len(fitted.bad_masks)} masks in all."
        report.section("Left out of composition", table(["what", "name", "why"], rows, note))


def _fresh(folder: Path) -> Path:
    """A trial run again replaces its own renders: they belong to the generator beside them."""
    import shutil

    for old in (folder, folder.with_name(folder.name + ".work")):
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _conditions(flight: Preflight, bench: Workbench, options: TrialOptions, seconds: float) -> dict[str, Any]:
    import os

    return {
        "images used in the arms": f"{len(bench.items)} of {len(flight.images)} (at most {KEPT_PER_GROUP} per group of the defect-free class)",
        "design": f"{options.draws} draws x {options.folds} folds by group, "
        + (
            f"{options.rare_groups} training groups of each rare class per draw"
            if options.rare_groups
            else "all training groups"
        ),
        "synthetic images per cell": options.synthetic,
        "features": ", ".join(bench.bank.name(r) for r in bench.bank.resolutions),
        "classic augmentation": f"{backend()}: {', '.join(CANDIDATES)}",
        "intervals": "95 % percentile bootstrap over draws and groups, 1000 replicates, paired between arms",
        "seed": options.seed,
        "cores": os.cpu_count() or 0,
        "seconds": round(seconds),
        **environment(),
    }
