"""Writing so that nothing is ever half there: temporary sibling, fsync, rename, fsync of the folder."""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from visynth.core.errors import OutputError

WRITERS = 4  # threads that write files
FEW = 8  # files that are synced one by one


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN. Hashes are taken of this.

    Example:
        >>> canonical_json({"b": 1, "a": [1.5, None]})
        '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_json(value: Any) -> str:
    """Hex sha256 of the canonical JSON of a value."""
    return sha256(canonical_json(value).encode()).hexdigest()


def hash_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    digest = sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def host() -> str:
    """A short name of this machine, safe in file names: process numbers mean something on one machine alone."""
    return sha256(platform.node().encode()).hexdigest()[:8]


def alive(pid: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def temporary_name(path: Path) -> Path:
    """Name beside a path for what this process writes before it gets that name; others know it for temporary."""
    return path.with_name(f".{path.name}.{host()}.{os.getpid()}.tmp")


def utc_now() -> str:
    """The time in UTC, for people to read."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that nobody else sees yet, and have it on the disk."""
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_all_synced(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder that nobody else sees yet, and have them and their folders on the disk."""
    folders = {(folder / name).parent for name in files} | {folder}
    for inner in folders:
        inner.mkdir(parents=True, exist_ok=True)
    # One sync of the whole filesystem costs as much as that of a few files.
    together = len(files) > FEW and _can_sync_filesystem()
    with _to_sync(folder) if together else nullcontext(), ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda own: (_write if together else write_synced)(folder / own[0], own[1]), files.items()))
    if not together:
        for inner in folders:
            sync_folder(inner)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@functools.cache
def _can_sync_filesystem() -> bool:
    """Whether there is Linux's ``syncfs`` that tells errors (since 5.8)."""
    if platform.system() != "Linux":
        return False
    version = [int(part) for part in re.findall(r"\d+", platform.release())[:2]]
    return version >= [5, 8] and hasattr(ctypes.CDLL(None), "syncfs")


@contextmanager
def _to_sync(folder: Path) -> Iterator[None]:
    """Have the filesystem on the disk after the block. It is opened before anything is written, else an error that was met
    in between is told to somebody else."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield
        _sync_filesystem(handle)
    finally:
        os.close(handle)


def _sync_filesystem(handle: int) -> None:
    if ctypes.CDLL(None, use_errno=True).syncfs(handle):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that after a crash it holds either the old content or all of the new."""
    write_chunks(path, [data])


def write_chunks(path: str | Path, chunks: Iterable[bytes]) -> None:
    """Write a file piece by piece so that after a crash it holds either the old content or all of the new."""
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError):  # of the pieces
            raise
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Free space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_new(path: str | Path, data: bytes) -> bool:
    """Write a file that is not there yet; of several processes that try at once one wins.

    Returns:
        Whether this one did; the file is whole either way.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> write_new(path, b"first"), write_new(path, b"second"), path.read_bytes()
        (True, False, b'first')
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        write_synced(temporary, data)
        _link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Free space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, if that is free."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a filesystem without hard links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))  # whoever makes it
        os.replace(source, target)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Readable JSON with sorted keys, written atomically."""
    write_bytes(path, readable_json(value))


def readable_json(value: Any) -> bytes:
    """Indented JSON with sorted keys, as files hold it."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive power loss (a no-op where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network filesystems refuse fsync of folders; the rename itself is still atomic
    finally:
        os.close(handle)


def ensure_writable(folder: str | Path) -> Path:
    """Create the folder and prove that a file can be written there, before any long work starts.

    Raises:
        OutputError: it cannot be created or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}. Choose another output folder."
        ) from error
    return folder


def _probe(folder: Path) -> None:
    """Create and remove a file: without a name where the system can, so that a kill leaves nothing behind."""
    nameless = getattr(os, "O_TMPFILE", None)
    if nameless is not None:
        try:
            os.close(os.open(folder, nameless | os.O_WRONLY, 0o600))
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
    probe = temporary_name(folder / "probe")
    probe.write_bytes(b"")
    probe.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in the block, among those of all machines that share the folder (where its filesystem has
    locks)."""
    try:
        import fcntl
    except ImportError:  # Windows: there the last one wins
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a filesystem without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which frees the lock


def cache_folder() -> Path:
    """Folder for things that can be computed again (features, unpacked sets): ``$VISYNTH_CACHE``, else ``visynth`` in
    the user's cache folder."""
    base = os.environ.get("VISYNTH_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "visynth"
