"""Sets as people and other tools write them: read as they are meant, or one message that names row, file and reason."""

from __future__ import annotations

import io
import json
import os

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask

from visynth.cli import main
from visynth.core.codec import encode_png
from visynth.core.errors import DataError
from visynth.data.masks import labelled, load_mask, region
from visynth.data.reading import read_groups, read_images
from visynth.data.tables import read_table
from visynth.render.exports import export, flat

# -- lists -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"file,label,split\na b.png,x,train\nc.png,y,test\n",
        b",file,label,split\n0,a b.png,x,train\n1,c.png,y,test\n",
        b"Unnamed: 0;file;label;split\n0;a b.png;x;train\n1;c.png;y;test\n",
        b" file \tlabel\tsplit\na b.png\t x \ttrain\nc.png\ty\ttest\n\n",
        "file|label|split\na b.png|x|train\nc.png|y|test\n".encode("utf-16"),
        b"\xef\xbb\xbfFile,Label,Split\r\na b.png,x,train\r\nc.png,y,test\r\n",
        b"file,label,split\n.\\a b.png,x,train\n.\\c.png,y,test\n",
    ],
    ids=["plain", "index", "pandas", "tabs and blanks", "utf-16 and bars", "excel", "backslashes"],
)
def test_lists_of_other_tools(data: bytes, picture, tmp_path) -> None:
    for name in ("a b.png", "c.png"):
        (tmp_path / name).write_bytes(encode_png(picture()))
    (tmp_path / "list.csv").write_bytes(data)
    images = read_images(tmp_path / "list.csv")
    assert [(i.name, i.labels, i.split) for i in images.items] == [
        ("a b.png", ("x",), "train"),
        ("c.png", ("y",), "test"),
    ]


def test_latin_letters_and_missing_cells(picture, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(picture()))
    (tmp_path / "b.png").write_bytes(encode_png(picture()))
    (tmp_path / "list.csv").write_bytes("file,label,group,mask\na.png,Riß,nan,None\nb.png,,NaN\n".encode("latin-1"))
    images = read_images(tmp_path / "list.csv")
    assert [(i.labels, i.group, i.mask) for i in images.items] == [(("Riß",), "", None), ((), "", None)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,label,class\na.png,x,y\n", "the columns 'label', 'class' could all be the label"),
        ("file,label\na.png,x,more,and more\n", "row 2 has 4 cells, the header 2"),
        ("file,file,label\na.png,a.png,x\n", "the column 'file' is there twice"),
        ("file,label,mask\na.png,x,gone.png\n", "row 2, column 'mask': there is no mask gone.png"),
    ],
)
def test_lists_that_contradict_themselves(text: str, told: str, picture, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(picture()))
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        read_images(tmp_path / "list.csv")


