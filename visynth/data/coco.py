"""COCO annotation files: images with boxes, polygons or run-length masks; an image's labels are its categories."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from visynth.data.folder import SPLIT_WORDS
from visynth.data.items import BadFile, Item
from visynth.errors import DataError


def read_coco(path: Path, images: Path | None = None) -> tuple[list[Item], list[BadFile], list[str]]:
    """Items, unusable files and category names (in id order) of a COCO JSON file.

    Args:
        path: the annotation file.
        images: folder of the images; by default the first of ``<folder>/images`` and ``<folder>`` that holds them.

    Raises:
        DataError: not COCO, or an annotation names an unknown image or category.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        categories = {c["id"]: str(c["name"]) for c in sorted(data["categories"], key=lambda c: c["id"])}
        records = {r["id"]: r for r in data["images"]}
        annotations = data["annotations"]
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a COCO file with 'images', 'annotations' and 'categories' ({error!r})."
        ) from error

    per_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    strangers = 0
    for note in annotations:
        if note["image_id"] in records and note["category_id"] in categories:
            per_image[note["image_id"]].append(note)
        else:
            strangers += 1
    if strangers:
        raise DataError(f"{path}: {strangers} annotations name an image or category that the file does not list.")

    root = _image_root(path, images, [r["file_name"] for r in records.values()])
    items, bad = [], []
    for key, record in records.items():
        file, notes = root / record["file_name"], per_image[key]
        if not file.is_file():
            bad.append(BadFile(record["file_name"], "is listed but does not exist"))
            continue
        items.append(
            Item(
                file,
                Path(record["file_name"]).as_posix(),
                tuple(sorted({categories[n["category_id"]] for n in notes})),
                group=str(record.get("group", "")),
                split=SPLIT_WORDS.get(str(record.get("split", "")).lower(), ""),
                boxes=tuple((categories[n["category_id"]], *_corners(n["bbox"])) for n in notes if n.get("bbox")),
                polygons=tuple(
                    (categories[n["category_id"]], tuple(map(float, polygon)))
                    for n in notes
                    if isinstance(n.get("segmentation"), list)
                    for polygon in n["segmentation"]
                ),
            )
        )
    return items, bad, list(categories.values())


def _corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _image_root(path: Path, images: Path | None, names: list[str]) -> Path:
    if images is not None:
        return images
    for folder in (path.parent / "images", path.parent):
        if any((folder / name).is_file() for name in names[:50]):
            return folder
    return path.parent / "images"
