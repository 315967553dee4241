"""Processes of their own for tests that kill or stop them, forked from one that has imported everything and done nothing else:
an import takes ten seconds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ranks import preloaded


class Forked:
    """A function at work in another process, in a session of its own; what it prints goes to a file.

    Its code is that of SystemExit, or what the function returns; that of a killed process is the signal's number, negative.
    """

    def __init__(
        self, work: Callable[..., Any], *arguments: Any, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        log.unlink(missing_ok=True)  # what an earlier process said is not this one's
        self._process = preloaded().Process(
            target=_start, args=(work, arguments, str(log), {**os.environ, **(env or {})}, os.getcwd())
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"it has not ended after {seconds} s: {self.output()}"
        return code

    def output(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""


@contextmanager
def forked(
    work: Callable[..., Any], *arguments: Any, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[Forked]:
    """A :class:`Forked` that has ended when the block has."""
    process = Forked(work, *arguments, log=log, env=env)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait(30)


def run_forked(
    work: Callable[..., Any], *arguments: Any, log: Path, env: Mapping[str, str] | None = None, seconds: float = 200
) -> str:
    """Run a function in a process to its end, which must be a good one; gives what it printed."""
    with forked(work, *arguments, log=log, env=env) as process:
        assert process.wait(seconds) == 0, process.output()
    return process.output()


def _start(
    work: Callable[..., Any], arguments: tuple[Any, ...], log: str, environment: dict[str, str], folder: str
) -> None:
    import tempfile

    os.setsid()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
    os.environ.clear()  # the server's own is that of its start
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None  # it may stand for another environment
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(work(*arguments))
