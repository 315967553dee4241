"""Preflight: what can be said about a set within a minute, before anything is synthesised.

Readable and unreadable files, images and groups per class, near-duplicates and what a random split would leak, headroom
(the baseline against an oracle with all reals), the smallest effect that the test can see, and which synthesizer suits.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visynth.core.errors import DataError, UsageError, choices
from visynth.core.folders import put_files
from visynth.core.report import bullets, gallery, table, text
from visynth.data import groups as grouping
from visynth.data import parts as matching
from visynth.data.imageset import ImageSet
from visynth.data.masks import at_border
from visynth.data.reading import with_groups
from visynth.data.scan import PackedMasks, Scan
from visynth.generators.compose_fit import LARGE, guess_good
from visynth.metrics.extractor import NATIVE_LIMIT

LEARNED_GROUPS = 20  # groups of a class from which on a learned generator has something to learn from
SHOWN_MASKS = 60  # unreliable masks listed with their reasons
SHOWN_PAIRS = 40  # pairs of groups that look like one part, listed with their images
SHEET_GROUPS = 4  # groups on the sheet, the largest
SHEET_IMAGES = 6  # of each
MIN_GROUPS = 3  # groups of the rare class without which nothing can be held out and chosen on


SYNTHESIZERS = {"composition": "composition", "learned": "a learned generator", "controls": "controls", "none": "none"}


@dataclass(frozen=True)
class Suits:
    """The synthesizer that suits a class, with the reason."""

    kind: Literal["composition", "learned", "controls", "none"]
    reason: str

    def __str__(self) -> str:
        return f"{SYNTHESIZERS[self.kind]}: {self.reason}"


@dataclass
class Preflight:
    """Findings about a set.

    Attributes:
        images: with groups for every image, given or proposed.
        rare: the classes that matter.
        good: the defect-free class, if any.
        masked: images with a mask by class.
        repeated: share of the images that have a near-duplicate.
        random_leak: share of the test images of which a random split leaves a near-duplicate in training.
        proposal: groups found in the data, if any.
        crossing: pairs of near-duplicates in different groups, and
        crossing_share: the share of the images that are in one.
        group_source: where the groups come from, in words.
        suits: by class, what can synthesise it.
        scan: images and masks as far as they were looked into.
        bad_masks: masks that would not paste what one sees, with the reason.
        sheet: of the largest groups: name, number of images, names of some.
        parts: groups that look like one part.
        warnings: sentences.
        seconds: that it took.
    """

    images: ImageSet
    rare: tuple[str, ...]
    good: str | None
    masked: dict[str, int]
    repeated: float
    random_leak: float
    proposal: grouping.Proposal | None
    crossing: int
    crossing_share: float
    group_source: str
    suits: dict[str, Suits]
    scan: Scan
    bad_masks: dict[str, str] = field(default_factory=dict)
    sheet: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    parts: matching.PartCheck = field(default_factory=lambda: matching.PartCheck((), 0, 0))
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def suited(self, kind: str) -> tuple[str, ...]:
        """Classes that a kind of synthesizer suits."""
        return tuple(name for name in self.images.classes if self.suits[name].kind == kind)

    def blocks(self) -> list[dict[str, Any]]:
        """For the report."""
        counts, group_counts = self.images.counts(), self.images.groups()
        rows = [
            [name, counts[name], group_counts[name], self.masked.get(name, 0), str(self.suits[name])]
            for name in self.images.classes
        ]
        reasons: dict[str, int] = {}
        for bad in self.images.bad:
            reasons[bad.reason] = reasons.get(bad.reason, 0) + 1
        lines = [
            f"{len(self.images)} readable images, {len(self.images.bad)} unreadable"
            + (": " + "; ".join(f"{n} {why}" for why, n in reasons.items()) if reasons else "")
        ]
        lines += [*self.images.notes, *self.leak_lines(), *self.warnings]
        blocks = [bullets(lines), table(["class", "images", "groups", "with masks", "synthesizer that suits"], rows)]
        if self.bad_masks:
            shown = [[name, why] for name, why in sorted(self.bad_masks.items())]
            note = f"{len(shown)} masks that would not paste what one sees; they are left out."
            blocks.append(table(["mask of", "why it is not used"], shown[:SHOWN_MASKS], note))
        return blocks + self._group_sheet()

    def _group_sheet(self) -> list[dict[str, Any]]:
        """Some images of the largest groups, a group a row: one sees whether they belong together."""
        blocks = [
            gallery(
                names,
                [self.scan.known[name].thumbnail for name in names],
                SHEET_IMAGES,
                f"Group {group}: {size} images.",
            )
            for group, size, names in self.sheet
        ]
        words = "The largest groups: images of one group train together or test together. Do they belong together?"
        return [text(words), *blocks] if blocks else []

    def leak_lines(self) -> list[str]:
        """Sentences on near-duplicates, the leak of a random split, and groups."""
        lines = [f"{self.repeated:.0%} of the images have a near-duplicate in the set"]
        if self.repeated >= grouping.LEAKS:
            lines.append(
                f"a random split leaks: it would leave a near-duplicate of {self.random_leak:.0%} of the test images "
                "in training, so scores from it are too good"
            )
        if self.proposal is not None:
            lines.append(
                f"groups found in the data: {len(set(self.proposal.groups))}, by {self.proposal.rule}; they hold "
                f"{self.proposal.holds:.0%} of the near-duplicates together"
            )
        lines.append(
            f"groups used: {self.group_source}; {self.crossing_share:.1%} of the images have a near-duplicate in "
            f"another group ({self.crossing} pairs)"
        )
        sizes = Counter(item.group for item in self.images.items)
        largest, size = max(sizes.items(), key=lambda pair: (pair[1], pair[0]))
        if size >= grouping.DOMINATES * len(self.images) and len(sizes) > 1:
            lines.append(
                f"group {largest} holds {size} of {len(self.images)} images ({size / len(self.images):.0%}): it trains or "
                "tests as a whole, so results hang on it. Give finer groups if its images are not one part, scene or patient"
            )
        return [*lines, *self.part_lines()]

    def part_lines(self) -> list[str]:
        """Groups that look like one part, whoever gave them."""
        check = self.parts
        some = "" if check.checked == check.groups else f" ({check.checked} of {check.groups} groups were looked at)"
        if check.one_design:
            return [
                f"local features agree between most groups: parts of one design, or one fixture{some}; whether two "
                "groups are one part cannot "
                "be told from them"
            ]
        if not check.pairs:
            return [f"no two groups look like one part by their local features{some}"] if check.checked > 1 else []
        together = matching.components([pair.groups for pair in check.pairs])
        head = (
            f"{len(check.pairs)} pairs of groups look like one part{some}, so a split by these groups leaks: "
            f"{'; '.join(' = '.join(sorted(part)) for part in together)}. Look at the images named below; "
            "groups_merged.csv (written beside groups.csv) has them merged"
        )
        return [head, *map(str, check.pairs[:SHOWN_PAIRS])] + (
            [f"and {len(check.pairs) - SHOWN_PAIRS} pairs more"] if len(check.pairs) > SHOWN_PAIRS else []
        )


def preflight(
    images: ImageSet,
    rare: Sequence[str],
    *,
    good: str | None = None,
    grouped: bool = False,
    keep: Callable[[ImageSet, str | None], Collection[str]] = lambda images, good: (),
) -> Preflight:
    """Look at a set.

    Args:
        images: read and checked.
        rare: the classes that matter.
        good: the defect-free class; guessed when None.
        grouped: whether the images' groups were given; otherwise groups are proposed where the set repeats itself,
            and else every image is its own group.
        keep: of the set with its groups and its defect-free class, the names of the images that stay in memory for later
            (``scan``).

    Raises:
        UsageError: a rare or good class that does not exist.
        DataError: fewer than two classes, or a rare class that is too small to measure anything.
    """
    _check(images, rare, good)
    neighbours = grouping.find_neighbours(images)
    names = [item.name for item in images.items]
    proposal = grouping.propose_groups(names, neighbours)
    notes: list[str] = []
    if grouped:
        source = "as given"
        lone = sum(not item.group for item in images.items)
        if lone:
            source += f" ({lone} images without a group stand on their own)"
        images = replace(images, items=tuple(replace(i, group=i.group or i.name) for i in images.items))
    elif proposal is not None:
        source = f"as proposed, by {proposal.rule} (written to groups.csv: check them, then give them with --groups)"
        images = with_groups(images, dict(zip(names, proposal.groups, strict=True)), "proposal")
    else:
        source = "every image on its own (nothing repeats; give --groups if images share a part, a scene or a patient)"
        images = replace(images, items=tuple(replace(item, group=item.name) for item in images.items))
    crossing = grouping.across_groups(neighbours, [item.group for item in images.items])
    touched = {index for pair in crossing for index in pair}

    masks = PackedMasks(images)
    masked = {name: sum(i.name in masks for i in images.items if name in i.labels) for name in images.classes}
    good = good or guess_good(images.classes, masked, images.counts())
    _check_good_and_groups(images, rare, good)

    scan = Scan(images, masks)
    sheet = _sheet(images)
    # Defect-free images may have masks too, empty ones: nobody pastes them.
    judged = [i.name for i in images.items if masks.given(i.name) and len(i.labels) == 1 and i.labels != (good,)]
    scan.read(
        keep=keep(images, good),
        check=judged,
        match=matching.images_to_match(images),
        show=[name for _, _, names in sheet for name in names],
    )
    looks = images.looks()
    kinds = {(look.channels, look.dtype) for look in looks}
    notes += _size_notes([look.size for look in looks])
    if len(kinds) > 1:
        listed = ", ".join(f"{channels} channel(s) of {dtype}" for channels, dtype in sorted(kinds))
        notes.append(f"the images are of several kinds ({listed}): composition takes one kind only, so convert them")
    found_suits = {name: _suits(scan, name, good, masked, len(kinds) > 1) for name in images.classes}
    return Preflight(
        images=images,
        rare=tuple(rare),
        good=good,
        masked=masked,
        repeated=neighbours.repeated,
        random_leak=grouping.random_split_leak(neighbours),
        proposal=proposal,
        crossing=len(crossing),
        crossing_share=len(touched) / len(images),
        group_source=source,
        suits=found_suits,
        scan=scan,
        bad_masks=scan.problems(judged) if good and len(kinds) == 1 else {},
        sheet=sheet,
        parts=matching.find_same_parts(images, scan.features()),
        warnings=notes,
    )


def _check_good_and_groups(images: ImageSet, rare: Sequence[str], good: str | None) -> None:
    if good in rare:
        raise UsageError(
            f"{good!r} is named as a class that matters, but it is the defect-free one too: name the defects with "
            "--rare, or, if it is a defect, the defect-free class with --good."
        )
    group_counts = images.groups()
    for name in rare:
        if group_counts[name] < MIN_GROUPS:
            raise DataError(
                f"{name} has {images.counts()[name]} images in {group_counts[name]} group(s): at least {MIN_GROUPS} "
                "groups are needed to train on some and test on others. Collect more, or give finer groups if these are "
                "too coarse."
            )


def _sheet(images: ImageSet) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """The largest groups with the names of some of their images, spread over each; none where no group has two."""
    names: dict[str, list[str]] = {}
    for item in images.items:
        names.setdefault(item.group, []).append(item.name)
    largest = sorted(names, key=lambda group: (-len(names[group]), group))[:SHEET_GROUPS]
    return tuple(
        (
            group,
            len(own),
            tuple(
                own[i] for i in sorted({round(k * (len(own) - 1) / (SHEET_IMAGES - 1)) for k in range(SHEET_IMAGES)})
            ),
        )
        for group in largest
        if len(own := names[group]) > 1
    )


def _check(images: ImageSet, rare: Sequence[str], good: str | None) -> None:
    if not rare:
        raise UsageError(f"name the class that matters with --rare; the classes are {choices(images.classes)}.")
    unknown = [name for name in [*rare, *([good] if good else [])] if name not in images.classes]
    if unknown:
        raise UsageError(
            f"there is no class {choices(unknown)} in {images.root}; the classes are {choices(images.classes)}."
        )
    if len(images.classes) < 2:
        raise DataError(
            f"{images.root} has one class only ({images.classes[0]!r}): there is nothing to tell it from. Add the "
            "other classes."
        )


def _size_notes(sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Notes on large images: nothing is shrunk or cropped silently."""
    shrunk = sum(height * width > NATIVE_LIMIT**2 for height, width in sizes)
    cut = sum(max(size) > LARGE for size in sizes)
    notes = []
    if shrunk:
        notes.append(
            f"{shrunk} images are larger than {NATIVE_LIMIT}x{NATIVE_LIMIT}: the features see them shrunk to that "
            "area, proportions kept"
        )
    if cut:
        notes.append(
            f"{cut} images are longer than {LARGE} pixels: composition works on windows of them at native scale, so "
            "cut tiles of your own if a whole image is what you train on"
        )
    return notes


