"""One checkpoint that is always whole: ``<run>/checkpoints/last.ckpt``, from which the same command goes on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from visynth.core import distributed
from visynth.core.errors import Diverged
from visynth.core.files import write_bytes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints to a temporary sibling and renames it: after a kill there is the old one or all of the new
    one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())


class KeepLast(Checkpoint):
    """Saves ``last.ckpt`` every few minutes or steps, at the end, on SIGTERM, and when a loss leaves the finite
    numbers.

    What it saves on divergence is the state of the last finite step: :class:`visynth.core.errors.Diverged` is raised
    before a bad one.

    Args:
        minutes: between checkpoints.
        every_n_steps: optimiser steps between checkpoints, besides.
    """

    def __init__(self, minutes: float = 5.0, every_n_steps: int | None = None) -> None:
        super().__init__()
        self.minutes, self.every_n_steps = minutes, every_n_steps
        self.stop_requested = False  # set by a signal handler; every rank stops after the same step
        self._saved_at, self._saved_step, self._seen_step = time.monotonic(), -1, -1

    @staticmethod
    def path(root: str | Path) -> Path:
        """Path of a run's checkpoint."""
        return Path(root) / "checkpoints" / "last.ckpt"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._seen_step:  # within an accumulation: half a step must be neither saved nor stopped at
            return
        self._seen_step = step
        wish = 2.0 if self.stop_requested else float(time.monotonic() - self._saved_at > 60 * self.minutes)
        wish = _strongest(wish, step)
        if wish or (self.every_n_steps is not None and step % self.every_n_steps == 0):
            self._save(trainer)
        if wish == 2.0:
            trainer.should_stop = self.stop_requested = True  # on every rank, whichever was asked

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # Only errors that all ranks raise together, between steps: any other moment may be the middle of one.
        together = isinstance(exception, Diverged) or type(exception).__name__ == "SIGTERMException"
        if together and trainer.global_step and trainer.global_step != self._saved_step:
            self._save(trainer)

    def _save(self, trainer: Any) -> None:
        trainer.save_checkpoint(self.path(trainer.default_root_dir))
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


class ExportFirst(Callback):
    """Exports the generator as soon as the training is over, before anything more is measured, and after the last
    checkpoint is on disk. A training that was asked to stop exports nothing.

    Args:
        export: what the first rank calls.
    """

    def __init__(self, export: Callable[[], None]) -> None:
        super().__init__()
        self.export, self.done = export, False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        keepers = [callback for callback in trainer.callbacks if isinstance(callback, KeepLast)]
        for keeper in keepers:
            keeper.on_train_end(trainer, pl_module)
        if trainer.received_sigterm or any(keeper.stop_requested for keeper in keepers):
            return
        distributed.on_main(self.export)  # an error of the first rank is one of all
        self.done = True


def _strongest(own: float, step: int) -> float:
    """The strongest wish of any rank, asked every 20 steps: a collective at each step would cost what it saves."""
    if distributed.world_size() == 1:
        return own
    if step % 20:
        return 0.0
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    wish = torch.tensor(own, device=device)
    torch.distributed.all_reduce(wish, torch.distributed.ReduceOp.MAX)
    return float(wish)
