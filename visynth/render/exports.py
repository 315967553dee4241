"""Boxes and masks of a rendered set in the formats that detectors read: COCO, YOLO and Pascal VOC."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from visynth.errors import ConflictError, UsageError, choices
from visynth.files import write_json, write_text
from visynth.folders import new_folder
from visynth.manifest import Record, Renders, decode_mask

FORMATS = ("coco", "yolo", "voc")


def export(renders: Renders, form: str, out: str | Path, *, copy: bool = False) -> Path:
    """Write a rendered set's annotations.

    Args:
        renders: from :func:`visynth.manifest.read_renders`.
        form: ``"coco"`` (``annotations.json`` with boxes and run-length masks), ``"yolo"`` (``labels/*.txt``, ``data.yaml``) or
            ``"voc"`` (``Annotations/*.xml``).
        out: a new folder.
        copy: copy the images; by default they are hard links where the filesystem allows.

    Returns:
        the folder, with an ``images`` folder beside the annotations.

    Raises:
        UsageError: unknown format. ConflictError: the folder exists.
    """
    if form not in FORMATS:
        raise UsageError(f"export format must be one of {choices(FORMATS)}, but got {form!r}.")
    out = Path(out)
    if out.exists():
        raise ConflictError(f"{out} exists already: choose a new folder for the export.")
    with new_folder(out) as made:
        for record in renders.records:
            _bring(renders.folder / record.file_name, made / "images" / flat(record), copy)
        writers: dict[str, Callable[[Renders, Path], None]] = {"coco": _coco, "yolo": _yolo, "voc": _voc}
        writers[form](renders, made)
    return out


def flat(record: Record) -> str:
    """A file name without folders: YOLO and VOC pair files by their stems."""
    return record.file_name.replace("/", "_")


def _bring(source: Path, target: Path, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            target.hardlink_to(source)
            return
        except OSError:
            pass  # another filesystem: copy after all
    shutil.copyfile(source, target)


def _coco(renders: Renders, out: Path) -> None:
    numbers = {name: place for place, name in enumerate(renders.classes, 1)}
    images: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for key, record in enumerate(renders.records, 1):
        images.append({"id": key, "file_name": flat(record), "height": record.height, "width": record.width})
        for x1, y1, x2, y2 in record.boxes:
            note: dict[str, Any] = {
                "id": len(notes) + 1,
                "image_id": key,
                "category_id": numbers[record.label],
                "iscrowd": 0,
            }
            note |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            if record.mask is not None:
                note |= {"segmentation": dict(record.mask), "area": int(decode_mask(record.mask).sum())}
            notes.append(note)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    write_json(out / "annotations.json", {"images": images, "annotations": notes, "categories": categories})


def _yolo(renders: Renders, out: Path) -> None:
    (out / "labels").mkdir()
    for record in renders.records:
        lines = []
        for x1, y1, x2, y2 in record.boxes:
            middle = np.array([(x1 + x2) / 2 / record.width, (y1 + y2) / 2 / record.height])
            side = np.array([(x2 - x1) / record.width, (y2 - y1) / record.height])
            numbers = " ".join(f"{value:.6f}" for value in (*middle, *side))
            lines.append(f"{renders.classes.index(record.label)} {numbers}\n")
        write_text(out / "labels" / f"{Path(flat(record)).stem}.txt", "".join(lines))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(renders.classes))
    write_text(
        out / "data.yaml",
        f"path: .\ntrain: images\nval: images  # replace: validate on real images only\nnames:\n{names}",
    )


def _voc(renders: Renders, out: Path) -> None:
    (out / "Annotations").mkdir()
    for record in renders.records:
        root = ElementTree.Element("annotation")
        _add(root, "folder", "images")
        _add(root, "filename", flat(record))
        size = ElementTree.SubElement(root, "size")
        for tag, value in (("width", record.width), ("height", record.height), ("depth", 3)):
            _add(size, tag, value)
        for x1, y1, x2, y2 in record.boxes:
            thing = ElementTree.SubElement(root, "object")
            _add(thing, "name", record.label)
            corners = ElementTree.SubElement(thing, "bndbox")
            # VOC counts pixels from 1 and includes both ends.
            for tag, edge in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
                _add(corners, tag, round(edge))
        ElementTree.indent(root)
        write_text(
            out / "Annotations" / f"{Path(flat(record)).stem}.xml",
            ElementTree.tostring(root, encoding="unicode") + "\n",
        )


def _add(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
