"""From series with a rare class to a verdict, a measured generator and a balanced file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visynth.core import plugins
from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, choices, raise_all
from visynth.core.files import hash_json
from visynth.core.folders import claim, put_files, work_folder
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report, environment, text
from visynth.core.stage import Stage
from visynth.tabular.balance import check_unmarked
from visynth.tabular.frames import pandas, to_pandas
from visynth.tabular.shares import chosen_shares
from visynth.tabular.timeseries.base import SeriesGenerator
from visynth.tabular.timeseries.evaluate import measure_series
from visynth.tabular.timeseries.report import series_sections
from visynth.tabular.timeseries.series import Series
from visynth.tabular.timeseries.utility import PARTS, SeriesCells, rare_series, too_few
from visynth.verdict.rule import CANNOT_TELL, HELPS, Design
from visynth.verdict.summary import arms_block, class_verdict, summarise

LEAD = (
    "One answer per class, measured on real series of entities that no fit saw. Only a shown benefit is a yes. Below: how near "
    "the synthetic series come to real ones, what they are worth, and what they give away."
)
LEARNER = "random convolutional kernels and a logistic regression"
PARTS_OF_OUT = ("generator", "balanced.csv", "report.json", "report.html")
TIMED = 12  # steps by which a step is timed
LEAST_STEPS, MOST_STEPS = 200, 4000
FIT_SHARE = 0.8  # of the minutes


@dataclass(frozen=True)
class SeriesTrial:
    """Options of a trial.

    Attributes:
        model: registered name of the generator.
        arguments: of it; ``steps`` among them fixes the length of every fit.
        minutes: for which the steps of the fits are planned.
        cells: draws, folds and series of a cell.
        write: ``"balanced"`` always writes the balanced file, ``"safe"`` only where no harm or uselessness was shown.

    Raises:
        UsageError: values that cannot be, all listed together.
    """

    model: str = "ar"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    minutes: float = 10.0
    cells: SeriesCells = field(default_factory=SeriesCells)
    write: Literal["safe", "balanced"] = "safe"

    def __post_init__(self) -> None:
        problems = []
        if self.model not in plugins.names("series"):
            problems.append(f"model must be one of {choices(plugins.names('series'))}, but got {self.model!r}")
        if not self.minutes > 0:
            problems.append(f"minutes must be above 0, but got {self.minutes}")
        raise_all("the options", problems, UsageError)


def run_series_trial(
    series: Series,
    out: str | Path,
    *,
    rare: Sequence[str] = (),
    options: SeriesTrial | None = None,
    subject: str = "the series",
    progress: Progress = no_progress,
) -> Report:
    """Run a trial and write ``generator/``, ``balanced.csv``, ``report.json`` and ``report.html``. Killed, the same call goes on.

    Args:
        series: real ones with a class; give the training part only.
        out: folder for the results; those of an older trial are replaced.
        rare: classes that matter; by default the rarest.
        options: budget and more.
        subject: what the report is headed with.
        progress: receives lines.

    Returns:
        the report, as written.

    Raises:
        DataError: no class, or too few series.
        UsageError: unknown classes.
        OutputError: ``out`` holds something that visynth did not write.
    """
    options, started = options or SeriesTrial(), time.monotonic()
    if series.schema.target is None:
        raise UsageError("a trial needs a class for each series: name the column (target=) or the array of labels.")
    labels = Counter(series.labels())
    unknown = [name for name in rare if name not in labels]
    if unknown:
        raise UsageError(f"no series has the class {choices(unknown)}; the classes are {choices(sorted(labels))}.")
    names = list(rare) or [min(sorted(labels), key=lambda name: labels[name])]
    check_unmarked(series.frame().columns)
    raise_all("the series", too_few(series, names, options.cells))
    first, second = halves(series, options.cells.seed)
    out = claim(out, PARTS_OF_OUT)
    for note in series.schema.notes:
        progress(f"  {note}")
    inputs = {
        "series": hash_json([series.hashes(), series.labels(), list(series.group_names)]), "schema": series.schema.to_json(),
        "options": {k: v for k, v in asdict(options).items() if k != "write"},
        "versions": environment(),
    }  # fmt: skip
    stage = Stage(work_folder(out), inputs)
    make, steps = planned(series, len(names), options, stage, progress)
    cells = options.cells
    found = {name: rare_series(series, name, make, cells, stage=stage, progress=progress) for name in names}
    report = Report("series trial", subject, lead=LEAD)
    for label, summary in summarise(found, design=Design(draws=cells.draws), seed=cells.seed).items():
        report.verdicts.append(class_verdict(found[label], summary))
        shares = ", ".join(f"{share}: {count}" for share, count in chosen_shares(found[label]).items())
        chosen = text(
            f"Share of the class's weight that synthetic series got on inner parts, by number of cells: {shares}."
        )
        report.section(
            f"Is it worth it? {series.schema.target} = {label}", *arms_block(found[label], summary, LEARNER), chosen
        )
    progress(f"half of the entities fit {options.model}, the other half judges it")
    generator = make(cells.seed).fit(series.take(first))
    sides = series.take(first), series.take(second)
    figures = measure_series(generator, *sides, seed=cells.seed, progress=progress)
    series_sections(report, figures, generator, *sides, seed=cells.seed)
    report.conditions |= {
        "series": len(series), "rows": int(series.lengths.sum()), "entities": len(set(series.group_names)),
        "classes": ", ".join(f"{name} {count}" for name, count in sorted(labels.items())), "model": options.model,
        "steps of a fit": steps, **{f"cells: {name}": value for name, value in asdict(cells).items()},
        "figures": {name: own.to_json() for name, own in figures.items()}, **environment(),
    }  # fmt: skip
    report.write(out)  # the verdicts are safe before anything more is made
    final = make(cells.seed).fit(series)
    final.save(out / "generator")
    _write_balanced(out, series, final, names, report, options, progress)
    report.conditions["seconds"] = round(time.monotonic() - started)
    report.write(out)
    stage.clear()
    progress(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


def planned(
    series: Series, classes: int, options: SeriesTrial, stage: Stage, progress: Progress
) -> tuple[Callable[[int], SeriesGenerator], int | None]:
    """A maker of generators, and the steps of each fit, so that all fits take most of the minutes.

    A step's time is measured once: a trial that goes on keeps its plan, and with it its cells.
    """
    kind = plugins.load("series", options.model)
    plugins.check_arguments(kind, options.arguments)
    arguments = dict(options.arguments)
    if not hasattr(kind, "training_step"):
        return lambda seed: kind(**arguments), None
    steps = arguments.pop("steps", None) or stage.get(plan="steps")
    if steps is None:
        begun = time.monotonic()
        kind(steps=TIMED, **arguments).fit(series, members="none")
        each = (time.monotonic() - begun) / TIMED
        fits = classes * options.cells.draws * options.cells.folds * (1 + PARTS) + 2
        steps = int(np.clip(60 * FIT_SHARE * options.minutes / fits / each, LEAST_STEPS, MOST_STEPS))
        minutes = fits * steps * each / 60
        note = "more than asked for: less would be no training" if minutes > options.minutes else "planned"
        stage.put(steps, plan="steps")
        progress(f"  {fits} fits of {steps} steps, about {minutes:.0f} minutes ({note})")
    return lambda seed: kind(**{"seed": seed, **arguments, "steps": steps}), int(steps)


def halves(series: Series, seed: int = 0) -> tuple[Any, Any]:
    """Numbers of the series of two halves; entities of one group are in one half, and every class is in both if it can be.

    Raises:
        DataError: there is one group alone.
    """
    label_of: dict[str, str] = {}
    for group, label in zip(series.group_names, series.labels(), strict=True):
        label_of.setdefault(group, label)
    if len(label_of) < 2:
        raise DataError("all series are of one entity: nothing can be held out.")
    first: set[str] = set()
    odd = 0
    for label in sorted(set(label_of.values())):
        own = sorted(group for group, its in label_of.items() if its == label)
        order = seeding.rng(seed, f"series/halves/{label}").permutation(len(own))
        take = (len(own) + odd) // 2
        odd = (odd + len(own)) % 2
        first |= {own[k] for k in order[:take]}
    inside = np.array([group in first for group in series.group_names])
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def _write_balanced(
    out: Path, series: Series, generator: SeriesGenerator, labels: Sequence[str], report: Report, options: SeriesTrial,
    progress: Progress,
) -> None:  # fmt: skip
    """The real series and synthetic ones of the rare classes, told apart by a column "synthetic"."""
    answers = {v.label: v.answer for v in report.verdicts}
    safe = [n for n in labels if answers[n] in (HELPS, CANNOT_TELL)] if options.write == "safe" else list(labels)
    if not safe:
        words = f"No balanced file: for {choices(labels)} it was shown that synthesis does not help. --write balanced writes it anyway."
        report.section("The balanced file", text(words))
        progress(words)
        return
    counts = Counter(series.labels())
    most = max(counts.values())
    made = {name: min(most - counts[name], 10 * counts[name]) for name in safe if counts[name] < most}
    drawn = generator.sample_classes(made, seed=seeding.derive("series/balanced", options.cells.seed)) if made else None
    frames = [to_pandas(series.frame())[0].assign(synthetic=False)]
    frames += [] if drawn is None else [to_pandas(drawn.frame())[0].assign(synthetic=True)]
    put_files(out, {"balanced.csv": pandas().concat(frames, ignore_index=True).to_csv(index=False).encode()})
    answers_of = ", ".join(f"{n}: {answers[n]}" for n in safe)
    none = "" if made else " The classes that matter have as many series as the largest one: none were drawn."
    words = (
        f"balanced.csv holds the {len(series)} real series and {sum(made.values())} synthetic ones ({made}), marked in the column "
        f"'synthetic'. The verdict on them: {answers_of}.{none}"
    )
    report.section("The balanced file", text(words))
    progress(words)