def test_keys_that_begin_in_later_rows_are_read(picture, tmp_path) -> None:
    """The first row has neither split nor group nor mask: the others' must not be dropped for that."""
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encode_png(picture()))
    (tmp_path / "m.png").write_bytes(encode_png(np.full((12, 10, 1), 255, np.uint8)))
    rows = [
        {"file": "a.png", "label": "x"},
        {"file": "b.png", "label": "x", "split": "test", "group": "g"},
        {"file": "c.png", "label": "y", "mask": "m.png"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = read_images(tmp_path / "list.jsonl")
    assert [(i.split, i.group, i.mask is not None) for i in images.items] == [
        ("", "", False),
        ("test", "g", False),
        ("", "", True),
    ]


def test_groups_of_other_tools(tmp_path) -> None:
    (tmp_path / "groups.csv").write_bytes("\tfile\tgroup\n0\ta\\b.png\t7\n1\tc.png\t8\n".encode("utf-16"))
    assert read_groups(tmp_path / "groups.csv") == {"a/b.png": "7", "c.png": "8"}
    (tmp_path / "groups.csv").write_text("file,group\na.png,1\na.png,2\nb.png,\n")
    with pytest.raises(DataError, match=r"row 3: a.png is in group '2' here and in '1' above(.|\n)*row 4: no group"):
        read_groups(tmp_path / "groups.csv")


def test_an_empty_table_says_so(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("\n\n")
    with pytest.raises(DataError, match="has no rows"):
        read_table(tmp_path / "a.csv")


# -- folders -----------------------------------------------------------------------------------------------------------


def test_splits_beside_unlabelled_images_are_no_classes(class_folders, tmp_path) -> None:
    class_folders({"a": 2, "b": 2}, root="set/train")
    class_folders({"a": 1, "b": 1}, root="set/test")
    class_folders({"x": 3}, root="set/unlabeled")
    images = read_images(tmp_path / "set")
    assert images.counts() == {"a": 3, "b": 3}
    assert images.notes == ("3 images in unlabeled/ are not used: they have no class",)
    class_folders({"x": 3}, root="set/good")
    with pytest.raises(DataError, match=r"split folders \('test', 'train'\) beside others \('good'\)"):
        read_images(tmp_path / "set")


def test_links_are_followed_and_dead_ones_told(class_folders, tmp_path) -> None:
    root = class_folders({"a": 12, "b": 12})
    (root / "c").symlink_to(class_folders({"far": 3}, root="elsewhere") / "far")
    (root / "a" / "sub").symlink_to(root / "a")  # a loop
    (root / "b" / "gone.png").symlink_to(tmp_path / "nothing.png")
    images = read_images(root)
    assert images.counts() == {"a": 12, "b": 12, "c": 3}
    assert [(b.name, b.reason) for b in images.bad] == [("b/gone.png", "is a link to a file that does not exist")]


def test_classes_with_odd_names_and_empty_ones(class_folders, tmp_path) -> None:
    root = class_folders({"__background__": 2, "crack": 2, "__MACOSX": 1})
    (root / "empty").mkdir()
    images = read_images(root)
    assert images.counts() == {"__background__": 2, "crack": 2}
    assert images.notes == ("the class folder empty has no images: it is no class here",)


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("YOLO", ["images/a.png", "labels/a.txt", "data.yaml"]),
        ("Pascal VOC", ["JPEGImages/a.png", "Annotations/a.xml"]),
        ("LabelMe", ["a.png", "a.json"]),
    ],
)
def test_sets_of_other_formats_say_what_they_are(kind: str, files, tmp_path, picture) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_png(picture()) if name.endswith("png") else b"")
    with pytest.raises(DataError, match=f"looks like a {kind} set(.|\n)*Convert it to COCO"):
        read_images(tmp_path)


@pytest.mark.parametrize(("image", "mask"), [("x.bmp", "x_label.bmp"), ("x.png", "x_GT.png"), ("x.jpg", "x_mask.png")])
def test_masks_beside_their_images_are_no_images(image: str, mask: str, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (16, 16), dtype=np.uint8)
    area = np.zeros((16, 16), np.uint8)
    area[4:8, 4:8] = 255
    for name in ("good/ok.png", f"bad/{image}"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "set" / name), pixels)
    cv2.imwrite(str(tmp_path / "set/bad" / mask), area)
    images = read_images(tmp_path / "set")
    assert images.counts() == {"bad": 1, "good": 1}
    assert load_mask(images, images.items[0]).sum() == 16
    assert "1 files beside images are their masks by name" in images.notes[0]


def test_a_mask_suffix_of_ones_own(class_folders, tmp_path) -> None:
    root = class_folders({"a": 2, "b": 1})
    (root / "a" / "a_0_ann.png").write_bytes(encode_png(np.full((12, 10, 1), 255, np.uint8)))
    assert read_images(root).counts() == {"a": 3, "b": 1}
    images = read_images(root, mask_suffix="_ann")
    assert images.counts() == {"a": 2, "b": 1}
    assert images.items[0].mask is not None


def test_layouts_of_mask_folders(class_folders, tmp_path) -> None:
    """MVTec's ``000_mask.png`` and BTech's ``000.png.png``; what belongs to no image is counted."""
    root = class_folders({"a": 3, "good": 1})
    (tmp_path / "masks" / "a").mkdir(parents=True)
    for name in ("a_0_mask.png", "a_1.png.png", "a_2.png", "stray.png"):
        (tmp_path / "masks/a" / name).write_bytes(encode_png(np.full((12, 10, 1), 255, np.uint8)))
    images = read_images(root, masks=tmp_path / "masks")
    assert [i.mask.name for i in images.items if i.mask] == ["a_0_mask.png", "a_1.png.png", "a_2.png"]
    assert any("1 files in" in note and "a/stray.png" in note for note in images.notes)
    (tmp_path / "masks/a/a_2_mask.png").write_bytes(encode_png(np.full((12, 10, 1), 255, np.uint8)))
    with pytest.raises(DataError, match=r"a/a_2.png has several masks: 'a_2.png', 'a_2_mask.png'"):
        read_images(root, masks=tmp_path / "masks")


