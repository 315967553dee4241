"""Folders, lists and COCO files; what is wrong with them is told together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from visynth.core.codec import encode_png
from visynth.core.errors import DataError, UsageError
from visynth.data.masks import load_mask, mask_problem
from visynth.data.reading import read_images


def test_class_folders(class_folders) -> None:
    images = read_images(class_folders({"b": 2, "a": 3}))
    assert images.counts() == {"a": 3, "b": 2}
    assert [item.name for item in images.items][:2] == ["a/a_0.png", "a/a_1.png"]
    assert images.image(images.items[0]).shape == (12, 10, 1)


def test_split_folders(class_folders, tmp_path) -> None:
    class_folders({"a": 2, "b": 1}, root="set/train")
    class_folders({"a": 1, "b": 1}, root="set/valid")
    images = read_images(tmp_path / "set")
    assert [item.split for item in images.items] == ["train"] * 3 + ["val"] * 2
    assert images.items[0].name == "train/a/a_0.png"


def test_missing_folder(tmp_path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        read_images(tmp_path / "nothing")


def test_a_root_of_folders_of_folders_names_the_likely_one(class_folders, tmp_path) -> None:
    class_folders({"a": 2, "b": 1}, root="set/images")
    class_folders({"a": 2, "b": 1}, root="set/masks")
    with pytest.raises(DataError, match=r"hold only folders\)\. Did you mean .*set/images\?"):
        read_images(tmp_path / "set")


def test_a_flat_folder_is_refused_with_the_way_out(class_folders, tmp_path) -> None:
    class_folders({"a": 2})
    with pytest.raises(DataError, match="holds 2 images but no class folders"):
        read_images(tmp_path / "images" / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read_images(tmp_path / "empty")


def test_bad_files_are_told_together_and_counted(class_folders) -> None:
    root = class_folders({"a": 20, "b": 20})
    (root / "a" / "zero.png").write_bytes(b"")
    (root / "a" / "notes.txt").write_text("x")
    good = (root / "b" / "b_0.png").read_bytes()
    (root / "b" / "cut.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(
        DataError,
        match=r"3 of 43 images cannot be used(.|\n)*notes.txt is not an image(.|\n)*zero.png is empty(.|\n)*cut.png is damaged",
    ):
        read_images(root)
    images = read_images(root, max_bad_fraction=0.1)
    assert len(images) == 40
    assert len(images.bad) == 3


def test_csv_and_jsonl_lists(class_folders, tmp_path) -> None:
    class_folders({"a": 2, "b": 1})
    (tmp_path / "list.csv").write_text(
        "file,label,group,split\nimages/a/a_0.png,x;y,g1,train\nimages/a/a_1.png,,g1,test\nimages/b/b_0.png,y,g2,val\n"
    )
    images = read_images(tmp_path / "list.csv")
    assert [item.labels for item in images.items] == [("x", "y"), (), ("y",)]
    assert [item.split for item in images.items] == ["train", "test", "val"]
    assert images.counts() == {"x": 1, "y": 2}
    rows = [{"file_name": "images/a/a_0.png", "labels": ["y", "x"]}, {"file_name": "images/b/b_0.png", "labels": "y"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [item.labels for item in read_images(tmp_path / "list.jsonl").items] == [("x", "y"), ("y",)]
    with pytest.raises(DataError, match="has 2 classes"):
        _ = images.items[0].label


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,kind\na.png,x\n", "none for the label"),
        (
            "file,label,split\n,x,\na.png,x,sideways\n",
            r"has 2 problems(.|\n)*row 2, column 'file': no file(.|\n)*row 3, column 'split': 'sideways' is not one of",
        ),
        ("file,label\na.png,x\na.png,y\n", "row 3: a.png is listed twice"),
        ("file,label\n", "has no rows"),
        ("file,label\nnothing.png,x\n", "listed but does not exist"),
    ],
)
def test_bad_lists(tmp_path, picture, text: str, told: str) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(picture()))
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        read_images(tmp_path / "list.csv")


def test_coco_with_boxes_and_polygons(class_folders, tmp_path) -> None:
    class_folders({"a": 2}, root="images")
    data = {
        "images": [{"id": 1, "file_name": "a/a_0.png"}, {"id": 2, "file_name": "a/a_1.png"}],
        "categories": [{"id": 5, "name": "scratch"}, {"id": 3, "name": "dent"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 5,
                "bbox": [1, 2, 4, 5],
                "segmentation": [[2, 2, 6, 2, 6, 6, 2, 6]],
            },
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2]},
        ],
    }
    (tmp_path / "ann.json").write_text(json.dumps(data))
    images = read_images(tmp_path / "ann.json")
    assert images.classes == ("dent", "scratch", "background")  # by id; and what is without annotations
    assert images.items[0].labels == ("dent", "scratch")
    assert images.items[1].labels == ("background",)
    assert images.notes == ("1 images without annotations are the class 'background'",)
    assert images.items[0].boxes == (("scratch", 1.0, 2.0, 5.0, 7.0), ("dent", 0.0, 0.0, 2.0, 2.0))
    mask = load_mask(images, images.items[0], "scratch")
    assert mask is not None
    assert mask[2:6, 2:6].all()
    assert mask.sum() == 16, "4 x 4 pixels, as pycocotools draws them"
    assert load_mask(images, images.items[0], "dent") is None

    data["annotations"].append({"id": 3, "image_id": 9, "category_id": 5, "bbox": [0, 0, 1, 1]})
    (tmp_path / "ann.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="annotation 3: image_id 9 is no image of the file"):
        read_images(tmp_path / "ann.json")
    (tmp_path / "ann.json").write_text("[]")
    with pytest.raises(DataError, match="is not a COCO file"):
        read_images(tmp_path / "ann.json")


def test_groups_file(class_folders, tmp_path) -> None:
    root = class_folders({"a": 2, "b": 1})
    groups = tmp_path / "groups.csv"
    groups.write_text("file,group\na/a_0.png,1\na/a_1.png,1\nb/b_0.png,2\n")
    assert read_images(root, groups=groups).groups() == {"a": 1, "b": 1}
    groups.write_text("file,group\na/a_0.png,1\nc/wrong.png,1\n")
    with pytest.raises(DataError, match=r"3 problems(.|\n)*c/wrong.png is not an image(.|\n)*a/a_1.png has no group"):
        read_images(root, groups=groups)
    groups.write_text("file,group\nx.png,1\n")
    with pytest.raises(DataError, match=r"should look like 'a/a_0\.png'"):
        read_images(root, groups=groups)
    groups.write_text("name,tile\nx.png,1\n")
    with pytest.raises(DataError, match="must have the columns file and group, but has name, tile"):
        read_images(root, groups=groups)


def test_group_pattern(class_folders) -> None:
    root = class_folders({"a": 3})
    images = read_images(root, group_pattern=r"_(\d)\.png")
    assert [item.group for item in images.items] == ["0", "1", "2"]
    with pytest.raises(UsageError, match="is not a regular expression"):
        read_images(root, group_pattern="(")
    with pytest.raises(DataError, match="has no group"):
        read_images(root, group_pattern="z+")
    with pytest.raises(UsageError, match="not both"):
        read_images(root, group_pattern="a", groups="b")


def test_masks_must_fit_their_images(class_folders, tmp_path) -> None:
    root = class_folders({"a": 2})
    (tmp_path / "masks" / "a").mkdir(parents=True)
    for index, shape in enumerate([(12, 10, 1), (5, 5, 1)]):
        (tmp_path / "masks" / "a" / f"a_{index}.png").write_bytes(encode_png(np.ones(shape, np.uint8)))
    with pytest.raises(DataError, match=r"mask of a/a_1.png is 5x5, the image is 12x10"):
        read_images(root, masks=tmp_path / "masks")
    with pytest.raises(DataError, match="there is no mask folder"):
        read_images(root, masks=tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"no mask in .* belongs to an image"):
        read_images(root, masks=tmp_path / "other")


def test_alpha_and_jpeg_ripples_are_no_mask(class_folders, tmp_path) -> None:
    import cv2

    root = class_folders({"a": 2}, height=32, width=32)
    (tmp_path / "masks" / "a").mkdir(parents=True)
    area = np.zeros((32, 32), np.uint8)
    area[8:16, 8:16] = 255
    opaque = np.dstack([area, area, area, np.full_like(area, 255)])
    (tmp_path / "masks" / "a" / "a_0.png").write_bytes(encode_png(opaque))
    cv2.imwrite(str(tmp_path / "masks" / "a" / "a_1.jpg"), area, [cv2.IMWRITE_JPEG_QUALITY, 60])
    images = read_images(root, masks=tmp_path / "masks")
    for item in images.items:
        assert load_mask(images, item).sum() == 64


class TestJudge:
    image = np.random.default_rng(0).normal(100, 4, (60, 60, 1)).clip(0, 255).astype(np.uint8)

    def square(self, side: int) -> np.ndarray:
        mask = np.zeros((60, 60), bool)
        mask[20 : 20 + side, 20 : 20 + side] = True
        return mask

    def test_a_visible_defect_is_fine(self) -> None:
        image, mask = self.image.copy(), self.square(8)
        image[mask] += 40
        assert mask_problem(image, mask) is None

    def test_reasons(self) -> None:
        assert "empty" in mask_problem(self.image, self.square(0))
        assert "covers 34%" in mask_problem(self.image, self.square(35))
        told = [
            mask_problem(self.image, np.roll(self.square(12), shift, axis=(0, 1)))
            for shift in (-9, -6, -3, 0, 3, 6, 9, 12)
        ]
        assert sum("the outline shows nothing" in (reason or "") for reason in told) >= 6
        wide = np.zeros((60, 60), bool)
        wide[5:55, 5:55] = True  # no place beside it: inside and outside are compared
        assert "look alike" in mask_problem(self.image, wide, max_area=1.1)

    def test_a_flat_patch_in_rough_ground_is_seen_by_its_texture(self) -> None:
        image, mask = self.image.copy(), self.square(12)
        image[mask] = 100
        assert mask_problem(image, mask) is None


@pytest.mark.data
def test_magnetic_tile_masks_are_judged_as_one_sees_them(real_data) -> None:
    root = real_data("magnetic_tile")
    images = read_images(root / "images", masks=root / "masks", groups=root / "groups.csv")
    assert images.counts() == {"blowhole": 115, "break": 85, "crack": 57, "fray": 32, "free": 952, "uneven": 103}
    bad = dict.fromkeys(images.classes, 0)
    for item in images.items:
        if item.label != "free" and mask_problem(images.image(item), load_mask(images, item)) is not None:
            bad[item.label] += 1
    assert bad["blowhole"] == bad["crack"] == 0
    assert bad["fray"] >= 16
    assert bad["uneven"] > 52
    with pytest.raises(DataError, match=r"Did you mean .*magnetic_tile/images\?"):
        read_images(root)