def _suits(scan: Scan, name: str, good: str | None, masked: dict[str, int], mixed: bool) -> Suits:
    """Choose the synthesizer that suits a class."""
    if name == good:
        return Suits("controls", "seam controls only (defect-free)")
    groups = scan.images.groups()[name]
    learnable = groups >= LEARNED_GROUPS
    if not masked[name]:
        if learnable:
            return Suits("learned", "no masks, but enough groups")
        return Suits("none", f"no masks, and {groups} groups are too few to learn from")
    if not good:
        other = "a learned generator may" if learnable else f"and {groups} groups are too few to learn from"
        return Suits(
            "none", f"it has masks, but there is no defect-free class to compose onto (name it with --good); {other}"
        )
    if mixed:
        return Suits("none", "the images are of several kinds; convert them to one")
    judged = [i.name for i in scan.images.items if i.labels == (name,) and scan.masks.given(i.name)]
    if not judged:
        return Suits("none", "its images show other classes, too")
    problems = scan.problems(judged)
    bad = len(problems)
    if bad < len(judged) / 2:
        used = [mask for n in judged if n not in problems and (mask := scan.masks.get(n)) is not None]
        left_out = f" ({bad} of {len(judged)} masks unreliable, left out)" if bad else ""
        edge = sum(map(at_border, used))
        lives = f"; at the image's border in {edge} of {len(used)} masks" if used else ""
        return Suits("composition", "by mask" + left_out + lives)
    other = "; a learned generator may" if learnable else ", and too few groups to learn from"
    return Suits("none", f"{bad} of {len(judged)} masks are unreliable{other}")


