"""COCO annotation files: images with boxes, polygons or run-length masks; an image's labels are its categories.

Images without annotations are the defect-free class ``background``. Crowd regions (``iscrowd``) are no objects: they
give neither box nor mask. What annotations and images say is compared when the set is read.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, choices, listing, raise_all
from visynth.data.folder import SPLIT_WORDS
from visynth.data.imageset import BadFile, Item
from visynth.data.masks import region
from visynth.data.tables import as_path, present

BACKGROUND = "background"


@dataclass
class Coco:
    """Contents of a COCO file: items, unusable files, class names in id order, and what is to be told."""

    items: list[Item] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_coco(path: Path, images: Path | None = None) -> Coco:
    """Read a COCO JSON file.

    Args:
        path: the annotation file.
        images: folder of the images; by default the first of ``<folder>/images`` and ``<folder>`` that holds them.

    Raises:
        DataError: not COCO, or annotations that cannot be right (all listed).
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        raw_categories, raw_images, annotations = data["categories"], data["images"], data["annotations"]
        categories = {c["id"]: str(c["name"]) for c in sorted(raw_categories, key=lambda c: str(c["id"]).zfill(12))}
        records = {r["id"]: r for r in raw_images}
        for record in raw_images:
            record["file_name"] = as_path(record["file_name"])
        names = [r["file_name"] for r in raw_images]
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a COCO file with 'images', 'annotations' and 'categories' ({error!r})."
        ) from error

    problems = _doubles(raw_images)
    per_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    crowds: dict[Any, int] = defaultdict(int)
    for place, note in enumerate(annotations):
        problem = _problem(note, records, categories)
        if problem:
            problems.append(f"annotation {note.get('id', place) if isinstance(note, Mapping) else place}: {problem}")
        elif note.get("iscrowd"):
            crowds[note["image_id"]] += 1
        else:
            per_image[note["image_id"]].append(note)
    raise_all(str(path), problems)

    notes: list[str] = []
    coco = Coco(classes=_used(raw_categories, categories, per_image, notes), notes=notes)
    root = _image_root(path, images, names)
    for key, record in records.items():
        file, notes_of = root / record["file_name"], per_image.get(key, [])
        if not file.is_file():
            coco.bad.append(BadFile(record["file_name"], "is listed but does not exist"))
        elif key in crowds and not notes_of:
            coco.bad.append(
                BadFile(record["file_name"], "has crowd regions only, which show neither where nor how many")
            )
        else:
            coco.items.append(_item(file, record, notes_of, categories))
    if crowds:
        coco.notes.append(
            f"{sum(crowds.values())} crowd regions on {len(crowds)} images are no objects and are not used"
        )
    bare = sum(item.labels == (BACKGROUND,) and not item.boxes for item in coco.items)
    if bare:
        coco.notes.append(f"{bare} images without annotations are the class {BACKGROUND!r}")
        coco.classes += [BACKGROUND] if BACKGROUND not in coco.classes else []
    return coco


def _item(file: Path, record: Mapping[str, Any], notes: list[dict[str, Any]], categories: Mapping[Any, str]) -> Item:
    return Item(
        file,
        Path(record["file_name"]).as_posix(),
        tuple(sorted({categories[n["category_id"]] for n in notes})) or (BACKGROUND,),
        group=present(record.get("group")),
        split=SPLIT_WORDS.get(str(record.get("split", "")).lower(), ""),
        boxes=tuple((categories[n["category_id"]], *_corners(n["bbox"])) for n in notes if n.get("bbox")),
        regions=tuple((categories[n["category_id"]], n["segmentation"]) for n in notes if n.get("segmentation")),
        size=_size(record),
    )


def _size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that an image's record says, or None."""
    try:
        height, width = (round(float(record[side])) for side in ("height", "width"))
    except (KeyError, TypeError, ValueError):
        return None
    return (height, width) if height and width else None


