"""What a generator of series knows of the real ones, what it is asked for, and times that follow one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, choices, raise_all
from visynth.core.members import Member
from visynth.tabular.columns import Category, Floats
from visynth.tabular.schema import Table, taken
from visynth.tabular.timeseries.encoding import Encoding
from visynth.tabular.timeseries.series import Ints, Series, SeriesSchema


@dataclass(frozen=True)
class FittedSeries:
    """What a generator knows of the series that it was fitted to.

    Attributes:
        encoding: of their values; it has the schema.
        statics: of the real series: those of generated ones are drawn from them.
        lengths: of the real series, int64 ``[N]``.
        members: fingerprints.
        notes: what people should know.
    """

    encoding: Encoding
    statics: Table
    lengths: Ints
    members: tuple[Member, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def schema(self) -> SeriesSchema:
        return self.encoding.schema

    @property
    def varies(self) -> bool:
        """Whether series have other lengths."""
        return len(np.unique(self.lengths)) > 1


@dataclass(frozen=True)
class Asked:
    """Series that are to be drawn.

    Attributes:
        numbers: of the series, int64 ``[N]``.
        seed: of the sample.
        statics: of each.
        lengths: rows of each; 0 where the model says when a series ends.
    """

    numbers: Ints
    seed: int
    statics: Table
    lengths: Ints

    def take(self, places: NDArray[Any]) -> Asked:
        return Asked(self.numbers[places], self.seed, taken(self.statics, places), self.lengths[places])

    def rng(self, place: int, stream: str) -> np.random.Generator:
        """Random numbers of one series for one purpose."""
        return seeding.rng(seeding.derive("series", self.seed, int(self.numbers[place])), stream)


def matching(fitted: FittedSeries, conditions: Mapping[str, Any]) -> Ints:
    """Numbers of the real series that have the given statics.

    Raises:
        UsageError: there is none, or no such static or value; all problems at once.
    """
    problems = []
    rows = np.ones(len(fitted.lengths), bool)
    known = [column.name for column in fitted.schema.statics.modelled]
    for name, value in conditions.items():
        if name not in known:
            problems.append(f"{name!r} is no static; the statics are {choices(known)}")
            continue
        column, values = fitted.schema.statics[name], fitted.statics[name]
        if isinstance(column, Category):
            code = next((k for k, own in enumerate(column.categories) if own == value or str(own) == str(value)), None)
            if code is None:
                problems.append(f"{name!r} has no value {value!r}; it has {choices(column.categories)}")
                continue
            rows &= values == code
        else:
            rows &= values == value
    raise_all("conditions", problems, UsageError)
    if not rows.any():
        raise UsageError(f"no fitted series has {dict(conditions)}: nothing is known of such series.")
    return np.flatnonzero(rows)


def after(start: float, gaps: Floats) -> Floats:
    """Times that follow a time, gap after gap: added in turn, so that a series in pieces adds the same numbers.

    Example:
        >>> after(1.0, np.array([0.5, 2.0])).tolist()
        [1.5, 3.5]
    """
    return np.asarray(np.cumsum(np.concatenate([[start], gaps]))[1:])


def first_rows(pieces: Iterator[Floats], count: int) -> Floats:
    """The first rows of pieces without end."""
    held = [next(pieces)]
    while sum(len(one) for one in held) < count:
        held.append(next(pieces))
    return np.concatenate(held)[:count]


def check_held_out(fitted: FittedSeries, series: Series) -> None:
    """Refuse series to test on that were fitted.

    Raises:
        DataError: more of them are among the generator's members than series repeat one another anyway.
    """
    members = {member.sha256 for member in fitted.members}
    marks = series.hashes()
    known = [name for name, mark in zip(series.names, marks, strict=True) if mark in members]
    twins = sum(count for count in Counter(marks).values() if count > 1)  # short series of events repeat by chance
    allowed = 2 * twins * max(1.0, len(fitted.members) / len(marks)) + 0.01 * len(marks) + 1
    if len(known) > min(allowed, 0.5 * len(marks)):
        raise DataError(
            f"{len(known)} of {len(marks)} series to test on are series that the generator was fitted to "
            f"({choices(known[:4])}): give series that it did not see."
        )


def card(fits_by: str, fitted: FittedSeries) -> dict[str, Any]:
    """What people are told of a generator."""
    return {
        "task": "synthetic series",
        "fitted by": fits_by,
        "series fitted": len(fitted.lengths),
        "rows fitted": int(fitted.lengths.sum()),
        "channels": [c.name for c in fitted.schema.channels.modelled],
        "target": fitted.schema.target or "none",
        "notes": list(fitted.notes),
        "privacy": "trained without differential privacy; statics of synthetic series are those of real ones",
        "licence": "as the series that it was fitted to",
        "made by": "visynth series",
    }


def readme(network: str, fitted: FittedSeries, digest: str) -> str:
    """The README of a generator's folder."""
    notes = "".join(f"- {note}\n" for note in fitted.notes) or "- none\n"
    rows = "".join(f"| {c.name} | {c.kind} |\n" for c in fitted.schema.channels.modelled)
    return (
        f"# {network} series generator\n\nFitted to {len(fitted.lengths)} series. Digest: `{digest}`\n\n"
        f"| channel | kind |\n|---|---|\n{rows}\nNotes:\n\n{notes}\n"
        "Intended use: training data for the series above. Not for evaluation, not as evidence about real people or things. "
        "It was fitted without differential privacy.\n"
    )


def check_series(series: Series, least: int) -> None:
    """Refuse series that nothing can be fitted to.

    Raises:
        DataError: too few, without rows, or with a channel without a value; all problems at once.
    """
    problems = [
        f"channel {c.name!r} has no value"
        for c in series.schema.channels.modelled
        if not isinstance(c, Category) and np.isnan(series.channels[c.name]).all()
    ]
    if len(series) < least:
        one = f"there is {len(series)} series, and {least} are needed: cut a long one (--cut, or cut(series, length))"
        problems.append(one)
    short = [name for name, rows in zip(series.names, series.lengths, strict=True) if rows < 1]
    problems += [f"series {choices(short)} have no rows"] if short else []
    raise_all("the series", problems)
