"""The leak guard: held-out images among those of the generator's fit are found, however a dataset shows them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler
from torchvision import transforms
from torchvision.datasets import CocoDetection, ImageFolder
from torchvision.transforms import v2

import visynth
from tests.data.test_mixing import PACKAGES, folder_module
from visynth.data.leaks import check_leaks, datasets_of, file_paths, fingerprints
from visynth.errors import DataError


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
        with pytest.warns(UserWarning, match="cannot see the pictures"):
            check_leaks(renders.members, {"val": DataLoader(lost)})

    def test_it_looks_at_what_a_subset_sampler_draws(self, train) -> None:
        loader = DataLoader(ImageFolder(train), sampler=SubsetRandomSampler([3, 5]))
        assert len(file_paths(datasets_of(loader)[0])) == 2


class Opened(Dataset):
    """Pictures that nothing but reading shows, as most datasets of one's own are."""

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

        with pytest.warns(UserWarning, match="cannot see the pictures of the val dataset Batches"):
            check_leaks(renders.members, {"val": DataLoader(Batches(), batch_size=None)})
