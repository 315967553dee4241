"""Somebody else's training as the learner of a trial: torchgeo's ClassificationTask on magnetic tiles, every arm trained by it.

    python3.11 -m venv /tmp/torchgeo
    /tmp/torchgeo/bin/pip install torch==2.14.1 torchvision==0.29.1
    /tmp/torchgeo/bin/pip install -c constraints.txt . torchgeo
    OMP_WAIT_POLICY=PASSIVE /tmp/torchgeo/bin/python scripts/bench/own_training.py --rare blowhole

torchgeo (MIT) gives a LightningModule that fine-tunes any network of timm and takes dict samples; nothing of it is changed. The
DataModule below is what a user of it writes for folders of images. EfficientNet-Lite0 begins with its ImageNet weights.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch
import yaml
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

SIDE = 160


class Folder(ImageFolder):
    """Dict samples, as torchgeo's tasks want them."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = super().__getitem__(index)
        return {"image": image, "label": label}


class Tiles(lightning.pytorch.LightningDataModule):
    """Folders of images, flipped at random in training."""

    def __init__(self, root: str, batch_size: int = 16) -> None:
        super().__init__()
        end = [transforms.Resize((SIDE, SIDE)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        flips = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]
        self.train = Folder(root, transforms.Compose([*flips, *end]))
        self.val = Folder(root, transforms.Compose(end))
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.batch_size)


def weights(out: Path) -> Path:
    """ImageNet weights under timm's names, as a checkpoint that torchgeo reads."""
    import timm
    import torch

    from visynth.metrics.extractors import _lite0_file, _renamed

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000)
    state = _renamed(torch.load(_lite0_file(), weights_only=True, map_location="cpu"), network)
    file = out / "lite0.pth"
    hyper = {"hyper_parameters": {"model": "tf_efficientnet_lite0"}}
    torch.save({**hyper, "state_dict": {f"model.{name}": value for name, value in state.items()}}, file)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("VISYNTH_DATA", "../shared/data")) / "magnetic_tile"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/own_training"))
    parser.add_argument("--rare", default="blowhole")
    parser.add_argument("--rare-groups", type=int, default=3)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    data, out = given.data.resolve(), given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    arguments = {"model": "tf_efficientnet_lite0", "weights": str(weights(out)), "num_classes": 6, "lr": 3e-4}
    config = {
        "model": {"class_path": "torchgeo.trainers.ClassificationTask", "init_args": arguments},
        "data": {"class_path": "own_training.Tiles", "init_args": {"root": str(data / "images")}},
        "trainer": {"max_steps": given.steps},
    }
    file = out / "training.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "visynth", "trial", str(data / "images"), "--masks", str(data / "masks"),
               "--groups", str(data / "groups.csv"), "--rare", given.rare, "--rare-groups", str(given.rare_groups),
               "--draws", str(given.draws), "--folds", "2", "--minutes", "600", "--no-others", "--learned", "none",
               "--learner", str(file), "--out", str(out / f"trial-{given.rare}")]  # fmt: skip
    sys.exit(subprocess.call(command, cwd=Path(__file__).parent))


if __name__ == "__main__":
    main()
