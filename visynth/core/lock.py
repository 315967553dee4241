"""One job at a time: a lock that ends with its holder, and says who holds it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visynth.core.errors import LockedError
from visynth.core.files import alive, host, utc_now, write_new

_held: list[int] = []  # open files of the locks of this process
UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@contextmanager
def only_one(path: str | Path, what: str) -> Iterator[None]:
    """The block runs in one process at a time, among those that share the file.

    The system frees the lock when its holder dies, however it dies. Where a filesystem has no locks, a record with machine,
    boot and process stands in: one that a dead process of this machine left is taken over, another machine's is not.

    Args:
        path: of the lock's file, which stays.
        what: the job, for the message.

    Raises:
        LockedError: another process is in the block.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> with only_one(path, "a job"):
        ...     with only_one(path, "a job"):
        ...         pass
        Traceback (most recent call last):
        visynth.core.errors.LockedError: a job is at work already (process ...
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locked = _lock(handle)
        if locked is False:
            raise LockedError(_busy(what, _read(path)))
        if locked is None:
            with _by_record(path.with_name(path.name + ".held"), what):
                yield
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_who()).encode(), 0)
        _held.append(handle)
        try:
            yield
        finally:
            _held.remove(handle)
    finally:
        os.close(handle)  # which frees it


def held() -> tuple[int, ...]:
    """Open files of the locks that this process holds: a child that inherits them holds them, too, until it ends."""
    return tuple(_held)


def _lock(handle: int) -> bool | None:
    """Whether the lock is ours now; None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        return False
    return True


@contextmanager
def _by_record(path: Path, what: str) -> Iterator[None]:
    if not write_new(path, json.dumps(_who()).encode()):
        holder = _read(path)
        if not _gone(holder):
            raise LockedError(f"{_busy(what, holder)} If that machine is no more, delete {path}.")
        path.unlink(missing_ok=True)
        if not write_new(path, json.dumps(_who()).encode()):
            raise LockedError(_busy(what, _read(path)))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _gone(holder: dict[str, Any]) -> bool:
    """Whether a holder is a process of this machine that is no more; after a restart, numbers mean other processes."""
    if holder.get("host") != host():
        return False
    return holder.get("boot") != _boot() or not alive(int(holder.get("process", 0)) or os.getpid())


def _who() -> dict[str, Any]:
    return {
        "host": host(),
        "boot": _boot(),
        "process": os.getpid(),
        "since": utc_now(),
    }


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _busy(what: str, holder: dict[str, Any]) -> str:
    who = (
        f"process {holder['process']} of machine {holder['host']}, since {holder['since']}"
        if holder
        else "another process"
    )
    return f"{what} is at work already ({who}). Try again later."
