"""Renders on a Ray cluster: Ray Data actors, each with the generator in memory, over the same shards. Optional: ``ray``.

What is done is what is committed, never what Ray believes: its own checkpoints are not used, and a job that is started
again makes what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visynth.core.errors import MissingExtra, UsageError
from visynth.core.store import is_url
from visynth.render.run import Done, encoding_threads, render_shards
from visynth.render.shards import Maker, maker
from visynth.render.stage import Stage
from visynth.render.stages import open_stage


@dataclass(frozen=True)
class Ray:
    """Renders with Ray Data. Bytes are those of any other engine.

    Connects to the cluster that ``RAY_ADDRESS`` names, else starts one here, for this machine alone and without a dashboard
    (Ray asks nobody for a password).

    Args:
        generator: its folder or address, seen from every node.
        count: of actors.
        device: ``"cuda"`` gives every actor a GPU of its own.
        encoders: encoding threads of each; None: none on a CPU, else two.
    """

    generator: str | Path
    count: int = 2
    device: str = "cpu"
    encoders: int | None = None

    def run(self, maker: Maker, stage: Stage, pending: Sequence[tuple[int, int]]) -> Iterator[Done]:
        """Deal shards out; see :class:`visynth.render.run.Engine`.

        Raises:
            MissingExtra: Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("the engine 'ray' needs Ray Data: pip install 'visynth[ray]'.") from error
        if self.count < 1:
            raise UsageError(f"workers must be at least 1, but got {self.count}.")
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        items = [{"shard": number, "round": round_} for number, round_ in pending]
        # One block a shard: each is dealt out and reported by itself.
        data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_kwargs={
                "generator": str(self.generator) if is_url(self.generator) else str(Path(self.generator).absolute()),
                "out": stage.where if is_url(stage.where) else str(Path(stage.where).absolute()),
                "device": self.device,
                "encoders": self.encoders,
            },
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(self.count, len(items))),
            num_gpus=1 if self.device.startswith("cuda") else 0,
            num_cpus=0 if self.device.startswith("cuda") else 1,
            max_restarts=-1,
            max_task_retries=50,  # a shard that always ends its actor must not go on for ever
        )
        for row in data.iter_rows():
            number = int(row["shard"])
            yield Done(number, stage.record(number, int(row["round"]))["counts"])


class _Actor:
    """One actor: loads the generator once, then makes and commits the shards that it is given."""

    def __init__(self, generator: str, out: str, device: str, encoders: int | None) -> None:
        from visynth.core.loading import load_generator

        self.stage, self.encoders = open_stage(out), encoders
        self.maker = maker(load_generator(generator, device), self.stage.plan())

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        wanted = [(int(n), int(r)) for n, r in zip(batch["shard"], batch["round"], strict=True)]
        todo = [own for own in wanted if not self.stage.has(*own)]  # a call that is made again after a crash
        for _ in render_shards(self.maker, self.stage, todo, encoding_threads(self.encoders, self.maker)):
            pass
        return {"shard": batch["shard"], "round": batch["round"]}
