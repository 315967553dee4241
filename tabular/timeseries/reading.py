"""Series from a long frame, from arrays, or from a file, with every doubt about their times told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError, UsageError, choices, raise_all
from visynth.tabular.columns import Category, Column, Date, Floats, Kind, Number
from visynth.tabular.frames import Library, check_frame, pandas, read_table, to_pandas
from visynth.tabular.identifiers import Identifier
from visynth.tabular.inference import infer
from visynth.tabular.schema import Schema, missing_in
from visynth.tabular.timeseries.series import ENTITY, SHOWN, STEP, Ints, Series, SeriesSchema

if TYPE_CHECKING:
    import pandas as pd

SAME = 1e-3  # of a step: by how much a regular series' times may be off
MOST_GAPS = 4  # times as many rows, up to which missing rows of a regular series are filled in
PERSONAL_STYLES = ("email", "label")  # of identifiers that tell people apart


def read_series(
    data: Any,
    *,
    entity: str | None = None,
    time: str | None = None,
    target: str | None = None,
    statics: Sequence[str] = (),
    step: float | None = None,
    kinds: Mapping[str, Kind] | None = None,
    drop: Sequence[str] = (),
) -> Series:
    """Series of a long frame: a row for each entity and time.

    Rows are put in the order of their times. Where the distances of times are multiples of one step, and rows are not too
    rare, missing rows are filled in as missing values; else the series are irregular and the gaps are modelled.

    Args:
        data: a pandas or polars frame, or a CSV or Parquet file.
        entity: column that names the entities; None: all rows are one series.
        time: column of times, dates or numbers; None: the rows follow one another, and series must be equally long.
        target: the class column, with one value for each entity.
        statics: further columns with one value for each entity.
        step: distance of two rows, in seconds of dates; without times, it says that rows are equally far apart although
            the series have other lengths.
        kinds: of columns where the data mislead, see :func:`visynth.tabular.inference.infer`.
        drop: columns to leave out.

    Raises:
        DataError: duplicate or missing times, unequal lengths without times, statics that change; all problems at once.
        UsageError: columns that do not exist.

    Example:
        >>> import pandas
        >>> rows = {"machine": ["a", "a", "b", "b"], "second": [1, 0, 0, 1], "heat": [2.5, 2.0, 3.0, 3.5]}
        >>> series = read_series(pandas.DataFrame(rows), entity="machine", time="second")
        >>> series.names, series.schema.step, series.values(0)[:, 0].tolist()
        (('a', 'b'), 1.0, [2.0, 2.5])
    """
    library: Library
    frame, library = (read_table(data), "pandas") if isinstance(data, (str, Path)) else to_pandas(data)
    check_frame(frame)
    named = [n for n in (entity, time, target, *statics, *drop) if n is not None]
    unknown = [f"there is no column {name!r}" for name in named if name not in frame.columns]
    unknown += [f"column {name!r} is named twice" for name in sorted({n for n in named if named.count(n) > 1})]
    if step is not None and not step > 0:
        unknown.append(f"step must be above 0, but got {step}")
    own_names = [*([ENTITY] if entity is None else []), *([STEP] if time is None else [])]
    unknown += [
        f"column {n!r} would clash with one that is written: rename it" for n in own_names if n in frame.columns
    ]
    raise_all(f"the options (columns {choices(frame.columns)})", unknown, UsageError)
    frame = frame.drop(columns=list(drop))
    keys = frame[entity] if entity is not None else pandas().Series(["1"] * len(frame))
    fixed = [*statics, *([target] if target is not None and target not in statics else [])]
    clock = None if time is None else _clock(frame[time], kinds)
    rest = [name for name in frame.columns if name not in (entity, time, *fixed)]
    if not rest:
        raise DataError("there is no channel: every column is the entity, the time or a static.")
    channels = replace(infer(frame[rest], {k: v for k, v in (kinds or {}).items() if k in rest}), library=library)
    identifiers = [c for c in channels.columns if isinstance(c, Identifier)]
    raise_all("the channels", [
        f"column {c.name!r} looks like {'personal data' if c.style in PERSONAL_STYLES else 'an identifier or a counter'}: leave it "
        "out (drop=), or say what it is (kinds={name: 'numeric'})"
        for c in identifiers
    ])  # fmt: skip
    if not channels.modelled:
        raise DataError("no channel can be modelled: all are identifiers, text or constant.")
    return _assembled(frame, keys, clock, channels, fixed, target, step, kinds or {}, entity or ENTITY)


def _clock(values: pd.Series, kinds: Mapping[str, Kind] | None) -> Column:
    """The column of times."""
    wanted = (kinds or {}).get(str(values.name))
    schema = infer(values.to_frame(), None if wanted is None else {str(values.name): wanted})
    column = schema.columns[0]
    if not isinstance(column, (Date, Number)):  # distinct whole numbers may look like identifiers
        try:
            column = infer(values.to_frame(), {str(values.name): "numeric"}).columns[0]
        except DataError:
            raise DataError(f"column {values.name!r} holds no times: it is {column.kind}.") from None
    gone = column.is_missing(values)
    if gone.any():
        rows = np.flatnonzero(gone)[:SHOWN].tolist()
        raise DataError(f"column {values.name!r} has rows without a time ({int(gone.sum())}; the first: {rows}).")
    return column


def _assembled(
    frame: pd.DataFrame, keys: pd.Series, clock: Column | None, channels: Schema, fixed: Sequence[str], target: str | None,
    step: float | None, kinds: Mapping[str, Kind], entity: str,
) -> Series:  # fmt: skip
    if keys.isna().any():
        raise DataError(f"column {keys.name!r} names no entity in {int(keys.isna().sum())} rows.")
    words = keys.astype(str)
    names = list(dict.fromkeys(words.tolist()))
    place = words.map({name: number for number, name in enumerate(names)}).to_numpy(np.int64)
    times = np.zeros(len(frame)) if clock is None else np.asarray(clock.parse(frame[clock.name]), np.float64)
    order = np.lexsort((np.arange(len(frame)), times, place))
    lengths = np.bincount(place, minlength=len(names))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    notes = list(channels.notes)
    problems = _static_problems(frame, words, fixed)
    if clock is None:
        problems += [] if step is not None else _unequal(names, lengths)
        times = (np.arange(len(frame)) - offsets[place[order]]) * (step or 1.0)
    else:
        times = times[order]
        problems += _repeated(names, place[order], times, frame, clock.name, order)
        moved = int((np.diff(order) < 0).sum()) if len(names) == 1 else 0
        notes += ["rows were put in the order of their times"] if moved else []
    raise_all("the series", problems)
    first = order[offsets[:-1]]
    statics = Schema((), channels.library)
    if fixed:
        own = frame.iloc[first][list(fixed)].reset_index(drop=True)
        statics = infer(own, {**{k: v for k, v in kinds.items() if k in fixed}}, target)
        true = [note for note in statics.notes if not any(note.startswith(f"{n}: ") for n in _identifiers(statics))]
        statics = replace(
            statics,
            columns=tuple(_kept(own, c, target) for c in statics.columns),
            notes=tuple(true),
            library=channels.library,
        )
    table = {name: values[order] for name, values in channels.table(frame).items()}
    schema = SeriesSchema(
        channels,
        statics,
        entity,
        clock,
        step or 1.0,
        target,
        float(times[offsets[:-1]].min()),
        (*notes, *statics.notes),
    )
    static_table = statics.table(own) if fixed else {}
    if target is not None and (static_table[target] < 0).any():
        lost = [name for name, code in zip(names, static_table[target], strict=True) if code < 0]
        raise DataError(
            f"{len(lost)} series have no class in column {target!r} ({choices(lost[:SHOWN])}): leave them out."
        )
    series = Series(schema, tuple(names), offsets, times, table, static_table)
    return series if clock is None else regular(series, step)


def _identifiers(schema: Schema) -> list[str]:
    return [column.name for column in schema.columns if isinstance(column, Identifier)]


def _kept(own: pd.DataFrame, column: Column, target: str | None) -> Column:
    """Names and other text of few entities are categories, not identifiers: there is one row for each entity.

    Raises:
        DataError: personal data, which samples would repeat.
    """
    if column.modelled or column.kind == "constant" or column.name == target:
        return column
    if isinstance(column, Identifier) and column.style in PERSONAL_STYLES:
        raise DataError(
            f"column {column.name!r} holds personal data, which samples would repeat: leave it out (drop=)."
        )
    return infer(own[[column.name]], {column.name: "categorical"}).columns[0]


def _unequal(names: Sequence[str], lengths: Ints) -> list[str]:
    """Series of other lengths, without times that would say which rows belong together."""
    if len(set(lengths.tolist())) <= 1:
        return []
    few, many = int(lengths.argmin()), int(lengths.argmax())
    return [
        f"series have unequal lengths ({names[few]!r} has {lengths[few]} rows, {names[many]!r} {lengths[many]}) and no times: "
        "name the column of times (time=), or say that rows are equally far apart (step=1)"
    ]


def _repeated(
    names: Sequence[str], place: Ints, times: Floats, frame: pd.DataFrame, clock: str, order: Ints
) -> list[str]:
    """Times that an entity has twice."""
    twice = np.flatnonzero((np.diff(place) == 0) & (np.diff(times) == 0))
    if not len(twice):
        return []
    shown = [
        f"{frame[clock].iloc[order[k]]!s} of {names[place[k]]!r} in rows {sorted((int(order[k]), int(order[k + 1])))}"
        for k in twice[:SHOWN]
    ]
    return [
        f"{len(twice)} times stand twice within a series ({'; '.join(shown)}): keep one of each, or name the column that tells "
        "the series apart (entity=)"
    ]


def _static_problems(frame: pd.DataFrame, words: pd.Series, fixed: Sequence[str]) -> list[str]:
    """Statics that change within an entity."""
    problems = []
    for name in fixed:
        counts = frame[name].groupby(words.to_numpy()).nunique(dropna=False)
        bad = counts[counts > 1]
        if len(bad):
            values = frame[name][(words == bad.index[0]).to_numpy()].drop_duplicates().tolist()[:SHOWN]
            problems.append(
                f"column {name!r} changes within {len(bad)} series ({bad.index[0]!r} has {values}): it is a channel, not a static"
            )
    return problems


def regular(series: Series, step: float | None = None) -> Series:
    """The series on a grid of one step, missing rows filled in, where that is what they are; else as irregular ones."""
    gaps = np.diff(series.times)[series.within]
    if not len(gaps):
        return replace(series, schema=replace(series.schema, step=step or 1.0))
    own = step if step is not None else float(np.median(gaps))
    multiples = gaps / own
    off = np.abs(multiples - np.round(multiples)) > SAME * np.maximum(multiples, 1)
    if step is not None and off.any():
        raise DataError(f"{int(off.sum())} of {len(gaps)} gaps between times are no multiples of step={step}.")
    rows = np.round(multiples).sum() + len(series)
    if off.any() or (multiples < 0.5).any() or rows > MOST_GAPS * len(series.times):
        if step is not None:
            raise DataError(
                f"with step={step} the series would have {int(rows)} rows instead of {len(series.times)}, most of them missing: leave "
                "step out (the gaps are then modelled), or part the series at the long gaps (entity=)."
            )
        note = "times are on no grid, or mostly missing from it: gaps between rows are modelled, not rows at equal distances"
        return replace(series, schema=replace(series.schema, step=None, notes=(*series.schema.notes, note)))
    missing = int(rows) - len(series.times)
    if not missing:
        return replace(series, schema=replace(series.schema, step=own))
    return _filled(series, own, missing)


def _filled(series: Series, step: float, missing: int) -> Series:
    """The series with rows without values at the times that are missing."""
    places, times, lengths = [], [], []
    for number in range(len(series)):
        own = series.times[series.rows(number)]
        steps = np.concatenate([[0], np.cumsum(np.round(np.diff(own) / step))]).astype(np.int64)
        count = int(steps[-1]) + 1
        place = np.full(count, -1)
        place[steps] = np.arange(series.offsets[number], series.offsets[number + 1])
        places.append(place)
        times.append(own[0] + step * np.arange(count))
        lengths.append(count)
    rows = np.concatenate(places)
    columns = tuple(_with_gaps(c) if c.modelled else c for c in series.schema.channels.columns)
    channels = {}
    for column in series.schema.channels.modelled:
        values = series.channels[column.name][np.maximum(rows, 0)].copy()
        values[rows < 0] = -1 if isinstance(column, Category) else np.nan
        channels[column.name] = values
    note = f"{missing} rows are missing between others: filled in as missing values"
    schema = replace(
        series.schema,
        step=step,
        channels=replace(series.schema.channels, columns=columns),
        notes=(*series.schema.notes, note),
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return replace(series, schema=schema, offsets=offsets, times=np.concatenate(times), channels=channels)


def _with_gaps(column: Column) -> Column:
    """The column where values can be missing, of a data type that can say so."""
    if column.dtype.startswith(("int", "uint")) and column.dtype[0].islower():
        dtype = (
            column.dtype.replace("uint", "UInt") if column.dtype.startswith("u") else column.dtype.replace("int", "Int")
        )
    else:
        dtype = "boolean" if column.dtype == "bool" else column.dtype
    return replace(column, nullable=True, dtype=dtype)


def fitted_to(series: Series, schema: SeriesSchema) -> Series:
    """The series in the terms of a generator's schema: its categories, its missing values, its step.

    Raises:
        DataError: columns or values that the fitted series do not have; all problems at once.
    """
    problems, frame = [], series.frame()
    lenient = [replace(c, nullable=True) if c.modelled else c for c in schema.channels.columns]
    try:
        channels = replace(schema.channels, columns=tuple(lenient)).table(frame)
    except DataError as error:
        problems.append(str(error).rstrip("."))
    rows = to_pandas(frame)[0].iloc[series.offsets[:-1]].reset_index(drop=True)
    try:
        statics = schema.statics.table(rows) if schema.statics.columns else {}
    except DataError as error:
        problems.append(str(error).rstrip("."))
    if (schema.step is None) != (series.schema.step is None) or (
        schema.step is not None and not np.isclose(schema.step, series.schema.step or 0.0)
    ):
        problems.append(
            f"the step between rows is {series.schema.step}, but the generator was fitted with {schema.step}"
        )
    raise_all("the series, for this generator", problems)
    return replace(series, schema=schema, channels=channels, statics=statics)


def complete(series: Series) -> NDArray[np.bool_]:
    """Rows without a missing value, bool ``[T]``."""
    gone = [missing_in(values) for values in series.channels.values()]
    return ~np.any(gone, axis=0) if gone else np.ones(len(series.times), bool)
