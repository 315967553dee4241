"""The optimisers of a federated training: how far weights move along what they are given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class _Steps(torch.optim.Optimizer):
    """Moves each parameter along its gradient, in a way of its own; ``lr`` of a schedule or a warm-up changes nothing."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad)
        return loss

    @abstractmethod
    def move(self, parameter: Tensor, gradient: Tensor) -> None:
        """Change a parameter in place."""


class GradientWalk(_Steps):
    """A site's: plain gradient steps of one length, which add up the gradients on their way.

    Args:
        params: as for any optimiser.
        step_size: of each step.

    Example:
        >>> p = nn.Parameter(torch.tensor([1.0]))
        >>> p.grad = torch.tensor([2.0])
        >>> walk = GradientWalk([p], 0.25)
        >>> _ = walk.step(), walk.step()
        >>> p.tolist(), walk.sums[id(p)].tolist()
        ([0.0], [4.0])
    """

    def __init__(self, params: Iterable[nn.Parameter], step_size: float) -> None:
        super().__init__(list(params), {"lr": step_size})
        self.step_size = step_size
        self.sums: dict[int, Tensor] = {
            id(p): torch.zeros_like(p) for group in self.param_groups for p in group["params"]
        }

    def move(self, parameter: Tensor, gradient: Tensor) -> None:
        self.sums[id(parameter)] += gradient
        parameter -= self.step_size * gradient


class Averaging(_Steps):
    """The server's of FedAvg: takes the mean update off the weights, as it is; the learning rate was the sites'.

    Args:
        params: as for any optimiser.
    """

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(list(params), {"lr": 1.0})

    def move(self, parameter: Tensor, gradient: Tensor) -> None:
        parameter -= gradient
