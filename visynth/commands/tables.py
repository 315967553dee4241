"""Tables: from a file to a verdict and a balanced file, and the steps one by one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import Any, Literal

from visynth.commands.printing import printer, verdicts
from visynth.core.errors import ConflictError, UsageError, VisynthError
from visynth.tabular.domain import read_domain
from visynth.tabular.private import TablePrivacy, check_kinds


def tabular_trial(
    data: str,
    target: str,
    out: str = "trial",
    rare: list[str] | None = None,
    synthesizer: str = "masked",
    arguments: dict[str, Any] | None = None,
    minutes: float = 10.0,
    draws: int = 5,
    folds: int = 3,
    seed: int = 0,
    kinds: dict[str, str] | None = None,
    drop: list[str] | None = None,
    groups: str | None = None,
    write: Literal["safe", "balanced"] = "safe",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Do synthetic rows help? From a table with a rare class to a verdict, a generator and a balanced file.

    Args:
        data: CSV or Parquet file; give the training part only.
        target: the class column.
        out: folder for generator/, the balanced file, report.json and report.html.
        rare: values of the target that matter; by default the rarest.
        synthesizer: masked, ctgan, tvae, diffusion, copula, marginals or oversampler.
        arguments: of the synthesizer, e.g. '{width: 128}'; steps among them fixes the length of every fit.
        minutes: time budget, for which steps and draws are planned.
        draws: repetitions with other folds.
        folds: test parts of each draw.
        seed: of everything.
        kinds: of columns where the data mislead, e.g. '{zip: categorical, note: text}'.
        drop: columns to leave out.
        groups: column of what belongs together (customer, machine, patient); not modelled.
        write: balanced writes the balanced file in any case, safe not where it was shown not to help.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.tabular.trial import TableTrial, run_trial

    options = TableTrial(
        synthesizer=synthesizer, arguments=arguments or {}, minutes=minutes, draws=draws, folds=folds, seed=seed,
        kinds=kinds or {}, drop=tuple(drop or ()), groups=groups, write=write,  # type: ignore[arg-type]
    )  # fmt: skip
    report = run_trial(data, target, out, rare=rare or (), options=options, progress=printer(quiet))
    verdicts(report, json)
    if not json:
        print(f"report: {Path(out) / 'report.html'}")
    return 0


def tabular_fit(
    data: str,
    out: str,
    target: str | None = None,
    synthesizer: str = "masked",
    arguments: dict[str, Any] | None = None,
    kinds: dict[str, str] | None = None,
    drop: list[str] | None = None,
    constraints: list[dict[str, Any]] | None = None,
    members: Literal["rows", "none"] = "rows",
    privacy: TablePrivacy | None = None,
    trainer: dict[str, Any] | None = None,
    quiet: bool = False,
) -> int:
    """Fit a table generator, with --privacy.epsilon so that it hardly depends on any one row. Killed, the same command goes on.

    Args:
        data: CSV or Parquet file.
        out: the generator folder.
        target: the class column; all its values are modelled, however rare.
        synthesizer: masked, ctgan, tvae, diffusion, copula, marginals, dp_marginals, dp_aim or oversampler.
        arguments: of the synthesizer, e.g. '{steps: 3000, width: 256}'.
        kinds: of columns where the data mislead, e.g. '{zip: categorical, note: text}'.
        drop: columns to leave out.
        constraints: rules between columns, e.g. '[{kind: inequality, low: start, high: end}]'.
        members: rows keeps a fingerprint of each row, none keeps none.
        privacy: differential privacy for each row, of masked, tvae, diffusion, dp_marginals or dp_aim.
        trainer: of Lightning's Trainer, e.g. '{accelerator: gpu, devices: 2, strategy: ddp}'.
        quiet: no progress.
    """
    from visynth.core import plugins
    from visynth.core.distributed import on_main
    from visynth.core.files import hash_file, hash_json
    from visynth.core.folders import claim, work_folder
    from visynth.tabular.frames import read_table, without

    claim(out)
    frame = without(read_table(data), drop or [])
    generator = plugins.make("synthesizers", synthesizer, arguments)
    given: dict[str, Any] = {
        "data": hash_file(data),
        "synthesizer": synthesizer,
        "arguments": arguments,
        "drop": drop,
    }
    given |= {"kinds": kinds, "target": target, "constraints": constraints}
    if privacy is not None:
        if (Path(out) / "generator.json").is_file():
            raise ConflictError(
                f"{out} holds a generator: a private fit is not repeated over it, since each one spends its epsilon. Give another "
                "--out, or remove that one."
            )
        domain = read_domain(privacy.domain)
        if Path(data).suffix.lower() == ".csv":
            check_kinds(frame.columns, {*domain, *(kinds or {})})
        given |= {"privacy": asdict(privacy), "domain": repr(sorted(domain.items()))}
    run = work_folder(out) / f"run-{hash_json(given)[:16]}"
    if privacy is not None and privacy.key_file is None:
        privacy = replace(privacy, key_file=str(run / "key"))
    training = resumable_training(generator, run, trainer or {})
    with _no_litter(run):
        generator.fit(
            frame, target=target, kinds=kinds, constraints=constraints or (), members=members, privacy=privacy,
            progress=printer(quiet), **training,
        )  # fmt: skip
    on_main(lambda: finish_fit(generator, Path(out), run, f"{generator.fitted.rows} rows", quiet))
    return 0


@contextmanager
def _no_litter(run: Path) -> Iterator[None]:
    """A fit that is refused leaves no run folder behind; one that was killed in its training does."""
    try:
        yield
    except VisynthError:
        if not any(run.rglob("*.ckpt")):
            drop_checkpoint(run)
        raise


def finish_fit(generator: Any, out: Path, run: Path, what: str, quiet: bool) -> None:
    """Write the generator, drop the fit's checkpoint, and say what came of it."""
    generator.save(out)
    drop_checkpoint(run)
    for note in generator.fitted.notes:
        printer(quiet)(f"  {note}")
    if getattr(generator.fitted, "privacy", None):
        spent = generator.fitted.privacy
        parts = ", ".join(f"{r['what']} {r['noise']:.3g} x {r['steps']}" for r in spent["releases"])
        known = ", ".join(
            f"{by} {spent[f'epsilon by {by}']:.3g}" for by in ("rdp", "prv") if f"epsilon by {by}" in spent
        )
        print(
            f"differential privacy: epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g} for each {spent['unit']} ({known}); "
            f"noise multipliers: {parts}"
        )
    print(f"{out}: {generator.network} of {what}; digest {generator.digest[:16]}")


