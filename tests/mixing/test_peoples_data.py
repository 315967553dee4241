"""Datasets and loaders as people write them: no label is guessed, no rare real sample makes room, no value is wrong
without a word."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import pytorch_lightning
import torch
import yaml
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, WeightedRandomSampler
from torchvision import transforms, tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import visynth
from tests.mixing import boring
from tests.mixing.kinds import CLASSES, COUNT, SIDE, Rows, pictures
from tests.mixing.white import White, white_set, write_finished
from tests.ranks import TRAINER
from visynth.core.errors import UsageError
from visynth.core.manifest import Record
from visynth.data.labels import find_labels
from visynth.mixing.adapter import Adapter
from visynth.mixing.fields import same
from visynth.mixing.plan import Slots
from visynth.mixing.positions import MixedDataset

RENDERED = ["samples", "batches"]
MIX = {"balance": {"spot": 12}, "share": 0.25, "spread": 0.0, "classes": CLASSES, "leak_guard": False}


class Module(pytorch_lightning.LightningDataModule):
    name = "mine"

    def __init__(self, data, batch: int = 8, **loader) -> None:
        super().__init__()
        self.data, self.batch, self.loader = data, batch, loader

    def train_dataloader(self):
        return DataLoader(self.data, self.batch, **self.loader)


class Watch(pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 4)
        self.batches: list = []

    def training_step(self, batch, index):
        self.batches.append(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.fixture(scope="module")
def white(tmp_path_factory):
    return white_set(tmp_path_factory.mktemp("white") / "set", {"spot": 30}, tuple(CLASSES)).folder


def train(data, source, epochs: int = 1, seed: int = 1, **options) -> list:
    """The batches of a training on a DataModule (or on a dataset) that is mixed into."""
    module = data if isinstance(data, pytorch_lightning.LightningDataModule) else Module(data, shuffle=True)
    pytorch_lightning.seed_everything(seed, verbose=False)
    watch = Watch()
    wrapped = visynth.WithSynthetic(module, source, **{**MIX, **options})
    pytorch_lightning.Trainer(**TRAINER, max_epochs=epochs).fit(watch, wrapped)
    return watch.batches


def is_white(images) -> torch.Tensor:
    return images.flatten(1).amin(1) > 0.99


# -- labels ------------------------------------------------------------------------------------------------------------


class Nameless(Dataset):
    """Numbers as labels, and nothing that says what they mean."""

    def __init__(self) -> None:
        self.images, self.targets = pictures()[0][:24], [0] * 16 + [1] * 8

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.images[index], self.targets[index]


def test_an_order_is_never_guessed(tmp_path) -> None:
    source = white_set(
        tmp_path / "set", {"crack": 9, "good": 9}
    ).folder  # two classes, as the dataset has: but which is which?
    with pytest.raises(UsageError, match=r"classes=\{'crack': \.\.\., 'good': \.\.\.\}"):
        train(Nameless(), source, balance=None, classes=None)


@pytest.mark.parametrize("backend", RENDERED)
def test_controls_without_a_number_are_not_class_zero(backend: str, tmp_path) -> None:
    """A composed set with seam controls, of which the user names the defect alone."""
    folder = tmp_path / "set"
    renders = white_set(folder, {"crack": 9, "good": 9})
    write_finished(
        folder, [Record(**{**vars(r), "boxes": (), "mask": None}) if r.label == "good" else r for r in renders.records]
    )
    options = {"balance": {"crack": 5}, "spread": 0.5, "classes": {"crack": 1}}
    with pytest.raises(UsageError, match=r"'good'.* classes=\{name: label\}"):
        train(Nameless(), folder, backend=backend, **options)
    if backend == "batches":

        class Bare(IterableDataset):
            def __iter__(self):
                return iter(zip(*pictures(), strict=True))

        with pytest.raises(UsageError, match=r"synthetic 'good' have no number"):
            train(Module(Bare()), folder, backend=backend, **options)


class Columns(Dataset):
    """Labels as ``[N, 1]``, as MedMNIST and many arrays have them."""

    def __init__(self) -> None:
        self.images, labels = pictures()
        self.labels = labels.numpy()[:, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.images[index], self.labels[index]


class Dicts(Dataset):
    """A list of dicts under ``data``, as MONAI's datasets keep it."""

    def __init__(self) -> None:
        images, labels = pictures()
        self.data = [{"image": i, "label": int(y)} for i, y in zip(images, labels, strict=True)]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        return self.data[index]


