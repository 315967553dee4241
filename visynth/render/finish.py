"""The end of a render: files at their places, one manifest, a root hash, Croissant and a card; the summary is last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from visynth.core.errors import DataError, IntegrityError
from visynth.core.files import readable_json
from visynth.core.manifest import METADATA, PLAN, SHARDS, SUMMARY_SCHEMA, in_archives
from visynth.render.describe import croissant, dataset_card
from visynth.render.plan import ShardPlan
from visynth.render.stage import Stage

PART = 100_000  # lines of one file of the manifest


@dataclass
class State:
    """How far a set is.

    Attributes:
        planned: shards.
        committed: shards that are there, with the latest round of each.
        failed: images that could not be made, each with class, number, shard, seeds that were tried and reasons.
        counts: images or rows of each class that are there.
        lines: of the manifest.
        root: hash of the whole set, where it is finished.
    """

    planned: int
    committed: Mapping[int, int]
    failed: list[Mapping[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    root: str = ""

    @property
    def finished(self) -> bool:
        """Whether the set is whole and has its manifest."""
        return bool(self.root)

    @property
    def missing(self) -> int:
        """Shards that are not there."""
        return self.planned - len(self.committed)

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "finished": self.finished,
            "shards": self.planned,
            "committed": len(self.committed),
            "counts": dict(self.counts),
            "failed": len(self.failed),
            **({"root": self.root} if self.finished else {}),
        }


def state_of(stage: Stage, plan: ShardPlan) -> State:
    """How far a set is, from its commit records."""
    summary = stage.finished()
    if summary is not None:
        counts = Counter({name: int(n) for name, n in summary["counts"].items()})
        rounds = {number: int(summary["rounds"].get(str(number), 0)) for number in range(plan.shards)}
        return State(plan.shards, rounds, summary["failed"], counts, root=summary["root"])
    state = State(plan.shards, stage.rounds())
    for number, round_ in sorted(state.committed.items()):
        try:
            record = stage.record(number, round_)
        except FileNotFoundError:
            if stage.finished() is None:
                raise
            return state_of(stage, plan)  # another process finished, and cleared the work away
        state.counts.update(record["counts"])
        state.lines += record["lines"]
        state.failed += [{**own, "shard": number} for own in record["failed"]]
    return state


def check_failed(state: State, where: str) -> None:
    """Refuse to call a set done that lacks images.

    Raises:
        DataError: images failed; they are counted with the reasons.
    """
    if not state.failed:
        return
    reasons = Counter(str(own["tried"][-1]["reason"]) for own in state.failed)
    classes = Counter(str(own["label"]) for own in state.failed)
    raise DataError(
        f"{where}: {len(state.failed)} images could not be made ({', '.join(f'{n} {k}' for k, n in classes.items())}; "
        f"{', '.join(f'{why}: {n}' for why, n in reasons.items())}). The others are kept. Draw these again with 'visynth "
        "renders retry-failed', or finish without them with 'visynth renders finalize --allow-failed'."
    )


def finish(stage: Stage, plan: ShardPlan, allow_failed: bool = False) -> dict[str, Any]:
    """Turn committed shards into a finished set, or find it finished.

    Args:
        stage: where the shards are.
        plan: theirs.
        allow_failed: leave images out that could not be made.

    Returns:
        The summary.

    Raises:
        DataError: shards are missing, or images failed.
    """
    done = stage.finished()
    if done is None:
        try:
            with stage.finishing():
                done = stage.finished()
                if done is None:
                    done = _finish(stage, plan, allow_failed)
        except FileNotFoundError:
            done = stage.finished()  # another process finished, and cleared the work away
            if done is None:
                raise
    if done["plan"] != plan.hash:
        raise IntegrityError(f"{stage.where} holds another plan's set.")
    stage.clear()
    return done


def _finish(stage: Stage, plan: ShardPlan, allow_failed: bool) -> dict[str, Any]:
    state = state_of(stage, plan)
    if state.missing:
        raise DataError(
            f"{stage.where}: {state.missing} of {state.planned} shards are not rendered yet. Run 'visynth render' again, "
            "or wait for the other workers."
        )
    if not allow_failed:
        check_failed(state, stage.where)
    said = plan.to_json()
    stage.put(PLAN, readable_json(said))  # before the first image: it says whose they are
    manifest = _Manifest(stage, state.lines, archives=in_archives(said))
    names: set[str] = set()
    for number in range(plan.shards):
        round_ = state.committed[number]
        record = stage.record(number, round_)
        stage.place(number, round_, record["files"])
        names.update(own["name"] for own in record["files"])
        manifest.add(stage.lines(number, round_), record["files"])
    stage.sync(names)
    stage.bring_members()
    manifest.close()
    summary = {
        "schema": SUMMARY_SCHEMA,
        "plan": plan.hash,
        "total": sum(state.counts.values()),
        "counts": dict(sorted(state.counts.items())),
        "failed": state.failed,
        "root": manifest.root.hexdigest(),
        "manifest": manifest.parts,
        "rounds": {str(number): round_ for number, round_ in sorted(state.committed.items()) if round_},
    }
    card = stage.card()
    stage.note(
        {
            "README.md": dataset_card(said, summary, card).encode(),
            "croissant.json": readable_json(croissant(said, summary, card)),
        }
    )
    stage.put_summary(readable_json(summary))  # last: the set is whole
    return summary


class _Manifest:
    """Writes the manifest shard by shard, in parts, and the root hash along with it."""

    def __init__(self, stage: Stage, lines: int, archives: bool) -> None:
        self.stage, self.archives = stage, archives
        self.count = max(-(-lines // PART), 1)
        self.root = sha256()
        self.parts: list[dict[str, Any]] = []
        self._lines: list[str] = []
        self._shards: list[str] = []

    def add(self, lines: list[str], files: list[dict[str, Any]]) -> None:
        for own in files:
            self.root.update(f"{own['name']} {own['sha256']}\n".encode())
            if self.archives:
                self._shards.append(json.dumps(own, sort_keys=True))
        self._lines += lines
        while len(self._lines) > PART:
            self._flush(self._lines[:PART])
            self._lines = self._lines[PART:]

    def close(self) -> None:
        """Write what is left."""
        self._flush(self._lines)
        if self.archives:
            self.stage.put(SHARDS, "".join(line + "\n" for line in self._shards).encode())

    def _flush(self, lines: list[str]) -> None:
        name = METADATA if self.count == 1 else f"metadata-{len(self.parts):05d}-of-{self.count:05d}.jsonl"
        data = "".join(line + "\n" for line in lines).encode()
        self.stage.put(name, data)
        self.parts.append({"name": name, "lines": len(lines), "sha256": sha256(data).hexdigest()})
