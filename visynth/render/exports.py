"""Boxes and masks of a rendered set in the formats that detectors read: COCO, YOLO and Pascal VOC."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import yaml

from visynth.core.codec import read
from visynth.core.errors import ConflictError, DataError, UsageError, choices
from visynth.core.files import write_json, write_text
from visynth.core.filters import selected
from visynth.core.folders import check_apart, new_folder
from visynth.core.manifest import Record, Renders, control_class, decode_mask, need_folders

FORMATS = ("coco", "yolo", "voc")


def export(
    renders: Renders,
    form: str,
    out: str | Path,
    *,
    copy: bool = False,
    whole_image: bool = False,
    keep: Mapping[str, Any] | None = None,
) -> Path:
    """Write a rendered set's annotations.

    A detector learns from images without boxes that there is nothing to find. Only defect-free images may be such:
    where a set has boxes, those are the ones of the class without any (the seam controls); a set without boxes (whole
    images of a diffusion model or a GAN) is refused unless the whole image is to be the box.

    Args:
        renders: from :func:`visynth.core.manifest.read_renders`.
        form: ``"coco"`` (``annotations.json`` with boxes and run-length masks), ``"yolo"`` (``labels/*.txt``,
            ``data.yaml``) or ``"voc"`` (``Annotations/*.xml``).
        out: a new folder.
        copy: copy the images; by default they are hard links where the filesystem allows.
        whole_image: give every image of a class without boxes one box around all of it.
        keep: which images count, as for :class:`visynth.WithSynthetic`; by default all but those that a reviewer
            rejected.

    Returns:
        the folder, with an ``images`` folder beside the annotations.

    Raises:
        UsageError: unknown format; nothing counts. ConflictError: the folder exists.
        DataError: images that show their class without saying where.
    """
    if form not in FORMATS:
        raise UsageError(f"export format must be one of {choices(FORMATS)}, but got {form!r}.")
    renders = _boxed(selected(need_folders(renders), keep), whole_image)
    out = Path(out)
    check_apart(out, [renders.folder])
    if out.exists():
        raise ConflictError(f"{out} exists already: choose a new folder for the export.")
    with new_folder(out) as new:
        for record in renders.records:
            _bring(renders.folder / record.file_name, new / "images" / flat(record), copy)
        writers: dict[str, Callable[[Renders, Path], None]] = {"coco": _coco, "yolo": _yolo, "voc": _voc}
        writers[form](renders, new)
    return out


def _boxed(renders: Renders, whole_image: bool) -> Renders:
    """The set with a box for every image that shows its class.

    Raises:
        DataError: images without boxes that are no seam controls.
    """
    control = control_class(renders)
    bare = Counter(r.label for r in renders.records if not r.boxes and r.label != control)
    if not bare:
        return renders
    if not whole_image:
        listed = ", ".join(f"{count} of {name!r}" for name, count in bare.items())
        raise DataError(
            f"{renders.folder} does not say where its objects are ({listed} have no box): as images without boxes they "
            "would teach a "
            "detector that there is nothing to find. Render with a generator that knows (composition, inpainting), or "
            "give "
            "--whole-image for one box around each whole image."
        )
    records = (
        replace(r, boxes=((0.0, 0.0, float(r.width), float(r.height)),)) if not r.boxes and r.label in bare else r
        for r in renders.records
    )
    return replace(renders, records=tuple(records))


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
    # A library writes it: classes are called 'no', '007' or 'crack #2', which mean other things in YAML.
    config = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(renders.classes))}
    head = "# val: replace, and validate on real images only\n"
    write_text(out / "data.yaml", head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _voc(renders: Renders, out: Path) -> None:
    (out / "Annotations").mkdir()
    depth = _depth(renders)
    for record in renders.records:
        root = ElementTree.Element("annotation")
        _add(root, "folder", "images")
        _add(root, "filename", flat(record))
        size = ElementTree.SubElement(root, "size")
        for tag, value in (("width", record.width), ("height", record.height), ("depth", depth)):
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


def _depth(renders: Renders) -> int:
    """Channels of the images: of one generator, so the first tells for all."""
    return int(read(renders.folder / renders.records[0].file_name).shape[2])


def _add(parent: ElementTree.Element, tag: str, value: object) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