class Silent(Dataset):
    """Shows its labels in samples alone."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        images, labels = pictures()
        return images[index], int(labels[index])


@pytest.mark.parametrize("make", [Columns, Dicts])
def test_labels_are_read_where_they_are(make) -> None:
    assert find_labels(make()) == pictures()[1].tolist()


@pytest.mark.parametrize(("make", "backend"), [(Columns, None), (Dicts, None), (Silent, None), (Silent, "batches")])
def test_rare_real_samples_never_make_room(make, backend, white) -> None:
    options = {} if backend is None else {"backend": backend}
    batches = train(Module(make(), shuffle=True), white, epochs=4, **options)
    images = torch.cat([b["image"] if isinstance(b, dict) else b[0] for b in batches])
    labels = torch.cat([(b["label"] if isinstance(b, dict) else b[1]).flatten() for b in batches])
    synthetic = is_white(images)
    assert 0.2 * len(labels) < int(synthetic.sum()) <= 0.25 * len(labels)
    real = Counter(labels[~synthetic].tolist())
    assert real[CLASSES["spot"]] == 4 * 8, "every real spot of every epoch is seen"


def test_labels_that_cannot_be_read_are_not_exchanged_blindly(white) -> None:
    with pytest.raises(UsageError, match="take backend='batches', which reads them in the batches"):
        train(Silent(), white, backend="samples")
    with pytest.raises(UsageError, match="balance='minority' counts the training labels, which cannot be read"):
        train(Silent(), white, balance="minority")


def test_where_all_classes_receive_the_largest_makes_room(tmp_path) -> None:
    source = white_set(tmp_path / "set", dict.fromkeys(CLASSES, 9)).folder
    for backend in RENDERED:
        batches = train(
            Rows(lambda i, y, _: (i, y)), source, epochs=3, backend=backend, balance=dict.fromkeys(CLASSES, 5)
        )
        images, labels = (torch.cat([b[k] for b in batches]) for k in (0, 1))
        real = Counter(labels[~is_white(images)].tolist())
        assert [real[k] for k in (1, 2, 3)] == [24] * 3 or backend == "batches"
        assert real[0] < 3 * 24


def test_unlabelled_samples_are_left_alone(white) -> None:
    images, labels = pictures()
    labels = torch.where(torch.arange(COUNT) % 3 == 0, -1, labels)
    for backend in RENDERED:
        batches = train(TensorDataset(images, labels), white, epochs=2, backend=backend)
        assert Counter(torch.cat([b[1] for b in batches]).tolist())[-1] == 2 * 16


def test_class_numbers_may_be_large(white) -> None:
    images, labels = pictures()
    huge = {name: 10**9 + k for name, k in CLASSES.items()}
    batches = train(TensorDataset(images, labels + 10**9), white, classes=huge)
    assert set(torch.cat([b[1] for b in batches]).tolist()) == set(huge.values())


def test_a_training_of_normals_stays_one(tmp_path) -> None:
    source = white_set(tmp_path / "set", {"good": 20, "crack": 20}).folder
    images = pictures()[0]
    normals = TensorDataset(images, torch.zeros(COUNT, dtype=torch.int64))
    with pytest.warns(UserWarning, match="no class needs synthetic samples"):
        batches = train(normals, source, balance=None, classes={"good": 0, "crack": 1}, spread=0.5)
    assert not any(is_white(b[0]).any() for b in batches)
    batches = train(normals, source, balance={"good": 12}, classes={"good": 0, "crack": 1}, spread=0.9)
    assert set(torch.cat([b[1] for b in batches]).tolist()) == {0}, "nor by spread"
    batches = train(normals, source, balance={"crack": 12}, classes={"good": 0, "crack": 1})
    assert 1 in torch.cat([b[1] for b in batches]).tolist(), "but where it is named"


def test_the_default_share_leaves_the_real_images_the_majority(white) -> None:
    batches = train(Rows(lambda i, y, _: (i, y)), white, share=None, balance={"spot": 400}, epochs=2)
    synthetic = int(torch.cat([is_white(b[0]) for b in batches]).sum())
    assert synthetic == round(0.25 * 2 * COUNT)


# -- samplers ----------------------------------------------------------------------------------------------------------


class PerClass(Sampler):
    """Batches of two of each class, as metric learning draws them."""

    def __iter__(self):
        labels = pictures()[1].numpy()
        rng = np.random.default_rng(int(torch.randint(1 << 30, ())))
        for _ in range(6):
            yield [int(i) for k in range(4) for i in rng.choice(np.flatnonzero(labels == k), 2)]

    def __len__(self) -> int:
        return 6


@pytest.mark.parametrize("backend", [None, *RENDERED])
def test_a_samplers_counts_are_kept(backend, white) -> None:
    class Drawn(Module):
        def train_dataloader(self):
            return DataLoader(self.data, batch_sampler=PerClass())

    options = {} if backend is None else {"backend": backend}
    batches = train(Drawn(Rows(lambda i, y, _: (i, y))), white, epochs=6, share=0.5, **options)
    assert all(Counter(b[1].tolist()) == {0: 2, 1: 2, 2: 2, 3: 2} for b in batches)
    images, labels = (torch.cat([b[k] for b in batches]) for k in (0, 1))
    spots = is_white(images)[labels == CLASSES["spot"]]
    assert not is_white(images)[labels != CLASSES["spot"]].any()
    assert 0.3 < float(spots.float().mean()) < 0.7


def test_a_weighted_sampler_keeps_its_balance(white) -> None:
    labels = pictures()[1]
    weights = (1 / torch.bincount(labels).float())[labels]

    class Balanced(Module):
        def train_dataloader(self):
            return DataLoader(self.data, 8, sampler=WeightedRandomSampler(weights, 480))

    plain, mixed = (train(Balanced(Rows(lambda i, y, _: (i, y))), white, share=share, finish=0.0) for share in (0, 0.3))
    counts = [Counter(torch.cat([b[1] for b in batches]).tolist()) for batches in (plain, mixed)]
    assert counts[0] == counts[1]
    synthetic = torch.cat([is_white(b[0]) for b in mixed])
    assert 0.15 < int(synthetic.sum()) / counts[1][CLASSES["spot"]] < 0.45


def test_batches_of_varying_size_are_counted_by_rows(white) -> None:
    class Buckets(IterableDataset):
        def __iter__(self):
            images, labels = pictures()
            for k in range(60):  # the first batch is small
                rows = torch.randperm(COUNT)[: 4 if k % 2 == 0 else 24]
                yield images[rows], labels[rows]

    class Data(pytorch_lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Buckets(), batch_size=None)

    batches = train(Data(), white)
    share = sum(int(is_white(b[0]).sum()) for b in batches) / sum(len(b[0]) for b in batches)
    assert 0.22 < share < 0.28


def test_a_rising_share_with_workers_and_no_length(white) -> None:
    class Endless(IterableDataset):
        def __iter__(self):
            images, labels = pictures()
            yield from zip(images, labels, strict=True)

    data = Module(Endless(), num_workers=1)
    batches = train(data, white, epochs=3, share={"start": 0.0, "end": 0.5}, workers=1)
    counts = [int(is_white(b[0]).sum()) for b in batches]
    assert len(batches) == 18
    assert sum(counts[:6]) < sum(counts[6:12]) < sum(counts[12:])


# -- further fields ----------------------------------------------------------------------------------------------------

NAMES = list(CLASSES)


def rich(image, label, place):
    return {
        "image": image,
        "label": label,
        "name": NAMES[label],
        "one_hot": torch.eye(4)[label],
        "defect": label > 0,
        "site": "north",
        "index": place,
    }


@pytest.mark.parametrize("backend", RENDERED)
@pytest.mark.filterwarnings("ignore:samples carry 'index':UserWarning")  # batches do not say where their rows come from
def test_what_follows_from_the_label_follows_from_the_synthetic_one(backend: str, white) -> None:
    batches = train(Rows(rich), white, epochs=2, backend=backend)
    seen = 0
    for batch in batches:
        for row, synthetic in enumerate(is_white(batch["image"]).tolist()):
            seen += synthetic
            label = int(batch["label"][row])
            assert batch["name"][row] == NAMES[label]
            assert batch["one_hot"][row].argmax() == label
            assert bool(batch["defect"][row]) == (label > 0)
            assert batch["site"][row] == "north"
    assert seen >= 20
    if backend == "samples":
        assert sorted(int(i) for b in batches[:6] for i in b["index"]) == list(range(COUNT))


@pytest.mark.parametrize("backend", RENDERED)
def test_what_cannot_be_known_is_told_and_can_be_said(backend: str, white) -> None:
    def with_path(image, label, place):
        return {"image": image, "label": label, "path": f"/data/{place * 7919 % 101}.png", "weight": float(place % 5)}

    with pytest.warns(UserWarning, match=r"samples carry 'path', 'weight' beside image and label"):
        batches = train(Rows(with_path), white, backend=backend)
    batches = train(Rows(with_path), white, backend=backend, extra={"path": "synthetic", "weight": 0.5})
    for batch in batches:
        synthetic = is_white(batch["image"]).tolist()
        assert [p == "synthetic" for p in batch["path"]] == synthetic
        assert all(w == 0.5 for w, s in zip(batch["weight"].tolist(), synthetic, strict=True) if s)


def test_values_of_any_kind_are_compared() -> None:
    assert same(torch.eye(2)[0], torch.eye(2)[0])
    assert not same(torch.eye(2)[0], torch.eye(3)[0])
    assert not same(np.zeros(2), np.ones(2))
    assert not same("a", 1)


# -- values ------------------------------------------------------------------------------------------------------------


class Files(ImageFolder):
    """A class of the user's own over image files."""

    change = staticmethod(lambda image: image)

    def __getitem__(self, index: int):
        image, label = super().__getitem__(index)
        return self.change(image), label


