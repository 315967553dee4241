"""A table as small whole numbers: every column becomes one to three *fields* of a few hundred codes at most.

Numbers are binned (:mod:`visynth.tabular.bins`). A category of thousands of values becomes two fields, its group by
frequency and its place in the group, so that nothing is ever as wide as the list of values. Dates become day, or week and
weekday, and the time of day. A missing value is code 0 of a column's first field where the column has missing values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import raise_all
from visynth.tabular.bins import Bins
from visynth.tabular.columns import Category, Codes, Column, Date, Floats, Number, Values
from visynth.tabular.schema import Schema, Table, missing_in

WIDE = 256  # categories above which a column becomes two fields
MOST_RARE = 0.2  # share of a column's rows in rare categories that is refused
DAY = 86400
MONDAY = 3  # days from a Monday to 1970-01-01

Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Field:
    """One discrete variable.

    Attributes:
        column: that it belongs to.
        size: number of codes.
        never: codes that are not sampled.
        parent: number of the field of the same column, among the column's own, that is sampled before it.
        limits: for each code of the parent, how many codes are legal, counted from 0.
    """

    column: str
    size: int
    never: tuple[int, ...] = ()
    parent: int | None = None
    limits: tuple[int, ...] = ()


class Codec(ABC):
    """A column's values as codes of its fields, and back."""

    name: str

    @property
    @abstractmethod
    def fields(self) -> tuple[Field, ...]:
        """The column's fields, a parent before its own."""

    @abstractmethod
    def encode(self, values: Values) -> Codes:
        """Codes ``[N, fields]``."""

    @abstractmethod
    def decode(self, codes: Codes, u: Floats) -> Values:
        """Values of codes; ``u`` ``[N, fields]`` in (0, 1) says where in its bin each value lies."""

    @abstractmethod
    def within(self, holds: Callable[[Values], Bool], low: float, high: float) -> list[Bool]:
        """For each field, codes that may belong to a value for which something holds.

        Args:
            holds: says of values whether they are allowed.
            low: lowest number that may be allowed.
            high: highest one.
        """


@dataclass(frozen=True)
class NumberCodec(Codec):
    """A number column."""

    name: str
    nullable: bool
    bins: Bins

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        return (Field(self.name, self.bins.size + self.nullable),)

    def encode(self, values: Values) -> Codes:
        gone = np.isnan(values)
        codes = self.bins.encode(np.where(gone, 0.0, values)) + self.nullable
        return np.where(gone, 0, codes)[:, None]

    def decode(self, codes: Codes, u: Floats) -> Values:
        own = codes[:, 0] - self.nullable
        return np.where(own < 0, np.nan, self.bins.decode(np.maximum(own, 0), u[:, 0]))

    def within(self, holds: Callable[[Values], Bool], low: float, high: float) -> list[Bool]:
        lows, highs = self.bins.span()
        legal = (lows <= high) & (highs >= low)
        if not legal.any() and low <= high:  # beyond all data: the nearest bin is searched
            legal[self.bins.encode(np.array([low]))] = True
        return [np.concatenate([holds(np.array([np.nan])), legal]) if self.nullable else legal]


