"""A process that moves the champion again and again; it imports as little as it can, for eight of them start at once."""

from __future__ import annotations

import contextlib

from visynth.core.errors import ConflictError
from visynth.jobs.registry.opening import open_registry


def promote(where: str, version: str, number: int, times: int) -> list[tuple[int, str]]:
    """Try, each time from wherever the alias was seen; gives the moves that were won, with who won them."""
    registry, won = open_registry(where), []
    for _ in range(times):
        seen = registry.alias("champion").gen
        with contextlib.suppress(ConflictError):
            won.append((registry.promote(version, expect=seen, actor=f"p{number}").gen, f"p{number}"))
    return won


def promote_when_all_are_ready(ready, results, *args) -> None:
    ready.wait()
    results.put(promote(*args))
