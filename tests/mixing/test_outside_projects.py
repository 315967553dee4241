"""Outside projects' own datasets, samplers and transforms, wrapped with one line and otherwise as their documentation
has them."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import visynth
from tests.ranks import TRAINER
from visynth.core.manifest import Renders

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings(
        "ignore:Use importlib.metadata.distribution:DeprecationWarning"
    ),  # torchsampler's own import
]
SIDE = 16
STEPS = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)])
CLASSES = ["good", "scratch", "spot", "stain"]


def rgb(path: Path) -> torch.Tensor:
    return STEPS(Image.open(path).convert("RGB"))


@dataclass
class Project:
    """A DataModule of an outside project, and what its training makes of a batch and of a file."""

    make: Callable[[Path], pytorch_lightning.LightningDataModule]
    read: Callable[[Any], tuple[torch.Tensor, torch.Tensor]] = lambda batch: (batch[0], batch[1])
    of_file: Callable[[Path], torch.Tensor] = rgb
    options: dict[str, Any] | None = None
    network: Callable[[], nn.Module] = lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    within: bool = False  # a sampler of its own decides how often each class comes


PROJECTS: dict[str, Project] = {}


def project(**told: Any) -> Callable[[Any], Any]:
    def keep(make: Any) -> Any:
        PROJECTS[make.__name__] = Project(make, **told)
        return make

    return keep


def module(train: Callable[[], Any]) -> pytorch_lightning.LightningDataModule:
    class Data(pytorch_lightning.LightningDataModule):
        def train_dataloader(self):
            return train()

    return Data()


@project(within=True)
def torchsampler(root: Path):
    """https://github.com/ufoym/imbalanced-dataset-sampler, as its README has it."""
    from torchsampler import ImbalancedDatasetSampler

    def train():
        data = ImageFolder(root, STEPS)
        return DataLoader(data, 8, sampler=ImbalancedDatasetSampler(data))

    return module(train)


def as_rgb(image: Any) -> torch.Tensor:
    """The transform that a user gives where the dataset's own normalises and cannot be found."""
    return STEPS(image.convert("RGB"))


@project(read=lambda batch: (batch["pixel_values"], batch["label"]), options={"transform": as_rgb})
def hugging_face(root: Path):
    """datasets: an image column, a ClassLabel and a transform on the fly, as in its vision guide."""
    import datasets

    files = sorted(root.rglob("*.png"))
    told = {"image": [str(f) for f in files], "label": [CLASSES.index(f.parent.name) for f in files]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    data = datasets.Dataset.from_dict(told, features=features)
    # Their guide: a function over a batch of rows, which adds the column that the model reads.
    data.set_transform(
        lambda rows: {"pixel_values": [STEPS(i.convert("RGB")) for i in rows["image"]], "label": rows["label"]}
    )
    return module(lambda: DataLoader(data, 8, shuffle=True))


@project(options={"classes": CLASSES, "transform": as_rgb})
def webdataset(root: Path):
    """webdataset: tar shards, decoded and mapped as in its README."""
    import webdataset as wds

    shard = root.parent / "outside-000000.tar"
    with tarfile.open(shard, "w") as archive:
        for place, file in enumerate(sorted(root.rglob("*.png"), key=lambda file: file.stem[::-1])):  # classes mixed
            label = str(CLASSES.index(file.parent.name)).encode()
            for name, data in ((f"{place:04}.png", file.read_bytes()), (f"{place:04}.cls", label)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))

    def train():
        data = wds.WebDataset(str(shard), shardshuffle=False, nodesplitter=None).decode("pil").to_tuple("png", "cls")
        return wds.WebLoader(
            data.map_tuple(lambda i: STEPS(i.convert("RGB")), lambda y: y), batch_size=8, num_workers=0
        )

    return module(train)


def kornia_steps() -> nn.Module:
    import kornia.augmentation as K  # noqa: N812

    return K.AugmentationSequential(K.Normalize(mean=0.5, std=0.25), data_keys=["input"])


