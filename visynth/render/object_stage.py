"""Where shards are committed on an object store: files first, then the record by a conditional put.

``<set>.work/plan.json`` says whose the place is, ``<set>.work/shard.000003.json`` is a commit record with its lines. A
file without a record does not exist. Files get their final names at once, because a store cannot rename: where a name is
taken by other content (left by a killed worker on another machine), the file's hash becomes part of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from visynth.core import members as members_file
from visynth.core.errors import IntegrityError, OutputError, UsageError, listing
from visynth.core.files import canonical_json, readable_json
from visynth.core.folders import ROWS
from visynth.core.manifest import MEMBERS, PLAN, SUMMARY, file_lists, listed_file
from visynth.core.store import Store
from visynth.render.shards import Maker, Shard, latest_rounds, shard_name
from visynth.render.stage import CARD, check_plan

SHOWN = 8


class ObjectStage:
    """A set below an address; see :class:`visynth.render.stage.Stage`.

    Args:
        url: of the set, for instance ``s3://bucket/renders``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parent, _, self.name = self.url.rpartition("/")
        if not self.name or parent.endswith("/"):
            raise UsageError(f"{url} must name a prefix in a bucket, like s3://bucket/renders.")
        self.store = Store(parent)

    @property
    def where(self) -> str:
        return self.url

    def finished(self) -> dict[str, Any] | None:
        data = self.store.get(f"{self.name}/{SUMMARY}")
        return None if data is None else dict(json.loads(data))

    def claim(self, maker: Maker) -> None:
        plan = readable_json(maker.plan.to_json())
        work = f"{self.name}.work"
        if not self.store.has(f"{work}/{PLAN}"):
            lost = [name for prefix in (self.name, work) for name in self.store.names(prefix + "/")]
            lost = [name for name in lost if name != f"{work}/{PLAN}"]  # another worker begins just now
            if lost and not self.store.has(f"{work}/{PLAN}"):
                raise OutputError(
                    f"{self.url} (or {work} beside it) holds {len(lost)} objects that visynth did not write: choose an "
                    f"empty prefix. Nothing was changed.\n{listing(lost, SHOWN)}"
                )
        if not self.store.put_new(f"{work}/{PLAN}", plan):
            check_plan(self.plan(), maker.plan.to_json(), self.where)
        self.store.put_new(f"{work}/{CARD}", readable_json(dict(maker.card)))
        self.store.put_new(f"{work}/{MEMBERS}", members_file.as_text(maker.members).encode())

    def plan(self) -> dict[str, Any]:
        data = self.store.get(f"{self.name}.work/{PLAN}") or self.store.get(f"{self.name}/{PLAN}")
        if data is None:
            raise IntegrityError(f"{self.url} holds no rendered set and no work on one.")
        return dict(json.loads(data))

    def card(self) -> dict[str, Any]:
        return dict(json.loads(self._there(f"{self.name}.work/{CARD}")))

    def rounds(self) -> dict[int, int]:
        names = (PurePosixPath(path).name for path in self.store.names(f"{self.name}.work/"))
        return latest_rounds(name.removesuffix(".json") for name in names)

    def is_open(self) -> bool:
        return self.store.has(f"{self.name}.work/{PLAN}")

    def has(self, number: int, round_: int) -> bool:
        return self.store.has(self._record(number, round_))

    def files(self) -> Iterable[tuple[str, str]]:
        for name in file_lists(self.plan(), self.finished() or {}):
            yield from map(listed_file, (self.store.get(f"{self.name}/{name}") or b"").decode().split("\n")[:-1])

    def reopen(self, maker: Maker) -> None:
        raise IntegrityError(f"{self.url} is damaged: render it anew under another prefix.")

    def busy(self, number: int) -> bool:
        return False

    def commit(self, shard: Shard, record: Mapping[str, Any]) -> bool:
        names = {own["name"]: self._put_file(own["name"], shard.files[own["name"]]) for own in record["files"]}
        files = [{**own, "name": names[own["name"]]} for own in record["files"]]
        others = {old: new for old, new in names.items() if old != new}
        lines = [_renamed(line, others) for line in shard.lines] if others else list(shard.lines)
        whole = {**record, "files": files, "manifest": lines}
        return self.store.put_new(self._record(shard.number, shard.round), canonical_json(whole).encode())

    def record(self, number: int, round_: int) -> dict[str, Any]:
        return dict(json.loads(self._there(self._record(number, round_))))

    def lines(self, number: int, round_: int) -> list[str]:
        return list(self.record(number, round_)["manifest"])

    def place(self, number: int, round_: int, files: list[Mapping[str, Any]]) -> None:
        """They are there."""

    def put_summary(self, data: bytes) -> None:
        self.store.put_new(f"{self.name}/{SUMMARY}", data)

    def put(self, name: str, data: bytes) -> None:
        self.store.put(f"{self.name}/{name}", data)

    def put_chunks(self, name: str, chunks: Iterable[bytes]) -> None:
        self.store.put_chunks(f"{self.name}/{name}", chunks)

    def note(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            self.put(name, data)

    def bring_members(self) -> None:
        self.put(MEMBERS, self._there(f"{self.name}.work/{MEMBERS}"))

    def sweep(self) -> list[str]:
        """Nothing is half made here; what a record does not name goes when the set is whole."""
        return []

    def clear(self) -> None:
        if self.finished() is not None:
            self.store.delete(list(self.store.names(f"{self.name}.work/")))

    def finishing(self) -> AbstractContextManager[None]:
        return nullcontext()  # of two that finish at once both write the same

    def sync(self, names: Iterable[str]) -> None:
        """A put that returned is there. What earlier rounds and killed workers left under a name of this plan goes: who reads
        all tars would count it twice."""
        ours, names = _own_names(self.plan()), set(names)
        here = (path.removeprefix(f"{self.name}/") for path in self.store.names(f"{self.name}/"))
        lost = [f"{self.name}/{name}" for name in here if name not in names and ours.fullmatch(name)]
        if self.finished() is None:
            self.store.delete(lost)

    def damaged(self, files: Mapping[str, str]) -> list[str]:
        wrong = []
        for name, digest in files.items():
            data = self.store.get(f"{self.name}/{name}")
            if data is None or sha256(data).hexdigest() != digest:
                wrong.append(name)
        return wrong

    def torn(self, numbers: Collection[int]) -> dict[int, list[str]]:
        wrong = {}
        for number, round_ in sorted(self.rounds().items()):
            if number not in numbers:
                continue
            try:
                files = {own["name"]: own["sha256"] for own in self.record(number, round_)["files"]}
                problems = self.damaged(files)
            except (ValueError, KeyError, TypeError):
                problems = [self._record(number, round_)]
            if problems:
                wrong[number] = problems
        return wrong

    def discard(self, number: int) -> None:
        names = list(self.store.names(f"{self.name}.work/"))
        self.store.delete([name for name in names if PurePosixPath(name).name.startswith(f"shard.{number:06d}.")])

    def set_aside(self, name: str) -> None:
        raise IntegrityError(f"{self.url}/{name} was altered.")

    def _there(self, name: str) -> bytes:
        """An object of the work in progress.

        Raises:
            FileNotFoundError: it is not there: another worker has finished, and cleared the work away.
        """
        data = self.store.get(name)
        if data is None:
            raise FileNotFoundError(f"{self.store.url}/{name}")
        return data

    def _put_file(self, name: str, data: bytes) -> str:
        """Put a file under its name, or under one with its hash where other content has that name."""
        if self.store.put_new(f"{self.name}/{name}", data):
            return name
        path = PurePosixPath(name)
        other = str(path.with_name(f"{path.stem}-{sha256(data).hexdigest()[:8]}{path.suffix}"))
        self.store.put(f"{self.name}/{other}", data)
        return other

    def _record(self, number: int, round_: int) -> str:
        return f"{self.name}.work/{shard_name(number, round_)}.json"


def _renamed(line: str, names: Mapping[str, str]) -> str:
    """A line of the manifest whose file, or whose archive, got another name."""
    own = json.loads(line)
    key = "shard" if own.get("shard") else "file_name"
    own[key] = names.get(own[key], own[key])
    return canonical_json(own)


def _own_names(plan: Mapping[str, Any]) -> re.Pattern[str]:
    """Names that a plan's shards give to files, with a hash or without."""
    if plan["schema"] == ROWS:
        return re.compile(r"part-\d{6,}(-[0-9a-f]{8})?\.parquet")
    classes = "|".join(re.escape(name) for name in plan["classes"])
    kinds = {
        "folders": rf"({classes})/\d{{8,}}(-[0-9a-f]{{8}})?\.(png|tif)",
        "webdataset": r"shard-\d{6,}(-[0-9a-f]{8})?\.tar",
        "parquet": r"data/train-\d{5,}-of-\d{5,}(-[0-9a-f]{8})?\.parquet",
    }
    return re.compile(kinds[plan["format"]])
