"""The leak guard: held-out images among those of the generator's fit are found, however a dataset shows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import pytorch_lightning
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler
from torchvision import transforms
from torchvision.datasets import CocoDetection, ImageFolder
from torchvision.transforms import v2

import visynth
from tests.mixing.test_mixing import PACKAGES, fit, folder_module, net
from tests.ranks import DDP, TRAINER, run_ranks
from visynth.core.errors import DataError
from visynth.core.members import overlaps
from visynth.data.reading import read_images
from visynth.jobs.held_out import assign_splits
from visynth.mixing import leaks
from visynth.mixing import wrapper as mixing
from visynth.mixing.leaks import check_leaks, datasets_of, file_paths, fingerprints


@pytest.fixture
def train(samples) -> Path:
    return samples / "images"


class TestFiles:
    def test_it_lists_what_it_meets(self, train, renders, tmp_path) -> None:
        for package in PACKAGES:
            wrapped = visynth.WithSynthetic(folder_module(package, train, validate=train), renders.folder, share=0.3)
            with pytest.raises(
                DataError, match=r"fitted on 48 held-out images(.|\n)*val: .*is a same file of train image good/"
            ):
                wrapped.setup("fit")
        visynth.WithSynthetic(folder_module("pytorch_lightning", train, validate=train), renders.folder, share=0).setup(
            "fit"
        )

    def test_it_reads_a_generators_members(self, train, composition) -> None:
        for source in composition:  # loaded, and its folder
            inner = folder_module("pytorch_lightning", train, validate=train)
            with pytest.raises(DataError, match="fitted on 48 held-out images"):
                visynth.WithSynthetic(inner, source, share=0.3).setup("fit")

    def test_it_sees_resaved_copies(self, train, renders, tmp_path) -> None:
        for path in sorted(train.rglob("*.png"))[:3]:
            target = tmp_path / "val" / path.parent.name / path.with_suffix(".jpg").name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).save(target, quality=90)
        wrapped = visynth.WithSynthetic(
            folder_module("pytorch_lightning", train, validate=tmp_path / "val"), renders.folder, share=0.3
        )
        with pytest.raises(DataError, match=r"3 held-out images(.|\n)*near-duplicate"):
            wrapped.setup("fit")

    def test_it_finds_names_relative_to_a_root(self, train, renders) -> None:
        class Relative(Dataset):
            def __init__(self, root) -> None:
                self.img_dir, self.files = root, sorted(p.name for p in root.glob("*.png"))

            def __len__(self) -> int:
                return len(self.files)

        with pytest.raises(DataError, match="fitted on 8 held-out images"):
            check_leaks(renders.members, {"val": DataLoader(Relative(train / "spot"))})
        lost = Relative(train / "spot")
        lost.img_dir = "elsewhere"
        assert fingerprints(lost, "val") is None
        with pytest.warns(UserWarning, match="cannot see the images"):
            check_leaks(renders.members, {"val": DataLoader(lost)})

    def test_it_looks_at_what_a_subset_sampler_draws(self, train) -> None:
        loader = DataLoader(ImageFolder(train), sampler=SubsetRandomSampler([3, 5]))
        assert len(file_paths(datasets_of(loader)[0])) == 2


class Opened(Dataset):
    """Images that nothing but reading shows, as most datasets of one's own are."""

    def __init__(self, root: Path, transform=None, form=lambda image: (image, 0)) -> None:
        self.hidden, self.transform, self.form = sorted(root.rglob("*.png")), transform, form

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, index: int):
        image = Image.open(self.hidden[index])
        return self.form(self.transform(image) if self.transform else image)


STEPS = transforms.Compose([transforms.CenterCrop(24), transforms.ToTensor(), transforms.Normalize(0.5, 0.2)])