@project(of_file=lambda path: kornia_steps()(rgb(path)[None] * 0.25 + 0.5)[0])
def kornia(root: Path):
    """kornia: augmentation of whole batches after the transfer, as in its Lightning tutorial."""
    augment = kornia_steps()

    class Data(pytorch_lightning.LightningDataModule):
        def train_dataloader(self):
            steps = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor()])
            return DataLoader(ImageFolder(root, steps), 8, shuffle=True)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, labels = batch
            return (augment(images), labels) if self.trainer.training else batch

    return Data()


def masks_of(path: Path) -> np.ndarray:
    file = path.parents[2] / "masks" / path.parent.name / path.name
    return np.asarray(Image.open(file)) > 0 if file.is_file() else np.zeros(Image.open(path).size[::-1], bool)


class Pets(torch.utils.data.Dataset):
    """The form of segmentation_models_pytorch's example data: dicts of arrays ``[C, H, W]``, float32 images and
    masks."""

    classes = CLASSES

    def __init__(self, root: Path) -> None:
        self.files = sorted(root.rglob("*.png"), key=lambda file: file.stem[::-1])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        image = np.asarray(Image.open(self.files[index]).convert("RGB").resize((32, 32)), np.float32)
        mask = np.asarray(Image.fromarray(masks_of(self.files[index])).resize((32, 32)), np.float32)
        return {"image": np.moveaxis(image, -1, 0), "mask": mask[None]}


def unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet(
        "resnet18", encoder_weights=None, in_channels=3, classes=1, encoder_depth=3, decoder_channels=(16, 8, 8)
    )


@project(
    read=lambda batch: (batch["image"], batch["mask"]),
    of_file=lambda path: torch.from_numpy(
        np.moveaxis(np.asarray(Image.open(path).convert("RGB").resize((32, 32)), np.float32), -1, 0)
    ),
    options={"classes": dict.fromkeys(CLASSES, 1), "transform": lambda image, mask: as_pets(image, mask)},
    network=unet,
)
def segmentation_models(root: Path):
    """segmentation_models_pytorch: its Unet and its loss on dicts of image and mask."""
    return module(lambda: DataLoader(Pets(root), 8, shuffle=True))


def as_pets(image: Any, mask: Any) -> Any:
    """What ``Pets`` does, for a PIL image and torchvision's mask: its user's own lines."""
    picture = np.moveaxis(np.asarray(image.convert("RGB").resize((32, 32)), np.float32), -1, 0)
    region = np.asarray(Image.fromarray(np.asarray(mask).astype(bool)).resize((32, 32)), np.float32)
    return picture, region[None]


class Net(pytorch_lightning.LightningModule):
    def __init__(self, told: Project) -> None:
        super().__init__()
        self.told, self.layers, self.rows, self.labels, self.losses = told, told.network(), [], [], []

    def training_step(self, batch, index):
        images, labels = self.told.read(batch)
        self.rows += list(images.detach().clone())
        self.labels += labels.flatten().tolist() if labels.ndim < 3 else labels.flatten(1).amax(1).tolist()
        found = self.layers(images)
        if labels.ndim > 2:
            import segmentation_models_pytorch as smp

            loss = smp.losses.DiceLoss("binary")(found, labels)
        else:
            loss = nn.functional.cross_entropy(found, labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(
    name: str, root: Path, source: Any = None, epochs: int = 2, trainer: Any = None, checkpoint: Any = None, **options
) -> Net:
    told = PROJECTS[name]
    pytorch_lightning.seed_everything(3, verbose=False)
    net = Net(told)
    data = told.make(root)
    if source is not None:
        data = visynth.WithSynthetic(data, source, **{**(told.options or {}), **options})
    pytorch_lightning.seed_everything(4, verbose=False)
    runner = pytorch_lightning.Trainer(**{**TRAINER, "max_epochs": epochs, **(trainer or {})})
    runner.fit(net, data, ckpt_path=checkpoint)
    return net


@pytest.fixture(scope="session")
def root(samples) -> Path:
    return samples / "images"


@pytest.mark.parametrize("name", ["torchsampler", "hugging_face", "webdataset", "kornia", "segmentation_models"])
def test_without_synthetic_images_it_is_the_same_training(name: str, root, renders) -> None:
    plain, wrapped = fit(name, root), fit(name, root, renders.folder, share=0)
    assert plain.losses == wrapped.losses
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), wrapped.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["torchsampler", "hugging_face", "webdataset", "kornia", "segmentation_models"])
def test_every_row_is_a_real_or_a_rendered_file_under_the_users_own_transform(
    name: str, root, renders: Renders
) -> None:
    told = PROJECTS[name]
    net = fit(name, root, renders.folder, share=0.3, balance={"spot": 12, "scratch": 6}, leak_guard=False, epochs=3)
    real = {path: told.of_file(path) for path in sorted(root.rglob("*.png"))}
    made = {renders.folder / r.file_name: told.of_file(renders.folder / r.file_name) for r in renders.records}
    counts: Counter[str] = Counter()
    for row, label in zip(net.rows, net.labels, strict=True):
        distances = {
            path: float((row - other).abs().max()) for path, other in (real | made).items() if other.shape == row.shape
        }
        path = min(distances, key=distances.__getitem__)
        assert distances[path] < 2e-2 * float(row.abs().max()), f"{name}: a row is neither a real nor a rendered file"
        counts["real" if path in real else "synthetic"] += 1
        if name != "segmentation_models":
            assert label == CLASSES.index(path.parent.name), "and has its own label"
        elif path.parent.name == "good":
            assert label == 0
    share = counts["synthetic"] / sum(counts.values())
    assert (0.08 if told.within else 0.2) < share < 0.35
    if told.within:
        plain = fit(name, root, epochs=3)
        assert Counter(plain.labels) == Counter(net.labels), "the sampler's counts are kept"


