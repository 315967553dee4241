"""Somebody else's training under the plugin: MONAI's CacheDataset, dictionary transforms and network, wrapped with one
line.

    python3.11 -m venv /tmp/monai
    /tmp/monai/bin/pip install torch==2.14.1 torchvision==0.29.1
    /tmp/monai/bin/pip install -c constraints.txt . monai
    OMP_WAIT_POLICY=PASSIVE /tmp/monai/bin/python scripts/bench/monai_training.py

MONAI (Apache-2.0) reads photographs as ``[W, H]`` and gives MetaTensors, which its collation asks for. Without
``transform=`` that is refused; with the user's own steps every row of the training is a real or a rendered file under
them. The set is the built-in one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from monai.data import CacheDataset, DataLoader
from monai.networks.nets import DenseNet121
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Resized, ScaleIntensityRanged
from PIL import Image

import visynth
from visynth.core.errors import UsageError
from visynth.data.demo import write_samples
from visynth.data.reading import read_images
from visynth.jobs.make import fit_compose
from visynth.render.run import make_plan, render_set

CLASSES = ["good", "scratch", "spot", "stain"]
STEPS = [
    EnsureChannelFirstd("image", channel_dim="no_channel"),
    ScaleIntensityRanged("image", 0, 255, 0, 1),
    Resized("image", (32, 32)),
]
FULL, AFTER_READING = Compose([LoadImaged("image"), *STEPS]), Compose(STEPS)


class Tiles(pytorch_lightning.LightningDataModule):
    """The user's DataModule, as MONAI's Lightning tutorials write it."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.files = [
            {"image": str(f), "label": CLASSES.index(f.parent.name)} for f in sorted(root.rglob("*.png"), key=hash_free)
        ]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(CacheDataset(self.files, FULL, progress=False), batch_size=16, shuffle=True)


def hash_free(file: Path) -> str:
    """Classes mixed, in an order that does not depend on the process."""
    return file.stem[::-1]


class Net(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = DenseNet121(2, 1, len(CLASSES), init_features=8, growth_rate=4, block_config=(2, 2, 2, 2))
        self.rows: list[torch.Tensor] = []
        self.labels: list[int] = []
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.rows += list(torch.as_tensor(batch["image"]).as_subclass(torch.Tensor).clone())
        self.labels += batch["label"].tolist()
        loss = torch.nn.functional.cross_entropy(self.network(batch["image"]).as_subclass(torch.Tensor), batch["label"])
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def own_steps(image: Image.Image) -> torch.Tensor:
    """The user's steps after reading; MONAI's reader gives ``[W, H]``."""
    return AFTER_READING({"image": np.asarray(image.convert("L"), np.float32).T})["image"]


def train(data: pytorch_lightning.LightningDataModule) -> tuple[Net, float]:
    pytorch_lightning.seed_everything(0, verbose=False)
    net = Net()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pytorch_lightning.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet)
    pytorch_lightning.seed_everything(1, verbose=False)
    started = time.perf_counter()
    trainer.fit(net, data)
    return net, time.perf_counter() - started


def strangers(net: Net, files: list[Path]) -> int:
    """Rows that are no file under MONAI's own transform, or have another label than its folder."""
    made = torch.stack([FULL({"image": str(f)})["image"].as_subclass(torch.Tensor) for f in files]).flatten(1)
    wrong = 0
    for row, label in zip(net.rows, net.labels, strict=True):
        apart = (made - row.flatten()).abs().amax(1)
        best = int(apart.argmin())
        wrong += float(apart[best]) > 1e-4 or CLASSES.index(files[best].parent.name) != label
    return wrong


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = write_samples(Path(folder) / "set")
        images = read_images(root / "images", masks=root / "masks", groups=root / "groups.csv")
        fit_compose(images, Path(folder) / "generator")
        generator = visynth.load_generator(Path(folder) / "generator")
        renders = Path(folder) / "renders"
        render_set(generator, make_plan(generator, per_class=30), renders)
        files = [*sorted((root / "images").rglob("*.png")), *sorted(renders.rglob("*.png"))]
        told = {"classes": CLASSES, "share": 0.3, "balance": {"spot": 40, "scratch": 20}, "leak_guard": False}

        def tiles() -> Tiles:
            return Tiles(root / "images")

        ways = {
            "MONAI alone": tiles(),
            "share=0": visynth.WithSynthetic(tiles(), renders, **{**told, "share": 0}),
            "samples": visynth.WithSynthetic(tiles(), renders, transform=own_steps, **told),
            "batches": visynth.WithSynthetic(tiles(), renders, transform=own_steps, backend="batches", **told),
        }
        failed, plain = False, None
        for name, way in ways.items():
            net, took = train(way)
            plain = plain or net
            same, wrong = net.losses == plain.losses, strangers(net, files)
            print(
                f"{name:<12} steps {len(net.losses)}, labels {dict(sorted(Counter(net.labels).items()))}, rows that "
                "are no file or wrongly "
                f"labelled: {wrong} of {len(net.rows)}, same losses as alone: {same}, {took:.1f} s"
            )
            failed |= wrong > 0 or (name == "share=0" and not same)
        try:
            next(iter(visynth.WithSynthetic(tiles(), renders, **told).train_dataloader()))
            print("without transform=: not refused")
            failed = True
        except UsageError as error:
            print(f"without transform=: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
