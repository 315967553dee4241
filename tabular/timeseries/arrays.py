"""Series from arrays, in memory or in an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError, choices
from visynth.tabular.columns import Number
from visynth.tabular.frames import pandas
from visynth.tabular.inference import infer
from visynth.tabular.schema import Schema
from visynth.tabular.timeseries.series import ENTITY, SHOWN, STEP, Series, SeriesSchema


def from_arrays(
    values: NDArray[Any],
    labels: Sequence[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    target: str = "class",
    step: float = 1.0,
) -> Series:
    """Equally long series of numbers.

    Args:
        values: ``[N, C, L]``: entities, channels, steps; NaN where missing.
        labels: class of each entity.
        names: of the entities.
        channels: names of the channels.
        target: what the class is called.
        step: distance of two steps, for frequencies.

    Raises:
        DataError: other shapes, or infinite values.
    """
    x = np.asarray(values)
    if x.ndim != 3 or 0 in x.shape or x.dtype.kind not in "fiub":
        raise DataError(
            f"values must be numbers [entities, channels, steps], but have shape {x.shape} and type {x.dtype}."
        )
    x = x.astype(np.float64)
    if np.isinf(x).any():
        raise DataError(f"{int(np.isinf(x).sum())} values are infinite: mark missing ones by NaN.")
    if labels is not None and len(labels) != len(x):
        raise DataError(f"there are {len(x)} series, but {len(labels)} labels.")
    own = list(channels or [f"channel_{k + 1}" for k in range(x.shape[1])])
    clash = [n for n in own if own.count(n) > 1 or n in (ENTITY, STEP, target)]
    if clash:
        raise DataError(
            f"names of channels must differ from one another and from {choices((ENTITY, STEP, target))}: {clash}."
        )
    if len(own) != x.shape[1]:
        raise DataError(f"there are {x.shape[1]} channels, but {len(own)} names of channels: {own}.")
    columns = tuple(Number(n, "numeric", "float64", bool(np.isnan(x[:, k]).any())) for k, n in enumerate(own))
    table = {name: np.ascontiguousarray(x[:, k]).reshape(-1) for k, name in enumerate(own)}
    statics, static_table = Schema(()), {}
    if labels is not None:
        frame = pandas().DataFrame({target: [value.item() if hasattr(value, "item") else value for value in labels]})
        statics = infer(frame, {target: "categorical"}, target)
        static_table = statics.table(frame)
        lost = np.flatnonzero(static_table[target] < 0).tolist()
        if lost:
            raise DataError(f"{len(lost)} series have no class (the first: {lost[:SHOWN]}): leave them out.")
    offsets = np.arange(len(x) + 1) * x.shape[2]
    times = np.tile(np.arange(x.shape[2]) * step, len(x))
    schema = SeriesSchema(Schema(columns), statics, step=step, target=None if labels is None else target)
    called = tuple(map(str, names)) if names is not None else tuple(str(k) for k in range(len(x)))
    return Series(schema, called, offsets.astype(np.int64), times, table, static_table)


def read_arrays(path: str | Path, values: str, labels: str | None = None, step: float = 1.0) -> Series:
    """Series of an ``.npz`` file: numbers ``[N, C, L]`` and, if named, classes ``[N]``.

    Args:
        path: of the file.
        values: name of the array of numbers.
        labels: name of the array of classes.
        step: distance of two steps.

    Raises:
        DataError: no such file or array; pickled objects are refused.
    """
    return from_arrays(*stored_arrays(path, values, labels), step=step)


def stored_arrays(path: str | Path, values: str, labels: str | None) -> tuple[NDArray[Any], list[Any] | None]:
    """Numbers and classes of an ``.npz`` file.

    Raises:
        DataError: no such file or array; pickled objects are refused.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with np.load(file, allow_pickle=False) as stored:
            lost = [name for name in (values, labels) if name is not None and name not in stored]
            if lost:
                raise DataError(f"{path} has no array {choices(lost)}; it has {choices(stored.files)}.")
            return stored[values], None if labels is None else stored[labels].tolist()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as arrays ({error}).") from error
