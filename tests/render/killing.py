"""Kill processes at random while something else is at work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def assassin(victims: Callable[[], list[int]], kills: int, pause: tuple[float, float]) -> Iterator[list[int]]:
    """While the block runs, SIGKILL one of the processes that ``victims`` finds, after each random pause in seconds, so often at
    most; gives the list of those that were killed, which grows."""
    numbers, done, killed = random.Random(time.time()), threading.Event(), []

    def work() -> None:
        while not done.is_set() and len(killed) < kills:
            time.sleep(numbers.uniform(*pause))
            if found := victims():
                victim = numbers.choice(found)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


def processes() -> list[tuple[int, int, str]]:
    """Number, parent and command line of every process."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in listed.splitlines()[1:])
    return [(int(pid), int(ppid), words) for pid, ppid, words in rows]


def workers_of(parent: int) -> list[int]:
    """Render workers of a process."""
    return [pid for pid, ppid, words in processes() if ppid == parent and "visynth.render.worker" in words]
