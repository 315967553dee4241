"""Two generators that learn nothing, beside which every other one is measured.

:class:`WindowBootstrap` gives real stretches again (Künsch, "The jackknife and the bootstrap for general stationary
observations", Annals of Statistics 1989): nothing is more faithful, and all of it is copied.
:class:`IndependentChannels` takes each channel from another series of the class: every channel by itself is real, and
nothing between channels is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch

from visynth.core.errors import UsageError
from visynth.core.progress import Progress
from visynth.tabular.columns import Floats
from visynth.tabular.timeseries.base import SeriesGenerator
from visynth.tabular.timeseries.encoding import windows_of
from visynth.tabular.timeseries.fitted import Asked, FittedSeries, first_rows
from visynth.tabular.timeseries.series import Ints, Series


class Resampled(SeriesGenerator):
    """What gives stretches of real series again. Subclasses write ``_stretch``."""

    lengthens = True

    def __init__(self) -> None:
        super().__init__()
        self._x = np.zeros((0, 0, 0), np.float32)
        self._steps = np.zeros(0, np.int64)
        self._owner = np.zeros(0, np.int64)

    def _fit(self, series: Series, progress: Progress, **training: Any) -> None:
        if training:
            raise UsageError(f"fit of {self.network} has no argument {next(iter(training))!r}.")
        windows = self.encoding.windows(series)
        self._x, self._steps = windows["x"], windows["steps"]
        self._owner = windows_of(series, self.encoding.window)[1]

    @abstractmethod
    def _stretch(self, own: Ints, generator: np.random.Generator) -> Floats:
        """Rows of some of the windows."""

    def _pieces(self, asked: Asked, given: Series | None) -> Iterator[Floats]:
        alike = np.ones(len(self.fitted.lengths), bool)
        for name, values in self.fitted.statics.items():
            wanted = asked.statics[name][0]
            alike &= (values == wanted) | ((values != values) & (wanted != wanted))
        own = np.flatnonzero(alike[self._owner])
        generator = asked.rng(0, self.network)
        while True:
            yield self._stretch(own, generator)

    def _draw(self, asked: Asked) -> list[Floats]:
        counts = enumerate(asked.lengths.tolist())
        return [first_rows(self._pieces(asked.take(np.array([place])), None), count) for place, count in counts]

    def arguments(self) -> dict[str, Any]:
        return {}

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            "x": torch.from_numpy(self._x), "steps": torch.from_numpy(self._steps), "owner": torch.from_numpy(self._owner),
        }  # fmt: skip

    @classmethod
    def _restore(
        cls, fitted: FittedSeries, arguments: Mapping[str, Any], weights: dict[str, torch.Tensor], device: str
    ) -> Self:
        generator = cls()
        generator._fitted = fitted
        generator._x, generator._steps, generator._owner = (weights[name].numpy() for name in ("x", "steps", "owner"))
        return generator


class WindowBootstrap(Resampled):
    """Real windows of series with the asked statics, drawn with replacement, one after the other where a series is longer than one."""

    network = "bootstrap"

    def _stretch(self, own: Ints, generator: np.random.Generator) -> Floats:
        place = int(own[generator.integers(len(own))])
        return np.asarray(self._x[place, : self._steps[place]], np.float64)


class IndependentChannels(Resampled):
    """Each channel of a real window of series with the asked statics, each of another one."""

    network = "independent"

    def _stretch(self, own: Ints, generator: np.random.Generator) -> Floats:
        places = own[generator.integers(len(own), size=len(self.encoding.channels))]
        rows = int(self._steps[places].min())
        parts = [self._x[p, :rows, c.span] for p, c in zip(places, self.encoding.channels, strict=True)]
        return np.concatenate(parts, 1).astype(np.float64)
