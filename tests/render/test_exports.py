"""Exports of rendered sets read back as detectors read them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from visynth.core.errors import ConflictError, DataError, UsageError
from visynth.core.manifest import decode_mask, read_renders, write_reviews
from visynth.data.reading import read_images
from visynth.render.exports import export, flat


class TestExports:
    def test_coco_reads_back(self, renders, tmp_path) -> None:
        folder = export(renders, "coco", tmp_path / "coco")
        images = read_images(folder / "annotations.json", max_bad_fraction=0)
        by_name = {flat(r): r for r in renders.records}
        assert len(images) == 48
        for item in images.items:
            record = by_name[item.name]
            assert [box[1:] for box in item.boxes] == [tuple(b) for b in record.boxes]
        data = json.loads((folder / "annotations.json").read_text())
        for note in data["annotations"]:
            mask = decode_mask(note["segmentation"])
            assert note["area"] == mask.sum()
            x, y, w, h = note["bbox"]
            assert mask[int(y) : int(y + h), int(x) : int(x + w)].sum() == mask.sum()

    def test_yolo_reads_back(self, renders, tmp_path) -> None:
        folder = export(renders, "yolo", tmp_path / "yolo")
        names = yaml.safe_load((folder / "data.yaml").read_text())["names"]
        for record in renders.records:
            lines = (folder / "labels" / f"{Path(flat(record)).stem}.txt").read_text().splitlines()
            assert len(lines) == len(record.boxes)
            for line, box in zip(lines, record.boxes, strict=True):
                label, cx, cy, w, h = map(float, line.split())
                back = [
                    (cx - w / 2) * record.width,
                    (cy - h / 2) * record.height,
                    (cx + w / 2) * record.width,
                    (cy + h / 2) * record.height,
                ]
                assert names[int(label)] == record.label
                np.testing.assert_allclose(back, box, atol=1e-3)

    def test_voc_reads_back(self, renders, tmp_path) -> None:
        folder = export(renders, "voc", tmp_path / "voc", copy=True)
        for record in renders.records:
            root = ElementTree.parse(folder / "Annotations" / f"{Path(flat(record)).stem}.xml").getroot()
            assert (folder / "images" / root.findtext("filename")).is_file()
            for thing, box in zip(root.findall("object"), record.boxes, strict=True):
                corners = [int(thing.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax")]
                assert [corners[0] - 1, corners[1] - 1, *corners[2:]] == list(box)

    @pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
    def test_images_without_boxes_are_no_background(self, renders, form, tmp_path) -> None:
        """A diffusion model's or a GAN's set: it shows its class, but does not say where."""
        bare = replace(
            renders,
            plan={**renders.plan, "kind": "trained"},
            records=tuple(replace(r, boxes=(), mask=None) for r in renders.records),
        )
        with pytest.raises(DataError, match="12 of 'scratch', 12 of 'spot', 12 of 'stain', 12 of 'good' have no box"):
            export(bare, form, tmp_path / "x")
        assert not (tmp_path / "x").exists()
        folder = export(bare, form, tmp_path / "y", whole_image=True)
        if form == "yolo":
            assert {p.read_text().split(" ", 1)[1] for p in (folder / "labels").iterdir()} == {
                "0.500000 0.500000 1.000000 1.000000\n"
            }
        elif form == "coco":
            notes = json.loads((folder / "annotations.json").read_text())["annotations"]
            assert [note["bbox"] for note in notes] == [[0, 0, r.width, r.height] for r in bare.records]

    def test_seam_controls_stay_background_when_asked_for_whole_images(self, renders, tmp_path) -> None:
        folder = export(renders, "yolo", tmp_path / "x", whole_image=True)
        empty = {p.stem.rsplit("_", 1)[0] for p in (folder / "labels").iterdir() if not p.read_text()}
        assert empty == {"good"}

    def test_class_names_stay_names(self, renders, tmp_path) -> None:
        names = ["no", "007", "crack #2", "[x]"]
        new = dict(zip(renders.classes, names, strict=True))
        odd = replace(
            renders,
            plan={**renders.plan, "classes": names},
            records=tuple(replace(r, label=new[r.label]) for r in renders.records),
        )
        folder = export(odd, "yolo", tmp_path / "yolo")
        assert yaml.safe_load((folder / "data.yaml").read_text())["names"] == dict(enumerate(names))

    def test_the_depth_is_that_of_the_images(self, renders, tmp_path) -> None:
        folder = export(renders, "voc", tmp_path / "voc")
        depths = {ElementTree.parse(p).getroot().findtext("size/depth") for p in (folder / "Annotations").iterdir()}
        assert depths == {"1"}

    @pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
    def test_what_was_rejected_is_not_exported(self, renders, form, tmp_path) -> None:
        shutil.copytree(renders.folder, tmp_path / "set")
        own = read_renders(tmp_path / "set")
        rejected = [r.file_name for r in own.records if r.label == "spot"][:5]
        write_reviews(own, dict.fromkeys(rejected, "reject"), "anna")
        folder = export(own, form, tmp_path / form)
        assert len(list((folder / "images").iterdir())) == 43
        assert not {name.replace("/", "_") for name in rejected} & {p.name for p in (folder / "images").iterdir()}
        whole = export(own, form, tmp_path / "all", keep={"review": "any"})
        assert len(list((whole / "images").iterdir())) == 48

    def test_wrong_export(self, renders, tmp_path) -> None:
        with pytest.raises(UsageError, match="must be one of 'coco', 'yolo', 'voc'"):
            export(renders, "pascal", tmp_path / "x")
        with pytest.raises(ConflictError, match="exists already"):
            export(renders, "coco", tmp_path)
