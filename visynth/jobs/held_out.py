"""Which real images train and which test a rendered set: the data's own word, the generator's members, and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from visynth.core import members as members_file
from visynth.core import seeds as seeding
from visynth.core.errors import DataError, listing
from visynth.core.manifest import Renders
from visynth.core.members import Member
from visynth.data.imageset import BadFile, ImageSet
from visynth.jobs.measured import MeasuredSet
from visynth.mixing.leaks import Accepted, is_accepted, read_accepted

TRAINING = 0.8  # of the training groups in each repetition


def assign_splits(
    images: ImageSet, members: Sequence[Member], accept: Accepted = None
) -> tuple[ImageSet, dict[str, str]]:
    """Each image's split and group: the data's own, else those of the same member, else test and a group of its own; and
    the group of the image that each member is, by the member's path: files may have been renamed.

    Test images that are near-duplicates of training images, or of a group that is trained on, are left out, and told in
    ``bad``.

    Args:
        images: real ones.
        members: of the generator.
        accept: pairs that were looked at and are different, see :func:`visynth.mixing.leaks.read_accepted`.

    Raises:
        DataError: images that the data call test or validation, but that the generator was fitted on (all listed).
    """
    accepted = read_accepted(accept)
    meetings = members_file.overlaps(images.members("test"), members)
    met = {o.candidate: o for o in meetings if o.how in (members_file.SAME_FILE, members_file.SAME_PIXELS)}
    like = {o.candidate: o for o in meetings if o.how == members_file.NEARLY}
    leaked = [
        f"{item.name} ({item.split}) was the training image {met[item.name].member.path} ({met[item.name].how})"
        for item in images.items
        if item.split in ("val", "test")
        and item.name in met
        and met[item.name].member.split == "train"
        and not is_accepted(met[item.name], accepted)
    ]
    if leaked:
        raise DataError(
            f"{len(leaked)} test images were used to fit the generator, so they cannot test it. Pairs that are "
            "different can be accepted with "
            f"--accept-leaks (a CSV with the columns candidate,member):\n{listing(leaked)}"
        )
    kept, bad = [], []
    for item in images.items:
        member = met[item.name].member if item.name in met else None
        split = item.split or (member.split if member else "test")
        near = like.get(item.name)
        if (
            split in ("val", "test")
            and near is not None
            and near.member.split == "train"
            and not is_accepted(near, accepted)
        ):
            # A near-copy of a training image would test what was learned by heart.
            bad.append(
                BadFile(item.name, f"is a near-duplicate of training image {near.member.path}, so it does not test")
            )
            continue
        kept.append(replace(item, split=split, group=item.group or (member.group if member else item.name)))
    trained = {item.group for item in kept if item.split == "train"}
    for item in kept:
        if item.split in ("val", "test") and item.group in trained:
            bad.append(BadFile(item.name, f"is of group {item.group}, which is trained on, so it does not test"))
    kept = [item for item in kept if item.split not in ("val", "test") or item.group not in trained]
    group_of = {met[item.name].member.path: item.group for item in kept if item.name in met}
    return replace(images, items=tuple(kept), bad=(*images.bad, *bad)), group_of


def check_sides(train: ImageSet, test: ImageSet, renders: Renders) -> None:
    """Refuse a rendered set that nothing is left to test, or none of whose generator's images is here.

    Raises:
        DataError: which of the two.
    """
    if not len(test):
        raise DataError(
            f"the generator of {renders.folder} was fitted on all {len(train)} images, so there is nothing to test on. "
            "Hold images out "
            "before 'visynth fit' (a split column, or train/ and test/ folders), or use 'visynth trial', which "
            "cross-validates."
        )
    if not len(train):
        raise DataError(
            f"none of the images was used to fit the generator of {renders.folder}: give the data that it was fitted "
            "on, with the held-out images."
        )


def some_groups(real: MeasuredSet, train: np.ndarray, name: str, whole: bool, seed: int) -> np.ndarray:
    """Training rows of another 80 % of the groups: of the measured class, then of the others, the rarest first, since a group
    may show several. The ``whole`` of the measured class where a trained generator knows all of it: else its images would know
    more than the real ones beside them."""
    own = {label: {real.groups[row] for row in train if positive[row]} for label, positive in real.positive.items()}
    order = sorted(own, key=lambda label: (label != name, len(own[label]), label))
    kept: set[str] = set()
    taken: set[str] = set()
    for label in order:
        left = sorted(own[label] - taken)
        taken |= own[label]
        if label == name and whole:
            kept |= own[label]
        elif left:
            number = max(2, round(TRAINING * len(left)))
            chosen = seeding.rng(seeding.derive("groups", seed, label), "evaluate").permutation(len(left))[:number]
            kept |= {left[k] for k in chosen}
    return np.array([row for row in train if real.groups[row] in kept or real.groups[row] not in taken], dtype=np.int64)
