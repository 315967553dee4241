"""Synthetic series: sensors, events and scans over time. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visynth.tabular.timeseries.arrays import from_arrays, read_arrays
    from visynth.tabular.timeseries.autoregressive import SeriesAR
    from visynth.tabular.timeseries.base import SeriesGenerator
    from visynth.tabular.timeseries.baselines import IndependentChannels, WindowBootstrap
    from visynth.tabular.timeseries.cutting import cut
    from visynth.tabular.timeseries.diffusion import SeriesDiffusion
    from visynth.tabular.timeseries.reading import read_series
    from visynth.tabular.timeseries.series import Series, SeriesSchema
    from visynth.tabular.timeseries.vae import TimeVAE

_HOMES = {
    "SeriesAR": "autoregressive",
    "SeriesGenerator": "base",
    **dict.fromkeys(("IndependentChannels", "WindowBootstrap"), "baselines"),
    "SeriesDiffusion": "diffusion",
    **dict.fromkeys(("from_arrays", "read_arrays"), "arrays"),
    "cut": "cutting",
    "read_series": "reading",
    **dict.fromkeys(("Series", "SeriesSchema"), "series"),
    "TimeVAE": "vae",
}
__all__ = [
    "IndependentChannels",
    "Series",
    "SeriesAR",
    "SeriesDiffusion",
    "SeriesGenerator",
    "SeriesSchema",
    "TimeVAE",
    "WindowBootstrap",
    "cut",
    "from_arrays",
    "read_arrays",
    "read_series",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"visynth.tabular.timeseries.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'visynth.tabular.timeseries' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
