"""Rendering: images/s bare and end to end, by number of workers and format; what committing costs; memory by size.

    python scripts/bench/rendering.py speed --out speed.json
    python scripts/bench/rendering.py memory --out memory.json

``speed`` renders textures of the built-in samples at 128 px; ``memory`` renders up to 200,000 images of 16 px. Run it on an
idle machine: times are wall times.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from visynth.core import seeds as seeding
from visynth.generators.base import Generator, Samples, Spec
from visynth.render.images import ImageMaker
from visynth.render.run import Here, make_plan, render_set
from visynth.render.stage import DiskStage
from visynth.render.workers import Workers


class Noise(Generator):
    """Noise images: sampling costs next to nothing, so that all that is seen is the loop around it."""

    def __init__(self, side: int = 16) -> None:
        super().__init__(Spec("noise", {"side": side}, ("a", "b", "c"), 1, (side, side), micro_batch=16))
        self.side = side

    def _sample(self, seeds: Any, labels: Any, **options: Any) -> Samples:
        shape = (1, self.side, self.side)
        rows = [seeding.rng(s, "bench").integers(0, 256, shape, dtype="uint8") for s in seeds]
        return Samples(torch.stack([torch.from_numpy(row) for row in rows]))

    def weights(self) -> dict[str, torch.Tensor]:
        return {"nothing": torch.zeros(1)}

    @classmethod
    def build(cls, spec: Spec, weights: dict[str, torch.Tensor], device: Any) -> Noise:
        return cls(**spec.arguments)


def speed(count: int = 2000) -> dict[str, Any]:
    """Composition at 128 px: bare sampling, sampling with encoding, and everything, by engine and format."""
    from visynth.data.demo import write_samples
    from visynth.data.reading import read_images
    from visynth.jobs.make import fit_compose

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_samples(root / "set", per_class={"good": 120, "spot": 40, "stain": 40, "scratch": 40})
        images = read_images(root / "set/images", masks=root / "set/masks", groups=root / "set/groups.csv")
        generator = fit_compose(images, root / "generator").generator
        per_class = count // len(generator.classes)
        plan = make_plan(generator, per_class=per_class)
        torch.set_num_threads(1)
        begun = time.monotonic()
        for number in range(plan.shards):
            own = plan.shard(number)
            for start in range(0, len(own), plan.micro_batch):
                batch = own[start : start + plan.micro_batch]
                generator.sample([i.seed for i in batch], [i.label for i in batch])
        found["bare sampling, images/s"] = round(plan.total / (time.monotonic() - begun))
        found["side, px"] = list(generator.spec.size)
        for form in ("folders", "webdataset"):
            own = make_plan(generator, per_class=per_class, format=form)
            found[f"composition, {form}"] = shares(generator, own, root / f"commit-{form}")
        large = stylegan2(128)
        own = make_plan(large, per_class=64)
        found["StyleGAN2 at 128 px, folders"] = shares(large, own, root / "commit-stylegan2")
        engines = {
            "one process, no threads": Here(0),
            "one process, 2 encoding threads": Here(2),
            "2 worker processes": Workers(root / "generator", 2, encoders=0),
        }
        for form in ("folders", "webdataset", "parquet"):
            for name, engine in engines.items():
                own = make_plan(generator, per_class=6 * per_class, format=form)
                begun = time.monotonic()
                render_set(generator, own, root / f"{form}-{len(found)}", engine=engine)
                found[f"{form}, {name}, images/s"] = round(own.total / (time.monotonic() - begun))
    return found


def shares(generator: Generator, plan: Any, out: Path) -> dict[str, float]:
    """Seconds of sampling with encoding on one thread, and what commit, hash and metadata add to them, one after the other
    (in a render they overlap)."""
    from visynth.render.finish import finish

    maker, stage = ImageMaker(generator, plan), DiskStage(out)
    begun = time.monotonic()
    shards = [maker.make(number, 0, None)() for number in range(plan.shards)]
    made = time.monotonic() - begun
    stage.claim(maker)
    begun = time.monotonic()
    for shard in shards:
        stage.commit(shard, shard.record(plan))
    committed = time.monotonic() - begun
    begun = time.monotonic()
    finish(stage, plan)
    finished = time.monotonic() - begun
    return {
        "images/s": round(plan.total / made),
        "commit and hash %": round(100 * committed / made, 2),
        "manifest, root, moves %": round(100 * finished / made, 2),
    }


def stylegan2(side: int) -> Generator:
    """A StyleGAN2 with random weights: as slow as a trained one."""
    from visynth.generators.gan import StyleGAN2

    torch.manual_seed(0)
    spec = Spec("stylegan2", {"classes": 2}, ("a", "b"), 3, (side, side))
    return StyleGAN2(spec, StyleGAN2.network_class(side, 3, 2))


def memory() -> dict[str, Any]:
    """Peak memory of renders of 1,000 to 200,000 small images, each in a process of its own."""
    found = {}
    for count in (1_000, 20_000, 200_000):
        for form in ("webdataset", "folders"):
            ran = subprocess.run(
                [sys.executable, __file__, "one", "--count", str(count), "--format", form],
                capture_output=True,
                text=True,
                check=True,
            )
            found[f"{count} images, {form}"] = json.loads(ran.stdout.splitlines()[-1])
            print(count, form, found[f"{count} images, {form}"], flush=True)
    return found


def one(count: int, form: str) -> dict[str, Any]:
    """Render noise and tell the peak."""
    generator = Noise()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        plan = make_plan(generator, per_class=-(-count // 3), format=form, shard_size=256)
        render_set(generator, make_plan(generator, per_class=64), Path(scratch) / "warm")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        begun = time.monotonic()
        made = render_set(generator, plan, Path(scratch) / "r")
        seconds = time.monotonic() - begun
        assert len(made.records) == plan.total
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "images/s": round(plan.total / seconds),
        "peak MB": round(peak),
        "more than at the start, MB": round(peak - before),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("speed", "memory", "one"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--format", default="folders")
    args = parser.parse_args()
    jobs = {"speed": lambda: speed(args.count), "memory": memory, "one": lambda: one(args.count, args.format)}
    found = jobs[args.job]()
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
