"""The front door for real data: a folder, CSV, JSONL or COCO file becomes a checked :class:`ImageSet`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from visynth.data.coco import read_coco
from visynth.data.decode import DEFAULT_LIMITS, Limits
from visynth.data.folder import read_folder
from visynth.data.items import ImageSet, build, drop_unreadable
from visynth.data.lists import read_list
from visynth.data.masks import attach_masks
from visynth.data.unpack import is_packed, unpack
from visynth.data.xbd import read_xbd
from visynth.errors import DataError, UsageError, listing, raise_all


def read_images(
    data: str | Path,
    *,
    masks: str | Path | None = None,
    groups: str | Path | None = None,
    group_pattern: str | None = None,
    classes: list[str] | None = None,
    max_bad_fraction: float = 0.05,
    limits: Limits = DEFAULT_LIMITS,
) -> ImageSet:
    """Read a labelled image set and check every file in it.

    Args:
        data: class folders (``root/<class>/*`` or ``root/<split>/<class>/*``), a ``.csv`` or ``.jsonl`` list, a COCO ``.json``, a
            MedMNIST ``.npz``, a folder of paired disaster tiles in xBD's layout, or ``"sklearn:digits"``.
        masks: folder that mirrors the images' layout and holds masks (0 = sound, anything else = defect).
        groups: CSV with columns ``file,group``; images of one group stay on one side of every split.
        group_pattern: regular expression searched in each image's name; its first group (or the match) is the group.
        classes: class names in the wanted order; by default sorted.
        max_bad_fraction: share of unusable files up to which they are left out and listed; above it, an error.
        limits: caps on bytes and pixels per file.

    Raises:
        DataError: the set cannot be read; every problem found is in the message.
        UsageError: both ways of grouping, or a pattern that is not a regular expression.

    Example:
        >>> from visynth.data.samples import write_samples
        >>> import tempfile
        >>> images = read_images(write_samples(tempfile.mkdtemp(), per_class={"good": 6, "spot": 3}) / "images")
        >>> images.counts()
        {'good': 6, 'spot': 3}
    """
    if groups is not None and group_pattern is not None:
        raise UsageError("give either groups or group_pattern, not both.")
    path = unpack(data) if is_packed(data) else Path(data)
    order: list[str] | None = classes
    if path.suffix.lower() in (".csv", ".jsonl"):
        items, bad = read_list(path)
    elif path.suffix.lower() == ".json":
        items, bad, categories = read_coco(path)
        order = classes or categories
    elif (path / "labels").is_dir() and any((path / "images").glob("*_post_disaster.*")):
        found = read_xbd(path)
        items, bad, order = list(found.items), [], classes or list(found.classes)
    else:
        items, bad = read_folder(path)
    images = drop_unreadable(build(path, items, order, bad, limits), max_bad_fraction)
    if masks is not None:
        images = attach_masks(images, masks)
    if groups is not None:
        images = with_groups(images, read_groups(groups), str(groups))
    if group_pattern is not None:
        images = with_groups(images, groups_by_pattern(images, group_pattern), f"pattern {group_pattern!r}")
    return images


def read_groups(path: str | Path) -> dict[str, str]:
    """``{file: group}`` from a CSV with those columns."""
    import csv

    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise DataError(f"cannot open the groups file {path} ({error.strerror}).") from error
    if not rows or not {"file", "group"} <= set(rows[0]):
        have = ", ".join(rows[0]) if rows else "no rows"
        raise DataError(f"{path} must have the columns file and group, but has {have}.")
    return {row["file"]: row["group"] for row in rows}


def groups_by_pattern(images: ImageSet, pattern: str) -> dict[str, str]:
    """``{name: group}`` from a regular expression over the names."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"group_pattern {pattern!r} is not a regular expression ({error}).") from error
    found = {item.name: expression.search(item.name) for item in images.items}
    return {name: match.group(1 if expression.groups else 0) for name, match in found.items() if match}


def with_groups(images: ImageSet, groups: dict[str, str], source: str) -> ImageSet:
    """The set with a group for every image.

    Raises:
        DataError: names in the groups that are not images, or images without a group, all of them told.
    """
    known = {item.name for item in images.items} | {b.name for b in images.bad}
    unknown = [f"{name} is not an image of {images.root}" for name in groups if name not in known]
    without = [f"{item.name} has no group" for item in images.items if item.name not in groups]
    if unknown and len(unknown) == len(groups):
        example = images.items[0].name if images.items else "-"
        raise DataError(
            f"{source}: none of its {len(groups)} names is an image; they should look like {example!r}:\n{listing(unknown, 3)}"
        )
    raise_all(source, unknown + without)
    return replace(images, items=tuple(replace(item, group=groups[item.name]) for item in images.items))
