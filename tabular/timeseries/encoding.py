"""Series as windows of plain numbers, and back: what networks see.

A number channel is one number a step, of zero mean and unit variance over the real series; where values can be missing, a
second one says whether there is a value (1) or not (-1). A category channel is one number for each category, 1 for its
own and -1 for the others (missing is a category). In irregular series the first number is the gap since the last row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.tabular.columns import Category, Column, Floats
from visynth.tabular.schema import Table
from visynth.tabular.timeseries.series import Ints, Series, SeriesSchema

GAP = ""  # the channel of gaps between irregular times; no column has this name


@dataclass(frozen=True)
class Channel:
    """Where a channel stands among a step's numbers, and how.

    Attributes:
        name: of the channel, :data:`GAP` of the gaps.
        first: number of the channel's first place.
        categories: of a category channel, missing among them; 0 of a number.
        nullable: whether values can be missing.
        mean: of the real values (of the logarithm of gaps).
        scale: their deviation.
        low: least real value.
        high: largest.
        noise: least deviation that a density may claim: that of rounding to the channel's digits, scaled.
    """

    name: str
    first: int
    categories: int = 0
    nullable: bool = False
    mean: float = 0.0
    scale: float = 1.0
    low: float = 0.0
    high: float = 0.0
    noise: float = 0.01

    @property
    def places(self) -> int:
        """Numbers that stand for a step's value."""
        return self.categories or 1 + self.nullable

    @property
    def span(self) -> slice:
        return slice(self.first, self.first + self.places)


