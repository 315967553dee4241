"""Tables in and out: CSV and Parquet files, pandas and polars frames, and what makes a frame unusable."""

from __future__ import annotations

import csv
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from visynth.core.errors import DataError, MissingExtra, OutputError, UsageError, choices, raise_all
from visynth.core.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd

Library = Literal["pandas", "polars"]
ENDINGS = (".csv", ".parquet")
PLAIN = r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]\d\d+)?"  # numbers as programs write them
SHOWN = 5  # rows that a problem names


def pandas() -> Any:
    """The pandas module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra("tables need pandas and pyarrow: pip install 'visynth[tabular]'.") from error
    return pandas


def to_pandas(frame: Any) -> tuple[pd.DataFrame, Library]:
    """A pandas frame with a plain index, and the library that the frame came from.

    Args:
        frame: a pandas or polars data frame; it is not changed.

    Raises:
        UsageError: something else.
    """
    pd = pandas()
    if isinstance(frame, pd.DataFrame):
        return frame.reset_index(drop=True), "pandas"
    if type(frame).__module__.split(".")[0] == "polars" and hasattr(frame, "to_arrow"):
        nullable = {
            "int8": pd.Int8Dtype(), "int16": pd.Int16Dtype(), "int32": pd.Int32Dtype(), "int64": pd.Int64Dtype(),
            "uint8": pd.UInt8Dtype(), "uint16": pd.UInt16Dtype(), "uint32": pd.UInt32Dtype(), "uint64": pd.UInt64Dtype(),
            "bool": pd.BooleanDtype(), "float": pd.Float32Dtype(), "double": pd.Float64Dtype(),
        }  # fmt: skip
        return frame.to_arrow().to_pandas(types_mapper=lambda kind: nullable.get(str(kind))), "polars"
    raise UsageError(f"a table must be a pandas or a polars DataFrame, but got {type(frame).__name__}.")


def in_library(frame: pd.DataFrame, library: Library) -> Any:
    """The frame as its user's library has it."""
    if library == "pandas":
        return frame
    try:
        import polars
    except ImportError as error:
        raise MissingExtra("this generator was fitted on a polars frame: pip install polars.") from error
    return polars.from_pandas(frame)


def read_table(path: str | Path, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """A CSV or Parquet file as a frame. Only empty fields of a CSV are missing: "NA" may be Namibia.

    A CSV column becomes numbers only where numbers would be written as the file has them: "007" stays text.

    Raises:
        DataError: no such file, nothing in it, not readable, or duplicate column names.
        UsageError: another ending.
    """
    pd, file = pandas(), Path(path)
    if not file.is_file():
        raise DataError(f"there is no file {path}: give a {' or '.join(ENDINGS)} file.")
    if file.suffix.lower() not in ENDINGS:
        raise UsageError(f"tables are read from {choices(ENDINGS)} files, but got {path}.")
    try:
        if file.suffix.lower() == ".parquet":
            return pd.read_parquet(
                file, columns=None if columns is None else list(columns), dtype_backend="numpy_nullable"
            )
        header = _csv_header(file)
        _check_names(str(path), header)
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except DataError:
        raise
    except Exception as error:  # pandas and pyarrow raise many kinds
        raise DataError(f"{path} cannot be read as a table ({type(error).__name__}: {error}).") from error
    return pd.DataFrame({name: _typed(frame[name]) for name in frame.columns})


def _csv_header(file: Path) -> list[Hashable]:
    with open(file, encoding="utf-8-sig", newline="") as stream:
        header: list[Hashable] = [*next(csv.reader(stream), [])]
    if not header:
        raise DataError(f"{file} is empty: it needs a line of column names and rows.")
    return header


def _typed(column: pd.Series) -> pd.Series:
    """Text as numbers or booleans, where all of it is plain numbers or truth values."""
    pd = pandas()
    present = column.dropna()
    if present.empty:
        return column
    full = len(present) == len(column)
    if set(present.unique()) <= {"True", "False"}:
        return column.map({"True": True, "False": False}).astype("bool" if full else "boolean")
    if not present.str.fullmatch(PLAIN).all():
        return column
    if present.str.fullmatch(r"-?\d{1,18}").all():
        return pd.to_numeric(column).astype("Int64").astype("int64" if full else "Int64")
    if present.str.fullmatch(r"-?\d+").any() and present.str.fullmatch(r"-?\d{16,}").any():
        return column  # as floats they would change
    return pd.to_numeric(column).astype("float64" if full else "Float64")


def write_table(frames: Iterable[Any], path: str | Path) -> int:
    """Write frames one after the other as one CSV or Parquet file; it appears complete or not at all.

    Args:
        frames: pandas or polars frames with equal columns; only one is in memory at a time.
        path: ends in .csv or .parquet; a file of that name is replaced.

    Returns:
        Number of rows.

    Raises:
        OutputError: it cannot be written.
    """
    file = Path(path)
    if file.suffix.lower() not in ENDINGS:
        raise UsageError(f"tables are written as {choices(ENDINGS)} files, but got {path}.")
    if not file.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {file.parent}.")
    temporary = file.with_name(f".{file.name}.part")
    try:
        rows = _write_all((to_pandas(frame)[0] for frame in frames), temporary, file.suffix.lower())
        temporary.replace(file)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def _write_all(frames: Iterator[pd.DataFrame], path: Path, ending: str) -> int:
    rows, writer = 0, None
    if ending == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as stream:
            for frame in frames:
                frame.to_csv(stream, index=False, header=rows == 0)
                rows += len(frame)
        return rows
    import pyarrow
    import pyarrow.parquet

    try:
        for frame in frames:
            table = pyarrow.Table.from_pandas(frame, preserve_index=False)
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table.cast(writer.schema))
            rows += len(frame)
    finally:
        if writer is not None:
            writer.close()
    return rows


