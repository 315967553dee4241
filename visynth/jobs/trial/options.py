"""Options of a trial, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from visynth.core.errors import UsageError, choices
from visynth.verdict.bootstrap import NAMED
from visynth.verdict.learners import learner_of

Learned = Literal["auto", "none", "inpaint", "diffusion", "projection"]


@dataclass(frozen=True)
class TrialOptions:
    """Draws, folds, budget and more.

    Attributes:
        rare_groups: groups of each rare class that training sees in a draw; None uses all and has no oracle.
        draws: repetitions with other folds and other training groups.
        metric: that the verdict is on, named beforehand: ``"ap"``, ``"recall@fpr"`` (at 5 % false alarms), ``"recall"`` or
            ``"macro-f1"`` (of one model of all classes); the others are printed beside it.
        folds: test folds per draw; None: 2, or 3 where the half of a class's groups that 2 leave to the training would be fewer
            than ``rare_groups`` or :data:`visynth.jobs.trial.cells.ENOUGH`. Each group is tested once a draw with any number;
            more of them take longer, in which further draws say more.
        synthetic: synthetic images of a class in a cell.
        minutes: budget; draws and unnamed classes that do not fit are not planned, and the report says so.
        seed: of everything.
        workers: processes for fitting the arms.
        learner: ``"frozen"``, ``"finetune"``, or a training of yours, see :mod:`visynth.jobs.user_training`.
        others: also give a verdict for the other classes that can be composed.
        dense: also measure a dense head taught by the masks, as a rival.
        cache: keep features of real images on disk.
        learned: also train a generator in each cell: ``"auto"`` where preflight says it suits and the minutes allow it,
            ``"none"``, ``"inpaint"``, ``"diffusion"`` or ``"projection"``.
        learn_size: pixels that the learned generator works on; 0 chooses.

    Raises:
        UsageError: values that cannot be, all listed together.
    """

    rare_groups: int | None = None
    draws: int = 10
    folds: int | None = None
    synthetic: int = 60
    minutes: float = 10.0
    seed: int = 0
    workers: int = 2
    learner: str = "frozen"
    others: bool = True
    dense: bool = True
    cache: bool = True
    learned: Learned = "auto"
    learn_size: int = 0
    metric: str = "ap"

    def __post_init__(self) -> None:
        least = {"draws": 1, "folds": 2, "synthetic": 1, "workers": 0, "seed": 0, "learn_size": 0}
        problems = [
            f"{name} must be at least {low}, but got {getattr(self, name)}"
            for name, low in least.items()
            if getattr(self, name) is not None and getattr(self, name) < low
        ]
        if self.rare_groups is not None and self.rare_groups < 1:
            problems.append(
                f"rare_groups must be at least 1, or not given for all there are, but got {self.rare_groups}"
            )
        if not self.minutes > 0:
            problems.append(f"minutes must be above 0, but got {self.minutes:g}")
        if 0 < self.learn_size < 8 or self.learn_size % 8:
            problems.append(f"learn_size must be a multiple of 8, or 0 to choose, but got {self.learn_size}")
        if self.learned not in get_args(Learned):
            problems.append(f"learned must be one of {choices(get_args(Learned))}, but got {self.learned!r}")
        try:
            learner_of(self.learner)
        except UsageError as error:
            problems.append(str(error).removesuffix("."))
        if self.metric not in NAMED:
            problems.append(f"metric must be one of {choices(NAMED)}, but got {self.metric!r}")
        if problems:
            raise UsageError("trial: " + "; ".join(problems) + ".")
