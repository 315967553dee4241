"""Numbers of the next batch, worked out in a thread while this one trains.

Every random number of a training is a pure function of its position in the stream
(:mod:`visynth.lightning_modules.randomness`), and positions of one loader go on by the same step from batch to batch. So
what the next batch needs is known, and numpy fills arrays without holding the interpreter. A wrong guess costs the time
of drawing, never another number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
Positions = tuple[int, ...]


@dataclass
class _Line:
    """What one use of positions has drawn: the last batch's numbers, and those of the batch that should come next."""

    positions: Positions = ()
    value: Any = None
    ahead: Positions = ()
    future: Future[Any] | None = None


@dataclass
class Prefetcher:
    """Pure functions of stream positions, one batch ahead.

    Example:
        >>> ahead = Prefetcher()
        >>> [ahead("squares", lambda positions: [p * p for p in positions], [p, p + 1]) for p in (0, 2, 4, 9)]
        [[0, 1], [4, 9], [16, 25], [81, 100]]
    """

    _lines: dict[str, _Line] = field(default_factory=dict)
    _pool: ThreadPoolExecutor | None = None

    def __call__(self, name: str, make: Callable[[Positions], T], positions: Sequence[int]) -> T:
        """``make(positions)``; the same positions again give the same object.

        Args:
            name: of this use; ``make`` must be the same function for it each time.
            make: pure; what it returns is not to be changed.
            positions: in the stream.
        """
        key = tuple(int(p) for p in positions)
        line = self._lines.setdefault(name, _Line())
        if key == line.positions:
            value: T = line.value
            return value
        if line.future is not None and key != line.ahead:
            line.future.cancel()
            line.future = None
        value = make(key) if line.future is None else line.future.result()
        step = key[0] - line.positions[0] if line.positions and key else 0
        line.positions, line.value, line.future = key, value, None
        if step > 0:
            line.ahead = tuple(p + step for p in key)
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="visynth-draws")
            line.future = self._pool.submit(make, line.ahead)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy in another process starts anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._lines, self._pool = {}, None

    def __deepcopy__(self, memo: dict[int, Any]) -> Prefetcher:
        return Prefetcher()
