"""A line now and then: images, images per second, seconds for a thousand images, loss, and the time left."""

from __future__ import annotations

import sys
import time
from typing import Any

from pytorch_lightning import Callback


class TimeLeft(Callback):
    """Prints progress to stderr every ``seconds``: for logs of scheduled jobs, where a bar is a mess.

    Args:
        seconds: between lines.

    Example:
        >>> TimeLeft(30).line(images=6000, rate=60.0, left=125, loss=0.5)
        '6000 images, 60 images/s (16.7 s/kimg), loss 0.500, 2 min 05 s left'
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._begun = self._said = 0.0
        self._images = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._begun = self._said = time.monotonic()
        self._images, self._steps = self._seen(trainer, pl_module), trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if now - self._said >= self.seconds and trainer.is_global_zero:
            self._said = now
            print(self._status(trainer, pl_module, now), file=sys.stderr, flush=True)

    def _status(self, trainer: Any, pl_module: Any, now: float) -> str:
        images, spent = self._seen(trainer, pl_module), now - self._begun
        loss = trainer.callback_metrics.get("loss")
        rate = (images - self._images) / max(spent, 1e-9)
        left = self._left(trainer, spent)
        kimg = getattr(pl_module, "hparams", {}).get("kimg")
        if kimg is not None and rate > 0:
            left = min(left or float("inf"), (1000 * kimg - images) / rate)
        return self.line(images, rate, left, None if loss is None else float(loss))

    def _left(self, trainer: Any, spent: float) -> float | None:
        """Seconds to the nearer of max_time and max_steps, or None when neither is set."""
        limits = []
        timer = next((c for c in trainer.callbacks if hasattr(c, "time_remaining")), None)
        if timer is not None and timer.time_remaining() is not None:
            limits.append(timer.time_remaining())
        done = trainer.global_step - self._steps
        if trainer.max_steps > 0 and done > 0:
            limits.append((trainer.max_steps - trainer.global_step) * spent / done)
        return min(limits) if limits else None

    def _seen(self, trainer: Any, pl_module: Any) -> int:
        return int(getattr(pl_module, "images_seen", trainer.global_step))

    def line(self, images: int, rate: float, left: float | None, loss: float | None) -> str:
        """The line."""
        parts = [f"{images} images", f"{rate:.0f} images/s" + (f" ({1000 / rate:.1f} s/kimg)" if rate > 0 else "")]
        if loss is not None:
            parts.append(f"loss {loss:.3f}")
        if left is not None:
            minutes, seconds = divmod(max(0, round(left)), 60)
            parts.append(f"{minutes} min {seconds:02d} s left")
        return ", ".join(parts)
