"""Columns of a table: between what users' frames hold and the plain numbers and codes that models see, exactly both ways.

A *number* column (numeric, integer, datetime) is a float64 array with NaN where a value is missing; a *category* column
(categorical, boolean) an int64 array of indices into ``categories`` with -1 where it is missing. Identifiers, personal
data and free text are never modelled: see :mod:`visynth.tabular.identifiers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError
from visynth.tabular.frames import in_rows, pandas

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["numeric", "integer", "categorical", "boolean", "datetime", "id", "text", "constant"]
KINDS: tuple[Kind, ...] = ("numeric", "integer", "categorical", "boolean", "datetime", "id", "text", "constant")
Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Values = NDArray[Any]  # one of the two
EXACT = 2.0**53  # whole numbers beyond are not exact as float64
MICRO = 1e-6
EXAMPLES = 3


@dataclass(frozen=True)
class Column(ABC):
    """One column.

    Attributes:
        name: of the column.
        dtype: pandas' name of the data type, restored in samples.
        nullable: whether values can be missing.
        missing: how a missing value is written in a text column; None where the data type has one of its own.
    """

    kinds: ClassVar[tuple[Kind, ...]]

    name: str
    kind: Kind
    dtype: str
    nullable: bool = False
    missing: str | None = None

    @abstractmethod
    def parse(self, series: pd.Series) -> Values:
        """Model values of a frame's column.

        Raises:
            DataError: values that this column cannot hold; the message names the column and the rows.
        """

    @abstractmethod
    def format(self, values: Values) -> pd.Series:
        """A frame's column of model values."""

    @property
    def modelled(self) -> bool:
        return True

    def rounded(self, values: Values) -> Values:
        """Model values with the digits that the column has."""
        return values

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def is_missing(self, series: pd.Series) -> NDArray[np.bool_]:
        """Where a frame's column has no value, bool ``[N]``."""
        empty = np.asarray(series.isna())
        return empty if self.missing is None else empty | np.asarray(series == self.missing, bool)

    def _fail(self, rows: Iterable[int], series: pd.Series, why: str) -> DataError:
        rows = list(rows)
        shown = ", ".join(repr(series.iloc[row]) for row in rows[:EXAMPLES])
        return DataError(f"column {self.name!r}: {why}: {shown} in {in_rows(rows)}.")


def as_dtype(values: list[Any] | NDArray[Any], dtype: str, name: str) -> pd.Series:
    """A series of a data type given by its name; None is a missing value."""
    pd = pandas()
    if dtype == "object":
        return pd.Series(np.array([*values, None], dtype=object)[:-1], name=name, dtype=object)
    return pd.Series(values, name=name).astype(dtype)


