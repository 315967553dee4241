"""Commands that render: sets of images, and images to look at."""

from __future__ import annotations

from json import dumps
from typing import Any, Literal

from visynth.commands.options import DataOptions
from visynth.commands.printing import printer, render_progress
from visynth.core.errors import UsageError


def render(
    generator: str,
    out: str,
    balance: Literal["minority", "not majority", "all"] = "not majority",
    to: int | None = None,
    per_class: int | None = None,
    classes: list[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 2,
    encoding: Literal["png", "tiff"] | None = None,
    options: dict[str, Any] | None = None,
    device: str = "cpu",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Render a class-balanced set of images, or of rows as Parquet shards. Interrupted, the same command goes on and ends
    with the same bytes.

    Args:
        generator: generator folder, or a hub id.
        out: folder for the images; work in progress lies in OUT.work.
        balance: minority, not majority or all: which classes to fill up to the majority (counting their real images).
        to: fill up to this many images instead of up to the majority.
        per_class: exactly this many of each class, instead of balance.
        classes: only these classes.
        seed: of the whole set.
        batch_size: images sampled ahead of the encoders; it does not change a byte.
        workers: encoding threads; they do not change a byte.
        encoding: png or tiff; png where it can hold the channels. Of images alone, like batch_size and options.
        options: sampler options of the generator.
        device: where the generator runs.
        json: print the result as JSON.
        quiet: no progress.
    """
    from visynth.core.loading import load_generator
    from visynth.generators.base import Generator
    from visynth.render.run import make_plan, render_set

    if batch_size < 1 or workers < 0:
        raise UsageError(f"batch_size must be at least 1 and workers at least 0, but got {batch_size} and {workers}.")
    made = load_generator(generator, device=device)
    if not isinstance(made, Generator):
        if encoding or options:
            raise UsageError("encoding and options are of images; this generator makes rows of a table.")
        wanted = {"balance": balance, "to": to, "per_class": per_class, "classes": classes, "seed": seed}
        return _render_table(made, generator, out, wanted, workers, json, quiet)
    plan = make_plan(
        made,
        balance=balance,
        to=to,
        per_class=per_class,
        classes=classes,
        seed=seed,
        options=options,
        encoding=encoding,
    )
    queue = -(-batch_size // plan.micro_batch)
    renders = render_set(made, plan, out, workers=workers, queue=queue, progress=None if quiet else render_progress)
    summary = {"out": out, "counts": renders.counts(), "root": renders.root(), "plan": plan.hash}
    print(dumps(summary) if json else f"{out}: {renders.counts()}; root {summary['root']}")
    return 0


def _render_table(
    made: Any, folder: str, out: str, wanted: dict[str, Any], workers: int, json: bool, quiet: bool
) -> int:
    from visynth.tabular.render import make_table_plan, render_table

    plan = make_table_plan(made, **wanted)
    render_table(made, plan, out, folder=folder, workers=workers, progress=printer(quiet))
    counts = {name: count for name, count in plan.targets.items() if count}
    summary = {"out": out, "counts": counts, "shards": plan.shards}
    print(dumps(summary) if json else f"{out}: {counts} rows in {plan.shards} Parquet shards")
    return 0


def renders_verify(folder: str) -> int:
    """Check every file of a rendered set against its manifest.

    Args:
        folder: what 'visynth render' wrote.
    """
    from visynth.core.manifest import read_renders

    renders = read_renders(folder, verify=True)
    print(f"{folder}: {len(renders.records)} images as rendered; root {renders.root()}")
    return 0


def renders_score(
    folder: str,
    data: DataOptions,
    cache: bool = True,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Score every rendered image (does it look like its class, is it a copy), for WithSynthetic's keep=.

    Args:
        folder: what 'visynth render' wrote; scores.jsonl is written into it.
        data: the real images, and how to read them.
        cache: keep features of real images on disk.
        json: print the summary as JSON.
        quiet: no progress.
    """
    from visynth.core.manifest import read_renders
    from visynth.jobs.scores import score_renders

    renders = read_renders(folder)
    images = data.read()
    scores = score_renders(images, renders, cache=cache, progress=printer(quiet))
    summary = {}
    for name, count in renders.counts().items():
        own = [scores.images[record.file_name] for record in renders.records if record.label == name]
        if own:
            agreement = sum(score["agreement"] for score in own) / count
            summary[name] = {
                "images": count,
                "agreement": round(agreement, 3),
                "near_duplicates": sum(s["copy"] for s in own),
            }
            summary[name] |= {"real_agreement": round(scores.real[name], 3)} if name in scores.real else {}
    if json:
        print(dumps(summary))
    for name, row in {} if json else summary.items():
        real = f" (real images: {row['real_agreement']:.2f})" if "real_agreement" in row else ""
        print(
            f"{name}: {row['images']} images, mean agreement {row['agreement']:.2f}{real}, {row['near_duplicates']} near-duplicates"
        )
    return 0


def renders_review(
    folder: str, accept: list[str] | None = None, reject: list[str] | None = None, reviewer: str = ""
) -> int:
    """Note a reviewer's decisions on rendered images; what is rejected is not mixed in.

    Args:
        folder: what 'visynth render' wrote; the decisions are added to review.jsonl in it.
        accept: files to accept, as the manifest names them (crack/000001.png).
        reject: files to reject.
        reviewer: who decides.
    """
    from visynth.core.manifest import read_renders, write_reviews

    decisions = {**dict.fromkeys(accept or [], "accept"), **dict.fromkeys(reject or [], "reject")}
    counts = write_reviews(read_renders(folder), decisions, reviewer)
    print(f"{folder}: {counts['accept']} accepted, {counts['reject']} rejected, {counts['open']} without a decision")
    return 0


def renders_export(
    folder: str,
    format: Literal["coco", "yolo", "voc"],
    out: str,
    copy: bool = False,
    whole_image: bool = False,
    keep: dict[str, Any] | None = None,
) -> int:
    """Write boxes and masks of a rendered set for a detector.

    Args:
        folder: what 'visynth render' wrote.
        format: coco, yolo or voc.
        out: a new folder.
        copy: copy the images instead of linking them.
        whole_image: for sets without boxes: one box around each whole image.
        keep: which images count, e.g. '{review: accepted}'; by default all but those that a reviewer rejected.
    """
    from visynth.core.manifest import read_renders
    from visynth.render.exports import export

    print(export(read_renders(folder), format, out, copy=copy, whole_image=whole_image, keep=keep))
    return 0


def explore(
    generator: str,
    out: str = "explore",
    classes: list[str] | None = None,
    seeds: str = "0-15",
    frames: int = 24,
    side: int = 128,
    animation: Literal["webp", "gif"] = "webp",
    device: str = "cpu",
) -> int:
    """Look at a generator: a sheet of seeds, and for GANs truncation, ways between images and an animation.

    Args:
        generator: generator folder, or a hub id.
        out: folder for the images.
        classes: only these classes.
        seeds: of the sheet, like 0-15 or 3,8,20.
        frames: from one seed to the next in the animation.
        side: of each image, in pixels.
        animation: webp or gif.
        device: where the generator runs.
    """
    from visynth.core.seeds import parse_range
    from visynth.generators.base import load_generator
    from visynth.jobs.explore import explore as run

    for path in run(load_generator(generator, device), out, classes, parse_range(seeds), frames, side, animation):
        print(path)
    return 0
