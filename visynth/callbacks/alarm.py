"""Callbacks that watch one number of each class and raise an alarm, or stop, when it is bad twice in a row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from visynth.callbacks.quality import QualityCallback
from visynth.metrics.quality import Quality


class ClassAlarm(QualityCallback):
    """What the alarms have in common: subclasses say what is watched, and when it is bad.

    Args:
        alarm: bound, see the subclass.
        stop: end the training at the alarm, once ``stop_after`` optimiser steps are done.
        stop_after: see stop.
        kwargs: of :class:`visynth.callbacks.quality.QualityCallback`; with the same ones a KID callback costs nothing
            more.
    """

    def __init__(self, alarm: float, stop: bool = False, stop_after: int = 2000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alarm, self.stop, self.stop_after = alarm, stop, stop_after
        self.bad: set[str] = set()
        self._times: dict[str, int] = {}

    def watched(self, trainer: Any, pl_module: Any) -> Mapping[str, tuple[bool, str]]:
        """Whether each class that can be told is bad now, and the warning's words."""
        raise NotImplementedError

    def evaluate(self, trainer: Any, pl_module: Any) -> list[Quality]:
        quality = super().evaluate(trainer, pl_module)
        found = self.watched(trainer, pl_module)
        for name, (bad, _) in found.items():
            self._times[name] = self._times.get(name, 0) + 1 if bad else 0
        now = {name for name, times in self._times.items() if times >= 2}
        for name in sorted(now - self.bad):
            warnings.warn(found[name][1], stacklevel=2)
        self.bad = now
        if now and self.stop and trainer.global_step >= self.stop_after:
            trainer.should_stop = True
        return quality

    def state_dict(self) -> dict[str, Any]:
        return {"times": dict(self._times), "bad": sorted(self.bad)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._times, self.bad = dict(state_dict["times"]), set(state_dict["bad"])
