"""Worker processes that do not outlive the process that they work for."""

from __future__ import annotations

import os
import threading
import time
from functools import cache


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
