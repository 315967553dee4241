"""One checkpoint that is always whole: ``<run>/checkpoints/last.ckpt``, from which the same command goes on."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from visynth import distributed
from visynth.errors import Diverged
from visynth.files import write_bytes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints to a temporary sibling and renames it: after a kill there is the old one or all of the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())


class KeepLast(Checkpoint):
    """Saves ``last.ckpt`` every few minutes or steps, at the end, on SIGTERM, and when a loss leaves the finite numbers.

    What it saves on divergence is the state of the last finite step: :class:`visynth.errors.Diverged` is raised before a bad one.

    Args:
        minutes: between checkpoints.
        every_n_steps: optimiser steps between checkpoints, besides.
    """

    def __init__(self, minutes: float = 5.0, every_n_steps: int | None = None) -> None:
        super().__init__()
        self.minutes, self.every_n_steps = minutes, every_n_steps
        self._saved_at, self._saved_step = time.monotonic(), -1

    @staticmethod
    def path(root: str | Path) -> Path:
        """Where the checkpoint of a run lies."""
        return Path(root) / "checkpoints" / "last.ckpt"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._saved_step or step == 0:
            return
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if due or _main_says(time.monotonic() - self._saved_at > 60 * self.minutes, step):
            self._save(trainer)

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


def _main_says(own: bool, step: int) -> bool:
    """The main rank's word, asked every 20 steps: a broadcast at each step would cost what it saves."""
    if distributed.world_size() == 1:
        return own
    if step % 20:
        return False
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(float(own), device=device)
    torch.distributed.broadcast(flag, 0)
    return bool(flag)