STEPS = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor()])


def files(samples, change, steps=STEPS):
    made = Files(samples / "images", steps)
    made.change = change
    return made


@pytest.mark.parametrize("backend", RENDERED)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda image: (image - 0.5) / 0.2, "would not look like the dataset's own|would have other values"),
        (lambda image: (image - image.min()) / (image.max() - image.min()), "would not look like|scaled by its own"),
        (lambda image: image * 17, "would not look like the dataset's own|would have other values"),
    ],
    ids=["normalised", "min-max", "other scale"],
)
def test_values_that_a_dataset_changes_by_itself_are_found(backend, change, told, samples, renders) -> None:
    with pytest.raises(UsageError, match=told):
        train(files(samples, change), renders.folder, backend=backend, classes=None)


class OnItsSide(Dataset):
    """A reader that gives ``[W, H]``, as MONAI's does for photographs, over a list of dicts."""

    def __init__(self, root, turn) -> None:
        self.turn, self.transform, self.classes = turn, STEPS, sorted(folder.name for folder in root.iterdir())
        self.data = [{"image": str(f), "label": self.classes.index(f.parent.name)} for f in sorted(root.rglob("*.png"))]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        told = self.data[index]
        return {**told, "image": self.turn(self.transform(Image.open(told["image"]).convert("RGB")))}


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        (lambda image: image.mT.contiguous(), "of 6 files that were compared are transposed in their samples"),
        (lambda image: image.flip(-1), "of 6 files that were compared are mirrored in their samples"),
        (lambda image: image.rot90(1, (-2, -1)), "of 6 files that were compared are turned by 90 degrees"),
    ],
    ids=["transposed", "mirrored", "turned"],
)
def test_samples_that_lie_otherwise_than_their_files_are_found(turn, told, samples, renders) -> None:
    data = OnItsSide(samples / "images", turn)
    wrap = {"share": 0.3, "backend": "samples", "leak_guard": False}
    with pytest.raises(UsageError, match=told):
        next(iter(visynth.WithSynthetic(Module(data), renders.folder, **wrap).train_dataloader()))
    own = visynth.WithSynthetic(Module(data), renders.folder, transform=lambda i: turn(STEPS(i.convert("RGB"))), **wrap)
    assert next(iter(own.train_dataloader()))["image"].shape[1:] == (3, SIDE, SIDE)  # no warning: it agrees
    straight = visynth.WithSynthetic(Module(OnItsSide(samples / "images", lambda i: i)), renders.folder, **wrap)
    assert next(iter(straight.train_dataloader()))["image"].shape[1:] == (3, SIDE, SIDE)


