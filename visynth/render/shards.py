"""A shard: what one piece of a plan becomes, and who makes it. Images and tables are rendered by the same loop."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from typing import Any, Protocol

from visynth.core import plugins
from visynth.core.errors import ConflictError
from visynth.core.members import Member
from visynth.render.plan import ShardPlan

SCHEMA = "visynth.shard/1"
NAME = re.compile(r"shard\.(\d{6,})(?:\.(\d+))?")


@dataclass(frozen=True)
class Shard:
    """One shard, made and not yet committed.

    Attributes:
        number: of the shard.
        round: 0, or how often its failed images were tried anew.
        files: contents by name below the set's folder.
        lines: of the manifest, canonical JSON, one an image (of tables: one a file).
        counts: images or rows of each class.
        failed: images that could not be made: class, number, seeds that were tried, and why.
        seconds: it took.
        device: it was made on.
    """

    number: int
    round: int
    files: Mapping[str, bytes]
    lines: Sequence[str]
    counts: Mapping[str, int]
    failed: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    seconds: float = 0.0
    device: str = "cpu"

    def record(self, plan: ShardPlan) -> dict[str, Any]:
        """The commit record: the shard exists when this does."""
        files = [
            {"name": name, "sha256": sha256(data).hexdigest(), "bytes": len(data)} for name, data in self.files.items()
        ]
        return {
            "schema": SCHEMA,
            "plan": plan.hash,
            "shard": self.number,
            "round": self.round,
            "counts": dict(self.counts),
            "failed": [dict(one) for one in self.failed],
            "lines": len(self.lines),
            "files": files,
            "versions": versions(),
            "device": self.device,
            "seconds": round(self.seconds, 3),
        }


def shard_name(number: int, round_: int) -> str:
    """Name of a committed shard.

    Example:
        >>> shard_name(3, 0), shard_name(3, 2), parse_name("shard.000003.2"), parse_name("plan")
        ('shard.000003', 'shard.000003.2', (3, 2), None)
    """
    return f"shard.{number:06d}" + (f".{round_}" if round_ else "")


def parse_name(name: str) -> tuple[int, int] | None:
    """Number and round of a committed shard's name, or None for any other name."""
    match = NAME.fullmatch(name)
    return None if match is None else (int(match.group(1)), int(match.group(2) or 0))


def latest_rounds(names: Iterable[str]) -> dict[int, int]:
    """Committed shards among names, and the latest round of each."""
    found: dict[int, int] = {}
    for number, round_ in filter(None, map(parse_name, names)):
        found[number] = max(found.get(number, 0), round_)
    return found


class Maker(Protocol):
    """Makes the shards of one plan. Registered in the plugin group ``renderers`` under the plan's schema and built with
    (generator, stored plan)."""

    @property
    def plan(self) -> ShardPlan: ...
    @property
    def members(self) -> Sequence[Member]: ...
    @property
    def card(self) -> Mapping[str, Any]: ...

    def make(self, number: int, round_: int, pool: Executor | None) -> Callable[[], Shard]:
        """Compute a shard; what is left (waiting for the encoders) is done by the function that comes back."""


def maker(generator: Any, said: Mapping[str, Any]) -> Maker:
    """Who makes the shards of a stored plan.

    Raises:
        ConflictError: the plan belongs to another generator.
    """
    made: Maker = plugins.load("renderers", str(said.get("schema")))(generator, said)
    if said["generator"] != generator.digest:
        raise ConflictError(
            f"the plan is of generator {said['generator'][:16]}..., but this one is {generator.digest[:16]}...: render "
            "with the generator that the plan was made for."
        )
    return made


@cache
def versions() -> dict[str, str]:
    """Versions of what decides bytes."""
    names = ("torch", "numpy", "opencv-python-headless")
    return {name: version(name) for name in names} | {"python": platform.python_version()}
