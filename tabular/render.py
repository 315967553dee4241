"""Rendering tables: Parquet shards by a plan, through the same loop as images (:mod:`visynth.render.run`)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from visynth.core import balance as balancing
from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, choices
from visynth.core.files import canonical_json
from visynth.core.folders import ROWS
from visynth.render.finish import State
from visynth.render.images import plan_threads
from visynth.render.plan import ShardPlan, balanced_order
from visynth.render.run import Engine, RenderProgress, render
from visynth.render.shards import Shard
from visynth.render.stages import open_stage
from visynth.tabular.base import Synthesizer
from visynth.tabular.conditions import Conditions
from visynth.tabular.draws import BLOCK
from visynth.tabular.frames import parquet_bytes

SHARD = 64 * BLOCK
ANY = "rows"  # the one class of a generator without a target


@dataclass(frozen=True)
class TablePlan(ShardPlan):
    """Everything that decides the rows of a rendered table.

    Attributes:
        generator: digest.
        targets: rows of each class; ``{"rows": n}`` without a target.
        seed: of the whole table.
        shard_size: most rows of a shard, a multiple of the block in which rows are computed.
    """

    what: ClassVar = "rows"

    generator: str
    targets: Mapping[str, int]
    seed: int = 0
    shard_size: int = SHARD

    def __post_init__(self) -> None:
        seeding.checked(self.seed)
        if self.total < 1:
            raise UsageError(
                f"there is nothing to render: {dict(self.targets)}. Ask for more with --to N or --per-class N."
            )
        if self.shard_size % BLOCK or self.shard_size < BLOCK:
            raise UsageError(f"shard_size must be a multiple of {BLOCK}, but got {self.shard_size}.")

    def labels(self, number: int) -> NDArray[np.int64]:
        """Class of every row of a shard, spread evenly."""
        return np.array(balanced_order(list(self.counts(number).values())), np.int64)

    def rows(self, number: int) -> NDArray[np.int64]:
        """Numbers of a shard's rows; those of one shard begin with a block of their own."""
        return np.arange(self.count(number)) + number * self.shard_size

    def to_json(self) -> dict[str, Any]:
        return {"schema": ROWS, **asdict(self), "targets": dict(self.targets)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> TablePlan:
        """The plan again."""
        return cls(**{field.name: said[field.name] for field in fields(cls)})


def make_table_plan(
    generator: Synthesizer,
    *,
    balance: balancing.Balance = "not majority",
    to: int | None = None,
    per_class: int | None = None,
    classes: list[str] | None = None,
    total: int | None = None,
    seed: int = 0,
    shard_size: int = SHARD,
) -> TablePlan:
    """The plan of a class-balanced table.

    Args:
        generator: with a target, unless ``total`` is given.
        balance: how much of each class, counting its real rows, as for images.
        to: fill up to this many rows instead of up to the majority.
        per_class: exactly this many of each class.
        classes: only these.
        total: so many rows, of classes as the generator draws them.
        seed: of the whole table.
        shard_size: rows of a shard.

    Raises:
        UsageError: no target, or unknown classes.
    """
    if total is not None:
        return TablePlan(generator.digest, {ANY: total}, seed, shard_size)
    names = generator.fitted.classes
    if not names:
        raise UsageError(
            "the generator was fitted without a target: there are no classes to balance; give a total number."
        )
    unknown = [name for name in classes or [] if name not in names]
    if unknown:
        raise UsageError(f"classes {choices(unknown)} are not in the generator; it has {choices(names)}.")
    chosen = set(classes or names)
    if per_class is not None:
        wanted = {name: per_class * (name in chosen) for name in names}
    else:
        labels = [m.label for m in generator.fitted.members if m.split == "train"]
        if not labels:
            raise UsageError("the generator keeps no members, so that real rows cannot be counted: give per_class.")
        wanted = balancing.targets(balance, {name: labels.count(name) for name in names}, to=to)
        wanted = {name: count * (name in chosen) for name, count in wanted.items()}
    return TablePlan(generator.digest, wanted, seed, shard_size)


def shard_rows(generator: Synthesizer, plan: TablePlan, shard: int) -> Any:
    """The frame of one shard, its classes in even order."""
    numbers = plan.rows(shard)
    conditions = Conditions({}, {})
    target = generator.fitted.target
    if list(plan.targets) != [ANY] and target is not None:
        conditions = Conditions({target: (plan.labels(shard), np.ones(len(numbers), bool))}, {})
        generator.fitted.check_seen(conditions)
    table, _ = generator.rows(numbers, plan.seed, conditions)
    return generator.schema.frame(table, numbers, plan.seed)


class TableMaker:
    """Makes shards of rows.

    Args:
        generator: the plan's.
        said: the plan, or the plan as stored.

    Raises:
        UsageError: the generator has unique columns, which a shard alone cannot keep.
    """

    def __init__(self, generator: Synthesizer, said: Mapping[str, Any] | TablePlan) -> None:
        self.plan = said if isinstance(said, TablePlan) else TablePlan.from_json(said)
        self.generator, self.members, self.card = generator, generator.fitted.members, generator.card
        if generator.fitted.rules.unique and self.plan.shards > 1:
            raise UsageError(
                "the generator has unique columns, which shards that do not know one another cannot keep: render one "
                f"shard (at most {self.plan.shard_size} rows), or use 'visynth tabular sample'."
            )

    def make(self, number: int, round_: int, pool: Executor | None) -> Callable[[], Shard]:
        """The rows of a shard; they are written as Parquet by the function that comes back."""
        started = time.monotonic()
        with plan_threads(1):
            frame = shard_rows(self.generator, self.plan, number)
        seconds = time.monotonic() - started

        def whole() -> Shard:
            name = f"part-{number:06d}.parquet"
            data = parquet_bytes(frame)
            line = {"file_name": name, "rows": len(frame), "sha256": sha256(data).hexdigest()}
            counts = Counter({name: n for name, n in self.plan.counts(number).items() if n})
            return Shard(number, round_, {name: data}, [canonical_json(line)], counts, (), seconds)

        return whole


def render_table(
    generator: Synthesizer,
    plan: TablePlan,
    out: str | Path,
    *,
    engine: Engine | None = None,
    progress: RenderProgress | None = None,
) -> State:
    """Render a plan into ``out``, or finish it there.

    Args:
        generator: the plan's.
        plan: from :func:`make_table_plan`.
        out: the folder of Parquet shards, with ``plan.json``, the manifest and ``summary.json``; or an object store's
            address.
        engine: see :func:`visynth.render.run.render_set`.
        progress: called after each shard.

    Raises:
        ConflictError: the folder holds another plan's work.
        UsageError: the plan is another generator's, or has unique columns, which a shard alone cannot keep.
        OutputError: it cannot be written.
    """
    if plan.generator != generator.digest:
        raise UsageError("the plan belongs to another generator: make a plan with this one.")
    return render(TableMaker(generator, plan), open_stage(out), engine=engine, progress=progress)