@dataclass(frozen=True)
class CategoryCodec(Codec):
    """A category column.

    Attributes:
        order: modelled categories, from the most frequent to the rarest; others are the code "rare".
        categories: number of all categories.
        rare: whether there is a code for categories that are too rare to be modelled.
        floor: rows that a modelled category has at least.
    """

    name: str
    nullable: bool
    order: tuple[int, ...]
    categories: int
    rare: bool
    floor: int = 1

    def rare_share(self, values: Values) -> float:
        """Share of rows whose category is too rare."""
        return float((~np.isin(values, [*self.order, -1])).mean()) if self.rare else 0.0

    @property
    def first(self) -> int:
        """Code of the first category."""
        return self.nullable + self.rare

    @property
    def width(self) -> int:
        """Categories in a group; 0 where there is one field."""
        return 0 if len(self.order) <= WIDE else int(np.ceil(np.sqrt(len(self.order))))

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        never = (int(self.nullable),) if self.rare else ()
        if not self.width:
            return (Field(self.name, len(self.order) + self.first, never),)
        groups = -(-len(self.order) // self.width)
        sizes = [min(self.width, len(self.order) - g * self.width) for g in range(groups)]
        major = Field(self.name, groups + self.first, never)
        return major, Field(self.name, self.width, (), 0, (*[1] * self.first, *sizes))

    @cached_property
    def _rank(self) -> Codes:
        rank = np.full(self.categories + 1, -1, np.int64)  # the last is that of a missing value
        rank[list(self.order)] = np.arange(len(self.order))
        return rank

    def encode(self, values: Values) -> Codes:
        rank = self._rank[values]
        special = np.where(values < 0, 0, int(self.nullable))
        if not self.width:
            return np.where(rank < 0, special, rank + self.first)[:, None]
        major = np.where(rank < 0, special, rank // self.width + self.first)
        return np.stack([major, np.where(rank < 0, 0, rank % self.width)], axis=1)

    def decode(self, codes: Codes, u: Floats) -> Values:
        rank = codes[:, 0] - self.first
        if self.width:
            rank = np.where(rank < 0, rank, rank * self.width + codes[:, 1])
        lookup = np.array([*self.order, -1], np.int64)
        return lookup[np.where(rank < 0, -1, np.minimum(rank, len(self.order) - 1))]

    def within(self, holds: Callable[[Values], Bool], low: float, high: float) -> list[Bool]:
        legal = [np.zeros(field.size, bool) for field in self.fields]
        good = np.flatnonzero(holds(np.arange(self.categories)))
        codes = self.encode(np.append(good, -1) if self.nullable and holds(np.array([-1]))[0] else good)
        for number, mask in enumerate(legal):
            mask[codes[:, number]] = True
            mask[list(self.fields[number].never)] = False
        return legal


@dataclass(frozen=True)
class DateCodec(Codec):
    """A date column: its day, or its week and weekday, and the second of the day.

    Attributes:
        days: bins of day numbers, or of week numbers where ``weekly``.
        weekly: whether weekdays are a field of their own.
        seconds: bins of the second of the day; None where all are midnight.
    """

    name: str
    nullable: bool
    days: Bins
    weekly: bool
    seconds: Bins | None

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        first = Field(self.name, self.days.size + self.nullable)
        parts = [7] if self.weekly else []
        parts += [] if self.seconds is None else [self.seconds.size]
        limits = [(*[1] * self.nullable, *[size] * self.days.size) for size in parts]
        return first, *(Field(self.name, s, (), 0, own) for s, own in zip(parts, limits, strict=True))

    def encode(self, values: Values) -> Codes:
        gone = np.isnan(values)
        day, second = np.divmod(np.where(gone, 0.0, values), DAY)
        parts = [self.days.encode((day + MONDAY) // 7 if self.weekly else day) + self.nullable]
        if self.weekly:
            parts.append(((day + MONDAY) % 7).astype(np.int64))
        if self.seconds is not None:
            parts.append(self.seconds.encode(second))
        return np.where(gone[:, None], 0, np.stack(parts, axis=1))

    def decode(self, codes: Codes, u: Floats) -> Values:
        own = codes[:, 0] - self.nullable
        day = self.days.decode(np.maximum(own, 0), u[:, 0])
        if self.weekly:
            day = day * 7 + codes[:, 1] - MONDAY
        second = 0.0 if self.seconds is None else self.seconds.decode(codes[:, -1], u[:, -1])
        return np.where(own < 0, np.nan, day * DAY + second)

    def within(self, holds: Callable[[Values], Bool], low: float, high: float) -> list[Bool]:
        lows, highs = self.days.span()
        if self.weekly:
            lows, highs = lows * 7 - MONDAY, highs * 7 - MONDAY + 6
        legal = (lows * DAY <= high) & ((highs + 1) * DAY > low)
        first = np.concatenate([holds(np.array([np.nan])), legal]) if self.nullable else legal
        return [first, *(np.ones(field.size, bool) for field in self.fields[1:])]


class OfFields:
    """Columns as fields, numbered through."""

    codecs: Any  # one a column, each with ``name`` and ``fields``

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        return tuple(field for codec in self.codecs for field in codec.fields)

    @cached_property
    def places(self) -> dict[str, range]:
        """Numbers of each column's fields."""
        places, start = {}, 0
        for codec in self.codecs:
            places[codec.name] = range(start, start + len(codec.fields))
            start += len(codec.fields)
        return places

    def parent(self, field: int) -> int | None:
        """Number of the field that is sampled before another, and says which of its codes are legal."""
        own = self.fields[field]
        return None if own.parent is None else self.places[own.column][own.parent]


@dataclass(frozen=True)
class Discretizer(OfFields):
    """All modelled columns of a table as codes.

    Example:
        >>> import pandas
        >>> from visynth.tabular.inference import infer
        >>> frame = pandas.DataFrame({"n": [1, 2, None] * 20, "c": ["x", "y", "y"] * 20})
        >>> schema = infer(frame)
        >>> discretizer = Discretizer.of(schema, schema.table(frame))
        >>> codes = discretizer.encode(schema.table(frame))
        >>> codes[:3].tolist(), [field.size for field in discretizer.fields]
        ([[1, 1], [2, 0], [0, 0]], [3, 2])
    """

    codecs: tuple[Codec, ...]

    @classmethod
    def of(
        cls, schema: Schema, table: Table, *, most: int = 100, least: int = 5, keep: Sequence[str] = ()
    ) -> Discretizer:
        """Codecs fitted to a table.

        Args:
            schema: of the table.
            table: its values.
            most: bins of a number at most.
            least: rows that a category or a bin needs.
            keep: columns of which every category is modelled, however rare.

        Raises:
            DataError: more than a fifth of a column's rows have categories that are too rare.
        """
        problems: list[str] = []
        codecs: list[Codec] = []
        for column in schema.modelled:
            values = table[column.name]
            if isinstance(column, Category):
                codec = _category_codec(column, values, 1 if column.name in keep else least)
                if codec.rare_share(values) > MOST_RARE:
                    problems.append(
                        f"column {column.name!r}: {codec.rare_share(values):.0%} of the rows have a category of fewer than "
                        f"{codec.floor} rows; declare it id or text (not modelled), or lower rare_below"
                    )
                codecs.append(codec)
            elif isinstance(column, Date):
                codecs.append(_date_codec(column, values, most, least))
            else:
                codecs.append(_number_codec(column, values, most, least))
        raise_all("the table", problems)
        return cls(tuple(codecs))

    @property
    def by_column(self) -> dict[str, Codec]:
        return {codec.name: codec for codec in self.codecs}

    def encode(self, table: Mapping[str, Values]) -> NDArray[np.int32]:
        """Codes int32 ``[N, fields]`` of a table."""
        parts = [codec.encode(table[codec.name]) for codec in self.codecs]
        return np.concatenate(parts, axis=1).astype(np.int32)

    def decode(self, codes: NDArray[np.int32], u: Floats) -> Table:
        """Values of codes; ``u`` ``[N, fields]`` in (0, 1)."""
        whole = codes.astype(np.int64)
        return {
            c.name: c.decode(whole[:, list(self.places[c.name])], u[:, list(self.places[c.name])]) for c in self.codecs
        }

    def notes(self, table: Table) -> list[str]:
        """Rows whose category is not modelled, counted."""
        notes = []
        for codec in self.codecs:
            if isinstance(codec, CategoryCodec) and codec.rare:
                count = round(codec.rare_share(table[codec.name]) * len(table[codec.name]))
                notes.append(
                    f"{codec.name}: {codec.categories - len(codec.order)} categories of {count} rows, with fewer than {codec.floor} "
                    "each, are too rare to be modelled and do not appear in samples"
                )
        return notes

    def to_json(self) -> list[dict[str, Any]]:
        return [_codec_json(codec) for codec in self.codecs]

    @classmethod
    def from_json(cls, said: Sequence[Mapping[str, Any]]) -> Discretizer:
        return cls(tuple(_codec_from(one) for one in said))


def unit_of(column: Column) -> float:
    """Smallest step between two values of a number or date column; 0 for any real number."""
    if isinstance(column, Number):
        return 0.0 if column.decimals is None else 10.0**-column.decimals
    return getattr(column, "step", 0.0)


def _number_codec(column: Column, values: Values, most: int, least: int) -> NumberCodec:
    present = values[~missing_in(values)]
    return NumberCodec(column.name, column.nullable, Bins.of(present, most, least, unit_of(column)))


def _category_codec(column: Category, values: Values, least: int) -> CategoryCodec:
    """Of the categories with ``least`` rows; in a small table with fewer, down to two, where too many rows would be lost."""
    for floor in range(max(least, 1), 1, -1):
        codec = _with_floor(column, values, floor)
        if codec.rare_share(values) <= MOST_RARE:
            return codec
    return _with_floor(column, values, min(max(least, 1), 2))


def _with_floor(column: Category, values: Values, least: int) -> CategoryCodec:
    counts = np.bincount(values[values >= 0], minlength=len(column.categories))
    order = [int(code) for code in np.argsort(-counts, kind="stable") if counts[code] >= max(least, 1)]
    rare = len(order) < len(column.categories)  # one code for all that is not modelled, without rows too
    return CategoryCodec(column.name, column.nullable, tuple(order), len(column.categories), rare, least)


def _date_codec(column: Date, values: Values, most: int, least: int) -> DateCodec:
    day, second = np.divmod(values[~np.isnan(values)], DAY)
    weekly = len(np.unique(day)) > most
    days = Bins.of((day + MONDAY) // 7 if weekly else day, most, least, 1.0)
    seconds = (
        Bins.of(second, most, least, min(column.step, 1.0) if column.step < 60 else 60.0) if second.any() else None
    )
    return DateCodec(column.name, column.nullable, days, weekly, seconds)


def _codec_json(codec: Codec) -> dict[str, Any]:
    if isinstance(codec, NumberCodec):
        return {"kind": "number", "name": codec.name, "nullable": codec.nullable, "bins": codec.bins.to_json()}
    if isinstance(codec, CategoryCodec):
        own = {name: getattr(codec, name) for name in ("name", "nullable", "categories", "rare", "floor")}
        return {"kind": "category", **own, "order": list(codec.order)}
    assert isinstance(codec, DateCodec)
    own = {name: getattr(codec, name) for name in ("name", "nullable", "weekly")}
    return {
        "kind": "date",
        **own,
        "days": codec.days.to_json(),
        "seconds": None if codec.seconds is None else codec.seconds.to_json(),
    }


def _codec_from(said: Mapping[str, Any]) -> Codec:
    own = {key: value for key, value in said.items() if key != "kind"}
    if said["kind"] == "number":
        return NumberCodec(**{**own, "bins": Bins.from_json(said["bins"])})
    if said["kind"] == "category":
        return CategoryCodec(**{**own, "order": tuple(said["order"])})
    seconds = None if said["seconds"] is None else Bins.from_json(said["seconds"])
    return DateCodec(**{**own, "days": Bins.from_json(said["days"]), "seconds": seconds})
