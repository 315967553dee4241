"""A registry in a folder.

It holds ``versions/<sha256>/`` (a generator's folder with ``SHA256SUMS`` and the evidence for it) and ``registry.db``
(SQLite): ``event``, to which rows are only added, and ``alias``, whose rows are changed in the transaction that logs it.
On a local disk; of a file system that several machines share, SQLite's own advice is not to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

from visynth.core.files import ensure_writable
from visynth.core.folders import new_folder
from visynth.jobs.registry.base import Registry
from visynth.jobs.registry.contents import Contents, check_contents
from visynth.jobs.registry.events import Alias, Event, Wish, check_chain

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


class LocalRegistry(Registry):
    """See the module's docstring.

    Args:
        root: the folder; made when something is added.

    Example:
        >>> import tempfile
        >>> registry = LocalRegistry(Path(tempfile.mkdtemp()) / "registry")
        >>> registry.alias("champion") is None, registry.versions(), registry.events()
        (True, [], [])
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.where = str(root)

    def folder(self, version: str) -> Path:
        return check_contents(self.root / "versions" / version, version)

    def _store(self, contents: Contents) -> None:
        folder = self.root / "versions" / contents.version
        ensure_writable(folder.parent)
        if not folder.is_dir():
            with new_folder(folder) as new:
                contents.write(new)

    def aliases(self) -> dict[str, Alias]:
        with self._reading() as db:
            rows = db.execute("SELECT alias, version, gen FROM alias ORDER BY alias").fetchall() if db else []
        return {name: Alias(version, gen) for name, version, gen in rows}

    def events(self) -> list[Event]:
        with self._reading() as db:
            rows = db.execute("SELECT * FROM event ORDER BY seq").fetchall() if db else []
        return check_chain([Event(*row) for row in rows], self.root / "registry.db")

    def _append(self, wish: Wish) -> Event:
        with self._transaction() as db:
            row = db.execute("SELECT version, gen FROM alias WHERE alias = ?", (wish.alias,)).fetchone()
            last = db.execute("SELECT * FROM event ORDER BY seq DESC LIMIT 1").fetchone()
            event = wish.event(Event(*last) if last else None, Alias(*row) if row else None)
            db.execute(f"INSERT INTO event VALUES ({', '.join('?' * 12)})", astuple(event))
            if event.alias:
                db.execute("INSERT OR REPLACE INTO alias VALUES (?, ?, ?)", (event.alias, event.new, event.gen))
            return event

    # -- the database --------------------------------------------------------------------------------------------------

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
