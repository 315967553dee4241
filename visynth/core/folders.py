"""Folders of ours: they appear whole, are replaced whole, and nothing that visynth did not write is ever removed or
written over.

A folder of ours says so itself: ``.visynth.json`` lists its files with their sha256, and a rendered set's manifest does
the same for its images. Whatever else lies there, or was changed since, is a *stranger*, and a folder with strangers is
left as it is: the command ends with exit code 73 and names them.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

from visynth.core.errors import OutputError, listing
from visynth.core.files import (
    alive,
    ensure_writable,
    hash_file,
    host,
    sync_folder,
    temporary_name,
    write_bytes,
    write_json,
)

RECORD = ".visynth.json"
SCHEMA = "visynth.folder/1"
RENDERS, ROWS = "visynth.renders/2", "visynth.rows/2"  # schemas of the plans of rendered images and rows
SHOWN = 8
TEMPORARY = re.compile(r"^\..*\.([0-9a-f]{8})\.([0-9]+)\.tmp$")  # of write_bytes and new_folder: host and process


@contextmanager
def new_folder(path: str | Path, *, replace: bool = True, parts: Sequence[str] = ()) -> Iterator[Path]:
    """A folder that appears under its name only when the block ends well.

    An older one of that name is replaced if all that is in it is ours (see the module's docstring); at any instant the
    old or the new one is there, whole, under its name or, where a filesystem cannot exchange two folders at once,
    beside it until :func:`restore`.

    Args:
        path: of the folder.
        replace: False refuses any older one.
        parts: patterns of folders in it that are part of it and speak for themselves ("generator*"); any other is a
            stranger.

    Raises:
        OutputError: it holds something that visynth did not write, or it cannot be written.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> with new_folder(root / "made") as folder:
        ...     (folder / "a.txt").write_text("done") and (root / "made").exists()
        False
        >>> (root / "made" / "a.txt").read_text()
        'done'
    """
    path = Path(path).resolve()
    restore(path)
    if not replace and path.exists():
        raise OutputError(f"{path} exists already: choose a new folder.")
    claim(path, parts)
    _sweep_temporary(path)
    temporary = temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        record_all(temporary)
        for folder in {temporary, *(p.parent for p in temporary.rglob("*"))}:
            sync_folder(folder)
        claim(path, parts)  # again: a long time may have passed
        try:
            _put_in_place(temporary, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}. What was there is kept.") from error
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # by now the older one, where there was one


@contextmanager
def cached_folder(path: str | Path) -> Iterator[Path]:
    """A folder under a name that says what is in it, so that whoever makes it first is as good as any other: threads and
    processes may make it at once, nobody's is replaced under a reader, and it appears whole.

    Args:
        path: of the folder.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> with cached_folder(root / "f0") as mine, cached_folder(root / "f0") as yours:
        ...     (mine / "a").write_text("same") + (yours / "a").write_text("same")
        8
        >>> [p.name for p in sorted(root.iterdir())], (root / "f0" / "a").read_text()
        (['f0'], 'same')
    """
    path = Path(path)
    ensure_writable(path.parent)
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if is_dead(left.name):
            shutil.rmtree(left, ignore_errors=True)
    temporary = temporary_name(path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}"))
    temporary.mkdir()
    try:
        yield temporary
        record_all(temporary)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if not path.is_dir():
                raise OutputError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore(path: Path) -> None:
    """Bring back a folder that was set aside by a replacement which was killed half way."""
    aside = _aside(path)
    if aside.is_dir():
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)  # the replacement was done; only the older one was left to remove
        else:
            os.rename(aside, path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.visynth-old")


def _sweep_temporary(path: Path) -> None:
    """Remove what killed processes of this machine left half made; another machine's may still be at work."""
    for left in path.parent.glob(f".{path.name}.{host()}.*.tmp"):
        if is_dead(left.name):
            shutil.rmtree(left, ignore_errors=True)


def is_dead(name: str) -> bool:
    """Whether a name is that of something temporary of a process of this machine that is no more."""
    temporary = TEMPORARY.match(name)
    return temporary is not None and temporary.group(1) == host() and not alive(int(temporary.group(2)))


def _put_in_place(new: Path, path: Path) -> None:
    """Give a folder its name. An older one of that name ends up under the new one's former name."""
    if not path.exists():
        os.rename(new, path)
    elif not _exchange(new, path):
        aside = _aside(path)
        os.rename(path, aside)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(aside, path)
            raise
        os.rename(aside, new)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step, where system and filesystem can: ``renameat2`` on Linux, ``renamex_np`` on
    macOS."""
    names = os.fsencode(first), os.fsencode(second)
    here = -100  # AT_FDCWD: paths are relative to the working folder
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if hasattr(library, "renameat2"):
            return bool(library.renameat2(here, names[0], here, names[1], 2) == 0)  # RENAME_EXCHANGE
        if hasattr(library, "renamex_np"):
            return bool(library.renamex_np(names[0], names[1], 2) == 0)  # RENAME_SWAP
    except (OSError, TypeError):
        pass  # no C library to be had, as on Windows
    return False


def strangers(folder: str | Path, parts: Sequence[str] = ()) -> list[str]:
    """Files below a folder that visynth did not write, or that were changed since, and empty folders, as relative
    paths, sorted.

    Folders in it that match ``parts`` and have a record of their own are part of it; the results of another command are
    not. What killed processes of this machine left half written is ours.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> put_files(folder, {"report.json": b"{}"})
        >>> _ = (folder / "notes.txt").write_text("mine")
        >>> strangers(folder)
        ['notes.txt']
    """
    folder = Path(folder)
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [folder.name]
    known = _known(folder, parts)
    homes = {"/".join(name.split("/")[:depth]) for name in known for depth in range(1, name.count("/") + 1)}
    foreign = [
        f"{path.relative_to(folder).as_posix()}/"
        for path in _folders(folder)
        if path != folder
        and not any(path.iterdir())
        and path.relative_to(folder).as_posix() not in homes
        and not _left_over(path, folder)
    ]
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if _left_over(path, folder):
            continue
        hashes = known.get(name)
        if hashes is None:
            foreign.append(name)
        elif hashes and (path.is_symlink() or hash_file(path) not in hashes):
            foreign.append(f"{name} (changed since visynth wrote it)")
    return sorted(foreign)


def _left_over(path: Path, folder: Path) -> bool:
    """Whether a file or folder lies in something temporary of a process that is no more, or in a folder that was set
    aside."""
    for name in path.relative_to(folder).parts:
        if is_dead(name) or (name.startswith(".") and name.endswith((f".{host()}.{os.getpid()}.tmp", ".visynth-old"))):
            return True
    return False


def work_folder(out: str | Path) -> Path:
    """The folder beside an output in which what is not finished is kept.

    Example:
        >>> work_folder("runs/trial").as_posix()
        'runs/trial.work'
    """
    return Path(out).with_name(Path(out).name + ".work")


def claim(folder: str | Path, parts: Sequence[str] = ()) -> Path:
    """The folder, if it may be replaced: absent, empty or all ours. Called before long work starts.

    Raises:
        OutputError: it holds something that visynth did not write (listed), or its parent cannot be written.
    """
    folder = Path(folder)
    foreign = strangers(folder, parts)
    if foreign:
        raise OutputError(
            f"{folder} holds {len(foreign)} files that visynth did not write here, and nothing of yours (reviewers' "
            "decisions, other results) is ever "
            f"removed: choose another output folder, or move them away. Nothing was changed.\n{listing(foreign, SHOWN)}"
        )
    ensure_writable(folder.parent)
    return folder


def check_apart(out: str | Path, sources: Iterable[Path]) -> None:
    """Refuse an output folder that is one of the folders that are read, or lies in one: its files would be taken for
    data.

    Raises:
        OutputError: it is, or does.
    """
    wish = Path(out).resolve()
    inside = next((s for s in map(Path.resolve, sources) if wish == s or s in wish.parents), None)
    if inside is not None:
        where = "is the folder" if inside == wish else f"lies in {inside}, a folder"
        raise OutputError(
            f"the output folder {out} {where} that data are read from: choose one outside. Nothing was changed."
        )


def claim_files(folder: str | Path, names: Sequence[str]) -> Path:
    """The folder, made if it is not there, if these files may be written into it: what else it holds is left alone.

    Raises:
        OutputError: one of them is there and not ours (all listed), or the folder cannot be written.
    """
    folder = ensure_writable(folder)
    known = _record(folder)
    wrong = [n for n in names if os.path.lexists(folder / n) and not _ours(folder / n, known.get(n))]
    if wrong:
        raise OutputError(
            f"{folder} holds {', '.join(wrong)}, which visynth did not write (or which was changed since), and nothing "
            "of yours is ever "
            "written over: choose another output folder, or move it away. Nothing was changed."
        )
    return folder


@contextmanager
def claimed_files(folder: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """As :func:`claim_files`, for checks that may yet refuse: a folder that was made for them goes again where they do, if it is
    still empty."""
    there = Path(folder).exists()
    path = claim_files(folder, names)
    try:
        yield path
    except BaseException:
        if not there:
            with suppress(OSError):  # something is in it: it stays
                path.rmdir()
        raise


def put_files(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder and note them as ours, each complete or not at all.

    Raises:
        OutputError: see :func:`claim_files`.
    """
    folder = claim_files(folder, list(files))
    known = {name: list(hashes) for name, hashes in _record(folder).items()}
    new = {name: sha256(data).hexdigest() for name, data in files.items()}
    # Both hashes stand in the record while the files are written: after a kill, the old and the new one are ours.
    _write_record(folder, known | {name: [*known.get(name, ())[-1:], digest] for name, digest in new.items()})
    for name, data in files.items():
        write_bytes(folder / name, data)
    _write_record(folder, known | {name: [digest] for name, digest in new.items()})


def forget_files(folder: str | Path, names: re.Pattern[str]) -> None:
    """Remove those files of a folder that are noted as ours under such names and lie there as noted, and what killed
    processes left of them; the folder goes with them where nothing else is in it."""
    folder = Path(folder)
    known = _record(folder)
    gone = [name for name in known if names.fullmatch(name)]
    for name in gone:
        if _ours(folder / name, known[name]):
            (folder / name).unlink()
    for path in list(folder.iterdir()):
        if is_dead(path.name) and path.is_file():
            path.unlink()
    kept = {name: hashes for name, hashes in known.items() if (folder / name).exists()}
    if kept:
        _write_record(folder, kept)
    elif gone and [path.name for path in folder.iterdir()] == [RECORD]:
        (folder / RECORD).unlink()
        with suppress(OSError):
            folder.rmdir()


def record_all(folder: Path) -> None:
    """Note every file below a folder that we have just made as ours; folders in it with records of their own speak for
    themselves."""
    known = _known(folder, ("*",), own=False)
    names = [path.relative_to(folder).as_posix() for path in _files(folder)]
    _write_record(folder, {n: [hash_file(folder / n)] for n in names if n not in known and n != RECORD})


def _ours(path: Path, hashes: Sequence[str] | None) -> bool:
    return hashes is not None and path.is_file() and not path.is_symlink() and hash_file(path) in hashes


def _known(folder: Path, parts: Sequence[str] = (), own: bool = True) -> dict[str, tuple[str, ...]]:
    """Hashes of our files by path below a folder, from its record and those of its parts; no hash where any content is
    ours."""
    known: dict[str, tuple[str, ...]] = {}
    for path in _folders(folder):
        if path == folder and not own:
            continue
        if path != folder and not any(fnmatch(path.relative_to(folder).parts[0], part) for part in parts):
            continue
        prefix = "" if path == folder else path.relative_to(folder).as_posix() + "/"
        known |= {prefix + name: tuple(hashes) for name, hashes in _record(path).items()}
        if (path / RECORD).is_file():
            known[prefix + RECORD] = ()
        known |= {prefix + name: hashes for name, hashes in _rendered(path).items()}
    return known


def _record(folder: Path) -> dict[str, list[str]]:
    record = _json(folder / RECORD)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return {}
    files = record.get("files")
    return {str(n): [str(h) for h in hashes] for n, hashes in files.items()} if isinstance(files, dict) else {}


def _write_record(folder: Path, files: Mapping[str, Sequence[str]]) -> None:
    write_json(folder / RECORD, {"schema": SCHEMA, "files": {name: list(hashes) for name, hashes in files.items()}})


def _rendered(folder: Path) -> dict[str, tuple[str, ...]]:
    """Files that belong to a rendered set, or of one that is not finished yet (``<folder>.work``)."""
    plan = _json(folder / "plan.json")
    if not isinstance(plan, dict) or plan.get("schema") not in (RENDERS, ROWS):
        return {}
    if folder.name.endswith(".work"):
        return {path.relative_to(folder).as_posix(): () for path in _files(folder)}
    files: dict[str, tuple[str, ...]] = dict.fromkeys(
        ("plan.json", "members.jsonl", "summary.json", "shards.jsonl", "scores.jsonl"), ()
    )
    parts = list(folder.glob("metadata*.jsonl"))
    files |= {path.name: () for path in parts}
    work = work_folder(folder)  # where it is not finished, its shards say what moved already
    for file in [*parts, folder / "shards.jsonl"]:
        for row in _rows(file):
            files[str(row.get("file_name", row.get("name")))] = (str(row.get("sha256")),)
    for record in map(_json, work.glob("shard.*/record.json")):
        listed = record.get("files") if isinstance(record, dict) else None
        files |= {str(own["name"]): (str(own["sha256"]),) for own in listed or []}
    return files


def _rows(path: Path) -> list[dict[str, Any]]:
    """Lines of a file of ours; none where one is torn: then its files are no one's, and stay."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _files(folder: Path) -> Iterator[Path]:
    """Files and links below a folder; links are not followed."""
    for root, folders, names in os.walk(folder):
        yield from (Path(root) / name for name in names)
        yield from (Path(root) / name for name in folders if (Path(root) / name).is_symlink())


def _folders(folder: Path) -> Iterator[Path]:
    for root, _, _ in os.walk(folder):
        yield Path(root)
