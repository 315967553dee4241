"""Series: sensors, events and scans over time."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import Any, Literal

from visynth.commands.options import SeriesOptions
from visynth.commands.printing import printer, verdicts
from visynth.commands.tables import finish_fit, resumable_training
from visynth.core.errors import UsageError


def series_trial(
    series: SeriesOptions,
    out: str,
    rare: list[str] | None = None,
    model: str = "ar",
    arguments: dict[str, Any] | None = None,
    minutes: float = 10.0,
    draws: int = 3,
    folds: int = 2,
    synthetic: int = 40,
    rare_series: int | None = None,
    seed: int = 0,
    write: Literal["safe", "balanced"] = "safe",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Do synthetic series help? From series with a rare class to a verdict, a generator and a balanced file.

    Args:
        series: the real ones.
        out: folder for generator/, balanced.csv, report.json and report.html.
        rare: classes that matter; by default the rarest.
        model: ar, diffusion, vae, bootstrap or independent.
        arguments: of the model, e.g. '{width: 64}'; steps among them fixes the length of every fit.
        minutes: time budget, for which steps are planned.
        draws: repetitions with other folds.
        folds: test parts of each draw.
        synthetic: series of the class to draw in a cell.
        rare_series: pretend that only so many series of the class exist in training.
        seed: of everything.
        write: balanced writes the balanced file in any case, safe not where it was shown not to help.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.tabular.timeseries.trial import SeriesTrial, run_series_trial
    from visynth.tabular.timeseries.utility import SeriesCells

    cells = SeriesCells(draws, folds, synthetic, rare_series, seed)
    options = SeriesTrial(model, arguments or {}, minutes, cells, write)
    subject = Path(series.data).stem
    report = run_series_trial(
        series.read(), out, rare=rare or (), options=options, subject=subject, progress=printer(quiet)
    )
    verdicts(report, json)
    if not json:
        print(f"report: {Path(out) / 'report.html'}")
    return 0


def series_fit(
    series: SeriesOptions,
    out: str,
    model: str = "ar",
    arguments: dict[str, Any] | None = None,
    window: int | None = None,
    members: Literal["series", "none"] = "series",
    trainer: dict[str, Any] | None = None,
    quiet: bool = False,
) -> int:
    """Fit a generator of series. Killed, the same command goes on.

    Args:
        series: the real ones.
        out: the generator folder.
        model: ar (step by step), diffusion (whole windows, fills gaps), vae, bootstrap or independent.
        arguments: of the model, e.g. '{steps: 3000, width: 64}'.
        window: steps that the model sees at once; by default the longest series, at most 256.
        members: series keeps a fingerprint of each series, none keeps none.
        trainer: of Lightning's Trainer, e.g. '{accelerator: gpu, devices: 2, strategy: ddp}'.
        quiet: no progress.
    """
    from dataclasses import asdict

    from visynth.core import plugins
    from visynth.core.distributed import on_main
    from visynth.core.files import hash_file, hash_json
    from visynth.core.folders import claim, work_folder

    claim(out)
    real, generator = series.read(), plugins.make("series", model, arguments)
    given = {
        "data": hash_file(series.data), "series": asdict(series), "model": model, "arguments": arguments, "window": window,
    }  # fmt: skip
    run = work_folder(out) / f"run-{hash_json(given)[:16]}"
    training = resumable_training(generator, run, trainer or {})
    generator.fit(real, window=window, members=members, progress=printer(quiet), **training)
    what = f"{len(real)} series, {len(real.times)} rows"
    on_main(lambda: finish_fit(generator, Path(out), run, what, quiet))
    return 0


def series_sample(
    generator: str,
    out: str,
    n: int | None = None,
    per_class: int | None = None,
    length: int | None = None,
    conditions: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Write synthetic series as a CSV or Parquet file, a row for each series and time.

    Args:
        generator: folder that 'visynth series fit' or 'trial' wrote.
        out: a .csv or .parquet file.
        n: number of series.
        per_class: instead, so many of each class.
        length: rows of each; by default as long as real ones.
        conditions: e.g. '{class: walking}'.
        seed: equal seeds give equal files.
        device: where the generator runs.
    """
    from visynth.tabular.frames import write_table
    from visynth.tabular.timeseries.base import SeriesGenerator

    if (n is None) == (per_class is None):
        raise UsageError("give either --n or --per-class.")
    loaded = SeriesGenerator.load(generator, device)
    if per_class is None:
        drawn = loaded.sample(int(n or 0), conditions=conditions, length=length, seed=seed)
    elif conditions:
        raise UsageError("--per-class takes no --conditions: name the class among the conditions, and use --n.")
    else:
        drawn = loaded.sample_classes(dict.fromkeys(loaded.classes, per_class), length=length, seed=seed)
    rows = write_table([drawn.frame()], out)
    print(f"{out}: {len(drawn)} series, {rows} rows")
    return 0


