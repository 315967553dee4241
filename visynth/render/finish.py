"""The end of a render: files at their places, one manifest, a root hash, Croissant and a card; the summary is last."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from visynth.core.errors import DataError, IntegrityError
from visynth.core.files import readable_json
from visynth.core.judges import USED
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
    parts, root = _write_manifest(stage, plan, state, archives=in_archives(said))
    stage.sync(own["name"] for own in _files(stage, state))
    stage.bring_members()
    summary = {
        "schema": SUMMARY_SCHEMA,
        "plan": plan.hash,
        "total": sum(state.counts.values()),
        "counts": dict(sorted(state.counts.items())),
        "failed": state.failed,
        "root": root,
        "manifest": parts,
        "rounds": {str(number): round_ for number, round_ in sorted(state.committed.items()) if round_},
    }
    card = stage.card()
    summary[USED] = card.get(USED, {})  # who judges the images must know which networks had a hand in them
    stage.note(
        {
            "README.md": dataset_card(said, summary, card).encode(),
            "croissant.json": readable_json(croissant(said, summary, card)),
        }
    )
    stage.put_summary(readable_json(summary))  # last: the set is whole
    return summary


def _files(stage: Stage, state: State) -> Iterator[Mapping[str, Any]]:
    """Files of all shards, as their records list them."""
    for number, round_ in sorted(state.committed.items()):
        yield from stage.record(number, round_)["files"]


def _write_manifest(stage: Stage, plan: ShardPlan, state: State, archives: bool) -> tuple[list[dict[str, Any]], str]:
    """Bring the files to their places and write the manifest along with it, line by line, in parts.

    Returns:
        The parts, and the root hash.
    """
    count = max(-(-state.lines // PART), 1)
    root, shards = sha256(), []
    parts: list[dict[str, Any]] = []

    def lines() -> Iterator[bytes]:
        for number in range(plan.shards):
            round_ = state.committed[number]
            files = stage.record(number, round_)["files"]
            stage.place(number, round_, files)
            for own in files:
                root.update(f"{own['name']} {own['sha256']}\n".encode())
                if archives:
                    shards.append(json.dumps(own, sort_keys=True))
            yield from (line.encode() + b"\n" for line in stage.lines(number, round_))

    left = lines()
    for place in range(count):
        # The last part takes what is left: also what comes with a shard that has no lines.
        own = _Hashed(left if place == count - 1 else itertools.islice(left, PART))
        name = METADATA if count == 1 else f"metadata-{place:05d}-of-{count:05d}.jsonl"
        stage.put_chunks(name, own)
        parts.append({"name": name, "lines": own.count, "sha256": own.digest.hexdigest()})
    if archives:
        stage.put(SHARDS, "".join(line + "\n" for line in shards).encode())
    return parts, root.hexdigest()


class _Hashed:
    """Pieces that are hashed and counted as they go by."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self.digest, self.count = iter(pieces), sha256(), 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.digest.update(piece)
            self.count += 1
            yield piece
