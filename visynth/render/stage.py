"""Where shards are committed while a set is rendered, on a disk.

All work in progress lies in ``DIR.work/``, on the same filesystem: ``plan.json`` and one folder a shard. A shard is
written to ``tmp/<shard>.<host>.<pid>`` and renamed to ``shard.<number>`` with its record inside, so that it is there
whole or not at all, and of two that make the same one the first wins. When all are there their files move to ``DIR``.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

from visynth.core import members as members_file
from visynth.core.errors import ConflictError, IntegrityError, OutputError, listing
from visynth.core.files import (
    alive,
    canonical_json,
    ensure_writable,
    hash_file,
    host,
    locked,
    readable_json,
    sync_folder,
    write_all_synced,
    write_bytes,
    write_chunks,
    write_json,
    write_new,
)
from visynth.core.folders import RENDERS, ROWS, TEMPORARY, put_files, strangers, work_folder
from visynth.core.manifest import MEMBERS, PLAN, SUMMARY, file_lists, is_finished, listed_file
from visynth.render.shards import SCHEMA, Maker, Shard, latest_rounds, shard_name

RECORD, LINES, CARD = "record.json", "records.jsonl", "card.json"
TEMPORARY_SHARD = re.compile(r"\d{6,}\.[0-9a-f]{8}\.\d+")
TMP = "tmp"  # a folder of its own: looking for one's shard in it does not list all that are done


class Stage(Protocol):
    """Where shards are committed: a disk, or an object store."""

    @property
    def where(self) -> str:
        """For messages."""

    def finished(self) -> dict[str, Any] | None:
        """The summary of the whole set, or None while it is not whole."""

    def claim(self, maker: Maker) -> None:
        """Make the place ours for a plan, or find that it is; members and card are put there for the end."""

    def plan(self) -> dict[str, Any]:
        """The stored plan."""

    def card(self) -> dict[str, Any]:
        """The generator's card."""

    def rounds(self) -> dict[int, int]:
        """Committed shards, and the latest round of each."""

    def is_open(self) -> bool:
        """Whether there is work to do: a plan that nobody has finished and cleared away."""

    def has(self, number: int, round_: int) -> bool:
        """Whether a shard is committed, of that round or a later one."""

    def files(self) -> Iterable[tuple[str, str]]:
        """Names and sha256 of a finished set's files."""

    def reopen(self, maker: Maker) -> None:
        """Make place for work on a finished set."""

    def busy(self, number: int) -> bool:
        """Whether another process seems to be making a shard: a hint that saves work and decides nothing."""

    def commit(self, shard: Shard, record: Mapping[str, Any]) -> bool:
        """Make a shard exist, whole; False where another was first."""

    def record(self, number: int, round_: int) -> dict[str, Any]:
        """The commit record of a shard."""

    def lines(self, number: int, round_: int) -> list[str]:
        """Its lines of the manifest."""

    def place(self, number: int, round_: int, files: list[Mapping[str, Any]]) -> None:
        """Bring a shard's files, as its record lists them, to where the set is read."""

    def put(self, name: str, data: bytes) -> None:
        """Put a file of the whole set."""

    def put_chunks(self, name: str, chunks: Iterable[bytes]) -> None:
        """Put a file of the whole set piece by piece."""

    def put_summary(self, data: bytes) -> None:
        """Put the last file: the set is whole."""

    def note(self, files: Mapping[str, bytes]) -> None:
        """Put small files that a user may change: they are noted as ours as they are now."""

    def bring_members(self) -> None:
        """Put the members beside the manifest."""

    def sweep(self) -> list[str]:
        """Remove what dead processes left half made, and tell it."""

    def clear(self) -> None:
        """The set is whole: remove the work."""

    def finishing(self) -> AbstractContextManager[None]:
        """A context in which one process at a time finishes."""

    def sync(self, names: Iterable[str]) -> None:
        """Make what was placed survive a power loss; ``names`` are all files of the set's shards, read where they are needed."""

    def damaged(self, files: Mapping[str, str]) -> list[str]:
        """Files that are missing or not as their sha256 says."""

    def torn(self, numbers: Collection[int]) -> dict[int, list[str]]:
        """Those of the committed shards of an unfinished set whose record or files are missing or altered, with their problems."""

    def discard(self, number: int) -> None:
        """Take a commit back: the shard is to be made again."""

    def set_aside(self, name: str) -> None:
        """Move a file that was altered out of the way, so that nothing is lost."""


