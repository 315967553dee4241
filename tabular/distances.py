"""Distances between rows of mixed columns: the mean over columns of a difference in [0, 1] (Gower, Biometrics 1971).

Numbers differ by their distance over the real range, categories by 0 or 1, and a missing value from a present one by 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visynth.tabular.columns import Category, Floats
from visynth.tabular.schema import Schema, Table, missing_in, rows_of

CELLS = 4_000_000  # distances held at a time
MISSING = 3.0  # stands for a missing number: farther than any other, and 0 from itself
SAME = 1e-6  # distance up to which two rows are the same


@dataclass(frozen=True)
class Space:
    """Scales of the columns, from real rows.

    Attributes:
        schema: of the table.
        lows: of each number column, its lowest real value.
        ranges: and the range of its real values.

    Example:
        >>> import pandas
        >>> from visynth.tabular.inference import infer
        >>> frame = pandas.DataFrame({"x": [0.0, 5.5, 10.0], "c": ["a", "a", "b"]})
        >>> schema = infer(frame)
        >>> table = schema.table(frame)
        >>> Space.of(schema, table).nearest(table, table, 2)[0][:, 1].round(3).tolist()  # the other nearest row of each
        [0.275, 0.275, 0.725]
    """

    schema: Schema
    lows: dict[str, float]
    ranges: dict[str, float]

    @classmethod
    def of(cls, schema: Schema, real: Table) -> Space:
        lows, ranges = {}, {}
        for column in schema.modelled:
            values = real[column.name]
            if isinstance(column, Category) or missing_in(values).all():
                lows[column.name], ranges[column.name] = 0.0, 1.0
            else:
                lows[column.name] = float(np.nanmin(values))
                ranges[column.name] = float(np.nanmax(values)) - lows[column.name] or 1.0
        return cls(schema, lows, ranges)

    def scaled(self, table: Table, without: str | None = None) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Number columns in [0, 1] and category codes, each ``[N, columns]``."""
        numbers, words = [], []
        for column in self.schema.modelled:
            if column.name == without:
                continue
            values = table[column.name]
            if isinstance(column, Category):
                words.append(values)
            else:
                place = (values - self.lows[column.name]) / self.ranges[column.name]
                numbers.append(np.where(np.isnan(place), MISSING, np.clip(place, -1, 2)))
        rows = rows_of(table)
        return (
            np.stack(numbers, axis=1).astype(np.float32) if numbers else np.zeros((rows, 0), np.float32),
            np.stack(words, axis=1).astype(np.int32) if words else np.zeros((rows, 0), np.int32),
        )

    def nearest(
        self, queries: Table, others: Table, count: int = 1, without: str | None = None
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Distances and rows of the nearest others, each ``[N, count]``, nearest first.

        Args:
            queries: rows to look from.
            others: rows to look at.
            count: neighbours.
            without: a column that does not take part.
        """
        (x, a), (y, b) = self.scaled(queries, without), self.scaled(others, without)
        columns = max(x.shape[1] + a.shape[1], 1)
        count = min(count, len(y))
        distances, rows = np.empty((len(x), count)), np.empty((len(x), count), np.int64)
        step = max(CELLS // max(len(y), 1), 1)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            total = np.zeros((len(x[part]), len(y)), np.float32)
            for column in range(x.shape[1]):
                total += np.minimum(np.abs(x[part, column, None] - y[None, :, column]), 1.0)
            for column in range(a.shape[1]):
                total += a[part, column, None] != b[None, :, column]
            near = np.argpartition(total, count - 1, axis=1)[:, :count]
            own = np.take_along_axis(total, near, axis=1)
            order = np.argsort(own, axis=1, kind="stable")
            distances[part] = np.take_along_axis(own, order, axis=1) / columns
            rows[part] = np.take_along_axis(near, order, axis=1)
        return distances, rows
