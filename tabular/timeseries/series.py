"""Series: several entities, each with its channels over time, and what does not change with it.

A long frame has a row for each entity and time. Inside, channels and times of all entities stand one after the other; a
*static* column has one value for each entity, and the class is one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError, UsageError, choices
from visynth.core.members import Member
from visynth.tabular.columns import Category, Column, Date, Floats, Number, restored
from visynth.tabular.frames import in_library, pandas
from visynth.tabular.schema import COLUMNS, Schema, Table, stacked, taken

Ints = NDArray[np.int64]
SHOWN = 4  # things that a message names
ENTITY, STEP = "series", "step"  # columns of a frame that has none of its own


@dataclass(frozen=True)
class SeriesSchema:
    """What the columns of series are.

    Attributes:
        channels: columns that change with time.
        statics: columns with one value for each entity.
        entity: name of the column that names entities; it is written where the data had none too.
        time: the column of times, a date or a number; None where rows follow one another without times.
        step: distance of two rows of a regular series in the time's unit (seconds of dates); None: irregular.
        target: the class, one of the statics, or None.
        origin: time at which generated series start.
        notes: what was noticed in the data, for people.
    """

    channels: Schema
    statics: Schema
    entity: str = ENTITY
    time: Column | None = None
    step: float | None = 1.0
    target: str | None = None
    origin: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the target's categories."""
        if self.target is None:
            return ()
        column = self.statics[self.target]
        return tuple(map(str, column.categories)) if isinstance(column, Category) else ()

    @property
    def numbers(self) -> list[str]:
        """Names of the channels that hold numbers."""
        return [c.name for c in self.channels.modelled if isinstance(c, (Number, Date))]

    def to_json(self) -> dict[str, Any]:
        return {
            "channels": self.channels.to_json(), "statics": self.statics.to_json(), "entity": self.entity,
            "time": None if self.time is None else self.time.to_json(), "step": self.step, "target": self.target,
            "origin": self.origin, "notes": list(self.notes),
        }  # fmt: skip

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> SeriesSchema:
        time = None if said["time"] is None else restored(said["time"], COLUMNS)
        channels, statics = Schema.from_json(said["channels"]), Schema.from_json(said["statics"])
        rest = {key: said[key] for key in ("entity", "step", "target", "origin")}
        return cls(channels=channels, statics=statics, time=time, notes=tuple(said["notes"]), **rest)


