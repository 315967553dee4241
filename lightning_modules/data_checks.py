"""Checks of training data: the same data on resuming, classes with images, images held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from visynth.core import seeds as seeding
from visynth.core.errors import ConflictError, DataError, choices, listing
from visynth.data.imageset import ImageSet, Item
from visynth.data.splits import group_folds


def check_same_data(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> None:
    """Refuse to go on with a training on other data: its statistics, labels and members would be those of two sets.

    Args:
        before: :meth:`StreamData.state` in the checkpoint.
        now: of the data as they are.

    Raises:
        ConflictError: what was added, removed, changed or given another class or split, all counted and the first
            named.
    """
    if not before or not now or before == now:
        return
    problems = [f"{name} was added" for name in sorted(now.keys() - before.keys())]
    problems += [f"{name} is gone" for name in sorted(before.keys() - now.keys())]
    for name in sorted(before.keys() & now.keys()):
        changes = [
            f"{what} {old!r} is now {new!r}" if what in ("class", "split", "group") else f"other {what}"
            for what, old, new in zip(
                ("class", "split", "content", "group", "mask"), before[name], now[name], strict=False
            )
            if old != new
        ]
        if changes:
            problems.append(f"{name}: {', '.join(changes)}")
    raise ConflictError(
        f"the data changed since the training began ({len(problems)} images), so it cannot go "
        f"on:\n{listing(problems)}\n"
        "Bring the data back, or start anew: choose another trainer.default_root_dir (or delete this one), and begin "
        "from the old weights "
        "with the module's own option where it has one."
    )


def hold_out(images: ImageSet, share: float, seed: int) -> ImageSet:
    """Single-label images, with ``share`` of them marked "test" by group where the data have no splits of their own."""
    images = images.select(lambda item: len(item.labels) == 1)
    if not len(images):
        raise DataError(
            f"{images.root} has no image with exactly one class, and a class-conditional generator needs them."
        )
    if share <= 0 or any(item.split for item in images.items):
        return images
    groups = [item.group or item.name for item in images.items]
    part = Fraction(share).limit_denominator(
        max(2, min(20, len(set(groups))))
    )  # 0.25: one of four folds, which spread the classes best
    parts = group_folds([item.label for item in images.items], groups, max(2, part.denominator), seed)
    parts = parts[: min(max(1, part.numerator), len(parts) - 1)]
    rows = {int(row) for _, test in parts for row in test}
    return replace(
        images,
        items=tuple(replace(item, split="test" if row in rows else "train") for row, item in enumerate(images.items)),
    )


def hold_out_alone(images: ImageSet, share: float, seed: int) -> ImageSet:
    """The same, each group by itself: whether an image is held out does not depend on which others there are, so that one image
    more or less changes the training images by no more than that."""
    images = images.select(lambda item: len(item.labels) == 1)
    if share <= 0 or any(item.split for item in images.items):
        return images

    def split(item: Item) -> str:
        place = seeding.derive("held out", seed, item.group or item.name) / 2**63
        return "test" if place < share else "train"

    return replace(images, items=tuple(replace(item, split=split(item)) for item in images.items))


def check_classes(images: ImageSet, one_class: bool, absent: bool = False) -> None:
    """Refuse one-class data and classes without training images; ``absent`` allows both, where other sites have the rest."""
    counts = images.select(lambda item: item.split in ("", "train")).counts()
    empty = [name for name, count in counts.items() if not count]
    if absent and any(counts.values()):
        return
    if empty:
        raise DataError(
            f"classes {choices(empty)} have no training images ({images.root}); there are {counts}. Add images, or "
            "name only the others in 'classes'."
        )
    if len(counts) < 2 and not one_class:
        raise DataError(
            f"{images.root} has one class only ({choices(counts)}): a class-conditional generator learns a rare class "
            "from what it shares "
            "with others. Add the other classes (defect-free images are one), or set one_class: true."
        )
