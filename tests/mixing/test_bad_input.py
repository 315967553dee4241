"""Renders and generators that cannot be mixed: each backend says what is wrong before the first step, or at the first
batch."""

from __future__ import annotations

import json
import shutil

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import visynth
from tests.mixing.kinds import CLASSES, pictures
from tests.mixing.test_policies import BACKENDS, Watch
from tests.mixing.white import White, white_set
from tests.ranks import TRAINER
from visynth.core.errors import DataError, IntegrityError, UsageError

RENDERED = ["samples", "batches"]


class Tensors(pytorch_lightning.LightningDataModule):
    """Rows of ``[C, 16, 16]`` in [0, 1], of as many channels as asked for."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels

    def train_dataloader(self):
        images, labels = pictures()
        return DataLoader(TensorDataset(images.expand(-1, self.channels, -1, -1), labels), 8, shuffle=True)


def train(source, backend: str, channels: int = 1, **options):
    """Fit for an epoch; gives the batches' images."""
    told = {"balance": {"spot": 12}, "share": 0.25, "spread": 0.0, "classes": CLASSES}
    data = visynth.WithSynthetic(Tensors(channels), source, backend=backend, **{**told, **options})
    module = Watch()
    pytorch_lightning.Trainer(**TRAINER, max_epochs=1).fit(module, data)
    return torch.cat([batch[0] for batch in module.batches])


def made(backend: str, folder, **kind):
    """White images for a backend: a rendered set or a generator."""
    return White(**kind) if backend == "online" else white_set(folder / "set", {"spot": 30}, **kind).folder


def is_white(images: torch.Tensor) -> int:
    return int((images.flatten(1).amin(1) > 0.99).sum())


@pytest.mark.parametrize("backend", RENDERED)
class TestFolders:
    def test_empty(self, backend: str, tmp_path) -> None:
        with pytest.raises(DataError, match="holds no images: there is nothing to mix"):
            train(white_set(tmp_path / "set", {}, tuple(CLASSES)).folder, backend)

    def test_missing_files_are_listed(self, backend: str, tmp_path) -> None:
        folder = white_set(tmp_path / "set", {"spot": 30}).folder
        for number in (3, 8):
            (folder / "spot" / f"{number:04}.png").unlink()
        with pytest.raises(
            IntegrityError, match=r"\(2 files\):\n.*spot/0003.png is missing\n.*spot/0008.png is missing"
        ):
            train(folder, backend)

    def test_another_schema(self, backend: str, tmp_path) -> None:
        folder = white_set(tmp_path / "set", {"spot": 30}).folder
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps({**plan, "schema": "visynth.renders/0"}))
        with pytest.raises(IntegrityError, match=r"has schemas 'visynth.renders/0' and .*; this version reads"):
            train(folder, backend)

    def test_unfinished(self, backend: str, tmp_path) -> None:
        folder = white_set(tmp_path / "set", {"spot": 30}).folder
        (folder / "summary.json").unlink()
        with pytest.raises(IntegrityError, match="its rendering did not finish"):
            train(folder, backend)

    def test_a_picture_that_went_bad_later_is_named(self, backend: str, tmp_path) -> None:
        folder = white_set(tmp_path / "set", {"spot": 30}).folder
        for path in sorted((folder / "spot").glob("*.png"))[1:]:
            path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(DataError, match=r"set/spot/00\d\d.png"):
            train(folder, backend)


@pytest.mark.parametrize("backend", BACKENDS)
class TestPictures:
    def test_unknown_classes(self, backend: str, tmp_path) -> None:
        source = White(("dent",)) if backend == "online" else white_set(tmp_path / "set", {"dent": 9}).folder
        with pytest.raises(UsageError, match="classes 'dent' are not among"):
            train(source, backend, balance={"dent": 3})

    def test_other_sizes_become_the_users(self, backend: str, tmp_path) -> None:
        images = train(made(backend, tmp_path, side=40), backend)
        assert images.shape[1:] == (1, 16, 16)
        assert is_white(images) == 12

    def test_grey_becomes_colour_and_colour_grey(self, backend: str, tmp_path) -> None:
        images = train(made(backend, tmp_path / "grey"), backend, channels=3)
        assert images.shape[1:] == (3, 16, 16)
        assert is_white(images) == 12
        images = train(made(backend, tmp_path / "colour", channels=3), backend)
        assert images.shape[1:] == (1, 16, 16)
        assert is_white(images) == 12

    def test_other_channels_have_no_meaning_here(self, backend: str, tmp_path) -> None:
        with pytest.raises(UsageError, match=r"rendered images have 4 channels, the dataset's samples 1"):
            train(made(backend, tmp_path, channels=4), backend)

    def test_another_shape_is_not_squashed(self, backend: str, tmp_path) -> None:
        with pytest.raises(UsageError, match="40x20, the dataset's samples 16x16: that would squash them"):
            train(made(backend, tmp_path, side=(40, 20)), backend)


class TestGenerators:
    def test_a_folder_of_another_schema(self, tmp_path) -> None:
        White().save(tmp_path / "generator")
        path = tmp_path / "generator" / "generator.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": "visynth.generator/0"}))
        with pytest.raises(IntegrityError, match=r"visynth\.generator/0"):
            train(tmp_path / "generator", "online")

    def test_nothing_there(self, tmp_path) -> None:
        with pytest.raises(
            IntegrityError, match=r"there is no folder .*nothing: give a rendered set .* or a generator's folder"
        ):
            train(tmp_path / "nothing", "online")

    def test_weights_lost(self, tmp_path) -> None:
        White().save(tmp_path / "generator")
        weights = [p for p in (tmp_path / "generator").iterdir() if p.suffix == ".safetensors"]
        shutil.move(weights[0], tmp_path)
        with pytest.raises(IntegrityError, match="safetensors"):
            train(tmp_path / "generator", "online")