def series_stream(
    generator: str,
    out: str,
    length: int,
    chunk: int = 10_000,
    conditions: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Write one synthetic series of any length, with flat memory.

    Args:
        generator: folder of a model that can: ar, diffusion, bootstrap or independent.
        out: a .csv or .parquet file.
        length: rows.
        chunk: rows held at a time; it changes nothing in the series.
        conditions: e.g. '{class: walking}'.
        seed: equal seeds give equal files.
        device: where the generator runs.
    """
    from visynth.tabular.frames import write_table
    from visynth.tabular.timeseries.base import SeriesGenerator

    pieces = SeriesGenerator.load(generator, device).stream(
        chunk=chunk, conditions=conditions, length=length, seed=seed
    )
    print(f"{out}: {write_table((piece.frame() for piece in pieces), out)} rows")
    return 0


def series_impute(generator: str, series: SeriesOptions, out: str, seed: int = 0, device: str = "cpu") -> int:
    """Fill the missing values of series, each drawn given the others.

    Args:
        generator: folder of a model that can: diffusion.
        series: with gaps, of the fitted columns.
        out: a .csv or .parquet file.
        seed: equal seeds fill equally.
        device: where the generator runs.
    """
    from visynth.tabular.frames import write_table
    from visynth.tabular.timeseries.base import SeriesGenerator
    from visynth.tabular.timeseries.reading import complete, fitted_to

    loaded = SeriesGenerator.load(generator, device)
    real = fitted_to(series.read(), loaded.schema)
    gaps = int((~complete(real)).sum())
    rows = write_table([loaded.impute(real, seed=seed).frame()], out)
    print(f"{out}: {rows} rows, {gaps} of which had missing values")
    return 0


def series_forecast(
    generator: str, series: SeriesOptions, steps: int, out: str, seed: int = 0, device: str = "cpu"
) -> int:
    """Write what may follow each series: its next rows, drawn given its last ones.

    Args:
        generator: folder of a model that can: ar or diffusion.
        series: of the fitted columns.
        steps: rows to draw for each.
        out: a .csv or .parquet file.
        seed: other seeds draw other futures.
        device: where the generator runs.
    """
    from visynth.tabular.frames import write_table
    from visynth.tabular.timeseries.base import SeriesGenerator
    from visynth.tabular.timeseries.reading import fitted_to

    loaded = SeriesGenerator.load(generator, device)
    drawn = loaded.forecast(fitted_to(series.read(), loaded.schema), steps, seed=seed)
    print(f"{out}: {len(drawn)} series, {write_table([drawn.frame()], out)} rows")
    return 0


def series_evaluate(
    generator: str,
    series: SeriesOptions,
    holdout: str,
    out: str,
    holdout_arrays: list[str] | None = None,
    seed: int = 0,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure a generator of series: fidelity, utility and privacy, beside two that learn nothing.

    Args:
        generator: folder that 'visynth series fit' wrote.
        series: those that it was fitted to.
        holdout: a file of series of other entities, with the same columns.
        out: folder for report.json and report.html.
        holdout_arrays: of an .npz file, where other arrays than --arrays hold them.
        seed: of samples and measures.
        json: print the figures as JSON.
        quiet: no progress.
    """
    from visynth.core.report import Report, environment
    from visynth.tabular.timeseries.base import SeriesGenerator
    from visynth.tabular.timeseries.evaluate import measure_series
    from visynth.tabular.timeseries.reading import fitted_to
    from visynth.tabular.timeseries.report import LEAD, series_sections

    loaded = SeriesGenerator.load(generator)
    train, held = (fitted_to(one, loaded.schema) for one in (series.read(), series.read(holdout, holdout_arrays)))
    figures = measure_series(loaded, train, held, seed=seed, progress=printer(quiet))
    report = Report("series evaluation", Path(holdout).stem, lead=LEAD)
    series_sections(report, figures, loaded, train, held, seed)
    measured = {name: own.to_json() for name, own in figures.items()}
    report.conditions |= {"generator": loaded.digest, "series": len(train), "held out": len(held), "figures": measured}
    report.conditions |= environment()
    report.write(out)
    if json:
        print(dumps(measured))
        return 0
    for name, own in figures.items():
        copies = "" if own.copies is None else f", copies {own.copies:.1%}"
        print(f"{name}: discriminative {own.discriminative.mean:.3f}, spectrum {own.spectrum:.2f} dB{copies}")
    print(f"report: {Path(out) / 'report.html'}", file=sys.stderr)
    return 0


def series_replay(
    generator: str,
    out: str,
    rate: float,
    seconds: float,
    conditions: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Write the arrival times of requests of synthetic sessions at a given rate, for a load test.

    Args:
        generator: folder of a model of sessions (events with the time between them).
        out: a .csv or .parquet file: seconds since the start, session, event.
        rate: requests a second.
        seconds: for how long.
        conditions: e.g. '{kind: buyer}'.
        seed: equal seeds give equal arrivals.
        device: where the generator runs.
    """
    from visynth.tabular.frames import write_table
    from visynth.tabular.timeseries.base import SeriesGenerator
    from visynth.tabular.timeseries.sessions import replay

    drawn = replay(SeriesGenerator.load(generator, device), rate, seconds, conditions=conditions, seed=seed)
    rows = write_table([drawn.frame()], out)
    print(
        f"{out}: {rows} requests of {len(set(drawn.session.tolist()))} sessions, {drawn.rate:.2f} a second over {seconds:g} s"
    )
    return 0