@dataclass(frozen=True)
class Number(Column):
    """Real or whole numbers.

    Attributes:
        decimals: digits after the point; None: as many as a float has.
        style: in a text column, how 20 is written where others have fractions: ``"fixed"`` (20.00), ``"point"`` (20.0)
            or ``"plain"`` (20).
        written: whether the values are text.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("numeric", "integer")

    decimals: int | None = None
    style: Literal["fixed", "point", "plain"] = "point"
    written: bool = False

    def parse(self, series: pd.Series) -> Floats:
        pd, gone = pandas(), self.is_missing(series)
        values = np.full(len(series), np.nan)
        try:
            values[~gone] = pd.to_numeric(series[~gone]).to_numpy(dtype=np.float64)
        except (ValueError, TypeError):
            good = pd.to_numeric(series.mask(gone), errors="coerce").notna().to_numpy()
            raise self._fail(np.flatnonzero(~good & ~gone), series, "not numbers") from None
        for bad, why in (
            (np.isinf(values), "infinite values"),
            (
                np.abs(np.nan_to_num(values)) > EXACT,
                "whole numbers beyond 2**53 are not exact; declare the column as id",
            ),
            (np.isnan(values) & ~self.nullable, "missing values, but the column has none in the data that were fitted"),
        ):
            if bad.any() and not (self.kind == "numeric" and "2**53" in why):
                raise self._fail(np.flatnonzero(bad), series, why)
        return values

    def format(self, values: Values) -> pd.Series:
        values = self.rounded(values)
        gone = np.isnan(values)
        if self.written:
            words = [None if empty else self.text(v) for v, empty in zip(values.tolist(), gone.tolist(), strict=True)]
            return as_dtype([self.missing if w is None else w for w in words], self.dtype, self.name)
        pd = pandas()
        if self.dtype == "object":
            numbers = [
                None if e else int(v) if self.kind == "integer" else v for v, e in zip(values, gone, strict=True)
            ]
            return as_dtype(numbers, "object", self.name)
        if pd.api.types.is_extension_array_dtype(self.dtype):
            filled = np.where(gone, 0.0, values)
            whole = filled.astype(np.int64) if self.kind == "integer" else filled
            return pd.Series(whole, name=self.name).astype(self.dtype).mask(pd.Series(gone))
        return pd.Series(values, name=self.name).astype(self.dtype)

    def rounded(self, values: Values) -> Floats:
        """Values with the digits that the column has."""
        if self.kind == "integer":
            return np.asarray(np.round(values), np.float64)
        return np.asarray(values if self.decimals is None else np.round(values, self.decimals), np.float64)

    def text(self, value: float) -> str:
        """A number as a text column writes it."""
        if self.kind == "integer" or (self.style == "plain" and value == int(value)):
            return str(int(value))
        return f"{value:.{self.decimals}f}" if self.style == "fixed" else repr(float(value))


@dataclass(frozen=True)
class Category(Column):
    """One of a list of values.

    Attributes:
        categories: text, numbers or booleans.
        ordered: of a pandas Categorical.
        catch_all: whether values that are no category, and missing ones where there are none, count as the last one.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("categorical", "boolean")

    categories: tuple[Any, ...] = ()
    ordered: bool = False
    catch_all: bool = False

    def parse(self, series: pd.Series) -> Codes:
        gone = self.is_missing(series)
        known = {value: code for code, value in enumerate(self.categories)}
        unknown = len(self.categories) - 1 if self.catch_all else -2
        missing = unknown if self.catch_all and not self.nullable else -1
        codes = np.array(
            [missing if empty else known.get(v, unknown) for v, empty in zip(series.tolist(), gone, strict=True)]
        )
        codes = codes.astype(np.int64).reshape(-1)
        if (codes == -2).any():
            raise self._fail(np.flatnonzero(codes == -2), series, "values that the fitted data do not have")
        if gone.any() and not self.nullable and not self.catch_all:
            raise self._fail(np.flatnonzero(gone), series, "missing values, but the fitted data have none")
        return codes

    def format(self, values: Values) -> pd.Series:
        pd = pandas()
        if self.dtype == "category":
            kind = pd.CategoricalDtype(list(self.categories), self.ordered)
            return pd.Series(pd.Categorical.from_codes(values, dtype=kind), name=self.name)
        lookup = np.array([*self.categories, self.missing], dtype=object)
        return as_dtype(list(lookup[values]), self.dtype, self.name)

    def code(self, value: Any) -> int | None:
        """Index of a category, -1 of a missing value, None of an unknown one."""
        if value is None or (isinstance(value, float) and np.isnan(value)) or value == self.missing:
            return -1 if self.nullable else None
        return next((code for code, known in enumerate(self.categories) if known == value), None)