@dataclass(frozen=True)
class Encoding:
    """The channels' places, and how long series are.

    Attributes:
        channels: in the order of their places.
        schema: of the series.
        window: steps that a model sees at once.
        static_scales: by number static, mean and deviation.
    """

    channels: tuple[Channel, ...]
    schema: SeriesSchema
    window: int
    static_scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, series: Series, window: int) -> Encoding:
        """The encoding of real series."""
        schema, made, first = series.schema, [], 0
        if schema.step is None:
            logs = np.log(gaps_of(series)[1])
            own = Channel(
                GAP, 0, mean=float(logs.mean()), scale=_scale(logs), low=float(logs.min()), high=float(logs.max())
            )
            made.append(own)
            first = 1
        for column in schema.channels.modelled:
            one = _channel(column, series.channels[column.name], first)
            made.append(one)
            first += one.places
        scales = {}
        for column in schema.statics.modelled:
            if not isinstance(column, Category):
                present = series.statics[column.name][~np.isnan(series.statics[column.name])]
                scales[column.name] = float(present.mean()) if len(present) else 0.0, _scale(present)
        return cls(tuple(made), schema, window, scales)

    @property
    def width(self) -> int:
        """Numbers of a step."""
        last = self.channels[-1]
        return last.first + last.places

    @property
    def irregular(self) -> bool:
        return self.schema.step is None

    # -- conditions --------------------------------------------------------------------------------------------------

    @cached_property
    def condition_width(self) -> int:
        """Numbers that stand for the statics, and one for the start of a series."""
        return int(self.conditions(_empty(self.schema), 0).shape[1]) + 1

    def conditions(self, statics: Table, count: int) -> NDArray[np.float32]:
        """Statics of ``count`` series as numbers, float32 ``[N, condition_width - 1]``; a missing one is all zeros."""
        parts: list[Floats] = []
        for column in self.schema.statics.modelled:
            values = statics[column.name]
            if isinstance(column, Category):
                parts.append((values[:, None] == np.arange(len(column.categories))).astype(np.float64))
            else:
                mean, scale = self.static_scales[column.name]
                parts.append(np.nan_to_num((values - mean) / scale)[:, None])
        return np.concatenate([*parts, np.zeros((count, 0))], 1).astype(np.float32)

    # -- values ------------------------------------------------------------------------------------------------------

    def encode(self, series: Series) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """All rows as numbers ``[T, width]``, and which of the numbers are known ``[T, width]``."""
        rows = len(series.times)
        x, known = np.zeros((rows, self.width), np.float32), np.ones((rows, self.width), bool)
        for channel in self.channels:
            if channel.name == GAP:
                x[:, 0] = (np.log(gaps_of(series)[0]) - channel.mean) / channel.scale
                known[series.offsets[:-1], 0] = False  # a series' first row follows none
                x[series.offsets[:-1], 0] = 0
                continue
            values = series.channels[channel.name]
            if channel.categories:
                code = np.where(values < 0, channel.categories - 1, values)
                x[:, channel.span] = 2.0 * (code[:, None] == np.arange(channel.categories)) - 1
                if not channel.nullable:  # a gap that the fitted series never have
                    gone = values < 0
                    x[gone, channel.span], known[gone, channel.span] = 0.0, False
                continue
            gone = np.isnan(values)
            x[:, channel.first] = np.where(gone, 0.0, (values - channel.mean) / channel.scale)
            known[:, channel.first] = ~gone
            if channel.nullable:
                x[:, channel.first + 1] = 1.0 - 2.0 * gone
        return x, known

    def decode(self, x: Floats) -> tuple[Table, Floats]:
        """Numbers ``[T, width]`` as channels, and the gap before each row (the step of regular series)."""
        table: Table = {}
        for channel in self.channels:
            own = x[:, channel.span]
            if channel.name == GAP:
                continue
            if channel.categories:
                code = own.argmax(1)
                last = channel.categories - 1
                table[channel.name] = np.where(code == last, -1, code) if channel.nullable else code
            else:
                values = np.clip(own[:, 0] * channel.scale + channel.mean, channel.low, channel.high)
                gone = own[:, 1] < 0 if channel.nullable else np.zeros(len(x), bool)
                table[channel.name] = self.schema.channels[channel.name].rounded(np.where(gone, np.nan, values))
        return table, self.gaps(x)

    def gaps(self, x: Floats) -> Floats:
        """The gap before each of the rows ``[T, width]``."""
        if not self.irregular:
            return np.full(len(x), self.schema.step)
        own = self.channels[0]
        return np.exp(np.clip(x[:, 0] * own.scale + own.mean, own.low, own.high))

    # -- windows -----------------------------------------------------------------------------------------------------

    def windows(self, series: Series) -> dict[str, NDArray[Any]]:
        """Windows of all series: ``x`` float32 ``[M, window, width]``, ``known`` bool of that shape (False where a value is
        missing or the series has ended), ``steps`` int64 ``[M]`` rows in each, ``condition`` float32 ``[M, C]``, ``ends``
        bool ``[M]`` whether the series ends in it, and ``weight`` float32 ``[M, window]``, one by the number of windows that
        a row is in."""
        x, known = self.encode(series)
        conditions = self.conditions(series.statics, len(series))
        starts, owners = windows_of(series, self.window)
        count = len(starts)
        first = np.array([s == series.offsets[o] for s, o in zip(starts, owners, strict=True)])
        out = np.zeros((count, self.window, self.width), np.float32)
        seen = np.zeros(out.shape, bool)
        steps = np.minimum(series.offsets[owners + 1] - starts, self.window)
        for k, (start, rows) in enumerate(zip(starts.tolist(), steps.tolist(), strict=True)):
            out[k, :rows], seen[k, :rows] = x[start : start + rows], known[start : start + rows]
        places = [np.arange(start, start + rows) for start, rows in zip(starts, steps, strict=True)]
        often = np.bincount(np.concatenate(places), minlength=len(series.times))
        weight = np.zeros((count, self.window), np.float32)
        for k, own in enumerate(places):
            weight[k, : len(own)] = 1 / often[own]
        condition = np.concatenate([conditions[owners], first[:, None].astype(np.float32)], 1)
        ends = starts + steps == series.offsets[owners + 1]
        return {"x": out, "known": seen, "steps": steps, "condition": condition, "ends": ends, "weight": weight}

    def to_json(self) -> dict[str, Any]:
        return {
            "channels": [asdict(channel) for channel in self.channels], "window": self.window,
            "statics": {name: list(pair) for name, pair in self.static_scales.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, said: Mapping[str, Any], schema: SeriesSchema) -> Encoding:
        scales = {name: (float(a), float(b)) for name, (a, b) in said["statics"].items()}
        return cls(tuple(Channel(**channel) for channel in said["channels"]), schema, int(said["window"]), scales)


def _channel(column: Column, values: NDArray[Any], first: int) -> Channel:
    if isinstance(column, Category):
        return Channel(column.name, first, len(column.categories) + column.nullable, column.nullable)
    present = values[~np.isnan(values)]
    mean, scale = float(present.mean()), _scale(present)
    grid = np.diff(np.unique(column.rounded(present)))
    unit = float(np.quantile(grid, 0.05)) if len(grid) and len(grid) < len(present) / 2 else 0.0
    noise = max(unit / scale / np.sqrt(12.0), 0.01)
    return Channel(
        column.name, first, 0, column.nullable, mean, scale, float(present.min()), float(present.max()), float(noise)
    )


def _scale(values: Floats) -> float:
    return float(values.std()) if len(values) and values.std() > 0 else 1.0


def _empty(schema: SeriesSchema) -> Table:
    kinds = {c.name: np.int64 if isinstance(c, Category) else np.float64 for c in schema.statics.modelled}
    return {name: np.zeros(0, kind) for name, kind in kinds.items()}


def gaps_of(series: Series) -> tuple[Floats, Floats]:
    """Gap before each row ``[T]`` (before an entity's first one: the median gap), and the real gaps alone."""
    gaps = np.diff(series.times, prepend=0.0)
    own = gaps[1:][series.within]
    gaps[series.offsets[:-1]] = np.median(own) if len(own) else 1.0
    return gaps, own if len(own) else np.ones(1)


def windows_of(series: Series, window: int) -> tuple[Ints, Ints]:
    """First row and entity of each window: a series that fits is one window; a longer one has overlapping ones."""
    starts: list[int] = []
    owners: list[int] = []
    stride = max(window // 4, 1)
    for number, (start, rows) in enumerate(zip(series.offsets[:-1].tolist(), series.lengths.tolist(), strict=True)):
        if rows <= window:
            own: Sequence[int] = [start]
        else:
            own = sorted({*range(start, start + rows - window + 1, stride), start + rows - window})
        starts += own
        owners += [number] * len(own)
    return np.array(starts, np.int64), np.array(owners, np.int64)