@pytest.mark.parametrize("name", ["hugging_face", "kornia", "segmentation_models"])
def test_a_resumed_training_is_the_uninterrupted_one(name: str, root, renders, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.utils.data.RandomSampler.__iter__", lambda self: iter(range(len(self.data_source))))
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    options = {"share": 0.3, "balance": {"spot": 12}, "leak_guard": False}
    whole = fit(
        name, root, renders.folder, epochs=3, trainer={"callbacks": [keep], "enable_checkpointing": True}, **options
    )
    later = fit(name, root, renders.folder, epochs=3, checkpoint=tmp_path / "epoch=0.ckpt", **options)
    assert later.losses == whole.losses[-len(later.losses) :]
    assert len(later.losses) == 2 * len(whole.losses) // 3
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), later.state_dict().values(), strict=True))


@pytest.mark.data
def test_medmnist(real_data, tmp_path) -> None:
    """medmnist: its own class over its own file; labels are arrays ``[1]``, and their names are in its ``info``."""
    import medmnist

    from visynth.data.labels import class_names, find_labels
    from visynth.data.reading import read_images

    folder = real_data("pneumoniamnist")
    (tmp_path / "medmnist").mkdir()
    (tmp_path / "medmnist/pneumoniamnist.npz").symlink_to(folder / "pneumoniamnist.npz")
    data = medmnist.PneumoniaMNIST(split="val", root=str(tmp_path / "medmnist"), transform=transforms.ToTensor())
    assert class_names(data) == {"normal": 0, "pneumonia": 1}
    assert find_labels(data) == data.labels[:, 0].tolist()
    images = read_images(folder / "pneumoniamnist.npz").select(lambda item: item.split == "train")
    source = white_like(tmp_path / "set", images.image(images.items[0]).shape[0])
    wrapped = visynth.WithSynthetic(
        module(lambda: DataLoader(data, 32)), source, share=0.2, balance={"normal": 50}, leak_guard=False
    )
    loader = wrapped.train_dataloader()
    rows, labels = next(iter(loader))
    synthetic = rows.flatten(1).amin(1) > 0.99
    assert rows.shape[1:] == (1, 28, 28)
    assert labels.shape == (32, 1)
    assert set(labels[synthetic].flatten().tolist()) <= {0}
    real = torch.cat([y[x.flatten(1).amin(1) <= 0.99] for x, y in loader]).flatten()
    assert int((real == 0).sum()) == int((data.labels == 0).sum()), "every real image of the rare class is seen"


def white_like(folder: Path, side: int) -> Path:
    from tests.mixing.white import white_set

    found = white_set(folder, {"normal": 20}, ("normal", "pneumonia"), side=side)
    assert json.loads((folder / "plan.json").read_text())["classes"] == ["normal", "pneumonia"]
    return found.folder
