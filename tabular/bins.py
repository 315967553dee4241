"""Numbers as bins: spikes get a bin of their own, the rest goes to bins of equal counts, and a bin is decoded by drawing
inside it, never by repeating a real value that few rows have.

A bin keeps its quartiles, so that its inside has the right shape; no bin has fewer than ``least`` rows where the data
allow it, and the outermost values that fewer than ``least`` rows reach are drawn in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.tabular.columns import Codes, Floats

QUARTILES = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
PER_KNOT = 10  # rows of a bin for each of its inner knots


@dataclass(frozen=True)
class Bins:
    """Bins of one column; codes are 0 to ``size - 1``: first the spikes, by value, then the intervals, by value.

    Attributes:
        spikes: values with a bin of their own, rising.
        knots: per interval its lower end, its quartiles (or none) and its upper end.
        unit: smallest step between two values; 0 for any real number.

    Example:
        >>> values = np.array([0.0] * 50 + list(range(100, 150)))
        >>> bins = Bins.of(values, most=5, least=5, unit=1)
        >>> bins.spikes, bins.size, bins.encode(np.array([0.0, 101, 149])).tolist()
        ((0.0,), 5, [0, 1, 4])
        >>> bool((np.abs(bins.decode(np.array([1] * 3), np.array([0.1, 0.5, 0.9])) - 106) <= 6).all())
        True
    """

    spikes: tuple[float, ...]
    knots: tuple[tuple[float, ...], ...]
    unit: float

    @classmethod
    def of(cls, values: Floats, most: int, least: int, unit: float) -> Bins:
        """Bins of a column's present values.

        Args:
            values: float ``[N]`` without NaN; where there is none, the one bin is that of 0.
            most: number of bins at most.
            least: rows a bin needs.
            unit: smallest step between two values.
        """
        if not len(values):
            return cls((0.0,), (), float(unit))
        distinct, counts = np.unique(values, return_counts=True)
        # Spikes where values are few; else only where one value fills a bin of equal counts alone.
        share = 0.0 if len(distinct) <= most else len(values) / most
        frequent = (counts >= least) & (counts >= share)
        spikes = distinct[frequent][:most]
        rest = np.sort(values[~np.isin(values, spikes)])
        count = min(max(most - len(spikes), 1), len(rest) // max(least, 1)) if len(rest) else 0
        if len(rest) < least and len(spikes):
            rest = rest[:0]  # too few for a bin: they go to the nearest spike
        parts = _merged(_equal_parts(rest, max(count, 1)), least) if len(rest) else []
        knots = [_knots(part) for part in parts]
        if knots and len(values) >= 20 * least:
            ordered = np.sort(values)
            knots[0] = _raised(knots[0], float(ordered[least - 1]))
            knots[-1] = _lowered(knots[-1], float(ordered[-least]))
        return cls(tuple(map(float, spikes)), tuple(knots), float(unit))

    @property
    def size(self) -> int:
        return len(self.spikes) + len(self.knots)

    @cached_property
    def _edges(self) -> Floats:
        """Values from which on the next interval begins."""
        return np.array([(a[-1] + b[0]) / 2 for a, b in zip(self.knots, self.knots[1:], strict=False)])

    def encode(self, values: Floats) -> Codes:
        """Bins of values; values outside all intervals go to the nearest."""
        spikes = np.array(self.spikes)
        place = np.searchsorted(spikes, values)
        is_spike = np.zeros(len(values), bool)
        if len(spikes):
            is_spike = spikes[np.minimum(place, len(spikes) - 1)] == values
        if not self.knots:  # nothing but spikes: the nearest one
            if len(spikes) == 1:
                return np.zeros(len(values), np.int64)
            return np.searchsorted((spikes[1:] + spikes[:-1]) / 2, values, side="right").astype(np.int64)
        interval = np.searchsorted(self._edges, values, side="right") + len(spikes)
        return np.where(is_spike, place, interval).astype(np.int64)

    @cached_property
    def _table(self) -> Floats:
        """Knots of every code ``[size, 5]``."""
        rows = [[v] * 5 for v in self.spikes]
        rows += [list(np.interp(QUARTILES, np.linspace(0, 1, len(k)), k)) for k in self.knots]
        return np.array(rows, np.float64).reshape(-1, 5)

    def decode(self, codes: Codes, u: Floats) -> Floats:
        """Values in bins: at share ``u`` (in (0, 1)) of each bin's rows."""
        table, half = self._table, self.unit / 2
        low, high = table[codes, 0], table[codes, 4]
        place = np.minimum((u * 4).astype(np.int64), 3)
        inside = u * 4 - place
        start = np.where(place == 0, low - half, table[codes, place])
        end = np.where(place == 3, high + half, table[codes, place + 1])
        values = start + inside * (end - start)
        if self.unit:
            values = np.round(values / self.unit) * self.unit
            digits = max(0, int(np.ceil(-np.log10(self.unit)))) if self.unit < 1 else 0
            values = np.round(values, digits)
        return np.asarray(np.clip(values, low, high))

    def span(self) -> tuple[Floats, Floats]:
        """Lowest and highest value of every code."""
        return self._table[:, 0], self._table[:, 4]

    def to_json(self) -> dict[str, Any]:
        return {"spikes": list(self.spikes), "knots": [list(k) for k in self.knots], "unit": self.unit}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Bins:
        return cls(tuple(said["spikes"]), tuple(tuple(k) for k in said["knots"]), said["unit"])


def _equal_parts(ordered: Floats, count: int) -> list[Floats]:
    """Sorted values in ``count`` parts of about equal size; equal values stay together."""
    cuts = np.searchsorted(ordered, ordered[(np.arange(1, count) * len(ordered)) // count])
    return [part for part in np.split(ordered, np.unique(cuts)) if len(part)]


def _merged(parts: list[Floats], least: int) -> list[Floats]:
    """Parts that are too small joined with their neighbours."""
    joined: list[Floats] = []
    for part in parts:
        if joined and len(joined[-1]) < least:
            joined[-1] = np.concatenate([joined[-1], part])
        else:
            joined.append(part)
    if len(joined) > 1 and len(joined[-1]) < least:
        joined[-2:] = [np.concatenate(joined[-2:])]
    return joined


def _knots(part: NDArray[np.float64]) -> tuple[float, ...]:
    if len(part) < PER_KNOT * 4:
        return float(part[0]), float(part[-1])
    return tuple(float(v) for v in np.quantile(part, QUARTILES))


def _raised(knots: Sequence[float], low: float) -> tuple[float, ...]:
    return tuple(max(value, min(low, knots[-1])) for value in knots)


def _lowered(knots: Sequence[float], high: float) -> tuple[float, ...]:
    return tuple(min(value, max(high, knots[0])) for value in knots)