class TestSamples:
    @pytest.mark.parametrize(
        "form",
        [
            lambda image: (image, 0),
            lambda image: {"image": np.asarray(image), "label": 0},
            lambda image: v2.functional.pil_to_tensor(image) if isinstance(image, Image.Image) else image,
        ],
        ids=["pair of PIL", "dict of array", "tensor alone"],
    )
    def test_pictures_are_seen_before_their_transforms(self, form, train, renders) -> None:
        data = Opened(train / "spot", STEPS, form)
        with pytest.raises(DataError, match=r"fitted on 8 held-out images(.|\n)*same pixels"):
            check_leaks(renders.members, {"val": DataLoader(data)})
        assert data.transform is STEPS

    def test_a_subset_is_read_and_no_more(self, train, renders) -> None:
        read = []
        data = Opened(train / "spot", None, lambda image: read.append(1) or (image, 0))
        with pytest.raises(DataError, match="fitted on 2 held-out images"):
            check_leaks(renders.members, {"val": DataLoader(Subset(data, [1, 5]))})
        assert len(read) == 3  # one to see what samples are

    def test_where_transforms_cannot_be_left_out_their_pictures_are_compared(self, train, renders) -> None:
        steps = transforms.Compose([transforms.Resize(24), transforms.ToTensor(), transforms.Normalize(0.5, 0.2)])
        with (
            pytest.warns(UserWarning, match="only as its transforms give them"),
            pytest.raises(DataError, match=r"fitted on [78] held-out images(.|\n)*near-duplicate"),
        ):
            check_leaks(renders.members, {"val": Opened(train / "spot", None, lambda image: (steps(image), 0))})

    def test_detection_sets_of_torchvision(self, train, renders, tmp_path) -> None:
        files = sorted(p.relative_to(train).as_posix() for p in (train / "spot").glob("*.png"))
        told = {
            "images": [{"id": n, "file_name": name, "width": 48, "height": 48} for n, name in enumerate(files)],
            "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}],
            "categories": [{"id": 1, "name": "spot"}],
        }
        (tmp_path / "coco.json").write_text(json.dumps(told))
        data = CocoDetection(train, tmp_path / "coco.json", transforms.ToTensor())
        with pytest.raises(DataError, match="fitted on 8 held-out images"):
            check_leaks(renders.members, {"val": DataLoader(data, collate_fn=list)})

    def test_what_shows_no_pictures_is_told(self, renders) -> None:
        class Batches(Dataset):
            def __len__(self) -> int:
                return 2

            def __getitem__(self, index: int):
                return torch.zeros(4, 1, 16, 16), torch.zeros(4)

        with pytest.warns(UserWarning, match="cannot see the images of the val dataset Batches"):
            check_leaks(renders.members, {"val": DataLoader(Batches(), batch_size=None)})


# -- blank images, likeness, stages, the cache, accepted pairs ------------------------------------------------------------


def write(folder: Path, images: dict[str, np.ndarray]) -> Path:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return folder


def part(seed: int, shot: int = 0) -> np.ndarray:
    """A part of one design under one light, as all the others, with grain of its own."""
    design = cv2.resize(np.random.default_rng(77).normal(120, 40, (6, 6)), (64, 64), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(seed).normal(0, 9, (64, 64))
    return np.clip(design + grain + np.random.default_rng(10**6 + shot).normal(0, 0.5, (64, 64)), 0, 255).astype(
        np.uint8
    )


def guard(train: Path, held: Path, **options) -> None:
    images = read_images(train)
    check_leaks(images.members("train"), {"val": DataLoader(ImageFolder(held))}, **options)


STRIPES = np.tile(np.where(np.arange(64) % 8 < 4, 40, 200).astype(np.uint8), (64, 1))
BLANK = {
    "a/black.png": np.zeros((64, 64), np.uint8),
    "a/white.png": np.full((64, 64), 255, np.uint8),
    "a/stripes.png": STRIPES,
}


def test_blank_images_meet_without_a_word(tmp_path, caplog) -> None:
    train = write(tmp_path / "train", {**BLANK, "b/part.png": part(0)})
    held = write(tmp_path / "val", {**BLANK, "a/other.png": np.zeros((32, 32), np.uint8), "b/part.png": part(1)})
    with caplog.at_level("INFO"):
        guard(train, held)
    assert "3 held-out images are as blank as training images" in caplog.text


def test_parts_that_look_alike_are_no_leak_and_another_copy_is(tmp_path) -> None:
    train = write(tmp_path / "train", {"a/0.png": part(0), "b/1.png": part(1)})
    others = {f"a/{seed}.png": part(seed) for seed in range(2, 30)}
    candidates = read_images(write(tmp_path / "others", others)).members("val")
    trained = read_images(train).members("train")
    coarse = [replace(m, fine="") for m in trained]
    assert overlaps(candidates, coarse), "their coarse structure agrees: the old hash alone would object"
    assert not overlaps(candidates, trained)
    again = write(tmp_path / "again", {"a/again.png": part(0, shot=1)})
    Image.fromarray(part(1)).save(again / "a/again.jpg", quality=80)
    with pytest.raises(DataError, match=r"fitted on 2 held-out images \(2 by near-duplicate\)"):
        guard(train, again)


def test_pairs_that_were_looked_at_are_accepted_file_by_file(tmp_path) -> None:
    train = write(tmp_path / "train", {"a/0.png": part(0), "b/1.png": part(1)})
    held = write(tmp_path / "val", {"a/x.png": part(0), "b/y.png": part(1)})
    with pytest.raises(DataError, match=r"2 held-out images \(2 by same file\)(.|\n)*columns candidate and member"):
        guard(train, held)
    with pytest.raises(DataError, match=r"1 held-out images(.|\n)*b/y.png"):
        guard(train, held, accept=[("a/x.png", "a/0.png")])
    with pytest.raises(DataError, match="2 held-out images"):
        guard(train, held, accept=[("a/x.png", "b/1.png")])
    guard(train, held, accept=["a/x.png", "b/y.png"])
    (tmp_path / "fine.csv").write_text("candidate;member\na/x.png;a/0.png\nb/y.png;\n")
    guard(train, held, accept=tmp_path / "fine.csv")
    (tmp_path / "wrong.csv").write_text("file,member\n")
    with pytest.raises(DataError, match="must have the columns candidate and member, but has 'file', 'member'"):
        guard(train, held, accept=tmp_path / "wrong.csv")


def test_a_test_set_of_its_own_stage_is_looked_at_then(train, renders, caplog) -> None:
    class Data(pytorch_lightning.LightningDataModule):
        def setup(self, stage=None):
            if stage == "test":
                self.held = ImageFolder(train, transforms.ToTensor())

        def train_dataloader(self):
            return DataLoader(ImageFolder(train, transforms.ToTensor()), 4)

        def test_dataloader(self):
            return DataLoader(self.held, 4)

    wrapped = visynth.WithSynthetic(Data(), renders.folder, share=0.3)
    with caplog.at_level("INFO"):
        wrapped.setup("fit")
    assert "test_dataloader() gives nothing to look at yet (AttributeError" in caplog.text
    with pytest.raises(DataError, match=r"fitted on 48 held-out images(.|\n)*test: "):
        wrapped.setup("test")


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no")
def test_a_validation_loader_that_nobody_asks_for_may_fail(train, renders, caplog, tmp_path) -> None:
    class Data(pytorch_lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(
                ImageFolder(train, transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor()])), 4
            )

        def val_dataloader(self):
            raise KeyError("my own mistake")

    class Validated(type(net("pytorch_lightning"))):
        def validation_step(self, batch, index):
            pass

    wrapped = visynth.WithSynthetic(Data(), renders.folder, share=0.3)
    with caplog.at_level("INFO"):
        fit("pytorch_lightning", wrapped, tmp_path, epochs=1)
    assert "val_dataloader() gives nothing to look at yet (KeyError: 'my own mistake')" in caplog.text
    with pytest.raises(KeyError, match="my own mistake"):  # and is the user's own to see where Lightning asks
        pytorch_lightning.Trainer(**TRAINER, max_epochs=1).fit(
            Validated(), visynth.WithSynthetic(Data(), renders.folder, share=0.3)
        )