def headroom_note(base: float, oracle: float, seen: float) -> str:
    """One sentence on whether a trial can find anything.

    Example:
        >>> headroom_note(0.90, 0.91, 0.08)
        'headroom 0.01 AP is below the smallest effect that the test can see (0.08): expect "cannot tell"'
        >>> headroom_note(0.90, 0.89, 0.08)
        'no headroom: not even more real groups raise AP here, so synthetic images have nothing to stand in for'
    """
    room = oracle - base
    if not np.isfinite(room):
        return "headroom is unknown: there are no more real groups to compare with"
    if room <= 0:
        return "no headroom: not even more real groups raise AP here, so synthetic images have nothing to stand in for"
    if room < seen:
        return (
            f"headroom {room:.2f} AP is below the smallest effect that the test can see ({seen:.2f}): "
            'expect "cannot tell"'
        )
    return f"headroom {room:.2f} AP, the test sees effects from {seen:.2f} on"


GROUP_FILES = ("groups.csv", "groups_merged.csv")


def write_groups(folder: Path, findings: Preflight) -> list[str]:
    """Write ``groups.csv`` with the groups in use, to be checked and given back with ``--groups``; and
    ``groups_merged.csv`` where some look
    like one part. Returns the names of the files."""
    groups = [item.group for item in findings.images.items]
    tables = {"groups.csv": groups}
    if findings.parts.pairs and not findings.parts.one_design:
        tables["groups_merged.csv"] = matching.merged(groups, findings.parts)
    files = {}
    for name, column in tables.items():
        stream = io.StringIO()
        rows = zip(findings.images.items, column, strict=True)
        csv.writer(stream).writerows([("file", "class", "group"), *((i.name, ";".join(i.labels), g) for i, g in rows)])
        files[name] = stream.getvalue().encode()
    put_files(folder, files)
    return list(files)
