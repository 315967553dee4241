"""A command of ours in a process of its own: what it starts again (ranks) or runs out of (memory) is its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from visynth.core import lock
from visynth.core.errors import VisynthError


def run_command(words: Sequence[str]) -> int:
    """Run ``visynth WORDS`` and wait for it; its output goes to standard error, where progress goes.

    What ends this process in good order (Ctrl-C, SIGTERM under the command line) ends the command first, by SIGTERM. Killed,
    this process leaves it at work, and with it the locks that are held here: nobody does the same beside it.

    Args:
        words: the verb and what follows.

    Returns:
        Its exit code.

    Raises:
        VisynthError: it was killed.

    Example:
        >>> run_command(["--version"])
        0
    """
    # 2, because sys.stderr may be no file.
    with subprocess.Popen([sys.executable, "-m", "visynth", *words], stdout=2, pass_fds=lock.held()) as child:
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code < 0:
        name = signal.Signals(-code).name
        raise VisynthError(
            f"'visynth {' '.join(words[:3])} ...' was ended by {name}"
            f"{', as where memory runs out' if name == 'SIGKILL' else ''}. The same command goes on from its last checkpoint."
        )
    return code