def test_commands_say_what_was_left_out(class_folders, capsys) -> None:
    root = class_folders({"good": 24, "bad": 12})
    (root / "empty").mkdir()
    (root / "good" / "broken.png").write_bytes(b"nothing")
    assert main(["preflight", "--data", str(root), "--rare", "bad"]) == 0
    said = capsys.readouterr().err
    assert "note: the class folder empty has no images" in said
    assert "1 files are left out:\n  - good/broken.png is not a readable" in said


# -- masks -------------------------------------------------------------------------------------------------------------


def disc(radius: float = 10.0, soft: float = 0.0) -> np.ndarray:
    rows, columns = np.mgrid[:48, :48]
    distance = np.hypot(rows - 24, columns - 24)
    return (np.clip((radius + soft - distance) / max(2 * soft, 1e-6), 0, 1) * 255).astype(np.uint8)


AREA = int((disc() > 127).sum())


@pytest.mark.parametrize("form", ["WEBP", "JPEG", "PNG"])
def test_soft_and_lossy_masks_keep_their_area(form: str, tmp_path) -> None:
    stream = io.BytesIO()
    Image.fromarray(disc(soft=6)).save(stream, form, **({"quality": 60} if form != "PNG" else {}))
    values = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("L"))[:, :, None]
    assert abs(int(labelled(values, form != "PNG").sum()) - AREA) < 0.1 * AREA


def test_ripples_of_an_empty_lossy_mask_are_nothing() -> None:
    assert not labelled(np.random.default_rng(0).integers(0, 9, (32, 32, 1), dtype=np.uint8), lossy=True).any()


def test_numbers_of_classes_void_and_greys() -> None:
    numbers = np.zeros((30, 30, 1), np.uint8)
    numbers[2:8, 2:8], numbers[10:16, 10:16], numbers[1, :] = 1, 20, 255  # VOC: 255 is the ring that is not judged
    assert labelled(numbers).sum() == 72
    greys = np.zeros((30, 30, 1), np.uint8)
    greys[2:8, 2:8], greys[10:16, 10:16] = 100, 200
    assert labelled(greys).sum() == 72
    assert labelled(np.full((4, 4, 1), 255, np.uint8)).all()
    assert labelled(np.full((4, 4, 1), 1, np.uint8)).all()


@pytest.mark.parametrize("dtype", ["int32", "float32", "bool", "uint16"])
def test_masks_in_tiff(dtype: str, class_folders, tmp_path) -> None:
    root = class_folders({"a": 1, "b": 1}, height=48, width=48)
    values = disc() > 127
    (tmp_path / "masks/a").mkdir(parents=True)
    stored = values if dtype == "bool" else values.astype(dtype) * (3 if dtype == "int32" else 1)
    tifffile.imwrite(tmp_path / "masks/a/a_0.tif", stored)
    images = read_images(root, masks=tmp_path / "masks")
    assert (load_mask(images, images.items[0]) == values).all()


def test_masks_by_alpha_and_by_palette(class_folders, tmp_path) -> None:
    root = class_folders({"a": 3}, height=48, width=48)
    (tmp_path / "masks/a").mkdir(parents=True)
    area = disc() > 127
    painted = np.zeros((48, 48, 4), np.uint8)
    painted[:, :, 3] = area * 255  # black paint on nothing
    Image.fromarray(painted).save(tmp_path / "masks/a/a_0.png")
    hidden = np.full((48, 48, 4), 255, np.uint8)
    hidden[~area] = (255, 0, 0, 0)  # colours that nobody sees
    hidden[area, :3] = 200
    Image.fromarray(hidden).save(tmp_path / "masks/a/a_1.png")
    palette = Image.fromarray(area.astype(np.uint8) * 2, mode=None).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 0, 9, 0, 0] + [0] * (3 * 253))  # dark red by its colour, class 2 by its index
    palette.save(tmp_path / "masks/a/a_2.png")
    images = read_images(root, masks=tmp_path / "masks")
    for item in images.items:
        assert (load_mask(images, item) == area).all(), item.name


