"""Masks, boxes and transforms: what a synthetic sample's label is, after the user's own transforms have moved it."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2

import visynth
from tests.mixing.white import BOX, region, white_set
from visynth.core.errors import UsageError
from visynth.mixing.convert import fast_adapter, find_converter
from visynth.mixing.targets import BoxTarget, MaskTarget, Truth, labels_in, probabilities, target_of

TRUTH = Truth(2, region(16), (BOX,))
GREY = np.full((16, 16, 1), 255, np.uint8)


@pytest.fixture(scope="session")
def white(tmp_path_factory):
    return white_set(tmp_path_factory.mktemp("white") / "set", {"spot": 30}, ("good", "spot"))


def module(data, **loader):
    class Data(pytorch_lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(data, 4, **loader)

    return Data()


def mixed(data, folder, **options):
    told = {
        "share": 0.5,
        "balance": {"spot": 9},
        "spread": 0.0,
        "classes": {"spot": 3},
        "leak_guard": False,
        "backend": "samples",
    }
    return visynth.WithSynthetic(module(data), folder, **{**told, **options}).train_dataloader().dataset


def target(count: int = 1, **more) -> dict:
    boxes = torch.tensor([[1.0, 2.0, 5.0, 9.0]] * count).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.full((count,), 1), **more}


class Pairs(Dataset):
    """``(picture, target)`` through a joint transform, as torchvision's detection and segmentation sets give them."""

    def __init__(self, of, joint=None, count: int = 12, side: int = 16) -> None:
        self.of, self.count, self.side = of, count, side
        if joint is not None:
            self.transforms = joint

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        rng = np.random.default_rng(index)
        image = Image.fromarray(rng.integers(0, 200, (self.side, self.side, 3), dtype=np.uint8))
        pair = image, self.of(index)
        return self.transforms(*pair) if hasattr(self, "transforms") else pair


def detection(_: int):
    boxes = tv_tensors.BoundingBoxes([[1.0, 2.0, 5.0, 9.0]], format="XYXY", canvas_size=(16, 16))
    return {"boxes": boxes, "labels": torch.tensor([1])}


JOINT = v2.Compose(
    [v2.ToImage(), v2.Resize((32, 32)), v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32, scale=True)]
)


