"""Features of series by random convolutional kernels, with which everything that judges series sees them.

Dempster, Petitjean and Webb, "ROCKET: exceptionally fast and accurate time series classification using random
convolutional kernels" (Data Mining and Knowledge Discovery 2020), sections 3.1 and 3.2, written from the paper: kernels of 7,
9 or 11 weights, mean-centred, with random dilation, bias and padding over a random subset of channels; of each the largest
value and the share of positive ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from visynth.core import seeds as seeding
from visynth.tabular.columns import Category, Floats
from visynth.tabular.timeseries.series import Series

KERNELS = 500
LENGTHS = (7, 9, 11)
MOST_STEPS = 512  # of a series that kernels see; of longer ones, means of neighbouring rows


@dataclass(frozen=True)
class Scales:
    """How values become the numbers that judges see: of real training series.

    Attributes:
        means: of each number channel.
        deviations: of each.
        steps: of the longest.
        factor: rows that are averaged to one step.
    """

    means: Floats
    deviations: Floats
    steps: int
    factor: int = 1

    @classmethod
    def of(cls, series: Series) -> Scales:
        values = (
            np.stack([series.channels[name] for name in series.schema.numbers], 1) if series.schema.numbers else None
        )
        factor = -(-int(series.lengths.max()) // MOST_STEPS)
        steps = -(-int(series.lengths.max()) // factor)
        if values is None:
            return cls(np.zeros(0), np.ones(0), steps, factor)
        spread = np.nanstd(values, axis=0)
        deviations = np.where(spread > 0, spread, 1.0)
        return cls(np.nanmean(values, axis=0), deviations, steps, factor)

    def arrays(self, series: Series) -> Floats:
        """Series as ``[N, D, L]``, L at least ``steps``: scaled numbers, whether a value is missing, categories one-hot, gaps of irregular
        times, and whether the series goes on. Missing values and what is behind a series' end are 0."""
        parts = []
        for place, name in enumerate(series.schema.numbers):
            values = (series.channels[name] - self.means[place]) / self.deviations[place]
            parts.append(np.nan_to_num(values))
            if series.schema.channels[name].nullable:
                parts.append(np.isnan(values).astype(np.float64))
        for column in series.schema.channels.modelled:
            if isinstance(column, Category):
                parts += [
                    (series.channels[column.name] == code).astype(np.float64) for code in range(len(column.categories))
                ]
        if series.schema.step is None:
            gaps = np.diff(series.times, prepend=0.0)
            gaps[series.offsets[:-1]] = 0
            parts.append(np.log1p(np.maximum(gaps, 0)))
        parts.append(np.ones(len(series.times)))
        rows = np.stack(parts)
        longest = -(-int(series.lengths.max()) // self.factor)
        out = np.zeros((len(series), len(rows), max(self.steps, longest)))
        for number, length in enumerate(series.lengths.tolist()):
            own = rows[:, series.rows(number)]
            if self.factor > 1:
                starts = np.arange(0, length, self.factor)
                own = np.add.reduceat(own, starts, axis=1) / np.diff(np.append(starts, length))
            out[number, :, : own.shape[1]] = own
        return out


class Kernels:
    """Random kernels for arrays of some channels and steps.

    Args:
        channels: of an array.
        steps: of it.
        count: of kernels; each gives two features.
        seed: of them.

    Example:
        >>> kernels = Kernels(channels=2, steps=30, count=10)
        >>> kernels(np.zeros((3, 2, 30))).shape
        (3, 20)
    """

    def __init__(self, channels: int, steps: int, count: int = KERNELS, seed: int = 0) -> None:
        generator = seeding.rng(seed, "series/kernels")
        self.kernels = []
        for _ in range(count):
            length = int(generator.choice([k for k in LENGTHS if k <= steps] or [max(steps, 1)]))
            some = int(2 ** generator.uniform(0, np.log2(min(channels, length) + 1)))
            picked = generator.choice(channels, min(max(some, 1), channels), replace=False)
            weights = generator.standard_normal((len(picked), length))
            weights -= weights.mean(1, keepdims=True)
            dilation = int(2 ** generator.uniform(0, np.log2(max((steps - 1) / max(length - 1, 1), 1))))
            padding = (length - 1) * dilation // 2 if generator.random() < 0.5 else 0
            bias = float(generator.uniform(-1, 1))
            self.kernels.append((picked, torch.from_numpy(weights[None]).float(), dilation, padding, bias))

    def __call__(self, arrays: Floats) -> Floats:
        """Features float64 ``[N, 2 count]`` of ``[N, channels, steps]``."""
        x = torch.from_numpy(np.ascontiguousarray(arrays)).float()
        features = []
        for picked, weights, dilation, padding, bias in self.kernels:
            out = torch.nn.functional.conv1d(x[:, picked], weights, dilation=dilation, padding=padding)[:, 0] + bias
            features += [out.amax(1), (out > 0).float().mean(1)]
        return torch.stack(features, 1).double().numpy()


@dataclass(frozen=True)
class Eyes:
    """What judges see of series: scales of real ones, and kernels.

    Example:
        >>> from visynth.tabular.timeseries import from_arrays
        >>> series = from_arrays(np.random.default_rng(0).normal(size=(4, 2, 20)))
        >>> Eyes.of(series, count=8)(series).shape
        (4, 16)
    """

    scales: Scales
    kernels: Kernels

    @classmethod
    def of(cls, series: Series, count: int = KERNELS, seed: int = 0) -> Eyes:
        scales = Scales.of(series)
        return cls(scales, Kernels(scales.arrays(series.take([0])).shape[1], scales.steps, count, seed))

    def __call__(self, series: Series) -> Floats:
        return self.kernels(self.scales.arrays(series))
