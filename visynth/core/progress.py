"""Lines of progress: what a long job is doing, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable

Progress = Callable[[str], None]  # receives one line at a time


def no_progress(line: str) -> None:
    """Tell nobody."""


class NowAndThen:
    """Passes a line on where none was passed for some seconds, so that many short steps tell little and few long ones tell all.

    Example:
        >>> progress = NowAndThen(print, seconds=60)
        >>> progress("one"); progress("two")
        >>> progress.last -= 61; progress("three")
        three
    """

    def __init__(self, progress: Progress, seconds: float = 15.0) -> None:
        self.progress, self.seconds, self.last = progress, seconds, time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self.last >= self.seconds:
            self.progress(line)
            self.last = time.monotonic()


def time_left(seconds: float) -> str:
    """A duration as a progress line has it.

    Example:
        >>> time_left(40.2), time_left(200)
        ('about 40 s left', 'about 3 min left')
    """
    return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"
