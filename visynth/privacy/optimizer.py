"""An optimiser that clips each unit's gradient, sums, and adds noise: Abadi et al., "Deep learning with differential
privacy" (CCS 2016), algorithm 1, by Opacus."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from visynth.core.errors import UsageError, raise_all
from visynth.privacy.secret import secret_rng

AGREE = 5e-2  # relative difference up to which rows' gradients add up to that of the batch, also in bfloat16
FIRST = 50  # steps in which that is looked at


class RowGradients(GradSampleHooks):  # type: ignore[misc]
    """Opacus's hooks, which gather the gradient of each row. They take views of activations as they lie in memory, and get
    zeros from convolutions whose input is not contiguous (Opacus 1.6.0, ``unfold2d``): here they get copies."""

    def capture_activations_hook(self, module: nn.Module, forward_input: list[Any], _forward_output: Any) -> None:
        inputs = [x.contiguous() if isinstance(x, Tensor) else x for x in forward_input]
        super().capture_activations_hook(module, inputs, _forward_output)


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """The wrapped optimiser's step on clipped, summed and noised gradients.

    A unit may stand in the batch several times, side by side, with other noise or augmentation each time: its gradient is
    the mean over these copies before it is clipped, which costs no privacy (Dockhorn et al., "Differentially private
    diffusion models", TMLR 2023, section 3.2: noise multiplicity).

    Args:
        optimizer: the module's own.
        noise: standard deviation of the noise over ``max_grad_norm``.
        max_grad_norm: length to which a unit's gradient is cut.
        batch: expected units of a step; sums are divided by it, not by how many there were.
        multiplicity: rows of a unit.
        key: of the noise.
        step: gives the number of the step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise: float,
        max_grad_norm: float,
        batch: float,
        multiplicity: int,
        key: str,
        step: Callable[[], int],
    ) -> None:
        super().__init__(optimizer, noise_multiplier=noise, max_grad_norm=max_grad_norm, expected_batch_size=batch)
        self.multiplicity, self.key, self.step_number = multiplicity, key, step
        self.units = 0  # of the part of the batch at hand
        self.unchecked = set(range(len(self.params)))

    @property
    def accumulated_iterations(self) -> int:
        return 1  # parts of a batch are clipped and summed one after the other

    def _get_flat_grad_sample(self, p: nn.Parameter) -> Tensor:
        """Gradients ``[units, ...]`` of a parameter."""
        own = getattr(p, "grad_sample", None)
        if own is None:  # frozen for this batch, or without any row
            return torch.zeros((self.units, *p.shape), device=p.device, dtype=p.dtype)
        rows: Tensor = torch.cat(own) if isinstance(own, list) else own
        if len(rows) != self.units * self.multiplicity:
            raise UsageError(
                f"a parameter of shape {tuple(p.shape)} saw {len(rows)} rows for {self.units * self.multiplicity} of the batch: a "
                "unit in several pieces (patches, views) would be clipped piece by piece, and protected less than is said. "
                "Give one row a unit, and noise_multiplicity for several views."
            )
        return rows if self.multiplicity == 1 else rows.reshape(-1, self.multiplicity, *p.shape).mean(1)

    def clip_and_accumulate(self) -> None:
        """Clip the gradients of a part of the batch and add them to the step's sum.

        Raises:
            UsageError: at the first part, if rows' gradients do not add up to the gradient of the loss.
        """
        if not self.units:
            for p in self.params:
                p.summed_grad = torch.zeros_like(p) if p.summed_grad is None else p.summed_grad
            return
        # In 16 bits a sum of units would not be cut to its length.
        with torch.autocast(self.params[0].device.type, enabled=False):
            self._check()
            self._clip_and_sum()

    def _clip_and_sum(self) -> None:
        samples = [self._get_flat_grad_sample(p) for p in self.params]
        norms = torch.stack([g.reshape(len(g), -1).float().norm(2, dim=-1) for g in samples], dim=1).norm(2, dim=1)
        finite = torch.isfinite(norms)  # a unit without a finite gradient adds nothing: infinity times 0 is no number
        factor = torch.where(finite, (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0), 0.0)
        if not bool(finite.all()):
            samples = [torch.where(finite.reshape(-1, *[1] * (g.dim() - 1)), g, 0.0) for g in samples]
        for p, sample in zip(self.params, samples, strict=True):
            clipped = torch.einsum("i,i...", factor, sample.float()).to(p.dtype)
            p.summed_grad = clipped if p.summed_grad is None else p.summed_grad + clipped
            p.grad_sample = None

    def add_noise(self) -> None:
        generator = secret_rng(self.key, f"noise/{self.step_number()}")
        for p in self.params:
            noise = generator.standard_normal(tuple(p.shape)) * (self.noise_multiplier * self.max_grad_norm)
            p.grad = p.summed_grad + torch.from_numpy(np.asarray(noise, np.float32)).to(p.device, p.dtype)

    def zero_grad(self, set_to_none: bool = False) -> None:
        # The sum is kept: Lightning empties gradients between the parts of a batch, which are summed before its backward.
        for p in self.params:
            p.grad_sample = None
        self.original_optimizer.zero_grad(set_to_none)

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        self.clip_and_accumulate()
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        for p in self.params:
            p.summed_grad = None
        return True

    def _check(self) -> None:
        """What Opacus gathers row by row must add up to the gradient that autograd gives for the mean of the losses: of each
        parameter when it has one for the first time, within the first steps."""
        if not self.unchecked or self.step_number() >= FIRST:
            return
        lengths = [0.0 if p.grad is None else float(p.grad.norm()) for p in self.params]
        negligible = 1e-3 * math.hypot(*lengths)
        problems = []
        for number in sorted(self.unchecked):
            p, length = self.params[number], lengths[number]
            if length <= negligible:
                continue
            self.unchecked.discard(number)
            off = float((self._get_flat_grad_sample(p).mean(0) - p.grad).norm())
            if not off <= AGREE * length:
                problems.append(
                    f"parameter {number} of shape {tuple(p.shape)}: gradients of rows are off by {off:.3g} from the batch's of "
                    f"{length:.3g}"
                )
        raise_all(
            "the loss, which must be the mean of losses of single rows with each parameter used by its own layer,",
            problems,
            UsageError,
        )