class Meta(torch.Tensor):
    """A project's own tensor class, as MONAI's MetaTensor or fastai's TensorImage."""


def test_a_projects_own_tensor_class_is_asked_for(samples, renders) -> None:
    data = OnItsSide(samples / "images", lambda image: image.as_subclass(Meta))
    with pytest.raises(UsageError, match=r"real images are .*Meta, but synthetic ones would be Tensor"):
        next(iter(visynth.WithSynthetic(Module(data), renders.folder, share=0.3, backend="samples").train_dataloader()))


def test_the_datasets_own_way_is_taken_and_told_once(samples, renders, caplog) -> None:
    with caplog.at_level(logging.INFO):
        train(files(samples, lambda image: image), renders.folder, classes=None, backend="samples")
    told = [r.getMessage() for r in caplog.records if "mixing synthetic images" in r.getMessage()]
    assert len(told) == 1
    assert "backend samples, share 0.25 of all samples, of spot" in told[0]
    assert "the dataset's own transform (Compose, called with RGB)" in told[0]


@pytest.mark.parametrize("backend", RENDERED)
def test_the_counts_of_each_epoch_are_logged(backend: str, white, caplog) -> None:
    with caplog.at_level(logging.INFO):
        batches = train(Rows(lambda i, y, _: (i, y)), white, epochs=2, backend=backend)
    lines = [r.getMessage() for r in caplog.records if "synthetic samples in epoch" in r.getMessage()]
    counts = [sum(int(is_white(b[0]).sum()) for b in batches[k : k + 6]) for k in (0, 6)]
    assert lines == [f"synthetic samples in epoch {k}: spot {count}" for k, count in enumerate(counts)]


class Bits(Dataset):
    """12-bit values as floats, and a first sample that is black."""

    def __init__(self, top: float) -> None:
        self.images, labels = pictures()
        self.images = self.images * top
        self.images[0] = 0
        self.targets = labels.tolist()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        return self.images[index], self.targets[index]


@pytest.mark.parametrize("backend", RENDERED)
def test_a_range_is_not_guessed_from_one_black_sample(backend: str, white) -> None:
    if backend == "samples":
        with pytest.raises(UsageError, match="would be brighter than the dataset's"):
            train(Bits(4095.0), white, backend=backend)
    else:  # one batch may be darker than all others, and ranks see different ones
        with pytest.warns(UserWarning, match="would be brighter than the dataset's"):
            train(Bits(4095.0), white, backend=backend)
    batches = train(Bits(255.0), white, backend=backend)
    assert torch.cat([b[0] for b in batches]).amax() == 255


@pytest.mark.parametrize("form", ["normalised", "centre"])
def test_boxes_that_are_no_corners_in_pixels_are_refused(form: str, white) -> None:
    box = {"normalised": [0.2, 0.2, 0.6, 0.9], "centre": [9.0, 9.0, 4.0, 6.0]}[form]

    def target(image, label, place):
        return image, {
            "boxes": torch.tensor([box] * (place > 2)).reshape(-1, 4),
            "labels": torch.tensor([label] * (place > 2)),
        }

    for backend in RENDERED:
        data = Module(Rows(target), collate_fn=lambda rows: tuple(zip(*rows, strict=True)))
        with pytest.raises(UsageError, match=r"boxes must be \(x1, y1, x2, y2\) in pixels, but"):
            train(data, white, backend=backend)


def test_colour_becomes_grey_at_work_and_by_a_transform() -> None:
    grey = Module(Rows(lambda i, y, _: (i, y)), shuffle=True)
    source = White(("spot",), channels=3)
    assert any(is_white(b[0]).any() for b in train(grey, source, backend="online"))
    steps = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor()])
    batches = train(Module(Rows(lambda i, y, _: (i, y))), source, backend="online", transform=steps)
    assert all(b[0].shape[1] == 1 for b in batches)
    assert any(is_white(b[0]).any() for b in batches)
    made = Adapter.like(torch.rand(1, 16, 16))(np.full((16, 16, 3), (255, 0, 0), np.uint8))
    assert float(made.max()) == pytest.approx(0.299, abs=2e-3)