# -- COCO --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(class_folders, tmp_path):
    """``coco(annotations, **more)`` writes and reads a file over two images of 12x10."""
    class_folders({"a": 2}, root="images")

    def write(annotations=(), **more):
        told = {
            "images": [{"id": k, "file_name": f"a/a_{k}.png", "height": 12, "width": 10} for k in range(2)],
            "categories": [{"id": 1, "name": "scratch"}],
            "annotations": [{"id": n, "image_id": 0, "category_id": 1, **a} for n, a in enumerate(annotations)],
        } | more
        (tmp_path / "ann.json").write_text(json.dumps(told))
        return read_images(tmp_path / "ann.json")

    return write


def runs(mask: np.ndarray, packed: bool) -> dict:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if packed:
        return {"size": found["size"], "counts": found["counts"].decode()}
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


@pytest.mark.parametrize("packed", [True, False])
def test_run_lengths_are_read(packed: bool, coco) -> None:
    area = np.zeros((12, 10), bool)
    area[3:7, 2:9] = True
    area[0, 0] = True
    images = coco([{"bbox": [0, 0, 9, 7], "segmentation": runs(area, packed)}])
    assert (load_mask(images, images.items[0]) == area).all()


@pytest.mark.parametrize(
    "outline",
    [
        [[2, 2, 6, 2, 6, 6, 2, 6]],
        [[1.5, 1, 7, 1.2, 4, 9.7]],
        [[1, 1, 4, 1, 4, 4, 1, 4], [6, 6, 9, 6, 9, 9, 6, 9]],
        [[2, 3, 9, 3, 9, 4, 2, 4]],
    ],
    ids=["square", "fractions", "two rings", "one pixel wide"],
)
def test_polygons_are_drawn_as_pycocotools_draws_them(outline, coco) -> None:
    images = coco([{"bbox": [0, 0, 10, 12], "segmentation": outline}])
    truth = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, 12, 10))).astype(bool)
    assert (load_mask(images, images.items[0]) == truth).all()
    assert (region(outline, 12, 10) == truth).all()


def test_crowds_are_no_objects(coco) -> None:
    area = np.ones((12, 10), bool)
    crowd = {"bbox": [0, 0, 10, 12], "iscrowd": 1, "segmentation": runs(area, False)}
    images = coco([{"bbox": [1, 1, 3, 3]}, crowd])
    assert images.items[0].boxes == (("scratch", 1.0, 1.0, 4.0, 4.0),)
    assert load_mask(images, images.items[0]) is None
    assert "1 crowd regions on 1 images are no objects and are not used" in images.notes


def test_images_without_annotations_are_the_defect_free_class(coco) -> None:
    images = coco([{"bbox": [1, 1, 3, 3]}])
    assert images.counts() == {"scratch": 1, "background": 1}


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ({"height": 24, "width": 20}, r"a/a_0.png is 10x12 pixels, its annotations are of 20x24\n"),
        ({"height": 10, "width": 12}, r"of 12x10 \(turned: the file's orientation is applied\)"),
    ],
)
def test_images_that_changed_since_they_were_annotated_are_told(size, told: str, coco) -> None:
    records = [{"id": k, "file_name": f"a/a_{k}.png", **size} for k in range(2)]
    with pytest.raises(DataError, match=rf"has 2 problems(.|\n)*{told}"):
        coco([{"bbox": [1, 1, 3, 3]}], images=records)


def test_boxes_outside_their_image_are_told(coco) -> None:
    records = [{"id": k, "file_name": f"a/a_{k}.png"} for k in range(2)]
    with pytest.raises(DataError, match=r"is 10x12 pixels, its 'scratch' box goes from \(15, 1\) to \(18, 4\)"):
        coco([{"bbox": [15, 1, 3, 3]}], images=records)


