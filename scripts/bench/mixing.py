"""What wrapping a DataModule costs: batches/s plain and wrapped, in turn, several times, medians side by side.

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

ROUNDS, EPOCHS = 9, 3


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
        for _ in range(ROUNDS):
            for name, data in ways.items():
                rates[name].append(batches_per_second(data))
        plain = statistics.median(rates["plain"])
        for name, values in rates.items():
            rate = statistics.median(values)
            print(
                f"{name:<10} {rate:7.1f} batches/s ({rate / plain - 1:+.1%}; rounds {min(values):.1f} to {max(values):.1f})"
            )


if __name__ == "__main__":
    main()
