"""Somebody else's training under the plugin: torchgeo's own DataModule, dataset and task, wrapped with one line.

    python3.11 -m venv /tmp/torchgeo
    /tmp/torchgeo/bin/pip install torch==2.14.1 torchvision==0.29.1
    /tmp/torchgeo/bin/pip install -c constraints.txt . torchgeo
    OMP_WAIT_POLICY=PASSIVE /tmp/torchgeo/bin/python scripts/bench/torchgeo_training.py

torchgeo (MIT) gives dict samples of float images in [0, 255], normalises on the device in
``on_after_batch_transfer``, and has its own LightningModule; nothing of it is changed here. The cells of ``bccd_cells``
stand in for satellite chips, in torchgeo's class for folders. The generator is a diffusion model of a minute's
training: this shows that the wrapping works, not what it is worth.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import lightning.pytorch
import pytorch_lightning
import torch
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoClassificationDataset
from torchgeo.trainers import ClassificationTask

import visynth
from visynth.lightning_modules import Diffusion
from visynth.lightning_modules.data import GeneratorData
from visynth.render.run import make_plan, render_set

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
CAP = {"RBC": 120, "WBC": 60, "Platelets": 20}
MINUTES = float(os.environ.get("MINUTES", "1"))


class Cells(NonGeoClassificationDataset):
    """The user's dataset, as torchgeo's EuroSAT is written: folders below each split."""

    def __init__(self, root: str, split: str = "train") -> None:
        super().__init__(os.path.join(root, split))


def copy_split(data: Path, root: Path) -> None:
    """Links to few cells for training and more for validation, apart by blood smear (the first part of a file's
    name)."""
    for folder in sorted(p for p in data.iterdir() if p.is_dir()):
        smears = sorted({smear_of(p) for p in folder.iterdir()})
        parts = {"train": set(smears[::2]), "val": set(smears[1::2])}
        for split, chosen in parts.items():
            target = root / split / folder.name
            target.mkdir(parents=True)
            files = [p for p in sorted(folder.iterdir()) if smear_of(p) in chosen]
            for path in files[: CAP[folder.name] if split == "train" else 100]:
                (target / path.name).symlink_to(path.resolve())


def smear_of(path: Path) -> str:
    return "_".join(path.stem.split("_")[:2])


class Seen(lightning.pytorch.Callback):
    """Labels of the training's batches, its losses, and the range of what the task gets after torchgeo's own
    normalisation."""

    def __init__(self) -> None:
        self.labels: Counter[int] = Counter()
        self.losses: list[float] = []
        self.range = [float("inf"), float("-inf")]

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.labels.update(batch["label"].tolist())
        self.losses.append(float(outputs["loss"]))
        self.range = [
            min(self.range[0], float(batch["image"].min())),
            max(self.range[1], float(batch["image"].max())),
        ]


def train(data) -> tuple[Seen, dict[str, float], dict[str, torch.Tensor], float]:
    lightning.pytorch.seed_everything(0, verbose=False)
    task, seen = ClassificationTask(model="resnet18", num_classes=3), Seen()
    trainer = lightning.pytorch.Trainer(max_epochs=4, accelerator="cpu", callbacks=[seen], **QUIET)
    started = time.perf_counter()
    trainer.fit(task, data)
    took = time.perf_counter() - started
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}
    return seen, metrics, task.state_dict(), took


def main() -> int:
    data = Path(os.environ.get("VISYNTH_DATA", "../shared/data")) / "bccd_cells"
    data = data / "images" if (data / "images").is_dir() else data
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_split(data, root / "cells")
        module = Diffusion(width=32)
        fit = pytorch_lightning.Trainer(max_time={"minutes": MINUTES}, accelerator="cpu", **QUIET)
        fit.fit(module, GeneratorData(root / "cells/train", size=32, batch_size=16))
        generator = visynth.load_generator(module.export(root / "generator"))
        render_set(generator, make_plan(generator, per_class=60), root / "renders")

        def cells() -> NonGeoDataModule:
            return NonGeoDataModule(Cells, batch_size=16, num_workers=2, root=str(root / "cells"))

        told = {"balance": {"Platelets": 100, "WBC": 60}, "share": 0.3}
        ways = {
            "torchgeo alone": cells(),
            "share=0": visynth.WithSynthetic(cells(), root / "renders", share=0),
            "samples": visynth.WithSynthetic(cells(), root / "renders", **told),
            "batches": visynth.WithSynthetic(cells(), root / "renders", backend="batches", **told),
            "online": visynth.WithSynthetic(cells(), root / "generator", **told),
        }
        plain = None
        for name, way in ways.items():
            seen, metrics, weights, took = train(way)
            plain = plain or (seen, weights)
            same = seen.losses == plain[0].losses and all(torch.equal(plain[1][k], v) for k, v in weights.items())
            print(
                f"{name:<15} steps {len(seen.losses)}, labels {dict(sorted(seen.labels.items()))}, range "
                f"{seen.range[0]:.3f} to "
                f"{seen.range[1]:.3f}, same bits as alone: {same}, {took:.1f} s, "
                + ", ".join(f"{k} {v:.3f}" for k, v in sorted(metrics.items()))
            )
            if name == "share=0" and not same:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
