"""Cells with all that is made for them: synthetic images and controls, CutMix, distances from defect-free images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

from visynth.core.errors import VisynthError
from visynth.core.processes import in_threads
from visynth.generators.base import Samples
from visynth.jobs.trial.cells import Split
from visynth.jobs.trial.data import TrialData
from visynth.jobs.trial.options import TrialOptions
from visynth.jobs.trial.synthesis import Synthesizer, sampled, with_synthesis
from visynth.metrics.dense import DenseHead
from visynth.verdict.cells import Cell


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
    found: list[Ready] = []
    each = repeat(None) if synthesizer is None else _sampled(data, synthesizer, name, [s for s, _ in pairs], options)
    for (split, cell), samples in zip(pairs, each, strict=False):
        if isinstance(samples, VisynthError):
            found.append(Ready(split, samples))
            if all_or_none:
                return found
            continue
        try:
            if synthesizer is not None and samples is not None:
                cell = with_synthesis(data, synthesizer, name, split, cell, samples, options.synthetic, head)
            found.append(Ready(split, data.with_cutmix(cell, name, options.synthetic, options.seed)))
        except VisynthError as error:
            found.append(Ready(split, error))

    def measured(one: Ready) -> Ready:
        if isinstance(one.cell, VisynthError):
            return one
        try:
            return Ready(one.split, data.with_distances(one.cell))
        except VisynthError as error:
            return Ready(one.split, error)

    return in_threads(measured, found, options.workers)


def _sampled(
    data: TrialData, synthesizer: Synthesizer, name: str, splits: Sequence[Split], options: TrialOptions
) -> Iterator[Samples | VisynthError]:
    """Samples for each split, or why there are none: side by side where the synthesizer allows it, else when they are asked
    for."""

    def attempt(split: Split) -> Samples | VisynthError:
        try:
            return sampled(data, synthesizer, name, split, options)
        except VisynthError as error:
            return error

    return iter(in_threads(attempt, splits, options.workers)) if synthesizer.threads else map(attempt, splits)
