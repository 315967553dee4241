"""One step of a private training: its batch in parts, each of which is clipped and summed as it passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from visynth.privacy.adversary import Adversary
from visynth.privacy.optimizer import PrivateOptimizer, RowGradients
from visynth.privacy.poisson import EmptyBatch, batch_rows, rows_of_batch


class PrivateSteps:
    """Steps of a private optimiser.

    Args:
        optimizer: private.
        hooks: that gather the gradients of rows.
        physical: rows that are held at once; None: all.
        multiplicity: rows of a unit in its batch.
        expected: rows of a step.
        count: called with the module and the number of steps that its batches make now.
    """

    def __init__(
        self,
        optimizer: PrivateOptimizer,
        hooks: RowGradients,
        physical: int | None,
        multiplicity: int,
        expected: int,
        count: Callable[[Any, int], None],
    ) -> None:
        self.optimizer, self.hooks, self.count = optimizer, hooks, count
        self.physical, self.multiplicity, self.expected = physical, multiplicity, expected

    def automatic(self, module: Any, step: Callable[[Any, int], Any], batch: Any, batch_idx: int) -> Any:
        """A training step on all parts of a batch; Lightning makes the last one's backward pass."""
        if isinstance(batch, EmptyBatch):
            self.optimizer.units = 0
            self.count(module, self.optimizer.step_number() + 1)
            return sum((p.sum() for p in self.optimizer.params), torch.zeros((), device=module.device)) * 0.0
        *before, last = self._parts(batch)
        self.optimizer.zero_grad(set_to_none=True)
        for part in before:
            found = step(self._begin(batch, part), batch_idx)
            self._sum(found["loss"] if isinstance(found, dict) else found)
        loss = step(self._begin(batch, last) if before else self._whole(batch, last), batch_idx)
        self.count(module, self.optimizer.step_number() + 1)
        return loss

    def adversarial(self, module: Any, batch: Any) -> None:
        """A step of the private part, and then of whatever learns from it."""
        part = cast(Adversary, module)
        own, *_ = cast(Any, module.optimizers())
        self.optimizer.zero_grad(set_to_none=True)
        total, self.optimizer.units = torch.zeros((), device=module.device), 0
        part.before_private_step(self.expected)
        if not isinstance(batch, EmptyBatch):
            parts = self._parts(batch)
            for rows in parts:
                loss = part.private_loss(self._begin(batch, rows))
                self._sum(loss)
                total += loss.detach() * (rows.stop - rows.start) / parts[-1].stop
            self.optimizer.units = 0  # all are summed
        own.step()
        self.count(module, self.optimizer.step_number())
        self.hooks.disable_hooks()
        part.after_private_step(total)
        self.hooks.enable_hooks()

    def _parts(self, batch: Any) -> list[slice]:
        rows = batch_rows(batch)
        size = max((self.physical or rows) // self.multiplicity, 1) * self.multiplicity
        return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]

    def _whole(self, batch: Any, part: slice) -> Any:
        self.optimizer.units = (part.stop - part.start) // self.multiplicity
        return batch

    def _begin(self, batch: Any, part: slice) -> Any:
        return self._whole(rows_of_batch(batch, part), part)

    def _sum(self, loss: Tensor) -> None:
        with torch.autocast(loss.device.type, enabled=False):  # as Lightning makes the last part's backward pass
            torch.autograd.backward(loss)
        self.optimizer.clip_and_accumulate()
        self.optimizer.zero_grad(set_to_none=True)
