"""An alarm when a generator begins to give training images back."""

from __future__ import annotations

from typing import Any

from visynth.callbacks.alarm import ClassAlarm
from visynth.metrics.memorization import authenticity, near_duplicates

FEWEST = 20  # images a side


def surely(share: float, count: int) -> float:
    """Lower one-sided 95 % limit of a share of ``count`` images (Wilson, 1927).

    Example:
        >>> round(surely(0.5, 20), 2), round(surely(1.0, 20), 2)
        (0.33, 0.88)
    """
    z = 1.645
    middle = share + z * z / (2 * count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return float((middle - half) / (1 + z * z / count))


class CopyAlarm(ClassAlarm):
    """Logs ``copies/<class>``, the part of the synthetic images that lie closer to a training image than 95 % of training
    images lie to each other, and ``authenticity/<class>`` (:func:`visynth.metrics.memorization.authenticity`, about one half
    where nothing is copied); warns, or stops, when a class is copied.

    A class counts as copied when its part is above ``alarm`` by more than the luck of its images (one-sided 95 %) at two
    evaluations in a row. About 0.05 is what fresh real images have. Classes with fewer than 20 real or 20 synthetic images are
    not watched: their distances say too little. The real images that it compares with must be those that the generator is
    trained on, as they are by default, and all of them: ``max_real`` is 20,000 here.

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
        super().__init__(alarm, stop, stop_after, **{"max_real": 20_000, **kwargs})
        self.copies: dict[str, tuple[float, float]] = {}
        self._counts: dict[str, int] = {}

    def watched(self, trainer: Any, pl_module: Any) -> dict[str, tuple[bool, str]]:
        real, classes = self._real_features(trainer, pl_module)
        fake = self._made_features(trainer, pl_module, len(classes))
        self.copies = {}
        for name, own, theirs in zip(classes, real, fake, strict=True):
            if min(len(own), len(theirs)) >= FEWEST:
                self.copies[name] = near_duplicates(own, theirs).share, authenticity(own, theirs)
                self._counts[name] = len(theirs)
        return {
            name: (
                surely(share, self._counts[name]) > self.alarm,
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
