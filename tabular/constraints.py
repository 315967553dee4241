"""Rules between columns that every sample keeps: checked on the real rows first, then enforced on synthetic ones.

A column that a formula gives is computed, not modelled. A row that breaks another rule is drawn again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import UsageError, choices, raise_all
from visynth.tabular.columns import Category, Floats, Values
from visynth.tabular.frames import in_rows
from visynth.tabular.schema import Schema, Table, missing_in, rows_of

Bool = NDArray[np.bool_]
NO_KEY = b""  # of a row without a whole key
TOLERANCE = 1e-6  # of a formula, relative to its value, beside half a digit of the column


class Constraint(ABC):
    """One rule. Rules about missing values hold where a value is missing."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Columns that it speaks of."""

    @abstractmethod
    def broken(self, table: Mapping[str, Values], schema: Schema) -> Bool:
        """Rows that break it, bool ``[N]``."""

    @property
    def computed(self) -> str | None:
        """The column that it gives."""
        return None

    def problems(self, schema: Schema) -> list[str]:
        """What is wrong with it for this table."""
        lost = [name for name in self.columns if name not in schema]
        if lost:
            return [f"{self}: there is no column {choices(lost)}; the columns are {choices(schema.names)}"]
        kept = [name for name in self.columns if not schema[name].modelled]
        return [f"{self}: column {choices(kept)} is of kind {schema[kept[0]].kind} and not modelled"] if kept else []

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


class _OfNumbers(Constraint):
    def problems(self, schema: Schema) -> list[str]:
        found = super().problems(schema)
        words = [] if found else [name for name in self.columns if isinstance(schema[name], Category)]
        return found + ([f"{self}: column {choices(words)} holds no numbers"] if words else [])


@dataclass(frozen=True)
class Inequality(_OfNumbers):
    """``low <= high``, or ``low < high``, between two number or date columns.

    Example:
        >>> str(Inequality("start", "end"))
        "Inequality(low='start', high='end', strict=False)"
    """

    kind: ClassVar[str] = "inequality"

    low: str
    high: str
    strict: bool = False

    @property
    def columns(self) -> list[str]:
        return [self.low, self.high]

    def broken(self, table: Mapping[str, Values], schema: Schema) -> Bool:
        low, high = table[self.low], table[self.high]
        with np.errstate(invalid="ignore"):
            return np.asarray(low >= high if self.strict else low > high)


@dataclass(frozen=True)
class Range(_OfNumbers):
    """A number column between two numbers, both included; None is open."""

    kind: ClassVar[str] = "range"

    column: str
    low: float | None = None
    high: float | None = None

    @property
    def columns(self) -> list[str]:
        return [self.column]

    def broken(self, table: Mapping[str, Values], schema: Schema) -> Bool:
        values = table[self.column]
        low, high = (-np.inf if self.low is None else self.low), (np.inf if self.high is None else self.high)
        return np.asarray((values < low) | (values > high))


class _Formula(_OfNumbers):
    """A column that follows from others."""

    column: str

    @property
    def computed(self) -> str | None:
        return self.column

    @abstractmethod
    def compute(self, table: Mapping[str, Values]) -> Floats:
        """The column's values, before rounding."""

    def value(self, table: Mapping[str, Values], schema: Schema) -> Floats:
        """The column's values with its digits."""
        return schema[self.column].rounded(self.compute(table))

    def broken(self, table: Mapping[str, Values], schema: Schema) -> Bool:
        own, right = table[self.column], self.compute(table)
        decimals = getattr(schema[self.column], "decimals", None)
        slack = np.abs(right) * TOLERANCE + (0.5 * 10.0**-decimals if decimals is not None else TOLERANCE)
        with np.errstate(invalid="ignore"):
            return np.asarray((np.abs(own - right) > slack * 1.001) | (missing_in(own) != np.isnan(right)))


