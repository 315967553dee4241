"""Render a plan: what is planned and not yet committed is the work; every shard is made apart and committed once.

Killed at any moment, the same command goes on where it stopped and ends with the same bytes, whoever made which shard:
this process, worker processes, other machines, or Ray.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from visynth.core import balance as balancing
from visynth.core.balance import Balance
from visynth.core.errors import IntegrityError, OutputError, UsageError, VisynthError, choices
from visynth.core.files import canonical_json
from visynth.core.manifest import Renders, read_renders
from visynth.core.memory import memory_errors
from visynth.render.finish import State, check_failed, finish, state_of
from visynth.render.images import AHEAD, ImageMaker, make_filters
from visynth.render.plan import ATTEMPTS, SHARD, RenderPlan, ShardPlan
from visynth.render.shards import Maker, Shard
from visynth.render.stage import DiskStage, Stage, check_plan

if TYPE_CHECKING:
    from visynth.generators.base import Generator

LESS = (
    "Take fewer workers or a smaller batch_size; a smaller shard_size or micro_batch is another plan. What is committed is "
    "kept: the same command goes on."
)
RenderProgress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Done:
    """A shard that is committed, by this process or by another that was first."""

    number: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Slice:
    """The shards of one of several workers that know nothing of one another.

    Attributes:
        index: of this worker, from 0.
        count: of workers.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"shard_index must be in [0, shard_count), but got {self.index} of {self.count}.")

    def of(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers that are this worker's."""
        return [number for number in numbers if number % self.count == self.index]


class Engine(Protocol):
    """Makes and commits shards somewhere; yields each when it is committed."""

    def run(self, maker: Maker, stage: Stage, pending: Sequence[tuple[int, int]]) -> Iterator[Done]:
        """``pending`` are shards with the round of each."""


@dataclass(frozen=True)
class Here:
    """Renders in this process.

    Attributes:
        encoders: threads that encode beside the sampling; 0 encodes in this one. They do not change a byte. None: see
            :func:`encoding_threads`.
    """

    encoders: int | None = None

    def run(self, maker: Maker, stage: Stage, pending: Sequence[tuple[int, int]]) -> Iterator[Done]:
        encoders = encoding_threads(self.encoders, maker)
        yield from render_shards(maker, stage, _free_first(stage, pending), encoders)


def encoding_threads(wish: int | None, maker: Maker) -> int:
    """Threads that encode beside the sampling of a maker, where none are asked for: where sampling is done by the CPU it
    wants every core itself, beside a GPU two keep up with it."""
    if wish is not None:
        return wish
    device = str(getattr(getattr(maker, "generator", None), "device", "cpu"))
    return 0 if device.startswith("cpu") else 2


def render_shards(maker: Maker, stage: Stage, wanted: Iterable[tuple[int, int]], encoders: int = 0) -> Iterator[Done]:
    """Make and commit shards one after the other; while one is written the next is already sampled.

    Args:
        maker: makes them.
        stage: where they are committed.
        wanted: shards with their rounds, asked for one by one.
        encoders: threads; OpenCV, zlib and fsync let the others run.
    """
    # Threads: processes would cost a copy of every image, and OpenCV holds no lock while it encodes.
    pool = ThreadPoolExecutor(encoders, "visynth-encoder") if encoders else None
    committer = ThreadPoolExecutor(1, "visynth-commit")
    waiting: deque[Future[Done]] = deque()
    try:
        for number, round_ in wanted:
            with memory_errors(LESS):
                whole = maker.make(number, round_, pool)
            waiting.append(committer.submit(_commit, maker.plan, stage, whole))
            while len(waiting) > 1:
                yield _result(waiting)
        while waiting:
            yield _result(waiting)
    finally:
        committer.shutdown(cancel_futures=True)
        if pool:
            pool.shutdown(cancel_futures=True)


def _result(waiting: deque[Future[Done]]) -> Done:
    with memory_errors(LESS):
        return waiting.popleft().result()


def _commit(plan: ShardPlan, stage: Stage, whole: Callable[[], Shard]) -> Done:
    shard = whole()
    stage.commit(shard, shard.record(plan))
    return Done(shard.number, shard.counts)


def _free_first(stage: Stage, pending: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Shards that nobody else seems to be making, then the others, where they are still missing."""
    later = []
    for number, round_ in pending:
        if not stage.is_open():  # others were faster, and cleared the work away
            return
        if stage.busy(number):
            later.append((number, round_))
        elif not stage.has(number, round_):
            yield number, round_
    yield from (own for own in later if not stage.has(*own))


def render(
    maker: Maker,
    stage: Stage,
    *,
    engine: Engine | None = None,
    part: Slice | None = None,
    progress: RenderProgress | None = None,
) -> State:
    """Render what is missing of a plan, and finish the set when nothing is.

    Args:
        maker: of the plan.
        stage: where the set lies.
        engine: does the work; by default this process.
        part: the shards of this worker; by default all.
        progress: called after each shard with done, total, images per second, seconds left and counts.

    Returns:
        How far the set is: finished, unless other workers have shards left.

    Raises:
        ConflictError: another plan's work lies there.
        DataError: images could not be made.
        OutputError: it cannot be written.
    """
    plan, engine = maker.plan, engine or Here()
    own = (part or Slice()).of(range(plan.shards))
    try:
        if stage.finished() is not None:
            check_plan(stage.plan(), plan.to_json(), stage.where)
            _repair(maker, stage, engine)
            stage.clear()
            return state_of(stage, plan)
        stage.claim(maker)
        stage.sweep()
        _discard_torn(stage, own)
        there = stage.rounds()
        _run(maker, stage, engine, [(number, 0) for number in own if number not in there], there, progress)
        return conclude(stage, plan)
    except OSError as error:
        if stage.finished() is not None:  # another process was first, and cleared the work away
            return conclude(stage, plan)
        if isinstance(error, VisynthError):
            raise
        raise OutputError(
            f"cannot write {stage.where}: {error.strerror or error}. What is committed is kept: run the same command "
            "again."
        ) from error


def _discard_torn(stage: Stage, numbers: Collection[int]) -> None:
    """Commits of these shards whose files were altered or cut short since are taken back, and told."""
    with stage.finishing():  # nobody moves files meanwhile, or takes back what was just made anew
        torn = stage.torn(numbers)
        for number in torn:
            stage.discard(number)
    if torn:
        first = [problem for problems in torn.values() for problem in problems]
        warnings.warn(
            f"{stage.where}: {len(torn)} committed shards had missing or altered files and are rendered again "
            f"({choices(first[:3])})",
            stacklevel=4,
        )


def conclude(stage: Stage, plan: ShardPlan) -> State:
    """Finish a set if no shard is missing; else say how far it is.

    Raises:
        DataError: images failed.
    """
    if stage.finished() is not None or len(stage.rounds()) == plan.shards:
        finish(stage, plan)
    state = state_of(stage, plan)
    if not state.finished:
        check_failed(state, stage.where)
    return state


def retry_failed(
    maker: Maker, stage: Stage, *, engine: Engine | None = None, progress: RenderProgress | None = None
) -> State:
    """Draw the failed images of an unfinished set again: each round adds ``plan.attempts`` draws.

    Raises:
        UsageError: the set is finished, or nothing failed.
        DataError: images failed again.
    """
    state = state_of(stage, maker.plan)
    if state.finished or not state.failed:
        raise UsageError(f"{stage.where} has no failed images to draw again.")
    stage.claim(maker)
    stage.sweep()
    numbers = sorted({int(own["shard"]) for own in state.failed})
    pending = [(number, state.committed[number] + 1) for number in numbers]
    there = {number: round_ for number, round_ in state.committed.items() if number not in numbers}
    _run(maker, stage, engine or Here(), pending, there, progress)
    return conclude(stage, maker.plan)


def _run(
    maker: Maker,
    stage: Stage,
    engine: Engine,
    pending: Sequence[tuple[int, int]],
    there: Iterable[int],
    progress: RenderProgress | None,
) -> None:
    """Run an engine and tell how it goes."""
    plan, started, made = maker.plan, time.monotonic(), 0
    if not pending:
        return
    waiting = sum(plan.count(number) for number, _ in pending)
    counts: Counter[str] = Counter()
    done = 0
    for number in there:
        done += plan.count(number)
        counts.update(plan.counts(number))
    for shard in engine.run(maker, stage, pending):
        made += plan.count(shard.number)
        counts.update(shard.counts)
        if progress:
            rate = made / max(time.monotonic() - started, 1e-9)
            progress(
                {
                    "done": done + made,
                    "total": plan.total,
                    "what": plan.what,
                    "rate": rate,
                    "seconds left": (waiting - made) / rate,
                    "counts": {name: n for name, n in counts.items() if n},
                }
            )


def _repair(maker: Maker, stage: Stage, engine: Engine) -> None:
    """Render again the files of a finished set that are missing or were altered; what was altered is set aside.

    Raises:
        IntegrityError: they do not come out as they were: another machine or other versions.
    """
    summary = stage.finished() or {}
    files = dict(stage.files())
    wrong = stage.damaged(files)
    if not wrong:
        return
    warnings.warn(
        f"{stage.where}: {len(wrong)} files were missing or altered and are rendered again ({choices(wrong[:3])})",
        stacklevel=4,
    )
    rounds = {maker.plan.shard_of(name): 0 for name in wrong}
    rounds = {number: int(summary["rounds"].get(str(number), 0)) for number in sorted(rounds)}
    stage.reopen(maker)
    list(engine.run(maker, stage, [(n, r) for n, r in rounds.items() if not stage.has(n, r)]))
    came = {
        own["name"]: own["sha256"] for number, round_ in rounds.items() for own in stage.record(number, round_)["files"]
    }
    unlike = [name for name in wrong if came.get(name) != files[name]]
    if unlike:
        raise IntegrityError(
            f"{stage.where}: {len(unlike)} damaged files do not come out as they were ({choices(unlike[:3])}): this "
            "machine or its versions differ from those that rendered the set. Repair it there, or render a new one."
        )
    with stage.finishing():  # another process may have repaired some of them meanwhile
        for name in stage.damaged({name: files[name] for name in wrong}):
            number = maker.plan.shard_of(name)
            stage.set_aside(name)
            stage.place(number, rounds[number], [{"name": name, "sha256": files[name]}])
    stage.sync(list(files))


def make_plan(
    generator: Generator,
    *,
    balance: Balance = "not majority",
    to: int | None = None,
    per_class: int | Mapping[str, int] | None = None,
    classes: Sequence[str] | None = None,
    counts: Mapping[str, int] | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    encoding: str | None = None,
    threads: int = 1,
    shard_size: int = SHARD,
    purpose: Literal["training", "looking"] = "training",
    format: Literal["folders", "webdataset", "parquet"] = "folders",
    attempts: int = ATTEMPTS,
    filters: Sequence[str] = (),
) -> RenderPlan:
    """Plan a rendered set.

    Args:
        generator: decides every pixel.
        balance: a word, dict, callable or float, see :func:`visynth.core.balance.targets`.
        to: fill classes up to this many images, counting their reals.
        per_class: exactly this many synthetic images of each class, or of each class named; overrules ``balance``.
        classes: only these; by default all that the generator makes.
        counts: real images per class; by default those of the generator's training members.
        seed: of the whole set; other seeds give other images.
        options: sampler options.
        encoding: ``"png"`` or ``"tiff"``; by default PNG where it can hold the channels.
        threads: torch threads while sampling; part of what the bytes depend on.
        shard_size: images committed together.
        purpose: ``"looking"`` for a set that WithSynthetic is to refuse.
        format: ``"folders"`` (what visynth, torchvision and Hugging Face's ``imagefolder`` read), ``"webdataset"`` or
            ``"parquet"`` (Hugging Face's own layout).
        attempts: draws of an image that cannot be used (not finite, of one colour, refused by a filter) until it counts
            as failed.
        filters: registered names of filters that refuse images, for instance ``"near_duplicates"``.

    Raises:
        UsageError: unknown classes or encoding, or nothing to render.
    """
    chosen = list(classes) if classes is not None else list(generator.classes)
    unknown = [name for name in chosen if name not in generator.classes]
    if unknown:
        raise UsageError(f"classes {choices(unknown)} are not in the generator; it makes {choices(generator.classes)}.")
    if per_class is not None:
        wanted = dict(per_class) if isinstance(per_class, Mapping) else dict.fromkeys(chosen, per_class)
        targets = balancing.targets(wanted, dict.fromkeys(generator.classes, 0))
    else:
        reals = dict(counts) if counts is not None else real_counts(generator)
        targets = {name: n for name, n in balancing.targets(balance, reals, to=to).items() if name in chosen}
    own = ("png" if generator.spec.channels in (1, 3, 4) else "tiff") if encoding is None else encoding
    if own not in ("png", "tiff"):
        raise UsageError(f"encoding must be 'png' or 'tiff', but got {own!r}.")
    if own == "png" and generator.spec.channels not in (1, 3, 4):
        raise UsageError(f"PNG holds 1, 3 or 4 channels, the generator makes {generator.spec.channels}: use tiff.")
    return RenderPlan(
        generator=generator.digest,
        kind=generator.spec.kind,
        classes=generator.classes,
        targets={name: int(targets.get(name, 0)) for name in generator.classes},
        seed=seed,
        options=json.loads(canonical_json(dict(options or {}))),  # as the stored plan has them: tuples are lists there
        encoding=own,
        micro_batch=generator.spec.micro_batch,
        threads=threads,
        shard_size=shard_size,
        purpose=purpose,
        format=format,
        attempts=attempts,
        filters={name: own.digest for name, own in make_filters(generator, filters).items()},
    )


def real_counts(generator: Generator) -> dict[str, int]:
    """Training images per class, from the generator's members; classes that it cannot make count for the majority."""
    labels = [m.label for m in generator.members if m.split == "train"]
    return {name: labels.count(name) for name in sorted({*labels, *generator.classes})}


def render_set(
    generator: Generator,
    plan: RenderPlan,
    out: str | Path,
    *,
    engine: Engine | None = None,
    progress: RenderProgress | None = None,
    ahead: int = AHEAD,
) -> Renders:
    """Render a plan into ``out``, or finish it there.

    Args:
        generator: must be the plan's.
        plan: from :func:`make_plan`.
        out: the folder; it must not hold anything else.
        engine: :class:`Here` (the default), or :class:`visynth.render.workers.Workers` for several processes. It does not
            change a byte.
        progress: called after each shard with done, total, images per second, seconds left and counts.
        ahead: micro-batches sampled ahead of the encoders. It does not change a byte.

    Raises:
        ConflictError: the folder holds another plan's work, or files that are not ours.
        DataError: images could not be made in ``plan.attempts`` draws.
        OutputError: it cannot be written.
    """
    if plan.generator != generator.digest:
        raise UsageError("the plan belongs to another generator: make a plan with this one.")
    render(ImageMaker(generator, plan, ahead), DiskStage(out), engine=engine, progress=progress)
    return read_renders(out)
