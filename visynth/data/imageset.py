"""A set of labelled image files: the result of every reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from visynth.core.codec import DEFAULT_LIMITS, Array, Limits, read
from visynth.core.errors import DataError, UsageError, choices, listing, raise_all
from visynth.core.files import hash_file
from visynth.core.members import Member, fine_hash, perceptual_hash, pixel_hash
from visynth.data.looks import Look, look_at

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Item:
    """One image file.

    Attributes:
        path: where it is.
        name: its path relative to the set's root, with forward slashes: its key in reports and group files.
        labels: class names; several for multi-hot data, none for an image without any class.
        group: images of one group (tile, patient, scene) belong to one side of every split.
        split: ``"train"``, ``"val"``, ``"test"`` or ``""`` when the data do not say.
        mask: file with the labelled pixels, or None.
        boxes: (class, x1, y1, x2, y2) in pixels.
        regions: per annotated object its class and outline, as COCO writes it: polygons [[x1, y1, x2, y2, ...], ...] in
            pixels, or run lengths {"size", "counts"}.
        size: (height, width) that the annotations are of, or None where they do not say.
    """

    path: Path
    name: str
    labels: tuple[str, ...]
    group: str = ""
    split: str = ""
    mask: Path | None = None
    boxes: tuple[tuple[str, float, float, float, float], ...] = ()
    regions: tuple[tuple[str, Any], ...] = ()
    size: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """The single class; an error for multi-hot images, whose classes must be asked for one by one."""
        if len(self.labels) != 1:
            raise DataError(
                f"{self.name} has {len(self.labels)} classes {self.labels}, but exactly one is needed here."
            )
        return self.labels[0]


class Lazy(Sequence[B]):
    """A sequence whose entries are made when they are asked for, and kept nowhere: images of a set without the memory
    for all of them.

    Example:
        >>> squares = Lazy(lambda value: value * value, [1, 2, 3])
        >>> len(squares), squares[2], list(squares)
        (3, 9, [1, 4, 9])
    """

    def __init__(self, make: Callable[[A], B], values: Sequence[A]) -> None:
        self._make: Callable[[Any], B] = make
        self._values: Sequence[Any] = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Lazy(self._make, self._values[place])
        return self._make(self._values[place])


@dataclass(frozen=True)
class BadFile:
    """A file that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """A readable set of images.

    Attributes:
        root: folder or list that they were read from.
        items: sorted by name.
        classes: in order.
        bad: files left out.
        notes: what else is to be told, in sentences.
        limits: caps on bytes and pixels of a file.
        seen: what reading saw of each file, by path; :meth:`look` fills in what is missing.
    """

    root: Path
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    bad: tuple[BadFile, ...] = ()
    notes: tuple[str, ...] = ()
    limits: Limits = field(default=DEFAULT_LIMITS)
    seen: dict[Path, Look] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.items)

    def counts(self) -> dict[str, int]:
        """Images per class; an image with several classes counts in each."""
        counter = Counter(label for item in self.items for label in item.labels)
        return {name: counter[name] for name in self.classes}

    def groups(self) -> dict[str, int]:
        """Groups per class."""
        return {name: len({i.group or i.name for i in self.items if name in i.labels}) for name in self.classes}

    def folders(self) -> set[Path]:
        """Folders that are read whole, so that all that lies in them is data; a list or a COCO file names its
        images."""
        if not self.root.is_dir():
            return set()
        return {self.root} | {i.mask.parent for i in self.items if i.mask is not None}

    def look(self, item: Item) -> Look:
        """Size, channels, type and grey copy of an image: from reading, or from the file where that was not done."""
        if item.path not in self.seen:
            self.seen[item.path] = look_at(item.path, self.limits)
        return self.seen[item.path]

    def looks(self) -> list[Look]:
        """:meth:`look` of every image, in their order."""
        return in_threads(self.look, self.items)

    def image(self, item: Item, at_least: tuple[int, int] | None = None) -> Array:
        """Decoded pixels ``[H, W, C]``; ``at_least`` as :func:`visynth.core.codec.decode` takes it."""
        return read(item.path, self.limits, at_least)

    def select(self, keep: Callable[[Item], bool]) -> ImageSet:
        """The set with only the items that ``keep`` accepts."""
        return replace(self, items=tuple(item for item in self.items if keep(item)))

    def member(self, item: Item, split: str) -> Member:
        """The fingerprint of one image, for ``members.jsonl``."""
        return fingerprint(item, self.image(item), split)

    def members(self, split: Callable[[Item], str] | str) -> list[Member]:
        """Fingerprints of all images; ``split`` is one split or a function of the item."""
        which = split if callable(split) else lambda _: str(split)
        return in_threads(lambda item: self.member(item, which(item)), self.items)