@dataclass(frozen=True)
class Sum(_Formula):
    """``column = constant + sum of factor * other column``.

    Example:
        >>> Sum("total", {"net": 1.0, "tax": 1.0}).compute({"net": np.array([2.0]), "tax": np.array([0.5])}).tolist()
        [2.5]
    """

    kind: ClassVar[str] = "sum"

    column: str
    terms: Mapping[str, float]
    constant: float = 0.0

    @property
    def columns(self) -> list[str]:
        return [self.column, *self.terms]

    def compute(self, table: Mapping[str, Values]) -> Floats:
        return np.asarray(self.constant + np.sum([factor * table[name] for name, factor in self.terms.items()], axis=0))


@dataclass(frozen=True)
class Product(_Formula):
    """``column = factor * product of other columns``."""

    kind: ClassVar[str] = "product"

    column: str
    of: Sequence[str]
    factor: float = 1.0

    @property
    def columns(self) -> list[str]:
        return [self.column, *self.of]

    def compute(self, table: Mapping[str, Values]) -> Floats:
        return np.asarray(self.factor * np.prod([table[name] for name in self.of], axis=0))


@dataclass(frozen=True)
class Combinations(Constraint):
    """Only combinations of categories that the real rows have (a city lies in one country).

    Attributes:
        of: category columns.
        seen: filled from the real rows.
    """

    kind: ClassVar[str] = "combinations"

    of: Sequence[str]
    seen: Sequence[Sequence[int]] = ()

    @property
    def columns(self) -> list[str]:
        return list(self.of)

    def problems(self, schema: Schema) -> list[str]:
        found = super().problems(schema)
        numbers = [] if found else [name for name in self.of if not isinstance(schema[name], Category)]
        return found + ([f"{self}: column {choices(numbers)} is no category"] if numbers else [])

    def learned(self, table: Mapping[str, Values]) -> Combinations:
        """With the combinations of real rows."""
        rows = np.unique(np.stack([table[name] for name in self.of], axis=1), axis=0)
        return Combinations(tuple(self.of), tuple(tuple(int(v) for v in row) for row in rows))

    def broken(self, table: Mapping[str, Values], schema: Schema) -> Bool:
        if not self.seen:
            return np.zeros(rows_of(table), bool)
        sizes = [len(getattr(schema[name], "categories", ())) + 1 for name in self.of]
        keys = np.ravel_multi_index([table[name] + 1 for name in self.of], sizes)
        known = np.ravel_multi_index((np.array(self.seen, np.int64) + 1).T, sizes)
        return ~np.isin(keys, known)


@dataclass(frozen=True)
class Unique(Constraint):
    """No two samples have the same values in these columns."""

    kind: ClassVar[str] = "unique"

    of: Sequence[str]

    @property
    def columns(self) -> list[str]:
        return list(self.of)

    def keys(self, table: Mapping[str, Values]) -> list[bytes]:
        """One key a row; ``NO_KEY`` where a value is missing."""
        matrix = np.stack([np.asarray(table[name], np.float64) + 0.0 for name in self.of], axis=1)
        gone = np.any([missing_in(table[name]) for name in self.of], axis=0)
        return [NO_KEY if empty else row.tobytes() for row, empty in zip(matrix, gone, strict=True)]

    def broken(self, table: Mapping[str, Values], schema: Schema) -> Bool:
        keys, seen = self.keys(table), set[bytes]()
        again = np.zeros(len(keys), bool)
        for place, key in enumerate(keys):
            again[place] = key in seen
            seen |= {key} - {NO_KEY}
        return again


CONSTRAINTS: tuple[type[Constraint], ...] = (Inequality, Range, Sum, Product, Combinations, Unique)


def read_constraint(said: Mapping[str, Any]) -> Constraint:
    """A constraint from its JSON, as configurations have it.

    Raises:
        UsageError: unknown kind or arguments.

    Example:
        >>> read_constraint({"kind": "range", "column": "age", "low": 0})
        Range(column='age', low=0, high=None)
    """
    kinds: dict[str, Any] = {c.kind: c for c in CONSTRAINTS}
    kind = said.get("kind")
    if kind not in kinds:
        raise UsageError(f"a constraint's kind must be one of {choices(kinds)}, but got {kind!r}.")
    own = {key: tuple(v) if isinstance(v, list) else v for key, v in said.items() if key != "kind"}
    names = [field.name for field in fields(kinds[kind])]
    unknown = [key for key in own if key not in names]
    if unknown:
        raise UsageError(f"constraint {kind!r} has {choices(names)}, but got {choices(unknown)}.")
    try:
        built: Constraint = kinds[kind](**own)
    except TypeError as error:
        raise UsageError(f"constraint {kind!r} needs more: {error}.") from None
    return built


