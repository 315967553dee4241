"""An alarm when a generator begins to give training images back."""

from __future__ import annotations

from typing import Any

from visynth.callbacks.alarm import ClassAlarm
from visynth.core.errors import DataError
from visynth.metrics.memorization import authenticity, near_duplicates


class CopyAlarm(ClassAlarm):
    """Logs ``copies/<class>``, the part of the synthetic images that lie closer to a training image than 95 % of training
    images lie to each other, and ``authenticity/<class>`` (:func:`visynth.metrics.memorization.authenticity`, about one half
    where nothing is copied); warns, or stops, when a class is copied.

    A class counts as copied when its part is above ``alarm`` at two evaluations in a row. About 0.05 is what fresh real images
    have, more where the real images have few near-duplicates among themselves. The real images that it compares with must be
    those that the generator is trained on, as they are by default.

    Args:
        alarm: part of a class's synthetic images.
        stop: end the training at the alarm, once ``stop_after`` optimiser steps are done.
        stop_after: see stop.
        kwargs: of :class:`visynth.callbacks.quality.QualityCallback`; with the same ones a KID callback costs nothing
            more.

    Example:
        >>> CopyAlarm(stop=True).alarm
        0.3
    """

    def __init__(self, alarm: float = 0.3, stop: bool = False, stop_after: int = 2000, **kwargs: Any) -> None:
        super().__init__(alarm, stop, stop_after, **kwargs)
        self.copies: dict[str, tuple[float, float]] = {}

    def watched(self, trainer: Any, pl_module: Any) -> dict[str, tuple[bool, str]]:
        real, classes = self._real_features(trainer, pl_module)
        fake = self._made_features(trainer, pl_module, len(classes))
        self.copies = {}
        for name, own, theirs in zip(classes, real, fake, strict=True):
            try:
                self.copies[name] = near_duplicates(own, theirs).share, authenticity(own, theirs)
            except DataError:  # too few to say: a class of two images has no distances to compare with
                continue
        return {
            name: (
                share > self.alarm,
                f"the generator gives training images of class {name!r} back: {share:.0%} of what it makes lie closer to one "
                "than training images lie to each other (5 % is usual). Take an earlier checkpoint, stronger augmentation or "
                "fewer steps, and look at them.",
            )
            for name, (share, _) in self.copies.items()
        }

    def values(self, pl_module: Any) -> dict[str, float]:
        found = super().values(pl_module)
        for name, (share, away) in self.copies.items():
            found |= {f"copies/{name}": share, f"authenticity/{name}": away}
        return found