def parquet_bytes(frame: Any) -> bytes:
    """A frame as the bytes of a Parquet file."""
    import io

    buffer = io.BytesIO()
    to_pandas(frame)[0].to_parquet(buffer, index=False)
    return buffer.getvalue()


def write_parquet(frame: Any, path: str | Path) -> str:
    """Write one frame as a synced Parquet file; returns its sha256."""
    from hashlib import sha256

    data = parquet_bytes(frame)
    write_bytes(Path(path), data)
    return sha256(data).hexdigest()


def check_frame(frame: pd.DataFrame, where: str = "the table", least: int = 1) -> None:
    """Refuse a frame that cannot be modelled; all problems at once.

    Raises:
        DataError: no rows or columns, duplicate or unnamed columns, mixed types or infinite values in a column.
    """
    _check_names(where, list(frame.columns))
    problems = []
    if len(frame) < max(least, 1):
        problems.append(f"it has {len(frame)} rows, and a model needs at least {max(least, 1)}")
    for name in frame.columns:
        problems += [f"column {name!r}: {problem}" for problem in _column_problems(frame[name])]
    raise_all(where, problems)


def _check_names(where: str, names: list[Hashable]) -> None:
    problems = [] if names else ["it has no columns"]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        problems.append(f"columns {choices(twice)} stand twice: rename them")
    unnamed = [name for name in names if not isinstance(name, str) or not name.strip()]
    if unnamed:
        problems.append(f"columns {choices(unnamed)} have no text as their name: use frame.columns.astype(str)")
    raise_all(where, problems)


def _column_problems(column: pd.Series) -> Iterator[str]:
    pd = pandas()
    if pd.api.types.is_float_dtype(column.dtype):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        rows = np.flatnonzero(np.isinf(values))
        if len(rows):
            yield f"infinite values in {in_rows(rows)}: replace them by the largest value meant, or leave them empty"
    elif pd.api.types.is_complex_dtype(column.dtype):
        yield "complex numbers cannot be modelled"
    elif column.dtype == object:
        yield from _object_problems(column)


def _object_problems(column: pd.Series) -> Iterator[str]:
    present = column[column.notna()]
    kinds = present.map(lambda value: _kind_of(value))
    counts = kinds.value_counts()
    for kind in counts.index:
        if kind not in ("text", "number", "boolean", "date"):
            yield f"values of type {kind} in {in_rows(kinds.index[kinds == kind])} cannot be modelled: convert the column"
    known = [kind for kind in counts.index if kind in ("text", "number", "boolean", "date")]
    if len(known) > 1:
        few = [f"{kind} in {in_rows(kinds.index[kinds == kind])}" for kind in known[1:]]
        yield f"mixed types: {counts[known[0]]} times {known[0]}, but {' and '.join(few)}: convert the column to one type"
    if "number" in known:
        rows = present.index[present.map(lambda v: isinstance(v, float) and np.isinf(v))]
        if len(rows):
            yield f"infinite values in {in_rows(rows)}"


def _kind_of(value: Any) -> str:
    import datetime

    if isinstance(value, str):
        return "text"
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, (int, float, np.number)):
        return "number"
    if isinstance(value, (datetime.date, np.datetime64)):
        return "date"
    return type(value).__name__


def in_rows(rows: Iterable[Any]) -> str:
    """Row numbers for an error, counted from 0 as pandas does; the first few are named.

    Example:
        >>> in_rows([3]), in_rows(range(9))
        ('row 3', 'rows 0, 1, 2, 3, 4 and 4 more')
    """
    numbers = [int(row) for row in rows]
    named = ", ".join(map(str, numbers[:SHOWN]))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {named}{more}"


def without(frame: Any, drop: Sequence[str]) -> Any:
    """The frame without some columns.

    Raises:
        UsageError: it has no such columns.
    """
    lost = [name for name in drop if name not in frame.columns]
    if lost:
        raise UsageError(f"--drop names {lost}, but the columns are {list(frame.columns)}.")
    return frame.drop(columns=list(drop))
