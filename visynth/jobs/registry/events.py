"""The event log of a registry: lines that only grow, each with the hash of the one before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from visynth.core.errors import ConflictError, IntegrityError, UsageError
from visynth.core.files import hash_json, utc_now

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


@dataclass(frozen=True)
class Wish:
    """What is to be logged, before anybody knows whether it can be.

    Attributes:
        op: see :class:`Event`.
        new: version.
        alias: to move, or nothing.
        expect: its ``gen`` as the caller saw it.
        actor: who; by default the user of this machine.
        reason: why.
        evidence: sha256 of the report behind it.
    """

    op: str
    new: str
    alias: str = ""
    expect: int = 0
    actor: str = ""
    reason: str = ""
    evidence: str = ""

    def event(self, last: Event | None, now: Alias | None) -> Event:
        """The next event of a log.

        Args:
            last: event of the log.
            now: what the alias names.

        Raises:
            ConflictError: the alias moved since it was seen.

        Example:
            >>> first = Wish("add", "f0", actor="anna").event(None, None)
            >>> Wish("promote", "f0", "champion", actor="anna").event(first, None).gen
            1
        """
        old, gen = ("", 0) if now is None else (now.version, now.gen)
        if self.alias and gen != self.expect:
            raise ConflictError(
                f"{self.alias} moved meanwhile: it names {old[:12]} after {gen} moves, and {self.expect} were seen. Look at "
                "the log and decide again."
            )
        gen, before = gen + 1 if self.alias else 0, last.sha if last else ""
        actor = self.actor or os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"
        own = (utc_now(), actor, self.op, self.alias, old, self.new, gen, self.reason, self.evidence, before)
        return Event(last.seq + 1 if last else 1, *own, hash_json(dict(zip(FIELDS, own, strict=True))))


def check_chain(events: Sequence[Event], where: object) -> list[Event]:
    """The events, if no line was changed or left out.

    Raises:
        IntegrityError: one was.
    """
    before = ""
    for place, event in enumerate(events, 1):
        if event.seq != place or event.before != before or event.hashed() != event.sha:
            raise IntegrityError(f"{where} was altered: event {event.seq} is not what was logged.")
        before = event.sha
    return list(events)


def folded(events: Iterable[Event]) -> dict[str, Alias]:
    """Aliases after these events."""
    return {event.alias: Alias(event.new, event.gen) for event in events if event.alias}


def one_before(events: Iterable[Event], alias: str) -> str:
    """The version that an alias named before its present one was promoted; after a rollback, further back.

    Raises:
        UsageError: there is nothing before it.
    """
    history: list[str] = []  # what it named, oldest first, without what was rolled back
    for event in (e for e in events if e.alias == alias):
        if event.op == "rollback":
            history.pop()
        elif not history or history[-1] != event.new:
            history.append(event.new)
    if not history:
        raise UsageError(f"there is no alias {alias!r} to roll back.")
    if len(history) < 2:
        raise UsageError(f"{alias} has named nothing before {history[-1][:12]}: there is nothing to roll back to.")
    return history[-2]