@pytest.mark.parametrize("backend", [None, *RENDERED])
def test_the_first_usable_sample_is_looked_at(backend, white) -> None:
    class Gaps(Rows):
        def __getitem__(self, index: int):
            return None if index == 0 else super().__getitem__(index)

    def some(rows):
        return torch.utils.data.default_collate([row for row in rows if row is not None])

    options = {} if backend is None else {"backend": backend}
    batches = train(Module(Gaps(lambda i, y, _: (i, y)), collate_fn=some), white, **options)
    assert any(is_white(b[0]).any() for b in batches)


def test_several_pictures_a_sample_are_told(white) -> None:
    views = Rows(lambda i, y, _: [{"image": i, "label": y}, {"image": i, "label": y}], class_to_idx=CLASSES)
    with pytest.raises(UsageError, match="a sample is a list of 2 dicts, several images at once"):
        train(views, white, backend="samples")


# -- the DataModule itself ---------------------------------------------------------------------------------------------


def test_the_wrapped_one_is_what_it_was(white) -> None:
    data = Module(Rows(lambda i, y, _: (i, y)))
    wrapped = visynth.WithSynthetic(data, white, **MIX)
    assert isinstance(wrapped, Module)
    assert isinstance(wrapped, pytorch_lightning.LightningDataModule)
    assert wrapped.name == "mine"
    wrapped.name = "other"
    assert data.name == "other"
    loader = wrapped.train_dataloader()
    assert isinstance(loader.dataset, MixedDataset)
    data.data.epoch = 0
    loader.dataset.epoch = 3  # as callbacks of progressive resizing do it
    assert data.data.epoch == 3


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("moment", ["end", "middle", "steps"])
def test_a_resumed_training_goes_on_with_the_next_epoch(moment: str, white, tmp_path, monkeypatch) -> None:
    begun: list[int] = []
    begin = MixedDataset.begin
    monkeypatch.setattr(MixedDataset, "begin", lambda self, epoch: begun.append(epoch) or begin(self, epoch))
    when = {"end": {"save_on_train_epoch_end": True}, "middle": {}, "steps": {"every_n_train_steps": 6}}[moment]

    def fit(epochs: int, checkpoint=None) -> list[int]:
        begun.clear()
        keep = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1, **when)
        trainer = pytorch_lightning.Trainer(
            **{**TRAINER, "enable_checkpointing": True}, max_epochs=epochs, callbacks=[keep]
        )
        trainer.fit(
            Watch(),
            visynth.WithSynthetic(Module(Rows(lambda i, y, _: (i, y))), white, backend="samples", **MIX),
            ckpt_path=checkpoint,
        )
        return begun[1:]  # the first is the dataset's own start

    assert fit(1) == [0]
    assert fit(3, tmp_path / "kept/epoch=0.ckpt") == [1, 2]


class Kept(boring.DataPL):
    """A DataModule that keeps its own hyperparameters."""

    def __init__(self, root: str, width: int = 3) -> None:
        super().__init__(root)
        self.save_hyperparameters()


