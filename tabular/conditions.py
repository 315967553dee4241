"""Conditions on samples: a value, several allowed values, a range, or a frame that fixes cells row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import UsageError, choices, raise_all
from visynth.tabular.columns import Category, Column, Values, as_dtype
from visynth.tabular.frames import to_pandas
from visynth.tabular.schema import Schema, Table, missing_in

Bool = NDArray[np.bool_]
SHOWN = 12


@dataclass(frozen=True)
class Between:
    """A range of a number or date column, both ends included; None is open.

    Example:
        >>> Between(18, None)
        Between(low=18, high=None)
    """

    low: Any = None
    high: Any = None


@dataclass(frozen=True)
class Allowed:
    """What a column may be: one of some values, or in a range.

    Attributes:
        values: model values, or None for a range.
        low: of the range.
        high: of the range.
    """

    values: Values | None
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest number that is allowed; none is where the first is the larger."""
        if self.values is None:
            return self.low, self.high
        numbers = np.asarray(self.values, np.float64)[~missing_in(self.values)]
        return (float(numbers.min()), float(numbers.max())) if len(numbers) else (np.inf, -np.inf)

    def holds(self, values: Values) -> Bool:
        if self.values is None:
            return np.asarray((values >= self.low) & (values <= self.high))
        gone = missing_in(self.values).any() & missing_in(values)
        return np.asarray(np.isin(values, self.values) | gone)


@dataclass(frozen=True)
class Conditions:
    """Conditions in model values.

    Attributes:
        fixed: by column, the value of each row and whether it is given, each ``[N]``.
        allowed: by column, what every row may be.
    """

    fixed: Mapping[str, tuple[Values, Bool]]
    allowed: Mapping[str, Allowed]

    def take(self, rows: NDArray[np.int64]) -> Conditions:
        """Conditions of some rows."""
        return Conditions({name: (v[rows], given[rows]) for name, (v, given) in self.fixed.items()}, self.allowed)

    def broken(self, table: Mapping[str, Values], count: int) -> Bool:
        """Rows that do not satisfy them, bool ``[N]``."""
        bad = np.zeros(count, bool)
        for name, (values, given) in self.fixed.items():
            own = table[name]
            same = (own == values) | (missing_in(own) & missing_in(values))
            bad |= given & ~same
        for name, allowed in self.allowed.items():
            bad |= ~allowed.holds(table[name])
        return bad

    def written_over(self, table: Table) -> Table:
        """The table with the fixed values in place of those that were drawn."""
        for name, (values, given) in self.fixed.items():
            if name in table:
                table[name] = np.where(given, values, table[name])
        return table

    @property
    def columns(self) -> list[str]:
        return [*self.fixed, *self.allowed]

    @property
    def any(self) -> bool:
        return bool(self.fixed or self.allowed)


NO_CONDITIONS = Conditions({}, {})


def present(column: Column) -> Allowed:
    """The condition that a column has a value."""
    if isinstance(column, Category):
        return Allowed(np.arange(len(column.categories)), 0, 0)
    return Allowed(None, -np.inf, np.inf)


def read_conditions(schema: Schema, conditions: Any, count: int) -> Conditions:
    """Conditions as users write them, checked.

    Args:
        schema: of the table.
        conditions: ``{column: value}``, ``{column: [values]}``, ``{column: Between(low, high)}`` or ``{column: {"low":
            1, "high": 2}}``; None as a value means missing. Or a frame of ``count`` rows whose present cells are fixed.
        count: rows that are asked for.

    Raises:
        UsageError: an unknown column, a category that the data do not have, a range of a category; all problems at once.
    """
    if conditions is None:
        return NO_CONDITIONS
    if not isinstance(conditions, Mapping):
        return _of_frame(schema, conditions, count)
    fixed: dict[str, tuple[Values, Bool]] = {}
    allowed: dict[str, Allowed] = {}
    problems = []
    for name, wanted in conditions.items():
        try:
            column = _conditionable(schema, name)
            if isinstance(wanted, Mapping):
                unknown = [key for key in wanted if key not in ("low", "high")]
                if unknown:
                    raise UsageError(f"column {name!r}: a range has 'low' and 'high', but got {choices(unknown)}")
                wanted = Between(wanted.get("low"), wanted.get("high"))
            if isinstance(wanted, Between):
                allowed[name] = _range(column, wanted)
            elif isinstance(wanted, (list, tuple, set, frozenset)):
                if not wanted:
                    raise UsageError(f"column {name!r}: no value is allowed; give at least one")
                allowed[name] = Allowed(np.concatenate([_value(column, one) for one in wanted]), 0, 0)
            else:
                value = np.broadcast_to(_value(column, wanted), (count,))
                fixed[name] = value, np.broadcast_to(np.True_, (count,))
        except UsageError as error:
            problems.append(str(error).rstrip("."))
    raise_all("conditions", problems, UsageError)
    return Conditions(fixed, allowed)


