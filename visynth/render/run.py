"""The render loop: planned shards minus committed shards, each made apart and committed by one rename.

All work in progress lies in ``DIR.work/``, on the same filesystem: ``plan.json`` and one folder a shard. A shard is
made in ``tmp.<shard>.<host>.<pid>`` and renamed to ``shard.<number>`` with its records inside, so that a shard either
is there whole or is not there. When all are, their images move to ``DIR/<class>/`` and ``metadata.jsonl`` is written
last. Killed at any moment, the same command goes on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visynth.core import balance as balancing
from visynth.core import members as members_file
from visynth.core.balance import Balance
from visynth.core.errors import ConflictError, IntegrityError, OutputError, UsageError, VisynthError, choices, listing
from visynth.core.files import alive, canonical_json, ensure_writable, hash_file, host, sync_folder, write_json
from visynth.core.folders import RENDERS, strangers
from visynth.core.manifest import (
    MEMBERS,
    METADATA,
    PLAN,
    Record,
    Renders,
    encode_mask,
    read_records,
    read_renders,
    write_records,
)
from visynth.render.plan import SHARD, Planned, RenderPlan
from visynth.render.writers import write_image

if TYPE_CHECKING:
    from visynth.generators.base import Generator

RenderProgress = Callable[[Mapping[str, Any]], None]


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
    workers: int = 2,
    queue: int = 4,
    progress: RenderProgress | None = None,
) -> Renders:
    """Render a plan into ``out``, or finish it there.

    Args:
        generator: must be the plan's.
        plan: from :func:`make_plan`.
        out: the folder; it must not hold anything else.
        workers: encoding threads; 0 encodes in this one. They do not change a byte.
        queue: micro-batches sampled ahead of the encoders. It does not change a byte.
        progress: called after each shard with done, total, images per second, seconds left and counts.

    Raises:
        ConflictError: the folder holds another plan's work, or files that are not ours.
        OutputError: it cannot be written.
    """
    out = Path(out)
    work = out.with_name(out.name + ".work")
    if plan.generator != generator.digest:
        raise UsageError("the plan belongs to another generator: make a plan with this one.")
    if (out / METADATA).is_file():
        _same_plan(json.loads((out / PLAN).read_text(encoding="utf-8")), plan, out)
        _repair(generator, plan, out, work, workers, queue)
        _remove_work(work)
        return read_renders(out)
    _claim(out, work, plan)
    _sweep(work)
    try:
        _render_shards(generator, plan, work, workers, queue, progress)
        return _finish(generator, plan, out, work)
    except OSError as error:
        if isinstance(error, VisynthError):
            raise
        raise OutputError(
            f"cannot write {out}: {error.strerror or error}. What is committed is kept: run the same command again."
        ) from error


def _repair(generator: Generator, plan: RenderPlan, out: Path, work: Path, workers: int, queue: int) -> None:
    """Render again the files of a finished set that are missing or were altered; what was altered is set aside in
    ``DIR.damaged``.

    Raises:
        IntegrityError: they do not come out as they were: another machine or other versions.
    """
    records = {r.file_name: r for r in read_records(out)}
    wrong = [name for name, r in records.items() if not (out / name).is_file() or hash_file(out / name) != r.sha256]
    if not wrong:
        return
    warnings.warn(
        f"{out}: {len(wrong)} files were missing or altered and are rendered again ({choices(wrong[:3])})", stacklevel=3
    )
    ensure_writable(work)
    write_json(work / PLAN, plan.to_json())
    numbers = sorted({int(Path(name).stem) // plan.shard_size for name in wrong})
    for number in numbers:
        if not _shard(work, number).is_dir():
            _render_shard(generator, plan, work, number, None, queue)
    unlike = [
        name
        for name in wrong
        if hash_file(_shard(work, int(Path(name).stem) // plan.shard_size) / name) != records[name].sha256
    ]
    if unlike:
        raise IntegrityError(
            f"{out}: {len(unlike)} damaged files do not come out as they were ({choices(unlike[:3])}): this machine or "
            "its versions differ from those that "
            "rendered the set. Repair it there, or render a new one."
        )
    for name in wrong:
        if (out / name).is_file():
            aside = out.with_name(out.name + ".damaged") / name
            aside.parent.mkdir(parents=True, exist_ok=True)
            names = (aside.with_name(aside.name + (f".{k}" if k else "")) for k in itertools.count())
            aside = next(path for path in names if not path.exists())
            os.replace(out / name, aside)
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(_shard(work, int(Path(name).stem) // plan.shard_size) / name, out / name)
    for folder in {(out / name).parent for name in wrong}:
        sync_folder(folder)


def _claim(out: Path, work: Path, plan: RenderPlan) -> None:
    """Both folders exist and belong to this plan."""
    ensure_writable(out.parent)
    ours = _is_work(work)
    lost = [] if ours or not work.exists() else strangers(work)
    if not (ours and (out / PLAN).is_file()):
        lost += strangers(out)
    if lost:
        raise OutputError(
            f"{out} (or {work.name} beside it, where work in progress lies) holds {len(lost)} files that visynth did "
            "not write: choose an empty "
            f"folder. Nothing was changed.\n{listing(lost)}"
        )
    ensure_writable(work)
    ensure_writable(out)
    if (work / PLAN).is_file():
        _same_plan(json.loads((work / PLAN).read_text(encoding="utf-8")), plan, out)
    else:
        write_json(work / PLAN, plan.to_json())


def _is_work(work: Path) -> bool:
    """Whether a folder is work in progress of ours."""
    try:
        return bool(json.loads((work / PLAN).read_text(encoding="utf-8")).get("schema") == RENDERS)
    except (OSError, ValueError, AttributeError):
        return False


def _remove_work(work: Path) -> None:
    """Remove what is ours of the work in progress; the folder stays where anything else lies in it."""
    if not _is_work(work):
        return
    for path in [*work.glob("shard.*"), *work.glob("tmp.*")]:
        shutil.rmtree(path, ignore_errors=True)
    (work / PLAN).unlink(missing_ok=True)
    with suppress(OSError):
        work.rmdir()


def _same_plan(stored: Mapping[str, Any], plan: RenderPlan, out: Path) -> None:
    ours = plan.to_json()
    if stored == ours:
        return
    differ = [
        f"{key}: {stored.get(key)!r} there, {ours.get(key)!r} here"
        for key in sorted({*stored, *ours})
        if stored.get(key) != ours.get(key)
    ]
    raise ConflictError(
        f"{out} holds another plan's images ({'; '.join(differ)}). Choose another folder, or delete this one."
    )


def _sweep(work: Path) -> None:
    """Remove unfinished shards of processes of this machine that are no more; another machine's may still be at
    work."""
    for folder in work.glob(f"tmp.*.{host()}.*"):
        pid = int(folder.name.rsplit(".", 1)[1])
        if pid == os.getpid() or not alive(pid):
            shutil.rmtree(folder, ignore_errors=True)


def _render_shards(
    generator: Generator, plan: RenderPlan, work: Path, workers: int, queue: int, progress: RenderProgress | None
) -> None:
    import torch

    pending = [s for s in range(plan.shards) if not _shard(work, s).is_dir()]
    if not pending:
        return
    before, started, made = torch.get_num_threads(), time.monotonic(), 0
    waiting = sum(plan.count(s) for s in pending)
    left = set(pending)
    done = Counter(plan.classes[i.label] for s in range(plan.shards) if s not in left for i in plan.shard(s))
    torch.set_num_threads(plan.threads)
    # OpenCV, zlib and fsync let other threads run; processes would run a script without a __main__ guard again.
    pool = ThreadPoolExecutor(workers, "visynth-encoder") if workers else None
    try:
        for shard in pending:
            _render_shard(generator, plan, work, shard, pool, queue)
            made += plan.count(shard)
            done.update(plan.classes[image.label] for image in plan.shard(shard))
            if progress:
                rate = made / max(time.monotonic() - started, 1e-9)
                progress(
                    {
                        "done": sum(done.values()),
                        "total": plan.total,
                        "images/s": rate,
                        "seconds left": (waiting - made) / rate,
                        "counts": {name: done[name] for name in plan.classes if plan.targets[name]},
                    }
                )
    finally:
        torch.set_num_threads(before)
        if pool:
            pool.shutdown(cancel_futures=True)


def _render_shard(
    generator: Generator, plan: RenderPlan, work: Path, number: int, pool: ThreadPoolExecutor | None, queue: int
) -> None:
    images = plan.shard(number)
    folder = work / f"tmp.{number:06d}.{host()}.{os.getpid()}"
    folder.mkdir()
    hashes: dict[int, Any] = {}
    rows: list[dict[str, Any]] = []
    for start in range(0, len(images), plan.micro_batch):
        batch = images[start : start + plan.micro_batch]
        samples = generator.sample([i.seed for i in batch], [i.label for i in batch], **plan.options)
        for place, image in enumerate(batch):
            pixels = samples.crop(place).permute(1, 2, 0).numpy()
            target = str(folder / file_name(plan, image))
            if pool is None:
                hashes[image.index] = write_image(target, pixels, plan.encoding, plan.kind)
            else:
                hashes[image.index] = pool.submit(write_image, target, pixels.copy(), plan.encoding, plan.kind)
            rows.append(_row(plan, image, samples, place, pixels.shape))
        if pool is not None and start >= queue * plan.micro_batch:
            earlier = images[start - queue * plan.micro_batch]
            hashes[earlier.index].result()  # keeps at most ``queue`` micro-batches in memory
    lines = [
        Record(**row, sha256=h if isinstance(h := hashes[image.index], str) else h.result()).to_line()
        for row, image in zip(rows, images, strict=True)
    ]
    with open(folder / "records.jsonl", "w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    for inner in [*(p for p in folder.iterdir() if p.is_dir()), folder]:
        sync_folder(inner)
    try:
        os.rename(folder, _shard(work, number))  # the commit: it fails if another process was first
    except OSError:
        if not _shard(work, number).is_dir():
            raise
        shutil.rmtree(folder, ignore_errors=True)
    sync_folder(work)


def file_name(plan: RenderPlan, image: Planned) -> str:
    """``<class>/<index>.<ending>``; the index counts over the whole set."""
    return f"{plan.classes[image.label]}/{image.index:08d}.{'png' if plan.encoding == 'png' else 'tif'}"


def _row(plan: RenderPlan, image: Planned, samples: Any, place: int, shape: tuple[int, ...]) -> dict[str, Any]:
    height, width = shape[:2]
    mask = None if samples.masks is None else samples.masks[place, :height, :width].numpy()
    boxes = [] if samples.boxes is None else samples.boxes[place].tolist()
    return {
        "file_name": file_name(plan, image),
        "label": plan.classes[image.label],
        "seed": image.seed,
        "generator": plan.generator,
        "options": dict(plan.options),
        "parents": () if samples.parents is None else tuple(samples.parents[place]),
        "mask": None if mask is None or not mask.any() else encode_mask(mask),
        "boxes": tuple(tuple(box) for box in boxes),
        "height": height,
        "width": width,
    }


def _finish(generator: Generator, plan: RenderPlan, out: Path, work: Path) -> Renders:
    """Move the shards' images to their class folders, then write the manifest, then clear the work away."""
    records = []
    write_json(out / PLAN, plan.to_json())  # before the first image: it says whose they are
    for number in range(plan.shards):
        shard = _shard(work, number)
        for line in (shard / "records.jsonl").read_text(encoding="utf-8").splitlines():
            record = Record.from_json(json.loads(line))
            source, target = shard / record.file_name, out / record.file_name
            if source.is_file():  # else an earlier run moved it and was stopped after that
                target.parent.mkdir(exist_ok=True)
                os.replace(source, target)
            records.append(record)
    for folder in [p for p in out.iterdir() if p.is_dir()]:
        sync_folder(folder)
    members_file.write(out / MEMBERS, generator.members)
    write_records(out, records)
    _remove_work(work)
    return read_renders(out)


def _shard(work: Path, number: int) -> Path:
    return work / f"shard.{number:06d}"