@dataclass(frozen=True)
class Date(Column):
    """Points in time, as seconds since 1970 (UTC where there is no zone), exact to the microsecond.

    Attributes:
        format_: how text or whole numbers are written, as strptime has it; None for columns of dates.
        step: seconds of which every value is a multiple: 86400 for days, 1, or 1e-6.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("datetime",)

    format_: str | None = None
    step: float = 1.0

    def parse(self, series: pd.Series) -> Floats:
        gone = self.is_missing(series)
        times = parse_dates(series.mask(gone) if self.missing is not None else series, self.format_)
        seconds = to_seconds(times)
        bad = np.isnan(seconds) & ~gone
        if bad.any():
            raise self._fail(np.flatnonzero(bad), series, f"not dates as {self.format_ or self.dtype}")
        if gone.any() and not self.nullable:
            raise self._fail(np.flatnonzero(gone), series, "missing values, but the fitted data have none")
        return seconds

    def format(self, values: Values) -> pd.Series:
        pd = pandas()
        gone = np.isnan(values)
        micros = np.round(np.where(gone, 0.0, values) / MICRO).astype(np.int64)
        times = pd.Series(pd.to_datetime(micros, unit="us"), name=self.name)
        if self.format_ is not None:
            words = times.dt.strftime(self.format_).tolist()
            if not self.is_number:
                return as_dtype(
                    [self.missing if e else w for w, e in zip(words, gone, strict=True)], self.dtype, self.name
                )
            numbers = [None if empty else int(word) for word, empty in zip(words, gone, strict=True)]
            return as_dtype(numbers, self.dtype, self.name)
        if self.dtype == "object":
            days = [None if empty else time.date() for time, empty in zip(times, gone, strict=True)]
            return as_dtype(days, "object", self.name)
        kind = pd.api.types.pandas_dtype(self.dtype)
        if getattr(kind, "tz", None) is not None:
            times = times.dt.tz_localize("UTC").dt.tz_convert(kind.tz)
        return times.astype(self.dtype).mask(pd.Series(gone))

    @property
    def is_number(self) -> bool:
        return self.dtype.lower().startswith(("int", "uint", "float"))

    def rounded(self, values: Values) -> Floats:
        return np.asarray(np.round(values / self.step) * self.step, np.float64)


def parse_dates(series: pd.Series, format_: str | None) -> pd.Series:
    """Dates of a column; what is not one becomes NaT."""
    pd = pandas()
    if format_ is not None and not pd.api.types.is_string_dtype(series.dtype):
        series = pd.to_numeric(series, errors="coerce").astype("Int64").astype("string")
    return pd.to_datetime(series, format=format_, errors="coerce")


def to_seconds(times: pd.Series) -> Floats:
    """Seconds since 1970 in UTC, float64 with NaN for NaT."""
    if getattr(times.dtype, "tz", None) is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    micros = times.astype("datetime64[us]").to_numpy().astype(np.int64)
    return np.where(times.isna().to_numpy(), np.nan, micros * MICRO)


@dataclass(frozen=True)
class Constant(Column):
    """One value in every row, or none in any."""

    kinds: ClassVar[tuple[Kind, ...]] = ("constant",)

    value: Any = None

    def parse(self, series: pd.Series) -> Values:
        gone = self.is_missing(series)
        other = ~gone if self.value is None else gone | (series != self.value).to_numpy(dtype=bool, na_value=True)
        if other.any():
            raise self._fail(
                np.flatnonzero(other), series, f"the fitted data have {self.value!r} in every row, but here are"
            )
        return np.zeros(len(series))

    def format(self, values: Values) -> pd.Series:
        value = self.missing if self.value is None else self.value
        if self.dtype == "category":
            pd = pandas()
            return pd.Series(pd.Categorical([value] * len(values)), name=self.name)
        return as_dtype([value] * len(values), self.dtype, self.name)

    @property
    def modelled(self) -> bool:
        return False


@dataclass(frozen=True)
class Text(Column):
    """Free text: not modelled here, and empty in samples, because drawing real sentences would copy them."""

    kinds: ClassVar[tuple[Kind, ...]] = ("text",)

    def parse(self, series: pd.Series) -> Values:
        return np.zeros(len(series))

    def format(self, values: Values) -> pd.Series:
        return as_dtype([self.missing] * len(values), self.dtype, self.name)

    @property
    def modelled(self) -> bool:
        return False


def restored(said: Mapping[str, Any], classes: Iterable[type[Column]]) -> Column:
    """The column again, from its JSON."""
    own: Any = next(c for c in classes if said["kind"] in c.kinds)
    column: Column = own(**{key: tuple(value) if isinstance(value, list) else value for key, value in said.items()})
    return column