def test_files_that_did_not_change_are_not_read_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VISYNTH_CACHE", str(tmp_path / "cache"))
    held = ImageFolder(write(tmp_path / "val", {"a/x.png": part(0), "b/y.png": part(1)}))
    read = []
    decode = leaks.decode
    monkeypatch.setattr(leaks, "decode", lambda path: read.append(path) or decode(path))
    first = fingerprints(held, "val")
    assert len(read) == 2
    assert fingerprints(held, "val") == first
    assert len(read) == 2
    write(tmp_path / "val", {"a/x.png": part(5)})
    assert fingerprints(held, "val") != first
    assert len(read) == 4


def guarded(rank: int, train: str, folder: str, out: str) -> None:
    calls = []
    check = mixing.check_leaks
    mixing.check_leaks = lambda *told: calls.append(1) or check(*told)
    try:
        module = folder_module("pytorch_lightning", Path(train), validate=Path(train))
        trainer = pytorch_lightning.Trainer(**DDP, max_epochs=1)
        trainer.fit(net("pytorch_lightning"), visynth.WithSynthetic(module, folder, share=0.3))
        told = "none"
    except DataError as error:
        told = str(error)
    Path(out, f"{rank}.json").write_text(json.dumps([len(calls), told]))


def test_one_process_looks_and_all_are_told(train, renders, tmp_path) -> None:
    run_ranks(guarded, str(train), str(renders.folder), str(tmp_path))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [calls for calls, _ in ranks] == [1, 0]
    assert all("fitted on 48 held-out images" in told for _, told in ranks)


def test_evaluate_tells_what_it_leaves_out(tmp_path) -> None:
    trained = read_images(write(tmp_path / "train", {"a/0.png": part(0), "b/1.png": part(1)})).members("train")
    both = write(
        tmp_path / "all", {"a/0.png": part(0), "b/1.png": part(1), "a/near.png": part(0, shot=3), "b/new.png": part(9)}
    )
    found, _ = assign_splits(read_images(both), trained)
    assert {i.name: i.split for i in found.items} == {"a/0.png": "train", "b/1.png": "train", "b/new.png": "test"}
    assert [(b.name, b.reason) for b in found.bad] == [
        ("a/near.png", "is a near-duplicate of training image a/0.png, so it does not test")
    ]
    assert len(assign_splits(read_images(both), trained, ["a/near.png"])[0]) == 4