def _doubles(records: list[Any]) -> list[str]:
    """Ids and files that are listed twice."""
    problems: list[str] = []
    ids: set[Any] = set()
    files: dict[str, Any] = {}
    for record in records:
        split = str(record.get("split") or "").strip().lower()
        if split and split not in SPLIT_WORDS:
            allowed = choices(sorted(set(SPLIT_WORDS.values())))
            problems.append(f"image {record['id']!r}: split {split!r} is not one of {allowed}")
        if record["id"] in ids:
            problems.append(f"the image id {record['id']!r} is given twice")
        ids.add(record["id"])
        other = files.setdefault(record["file_name"], record["id"])
        if other != record["id"]:
            problems.append(f"{record['file_name']} is listed under the ids {other!r} and {record['id']!r}: merge them")
    return problems


def _problem(note: Any, records: Mapping[Any, Any], categories: Mapping[Any, str]) -> str | None:
    """Why an annotation cannot be read, or None."""
    if not isinstance(note, Mapping):
        return f"is {type(note).__name__}, not an object"
    for key, known, what in (("image_id", records, "image"), ("category_id", categories, "category")):
        if isinstance(note.get(key), (list, dict)) or note.get(key) not in known:
            other = next((k for k in known if str(k) == str(note.get(key))), None)
            hint = f" (there is {other!r}: numbers and texts differ)" if other is not None else ""
            return f"{key} {note.get(key)!r} is no {what} of the file{hint}"
    box, outline = note.get("bbox"), note.get("segmentation")
    if box and not (isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)):
        return f"bbox {box!r} must be four numbers [x, y, width, height]"
    if box and (box[2] <= 0 or box[3] <= 0):
        return f"bbox {box!r} has no area"
    if isinstance(outline, list) and outline and _is_number(outline[0]):
        return "segmentation is one flat list of numbers; COCO has a list of polygons [[x1, y1, x2, y2, ...], ...]"
    if isinstance(outline, list):
        wrong = next(
            (p for p in outline if not isinstance(p, list) or len(p) < 6 or len(p) % 2 or not all(map(_is_number, p))),
            None,
        )
        if wrong is not None:
            return (
                f"a polygon of {len(wrong) if isinstance(wrong, list) else wrong!r} numbers: it takes at least "
                "three points x, y"
            )
    elif isinstance(outline, Mapping):
        if not {"size", "counts"} <= set(outline):
            return f"run lengths need 'size' and 'counts', but have {sorted(outline)}"
        size, own = _size(records[note["image_id"]]), tuple(outline["size"])
        if size is not None and own != size:
            return f"run lengths are of {own[1]}x{own[0]} pixels, the image of {size[1]}x{size[0]}"
        counts = outline["counts"]
        if isinstance(counts, list) and (not all(map(_is_number, counts)) or sum(counts) != own[0] * own[1]):
            return f"run lengths do not add up to the {own[0] * own[1]} pixels of {own[1]}x{own[0]}"
        try:
            region(outline, *own)
        except Exception as error:  # packed text that is none
            return f"run lengths cannot be read ({error})"
    elif outline:
        return f"segmentation is {type(outline).__name__}; polygons or run lengths are read"
    return None


def _used(
    raw: list[Any], categories: Mapping[Any, str], per_image: Mapping[Any, list[dict[str, Any]]], notes: list[str]
) -> list[str]:
    """Class names in id order, without those that only head others (as exports of annotation tools have them)."""
    used = {note["category_id"] for found in per_image.values() for note in found}
    heads = {str(c.get("supercategory")) for c in raw if isinstance(c, Mapping)}
    dropped = [name for key, name in categories.items() if key not in used and name in heads]
    if dropped:
        notes.append(
            f"the categories {', '.join(map(repr, dropped))} have no annotations and only head others: they are no "
            "classes"
        )
    names = [name for key, name in categories.items() if name not in dropped]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"categories of one name:\n{listing([f'{name!r} has several ids' for name in doubled])}")
    return names


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