def test_lightning_cli_gives_each_its_own_hyperparameters(samples, renders, tmp_path, monkeypatch) -> None:
    from pytorch_lightning.cli import LightningCLI

    monkeypatch.setattr("sys.argv", ["train.py"])
    inner = {
        "class_path": "tests.mixing.test_peoples_data.Kept",
        "init_args": {"root": str(samples / "images"), "width": 7},
    }
    told = {"class_path": "visynth.WithSynthetic", "init_args": {"datamodule": inner, "source": str(renders.folder)}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": told}))
    made = LightningCLI(
        boring.NetPL,
        pytorch_lightning.LightningDataModule,
        subclass_mode_data=True,
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
        args=["--config", str(tmp_path / "config.yaml")],
    )
    assert dict(made.datamodule.hparams) | {"_instantiator": 0} == {
        "root": str(samples / "images"),
        "width": 7,
        "_class_path": "tests.mixing.test_peoples_data.Kept",
        "_instantiator": 0,
    }


def test_pil_images_of_a_set_are_not_touched(samples, renders) -> None:
    """A dataset without transform gives PIL images, whose range is their own."""
    folder = ImageFolder(samples / "images")
    dataset = (
        visynth.WithSynthetic(Module(folder), renders.folder, **{**MIX, "classes": None}, backend="samples")
        .train_dataloader()
        .dataset
    )
    assert isinstance(dataset[next(iter(dataset.plan()))][0], Image.Image)


# -- found by review ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_a_target_transform_holds_for_rows_of_batches_too(weighted: bool, samples, renders) -> None:
    data = ImageFolder(samples / "images", STEPS, target_transform=lambda y: 3 - y)
    names = {3 - index: name for name, index in data.class_to_idx.items()}
    loader = {"sampler": WeightedRandomSampler([1.0] * 48, 96)} if weighted else {"shuffle": True}
    batches = train(Module(data, **loader), renders.folder, epochs=2, classes=None, balance={"spot": 20}, share=0.5)
    real = {
        tuple(STEPS(Image.open(p).convert("RGB")).flatten().tolist()): p.parent.name
        for p in (samples / "images").rglob("*.png")
    }
    synthetic = 0
    for images, labels in batches:
        for image, label in zip(images, labels.tolist(), strict=True):
            own = real.get(tuple(image.flatten().tolist()))
            synthetic += own is None
            assert names[label] == (own or "spot")
    assert synthetic >= 5


@pytest.mark.parametrize("backend", RENDERED)
def test_a_dataset_that_gives_other_labels_than_it_lists_is_refused(backend: str, samples, renders) -> None:
    class Binary(ImageFolder):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, int(label > 0)

    with pytest.raises(
        UsageError, match=r"training sample \d+ has the label 1, but its entry in the dataset's labels makes [23]"
    ):
        train(Binary(samples / "images", STEPS), renders.folder, backend=backend, classes=None)


def test_names_and_numbers_of_a_dataset_must_agree(white) -> None:
    class FromOne(Rows):
        def __init__(self) -> None:
            super().__init__(lambda i, y, _: (i, y + 1))
            del self.class_to_idx
            self.targets, self.classes = [y + 1 for y in self.targets], list(CLASSES)
            self.make = lambda i, y, _: (i, y)

    with pytest.raises(UsageError, match=r"there are also the labels \[4\]: its names and numbers do not agree"):
        train(FromOne(), white, classes=None)


@pytest.mark.parametrize("top", [1, 255])
def test_a_mask_beside_the_label_holds_what_real_masks_hold(top: int, white) -> None:
    def anomaly(image, label, place):
        mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
        mask[2:5, 2:5] = top * (label > 0)
        return {"image": image, "mask": mask, "label": label}

    for backend in RENDERED:
        batches = train(Rows(anomaly), white, backend=backend)
        values = {int(v) for b in batches for row in b["mask"][is_white(b["image"])] for v in row.unique()}
        assert values == {0, top}, backend


@pytest.mark.parametrize("backend", [None, "batches"])
@pytest.mark.parametrize(
    "steps",
    [
        [
            transforms.ColorJitter(0.4, 0.4, 0.4),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ],
        [transforms.RandomGrayscale(0.1), transforms.ToTensor()],
        [transforms.RandomInvert(), transforms.ToTensor()],
        [transforms.ToTensor(), transforms.RandomErasing(1.0, value="random")],
        [transforms.ToTensor(), lambda x: (x - x.mean()) / x.std().clamp(min=1e-6), transforms.RandomHorizontalFlip()],
        [transforms.ToTensor(), lambda x: (x - x.min()) / (x.max() - x.min()).clamp(min=1e-6)],
    ],
    ids=["jitter", "rarely grey", "invert", "erase", "z-score", "min-max"],
)
def test_a_datasets_own_augmentation_is_not_taken_for_a_fault(backend, steps, samples, renders) -> None:
    data = ImageFolder(samples / "images", transforms.Compose([transforms.Resize((SIDE, SIDE)), *steps]))
    for seed in range(4):
        options = {} if backend is None else {"backend": backend}
        assert train(data, renders.folder, classes=None, seed=seed, **options)


def test_a_transform_that_is_given_overrules_the_comparison(samples, renders) -> None:
    data = files(samples, lambda image: (image - 0.5) / 0.2)
    steps = transforms.Compose([STEPS, transforms.Normalize(0.5, 0.2)])
    assert train(data, renders.folder, classes=None, transform=steps)
    with pytest.warns(UserWarning, match=r"would not look like(.|\n)*the given transform(.|\n)*If that is meant"):
        train(data, renders.folder, classes=None, transform=STEPS)


@pytest.mark.parametrize("backend", RENDERED)
def test_classes_that_should_be_filled_and_cannot_be_make_no_room(backend: str, white) -> None:
    """The balance would fill three classes; the source makes one of them."""
    batches = train(Rows(lambda i, y, _: (i, y)), white, epochs=4, backend=backend, balance="not majority", share=0.25)
    images, labels = (torch.cat([b[k] for b in batches]) for k in (0, 1))
    real = Counter(labels[~is_white(images)].tolist())
    assert [real[k] for k in (1, 2, 3)] == [32] * 3


def test_many_classes_have_their_own_fields(tmp_path) -> None:
    names = {f"c{k:02}": k for k in range(14)}
    images, places = pictures()[0][:42], [k % 14 for k in range(42)]

    class Many(Dataset):
        class_to_idx = names
        targets = places

        def __len__(self):
            return 42

        def __getitem__(self, index):
            label = places[index]
            return {"image": images[index], "label": label, "weight": float(label**2), "text": f"class {label}"}

    source = white_set(tmp_path / "set", dict.fromkeys(names, 3)).folder
    balance = {name: 3 for name, k in names.items() if k > 3}
    for batch in train(Many(), source, epochs=3, share=0.2, balance=balance, classes=None, backend="samples"):
        for row in range(len(batch["label"])):
            label = int(batch["label"][row])
            assert batch["weight"][row] == label**2
            assert batch["text"][row] == f"class {label}"


def test_slots_of_a_training_resumed_at_a_short_batch_are_the_same() -> None:
    whole, short = (Slots(lambda batch: 0.3, 4) for _ in range(2))
    assert [list(whole.of(k)) for k in range(11, 20)] == [list(short.of(k)) for k in range(11, 20)]


@pytest.mark.parametrize("backend", RENDERED)
def test_gaps_and_flags_go_together(backend: str, white) -> None:
    class Gaps(Rows):
        def __getitem__(self, index: int):
            return None if index % 7 == 0 else super().__getitem__(index)

    def some(rows):
        return torch.utils.data.default_collate([row for row in rows if row is not None])

    batches = train(Module(Gaps(lambda i, y, _: (i, y)), collate_fn=some), white, backend=backend, is_synthetic=True)
    assert any(b[2].any() for b in batches)


def test_pixels_to_be_ignored_and_soft_labels_leave_room(white) -> None:
    def segmented(image, label, _):
        mask = torch.full((SIDE, SIDE), -100)
        mask[2:8, 2:8] = label
        return image, mask

    assert any(is_white(b[0]).any() for b in train(Rows(segmented), white, backend="batches"))
    soft = Rows(lambda image, label, _: (image, torch.eye(4)[label] * 0.9 + 0.025))
    assert any(is_white(b[0]).any() for b in train(soft, white, backend="batches"))


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (lambda y: f"class {y}", "labels are class numbers"),
        (lambda y: y + 0.25, "there is 0.25|there is tensor"),
        (lambda y: float("nan"), "nan"),
    ],
    ids=["text", "measurement", "nan"],
)
def test_labels_that_are_none_are_told(label, told: str, white) -> None:
    with pytest.raises(UsageError, match=told):
        train(
            Rows(lambda image, y, _: (image, label(y))),
            white,
            backend="batches",
            labels=pictures()[1].tolist(),
            balance={"spot": 9},
        )