def fingerprint(item: Item, pixels: Array, split: str) -> Member:
    """The fingerprint of an image whose pixels are at hand."""
    return Member(
        path=item.name,
        label=",".join(item.labels),
        group=item.group or item.name,
        split=split,
        sha256=hash_file(item.path),
        pixels=pixel_hash(pixels),
        phash=perceptual_hash(pixels),
        fine=fine_hash(pixels),
    )


def build(
    root: Path,
    items: Iterable[Item],
    classes: Sequence[str] | None,
    bad: Sequence[BadFile] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> ImageSet:
    """An ImageSet from items in any order; the classes are sorted unless an order is given."""
    ordered = tuple(sorted(items, key=lambda item: item.name))
    present = sorted({label for item in ordered for label in item.labels})
    if classes is not None:
        unknown = [name for name in present if name not in classes]
        if unknown:
            raise UsageError(f"the data have classes {choices(unknown)} that are not in the given {choices(classes)}.")
    return ImageSet(Path(root), ordered, tuple(classes or present), tuple(bad), limits=limits)


def check_annotations(images: ImageSet) -> ImageSet:
    """The set, if its annotations are of the images that there are: images may have been scaled, turned or cropped
    since.

    Raises:
        DataError: sizes that differ, or boxes that lie outside their image, with both (all listed).
    """

    def problem(item: Item) -> str | None:
        if item.size is None and not item.boxes and not item.regions:
            return None
        height, width = images.look(item).size
        if item.size is not None and item.size != (height, width):
            turned = " (turned: the file's orientation is applied)" if item.size == (width, height) else ""
            return (
                f"{item.name} is {width}x{height} pixels, its annotations are of {item.size[1]}x{item.size[0]}{turned}"
            )
        sizes = {tuple(o["size"]) for _, o in item.regions if isinstance(o, Mapping)} - {(height, width)}
        if sizes:
            return (
                f"{item.name} is {width}x{height} pixels, its run lengths are of "
                f"{' and '.join(f'{w}x{h}' for h, w in sorted(sizes))}"
            )
        for name, x1, y1, x2, y2 in item.boxes:
            if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1 or x2 <= x1 or y2 <= y1:
                return (
                    f"{item.name} is {width}x{height} pixels, its {name!r} box goes from ({x1:g}, {y1:g}) to "
                    f"({x2:g}, {y2:g})"
                )
        return None

    problems = [p for p in in_threads(problem, images.items) if p]
    raise_all(
        f"{images.root} (annotations and images must agree: bring back the images that were annotated, or scale the "
        "annotations with them)",
        problems,
    )
    return images


def drop_unreadable(images: ImageSet, max_bad_fraction: float) -> ImageSet:
    """Look at every image (see :func:`visynth.data.looks.look_at`) and leave out those that fail, told together with
    counts and reasons.

    Raises:
        DataError: more than ``max_bad_fraction`` of the files are bad, or none is good.
    """

    def reason(item: Item) -> str | None:
        try:
            images.look(item)
        except DataError as error:
            return str(error)
        return None

    reasons = in_threads(reason, images.items)
    bad = [BadFile(item.name, why) for item, why in zip(images.items, reasons, strict=True) if why]
    good = tuple(item for item, why in zip(images.items, reasons, strict=True) if why is None)
    checked = replace(images, items=good, bad=(*images.bad, *bad))
    check_bad_fraction(checked, max_bad_fraction)
    return checked


def check_bad_fraction(images: ImageSet, max_bad_fraction: float) -> None:
    """Refuse a set with too many unusable files, all listed."""
    total = len(images.items) + len(images.bad)
    if not images.items or len(images.bad) > max_bad_fraction * total:
        listed = listing([f"{b.name} {b.reason}" for b in images.bad])
        raise DataError(
            f"{images.root}: {len(images.bad)} of {total} images cannot be used "
            f"(allowed: {max_bad_fraction:.0%}; raise --max-bad-fraction or mend them):\n{listed}"
        )


def in_threads(work: Callable[[A], B], values: Sequence[A]) -> list[B]:
    """``[work(v) for v in values]`` in a few threads: decoding and hashing release the interpreter."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(work, values))
