"""The front door for real data: a folder, CSV, JSONL or COCO file becomes a checked :class:`ImageSet`."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

from visynth.core.codec import DEFAULT_LIMITS, Limits
from visynth.core.errors import DataError, UsageError, listing, raise_all
from visynth.data.coco import read_coco
from visynth.data.folder import read_folder
from visynth.data.imageset import ImageSet, build, check_annotations, drop_unreadable
from visynth.data.lists import read_list
from visynth.data.masks import attach_masks, check_masks
from visynth.data.tables import as_path, present, read_table
from visynth.data.unpack import is_packed, unpack
from visynth.data.xbd import read_xbd


def read_images(
    data: str | Path,
    *,
    masks: str | Path | None = None,
    mask_suffix: str | None = None,
    groups: str | Path | None = None,
    group_pattern: str | None = None,
    classes: list[str] | None = None,
    max_bad_fraction: float = 0.05,
    limits: Limits = DEFAULT_LIMITS,
) -> ImageSet:
    """Read a labelled image set and check every file in it.

    Args:
        data: class folders (``root/<class>/*`` or ``root/<split>/<class>/*``), a ``.csv`` or ``.jsonl`` list, a COCO
            ``.json``, a MedMNIST ``.npz``, a folder of paired disaster tiles in xBD's layout, or ``"sklearn:digits"``.
        masks: folder that mirrors the images' layout and holds masks, see :func:`visynth.data.masks.load_mask`.
        mask_suffix: what mask files have after their images' names ("_label" for ``a_label.png``), where it is not one
            of the usual ones; without ``masks``, masks lie beside their images.
        groups: CSV with columns ``file,group``; images of one group stay on one side of every split.
        group_pattern: regular expression searched in each image's name; its first group (or the match) is the group.
        classes: class names in the wanted order; by default sorted.
        max_bad_fraction: share of unusable files up to which they are left out and listed; above it, an error.
        limits: caps on bytes and pixels per file.

    Raises:
        DataError: the set cannot be read; every problem found is in the message.
        UsageError: both ways of grouping, or a pattern that is not a regular expression.

    Example:
        >>> from visynth.data.demo import write_samples
        >>> import tempfile
        >>> images = read_images(write_samples(tempfile.mkdtemp(), per_class={"good": 6, "spot": 3}) / "images")
        >>> images.counts()
        {'good': 6, 'spot': 3}
    """
    if groups is not None and group_pattern is not None:
        raise UsageError("give either groups or group_pattern, not both.")
    path = unpack(data) if is_packed(data) else Path(data)
    order: list[str] | None = classes
    notes: list[str] = []
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        items, bad, notes = read_list(path)
    elif path.suffix.lower() == ".json":
        coco = read_coco(path)
        items, bad, notes = coco.items, coco.bad, coco.notes
        order = classes or coco.classes
    elif (path / "labels").is_dir() and any((path / "images").glob("*_post_disaster.*")):
        tiles = read_xbd(path)
        items, bad, order = list(tiles.items), [], classes or list(tiles.classes)
    else:
        items, bad, notes = read_folder(path, mask_suffix, beside=masks is None)
    images = drop_unreadable(build(path, items, order, bad, limits), max_bad_fraction)
    images = check_annotations(replace(images, notes=tuple(notes)))
    if masks is not None:
        images = attach_masks(images, masks, mask_suffix)
    elif any(item.mask for item in images.items):
        check_masks(images)
    if groups is not None:
        images = with_groups(images, read_groups(groups), str(groups))
    if group_pattern is not None:
        images = with_groups(images, groups_by_pattern(images, group_pattern), f"pattern {group_pattern!r}")
    return images


def tell(images: ImageSet) -> None:
    """Print notes and unusable files of a set on stderr."""
    for note in images.notes:
        print(f"note: {note}", file=sys.stderr)
    if images.bad:
        listed = listing([f"{bad.name} {bad.reason}" for bad in images.bad])
        print(f"{len(images.bad)} files are left out:\n{listed}", file=sys.stderr)


def read_groups(path: str | Path) -> dict[str, str]:
    """``{file: group}`` from a CSV with those columns, see :mod:`visynth.data.tables`.

    Raises:
        DataError: other columns, rows without a file or group, or a file in two groups (all listed).
    """
    table = read_table(Path(path)).lower()
    if not {"file", "group"} <= set(table.columns) or not table.rows:
        have = ", ".join(table.columns) if table.rows else "no rows"
        raise DataError(f"{path} must have the columns file and group, but has {have}.")
    groups: dict[str, str] = {}
    problems = []
    for number, row in table.rows:
        file, group = as_path(row["file"]), present(row["group"])
        if not file or not group:
            problems.append(f"row {number}: no {'file' if not file else 'group'}")
        elif groups.setdefault(file, group) != group:
            problems.append(f"row {number}: {file} is in group {group!r} here and in {groups[file]!r} above")
    raise_all(str(path), problems)
    return groups


def groups_by_pattern(images: ImageSet, pattern: str) -> dict[str, str]:
    """``{name: group}`` from a regular expression over the names."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"group_pattern {pattern!r} is not a regular expression ({error}).") from error
    matches = {item.name: expression.search(item.name) for item in images.items}
    return {name: match.group(1 if expression.groups else 0) for name, match in matches.items() if match}


def with_groups(images: ImageSet, groups: dict[str, str], source: str) -> ImageSet:
    """The set with a group for every image.

    Raises:
        DataError: names in the groups that are not images, or images without a group, all listed.
    """
    known = {item.name for item in images.items} | {b.name for b in images.bad}
    unknown = [f"{name} is not an image of {images.root}" for name in groups if name not in known]
    without = [f"{item.name} has no group" for item in images.items if item.name not in groups]
    if unknown and len(unknown) == len(groups):
        example = images.items[0].name if images.items else "-"
        raise DataError(
            f"{source}: none of its {len(groups)} names is an image; they should look like "
            f"{example!r}:\n{listing(unknown, 3)}"
        )
    raise_all(source, unknown + without)
    return replace(images, items=tuple(replace(item, group=groups[item.name]) for item in images.items))