class TestBoxes:
    def test_a_joint_transform_moves_them(self, white) -> None:
        dataset = mixed(Pairs(detection, JOINT), white.folder)
        image, made = dataset[next(iter(dataset.plan()))]
        assert image.shape == (3, 32, 32)
        assert isinstance(made["boxes"], tv_tensors.BoundingBoxes)
        # (4, 4, 12, 12) twice as large is (8, 8, 24, 24), and the same again after the flip.
        assert made["boxes"].tolist() == [[8.0, 8.0, 24.0, 24.0]]
        assert made["labels"].tolist() == [3]

    def test_without_a_transform_they_are_scaled_with_the_picture(self, white) -> None:
        class Large(Pairs):
            def __getitem__(self, index):
                return torch.rand(3, 32, 32), target(image_id=torch.tensor([index]))

        dataset = mixed(Large(None), white.folder)
        image, made = dataset[next(iter(dataset.plan()))]
        assert image.shape == (3, 32, 32)
        assert type(made["boxes"]) is torch.Tensor
        assert made["boxes"].tolist() == [[8.0, 8.0, 24.0, 24.0]]
        assert made["image_id"].tolist() == [-1]

    def test_pictures_without_boxes_get_empty_targets(self) -> None:
        kind = BoxTarget(target(2, area=torch.zeros(2), iscrowd=torch.zeros(2, dtype=torch.int64)))
        empty = Truth(None, None, ())
        made = kind.finish(kind.raw(empty, (16, 16)), empty)
        assert made["boxes"].shape == (0, 4)
        assert made["labels"].shape == made["area"].shape == made["iscrowd"].shape == (0,)

    def test_area_and_masks_are_filled(self) -> None:
        kind = BoxTarget(target(1, area=torch.zeros(1), masks=torch.zeros(1, 16, 16, dtype=torch.uint8)))
        made = kind.finish(kind.raw(TRUTH, (16, 16)), TRUTH)
        assert made["area"].tolist() == [64.0]
        assert made["masks"].dtype == torch.uint8
        assert np.array_equal(made["masks"][0].numpy().astype(bool), region(16))

    def test_boxes_that_a_crop_cut_off_are_left_out(self) -> None:
        kind = BoxTarget(target())
        raw = kind.raw(Truth(1, None, (BOX, (13.0, 13.0, 15.0, 15.0))), (16, 16))
        cropped = v2.functional.crop(raw["boxes"], 0, 0, 12, 12)
        made = kind.finish({**raw, "boxes": v2.functional.clamp_bounding_boxes(cropped)}, TRUTH)
        assert made["boxes"].tolist() == [[4.0, 4.0, 12.0, 12.0]]
        assert made["labels"].tolist() == [1]

    def test_albumentations_moves_them_too(self, white) -> None:
        import albumentations as A  # noqa: N812
        from albumentations.pytorch import ToTensorV2

        class Album(Pairs):
            transform = A.Compose(
                [A.Resize(32, 32), A.HorizontalFlip(p=1.0), A.Normalize(), ToTensorV2()],
                bbox_params=A.BboxParams("pascal_voc", label_fields=["names"]),
            )

            def __getitem__(self, index):
                image = np.random.default_rng(index).integers(0, 200, (16, 16, 3), dtype=np.uint8)
                out = self.transform(image=image, bboxes=[[1, 2, 5, 9]], names=[1])
                return out["image"], {"boxes": torch.tensor(out["bboxes"]), "labels": torch.tensor(out["names"])}

        dataset = mixed(Album(None), white.folder)
        image, made = dataset[next(iter(dataset.plan()))]
        assert float(image[0].max()) == pytest.approx((1 - 0.485) / 0.229, abs=1e-3)
        assert made["boxes"].tolist() == [[8.0, 8.0, 24.0, 24.0]]
        assert made["labels"].tolist() == [3]

    def test_keys_that_nobody_can_fill_are_refused(self) -> None:
        with pytest.raises(UsageError, match="Leave out 'keypoints'"):
            BoxTarget(target(1, keypoints=torch.zeros(1, 3)))
        with pytest.raises(UsageError, match="needs 'boxes' and 'labels'"):
            target_of({"class": 3})
        boxes = tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYWH", canvas_size=(9, 9))
        with pytest.raises(UsageError, match="XYWH"):
            BoxTarget({"boxes": boxes, "labels": torch.tensor([1])})

    def test_numbers_of_classes_must_be_told(self, white) -> None:
        with pytest.raises(
            UsageError, match=r"must be matched with the dataset's labels, and the dataset does not say"
        ):
            mixed(Pairs(detection, JOINT), white.folder, classes=None)


