"""Classic augmentation of series: scaled amplitudes, warped time and noise, the usual candidates of the field.

Um et al., "Data augmentation of wearable sensor data for Parkinson's disease monitoring using convolutional neural networks"
(ICMI 2017), section 3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from visynth.core import seeds as seeding
from visynth.tabular.columns import Floats
from visynth.tabular.timeseries.series import Series

SCALE = 0.1  # deviation of a channel's factor
NOISE = 0.05  # of the noise, in deviations of a channel
WARP = 0.2  # deviation of the speed at each of
KNOTS = 4  # moments


def augmented(series: Series, variants: int, seed: int) -> Series:
    """So many variants of each series, one series' after another; categories and missing values move with the time.

    Example:
        >>> from visynth.tabular.timeseries import from_arrays
        >>> series = from_arrays(np.zeros((2, 1, 8)), ["a", "b"])
        >>> augmented(series, 3, seed=0).labels()
        ['a', 'a', 'a', 'b', 'b', 'b']
    """
    out = series.take(np.repeat(np.arange(len(series)), variants))
    spread = {name: float(np.nanstd(series.channels[name])) for name in series.schema.numbers}
    channels = {name: values.copy() for name, values in out.channels.items()}
    for number in range(len(out)):
        generator, rows = seeding.rng(seed, f"series/augment/{number}"), out.rows(number)
        place = _warped(rows.stop - rows.start, generator)
        for name, values in out.channels.items():
            own = values[rows]
            if name not in spread:
                channels[name][rows] = own[np.round(place).astype(np.int64)]
                continue
            low = np.floor(place).astype(np.int64)
            part = place - low
            own = own[low] * (1 - part) + own[np.minimum(low + 1, len(own) - 1)] * part
            factor = 1 + SCALE * generator.standard_normal()
            channels[name][rows] = own * factor + NOISE * spread[name] * generator.standard_normal(len(own))
    return replace(out, channels=channels)


def _warped(steps: int, generator: np.random.Generator) -> Floats:
    """Places in the series at which its warped form reads it, rising from 0 to ``steps - 1``."""
    knots = np.maximum(1 + WARP * generator.standard_normal(KNOTS), 0.2)
    speed = np.interp(np.linspace(0, KNOTS - 1, max(steps - 1, 1)), np.arange(KNOTS), knots)
    place = np.concatenate([[0.0], np.cumsum(speed)])[:steps]
    return np.asarray(place * (steps - 1) / max(place[-1], 1e-9), np.float64)
