"""A registry of generators: immutable versions by content, an event log that only grows, aliases moved one at a time.

A folder holds ``versions/<sha256>/`` (a generator's folder with ``SHA256SUMS`` and the evidence for it) and
``registry.db`` (SQLite): ``event``, to which rows are only added, each with the hash of the one before; and ``alias``,
whose rows are changed by comparing and setting in the same transaction. On a local disk; of a file system that several
machines share, SQLite's own advice is not to.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from visynth.core.artifact import MEMBERS, SPEC, WEIGHTS
from visynth.core.errors import ConflictError, IntegrityError, UsageError, choices, listing
from visynth.core.files import ensure_writable, hash_file, hash_json, readable_json, utc_now
from visynth.core.folders import RECORD, new_folder

CHAMPION, CHALLENGER = "champion", "challenger"
SUMS = "SHA256SUMS"
EVIDENCE = "evidence"
TIMEOUT = 60.0  # seconds to wait for another process's transaction
TABLES = """
CREATE TABLE IF NOT EXISTS event (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, actor TEXT NOT NULL, op TEXT NOT NULL, alias TEXT NOT NULL,
  old TEXT NOT NULL, new TEXT NOT NULL, gen INTEGER NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL,
  before TEXT NOT NULL, sha TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS alias (alias TEXT PRIMARY KEY, version TEXT NOT NULL, gen INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS event_is_kept BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'events are kept'); END;
CREATE TRIGGER IF NOT EXISTS event_is_so BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'events are kept'); END;
"""
FIELDS = ("at", "actor", "op", "alias", "old", "new", "gen", "reason", "evidence", "before")


@dataclass(frozen=True)
class Event:
    """One line of the log.

    Attributes:
        seq: from 1, without gaps.
        at: when, in UTC; for people, nothing is ordered by it.
        actor: who.
        op: ``"add"``, ``"promote"`` or ``"rollback"``.
        alias: that moved, or nothing.
        old: version that it named, or nothing.
        new: version that it names now, or the one that was added.
        gen: how often the alias has moved.
        reason: why.
        evidence: sha256 of the report behind it, or nothing.
        before: sha of the event before.
        sha: of this one.
    """

    seq: int
    at: str
    actor: str
    op: str
    alias: str
    old: str
    new: str
    gen: int
    reason: str
    evidence: str
    before: str
    sha: str

    def hashed(self) -> str:
        """What ``sha`` must be."""
        return hash_json({name: value for name, value in asdict(self).items() if name in FIELDS})


@dataclass(frozen=True)
class Alias:
    """A name for a version. ``gen`` counts its moves: who wants to move it says from where."""

    version: str
    gen: int


class Registry:
    """Versions of generators, of images or of tables.

    Args:
        root: its folder.

    Example:
        >>> import tempfile
        >>> registry = Registry(Path(tempfile.mkdtemp()) / "registry")
        >>> registry.alias("champion") is None, registry.versions(), registry.events()
        (True, [], [])
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # -- versions ------------------------------------------------------------------------------------------------------

    def add(
        self, generator: str | Path, *, evidence: Mapping[str, bytes] | None = None, actor: str = "", reason: str = ""
    ) -> str:
        """Keep a generator's folder as a version.

        Args:
            generator: the folder; it is copied.
            evidence: files by name (a report) that are kept with it.
            actor: who adds it.
            reason: why.

        Returns:
            The version: the sha256 of its files' names and hashes. Adding the same again gives the same.

        Raises:
            IntegrityError: the folder is no generator, or was altered.
        """
        from visynth.core.loading import load_generator

        generator = Path(generator)
        load_generator(generator)  # not one bit of it was changed
        files = {p.relative_to(generator).as_posix(): p for p in sorted(generator.rglob("*")) if p.is_file()}
        files.pop(RECORD, None)
        files.pop(SUMS, None)
        contents = {f"{EVIDENCE}/{name}": data for name, data in (evidence or {}).items()}
        sums = {name: hash_file(path) for name, path in files.items() if not name.startswith(f"{EVIDENCE}/")}
        sums |= {name: sha256(data).hexdigest() for name, data in contents.items()}
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
        version = sha256(text.encode()).hexdigest()
        folder = self._folder(version)
        ensure_writable(folder.parent)
        if not folder.is_dir():
            with new_folder(folder) as new:
                for name, path in files.items():
                    if name in sums:
                        (new / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, new / name)
                for name, data in contents.items():
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    (new / name).write_bytes(data)
                (new / SUMS).write_text(text)
                for path in new.rglob("*"):
                    if path.is_file():
                        path.chmod(0o444)
                        _sync(path)
        self.verify(version)
        with self._transaction() as db:
            if not db.execute("SELECT 1 FROM event WHERE op = 'add' AND new = ?", (version,)).fetchone():
                _log(db, actor, "add", "", "", version, 0, reason, "")
        return version

    def versions(self) -> list[str]:
        """All versions, oldest first."""
        return [event.new for event in self.events() if event.op == "add"]

    def path(self, name: str) -> Path:
        """The verified folder of an alias, a version, or the beginning of one (at least 6 digits).

        Raises:
            UsageError: no such version.
            IntegrityError: its files were altered.
        """
        return self.verify(self.resolve(name))

    def resolve(self, name: str) -> str:
        """The version that a name means; see :meth:`path`."""
        alias = self.alias(name)
        if alias is not None:
            return alias.version
        known = self.versions()
        found = [version for version in known if len(name) >= 6 and version.startswith(name)]
        if len(found) != 1:
            what = "several versions" if found else "no version and no alias"
            raise UsageError(
                f"{self.root} has {what} {name!r}; aliases are {choices(self.aliases())}, versions "
                f"{choices(version[:12] for version in known)}."
            )
        return found[0]

    def verify(self, version: str) -> Path:
        """A version's folder, after checking every file.

        Raises:
            IntegrityError: files are missing, altered or too many.
        """
        folder = self._folder(version)
        sums = folder / SUMS
        if not sums.is_file():
            raise IntegrityError(f"version {version[:12]} has no {SUMS} in {folder}: it is not whole.")
        text = sums.read_text(encoding="utf-8")
        problems = [] if sha256(text.encode()).hexdigest() == version else [f"{SUMS} was altered"]
        listed = {line[66:]: line[:64] for line in text.splitlines()}
        here = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {SUMS, RECORD}
        problems += [f"{name} is missing" for name in sorted(listed.keys() - here)]
        problems += [f"{name} does not belong there" for name in sorted(here - listed.keys())]
        problems += [
            f"{name} was altered" for name in sorted(here & listed.keys()) if hash_file(folder / name) != listed[name]
        ]
        problems += [f"{name} is missing" for name in (SPEC, WEIGHTS, MEMBERS) if name not in listed]
        if problems:
            raise IntegrityError(f"version {version[:12]} in {folder} is not what was added:\n{listing(problems)}")
        return folder

    def evidence(self, version: str) -> dict[str, Path]:
        """Files of evidence that a version was added with, by name."""
        folder = self._folder(version) / EVIDENCE
        return {p.name: p for p in sorted(folder.glob("*")) if p.is_file()}

    # -- aliases -------------------------------------------------------------------------------------------------------

    def alias(self, name: str) -> Alias | None:
        """What an alias names, or None."""
        with self._reading() as db:
            row = db.execute("SELECT version, gen FROM alias WHERE alias = ?", (name,)).fetchone() if db else None
        return None if row is None else Alias(*row)

    def aliases(self) -> dict[str, Alias]:
        """All aliases."""
        with self._reading() as db:
            rows = db.execute("SELECT alias, version, gen FROM alias ORDER BY alias").fetchall() if db else []
        return {name: Alias(version, gen) for name, version, gen in rows}

    def promote(
        self,
        version: str,
        alias: str = CHAMPION,
        *,
        expect: int,
        actor: str = "",
        reason: str = "",
        evidence: str = "",
        op: str = "promote",
    ) -> Event:
        """Move an alias, if nobody has moved it since.

        Args:
            version: what it is to name; it is verified first.
            alias: the name.
            expect: its ``gen`` as the caller saw it, 0 where there was none.
            actor: who.
            reason: why.
            evidence: sha256 of the report behind it.
            op: for the log.

        Raises:
            ConflictError: another process moved it first.
            UsageError: no such version.
        """
        version = self.resolve(version)
        self.verify(version)
        with self._transaction() as db:
            row = db.execute("SELECT version, gen FROM alias WHERE alias = ?", (alias,)).fetchone()
            old, gen = row or ("", 0)
            if gen != expect:
                raise ConflictError(
                    f"{alias} moved meanwhile: it names {old[:12]} after {gen} moves, and {expect} were seen. Look at the "
                    "log and decide again."
                )
            if row is None:
                db.execute("INSERT INTO alias VALUES (?, ?, 1)", (alias, version))
            else:
                db.execute(
                    "UPDATE alias SET version = ?, gen = gen + 1 WHERE alias = ? AND gen = ?", (version, alias, gen)
                )
            return _log(db, actor, op, alias, old, version, gen + 1, reason, evidence)

    def rollback(self, alias: str = CHAMPION, *, actor: str = "", reason: str = "") -> Event:
        """Move an alias back to what it named before its present version was promoted; again, further back.

        Raises:
            UsageError: there is nothing before it.
            ConflictError: another process moved it at the same time.
        """
        now = self.alias(alias)
        if now is None:
            raise UsageError(f"{self.root} has no alias {alias!r} to roll back.")
        history: list[str] = []  # what it named, oldest first, without what was rolled back
        for event in (e for e in self.events() if e.alias == alias):
            if event.op == "rollback":
                history.pop()
            elif not history or history[-1] != event.new:
                history.append(event.new)
        if len(history) < 2:
            raise UsageError(f"{alias} has named nothing before {now.version[:12]}: there is nothing to roll back to.")
        return self.promote(history[-2], alias, expect=now.gen, actor=actor, reason=reason, op="rollback")

    def events(self) -> list[Event]:
        """The log, oldest first, after checking that no line was changed or left out.

        Raises:
            IntegrityError: one was.
        """
        with self._reading() as db:
            rows = db.execute("SELECT * FROM event ORDER BY seq").fetchall() if db else []
        events = [Event(*row) for row in rows]
        before = ""
        for place, event in enumerate(events, 1):
            if event.seq != place or event.before != before or event.hashed() != event.sha:
                raise IntegrityError(
                    f"{self.root / 'registry.db'} was altered: event {event.seq} is not what was logged."
                )
            before = event.sha
        return events

    # -- the database --------------------------------------------------------------------------------------------------

    def _folder(self, version: str) -> Path:
        return self.root / "versions" / version

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        path = self.root / "registry.db"
        if not path.is_file():
            yield None
            return
        db = sqlite3.connect(path, timeout=TIMEOUT, isolation_level=None)
        try:
            has = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'alias'").fetchone()
            yield db if has else None
        finally:
            db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes: one at a time, whole or not at all."""
        ensure_writable(self.root)
        db = sqlite3.connect(self.root / "registry.db", timeout=TIMEOUT, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            try:
                for statement in _statements():
                    db.execute(statement)
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        finally:
            db.close()


def _statements() -> Sequence[str]:
    """The statements of TABLES; a trigger holds semicolons of its own, each statement is one line or ends with ');'."""
    parts, part = [], ""
    for line in TABLES.strip().splitlines():
        part += line + "\n"
        if sqlite3.complete_statement(part):
            parts.append(part)
            part = ""
    return parts


def _log(
    db: sqlite3.Connection, actor: str, op: str, alias: str, old: str, new: str, gen: int, reason: str, evidence: str
) -> Event:
    last = db.execute("SELECT sha FROM event ORDER BY seq DESC LIMIT 1").fetchone()
    values = (utc_now(), actor or _user(), op, alias, old, new, gen, reason, evidence, last[0] if last else "")
    sha = hash_json(dict(zip(FIELDS, values, strict=True)))
    columns, marks = ", ".join((*FIELDS, "sha")), ", ".join("?" * (len(FIELDS) + 1))
    cursor = db.execute(f"INSERT INTO event ({columns}) VALUES ({marks})", (*values, sha))
    return Event(int(cursor.lastrowid or 0), *values, sha)


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def written(registry: Registry) -> bytes:
    """A registry for machines, as JSON: aliases, versions, events."""
    return readable_json(
        {
            "aliases": {name: asdict(alias) for name, alias in registry.aliases().items()},
            "versions": registry.versions(),
            "events": [asdict(event) for event in registry.events()],
        }
    )