def test_options_that_name_what_is_not_there(white) -> None:
    with pytest.raises(UsageError, match="extra= names 'pth', which samples do not have"):
        train(Rows(rich), white, extra={"pth": ""}, backend="samples")
    with pytest.raises(UsageError, match="labels= takes one class number a sample"):
        train(Silent(), white, labels=["a"] * COUNT)


def test_a_subset_that_a_sampler_draws_is_all_that_there_is(white) -> None:
    drawn = [i for i, y in enumerate(pictures()[1].tolist()) if y == 0]

    class Part(Module):
        def train_dataloader(self):
            return DataLoader(self.data, 8, sampler=torch.utils.data.SubsetRandomSampler(drawn))

    with pytest.warns(UserWarning, match="no class needs synthetic samples"):
        train(Part(Rows(lambda i, y, _: (i, y))), white, balance="not majority")
    batches = train(Part(Rows(lambda i, y, _: (i, y))), white, backend="samples")
    assert sum(int(is_white(b[0]).sum()) for b in batches) == round(0.25 * len(drawn))


# -- several synthetic classes under one label -------------------------------------------------------------------------


class GoodOrNot(Dataset):
    """32 good images and 16 with a defect of whatever kind."""

    def __init__(self) -> None:
        self.images, self.targets = pictures()[0], [0] * 32 + [1] * 16

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.images[index], self.targets[index]


DEFECTS = {"scratch": 12, "spot": 12, "stain": 12}


@pytest.mark.parametrize("backend", RENDERED)
@pytest.mark.parametrize(
    ("balance", "each"),
    [
        ("not majority", (4, 4, 4)),
        ({"scratch": 9, "stain": 3}, (9, 0, 3)),
        (lambda counts: dict.fromkeys(DEFECTS, 2) | {"good": 0}, (4, 4, 4)),
    ],
)
def test_all_defects_under_one_label(backend: str, balance, each, tmp_path, caplog) -> None:
    """A training that knows good and defect alone: none of the rendered defects is left out without a word."""
    source = white_set(tmp_path / "set", {"good": 12, **DEFECTS}).folder
    classes = {"good": 0, **dict.fromkeys(DEFECTS, 1)}
    with caplog.at_level(logging.INFO):
        batches = train(GoodOrNot(), source, epochs=2, backend=backend, balance=balance, classes=classes)
    lines = [r.getMessage() for r in caplog.records if "synthetic samples in epoch" in r.getMessage()]
    assert [Counter({n: int(c) for n, c in (p.split() for p in line.split(": ")[1].split(", "))}) for line in lines] == [
        pytest.approx(Counter({n: c for n, c in zip(DEFECTS, each, strict=True) if c}), abs=2)
    ] * 2  # fmt: skip
    made = torch.cat([labels[is_white(images)] for images, labels in batches])
    assert len(made) == 24
    assert set(made.tolist()) == {1}


@pytest.mark.parametrize("backend", RENDERED)
def test_all_defects_under_one_label_within_a_sampler(backend: str, tmp_path, caplog) -> None:
    source = white_set(tmp_path / "set", {"good": 12, **DEFECTS}).folder
    classes = {"good": 0, **dict.fromkeys(DEFECTS, 1)}
    data = GoodOrNot()
    weights = [1 / data.targets.count(label) for label in data.targets]
    module = Module(data, sampler=WeightedRandomSampler(weights, 480))
    told = {"balance": "not majority", "classes": classes, "share": 0.5}
    with caplog.at_level(logging.INFO):
        batches = train(module, source, backend=backend, **told)
    labels = torch.cat([labels for _, labels in batches])
    made = torch.cat([labels[is_white(images)] for images, labels in batches])
    assert labels.float().mean() == pytest.approx(0.5, abs=0.08)
    assert set(made.tolist()) == {1}
    assert len(made) == pytest.approx(int(labels.sum()) / 2, rel=0.15)
    (line,) = [r.getMessage() for r in caplog.records if "synthetic samples in epoch" in r.getMessage()]
    assert all(name in line for name in DEFECTS)


