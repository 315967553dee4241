"""Lightning callbacks that watch a generator train: they decide when, :mod:`visynth.metrics` decides what."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visynth.callbacks.collapse import CollapseAlarm
    from visynth.callbacks.copying import CopyAlarm
    from visynth.callbacks.progress import TimeLeft
    from visynth.callbacks.quality import FIDCallback, KIDCallback

__all__ = ["CollapseAlarm", "CopyAlarm", "FIDCallback", "KIDCallback", "TimeLeft"]

_HOMES = {
    "CollapseAlarm": "collapse",
    "CopyAlarm": "copying",
    "FIDCallback": "quality",
    "KIDCallback": "quality",
    "TimeLeft": "progress",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"visynth.callbacks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'visynth.callbacks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
