"""The share of synthetic samples over a training: by epoch, or by batch."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from typing import Any

from visynth.core.errors import UsageError
from visynth.mixing.options import Options, needs_progress, share_at, training_progress
from visynth.mixing.plan import Mix


def share_of_epoch(options: Options, mix: Mix, trainer: Any) -> Callable[[int], float] | None:
    """Share of an epoch where it changes, from the trainer's number of epochs."""
    if not needs_progress(options) or not mix.share:
        return None
    if trainer is None:
        raise UsageError("share changes during the training: the datamodule needs a Trainer that says how far that is.")
    epochs = trainer.max_epochs
    if (epochs is None or epochs < 2) and (trainer.max_steps is None or trainer.max_steps < 1):
        raise UsageError(
            f"share changes during the training, by epochs under backend='samples', but max_epochs is {epochs} and "
            "max_steps is not "
            "set: set one of them, or take backend='batches' or 'online', which change it from batch to batch."
        )
    share = options.share if options.share is not None else mix.share

    def of(epoch: int) -> float:
        if epochs is not None and epochs > 0:
            return share_at(share, epoch / epochs, options.finish)
        if epoch == 0:
            return share_at(share, 0.0, options.finish)
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches  # of an epoch
        return share_at(share, min(1.0, epoch * steps / trainer.max_steps), options.finish)

    return of


def share_of_batch(options: Options, mix: Mix, trainer: Any) -> Callable[[int], float]:
    if not needs_progress(options) or not mix.share:
        return lambda number: mix.share
    share = options.share if options.share is not None else mix.share

    def of(number: int) -> float:
        total = batches_of(trainer)
        progress = training_progress(trainer) if total is None else number / total
        return share_at(share, min(1.0, progress), options.finish)

    return remembered(of)


def remembered(share_of: Callable[[int], float]) -> Callable[[int], float]:
    """The share of each batch, asked once: images are read ahead, and where the loader's length is not known the
    answer changes meanwhile.

    Example:
        >>> answers = iter([0.1, 0.9])
        >>> of = remembered(lambda number: next(answers))
        >>> [of(3), of(4), of(3)]
        [0.1, 0.9, 0.1]
    """
    known = array("d")

    def of(number: int) -> float:
        if number >= len(known):
            known.extend([math.nan] * (number + 1 - len(known)))
        if math.isnan(known[number]):
            known[number] = share_of(number)
        return known[number]

    return of


def next_epoch(trainer: Any) -> int:
    """Number of the epoch that a loader is about to begin.

    A checkpoint of the last batch of an epoch says that this epoch is under way; Lightning finds out that it is over
    only after it has asked the loader for its next batches.
    """
    epoch = trainer.fit_loop.epoch_progress.current
    over = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch and epoch.completed < epoch.started
    return int(trainer.current_epoch) + int(over)


def batches_of(trainer: Any) -> float | None:
    """Batches of the whole training, where Lightning knows."""
    totals = []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and 0 < batches < float("inf"):
        totals.append(float(trainer.max_epochs * batches))
    if trainer.max_steps is not None and trainer.max_steps > 0:
        totals.append(float(trainer.max_steps * trainer.accumulate_grad_batches))
    return min(totals) if totals else None
