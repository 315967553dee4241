"""Long series as stretches, so that what belongs together stays together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from visynth.core.errors import DataError, UsageError, choices
from visynth.tabular.timeseries.series import SHOWN, Series


def cut(series: Series, length: int) -> Series:
    """Stretches of so many rows, one after the other without overlap, each a series of its entity's group.

    What is left at an entity's end is left out, and entities that are shorter; notes say how much.

    Raises:
        UsageError: no entity is that long.
        DataError: a class has no entity that is.
    """
    if length < 2 or not (series.lengths >= length).any():
        raise UsageError(f"no series has {length} rows: the longest has {int(series.lengths.max())}.")
    starts, owners = [], []
    for number, rows in enumerate(series.lengths.tolist()):
        for k in range(rows // length):
            starts.append(int(series.offsets[number]) + k * length)
            owners.append(number)
    rows = (np.array(starts)[:, None] + np.arange(length)).reshape(-1)
    short = [k for k, count in enumerate(series.lengths.tolist()) if count < length]
    labels = series.labels()
    gone = sorted(set(labels) - {labels[k] for k in owners})
    if gone:
        raise DataError(f"no series of class {choices(gone)} has {length} rows: cut to fewer.")
    left = len(series.times) - len(rows) - int(series.lengths[short].sum())
    groups = stretches([series.group_names[k] for k in owners])
    left_out = [f"{left} rows at the ends of series are left out"] if left else []
    if short:
        left_out.append(
            f"{len(short)} series shorter than {length} rows are left out ({choices([series.names[k] for k in short[:SHOWN]])})"
        )
    notes = (*series.schema.notes, *left_out)
    return Series(
        replace(series.schema, notes=notes),
        tuple(f"{series.names[k]}:{start - int(series.offsets[k])}" for k, start in zip(owners, starts, strict=True)),
        np.arange(len(starts) + 1, dtype=np.int64) * length,
        series.times[rows],
        {name: values[rows] for name, values in series.channels.items()},
        {name: values[np.array(owners)] for name, values in series.statics.items()},
        groups,
    )


STRETCHES = 10  # of a single entity, each kept together


def stretches(groups: Sequence[str]) -> tuple[str, ...]:
    """Groups of stretches; those of a single entity are ten runs of neighbours, as else nothing could be held out."""
    if len(set(groups)) > 1:
        return tuple(groups)
    count = min(STRETCHES, len(groups))
    return tuple(f"part {k * count // len(groups) + 1} of {count}" for k in range(len(groups)))
