"""Rendering tables: Parquet shards by a plan. A shard's rows follow from the plan and its number alone, whoever makes it.

Finished shards lie in ``OUT.work`` until all are there; then the folder appears whole. Interrupted, the same call goes on;
any number of processes may work at once.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from visynth.core import balance as balancing
from visynth.core import members as members_file
from visynth.core import seeds as seeding
from visynth.core.errors import ConflictError, UsageError, choices
from visynth.core.files import ensure_writable, hash_file, write_json
from visynth.core.folders import claim, new_folder
from visynth.core.processes import end_with_parent
from visynth.core.progress import Progress, no_progress, time_left
from visynth.render.plan import balanced_order
from visynth.tabular.base import Synthesizer
from visynth.tabular.conditions import Conditions
from visynth.tabular.draws import BLOCK
from visynth.tabular.frames import write_parquet

SCHEMA = "visynth.rows/1"
SHARD = 64 * BLOCK
PLAN, MANIFEST, MEMBERS = "plan.json", "manifest.json", "members.jsonl"
ANY = "rows"  # the one class of a generator without a target


@dataclass(frozen=True)
class TablePlan:
    """Everything that decides the rows of a rendered table.

    Attributes:
        generator: digest.
        targets: rows of each class; ``{"rows": n}`` without a target.
        seed: of the whole table.
        shard_size: rows of a shard, a multiple of the block in which rows are computed.
    """

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

    @property
    def total(self) -> int:
        return sum(self.targets.values())

    @property
    def shards(self) -> int:
        return -(-self.total // self.shard_size)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Class of every row, spread evenly; worked out once for all shards."""
        return np.array(balanced_order(list(self.targets.values())), np.int64)

    def rows(self, shard: int) -> NDArray[np.int64]:
        """Numbers of a shard's rows."""
        return np.arange(shard * self.shard_size, min((shard + 1) * self.shard_size, self.total))

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "targets": dict(self.targets)}


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
        conditions = Conditions({target: (plan.order[numbers], np.ones(len(numbers), bool))}, {})
        generator.fitted.check_seen(conditions)
    table, _ = generator.rows(numbers, plan.seed, conditions)
    return generator.schema.frame(table, numbers, plan.seed)


def render_table(
    generator: Synthesizer,
    plan: TablePlan,
    out: str | Path,
    *,
    folder: str | Path | None = None,
    workers: int = 0,
    progress: Progress = no_progress,
) -> Path:
    """Render a plan into ``out``, or finish it there.

    Args:
        generator: the plan's.
        plan: from :func:`make_table_plan`.
        out: the folder of Parquet shards, ``plan.json``, ``manifest.json`` and ``members.jsonl``.
        folder: the generator's folder, from which worker processes load it; needed for ``workers`` above 1.
        workers: processes. They do not change a row.
        progress: receives lines.

    Raises:
        ConflictError: the folder holds another plan's work.
        UsageError: the plan is another generator's, or has unique columns, which a shard alone cannot keep.
        OutputError: it cannot be written.
    """
    out = Path(out)
    work = out.with_name(out.name + ".work")
    if plan.generator != generator.digest:
        raise UsageError("the plan belongs to another generator: make a plan with this one.")
    if generator.fitted.rules.unique and plan.shards > 1:
        raise UsageError(
            "the generator has unique columns, which shards that do not know one another cannot keep: render one shard "
            f"(at most {plan.shard_size} rows), or use 'visynth tabular sample'."
        )
    if (out / MANIFEST).is_file():
        _same_plan(json.loads((out / PLAN).read_text(encoding="utf-8")), plan, out)
        _clear(plan, work)
        return out
    claim(out)
    ensure_writable(work)
    if (work / PLAN).is_file():
        _same_plan(json.loads((work / PLAN).read_text(encoding="utf-8")), plan, out)
    else:
        write_json(work / PLAN, plan.to_json())
    left = [shard for shard in range(plan.shards) if not _part(work, shard).is_file()]
    begun, done = time.monotonic(), 0
    if workers > 1 and len(left) > 1 and folder is not None:
        job = joblib.delayed(_render_for)
        jobs = (job(os.getpid(), str(folder), plan, work, shard) for shard in left)
        rows = joblib.Parallel(workers, return_as="generator_unordered")(jobs)
    else:
        rows = (_render_shard(generator, plan, work, shard) for shard in left)
    for count in rows:
        done += count
        rate = done / (time.monotonic() - begun)
        remaining = sum(len(plan.rows(shard)) for shard in left) - done
        progress(f"{plan.total - remaining}/{plan.total} rows, {rate:.0f} rows/s, {time_left(remaining / rate)}")
    _finish(generator, plan, out, work)
    return out


def _render_for(parent: int, folder: str, plan: TablePlan, work: Path, shard: int) -> int:
    end_with_parent(parent)
    return _render_shard(_loaded(folder), plan, work, shard)


@lru_cache(maxsize=1)
def _loaded(folder: str) -> Synthesizer:
    """A worker process's generator, loaded once."""
    return Synthesizer.load(folder)


def _render_shard(generator: Synthesizer, plan: TablePlan, work: Path, shard: int) -> int:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are rounded differently on more: every worker takes one
    try:
        frame = shard_rows(generator, plan, shard)
    finally:
        torch.set_num_threads(before)
    write_parquet(frame, _part(work, shard))  # atomic: a shard of that name is complete
    return len(frame)


def _part(folder: Path, shard: int) -> Path:
    return folder / f"part-{shard:06d}.parquet"


def _same_plan(stored: Mapping[str, Any], plan: TablePlan, out: Path) -> None:
    ours = plan.to_json()
    differ = [f"{k}: {stored.get(k)!r} there, {v!r} here" for k, v in ours.items() if stored.get(k) != v]
    if differ:
        raise ConflictError(
            f"{out} holds another plan's rows ({'; '.join(differ)}). Choose another folder, or delete this one."
        )


def _finish(generator: Synthesizer, plan: TablePlan, out: Path, work: Path) -> None:
    """The folder appears whole; the work goes."""
    parts: list[dict[str, Any]] = []
    with new_folder(out) as folder:
        for shard in range(plan.shards):
            source = _part(work, shard)
            _linked(source, folder / source.name)  # not moved: a kill before the end loses nothing
            parts.append({"file": source.name, "rows": len(plan.rows(shard)), "sha256": hash_file(source)})
        root = sha256("".join(str(part["sha256"]) for part in parts).encode()).hexdigest()
        write_json(folder / PLAN, plan.to_json())
        members_file.write(folder / MEMBERS, generator.fitted.members)
        write_json(folder / MANIFEST, {"schema": SCHEMA, "rows": plan.total, "parts": parts, "root": root})
    _clear(plan, work)


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)


def _clear(plan: TablePlan, work: Path) -> None:
    """Remove what is ours of the work in progress."""
    for shard in range(plan.shards):
        _part(work, shard).unlink(missing_ok=True)
    (work / PLAN).unlink(missing_ok=True)
    with suppress(OSError):  # not there, or something else lies in it
        work.rmdir()
