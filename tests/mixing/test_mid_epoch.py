"""A training that goes on in the middle of an epoch meets the batches that it would have met, synthetic rows and
all."""

from __future__ import annotations

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import visynth
from tests.mixing.kinds import CLASSES, pictures
from tests.mixing.test_policies import BACKENDS, Watch
from tests.mixing.white import White, white_set
from tests.ranks import TRAINER


class Order(RandomSampler):
    """A new order each epoch, from any place on."""

    epoch = start = 0

    def __iter__(self):
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch))
        return iter(order[self.start :].tolist())


class Stateful(DataLoader):
    """A loader that knows where it is: Lightning keeps the state of such loaders in its checkpoints."""

    def __init__(self, dataset, size: int) -> None:
        super().__init__(dataset, size, sampler=Order(dataset))
        self.done = 0

    def __iter__(self):
        if self.done == len(self):  # Lightning does not ask for the end of an epoch whose length it knows
            self.done, self.sampler.epoch = 0, self.sampler.epoch + 1
        self.sampler.start = self.done * self.batch_size
        for batch in super().__iter__():
            self.done += 1
            yield batch

    def state_dict(self):
        return {"done": self.done, "epoch": self.sampler.epoch}

    def load_state_dict(self, state) -> None:
        self.done, self.sampler.epoch = state["done"], state["epoch"]


class Tensors(pytorch_lightning.LightningDataModule):
    def train_dataloader(self):
        return Stateful(TensorDataset(*pictures()), 4)


def train(source, backend: str, folder, step: int, start=None):
    data = visynth.WithSynthetic(
        Tensors(), source, backend=backend, balance={"spot": 12}, share={"start": 0.2, "end": 0.4}, classes=CLASSES
    )
    module = Watch()
    keep = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=step)
    told = {**TRAINER, "enable_checkpointing": True, "callbacks": [keep], "max_epochs": 3}
    pytorch_lightning.Trainer(**told).fit(module, data, ckpt_path=start, weights_only=True if start else None)
    return module


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [5, 12, 19], ids=["first epoch", "between epochs", "second epoch"])
def test_a_training_goes_on_in_the_middle_of_an_epoch(backend: str, step: int, tmp_path) -> None:
    white = White() if backend == "online" else white_set(tmp_path / "set", {"spot": 30}, tuple(CLASSES)).folder
    straight = train(white, backend, tmp_path / "kept", step)
    assert len(straight.batches) == 36
    resumed = train(white, backend, tmp_path / "kept", step, tmp_path / "kept" / f"step={step}.ckpt")
    assert len(resumed.batches) == 36 - step
    assert sum(straight.white[step:]) > 0
    for told, found in zip(straight.batches[step:], resumed.batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(told, found, strict=True))
