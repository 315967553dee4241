"""Cells with all that is made for them: synthetic images and controls, CutMix, distances from defect-free images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, TypeVar

from visynth.core.errors import VisynthError
from visynth.core.processes import in_threads
from visynth.generators.base import Samples
from visynth.jobs.trial.cells import Split
from visynth.jobs.trial.data import TrialData
from visynth.jobs.trial.options import TrialOptions
from visynth.jobs.trial.synthesis import Synthesizer, sampled, with_synthesis
from visynth.metrics.dense import DenseHead
from visynth.verdict.cells import Cell

T = TypeVar("T")


@dataclass(frozen=True)
class Ready:
    """A cell that can be fitted, or why it cannot."""

    split: Split
    cell: Cell | VisynthError


def ready_cells(
    data: TrialData,
    synthesizer: Synthesizer | None,
    name: str,
    pairs: Sequence[tuple[Split, Cell]],
    options: TrialOptions,
    *,
    head: DenseHead | None = None,
    all_or_none: bool = False,
) -> list[Ready]:
    """Some cells of a class, with what is made for each.

    Args:
        data: gets the features of what is made.
        synthesizer: fitted on the training side of each split; None for cells without synthesis.
        name: the class.
        pairs: splits and their cells.
        options: of the trial.
        head: a dense one that learns from the images as well.
        all_or_none: stop at the first cell without synthesis.
    """
    each = repeat(None) if synthesizer is None else _sampled(data, synthesizer, name, [s for s, _ in pairs], options)

    def complete(split: Split, cell: Cell, samples: Samples | None) -> Cell:
        if synthesizer is not None and samples is not None:
            cell = with_synthesis(data, synthesizer, name, split, cell, samples, options.synthetic, head)
        return data.with_cutmix(cell, name, options.synthetic, options.seed)

    def measured(one: Ready) -> Ready:
        return one if isinstance(one.cell, VisynthError) else Ready(one.split, _or_why(data.with_distances, one.cell))

    found: list[Ready] = []
    for (split, cell), samples in zip(pairs, each, strict=False):
        outcome = samples if isinstance(samples, VisynthError) else _or_why(complete, split, cell, samples)
        found.append(Ready(split, outcome))
        if all_or_none and isinstance(outcome, VisynthError):
            return found
    return in_threads(measured, found, options.workers)


def _sampled(
    data: TrialData, synthesizer: Synthesizer, name: str, splits: Sequence[Split], options: TrialOptions
) -> Iterator[Samples | VisynthError]:
    """Samples for each split, or why there are none: side by side where the synthesizer allows it, else when they are asked
    for."""

    def attempt(split: Split) -> Samples | VisynthError:
        return _or_why(sampled, data, synthesizer, name, split, options)

    return iter(in_threads(attempt, splits, options.workers)) if synthesizer.threads else map(attempt, splits)


def _or_why(work: Callable[..., T], *given: Any) -> T | VisynthError:
    """What comes of some work, or why nothing does."""
    try:
        return work(*given)
    except VisynthError as error:
        return error
