"""What generators train on: sizes, channels, streams, held-out groups, and input that cannot be trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from visynth.core.errors import DataError, UsageError
from visynth.core.pictures import fit_to, to_channels
from visynth.data.reading import read_images
from visynth.data.unpack import unpack
from visynth.lightning_modules.data import GeneratorData
from visynth.lightning_modules.samplers import Stream, StreamOrder


def test_a_folder_becomes_a_pool_with_its_facts(class_folders) -> None:
    data = GeneratorData(str(class_folders({"a": 5, "b": 3}, height=20, width=12)), 8)
    data.setup()
    assert data.pool.images.shape == (8, 1, 8, 8)
    assert data.facts.classes == ("a", "b")
    assert data.facts.counts == (5, 3)
    values = data.pool.images / 127.5 - 1
    assert data.facts.sigma_data == pytest.approx(values.std(), abs=1e-5)
    assert data.facts.mean == pytest.approx([values.mean()], abs=1e-5)
    assert sorted({m.split for m in data.members()}) == ["train"]


@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (3, 3), (4, 3)])
def test_channels_follow_the_images(class_folders, channels: int, wanted: int) -> None:
    data = GeneratorData(str(class_folders({"a": 3, "b": 3}, channels=channels)), 8)
    assert data.facts.channels == wanted


def test_sixteen_bits_stay_sixteen_bits(class_folders) -> None:
    data = GeneratorData(str(class_folders({"a": 3, "b": 3}, dtype="uint16")), 8)
    assert data.facts.dtype == "uint16"
    assert 0.3 < data.facts.sigma_data < 0.8


def test_groups_are_held_out_whole_and_recorded(samples: Path) -> None:
    data = GeneratorData(str(samples / "images"), 16, groups=str(samples / "groups.csv"), held_out=0.25)
    data.setup()
    members = data.members()
    sides = {split: {m.group for m in members if m.split == split} for split in ("train", "test")}
    assert sides["test"]
    assert not sides["train"] & sides["test"]
    assert len(data.pool.labels) == sum(m.split == "train" for m in members)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_the_share_held_out_is_the_share_asked_for(class_folders, share: float) -> None:
    data = GeneratorData(str(class_folders({"a": 40, "b": 40})), 8, held_out=share)
    data.setup()
    assert np.mean([m.split == "test" for m in data.members()]) == pytest.approx(share, abs=0.06)


def test_one_class_and_empty_classes_are_refused_with_the_way_out(class_folders) -> None:
    root = str(class_folders({"a": 4}))
    with pytest.raises(DataError, match=r"one class only.*one_class: true"):
        GeneratorData(root, 8).setup()
    GeneratorData(root, 8, one_class=True).setup()
    with pytest.raises(DataError, match="classes 'b' have no training images"):
        GeneratorData(root, 8, classes=["a", "b"]).setup()


def test_plain_images_are_refused(tmp_path: Path) -> None:
    from visynth.core.codec import encode_png

    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(encode_png(np.full((8, 8, 1), 7, np.uint8)))
    with pytest.raises(DataError, match="one plain colour"):
        GeneratorData(str(tmp_path), 8).setup()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"size": 2}, "size must be one number or"),
        ({"size": [8]}, "size must be one number or"),
        ({"fit": "stretch"}, "fit must be one of 'crop', 'pad', 'squash'"),
        ({"held_out": 1.0}, "held_out must be in"),
        ({"channels": 7}, "channels 1 to 4"),
    ],
)
def test_wrong_arguments_are_told(wrong, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        GeneratorData("x", **{"size": 8, **wrong})


def test_ways_of_fitting() -> None:
    image = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16, 1)
    assert (fit_to(image, (8, 8), "crop") == image[:, 4:12]).all()
    padded = fit_to(image, (16, 16), "pad")
    assert (padded[4:12] == image).all()
    assert (padded[3] == image[0]).all()
    assert fit_to(image, (4, 4), "squash").shape == (4, 4, 1)


def test_grey_colour_and_alpha() -> None:
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[..., 1] = 100
    assert to_channels(colour, 1)[0, 0, 0] == 59
    assert to_channels(colour, 4)[0, 0].tolist() == [0, 100, 0, 255]
    with pytest.raises(DataError, match="6 channels"):
        to_channels(np.zeros((2, 2, 6), np.uint8), 3)


class TestStream:
    def test_it_goes_on_where_training_stands(self) -> None:
        seen = [0]
        stream = Stream(lambda: seen[0], 4)
        assert list(stream) == [0, 1, 2, 3]
        seen[0] = 6
        assert list(stream) == [6, 7, 8, 9]

    def test_a_position_means_the_same_image_whenever_it_is_asked(self) -> None:
        labels = [0] * 90 + [1] * 10
        first, second = (StreamOrder(labels, temper=0.5, seed=3) for _ in range(2))
        asked = list(range(0, 30_000, 7))
        expected = [first.index(p) for p in asked]
        assert [second.index(p) for p in reversed(asked)] == expected[::-1]

    def test_tempering_draws_as_promised(self) -> None:
        order = StreamOrder([0] * 90 + [1] * 10, temper=0.5)
        rare = np.mean([order.index(p) >= 90 for p in range(20_000)])
        assert rare == pytest.approx(10**0.5 / (10**0.5 + 90**0.5), abs=0.01)


class TestUnpack:
    def test_digits_are_class_folders_of_8_pixels(self) -> None:
        images = read_images("sklearn:digits")
        assert len(images) == 1797
        assert images.classes == tuple("0123456789")
        assert images.image(images.items[0]).shape == (8, 8, 1)
        assert unpack("sklearn:digits") == images.root

    def test_medmnist_files_keep_their_splits_and_names(self, tmp_path: Path) -> None:
        numbers = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", 6), ("val", 2), ("test", 3)):
            arrays[f"{split}_images"] = numbers.integers(0, 255, (count, 28, 28), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(count).reshape(-1, 1) % 2
        np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
        images = read_images(tmp_path / "pneumoniamnist.npz")
        assert images.classes == ("normal", "pneumonia")
        assert {s: sum(i.split == s for i in images.items) for s in ("train", "val", "test")} == {
            "train": 6,
            "val": 2,
            "test": 3,
        }
        item = next(i for i in images.items if i.name == "train/pneumonia/00001.png")
        assert (images.image(item)[:, :, 0] == arrays["train_images"][1]).all()

    def test_other_arrays_are_named(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.zeros(3))
        with pytest.raises(DataError, match="holds the arrays 'x'"):
            read_images(tmp_path / "x.npz")
        with pytest.raises(DataError, match="there is no file"):
            read_images(tmp_path / "y.npz")

    @pytest.mark.data
    def test_the_real_set(self, real_data) -> None:
        images = read_images(real_data("pneumoniamnist") / "pneumoniamnist.npz")
        train = images.select(lambda item: item.split == "train")
        assert train.counts() == {"normal": 1214, "pneumonia": 3494}
