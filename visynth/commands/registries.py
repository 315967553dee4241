"""Commands on a registry of generators."""

from __future__ import annotations

from json import dumps

from visynth.core.errors import UsageError


def registry_add(
    registry: str, generator: str, evidence: list[str] | None = None, reason: str = "", actor: str = ""
) -> int:
    """Keep a generator's folder as an immutable version.

    Args:
        registry: its folder, made if it is not there, or mlflow+https://host:5000/NAME.
        generator: the generator's folder.
        evidence: files that are kept with it, such as the report.json of its evaluation.
        reason: why.
        actor: who; by default the user of this machine.
    """
    from pathlib import Path

    from visynth.jobs.registry.opening import open_registry

    missing = [name for name in evidence or [] if not Path(name).is_file()]
    if missing:
        raise UsageError(f"there is no evidence {missing}: give files.")
    files = {Path(name).name: Path(name).read_bytes() for name in evidence or []}
    print(open_registry(registry).add(generator, evidence=files, reason=reason, actor=actor))
    return 0


def registry_list(registry: str, json: bool = False) -> int:
    """Print aliases and versions.

    Args:
        registry: its folder, or its address on an MLflow server.
        json: everything, with the event log, as JSON.
    """
    from visynth.jobs.registry.base import written
    from visynth.jobs.registry.opening import open_registry

    own = open_registry(registry)
    if json:
        print(written(own).decode(), end="")
        return 0
    aliases = own.aliases()
    for version in own.versions():
        names = [name for name, alias in aliases.items() if alias.version == version]
        print(version, *(f"<- {name}" for name in names))
    return 0


def registry_log(registry: str, json: bool = False) -> int:
    """Print the event log, after checking that no line of it was changed.

    Args:
        registry: its folder, or its address on an MLflow server.
        json: one JSON object an event.
    """
    from dataclasses import asdict

    from visynth.jobs.registry.opening import open_registry

    for event in open_registry(registry).events():
        moved = f"{event.alias}: {event.old[:12] or 'nothing'} -> {event.new[:12]}" if event.alias else event.new[:12]
        print(
            dumps(asdict(event))
            if json
            else f"{event.seq} {event.at} {event.actor} {event.op} {moved} ({event.reason})"
        )
    return 0


def registry_path(registry: str, version: str = "champion") -> int:
    """Print the folder of a version, after checking every file of it: for 'visynth render' and the like.

    Args:
        registry: its folder, or its address on an MLflow server.
        version: an alias, a version, or the beginning of one.
    """
    from visynth.jobs.registry.opening import open_registry

    print(open_registry(registry).path(version))
    return 0


def registry_promote(
    registry: str, version: str, alias: str = "champion", expect: int | None = None, reason: str = "", actor: str = ""
) -> int:
    """Move an alias to a version, if nobody has moved it since.

    Args:
        registry: its folder, or its address on an MLflow server.
        version: what the alias is to name.
        alias: the name.
        expect: how often it has moved, as you saw it; by default as it is now.
        reason: why.
        actor: who; by default the user of this machine.
    """
    from visynth.jobs.registry.opening import open_registry

    own = open_registry(registry)
    if expect is None:
        now = own.alias(alias)
        expect = now.gen if now else 0
    event = own.promote(version, alias, expect=expect, reason=reason, actor=actor)
    print(f"{alias}: {event.old[:12] or 'nothing'} -> {event.new[:12]} (move {event.gen})")
    return 0


def registry_rollback(registry: str, alias: str = "champion", reason: str = "", actor: str = "") -> int:
    """Move an alias back to what it named before.

    Args:
        registry: its folder, or its address on an MLflow server.
        alias: the name.
        reason: why.
        actor: who; by default the user of this machine.
    """
    from visynth.jobs.registry.opening import open_registry

    event = open_registry(registry).rollback(alias, reason=reason, actor=actor)
    print(f"{alias}: {event.old[:12]} -> {event.new[:12]} (move {event.gen})")
    return 0


def registry_verify(registry: str) -> int:
    """Check every file of every version, and the event log.

    Args:
        registry: its folder, or its address on an MLflow server.
    """
    from visynth.core.errors import IntegrityError, raise_all
    from visynth.jobs.registry.opening import open_registry

    own = open_registry(registry)
    problems = []
    for version in own.versions():  # which checks the log
        try:
            own.verify(version)
        except IntegrityError as error:
            problems.append(str(error))
    raise_all(registry, problems, IntegrityError)
    print(f"{registry}: {len(own.versions())} versions whole, {len(own.events())} events in order")
    return 0