class TestMasks:
    @pytest.mark.parametrize(
        "real",
        [
            torch.zeros(16, 16, dtype=torch.int64),
            torch.zeros(1, 16, 16, dtype=torch.uint8),
            tv_tensors.Mask(torch.zeros(16, 16, dtype=torch.int64)),
            np.zeros((16, 16), np.int32),
            Image.new("L", (16, 16)),
            Image.new("P", (16, 16)),
        ],
    )
    def test_the_users_type_with_the_class_where_the_region_is(self, real) -> None:
        kind = MaskTarget(real)
        made = kind.finish(kind.raw(TRUTH, (16, 16)), TRUTH)
        assert type(made) is type(real)
        assert getattr(made, "dtype", None) == getattr(real, "dtype", None)
        assert not isinstance(real, Image.Image) or made.mode == real.mode
        assert np.array_equal(np.asarray(made).squeeze(), region(16) * 2)

    def test_floating_masks_are_binary(self) -> None:
        kind = MaskTarget(torch.zeros(1, 16, 16))
        assert kind.finish(kind.raw(TRUTH, (16, 16)), TRUTH).unique().tolist() == [0.0, 1.0]

    def test_a_joint_transform_moves_them(self, white) -> None:
        dataset = mixed(Pairs(lambda _: tv_tensors.Mask(torch.zeros(16, 16, dtype=torch.int64)), JOINT), white.folder)
        _, made = dataset[next(iter(dataset.plan()))]
        assert made.shape == (32, 32)
        assert np.array_equal(made.numpy(), np.kron(region(16), np.ones((2, 2), int)) * 3)

    def test_an_asymmetric_region_is_flipped_with_its_picture(self, tmp_path) -> None:
        picture = GREY.copy()
        picture[:, :8] = 0
        half = picture[:, :, 0] > 0
        joint = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32, scale=True)])
        real = joint(Image.fromarray(picture[:, :, 0]), tv_tensors.Mask(torch.zeros(16, 16, dtype=torch.int64)))
        data = Pairs(None, joint)
        convert = find_converter(data, real[0], real[0], (MaskTarget(real[1]),), None, picture)
        image, mask = convert(picture, Truth(1, half, ()))
        assert torch.equal(image[0] > 0.5, mask == 1)
        assert bool((mask[:, :8] == 1).all())

    def test_a_mask_beside_a_class_is_filled(self, white) -> None:
        class Both(Pairs):
            class_to_idx = {"good": 0, "spot": 1}  # noqa: RUF012
            targets = [0] * 9 + [1] * 3

            def __getitem__(self, index):
                image = torch.rand(3, 16, 16)
                return {"image": image, "label": self.targets[index], "mask": torch.zeros(16, 16, dtype=torch.uint8)}

        dataset = mixed(Both(None), white.folder, classes=None)
        made = dataset[next(iter(dataset.plan()))]
        assert made["label"] == 1
        assert np.array_equal(made["mask"].numpy(), region(16))

    def test_one_channel_a_class_is_refused(self) -> None:
        with pytest.raises(UsageError, match="not one channel a class"):
            MaskTarget(torch.zeros(4, 16, 16))


class TestHelpers:
    def test_labels_in(self) -> None:
        assert labels_in(torch.tensor([[0, 3], [3, 0]])) == {0, 3}
        assert labels_in(torch.tensor([0.2, 0.0, 0.8])) == {0, 2}
        assert labels_in({"labels": torch.tensor([], dtype=torch.int64)}) == set()

    def test_probabilities_of_a_vector_stay(self) -> None:
        assert probabilities(torch.tensor([0.25, 0.75]), 2).tolist() == [0.25, 0.75]
        with pytest.raises(UsageError, match="labels are vectors of 2"):
            probabilities(torch.tensor([0.25, 0.75]), 3)


class TestTheFastWay:
    """Deterministic transforms become one scaling on the device; what draws random numbers does not."""

    def adapter(self, steps, picture):
        class Data:
            transform = steps

        real = steps(Image.fromarray(picture).convert("RGB"))
        convert = find_converter(Data(), real, real, (target_of(1),), None, picture)
        return convert, fast_adapter(convert, real, picture)

    def test_it_gives_what_the_transform_gives(self, picture) -> None:
        shot = np.repeat(picture(32, 32, 1), 3, axis=2)
        normal = transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        convert, fast = self.adapter(transforms.Compose([transforms.ToTensor(), normal]), shot)
        assert fast is not None
        made = fast.batch(torch.from_numpy(shot.transpose(2, 0, 1).copy())[None])[0]
        assert torch.allclose(made, convert(shot, Truth(1, None))[0], atol=1e-5)

    @pytest.mark.parametrize(
        "step", [transforms.RandomHorizontalFlip(), transforms.ColorJitter(0.5), transforms.RandomCrop(16)]
    )
    def test_it_is_not_taken_where_the_transform_draws(self, step, picture) -> None:
        _, fast = self.adapter(transforms.Compose([step, transforms.ToTensor()]), np.repeat(picture(32, 32), 3, axis=2))
        assert fast is None