def _conditionable(schema: Schema, name: str) -> Column:
    column = schema[name]
    if not column.modelled:
        modelled = [c.name for c in schema.modelled]
        raise UsageError(
            f"column {name!r} is of kind {column.kind} and not modelled; conditions can name {choices(modelled)}"
        )
    return column


def _value(column: Column, value: Any) -> Values:
    """One value as model values ``[1]``."""
    if isinstance(column, Category):
        code = column.code(value)
        if code is None:
            known = choices(column.categories[:SHOWN]) + (" and more" if len(column.categories) > SHOWN else "")
            raise UsageError(f"column {column.name!r} has no value {value!r}; it has {known}")
        return np.array([code], np.int64)
    return _numbers(column, value)


def _numbers(column: Column, value: Any, exact: bool = True) -> Values:
    if value is None or value is column.missing:
        if not column.nullable:
            raise UsageError(f"column {column.name!r} has no missing values in the data that were fitted")
        return np.array([np.nan])
    kind = column.dtype if isinstance(value, str) or column.kind == "datetime" else "object"
    try:
        values = column.parse(as_dtype([value], kind, column.name))
        return _with_digits(column, values, value) if exact else values
    except UsageError:
        raise
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"column {column.name!r} is {column.kind} ({column.dtype}), but got {value!r} ({error})"
        ) from None


def _with_digits(column: Column, values: Values, shown: Any) -> Values:
    """Values, refused where the column could not hold them: a row would come with another one."""
    rounded = column.rounded(values)
    close = np.isclose(rounded, values, rtol=1e-12, atol=1e-9, equal_nan=True)
    if not close.all():
        other = rounded[~close][0]
        raise UsageError(
            f"column {column.name!r} has values like {other:g}, not {shown!r}: give as many digits as it has"
        )
    return np.asarray(rounded)


def _range(column: Column, wanted: Between) -> Allowed:
    if isinstance(column, Category):
        raise UsageError(f"column {column.name!r} is {column.kind}: it has no ranges; give a list of values")
    low = -np.inf if wanted.low is None else float(_numbers(column, wanted.low, exact=False)[0])
    high = np.inf if wanted.high is None else float(_numbers(column, wanted.high, exact=False)[0])
    if not low <= high:
        raise UsageError(f"column {column.name!r}: no value is between {wanted.low!r} and {wanted.high!r}")
    return Allowed(None, low, high)


def _of_frame(schema: Schema, frame: Any, count: int) -> Conditions:
    rows, _ = to_pandas(frame)
    problems = [f"the frame has {len(rows)} rows, but {count} are asked for"] if len(rows) != count else []
    fixed = {}
    for name in rows.columns:
        try:
            column = _conditionable(schema, name)
            gone = column.is_missing(rows[name])
            values = np.full(len(rows), -1, np.int64) if isinstance(column, Category) else np.full(len(rows), np.nan)
            if not gone.all():
                values[~gone] = _with_digits(column, column.parse(rows[name][~gone]), "in the frame")
            fixed[name] = values, ~gone
        except ValueError as error:
            problems.append(str(error).rstrip("."))
    raise_all("conditions", problems, UsageError)
    return Conditions(fixed, {})
