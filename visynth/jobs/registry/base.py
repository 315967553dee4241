"""A registry of generators: immutable versions by content, an event log that only grows, aliases moved one at a time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from visynth.core.errors import UsageError, choices
from visynth.core.files import readable_json
from visynth.jobs.registry.contents import EVIDENCE, Contents, contents_of
from visynth.jobs.registry.events import Alias, Event, Wish, one_before

ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)  # MLflow's own
CHAMPION, CHALLENGER = "champion", "challenger"


class Registry(ABC):
    """Versions of generators, of images or of tables.

    Attributes:
        where: as a person names it.
    """

    where: str

    # -- what a kind of registry keeps ---------------------------------------------------------------------------------

    @abstractmethod
    def events(self) -> list[Event]:
        """The log, oldest first, after checking that no line was changed or left out.

        Raises:
            IntegrityError: one was.
        """

    @abstractmethod
    def aliases(self) -> dict[str, Alias]:
        """All aliases."""

    @abstractmethod
    def folder(self, version: str) -> Path:
        """A version's folder on this machine, after checking every file of it.

        Raises:
            IntegrityError: files are missing, altered or too many.
        """

    @abstractmethod
    def _store(self, contents: Contents) -> None:
        """Keep the files of a version, whole or not at all; nothing happens where it is there."""

    @abstractmethod
    def _append(self, wish: Wish) -> Event:
        """Log, and move the alias with it; of several at once, one wins.

        Raises:
            ConflictError: the alias moved since it was seen.
        """

    # -- versions ------------------------------------------------------------------------------------------------------

    def verify(self, version: str) -> None:
        """Check every file of a version where it is kept.

        Raises:
            IntegrityError: files are missing, altered or too many.
        """
        self.folder(version)

    def add(
        self,
        generator: str | Path,
        *,
        evidence: Mapping[str, bytes] | None = None,
        module: Mapping[str, Path] | None = None,
        actor: str = "",
        reason: str = "",
    ) -> str:
        """Keep a generator's folder as a version.

        Args:
            generator: the folder; it is copied.
            evidence: files by name (a report) that are kept with it.
            module: files by name of a module of yours that belongs to it; they are kept in ``downstream``.
            actor: who adds it.
            reason: why.

        Returns:
            The version: the sha256 of its files' names and hashes. Adding the same again gives the same.

        Raises:
            IntegrityError: the folder is no generator, or was altered.
        """
        contents = contents_of(generator, evidence or {}, module)
        version = contents.version
        self._store(contents)
        self.verify(version)
        if version not in self.versions():
            self._append(Wish("add", version, actor=actor, reason=reason))
        return version

    def versions(self) -> list[str]:
        """All versions, oldest first."""
        return list(dict.fromkeys(event.new for event in self.events() if event.op == "add"))

    def path(self, name: str) -> Path:
        """The verified folder of an alias, a version, or the beginning of one (at least 6 digits).

        Raises:
            UsageError: no such version.
            IntegrityError: its files were altered.
        """
        return self.folder(self.resolve(name))

    def resolve(self, name: str) -> str:
        """The version that a name means; see :meth:`path`."""
        known = self.versions()
        found = [version for version in known if len(name) >= 6 and version.startswith(name)]
        if len(found) == 1:  # first, so that a version can be had where an alias is in dispute
            return found[0]
        alias = self.alias(name)
        if alias is not None:
            return alias.version
        what = "several versions" if found else "no version and no alias"
        raise UsageError(
            f"{self.where} has {what} {name!r}; aliases are {choices(self.aliases())}, versions "
            f"{choices(version[:12] for version in known)}."
        )

    def evidence(self, version: str) -> dict[str, Path]:
        """Files of evidence that a version was added with, by name."""
        folder = self.folder(version) / EVIDENCE
        return {p.name: p for p in sorted(folder.glob("*")) if p.is_file()}

    # -- aliases -------------------------------------------------------------------------------------------------------

    def alias(self, name: str) -> Alias | None:
        """What an alias names, or None."""
        return self.aliases().get(name)

    def promote(
        self,
        version: str,
        alias: str = CHAMPION,
        *,
        expect: int,
        actor: str = "",
        reason: str = "",
        evidence: str = "",
    ) -> Event:
        """Move an alias, if nobody has moved it since.

        Args:
            version: what it is to name; it is verified first.
            alias: the name.
            expect: its ``gen`` as the caller saw it, 0 where there was none.
            actor: who.
            reason: why.
            evidence: sha256 of the report behind it.

        Raises:
            ConflictError: another process moved it first.
            UsageError: no such version, or a name that cannot be one.
        """
        if not ALIAS.fullmatch(alias) or RESERVED.fullmatch(alias):
            raise UsageError(
                f"an alias must be letters, digits, _ and -, begin with a letter, and be neither 'latest' nor like 'v2', but "
                f"got {alias!r}."
            )
        version = self.resolve(version)
        self.folder(version)
        return self._append(Wish("promote", version, alias, expect, actor, reason, evidence))

    def rollback(self, alias: str = CHAMPION, *, actor: str = "", reason: str = "") -> Event:
        """Move an alias back to what it named before its present version was promoted; again, further back.

        Raises:
            UsageError: there is nothing before it.
            ConflictError: another process moved it at the same time.
        """
        events = self.events()
        version = one_before(events, alias)
        self.folder(version)
        gen = next(event.gen for event in reversed(events) if event.alias == alias)
        return self._append(Wish("rollback", version, alias, gen, actor, reason))


def written(registry: Registry) -> bytes:
    """A registry for machines, as JSON: aliases, versions, events."""
    return readable_json(
        {
            "aliases": {name: asdict(alias) for name, alias in registry.aliases().items()},
            "versions": registry.versions(),
            "events": [asdict(event) for event in registry.events()],
        }
    )
