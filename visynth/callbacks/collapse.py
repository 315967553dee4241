"""An alarm when a generator makes less and less of a class."""

from __future__ import annotations

from typing import Any

import numpy as np

from visynth.callbacks.alarm import ClassAlarm
from visynth.metrics.support import NEIGHBOURS, recall


class CollapseAlarm(ClassAlarm):
    """Logs ``recall/<class>`` of synthetic images beside ``recall_null/<class>``, what one half of the real images reaches
    of the other; warns, or stops, when a class is lost.

    A class counts as lost when its recall is below ``alarm`` times its null at two evaluations in a row.

    Args:
        alarm: part of the null.
        stop: end the training at the alarm, once ``stop_after`` optimiser steps are done.
        stop_after: see stop.
        kwargs: of :class:`visynth.callbacks.quality.QualityCallback`; with the same ones a KID callback costs nothing
            more.

    Example:
        >>> CollapseAlarm(alarm=0.1).alarm
        0.1
    """

    def __init__(self, alarm: float = 0.1, stop: bool = False, stop_after: int = 2000, **kwargs: Any) -> None:
        super().__init__(alarm, stop, stop_after, **kwargs)
        self.recalls: dict[str, tuple[float, float]] = {}

    def watched(self, trainer: Any, pl_module: Any) -> dict[str, tuple[bool, str]]:
        real, classes = self._real_features(trainer, pl_module)
        fake = self._made_features(trainer, pl_module, len(classes))
        self.recalls = {}
        for name, own, theirs in zip(classes, real, fake, strict=True):
            if min(len(own) // 2, len(theirs)) > NEIGHBOURS:
                order = np.random.default_rng(self.seed).permutation(len(own))
                half = len(own) // 2
                null = recall(own[order[half:]], own[order[:half]])
                # As many synthetic images as the null has real ones: more of them would reach more.
                self.recalls[name] = recall(own[order[half:]], theirs[:half]), null
        return {
            name: (
                value < self.alarm * null,
                f"the generator has lost most of class {name!r}: it reaches {value:.0%} of its real images, real ones "
                f"reach {null:.0%} of each other. More images of a step, a larger gamma, transition= or shared= may help; "
                "composition or transfer may be better.",
            )
            for name, (value, null) in self.recalls.items()
        }

    def values(self, pl_module: Any) -> dict[str, float]:
        found = super().values(pl_module)
        for name, (value, null) in self.recalls.items():
            found |= {f"recall/{name}": value, f"recall_null/{name}": null}
        return found
