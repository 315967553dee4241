"""Commands that render: sets of images, and images to look at."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING, Any, Literal

from visynth.commands.printing import render_progress
from visynth.core.errors import UsageError

if TYPE_CHECKING:
    from visynth.render.run import Slice


def render(
    generator: str,
    out: str,
    balance: Literal["minority", "not majority", "all"] = "not majority",
    to: int | None = None,
    per_class: int | None = None,
    classes: list[str] | None = None,
    seed: int = 0,
    format: Literal["folders", "webdataset", "parquet"] = "folders",
    encoding: Literal["png", "tiff"] | None = None,
    filters: list[str] | None = None,
    attempts: int = 4,
    shard_size: int | None = None,
    options: dict[str, Any] | None = None,
    workers: int = 0,
    encoders: int | None = None,
    batch_size: int = 64,
    engine: Literal["local", "ray"] = "local",
    shard_index: int | None = None,
    shard_count: int | None = None,
    device: str = "cpu",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Render a class-balanced set of images, or of rows as Parquet shards. Interrupted, the same command goes on and ends
    with the same bytes; any number of workers may run it at once.

    Args:
        generator: generator folder, hub id, or an object store's address (s3://bucket/generator).
        out: folder for the images (work in progress lies in OUT.work), or an object store's address.
        balance: minority, not majority or all: which classes to fill up to the majority (counting their real images).
        to: fill up to this many images instead of up to the majority.
        per_class: exactly this many of each class, instead of balance.
        classes: only these classes.
        seed: of the whole set.
        format: class folders, WebDataset tar shards, or Parquet shards with image bytes. Of images alone.
        encoding: png or tiff; png where it can hold the channels. Of images alone, like options and filters.
        filters: refuse images and draw them again, e.g. near_duplicates (of training images).
        attempts: draws of an image that cannot be used, until it counts as failed.
        shard_size: images or rows committed together.
        options: sampler options of the generator.
        workers: processes that render; 0 renders in this one. They do not change a byte.
        encoders: encoding threads of each, by default none on a CPU and two beside a GPU; they do not change a byte.
        batch_size: images sampled ahead of the encoders; it does not change a byte.
        engine: local, or ray for actors on a Ray cluster (OUT must be seen from all of its nodes).
        shard_index: render the shards of this worker alone, of SHARD_COUNT; under torchrun its rank.
        shard_count: workers that share the set without knowing one another.
        device: where the generator runs; cuda is dealt out over workers and local ranks.
        json: print the result as JSON.
        quiet: no progress.
    """
    from visynth.core.loading import load_generator
    from visynth.generators.base import Generator
    from visynth.render.images import ImageMaker
    from visynth.render.run import make_plan
    from visynth.render.run import render as run
    from visynth.render.stages import open_stage

    if batch_size < 1 or workers < 0 or (encoders or 0) < 0:
        raise UsageError(
            "batch_size must be at least 1, workers and encoders at least 0, but got "
            f"{batch_size}, {workers} and {encoders}."
        )
    part = _slice(shard_index, shard_count)
    made = load_generator(generator, device=device_here(device))
    wanted: dict[str, Any] = {"balance": balance, "to": to, "per_class": per_class, "classes": classes, "seed": seed}
    wanted |= {} if shard_size is None else {"shard_size": shard_size}
    if isinstance(made, Generator):
        plan = make_plan(
            made,
            **wanted,
            options=options,
            encoding=encoding,
            format=format,
            attempts=attempts,
            filters=filters or (),
        )
        maker: Any = ImageMaker(made, plan, ahead=-(-batch_size // plan.micro_batch))
    else:
        if encoding or options or filters or format != "folders":
            raise UsageError(
                "format, encoding, options and filters are of images; this generator makes rows of a table."
            )
        maker = _table_maker(made, wanted)
    runner = engine_of(engine, generator, workers, encoders, device)
    state = run(maker, open_stage(out), engine=runner, part=part, progress=None if quiet else render_progress)
    return print_state(out, state, maker.plan, json)


def _slice(index: int | None, count: int | None) -> Slice:
    """The shards of this worker: as told, else by torchrun's rank."""
    from visynth.core import distributed
    from visynth.render.run import Slice

    if (index is None) != (count is None):
        raise UsageError("give shard_index and shard_count together.")
    if index is None or count is None:
        return Slice(distributed.rank(), distributed.world_size())
    return Slice(index, count)


def device_here(device: str) -> str:
    import os

    from visynth.render.workers import device_of

    return device_of(device, int(os.environ.get("LOCAL_RANK", 0)))


def _table_maker(made: Any, wanted: dict[str, Any]) -> Any:
    from visynth.tabular.render import TableMaker, make_table_plan

    return TableMaker(made, make_table_plan(made, **wanted))


def engine_of(engine: str, generator: str, workers: int, encoders: int | None, device: str) -> Any:
    from visynth.render.run import Here
    from visynth.render.workers import Workers

    if engine == "ray":
        from visynth.render.ray_actors import Ray

        return Ray(generator, max(workers, 1), device, encoders)
    return Here(encoders) if workers == 0 else Workers(generator, workers, device, encoders)


def print_state(out: str, state: Any, plan: Any, json: bool) -> int:
    summary = {"out": out, **state.to_json(), "plan": plan.hash}
    if state.finished:
        text = f"{out}: {dict(state.counts)} in {state.planned} shards; root {state.root}"
    else:
        text = (
            f"{out}: {len(state.committed)} of {state.planned} shards are there, {state.missing} are other workers' or "
            "not rendered yet; whoever commits the last one finishes the set"
        )
    print(dumps(summary) if json else text)
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
