"""The front door for tables: from a file with a rare class to a verdict, a generator and a balanced file.

schema -> half of the rows fit a generator, the other half judges it (fidelity, diversity, utility, privacy)
       -> for each draw and fold: fit on the training rows, sample the rare class -> arms -> verdict
       -> one generator on all rows, a balanced file -> report
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
from visynth.tabular.balance import check_unmarked, oversample
from visynth.tabular.base import LEAST_ROWS, Synthesizer
from visynth.tabular.columns import Category, Kind
from visynth.tabular.evaluate import LEAD, Triad, add_sections, triad
from visynth.tabular.fitted import row_hashes
from visynth.tabular.frames import ENDINGS, check_frame, parquet_bytes, read_table, to_pandas
from visynth.tabular.inference import infer
from visynth.tabular.schema import Schema
from visynth.tabular.utility import rare_class
from visynth.verdict.rule import CANNOT_TELL, HELPS, Design
from visynth.verdict.summary import arms_block, class_verdict, summarise

PARTS = ("generator*",)
PILOT = 40  # steps that tell how long a step takes
CELL_STEPS, MAIN_STEPS = (150, 1500), (300, 3000)  # least and most steps of a fit
FEWEST_DRAWS = 3
OVERHEAD = 0.35  # of the budget that goes to measuring
BLOCK_ROWS = 50_000  # of the two halves, above which they are a sample


@dataclass(frozen=True)
class TableTrial:
    """Options of a trial of a table, checked.

    Attributes:
        synthesizer: registered name.
        arguments: of the synthesizer; ``steps`` among them fixes the length of every fit.
        draws: repetitions with other folds.
        folds: test parts of each draw.
        minutes: budget; steps, and then draws, are planned for it.
        seed: of everything.
        kinds: of columns where the data mislead.
        drop: columns that are left out.
        groups: column of what belongs together (customer, machine, patient); it is not modelled.
        write: ``"balanced"`` always writes the balanced file, ``"safe"`` only where no harm or uselessness was shown.

    Raises:
        UsageError: values that cannot be, all listed together.
    """

    synthesizer: str = "masked"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 5
    folds: int = 3
    minutes: float = 10.0
    seed: int = 0
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    drop: Sequence[str] = ()
    groups: str | None = None
    write: Literal["safe", "balanced"] = "safe"

    def __post_init__(self) -> None:
        problems = []
        if self.synthesizer not in plugins.names("synthesizers"):
            problems.append(
                f"synthesizer must be one of {choices(plugins.names('synthesizers'))}, but got {self.synthesizer!r}"
            )
        for name, least in (("draws", 1), ("folds", 2)):
            if getattr(self, name) < least:
                problems.append(f"{name} must be at least {least}, but got {getattr(self, name)}")
        if self.minutes <= 0:
            problems.append(f"minutes must be above 0, but got {self.minutes}")
        if self.write not in ("safe", "balanced"):
            problems.append(f"write must be 'safe' or 'balanced', but got {self.write!r}")
        raise_all("the options", problems, UsageError)


def run_trial(
    data: str | Path | Any,
    target: str,
    out: str | Path,
    *,
    rare: Sequence[str] = (),
    options: TableTrial | None = None,
    subject: str = "",
    progress: Progress = no_progress,
) -> Report:
    """Run a trial and write ``generator/``, the balanced file, ``report.json`` and ``report.html`` under ``out``.

    Args:
        data: a CSV or Parquet file, or a frame; give the training part only.
        target: the class column.
        rare: values of it that matter; by default the rarest.
        out: folder for the results; those of an older trial are replaced.
        options: budget and more.
        subject: what the report is headed with; by default the file's name.
        progress: receives lines.

    Returns:
        the report, as written.

    Raises:
        DataError: the table cannot be modelled, or a class has too few rows.
        UsageError: unknown columns or values.
        OutputError: ``out`` holds something that visynth did not write.
    """
    options, started = options or TableTrial(), time.monotonic()
    ending = ".parquet"
    if isinstance(data, (str, Path)):
        subject, ending = subject or Path(data).stem, Path(data).suffix.lower()
    frame = read_table(data) if isinstance(data, (str, Path)) else data
    frame, groups = _columns(to_pandas(frame)[0], target, options)
    out = claim(out, PARTS)
    schema = infer(frame, options.kinds, target)
    labels = _rare_labels(frame, schema, target, rare)
    for note in schema.notes:
        progress(f"  {note}")
    plan = _plan(frame, schema, target, len(labels), options, progress)
    report = Report("tabular trial", subject or "the table", lead=LEAD)
    stage = Stage(work_folder(out), _inputs(frame, schema, target, options, plan))

    progress(f"half of the rows fit {options.synthesizer} ({plan.main_steps} steps), the other half judges it")
    generator, halves, measured = _judged(frame, schema, target, groups, plan, options, progress)
    progress(f"rare class: {plan.draws} draws of {options.folds} folds, {plan.cell_steps} steps a fit")
    found = {}
    for label in labels:
        found[label] = rare_class(
            frame, schema, target, label, plan.maker(plan.cell_steps), draws=plan.draws, folds=options.folds,
            groups=groups, seed=options.seed, stage=stage, progress=progress,
        )  # fmt: skip
    for label, summary in summarise(found, design=Design(draws=options.draws), seed=options.seed).items():
        report.verdicts.append(class_verdict(found[label], summary))
        report.section(f"Is it worth it? {target} = {label}", *arms_block(found[label], summary, "boosted trees"))
    add_sections(report, measured, generator, *halves, seed=options.seed)
    report.conditions |= _conditions(frame, schema, target, labels, plan, options, measured)
    report.write(out)  # the verdicts are safe before anything more is made

    final = plan.maker(plan.main_steps)(options.seed).fit(frame, schema=schema, target=target, progress=progress)
    final.save(out / "generator")
    report.conditions["generator"] = final.digest  # which an audit must be of, to decide with the verdicts
    _write_balanced(out, ending, frame, final, target, labels, report, options, progress)
    report.conditions["seconds"] = round(time.monotonic() - started)
    report.write(out)
    stage.clear()
    progress(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


def _columns(frame: Any, target: str, options: TableTrial) -> tuple[Any, list[str] | None]:
    """The frame without what is left out, and the groups of its rows."""
    check_frame(frame, least=LEAST_ROWS)
    named = [*options.drop, *([options.groups] if options.groups else []), target]
    unknown = [name for name in named if name not in frame.columns]
    if unknown:
        raise UsageError(f"there are no columns {choices(unknown)}; the columns are {choices(frame.columns)}.")
    check_unmarked([name for name in frame.columns if name not in options.drop])
    if target in options.drop or target == options.groups:
        raise UsageError(f"target {target!r} cannot be dropped, nor be the groups.")
    groups = None if options.groups is None else frame[options.groups].astype(str).tolist()
    return frame.drop(columns=[name for name in named if name != target]), groups


def _rare_labels(frame: Any, schema: Schema, target: str, rare: Sequence[str]) -> list[str]:
    column = schema[target]
    if not isinstance(column, Category):
        raise UsageError(
            f"target {target!r} is {column.kind}, and a trial needs a class column; declare it with kinds."
        )
    names = list(map(str, column.categories))
    codes = schema.table(frame)[target]
    if (codes < 0).any():
        raise DataError(f"target {target!r} has {int((codes < 0).sum())} missing values: leave these rows out.")
    if len(names) < 2:
        raise DataError(f"target {target!r} has one value only: there is no rare class.")
    unknown = [value for value in rare if value not in names]
    if unknown:
        raise UsageError(f"column {target!r} has no value {choices(unknown)}; it has {choices(names)}.")
    return list(rare) or [names[int(np.argmin(np.bincount(codes, minlength=len(names))))]]


@dataclass(frozen=True)
class Plan:
    """Fits that the minutes allow."""

    synthesizer: str
    arguments: Mapping[str, Any]
    draws: int
    cell_steps: int
    main_steps: int
    note: str = ""

    def maker(self, steps: int) -> Any:
        """Fresh generators, from a seed."""
        kind = plugins.load("synthesizers", self.synthesizer)
        own = {"steps": steps, **self.arguments} if steps else dict(self.arguments)
        return lambda seed: kind(**{**own, "seed": seed})


def _plan(frame: Any, schema: Schema, target: str, classes: int, options: TableTrial, progress: Progress) -> Plan:
    kind = plugins.load("synthesizers", options.synthesizer)
    plugins.check_arguments(kind, options.arguments)
    trained = hasattr(kind, "training_step")
    if not trained or "steps" in options.arguments:
        steps = int(options.arguments.get("steps", 0))
        return Plan(options.synthesizer, options.arguments, options.draws, steps, steps)
    progress("pilot: how long a step takes")
    seconds = _step_seconds(frame, schema, target, kind, options)
    budget = 60 * options.minutes * (1 - OVERHEAD)
    draws = options.draws
    while True:
        fits = 2 * draws * options.folds * classes
        affordable = int(budget * 0.6 / fits / seconds)
        if affordable >= CELL_STEPS[0] or draws <= FEWEST_DRAWS:
            break
        draws -= 1
    cell = int(np.clip(affordable, *CELL_STEPS))
    main = int(np.clip(budget * 0.4 / 2 / seconds, *MAIN_STEPS))
    note = (
        ""
        if draws == options.draws
        else f"{draws} draws instead of {options.draws}: more did not fit into {options.minutes:g} minutes"
    )
    return Plan(options.synthesizer, options.arguments, draws, cell, main, note)


def _step_seconds(frame: Any, schema: Schema, target: str, kind: Any, options: TableTrial) -> float:
    times = []
    for steps in (1, 1, PILOT):  # the first one warms up
        begun = time.monotonic()
        kind(**{**options.arguments, "steps": steps}).fit(frame, schema=schema, target=target, members="none")
        times.append(time.monotonic() - begun)
    return max((times[2] - times[1]) / (PILOT - 1), 1e-4)


def _judged(
    frame: Any,
    schema: Schema,
    target: str,
    groups: list[str] | None,
    plan: Plan,
    options: TableTrial,
    progress: Progress,
) -> tuple[Synthesizer, tuple[Any, Any], Triad]:
    first, second = halves(len(frame), groups, options.seed)
    train, holdout = (frame.iloc[rows].reset_index(drop=True) for rows in (first, second))
    generator = plan.maker(plan.main_steps)(options.seed).fit(train, schema=schema, target=target, progress=progress)
    return generator, (train, holdout), triad(generator, train, holdout, seed=options.seed, progress=progress)


def halves(count: int, groups: Sequence[str] | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Rows of two parts of equal size; rows of one group are in one part.

    Example:
        >>> first, second = halves(9)
        >>> len(first), len(second)
        (4, 4)
    """
    generator = seeding.rng(seed, "tabular/halves")
    if groups is None:
        order = generator.permutation(count)
    else:
        names = sorted(set(groups))
        place = {name: rank for rank, name in zip(generator.permutation(len(names)), names, strict=True)}
        order = np.argsort([place[name] for name in groups], kind="stable")
    half = min(count // 2, BLOCK_ROWS)
    first, second = order[:half], order[-half:]
    if groups is not None:
        inside = {groups[row] for row in first}
        second = np.array([row for row in second if groups[row] not in inside])
        first = first[: len(second)]
    return np.sort(first), np.sort(second)


def _inputs(frame: Any, schema: Schema, target: str, options: TableTrial, plan: Plan) -> dict[str, Any]:
    own = {name: value for name, value in asdict(options).items() if name not in ("minutes", "write")}
    return {
        "rows": hash_json(row_hashes(schema, schema.table(frame))), "schema": schema.to_json(), "target": target, "options": own,
        "steps": plan.cell_steps, "draws": plan.draws, "versions": environment(),
    }  # fmt: skip


def _write_balanced(
    out: Path, ending: str, frame: Any, generator: Synthesizer, target: str, labels: Sequence[str], report: Report,
    options: TableTrial, progress: Progress,
) -> None:  # fmt: skip
    """The real rows and synthetic ones of the rare classes, told apart by a column "synthetic"."""
    answers = {v.label: v.answer for v in report.verdicts}
    safe = [n for n in labels if answers[n] in (HELPS, CANNOT_TELL)] if options.write == "safe" else list(labels)
    if not safe:
        words = f"No balanced file: for {choices(labels)} it was shown that synthesis does not help. --write balanced writes it anyway."
        report.section("The balanced file", text(words))
        progress(words)
        return
    balanced = oversample(
        frame, target=target, balance="not majority", only=safe, generator=generator, seed=options.seed
    )
    made = {n: int(((balanced[target].astype(str) == n) & balanced["synthetic"]).sum()) for n in safe}
    name = f"balanced{ending if ending in ENDINGS else '.parquet'}"
    data = parquet_bytes(balanced) if name.endswith(".parquet") else balanced.to_csv(index=False).encode()
    put_files(out, {name: data})
    answers_of = ", ".join(f"{n}: {answers[n]}" for n in safe)
    words = (
        f"{name} holds the {len(frame)} real rows and {sum(made.values())} synthetic ones ({made}), marked in the column 'synthetic'. "
        f"The verdict on them: {answers_of}."
    )
    report.section("The balanced file", text(words))
    progress(words)


def _conditions(
    frame: Any, schema: Schema, target: str, labels: Sequence[str], plan: Plan, options: TableTrial, measured: Triad
) -> dict[str, Any]:
    counts = frame[target].astype(str).value_counts().to_dict()
    return {
        "rows": len(frame),
        "columns": len(schema.columns),
        "classes": ", ".join(f"{name} {count}" for name, count in counts.items()),
        "rare": ", ".join(labels),
        "synthesizer": options.synthesizer,
        "steps": f"{plan.main_steps} of the judged and the final generator, {plan.cell_steps} in each cell",
        "draws and folds": f"{plan.draws} and {options.folds}" + (f" ({plan.note})" if plan.note else ""),
        "groups": options.groups or "none: every row by itself",
        "seed": options.seed,
        "figures": measured.to_json(),
        **environment(),
    }
