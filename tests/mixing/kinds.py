"""Kinds of user DataModule, as people write them, on the base class of either Lightning package.

Each gives a few grey images of four classes. ``read`` says what its training step makes of a batch.
"""

from __future__ import annotations

import functools
import importlib
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision import transforms, tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

SIDE, COUNT, BATCH = 16, 48, 4
CLASSES = {"good": 0, "scratch": 1, "spot": 2, "stain": 3}
STEPS = transforms.Compose(
    [
        transforms.Resize((SIDE, SIDE)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(0.5, 0.2),
    ]
)


@functools.cache
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """48 noisy images in [0, 0.9] and their labels: 24, 8, 8 and 8 of a class."""
    images = torch.rand(COUNT, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.9
    return images, torch.tensor([0] * 24 + [1] * 8 + [2] * 8 + [3] * 8)


def pairs(batch: Any) -> tuple[Any, Any]:
    return batch[0], batch[1]


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        make: ``(LightningDataModule class, image folder) -> datamodule``.
        read: batch -> (images, labels) of the part that is mixed into.
        options: what its user gives to WithSynthetic.
        samples: whether single samples can be exchanged.
        online: options more for the backend that meets transferred batches.
        batches: steps of an epoch.
    """

    make: Callable[[Any, Path], Any]
    read: Callable[[Any], tuple[Any, Any]] = pairs
    options: dict[str, Any] = field(default_factory=dict)
    samples: bool = True
    batches: int = COUNT // BATCH
    batch: int = BATCH


KINDS: dict[str, Kind] = {}


def kind(**told: Any) -> Callable[[Any], Any]:
    def keep(make: Any) -> Any:
        KINDS[make.__name__] = Kind(make, **told)
        return make

    return keep


def module(base: Any, train: Callable[[], Any]) -> Any:
    """A DataModule that makes its loader anew each time, as Lightning asks for."""

    class Data(base):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return train()

    return Data()


def base_of(package: str) -> Any:
    return importlib.import_module(package).LightningDataModule


class Rows(Dataset[Any]):
    """Samples made by a function of (image, label, place)."""

    def __init__(self, make: Callable[[torch.Tensor, int, int], Any], **attributes: Any) -> None:
        self.make = make
        self.images, labels = pictures()
        self.targets = labels.tolist()
        self.class_to_idx = CLASSES
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return self.make(self.images[index], self.targets[index], index)


@kind()
def class_folders(base, root):
    return module(base, lambda: DataLoader(ImageFolder(root, STEPS), BATCH, shuffle=True))


@kind(options={"classes": CLASSES})
def tensors(base, root):
    return module(base, lambda: DataLoader(TensorDataset(*pictures()), BATCH, shuffle=True))


@kind(
    read=lambda batch: (batch["pixels"], batch["diagnosis"]),
    options={"image_key": "pixels", "label_key": "diagnosis"},
)
def dicts_with_own_keys(base, root):
    data = Rows(lambda image, label, place: {"pixels": image, "diagnosis": label, "place": place})
    return module(base, lambda: DataLoader(data, BATCH, shuffle=True))


@kind(read=lambda batch: (batch[1], batch[2]), options={"image_key": 1, "label_key": 2})
def triples_with_an_id_first(base, root):
    return module(base, lambda: DataLoader(Rows(lambda i, y, place: (f"n{place}", i, y)), BATCH, shuffle=True))


class Sample(NamedTuple):
    image: torch.Tensor
    label: int


@kind(read=lambda batch: (batch.image, batch.label))
def named_tuples(base, root):
    return module(base, lambda: DataLoader(Rows(lambda image, label, _: Sample(image, label)), BATCH, shuffle=True))


@kind(read=lambda batch: (batch[0], batch[1].argmax(1)))
def one_hot_labels(base, root):
    data = Rows(lambda image, label, _: (image, torch.eye(4)[label]))
    return module(base, lambda: DataLoader(data, BATCH, shuffle=True))


@kind()
def concatenated_subsets(base, root):
    def train():
        whole = ImageFolder(root, STEPS)
        parts = [Subset(whole, range(0, COUNT, 2)), Subset(whole, range(1, COUNT, 2))]
        return DataLoader(ConcatDataset(parts), BATCH, shuffle=True)

    return module(base, train)


def to_dict(samples: list[Any]) -> dict[str, torch.Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


@kind(read=lambda batch: (batch["pixel_values"], batch["labels"]))
def own_collate_fn(base, root):
    return module(base, lambda: DataLoader(ImageFolder(root, STEPS), BATCH, shuffle=True, collate_fn=to_dict))


class Alternating(BatchSampler):
    """Batches of rare and usual places in turn."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch[::-1]


@kind()
def own_batch_sampler(base, root):
    def train():
        data = ImageFolder(root, STEPS)
        return DataLoader(data, batch_sampler=Alternating(RandomSampler(data), BATCH, False))

    return module(base, train)


@kind()
def weighted_sampler(base, root):
    def train():
        data = ImageFolder(root, STEPS)
        weights = [1.0 if label == 0 else 3.0 for label in data.targets]
        return DataLoader(data, BATCH, sampler=WeightedRandomSampler(weights, COUNT))

    return module(base, train)


class Stream(IterableDataset[Any]):
    """Images one after the other, without places."""

    def __iter__(self):
        images, labels = pictures()
        for place in torch.randperm(COUNT).tolist():
            yield images[place], labels[place]


@kind(samples=False, options={"classes": CLASSES})
def iterable_dataset(base, root):
    return module(base, lambda: DataLoader(Stream(), BATCH))


def shard(root: Path) -> str:
    """A tar of the images, as WebDataset reads it."""
    import io

    path = root.parent / "shard.tar"
    if not path.exists():
        images, labels = pictures()
        unfinished = path.with_suffix(f".{os.getpid()}")  # ranks have one seed: a random name would be the same
        with tarfile.open(unfinished, "w") as archive:
            for place, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                buffer = io.BytesIO()
                np.save(buffer, image.numpy())
                for name, data in ((f"{place}.npy", buffer.getvalue()), (f"{place}.cls", str(label).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        unfinished.rename(path)
    return str(path)


@kind(samples=False, options={"classes": CLASSES})
def web_dataset(base, root):
    import webdataset as wds

    def train():
        data = wds.WebDataset(shard(root), shardshuffle=False, nodesplitter=None).decode().to_tuple("npy", "cls")
        return wds.WebLoader(data.batched(BATCH), batch_size=None, num_workers=0)

    return module(base, train)


@kind(read=lambda batch: batch[0], options={"loader": 0})
def list_of_loaders(base, root):
    return module(base, lambda: [DataLoader(ImageFolder(root, STEPS), BATCH, shuffle=True) for _ in range(2)])


@kind(read=lambda batch: batch["labelled"], options={"loader": "labelled"})
def labelled_and_unlabelled(base, root):
    def train():
        return {
            "labelled": DataLoader(ImageFolder(root, STEPS), BATCH, shuffle=True),
            "unlabelled": DataLoader(pictures()[0], BATCH),
        }

    return module(base, train)


@kind(read=lambda batch: batch["both"][0]["a"], options={"loader": "both.a"}, batches=6)
def nested_combined_loaders(base, root):
    combined = importlib.import_module(base.__module__.split(".core")[0] + ".utilities.combined_loader").CombinedLoader

    def train():
        inner = {"a": DataLoader(ImageFolder(root, STEPS), BATCH, shuffle=True), "b": DataLoader(range(24), BATCH)}
        return combined({"both": combined(inner, "min_size"), "more": DataLoader(range(60), BATCH)}, "min_size")

    return module(base, train)


def detections(image: torch.Tensor, label: int, place: int) -> Any:
    count = 0 if label == 0 else 1
    boxes = torch.tensor([[2.0, 2.0, 8.0, 8.0]] * count).reshape(-1, 4)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(SIDE, SIDE)),
        "labels": torch.full((count,), label),
        "image_id": place,
        "area": torch.full((count,), 36.0),
        "iscrowd": torch.zeros(count, dtype=torch.int64),
    }
    return image, target


def as_lists(samples: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*samples, strict=True))


def read_detections(batch: Any) -> tuple[Any, Any]:
    labels = [int(target["labels"][0]) if len(target["labels"]) else 0 for target in batch[1]]
    return torch.stack(list(batch[0])), torch.tensor(labels)


@kind(read=read_detections)
def detection_targets(base, root):
    return module(base, lambda: DataLoader(Rows(detections), BATCH, shuffle=True, collate_fn=as_lists))


def segmentation(image: torch.Tensor, label: int, _: int) -> Any:
    mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    mask[2:8, 2:8] = label
    pair = v2.RandomHorizontalFlip()(tv_tensors.Image(image), tv_tensors.Mask(mask))
    return pair[0].as_subclass(torch.Tensor), pair[1]


@kind(read=lambda batch: (batch[0], batch[1].flatten(1).amax(1)))
def segmentation_pairs(base, root):
    return module(base, lambda: DataLoader(Rows(segmentation), BATCH, shuffle=True))


@kind(options={"classes": CLASSES})
def from_datasets(base, root):
    return base.from_datasets(ImageFolder(root, STEPS), batch_size=BATCH, num_workers=0)


class Whole(Dataset[Any]):
    """Every item is a batch already, as HDF5 readers do it."""

    def __len__(self) -> int:
        return COUNT // BATCH

    def __getitem__(self, index: int) -> Any:
        images, labels = pictures()
        return images[index::12], labels[index::12]


@kind(samples=False, options={"classes": CLASSES})
def whole_batches(base, root):
    return module(base, lambda: DataLoader(Whole(), batch_size=None))


class Foreign:
    """Not torch's: a pipeline that gives batches, like DALI's or ffcv's."""

    def __iter__(self):
        images, labels = pictures()
        for places in torch.randperm(COUNT).split(BATCH):
            yield [images[places], labels[places]]

    def __len__(self) -> int:
        return COUNT // BATCH


@kind(samples=False, options={"classes": CLASSES})
def foreign_loader(base, root):
    return module(base, Foreign)


class Album(Dataset[Any]):
    """A user's class around albumentations."""

    def __init__(self, root: Path) -> None:
        import albumentations as A  # noqa: N812
        from albumentations.pytorch import ToTensorV2

        folder = ImageFolder(root)
        self.samples, self.class_to_idx = folder.samples, folder.class_to_idx
        self.transform = A.Compose(
            [A.Resize(SIDE, SIDE), A.HorizontalFlip(), A.Normalize((0.5,) * 3, (0.2,) * 3), ToTensorV2()], seed=1
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        import cv2

        path, label = self.samples[index]
        return {"image": self.transform(image=cv2.imread(path))["image"], "label": label}


@kind(read=lambda batch: (batch["image"], batch["label"]))
def albumentations(base, root):
    return module(base, lambda: DataLoader(Album(root), BATCH, shuffle=True))


@kind()
def augmented_on_the_device(base, root):
    class Data(base):
        def train_dataloader(self):
            steps = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor()])
            return DataLoader(ImageFolder(root, steps), BATCH, shuffle=True)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            if self.trainer.training:
                images, labels = batch
                images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
                return (images - 0.5) / 0.2, labels
            return batch

    return Data()


