"""Rank helpers that work without torchrun: a single process is rank 0 of 1.

Example:
    >>> rank(), world_size(), is_main()
    (0, 1, True)
    >>> mine([10, 11, 12], rank=1, world=2)
    [11]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def rank() -> int:
    """This process's rank: from torch.distributed where it runs, else from torchrun's environment, else 0."""
    group = _group()
    return group.get_rank() if group else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Processes in the job: from torch.distributed where it runs, else from torchrun's environment, else 1."""
    group = _group()
    return group.get_world_size() if group else int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """True on the one process that may write shared files."""
    return rank() == 0


def mine(items: Sequence[T], *, rank: int, world: int) -> list[T]:
    """The items of one rank: a strided share, so that every rank meets every part of the list."""
    return list(items[rank::world])


def _group() -> Any:
    """torch.distributed where it runs, else None; torch is not imported just to ask."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed


def on_main(work: Callable[[], None]) -> None:
    """Do something on the first process while the others wait; where it fails, all fail with the same error.

    Example:
        >>> on_main(lambda: print("once"))
        once
    """
    group = _group()
    if group is None or group.get_world_size() == 1:
        work()
        return
    failure: list[Any] = [None]
    if group.get_rank() == 0:
        try:
            work()
        except Exception as error:
            failure = [error]
    group.broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


def averaged(tensor: Any) -> Any:
    """A tensor's mean over all processes; the tensor itself where there is one."""
    group = _group()
    if group is None or group.get_world_size() == 1:
        return tensor
    summed = tensor.clone()
    group.all_reduce(summed)
    return summed / group.get_world_size()


def average_gradients(parameters: Sequence[Any]) -> None:
    """Every parameter's gradient becomes its mean over all processes, in one exchange; missing ones count as zero."""
    group = _group()
    if group is None or group.get_world_size() == 1:
        return
    import torch

    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    group.all_reduce(flat)
    flat /= group.get_world_size()
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
