"""What wrapping a DataModule costs: batches/s plain and wrapped, in turn, twenty times, medians of the ratios.

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/mixing.py

Both loaders read PNG files of one size through the same transform, so a synthetic sample costs what a real one costs,
and the difference is the wrapper's own.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import pytorch_lightning
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import visynth
from visynth.data.reading import read_images
from visynth.data.samples import write_samples
from visynth.fit import fit_compose
from visynth.render.run import make_plan, render_set

ROUNDS, EPOCHS = 20, 4


class Tiles(pytorch_lightning.LightningDataModule):
    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def train_dataloader(self) -> DataLoader:
        steps = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor(), transforms.Normalize(0.5, 0.2)])
        return DataLoader(ImageFolder(self.root, steps), 16, shuffle=True)


def batches_per_second(data: pytorch_lightning.LightningDataModule) -> float:
    loader = data.train_dataloader()
    started = time.perf_counter()
    count = sum(1 for _ in range(EPOCHS) for _ in loader)
    return count / (time.perf_counter() - started)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = write_samples(Path(folder) / "set")
        images = read_images(root / "images", masks=root / "masks", groups=root / "groups.csv")
        generator = fit_compose(images, Path(folder) / "generator").generator
        renders = render_set(generator, make_plan(generator, per_class=60), Path(folder) / "renders")
        ways = {
            "plain": Tiles(root / "images"),
            "share=0": visynth.WithSynthetic(Tiles(root / "images"), renders.folder, share=0),
            "share=0.3": visynth.WithSynthetic(Tiles(root / "images"), renders.folder, share=0.3, leak_guard=False),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS):
            # Forwards and backwards in turn, so that a machine that gets slower or faster favours nobody.
            for name in list(ways) if turn % 2 else reversed(list(ways)):
                rates[name].append(batches_per_second(ways[name]))
        for name, values in rates.items():
            ratios = [value / plain for value, plain in zip(values, rates["plain"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            print(
                f"{name:<10} {statistics.median(values):7.1f} batches/s, against plain in the same round "
                f"{statistics.median(ratios) - 1:+.1%} (quartiles {low - 1:+.1%} to {high - 1:+.1%})"
            )


if __name__ == "__main__":
    main()
