"""Training of series models: windows of the real series, on the steps that tables are trained by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from visynth.core.progress import Progress
from visynth.tabular.timeseries.base import SeriesGenerator
from visynth.tabular.timeseries.fitted import Asked, FittedSeries
from visynth.tabular.timeseries.series import Series
from visynth.tabular.training import GradientSteps


class TrainedSeries(SeriesGenerator, GradientSteps):
    """A series model that is trained by gradient steps on windows. Subclasses write ``build``, ``loss`` and ``_draw``."""

    def _fit(self, series: Series, progress: Progress, **training: Any) -> None:
        self.train_on(self.encoding.windows(series), progress, **training)

    def weights(self) -> dict[str, Tensor]:
        return self.average_weights()

    def arguments(self) -> dict[str, Any]:
        return {"hparams": dict(self.hparams)}

    @classmethod
    def _restore(
        cls, fitted: FittedSeries, arguments: Mapping[str, Any], weights: dict[str, Tensor], device: str
    ) -> Self:
        module = cls(**arguments["hparams"])
        module._fitted = fitted
        module.restore_network(weights)
        return module.to(device).eval()

    def condition(self, asked: Asked, first: bool = True) -> Tensor:
        """Conditions of series, float32 ``[N, C]``; ``first`` says whether they start with the series."""
        own = self.encoding.conditions(asked.statics, len(asked.numbers))
        ones = np.full((len(own), 1), float(first), np.float32)
        return torch.from_numpy(np.concatenate([own, ones], 1)).to(self.own_device)

    @property
    def own_device(self) -> torch.device:
        return next(self.average.parameters()).device