@dataclass(frozen=True)
class Rules:
    """All constraints of a table, checked against it."""

    constraints: tuple[Constraint, ...] = ()

    @classmethod
    def of(cls, constraints: Sequence[Constraint | Mapping[str, Any]], schema: Schema, table: Table) -> Rules:
        """Constraints that fit the schema, one another and every real row.

        Raises:
            UsageError: unknown columns, or constraints that contradict one another; all problems at once.
            DataError: real rows break a constraint.
        """
        read = [read_constraint(c) if isinstance(c, Mapping) else c for c in constraints]
        problems = [problem for c in read for problem in c.problems(schema)]
        raise_all("constraints", problems or _contradictions(read), UsageError)
        read = [c.learned(table) if isinstance(c, Combinations) else c for c in read]
        broken = [(c, np.flatnonzero(c.broken(table, schema))) for c in read]
        raise_all("the table", [f"{_short(c)} does not hold in {in_rows(rows)}" for c, rows in broken if len(rows)])
        return cls(tuple(read))

    @property
    def computed(self) -> list[str]:
        """Columns that are computed."""
        return [c.column for c in self._formulas()]

    def complete(self, table: Table, schema: Schema) -> Table:
        """The table with its computed columns."""
        done = dict(table)
        for formula in self._formulas():
            done[formula.column] = formula.value(done, schema)
        return done

    def broken(self, table: Table, schema: Schema) -> Bool:
        """Rows that break a rule, uniqueness aside."""
        bad = np.zeros(rows_of(table), bool)
        for c in self.constraints:
            if isinstance(c, _Formula):
                gone = missing_in(table[c.column])
                bad |= gone & (not schema[c.column].nullable)
            elif not isinstance(c, Unique):
                bad |= c.broken(table, schema)
        return bad

    @property
    def unique(self) -> list[Unique]:
        return [c for c in self.constraints if isinstance(c, Unique)]

    def _formulas(self) -> list[_Formula]:
        """Formulas in an order in which each has what it needs."""
        left, ordered = [c for c in self.constraints if isinstance(c, _Formula)], []
        while left:
            waiting = {c.column for c in left}
            ready = [c for c in left if not waiting & set(c.columns[1:])]
            ordered += ready
            left = [c for c in left if c not in ready]
        return ordered

    def to_json(self) -> list[dict[str, Any]]:
        return [c.to_json() for c in self.constraints]


def _short(constraint: Constraint) -> str:
    return f"Combinations(of={constraint.of!r})" if isinstance(constraint, Combinations) else str(constraint)


def _contradictions(constraints: Sequence[Constraint]) -> list[str]:
    """Constraints that no row can keep together."""
    problems = []
    given = [c.computed for c in constraints if c.computed]
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        problems.append(f"columns {choices(twice)} are given by more than one formula")
    problems += _circles({c.column: set(c.columns[1:]) & set(given) for c in constraints if isinstance(c, _Formula)})
    for one in constraints:
        if isinstance(one, Range) and one.low is not None and one.high is not None and one.low > one.high:
            problems.append(f"{one} leaves no value")
    edges = {(c.low, c.high): c.strict for c in constraints if isinstance(c, Inequality)}
    names = {name for edge in edges for name in edge}
    reach = dict(edges)
    for middle in names:
        for first in names:
            for last in names:
                if (first, middle) in reach and (middle, last) in reach:
                    strict = reach[(first, middle)] or reach[(middle, last)]
                    reach[(first, last)] = reach.get((first, last), False) or strict
    stuck = sorted(name for name in names if reach.get((name, name), False))
    if stuck:
        problems.append(
            f"inequalities contradict one another: {choices(stuck)} would have to be smaller than themselves"
        )
    return problems


def _circles(needs: Mapping[str, set[str]]) -> list[str]:
    left = dict(needs)
    while ready := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in ready}
    return [f"formulas need one another in a circle: {choices(sorted(left))}"] if left else []
