"""Lines of progress: what a long job is doing, and how long it will take."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]  # receives one line at a time


def no_progress(line: str) -> None:
    """Tell nobody."""


def time_left(seconds: float) -> str:
    """A duration as a progress line has it.

    Example:
        >>> time_left(40.2), time_left(200)
        ('about 40 s left', 'about 3 min left')
    """
    return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left"