def drop_checkpoint(run: Path) -> None:
    """Remove this fit's checkpoint, and nothing else."""
    shutil.rmtree(run, ignore_errors=True)
    with suppress(OSError):  # none was made, or another fit's lies there
        run.parent.rmdir()


def resumable_training(generator: Any, run: Path, trainer: dict[str, Any]) -> dict[str, Any]:
    """A trainer that keeps a checkpoint, and the one to go on from."""
    if not hasattr(generator, "training_step"):
        if trainer:
            raise UsageError(f"{generator.network} is not trained: it takes no trainer options.")
        return {}
    from visynth.callbacks.checkpoint import AtomicCheckpointIO, KeepLast
    from visynth.core.quiet import quiet_lightning
    from visynth.tabular.training import default_trainer

    last = KeepLast.path(run)
    plugin = {"plugins": [AtomicCheckpointIO()], "callbacks": [KeepLast(minutes=1.0)], "enable_checkpointing": True}
    with quiet_lightning():
        own = default_trainer(default_root_dir=str(run), **{**plugin, **trainer})
    return {"trainer": own, "checkpoint": str(last) if last.is_file() else None}


def tabular_fit_tables(
    tables: dict[str, str],
    keys: list[dict[str, Any]],
    out: str,
    synthesizer: Literal["masked", "copula"] = "masked",
    arguments: dict[str, Any] | None = None,
    kinds: dict[str, dict[str, str]] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> int:
    """Fit generators of several tables that belong together by foreign keys, such as customers and their transactions.

    Args:
        tables: files by name, e.g. '{customers: c.csv, orders: o.parquet}'.
        keys: e.g. '[{table: orders, column: customer, parent: customers, parent_key: id, order: time}]'; order is the
            column by which a parent's rows follow one another, if there is one.
        out: folder of the generators; 'visynth tabular sample' draws from it.
        synthesizer: masked or copula.
        arguments: of the synthesizer, e.g. '{steps: 3000}'.
        kinds: by table, of columns where the data mislead.
        seed: of the fits.
        quiet: no progress.
    """
    from visynth.core.folders import claim
    from visynth.tabular.frames import read_table
    from visynth.tabular.relational import PARTS, Relational

    claim(out, PARTS)
    model = Relational(keys, synthesizer, arguments, seed)
    frames = {name: read_table(path) for name, path in tables.items()}
    model.fit(frames, kinds=kinds, progress=printer(quiet)).save(out)  # type: ignore[arg-type]
    print(f"{out}: {synthesizer} of {', '.join(f'{name} ({len(frames[name])} rows)' for name in model.order)}")
    return 0


def _sample_tables(generator: str, out: str, n: int | None, seed: int, device: str) -> int:
    """As many rows of the first table as asked for, and their descendants, as Parquet files in a folder."""
    from visynth.core.folders import new_folder
    from visynth.tabular.frames import write_parquet
    from visynth.tabular.relational import Relational

    if n is None:
        raise UsageError("several tables are drawn by --n, the number of rows of the first one.")
    frames = Relational.load(generator, device).sample(n, seed=seed)
    with new_folder(out) as folder:
        for name, frame in frames.items():
            write_parquet(frame, folder / f"{name}.parquet")
    print(f"{out}: {', '.join(f'{name}.parquet ({len(frame)} rows)' for name, frame in frames.items())}")
    return 0


def tabular_sample(
    generator: str,
    out: str,
    n: int | None = None,
    per_class: int | None = None,
    conditions: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    quiet: bool = False,
) -> int:
    """Write synthetic rows as a CSV or Parquet file, with flat memory.

    Args:
        generator: folder that 'visynth tabular fit' or 'fit-tables' wrote.
        out: a .csv or .parquet file; of several tables a folder.
        n: number of rows.
        per_class: instead, so many rows of each value of the target.
        conditions: e.g. '{sex: Female, age: {low: 30, high: 40}, state: [NY, CA]}'; every row satisfies them.
        seed: equal seeds give equal files.
        device: where the generator runs.
        quiet: no progress.
    """
    import time

    from visynth.tabular.base import Synthesizer
    from visynth.tabular.frames import write_table
    from visynth.tabular.relational import SPEC

    if (Path(generator) / SPEC).is_file():
        if per_class is not None or conditions:
            raise UsageError("several tables take neither --per-class nor --conditions.")
        return _sample_tables(generator, out, n, seed, device)
    if (n is None) == (per_class is None):
        raise UsageError("give either --n or --per-class.")
    loaded = Synthesizer.load(generator, device)
    progress, begun = printer(quiet), time.monotonic()
    total = n if per_class is None else per_class * len(loaded.fitted.classes)

    def frames() -> Any:
        done = 0
        for frame in _streams(loaded, n, per_class, conditions or {}, seed):
            done += len(frame)
            rate = done / (time.monotonic() - begun)
            progress(f"{done}/{total} rows, {rate:.0f} rows/s, {((total or 0) - done) / rate:.0f} s left")
            yield frame

    print(f"{out}: {write_table(frames(), out)} rows")
    return 0


def _streams(loaded: Any, n: int | None, per_class: int | None, conditions: dict[str, Any], seed: int) -> Any:
    if n is not None:
        yield from loaded.stream(n, conditions=conditions or None, seed=seed)
        return
    target = loaded.fitted.target
    if target is None:
        raise UsageError("the generator was fitted without a target: there are no classes; use --n.")
    if conditions:
        raise UsageError("--per-class takes no --conditions: name the class among the conditions, and use --n.")
    values = [
        v for code, v in enumerate(loaded.schema[target].categories) if code not in loaded.fitted.unseen.get(target, ())
    ]
    yield from loaded.stream_classes(dict.fromkeys(values, per_class), seed=seed)


def tabular_impute(generator: str, data: str, out: str, seed: int = 0, device: str = "cpu") -> int:
    """Fill the missing cells of a table, each drawn given the row's other cells.

    Args:
        generator: folder that 'visynth tabular fit' wrote (masked or copula).
        data: CSV or Parquet file with the fitted columns.
        out: a .csv or .parquet file.
        seed: equal seeds fill equally.
        device: where the generator runs.
    """
    from visynth.tabular.base import Synthesizer
    from visynth.tabular.frames import read_table, write_table

    frame = read_table(data)
    loaded = Synthesizer.load(generator, device)
    gaps = int(frame[[c.name for c in loaded.schema.modelled if c.name in frame]].isna().sum().sum())
    rows = write_table([loaded.impute(frame, seed=seed)], out)
    print(f"{out}: {rows} rows, {gaps} cells filled")
    return 0


def tabular_evaluate(
    generator: str, train: str, holdout: str, out: str, seed: int = 0, json: bool = False, quiet: bool = False
) -> int:
    """Measure a table generator: fidelity, diversity, utility and privacy, beside two baselines.

    Args:
        generator: folder that 'visynth tabular fit' wrote.
        train: the file that it was fitted to.
        holdout: rows of the same table that it did not see.
        out: folder for report.json and report.html.
        seed: of samples and measures.
        json: print the figures as JSON.
        quiet: no progress.
    """
    from visynth.core.report import Report, environment
    from visynth.tabular.base import Synthesizer
    from visynth.tabular.evaluate import LEAD, add_sections, triad
    from visynth.tabular.frames import read_table

    loaded = Synthesizer.load(generator)
    real, held = read_table(train), read_table(holdout)
    measured = triad(loaded, real, held, seed=seed, progress=printer(quiet))
    report = Report("tabular evaluation", Path(holdout).stem, lead=LEAD)
    add_sections(report, measured, loaded, real, held, seed)
    report.conditions |= {"generator": loaded.digest, "rows": len(real), "figures": measured.to_json(), **environment()}
    report.write(out)
    if json:
        print(dumps(measured.to_json()))
    else:
        for name, figures in measured.to_json()["fidelity"].items():
            print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
        leaks = measured.privacy.leaks
        print(f"attacks that found more than chance: {', '.join(leaks) or 'none of those that were tried'}")
        print(f"report: {Path(out) / 'report.html'}", file=sys.stderr)
    return 0