# -- files read as tensors, samples that check themselves --------------------------------------------------------------


class ReadAsTensor(Dataset):
    """``read_image`` and v2 transforms on tensors, as torchvision's own tutorials have it; in [0, 1] where
    ``floating``."""

    def __init__(self, root, floating: bool, wrap=lambda tensor: tensor) -> None:
        folder = ImageFolder(root)
        self.files, self.targets, self.class_to_idx = (
            [f for f, _ in folder.samples],
            folder.targets,
            folder.class_to_idx,
        )
        self.floating, self.wrap = floating, wrap
        self.transform = v2.Compose([v2.Resize((12, 12), antialias=True), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        image = v2.functional.pil_to_tensor(Image.open(self.files[index]).convert("RGB"))
        image = v2.functional.to_dtype(image, torch.float32, scale=True) if self.floating else image
        return self.transform(self.wrap(image)), self.targets[index]


@pytest.mark.parametrize("backend", RENDERED)
@pytest.mark.parametrize("wrap", [lambda tensor: tensor, tv_tensors.Image], ids=["tensor", "tv_tensors"])
@pytest.mark.parametrize("floating", [False, True])
def test_transforms_of_tensors_are_called_with_tensors(backend: str, wrap, floating: bool, samples, renders) -> None:
    data = ReadAsTensor(samples / "images", floating, wrap)
    batches = train(data, renders.folder, classes=None, backend=backend)
    rendered = ReadAsTensor(renders.folder, floating, wrap)
    both = torch.stack([rendered[k][0] for k in range(len(rendered))] + [data[k][0] for k in range(len(data))])
    labels = torch.tensor(rendered.targets + data.targets)
    for images, told in batches:
        apart = (both[None] - images[:, None]).abs().flatten(2).amax(2)
        assert apart.amin(1).max() <= (1 / 255 if floating else 0)  # resizing bytes rounds, and both would fit
        assert labels[apart.argmin(1)].tolist() == told.tolist()


@dataclass
class Item:
    """A sample that checks itself, as anomalib's do: a batch of it is another class with other checks."""

    image: torch.Tensor
    label: torch.Tensor

    def __post_init__(self) -> None:
        assert self.image.ndim == 3


@dataclass
class Items(Item):
    def __post_init__(self) -> None:
        assert self.image.ndim == 4
        assert self.label.ndim == 1


@pytest.mark.parametrize("backend", RENDERED)
def test_samples_that_check_themselves(backend: str, white) -> None:
    module = Module(
        Rows(lambda image, label, _: Item(image, torch.tensor(label))),
        collate_fn=lambda items: Items(torch.stack([i.image for i in items]), torch.stack([i.label for i in items])),
    )
    batches = train(module, white, backend=backend)
    assert all(type(batch) is Items for batch in batches)
    assert {int(y) for b in batches for y, w in zip(b.label, is_white(b.image), strict=True) if w} == {2}


class Floats(Dataset):
    """Tensors in [0, 1] from no files, under a transform that takes any scale."""

    class_to_idx = CLASSES

    def __init__(self, transform) -> None:
        self.images, labels = pictures()
        self.targets, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), self.targets[index]


@pytest.mark.parametrize("backend", RENDERED)
@pytest.mark.parametrize(
    ("transform", "white"),
    [
        (lambda t: t * (0.9 + 0.2 * torch.rand(1)), (0.9, 1.1)),
        (lambda t: (t - 0.5) / 0.5 + 0.01 * torch.randn(1), (0.9, 1.1)),
        (lambda t: (t * 1.0).clamp(0, 1), (1.0, 1.0)),
        (lambda t: (t - 0.5) / 0.5, (1.0, 1.0)),
        (lambda t: t.float(), (1.0, 1.0)),
    ],
    ids=["random scale", "random shift", "clamped", "normalised", "float"],
)
def test_transforms_that_take_any_scale_get_the_datasets_own(backend: str, transform, white, tmp_path) -> None:
    """White must come out white, not 255 times as bright, and black not white."""
    source = white_set(tmp_path / "set", {"spot": 30}, tuple(CLASSES)).folder
    batches = train(Floats(transform), source, backend=backend, is_synthetic=True)
    made = torch.cat([batch[0][torch.as_tensor(batch[2])] for batch in batches])
    assert len(made) == 12
    assert white[0] - 0.05 <= float(made.min())
    assert float(made.max()) <= white[1] + 0.05


def test_a_name_that_several_classes_share_a_label_of_is_not_learned(tmp_path) -> None:
    """The first samples of a label all say "scratch"; a synthetic spot must not say so."""

    class Named(GoodOrNot):
        def __getitem__(self, index: int):
            kind = "good" if index < 32 else "scratch"
            return {"image": self.images[index], "label": self.targets[index], "kind": kind}

    source = white_set(tmp_path / "set", {"good": 12, **DEFECTS}).folder
    classes = {"good": 0, **dict.fromkeys(DEFECTS, 1)}
    with pytest.warns(UserWarning, match="samples carry 'kind' beside image and label"):
        train(Named(), source, backend="samples", balance="not majority", classes=classes)