class DiskStage:
    """A set's folder and the work beside it.

    Args:
        out: the folder.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.work = work_folder(self.out)

    @property
    def where(self) -> str:
        return str(self.out)

    def finished(self) -> dict[str, Any] | None:
        return dict(json.loads((self.out / SUMMARY).read_text(encoding="utf-8"))) if is_finished(self.out) else None

    def claim(self, maker: Maker) -> None:
        plan, out, work = maker.plan.to_json(), self.out, self.work
        ensure_writable(out.parent)
        lost = self._strangers()
        if lost and (_is_work(work) or is_finished(out)):  # another process began or ended in between: look again
            lost = self._strangers()
        if lost:
            raise OutputError(
                f"{out} (or {work.name} beside it, where work in progress lies) holds {len(lost)} files that visynth "
                f"did not write: choose an empty folder. Nothing was changed.\n{listing(lost)}"
            )
        ensure_writable(work)
        ensure_writable(out)
        if not write_new(work / PLAN, readable_json(plan)):
            check_plan(self.plan(), plan, self.where)
        if not (work / CARD).is_file():
            write_json(work / CARD, dict(maker.card))
        if not (work / MEMBERS).is_file():
            members_file.write(work / MEMBERS, maker.members)

    def _strangers(self) -> list[str]:
        """What lies in both folders and is not ours, nor what another process is writing just now."""
        ours = _is_work(self.work)
        lost = [] if ours or not self.work.exists() else strangers(self.work)
        if not (ours and (self.out / PLAN).is_file()):
            lost += strangers(self.out)
        return [name for name in lost if not TEMPORARY.match(Path(name).name)]

    def plan(self) -> dict[str, Any]:
        path = self.out / PLAN if is_finished(self.out) else self.work / PLAN
        if not path.is_file():
            raise IntegrityError(f"{self.out} holds no rendered set, and {self.work} no work on one.")
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def card(self) -> dict[str, Any]:
        return dict(json.loads((self.work / CARD).read_text(encoding="utf-8")))

    def rounds(self) -> dict[int, int]:
        try:
            return latest_rounds(os.listdir(self.work))
        except FileNotFoundError:
            return {}

    def is_open(self) -> bool:
        return (self.work / PLAN).is_file()

    def has(self, number: int, round_: int) -> bool:
        return self._shard(number, round_).is_dir()

    def files(self) -> Iterable[tuple[str, str]]:
        for name in file_lists(self.plan(), self.finished() or {}):
            yield from map(listed_file, (self.out / name).read_text(encoding="utf-8").split("\n")[:-1])

    def reopen(self, maker: Maker) -> None:
        ensure_writable(self.work)
        write_new(self.work / PLAN, readable_json(maker.plan.to_json()))

    def busy(self, number: int) -> bool:
        own = f".{host()}.{os.getpid()}"
        return any(not path.name.endswith(own) for path in (self.work / TMP).glob(f"{number:06d}.*"))

    def commit(self, shard: Shard, record: Mapping[str, Any]) -> bool:
        folder = self._temporary(shard.number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)  # without its parents: where others were faster, the work is gone
        lines = "".join(line + "\n" for line in shard.lines).encode()
        write_all_synced(folder, {**shard.files, LINES: lines, RECORD: canonical_json(record).encode()})
        target = self._shard(shard.number, shard.round)
        try:
            os.rename(folder, target)  # the commit: it fails if another process was first
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(folder, ignore_errors=True)
            return False
        sync_folder(self.work)
        return True

    def record(self, number: int, round_: int) -> dict[str, Any]:
        return dict(json.loads((self._shard(number, round_) / RECORD).read_text(encoding="utf-8")))

    def lines(self, number: int, round_: int) -> list[str]:
        # Not splitlines: names may hold characters at which it splits as well.
        return (self._shard(number, round_) / LINES).read_text(encoding="utf-8").split("\n")[:-1]

    def place(self, number: int, round_: int, files: list[Mapping[str, Any]]) -> None:
        """Every file is compared with its record on the way.

        Raises:
            IntegrityError: one was altered since its commit, or is not there.
            OutputError: something else lies where it belongs.
        """
        for own in files:
            source, target = self._shard(number, round_) / own["name"], self.out / own["name"]
            moves = source.is_file()  # else an earlier run moved it and was stopped after that
            if not (source if moves else target).is_file() or hash_file(source if moves else target) != own["sha256"]:
                raise IntegrityError(
                    f"{own['name']} of shard {number} is missing or was altered since its commit: run the same 'visynth "
                    "render' command again, which makes it anew."
                )
            if moves and target.is_file() and hash_file(target) != own["sha256"]:
                raise OutputError(f"{target} is not what visynth made, and would be written over: move it away.")
            if moves:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)

    def put(self, name: str, data: bytes) -> None:
        write_bytes(self.out / name, data)

    def put_chunks(self, name: str, chunks: Iterable[bytes]) -> None:
        write_chunks(self.out / name, chunks)

    def put_summary(self, data: bytes) -> None:
        self.put(SUMMARY, data)

    def note(self, files: Mapping[str, bytes]) -> None:
        put_files(self.out, files)

    def bring_members(self) -> None:
        self.put(MEMBERS, (self.work / MEMBERS).read_bytes())

    def sweep(self) -> list[str]:
        """Another machine's unfinished shards stay: it may still be at work."""
        removed = []
        for folder in (self.work / TMP).glob(f"*.{host()}.*"):
            pid = int(folder.name.rsplit(".", 1)[1])
            if pid == os.getpid() or not alive(pid):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
        return sorted(removed)

    def clear(self) -> None:
        """What is not ours stays, and the folder with it. Of two that finish at once the later one clears what it had
        still made when the other had cleared its plan."""
        if not _is_work(self.work) and not is_finished(self.out):
            return
        for path in self.work.glob("*"):
            if _is_shard(path):
                self._remove(path, 0)
        for path in (self.work / TMP).glob("*"):
            if TEMPORARY_SHARD.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        if _is_work(self.work):
            for name in (CARD, MEMBERS, PLAN):
                (self.work / name).unlink(missing_ok=True)
        for folder in (self.work / TMP, self.work):
            with suppress(OSError):
                folder.rmdir()

    def finishing(self) -> AbstractContextManager[None]:
        return locked(self.work)

    def sync(self, names: Iterable[str]) -> None:
        """Make what was moved survive a power loss."""
        for root, folders, _ in os.walk(self.out):
            for name in folders:
                sync_folder(Path(root) / name)

    def damaged(self, files: Mapping[str, str]) -> list[str]:
        """Files that are missing or not as their sha256 says."""
        return [n for n, d in files.items() if not (self.out / n).is_file() or hash_file(self.out / n) != d]

    def torn(self, numbers: Collection[int]) -> dict[int, list[str]]:
        wrong: dict[int, list[str]] = {}
        for number, round_ in sorted(self.rounds().items()):
            if number not in numbers:
                continue
            folder = self._shard(number, round_)
            try:
                record, lines = self.record(number, round_), self.lines(number, round_)
                problems = [] if len(lines) == record["lines"] else [f"{folder.name}/{LINES}"]
                for own in record["files"]:
                    places = (folder / own["name"], self.out / own["name"])  # the latter where a finish was cut short
                    if not any(path.is_file() and hash_file(path) == own["sha256"] for path in places):
                        problems.append(f"{folder.name}/{own['name']}")
            except (OSError, ValueError, KeyError, TypeError):
                problems = [f"{folder.name}/{RECORD}"]
            if problems:
                wrong[number] = problems
        return wrong

    def discard(self, number: int) -> None:
        for path in self.work.glob(f"shard.{number:06d}*"):
            self._remove(path, number)

    def set_aside(self, name: str) -> None:
        """Into ``DIR.damaged``."""
        if not (self.out / name).is_file():
            return
        aside = self.out.with_name(self.out.name + ".damaged") / name
        aside.parent.mkdir(parents=True, exist_ok=True)
        names = (aside.with_name(aside.name + (f".{k}" if k else "")) for k in itertools.count())
        os.replace(self.out / name, next(path for path in names if not path.exists()))

    def _shard(self, number: int, round_: int) -> Path:
        return self.work / shard_name(number, round_)

    def _temporary(self, number: int) -> Path:
        """Where this process makes a shard, or moves one that is to go: a name that is no commit."""
        return self.work / TMP / f"{number:06d}.{host()}.{os.getpid()}"

    def _remove(self, path: Path, number: int) -> None:
        """Remove a committed shard: by one rename, so that a kill leaves no half of it under its name."""
        aside = self._temporary(number)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def check_plan(stored: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Refuse another plan's place.

    Raises:
        ConflictError: the plans differ; both are told.
    """
    differ = [
        f"{key}: {stored.get(key)!r} there, {ours.get(key)!r} here"
        for key in sorted({*stored, *ours})
        if stored.get(key) != ours.get(key)
    ]
    if differ:
        what = "rows" if ours.get("schema") == ROWS else "images"
        raise ConflictError(
            f"{where} holds another plan's {what} ({'; '.join(differ)}). Choose another folder, or delete this one."
        )


def _is_work(work: Path) -> bool:
    """Whether a folder is work in progress of ours."""
    try:
        schema = json.loads((work / PLAN).read_text(encoding="utf-8")).get("schema")
    except (OSError, ValueError, AttributeError):
        return False
    return schema in (RENDERS, ROWS)


def _is_shard(path: Path) -> bool:
    """Whether a folder is a committed shard of ours."""
    try:
        return bool(json.loads((path / RECORD).read_text(encoding="utf-8"))["schema"] == SCHEMA)
    except (OSError, ValueError, KeyError, TypeError):
        return False