@dataclass
class Item:
    image: torch.Tensor
    gt_label: int


@dataclass
class Items:
    image: torch.Tensor
    gt_label: torch.Tensor


def as_items(samples: list[Item]) -> Items:
    return Items(torch.stack([s.image for s in samples]), torch.tensor([s.gt_label for s in samples]))


@kind(read=lambda batch: (batch.image, batch.gt_label))
def dataclasses(base, root):
    data = Rows(lambda image, label, _: Item(image, label))
    return module(base, lambda: DataLoader(data, BATCH, shuffle=True, collate_fn=as_items))


class Own(DataLoader):
    """A loader class with arguments of its own."""

    def __init__(self, dataset: Dataset[Any], flavour: str, **more: Any) -> None:
        super().__init__(dataset, **more)
        self.flavour = flavour


@kind()
def own_loader_class(base, root):
    class Data(base):
        def train_dataloader(self):
            return Own(ImageFolder(root, STEPS), "salty", batch_size=BATCH, shuffle=True)

    return Data()


@kind(options={"classes": CLASSES})
def with_everything(base, root):
    """Hyperparameters, state, validation, hooks: nothing of it may be lost."""

    class Data(base):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.calls: list[str] = []

        def prepare_data(self):
            self.calls.append("prepare_data")

        def setup(self, stage=None):
            self.calls.append(f"setup {stage}")

        def teardown(self, stage=None):
            self.calls.append(f"teardown {stage}")

        def train_dataloader(self):
            return DataLoader(TensorDataset(*pictures()), BATCH, shuffle=True)

        def val_dataloader(self):
            return DataLoader(TensorDataset(*pictures()), BATCH)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            self.calls.append("before")
            return batch

        def state_dict(self):
            return {"seen": 7}

    return Data()
