"""What wrapping a DataModule costs: batches/s plain and wrapped, in turn, medians of the ratios over many rounds.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/mixing.py loader     # reading alone, no training: the worst case
    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/mixing.py training   # a ResNet-18 under a Trainer, loaders
    with a worker

Real and synthetic images are PNG files of one size behind one transform, so a synthetic sample costs what a real one
costs, and the difference is the wrapper's own. ``batches`` reads the real rows that it replaces as well, and ``online``
makes its rows while the training waits: the last column takes the generator's own time, measured alone in the same
round, off.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import visynth
from visynth.data.demo import write_samples
from visynth.data.reading import read_images
from visynth.jobs.make import fit_compose
from visynth.render.run import make_plan, render_set

BATCH, SHARE = 16, 0.3
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Tiles(pytorch_lightning.LightningDataModule):
    def __init__(self, root: Path, workers: int) -> None:
        super().__init__()
        self.root, self.workers = root, workers

    def train_dataloader(self) -> DataLoader[Any]:
        steps = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor(), transforms.Normalize(0.5, 0.2)])
        return DataLoader(ImageFolder(self.root, steps), BATCH, shuffle=True, num_workers=self.workers, drop_last=True)


class ResNet(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = torchvision.models.resnet18(num_classes=4)
        self.times: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def on_train_batch_end(self, *args: Any) -> None:
        self.times.append(time.perf_counter())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def reading(data: pytorch_lightning.LightningDataModule) -> float:
    """Batches/s of the loader alone over four epochs."""
    loader = data.train_dataloader()
    started = time.perf_counter()
    count = sum(1 for _ in range(4) for _ in loader)
    return count / (time.perf_counter() - started)


def training(data: pytorch_lightning.LightningDataModule) -> float:
    """Batches/s by the median step of a training of five epochs; the first two steps of each, where workers start, are
    left out."""
    module, epochs = ResNet(), 5
    torch.manual_seed(0)
    pytorch_lightning.Trainer(max_epochs=epochs, accelerator="cpu", **QUIET).fit(module, data)
    length = len(module.times) // epochs
    steps = [b - a for n, (a, b) in enumerate(itertools.pairwise(module.times), 1) if n % length > 2]
    return 1 / statistics.median(steps)


def seconds_made(generator: Any, count: int) -> float:
    """Seconds that the generator alone needs for a batch's synthetic rows."""
    labels = [generator.classes.index("spot")] * count
    generator.draw(list(range(count)), labels)
    started = time.perf_counter()
    for turn in range(10):
        generator.draw([turn * count + n for n in range(count)], labels)
    return (time.perf_counter() - started) / 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["loader", "training"])
    parser.add_argument("--rounds", type=int, default=0)
    told = parser.parse_args()
    rate: Callable[..., float] = reading if told.what == "loader" else training
    rounds = told.rounds or (20 if told.what == "loader" else 5)
    workers = 0 if told.what == "loader" else 1
    with tempfile.TemporaryDirectory() as folder:
        root = write_samples(Path(folder) / "set")
        images = read_images(root / "images", masks=root / "masks", groups=root / "groups.csv")
        generator = fit_compose(images, Path(folder) / "generator").generator
        renders = render_set(generator, make_plan(generator, per_class=60), Path(folder) / "renders").folder
        tiles, mixed = Tiles(root / "images", workers), {"share": SHARE, "spread": 0.0, "leak_guard": False}
        ways = {
            "plain": tiles,
            "share=0": visynth.WithSynthetic(tiles, renders, share=0),
            "samples": visynth.WithSynthetic(tiles, renders, backend="samples", **mixed),
        }
        if told.what == "training":
            ways["batches"] = visynth.WithSynthetic(tiles, renders, backend="batches", **mixed)
            ways["online"] = visynth.WithSynthetic(tiles, generator, balance={"spot": 100}, **mixed)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        own: list[float] = []
        for turn in range(rounds):
            # Another one first each time, so that a machine that gets slower or faster favours nobody.
            names = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
            for name in names:
                rates[name].append(rate(ways[name]))
            own.append(seconds_made(generator, round(SHARE * BATCH)))
        for name, values in rates.items():
            print(f"{name:<8} {statistics.median(values):6.2f} batches/s, {against(values, rates['plain'])}")
        if "online" in rates:
            less = [1 / (1 / value - seconds) for value, seconds in zip(rates["online"], own, strict=True)]
            print(
                f"online without the generator's own {statistics.median(own) * 1000:.0f} ms a batch: "
                f"{against(less, rates['plain'])}"
            )


def against(values: list[float], plain: list[float]) -> str:
    ratios = [value / other for value, other in zip(values, plain, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return (
        f"against plain in the same round {statistics.median(ratios) - 1:+.1%} (quartiles {low - 1:+.1%} to "
        f"{high - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