def test_what_is_malformed_is_told_at_once(coco) -> None:
    wrong = [
        {"bbox": [1, 1, 3, 3, 1]},
        {"segmentation": [1, 1, 4, 1, 4, 4]},
        {"segmentation": [[1, 1, 4, 1]]},
        {"segmentation": [[]]},
        {"category_id": "1"},
        {"image_id": 7},
        {"category_id": None},
        {"segmentation": {"size": [5, 5], "counts": [25]}},
    ]
    with pytest.raises(DataError) as told:
        coco(wrong)
    lines = str(told.value).splitlines()
    assert "has 8 problems" in lines[0]
    assert "annotation 0: bbox [1, 1, 3, 3, 1] must be four numbers" in lines[1]
    assert "annotation 1: segmentation is one flat list" in lines[2]
    assert "annotation 2: a polygon of 4 numbers" in lines[3]
    assert "annotation 3: a polygon of 0 numbers" in lines[4]
    assert "category_id '1' is no category of the file (there is 1: numbers and texts differ)" in lines[5]
    assert "run lengths are of 5x5 pixels, the image of 10x12" in lines[8]


def test_one_file_under_two_ids_and_heads_of_categories(coco) -> None:
    records = [{"id": k, "file_name": "a/a_0.png"} for k in range(2)]
    with pytest.raises(DataError, match=r"a/a_0.png is listed under the ids 0 and 1: merge them"):
        coco(images=records)
    heads = [
        {"id": 0, "name": "defects", "supercategory": "none"},
        {"id": 1, "name": "scratch", "supercategory": "defects"},
    ]
    images = coco([{"bbox": [1, 1, 3, 3]}], categories=heads)
    assert images.classes == ("scratch", "background")
    assert any("'defects' have no annotations and only head others" in note for note in images.notes)


def test_our_own_export_reads_back_equal(renders, tmp_path) -> None:
    from visynth.core.manifest import decode_mask

    images = read_images(export(renders, "coco", tmp_path / "coco") / "annotations.json", max_bad_fraction=0)
    by_name = {flat(r): r for r in renders.records}
    for item in images.items:
        record = by_name[item.name]
        assert [box[1:] for box in item.boxes] == [tuple(box) for box in record.boxes]
        mask = load_mask(images, item)
        assert (mask is None) == (record.mask is None)
        assert mask is None or (mask == decode_mask(record.mask)).all()
    assert images.counts()["background"] == 12, "seam controls are the defect-free images"


def test_lists_are_not_confused_by_the_working_folder(class_folders, tmp_path, monkeypatch) -> None:
    class_folders({"a": 1, "b": 1})
    (tmp_path / "list.csv").write_text("file,label\nimages/a/a_0.png,x\nimages/b/b_0.png,y\n")
    monkeypatch.chdir(os.path.sep)
    assert len(read_images(tmp_path / "list.csv")) == 2


# -- found by review -----------------------------------------------------------------------------------------------------


def test_a_flat_test_folder_beside_train_classes_is_no_class(class_folders, tmp_path) -> None:
    class_folders({"a": 2, "b": 2}, root="set/train")
    (tmp_path / "set/val").mkdir()
    assert read_images(tmp_path / "set").notes == ("the split folder val/ is empty",)
    class_folders({"test": 2}, root="set")
    with pytest.raises(DataError, match=r"test/ holds 2 images without class folders, while train/ has some"):
        read_images(tmp_path / "set")


def test_loose_images_and_files_of_systems_are_counted_or_passed_over(class_folders) -> None:
    root = class_folders({"a": 2, "b": 2})
    (root / "stray.png").write_bytes((root / "a/a_0.png").read_bytes())
    (root / "a/Thumbs.db").write_bytes(b"x")
    images = read_images(root)
    assert len(images) == 4
    assert not images.bad
    assert images.notes == ("1 images directly in images/ lie in no class folder and are not used",)


