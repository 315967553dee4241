"""Plan a trial to fit its minutes before it starts, so that the same trial comes out whatever else the machine
does."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

EFFICIENCY = 0.5  # of each further core, as measured when sampling and distances of a cell ran on one: a careful plan
MARGIN = 0.9  # of the minutes is planned; the rest is for the generator, its renders and the report
ARMS = 0.5  # of the minutes at most goes to arms where a generator has to be trained


@dataclass(frozen=True)
class Cost:
    """Seconds, as a pilot cell took them.

    Attributes:
        spent: before the first cell: preflight, features, headroom, features of every place.
        of_class: for each class: its augmented copies.
        of_cell: for each cell: fitting the synthesizer, sampling, features, every arm.
    """

    spent: float
    of_class: float
    of_cell: float


@dataclass(frozen=True)
class TrialPlan:
    """Draws and classes that will be measured.

    Attributes:
        draws: of each class.
        classes: in order: the named ones, then the others that fit.
        left: seconds that are left for a trained generator.
        needed: minutes that all that was asked for would take, without training.
    """

    draws: int
    classes: tuple[str, ...]
    left: float
    needed: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrialPlan:
        return cls(**{**values, "classes": tuple(values["classes"])})


def plan_trial(
    cost: Cost,
    named: tuple[str, ...],
    others: tuple[str, ...],
    *,
    draws: int,
    folds: int,
    seconds: float,
    trains: bool = False,
) -> TrialPlan:
    """Named classes first, all with the same draws and one at least; then the others, each whole or not at all.

    Args:
        cost: of the pilot cell.
        named: classes that matter.
        others: further ones, in the order in which they are taken.
        draws: that were asked for.
        folds: of each draw.
        seconds: budget of the whole trial.
        trains: whether a generator has to be trained, for which time must be left.

    Example:
        >>> cost = Cost(spent=60, of_class=10, of_cell=12)
        >>> plan_trial(cost, ("crack",), ("hole", "stain"), draws=5, folds=3, seconds=600)
        TrialPlan(draws=5, classes=('crack', 'hole'), left=100.0, needed=11.7)
        >>> plan_trial(cost, ("crack", "hole"), ("stain",), draws=5, folds=3, seconds=300).draws
        2
    """
    budget = MARGIN * seconds - cost.spent
    arms = ARMS * budget if trains else budget

    def of(count: int) -> float:
        return cost.of_class + count * folds * cost.of_cell

    whole = [count for count in range(1, draws + 1) if len(named) * of(count) <= arms]
    chosen = max(whole, default=1)
    left = budget - len(named) * of(chosen)
    classes = list(named)
    for name in others:
        if of(chosen) <= left - (budget - arms):
            classes.append(name)
            left -= of(chosen)
    needed = (cost.spent + (len(named) + len(others)) * of(draws)) / MARGIN
    return TrialPlan(chosen, tuple(classes), max(left, 0.0), round(needed / 60, 1))


@dataclass(frozen=True)
class Clock:
    """A moment, in seconds on the wall and of processors."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Clock:
        return cls(time.monotonic(), time.process_time())

    def since(self, before: Clock, workers: int) -> float:
        """Seconds that the time between would take on a quiet machine: what a busy one changes least.

        That is the processors' seconds shared by the workers, or the wall's where more cores than workers took part.

        Example:
            >>> Clock(30.0, 12.0).since(Clock(0.0, 2.0), workers=0), Clock(2.0, 12.0).since(Clock(0.0, 2.0), workers=0)
            (10.0, 2.0)
        """
        count = min(max(workers, 1), os.cpu_count() or 1)
        return min(self.wall - before.wall, (self.cpu - before.cpu) / (1 + (count - 1) * EFFICIENCY))
