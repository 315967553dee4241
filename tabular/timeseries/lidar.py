"""Scans of a two-dimensional lidar as series: a channel for each beam, in order, and drop-outs as missing values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError, UsageError
from visynth.tabular.columns import Floats
from visynth.tabular.timeseries.arrays import from_arrays
from visynth.tabular.timeseries.series import Series

DEGREES = "beam_{:+.1f}"


def from_scans(
    ranges: NDArray[Any],
    labels: Sequence[Any] | None = None,
    *,
    least: float = 0.0,
    most: float,
    start: float = -90.0,
    stop: float = 90.0,
    step: float = 0.1,
) -> Series:
    """Series of scans.

    Args:
        ranges: ``[N, T, beams]``: recordings, scans, beams from ``start`` to ``stop`` degrees; metres. What is no number,
            not above ``least`` or not below ``most`` is a drop-out: no echo came back.
        labels: class of each recording.
        least: range of the sensor.
        most: range of the sensor.
        start: angle of the first beam.
        stop: of the last.
        step: seconds between scans.

    Raises:
        DataError: other shapes, or a beam without an echo in any scan.

    Example:
        >>> scans = np.full((2, 3, 4), 5.0)
        >>> scans[0, 0, 0] = np.inf
        >>> series = from_scans(scans, most=30.0)
        >>> series.schema.channels.names[0], int(np.isnan(series.values(0)).sum())
        ('beam_-90.0', 1)
    """
    if not most > least:
        raise UsageError(f"most must be above least, but got {most} and {least}.")
    x = np.asarray(ranges, np.float64)
    if x.ndim != 3 or 0 in x.shape:
        raise DataError(f"ranges must be [recordings, scans, beams], but have shape {x.shape}.")
    with np.errstate(invalid="ignore"):
        echo = np.isfinite(x) & (x > least) & (x < most)
    silent = np.flatnonzero(~echo.any((0, 1)))
    if len(silent):
        raise DataError(
            f"beams {silent[:5].tolist()} have no echo between {least} and {most} in any scan: leave them out."
        )
    angles = np.linspace(start, stop, x.shape[2])
    names = [DEGREES.format(angle) for angle in angles]
    if len(set(names)) < len(names):
        names = [f"{name}#{place}" for place, name in enumerate(names)]
    return from_arrays(np.where(echo, x, np.nan).transpose(0, 2, 1), labels, channels=names, step=step)


def to_scans(series: Series, dropped: float = np.inf) -> Floats:
    """Ranges ``[T, beams]`` of all scans, drop-outs as ``dropped``."""
    rows = np.stack([series.channels[name] for name in series.schema.numbers], 1)
    return np.where(np.isnan(rows), dropped, rows)


def check_scans(real: Series, synthetic: Series) -> dict[str, float]:
    """How near synthetic scans come to real ones.

    Returns:
        ``drop-outs``: mean absolute difference of a beam's share of drop-outs; ``runs``: Kolmogorov-Smirnov distance of the
        lengths of runs of neighbouring drop-outs in a scan; ``steps``: of the differences between neighbouring beams;
        ``outside``: share of synthetic ranges outside the real ones.
    """
    from scipy.stats import ks_2samp

    first, second = (to_scans(side, np.nan) for side in (real, synthetic))
    gone = [np.isnan(side) for side in (first, second)]
    runs = [_runs(side) for side in gone]
    steps = [np.diff(side, axis=1) for side in (first, second)]
    steps = [side[~np.isnan(side)] for side in steps]
    low, high = np.nanmin(first), np.nanmax(first)
    echoes = second[~gone[1]]
    return {
        "drop-outs": float(np.abs(gone[0].mean(0) - gone[1].mean(0)).mean()),
        "runs": float(ks_2samp(*runs).statistic)
        if all(map(len, runs))
        else float(bool(len(runs[0])) != bool(len(runs[1]))),
        "steps": float(ks_2samp(*steps).statistic) if all(map(len, steps)) else 1.0,
        "outside": float(((echoes < low) | (echoes > high)).mean()) if len(echoes) else 0.0,
    }


def _runs(gone: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Lengths of runs of true values along rows.

    Example:
        >>> _runs(np.array([[True, True, False, True], [False, False, False, True]])).tolist()
        [2, 1, 1]
    """
    edges = np.diff(np.pad(gone.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.nonzero(edges == 1), np.nonzero(edges == -1)
    return np.asarray(ends[1] - starts[1], np.int64)
