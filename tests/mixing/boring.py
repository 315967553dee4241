"""A user's modules in a file of their own, as LightningCLI's class paths need them."""

from __future__ import annotations

import lightning.pytorch
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder


def _make(base_module: type, base_data: type) -> tuple[type, type]:
    class Net(base_module):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    class Data(base_data):  # type: ignore[misc,valid-type]
        def __init__(self, root: str) -> None:
            super().__init__()
            self.root = root

        def train_dataloader(self):
            return DataLoader(
                ImageFolder(self.root, transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])),
                4,
                shuffle=True,
            )

    return Net, Data


NetPL, DataPL = _make(pytorch_lightning.LightningModule, pytorch_lightning.LightningDataModule)
NetL, DataL = _make(lightning.pytorch.LightningModule, lightning.pytorch.LightningDataModule)
for made, name in ((NetPL, "NetPL"), (DataPL, "DataPL"), (NetL, "NetL"), (DataL, "DataL")):
    made.__name__ = made.__qualname__ = name


def classes(package: str) -> tuple[type, str]:
    return (
        (NetPL, "tests.mixing.boring.DataPL") if package == "pytorch_lightning" else (NetL, "tests.mixing.boring.DataL")
    )
