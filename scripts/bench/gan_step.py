"""Speed of an adversarial step and of sampling, with and without each lever, in one run.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/gan_step.py

The setting of the public implementation's figures (16.5 images/s in training, 91 in sampling, on two shared cores): 32
px, 1 channel, channel_base 2048, channel_max 128, w 128, 2 mapping layers, batch 16, one discriminator and one
generator step. Forms of a convolution: activations scaled or grouped weights; resampling by a separable filter, by
pooling, or folded into a 6x6 kernel. Each variant runs in a process of its own; medians of rounds in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

VARIANTS = {
    "visynth": {},
    "grouped weights": {"grouped": True},
    "filter by pooling": {"filter": "pooling"},
    "filter folded into 6x6": {"filter": "folded"},
    "contiguous layout": {"channels_last": False},
    "grouped weights, contiguous (public form)": {"grouped": True, "channels_last": False},
    "torch.compile": {"compile": True},
    "with R1 in every step": {"r1_every": 1},
    "with ADA at p = 0.3": {"augment_p": 0.3},
}
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", nargs="*", default=[], help="variants to leave out; torch.compile takes minutes")
    told = parser.parse_args()
    if told.variant is not None:
        print(json.dumps(measure(**json.loads(told.variant))))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for turn in range(told.rounds):
        for name, options in list(VARIANTS.items())[:: 1 if turn % 2 else -1]:
            if name in told.without:
                continue
            words = [sys.executable, __file__, "--variant", json.dumps(options)]
            run = subprocess.run(
                words, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
            )
            if run.returncode:
                print(f"{name}: {run.stderr.strip().splitlines()[-1] if run.stderr else 'failed'}", file=sys.stderr)
                continue
            found[name].append(json.loads(run.stdout.splitlines()[-1]))
    print("| variant | images/s in training | images/s in sampling | peak memory, MB |\n|---|---|---|---|")
    for name, rows in found.items():
        if rows:
            middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            print(f"| {name} | {middle['train']:.1f} | {middle['sample']:.1f} | {middle['memory']:.0f} |")


def measure(
    grouped: bool = False, filter: str = "separable", channels_last: bool = True, compile: bool = False, **module: Any
) -> dict[str, float]:
    import torch

    from visynth.lightning_modules import StyleGAN2
    from visynth.lightning_modules.facts import Facts
    from visynth.lightning_modules.gan_step import Micro
    from visynth.networks import stylegan2

    if grouped:
        stylegan2.modulated_conv = with_grouped_weights
    if filter != "separable":
        use_filter(filter)
    own = StyleGAN2(
        base=2048, most=128, z_dim=128, w_dim=128, ada_target=None, **{"gamma": 0.0, "augment_p": 0.0, **module}
        | ({"gamma": 0.0064} if "r1_every" in module else {})
    )  # fmt: skip
    own.build(Facts(("a", "b"), (100, 100), 1, (32, 32), "uint8", (0.0,), 0.5))
    if not channels_last:
        for part in (own.gan.generator, own.gan.discriminator):
            part.to(memory_format=torch.contiguous_format)
    if compile:
        own.gan.generator.synthesis = torch.compile(own.gan.generator.synthesis)
        own.gan.discriminator = torch.compile(own.gan.discriminator)
    optimizers = own.configure_optimizers()
    own.gan.images_a_step = BATCH
    real = torch.from_numpy(np.random.default_rng(0).random((BATCH, 1, 32, 32), np.float32)) * 2 - 1
    labels = torch.arange(BATCH) % 2

    def step(number: int) -> None:
        own.gan.run([Micro(real, labels, list(range(number * BATCH, (number + 1) * BATCH)))], *optimizers)
        own.images_seen += BATCH
        own.gan.average(int(own.images_seen))
        own.gan.adjust()
        own.gan.steps_done += 1

    generator = own.generator()

    def sample(number: int) -> None:
        generator.sample(range(number * BATCH, (number + 1) * BATCH), [0] * BATCH)

    rates = {"train": BATCH * per_second(step, 3, 25), "sample": BATCH * per_second(sample, 2, 20)}
    return {**rates, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def per_second(work: Callable[[int], None], warm: int, count: int) -> float:
    for number in range(warm):
        work(number)
    started = time.perf_counter()
    for number in range(count):
        work(warm + number)
    return count / (time.perf_counter() - started)


def with_grouped_weights(x: Any, weight: Any, style: Any, demodulate: bool = True, up: bool = False) -> Any:
    """Each sample convolved with weights of its own."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    from visynth.networks import resample

    count, inputs, height, width = x.shape
    own = weight[None] * style[:, None, :, None, None]
    if demodulate:
        own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    flat = x.reshape(1, count * inputs, height, width)
    if up:
        spread = own.transpose(1, 2).reshape(count * inputs, -1, *weight.shape[2:])
        wide = F.conv_transpose2d(flat, spread, stride=2, groups=count)
        return resample.blur(wide.reshape(count, -1, *wide.shape[2:]), (1, 1)) * 4
    made = F.conv2d(flat, own.flatten(0, 1), padding=weight.shape[2] // 2, groups=count)
    return torch.reshape(made, (count, -1, height, width))


def use_filter(way: str) -> None:
    """Other forms of the same resampling."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    from visynth.networks import layers, resample, stylegan2

    if way == "pooling":  # [1, 3, 3, 1] is three means of two in a row
        mean = F.avg_pool2d
        resample.blur = lambda x, pad: mean(mean(mean(F.pad(x, (pad[0], pad[1]) * 2), 2, 1), 2, 1), 2, 1)
        resample.downsample = lambda x: mean(mean(mean(F.pad(x, (1, 1, 1, 1)), 2, 1), 2, 1), 2, 2)
        return
    taps = torch.tensor(resample.TAPS)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2

    def full(weight: Any) -> Any:
        """The 3x3 kernel convolved with the filter: 6x6."""
        flat = F.conv2d(F.pad(weight.flatten(0, 1)[:, None], (3, 3, 3, 3)), kernel[None, None].to(weight.dtype))
        return flat.reshape(*weight.shape[:2], *flat.shape[2:])

    def up(x: Any, weight: Any) -> Any:
        return F.conv_transpose2d(x, full(weight).transpose(0, 1) * 4, stride=2, padding=2)

    original = layers.conv_down

    def down(x: Any, weight: Any) -> Any:
        return F.conv2d(x, full(weight), stride=2, padding=2) if weight.shape[2] == 3 else original(x, weight)

    stylegan2.conv_up, layers.conv_down = up, down


if __name__ == "__main__":
    main()