@dataclass(frozen=True)
class Series:
    """Entities with their channels over time.

    Attributes:
        schema: of the columns.
        names: of the entities.
        offsets: int64 ``[N + 1]``: entity n has the rows from ``offsets[n]`` to ``offsets[n + 1]``.
        times: float64 ``[T]``, rising within an entity.
        channels: by name, values of all rows: float64 ``[T]`` with NaN where missing, or int64 codes with -1.
        statics: by name, a value for each entity.
        groups: of entities that belong together (stretches of one machine); a split never parts them.

    Example:
        >>> from visynth.tabular.timeseries import from_arrays
        >>> series = from_arrays(np.zeros((3, 2, 5)), ["a", "b", "a"])
        >>> len(series), series.lengths.tolist(), series.labels()
        (3, [5, 5, 5], ['a', 'b', 'a'])
        >>> series.take([1]).frame().columns.tolist()
        ['series', 'step', 'class', 'channel_1', 'channel_2']
    """

    schema: SeriesSchema
    names: tuple[str, ...]
    offsets: Ints
    times: Floats
    channels: Table
    statics: Table
    groups: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def lengths(self) -> Ints:
        """Rows of each entity, int64 ``[N]``."""
        return np.diff(self.offsets)

    @property
    def group_names(self) -> tuple[str, ...]:
        """What each entity belongs to: a group, or itself."""
        return self.groups or self.names

    @cached_property
    def within(self) -> NDArray[np.bool_]:
        """Whether a row and the next one are of one entity, bool ``[T - 1]``."""
        inside = np.ones(max(len(self.times) - 1, 0), bool)
        inside[self.offsets[1:-1] - 1] = False
        return inside

    def labels(self) -> list[str]:
        """Class of each entity, "" without a target."""
        if self.schema.target is None:
            return [""] * len(self)
        classes = self.schema.classes
        codes = self.statics[self.schema.target]
        if (codes < 0).any():
            raise DataError(f"{int((codes < 0).sum())} series have no class.")
        return [classes[code] for code in codes]

    def rows(self, number: int) -> slice:
        """Rows of one entity."""
        return slice(int(self.offsets[number]), int(self.offsets[number + 1]))

    def values(self, number: int) -> Floats:
        """Number channels of one entity, float64 ``[rows, channels]``, NaN where missing."""
        rows = self.rows(number)
        own = [self.channels[name][rows] for name in self.schema.numbers]
        return np.stack(own, 1) if own else np.zeros((rows.stop - rows.start, 0))

    def take(self, numbers: Sequence[int] | NDArray[Any]) -> Series:
        """Some entities, in the given order."""
        picked = np.asarray(numbers)
        picked = np.flatnonzero(picked) if picked.dtype == bool else picked.astype(np.int64)
        lengths = self.lengths[picked]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[picked], lengths)
        return replace(
            self,
            names=tuple(self.names[k] for k in picked),
            offsets=offsets,
            times=self.times[rows],
            channels=taken(self.channels, rows),
            statics=taken(self.statics, picked),
            groups=tuple(self.groups[k] for k in picked) if self.groups else (),
        )

    def piece(self, start: int, stop: int) -> Series:
        """Rows ``start`` to ``stop`` of every entity, as far as it has them."""
        picked = [np.arange(a, b)[start:stop] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]
        rows = np.concatenate(picked) if picked else np.zeros(0, np.int64)
        offsets = np.concatenate([[0], np.cumsum([len(own) for own in picked])]).astype(np.int64)
        return replace(self, offsets=offsets, times=self.times[rows], channels=taken(self.channels, rows))

    def frame(self) -> Any:
        """The long frame: entity, time, statics and channels, in the fitted frame's library."""
        schema, lengths = self.schema, self.lengths
        parts: dict[str, Any] = {schema.entity: np.repeat(np.array(self.names, dtype=object), lengths)}
        if schema.time is not None:
            parts[schema.time.name] = schema.time.format(self.times)
        else:
            parts[STEP] = np.round(self.times / (schema.step or 1.0)).astype(np.int64)
        whole = np.repeat(np.arange(len(self)), lengths)
        for column in schema.statics.columns:
            values = self.statics[column.name][whole] if column.modelled else np.zeros(len(whole))
            parts[column.name] = column.format(values)
        for column in schema.channels.columns:
            values = self.channels[column.name] if column.modelled else np.zeros(len(whole))
            parts[column.name] = column.format(values)
        return in_library(pandas().DataFrame(parts), schema.channels.library)

    def hashes(self) -> list[str]:
        """Hex hash of each entity's values (of irregular ones with the times): equal series have equal ones, whatever their
        names."""
        marks = []
        for number in range(len(self)):
            rows, mark = self.rows(number), blake2b(digest_size=16)
            for column in self.schema.channels.modelled:
                mark.update(column.rounded(self.channels[column.name][rows]).tobytes())
            if self.schema.step is None:
                mark.update(np.round(self.times[rows] - self.times[rows.start], 6).tobytes())
            marks.append(mark.hexdigest())
        return marks

    def members(self, split: Literal["train", "val", "test"] = "train") -> tuple[Member, ...]:
        """One fingerprint for each entity."""
        places = zip(self.hashes(), self.labels(), self.group_names, strict=True)
        return tuple(
            Member(f"series/{number:09d}", label, group, split, mark, mark, "")
            for number, (mark, label, group) in enumerate(places)
        )


def joined(parts: Sequence[Series]) -> Series:
    """Entities of several sets with one schema, one after the other."""
    if not parts:
        raise UsageError("there are no series to join.")
    lengths = np.concatenate([part.lengths for part in parts])
    groups = tuple(name for part in parts for name in part.group_names) if any(part.groups for part in parts) else ()
    return Series(
        parts[0].schema,
        tuple(name for part in parts for name in part.names),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.times for part in parts]),
        stacked([part.channels for part in parts]),
        stacked([part.statics for part in parts]),
        groups,
    )


def of_class(series: Series, label: str) -> NDArray[np.bool_]:
    """Which entities have a class, bool ``[N]``.

    Raises:
        UsageError: there is no such class.
    """
    if label not in series.schema.classes:
        raise UsageError(f"there is no class {label!r}; the classes are {choices(series.schema.classes)}.")
    return np.array([name == label for name in series.labels()])
