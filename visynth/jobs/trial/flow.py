"""The front door: from a folder with a rare class to a verdict per class. It calls the stages and sums up.

    preflight -> for each draw and fold: fit on the training groups, sample, features -> arms -> verdicts
              -> one generator on all training images, rendered -> report

What a trial holds constant: test groups are never trained on, composed from or chosen on; every arm has the same real
images, the same total weight and makes its own choices on inner folds; the test is looked at once, by all arms.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, UsageError, VisynthError
from visynth.core.folders import check_apart, claim, new_folder
from visynth.core.report import ClassVerdict, Report, bullets, environment, table, text
from visynth.data.imageset import ImageSet
from visynth.data.masks import judge
from visynth.data.transforms import CANDIDATES, backend
from visynth.generators.base import Generator
from visynth.generators.compose_fit import Fitted, fit_composition
from visynth.jobs.make import sources_of
from visynth.jobs.preflight import MIN_GROUPS, Preflight, preflight, write_groups
from visynth.jobs.trial.bench import (
    KEPT_PER_GROUP,
    Layout,
    Say,
    TrialOptions,
    Workbench,
    bare_cell,
    headroom,
    make_cells,
    make_dense_head,
    make_layout,
    make_workbench,
)
from visynth.jobs.trial.outputs import galleries
from visynth.jobs.trial.synthesis import Studio, learned_cells, open_studio
from visynth.metrics.dense import DenseHead
from visynth.render.run import make_plan, render_set
from visynth.verdict.cells import Cell
from visynth.verdict.comparison import (
    Results,
    add_dense,
    add_rival,
    arms_block,
    class_verdict,
    macro_f1_table,
    run_cells,
    summarise,
)

PARTS = ("generator*", "renders*")  # folders that a trial writes beside its report


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
        out: folder for the results; those of an older trial are replaced.
        options: draws, folds, budget and more.
        good: the defect-free class; guessed when None.
        grouped: whether the images' groups were given by the user.
        subject: what the report is headed with.
        render: synthetic images per composed class in ``renders/``.
        say: receives progress lines.

    Returns:
        the report, as written.

    Raises:
        OutputError: ``out`` holds something that visynth did not write, or lies among the data.
        DataError, UsageError: what :func:`visynth.jobs.preflight.preflight` and the composition raise.
    """
    options = options or TrialOptions()
    started = time.monotonic()
    check_apart(out, images.folders())
    out = claim(out, PARTS)
    say("preflight: files, groups, near-duplicates")
    flight = preflight(images, rare, good=good, grouped=grouped)
    bench = make_workbench(flight, options, say)
    flight.seconds = time.monotonic() - started
    for line in [*flight.leak_lines(), f"defect-free class: {flight.good or 'none; name it with --good'}"]:
        say(f"  {line}")

    scarcity = f", with {options.rare_groups} training groups of {', '.join(rare)}" if options.rare_groups else ""
    report = Report("trial", (subject or images.root.name) + scarcity)
    composable = [name for name in flight.images.classes if flight.suits[name].startswith("composition")]
    asked = [name for name in rare if name in composable]
    groups = flight.images.groups()
    others = [n for n in composable if n not in rare and groups[n] >= MIN_GROUPS] if options.others else []
    results, notes, headroom, studio = _measure(flight, bench, asked, others, options, started, say)
    flight.warnings.append(headroom)
    report.section("Preflight", *flight.blocks(), text(f"Preflight took {flight.seconds:.0f} s."))
    _sum_up(report, flight, bench, results, notes, options)

    # The verdicts are safe before anything more is made; what an older trial left goes with it.
    with new_folder(out, parts=PARTS) as folder:
        write_groups(folder, flight)
        report.write(folder)
    try:
        _write_outputs(report, flight, bench, composable, studio, out, render, options, say)
    except (DataError, UsageError) as error:
        report.section("Not written", text(f"The generator and its renders could not be made: {error}"))
        say(f"generator/ and renders/ could not be made: {error}")
    report.conditions |= _conditions(flight, bench, options, time.monotonic() - started)
    report.write(out)
    say(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


# -- stages ----------------------------------------------------------------------------------------------------------


def _measure(
    flight: Preflight,
    bench: Workbench,
    asked: Sequence[str],
    others: Sequence[str],
    options: TrialOptions,
    started: float,
    say: Say,
) -> tuple[dict[str, Results], list[str], str, Studio | None]:
    """Results per class: first those asked for, then the others while time is left, then those of a learned generator."""
    layout = make_layout(flight, bench, options)
    notes: list[str] = []
    results: dict[str, Results] = {}
    room = headroom(flight, bench, layout, options, say)
    deadline = started + 60 * options.minutes
    costs: list[float] = []
    head: DenseHead | None = None
    kept: dict[str, list[Cell]] = {}
    for name in [*asked, *others]:
        begun = time.monotonic()
        if costs and begun + 1.3 * costs[-1] > deadline:  # a class is measured whole or not at all
            notes.append(f"{name} was not measured: the {options.minutes:g} minutes were used up (raise --minutes)")
            continue
        say(f"{name}: {len(layout)} cells, {options.synthetic} synthetic images each")
        cells = make_cells(flight, bench, name, layout, options, deadline, say)
        if len(cells) < len(layout):
            notes.append(
                f"{name}: {len(cells)} of {len(layout)} cells were run; the others did not fit into the {options.minutes:g} "
                "minutes, or had no image of the class or no reliable mask on one side"
            )
        if not cells:
            continue
        kept[name] = cells
        results[name] = run_cells(
            name, cells, bench.bank.tables(), learner=options.learner, workers=options.workers, seed=options.seed
        )
        results[name].synthesizer = "composition"
        if options.dense and flight.masked.get(name):
            head = head or make_dense_head(bench, say)
            try:
                add_dense(results[name], cells, head, options.seed)
            except DataError as error:  # a rival the less, not a trial the less
                notes.append(f"{name}: no dense head: {error}")
        costs.append(time.monotonic() - begun)
    budget = deadline - time.monotonic()
    studio, why = open_studio(
        flight, bench, options.learned, options.learn_size, len(layout), budget, options.seed, say
    )
    notes += [why] if why else []
    if studio is not None:
        _measure_learned(flight, bench, studio, layout, kept, results, notes, options, deadline, say)
    # The classes without synthesis, for the macro-F1 of the whole decision.
    for name in flight.images.classes:
        if name not in results and results:
            longest = max(results.values(), key=lambda r: len(r.rows))
            cells = [
                bare_cell(bench, name, train, test, draw, fold)
                for (draw, fold, train, _, test) in layout[: len(longest.rows)]
            ]
            cells = [c for c in cells if c.positive[c.train].any() and c.test_truth().any()]
            if len(cells) == len(longest.rows):
                results[name] = run_cells(
                    name,
                    cells,
                    bench.bank.tables(),
                    learner=options.learner,
                    workers=options.workers,
                    seed=options.seed,
                )
    return results, notes, room, studio


def _measure_learned(
    flight: Preflight,
    bench: Workbench,
    studio: Studio,
    layout: Layout,
    kept: Mapping[str, list[Cell]],
    results: dict[str, Results],
    notes: list[str],
    options: TrialOptions,
    deadline: float,
    say: Say,
) -> None:
    """The learned generator: beside composition on the same cells where there is one, else as the synthesis of the class."""
    engine: dict[str, Any] = {"learner": options.learner, "workers": options.workers, "seed": options.seed}
    for name in [n for n in flight.rare if n in studio.classes]:
        if name in kept:
            try:
                made, seconds = learned_cells(studio, bench, name, kept[name], options.synthetic, options.seed)
            except VisynthError as error:  # what composition measured must not be lost with it
                notes.append(f"{name}: {studio.name} could not be measured: {str(error).splitlines()[0]}")
                say(f"  {notes[-1]}")
                continue
            say(f"  {name}: {studio.name} took {seconds:.0f} s, training included")
            add_rival(results[name], made, bench.bank.tables(), studio.name, **engine)
            continue
        cells = make_cells(flight, bench, name, layout, options, deadline, say, studio)
        if cells:
            results[name] = run_cells(name, cells, bench.bank.tables(), **engine)
            results[name].synthesizer = studio.name


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
    sources = sources_of(images, {*composable, str(flight.good)})
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
    composable: Sequence[str],
    studio: Studio | None,
    out: Path,
    count: int,
    options: TrialOptions,
    say: Say,
) -> None:
    """A generator for every synthesizer that helps a class, or the composition to look at; rendered is what helps.

    The first goes to ``generator/`` and ``renders/``; should two synthesizers help, the second goes to folders with its name.
    """
    helped: dict[str, list[str]] = {}
    for verdict in report.verdicts:
        if verdict.answer == "helps":
            helped.setdefault(verdict.numbers["synthesizer"], []).append(verdict.label)
    kinds = list(helped) or (["composition"] if composable else [])
    if not kinds:
        report.section("Not written", text("No class was shown to help, so no generator was made."))
    for number, kind in enumerate(kinds):
        ending = "" if number == 0 else f"-{kind}"
        fitted = None
        if kind == "composition":
            fitted = _final_generator(flight, composable)
            generator: Generator = fitted.generator
        else:
            assert studio is not None
            generator = _final_learned(flight, studio, say)
        generator.save(out / f"generator{ending}")
        chosen = [name for name in helped.get(kind, flight.rare) if name in generator.classes]
        if chosen:
            control = [str(flight.good)] if kind != "diffusion" and flight.good in generator.classes else []
            say(f"rendering {count} images of each of {', '.join(chosen)}")
            purpose = "training" if helped else "looking"
            plan = make_plan(generator, per_class=count, classes=chosen + control, seed=options.seed, purpose=purpose)
            render_set(generator, plan, out / f"renders{ending}", workers=0)
            use = (
                "It holds only classes that help, and defect-free controls: it can be mixed into a training as it is."
                if helped
                else "No class was shown to help, so it is for looking at, and WithSynthetic refuses it."
            )
            names = ", ".join(chosen + control)
            report.section(
                "What was written", text(f"renders{ending}/ has {count} images each of {names}, by {kind}. {use}")
            )
        report.section(
            f"Made by {kind}, with parents and the nearest real images", *galleries(generator, bench, options.seed)
        )
        if fitted is not None and (fitted.left_out or fitted.bad_masks):
            rows = [["class", name, why] for name, why in fitted.left_out.items()]
            rows += [["mask", name, why] for name, why in sorted(fitted.bad_masks.items())[:20]]
            note = f"{len(fitted.bad_masks)} masks in all."
            report.section("Left out of composition", table(["what", "name", "why"], rows, note))


def _final_learned(flight: Preflight, studio: Studio, say: Say) -> Generator:
    """The learned generator on every training image, for as long as each of the cells' was trained."""
    images = flight.images
    train = images.select(lambda item: item.split in ("", "train"))
    say(f"training the final {studio.name} generator for {studio.minutes:.1f} min on {len(train)} images")
    generator = studio.train(sources_of(images), studio.seed)
    generator.members = tuple(images.members(lambda item: item.split or "train"))
    generator.card |= {"task": studio.name, "training images": len(train), "made by": "visynth trial"}
    return generator


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
