"""Work side by side: threads that share the cores, and worker processes that do not outlive the process that they work for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def one_thread() -> Any:
    """A context in which products of matrices take one thread: small ones take longer on two, some six times as long."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def in_threads(work: Callable[[A], B], items: Sequence[A], workers: int) -> list[B]:
    """What comes of each item, in order; several at a time, each on one core, since what takes time lets go of Python's lock.

    Example:
        >>> in_threads(abs, [-1, 2, -3], workers=2)
        [1, 2, 3]
    """
    import joblib

    with one_thread():  # for one item, too: the last digits must not depend on how many stand side by side
        if workers < 2 or len(items) < 2:
            return [work(item) for item in items]
        return list(joblib.Parallel(workers, backend="threading")(joblib.delayed(work)(item) for item in items))


@cache
def end_with_parent(parent: int, seconds: float = 1.0) -> None:
    """End this worker process soon after its parent has gone, even by SIGKILL. Called once or often, it watches once.

    Args:
        parent: the process that the work is for. Where that is this process itself (a pool that runs in place), nothing
            is watched.
        seconds: between looks.
    """
    if os.getpid() == parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, name="visynth-watch", daemon=True).start()
