"""What Lightning leaves around torch's loaders when a hook raises is taken off, however deep it is."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from visynth.mixing.loaders import unwrap_loaders

NAMES = ("__init__", "__setattr__", "__delattr__")


def methods() -> dict[str, Any]:
    return {
        f"{kind.__name__}.{name}": getattr(kind, name) for kind in (DataLoader, BatchSampler, Own) for name in NAMES
    }


class Own(DataLoader[Any]):
    def __init__(self, data: Any, size: int = 1, **more: Any) -> None:
        super().__init__(data, batch_size=size, **more)


def fitted(package: str, loader: Any) -> None:
    """A training whose loader is what a function gives."""
    lightning = importlib.import_module(package)

    class Data(lightning.LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_steps=1, accelerator="cpu", **quiet).fit(Module(), datamodule=Data())


def raising() -> Any:
    raise ValueError("mine")


def test_methods_are_whole_again_after_hooks_that_raise() -> None:
    before = methods()
    for package in ("lightning.pytorch", "pytorch_lightning", "lightning.pytorch"):
        with pytest.raises(ValueError, match="mine"):
            fitted(package, raising)
    assert methods() != before
    unwrap_loaders()
    assert methods() == before
    assert not [name for name in (*vars(DataLoader), *vars(BatchSampler), *vars(Own)) if name.startswith("__old")]
    for package in ("lightning.pytorch", "pytorch_lightning"):
        fitted(package, lambda: Own(torch.zeros(4, 1), 2))
    assert methods() == before