def test_a_class_may_be_called_none_and_no_label_is_counted(picture, tmp_path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encode_png(picture()))
    (tmp_path / "list.tsv").write_text("file\tlabel\na.png\tnone\nb.png\tnan\nc.png\t\n")
    images = read_images(tmp_path / "list.tsv")
    assert images.counts() == {"nan": 1, "none": 1}
    assert images.notes == ("1 images have no label: they show none of the classes",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('file,label\n"a.png,x\nb.png,y\n', "cannot be read as a table"),
        ("file,label\na.png,x\n./sub/../a.png,y\n", "row 3: a.png is listed twice"),
    ],
)
def test_quotes_that_never_close_and_one_file_by_two_ways(text: str, told: str, picture, tmp_path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(encode_png(picture()))
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        read_images(tmp_path / "list.csv")


def test_two_masks_beside_one_image_and_masks_elsewhere(class_folders, tmp_path) -> None:
    root = class_folders({"a": 1, "b": 1})
    full = encode_png(np.full((12, 10, 1), 255, np.uint8))
    (root / "a/a_0_mask.png").write_bytes(full)
    (root / "a/a_0_seg.png").write_bytes(full)
    with pytest.raises(DataError, match=r"a_0 has several masks beside it: 'a_0_mask.png', 'a_0_seg.png'"):
        read_images(root)
    (root / "a/a_0_seg.png").unlink()
    (tmp_path / "masks/a").mkdir(parents=True)
    (tmp_path / "masks/a/a_0.png").write_bytes(full)
    assert read_images(root, masks=tmp_path / "masks").counts() == {"a": 2, "b": 1}, "then a name is no mask"


def test_instances_and_greys_are_all_labelled() -> None:
    instances = np.zeros((60, 60, 1), np.uint8)
    for k in range(36):
        instances[10 * (k // 6) : 10 * (k // 6) + 7, 10 * (k % 6) : 10 * (k % 6) + 7] = 7 * (k + 1)
    assert (labelled(instances) == (instances[:, :, 0] > 0)).all()
    two = np.zeros((30, 30, 1), np.uint8)
    two[2:9, 2:9], two[12:20, 12:20] = 38, 255
    assert labelled(two).sum() == 49 + 64


def test_colours_of_print_and_tags_that_are_none() -> None:
    from visynth.core.codec import decode_bytes

    plain = np.full((8, 8, 3), (200, 60, 30), np.uint8)
    for mode in ("CMYK", "LAB"):
        stream = io.BytesIO()
        image = Image.fromarray(plain)
        if mode == "LAB":
            from PIL import ImageCms

            image = ImageCms.profileToProfile(
                image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
            )
        else:
            image = image.convert(mode)
        image.save(stream, "TIFF")
        assert decode_bytes(stream.getvalue()).shape == (8, 8, 3)
        if mode == "CMYK":
            assert np.abs(decode_bytes(stream.getvalue()).astype(int) - plain).max() <= 2
    exif = Image.Exif()
    exif[274] = 9
    stream = io.BytesIO()
    Image.fromarray(plain[:4]).save(stream, "PNG", exif=exif)
    assert decode_bytes(stream.getvalue()).shape == (4, 8, 3)


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ({"bbox": [1, 1, 0, 3]}, r"bbox \[1, 1, 0, 3\] has no area"),
        ({"bbox": [1, 1, float("nan"), 3]}, "must be four numbers"),
        ({"category_id": [1]}, "is no category of the file"),
        ({"segmentation": {"size": [12, 10], "counts": [1, 2, 3]}}, "do not add up to the 120 pixels"),
    ],
)
def test_annotations_that_make_no_sense(note, told: str, coco) -> None:
    with pytest.raises(DataError, match=told):
        coco([note])


def test_coco_files_of_other_systems(coco, tmp_path) -> None:
    images = [{"id": k, "file_name": f"a\\a_{k}.png", "height": 12.0, "width": "10", "group": None} for k in range(2)]
    assert [i.group for i in coco([{"bbox": [1, 1, 3, 3]}], images=images).items] == ["", ""]
    (tmp_path / "ann.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "ann.json").read_bytes())
    assert len(read_images(tmp_path / "ann.json")) == 2
    with pytest.raises(DataError, match=r"split 'holdout' is not one of"):
        coco(images=[{"id": 0, "file_name": "a/a_0.png", "split": "holdout"}])
    unsized = [{"id": k, "file_name": f"a/a_{k}.png"} for k in range(2)]
    with pytest.raises(DataError, match=r"a/a_0.png is 10x12 pixels, its run lengths are of 5x5"):
        coco([{"segmentation": {"size": [5, 5], "counts": [25]}}], images=unsized)
