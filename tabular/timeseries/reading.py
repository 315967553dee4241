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
from visynth.tabular.timeseries.series import ENTITY, STEP, Ints, Series, SeriesSchema

if TYPE_CHECKING:
    import pandas as pd

SAME = 1e-3  # of a step: by how much a regular series' times may be off
MOST_GAPS = 4  # times as many rows, up to which missing rows of a regular series are filled in
SHOWN = 4
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
        told = [note for note in statics.notes if not any(note.startswith(f"{n}: ") for n in _identifiers(statics))]
        statics = replace(
            statics,
            columns=tuple(_kept(own, c, target) for c in statics.columns),
            notes=tuple(told),
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
    gaps = np.diff(series.times)
    inside = np.ones(len(gaps), bool)
    inside[series.offsets[1:-1] - 1] = False
    gaps = gaps[inside]
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


def from_arrays(
    values: NDArray[Any],
    labels: Sequence[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    target: str = "class",
    step: float = 1.0,
) -> Series:
    """Equally long series of numbers.

    Args:
        values: ``[N, C, L]``: entities, channels, steps; NaN where missing.
        labels: class of each entity.
        names: of the entities.
        channels: names of the channels.
        target: what the class is called.
        step: distance of two steps, for frequencies.

    Raises:
        DataError: other shapes, or infinite values.
    """
    x = np.asarray(values)
    if x.ndim != 3 or 0 in x.shape or x.dtype.kind not in "fiub":
        raise DataError(
            f"values must be numbers [entities, channels, steps], but have shape {x.shape} and type {x.dtype}."
        )
    x = x.astype(np.float64)
    if np.isinf(x).any():
        raise DataError(f"{int(np.isinf(x).sum())} values are infinite: mark missing ones by NaN.")
    if labels is not None and len(labels) != len(x):
        raise DataError(f"there are {len(x)} series, but {len(labels)} labels.")
    own = list(channels or [f"channel_{k + 1}" for k in range(x.shape[1])])
    clash = [n for n in own if own.count(n) > 1 or n in (ENTITY, STEP, target)]
    if clash:
        raise DataError(
            f"names of channels must differ from one another and from {choices((ENTITY, STEP, target))}: {clash}."
        )
    if len(own) != x.shape[1]:
        raise DataError(f"there are {x.shape[1]} channels, but {len(own)} names of channels: {own}.")
    columns = tuple(Number(n, "numeric", "float64", bool(np.isnan(x[:, k]).any())) for k, n in enumerate(own))
    table = {name: np.ascontiguousarray(x[:, k]).reshape(-1) for k, name in enumerate(own)}
    statics, static_table = Schema(()), {}
    if labels is not None:
        frame = pandas().DataFrame({target: [value.item() if hasattr(value, "item") else value for value in labels]})
        statics = infer(frame, {target: "categorical"}, target)
        static_table = statics.table(frame)
        lost = np.flatnonzero(static_table[target] < 0).tolist()
        if lost:
            raise DataError(f"{len(lost)} series have no class (the first: {lost[:SHOWN]}): leave them out.")
    offsets = np.arange(len(x) + 1) * x.shape[2]
    times = np.tile(np.arange(x.shape[2]) * step, len(x))
    schema = SeriesSchema(Schema(columns), statics, step=step, target=None if labels is None else target)
    called = tuple(map(str, names)) if names is not None else tuple(str(k) for k in range(len(x)))
    return Series(schema, called, offsets.astype(np.int64), times, table, static_table)


def read_arrays(
    path: str | Path,
    values: str,
    labels: str | None = None,
    step: float = 1.0,
    scans: tuple[float, float] | None = None,
) -> Series:
    """Series of an ``.npz`` file: numbers ``[N, C, L]`` and, if named, classes ``[N]``.

    Args:
        path: of the file.
        values: name of the array of numbers.
        labels: name of the array of classes.
        step: distance of two steps.
        scans: least and most range where the values are lidar scans ``[N, T, beams]``.

    Raises:
        DataError: no such file or array; pickled objects are refused.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with np.load(file, allow_pickle=False) as stored:
            lost = [name for name in (values, labels) if name is not None and name not in stored]
            if lost:
                raise DataError(f"{path} has no array {choices(lost)}; it has {choices(stored.files)}.")
            classes = None if labels is None else stored[labels].tolist()
            if scans is not None:
                from visynth.tabular.timeseries.lidar import from_scans

                return from_scans(stored[values], classes, least=scans[0], most=scans[1], step=step)
            return from_arrays(stored[values], classes, step=step)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as arrays ({error}).") from error


def cut(series: Series, length: int) -> Series:
    """Stretches of so many rows, one after the other without overlap, each a series of its entity's group.

    What is left at an entity's end is left out, and entities that are shorter; notes say how much.

    Raises:
        UsageError: no entity is that long.
        DataError: a class has no entity that is.
    """
    if length < 2 or not (series.lengths >= length).any():
        raise UsageError(f"no series has {length} rows: the longest has {int(series.lengths.max())}.")
    starts, owners = [], []
    for number, rows in enumerate(series.lengths.tolist()):
        for k in range(rows // length):
            starts.append(int(series.offsets[number]) + k * length)
            owners.append(number)
    rows = (np.array(starts)[:, None] + np.arange(length)).reshape(-1)
    short = [k for k, count in enumerate(series.lengths.tolist()) if count < length]
    labels = series.labels()
    gone = sorted(set(labels) - {labels[k] for k in owners})
    if gone:
        raise DataError(f"no series of class {choices(gone)} has {length} rows: cut to fewer.")
    left = len(series.times) - len(rows) - int(series.lengths[short].sum())
    groups = stretches([series.group_names[k] for k in owners])
    told = [f"{left} rows at the ends of series are left out"] if left else []
    if short:
        told.append(
            f"{len(short)} series shorter than {length} rows are left out ({choices([series.names[k] for k in short[:SHOWN]])})"
        )
    notes = (*series.schema.notes, *told)
    return Series(
        replace(series.schema, notes=notes),
        tuple(f"{series.names[k]}:{start - int(series.offsets[k])}" for k, start in zip(owners, starts, strict=True)),
        np.arange(len(starts) + 1, dtype=np.int64) * length,
        series.times[rows],
        {name: values[rows] for name, values in series.channels.items()},
        {name: values[np.array(owners)] for name, values in series.statics.items()},
        groups,
    )


STRETCHES = 10  # of a single entity, each kept together


def stretches(groups: Sequence[str]) -> tuple[str, ...]:
    """Groups of stretches; those of a single entity are ten runs of neighbours, as else nothing could be held out."""
    if len(set(groups)) > 1:
        return tuple(groups)
    count = min(STRETCHES, len(groups))
    return tuple(f"part {k * count // len(groups) + 1} of {count}" for k in range(len(groups)))


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
