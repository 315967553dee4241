"""What a rendered set is like, beside real images: distances, fidelity and diversity, memorization, copies.

The judge of the distances is a network that had no hand in the images, see :mod:`visynth.core.judges`: where the default one
had, an encoder is trained from scratch on the real images, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visynth.core import plugins
from visynth.core.codec import decode
from visynth.core.errors import DataError, UsageError
from visynth.core.judges import FEWEST, OWN, OWN_SIDE, USED, circular
from visynth.core.manifest import Renders
from visynth.core.progress import Progress
from visynth.core.report import bullets, table, text
from visynth.data.imageset import ImageSet, Item, Lazy
from visynth.data.looks import grey_copy
from visynth.metrics.bank import FeatureBank
from visynth.metrics.copies import Copies, find_copies
from visynth.metrics.extractors import extractor
from visynth.metrics.memorization import near_duplicates
from visynth.metrics.quality import EVERYTHING, evenly, per_class, table_rows
from visynth.metrics.suite import FEW, SetQuality, Side

Features = np.ndarray[Any, Any]
AUTO = "auto"
SIDE = 160  # of images that a further judge sees
SHOWN = {
    "precision": "fidelity: synthetic images among the real ones",
    "density": "fidelity: how densely",
    "recall": "diversity: real images among the synthetic",
    "coverage": "diversity: real images with a synthetic neighbour",
    "mode_coverage": "diversity: clusters of real images that are reached",
    "vendi_ratio": "diversity: effective number over that of as many real ones",
    "repeats": "diversity: synthetic images that repeat each other",
    "authenticity": "memorization: farther from training than training is",
    "memorization": "memorization: chance to be nearer to training than a held-out image",
    "probe": "likeness: area of a classifier of real against synthetic",
}


@dataclass(frozen=True)
class Judge:
    """Pooled features of all images by one network.

    Attributes:
        name: with its resolution.
        real: of the kept images, by row.
        made: of the rendered images, by class.
        words: why it is this one.
    """

    name: str
    real: Features
    made: Mapping[str, Features]
    words: str


def used_by(renders: Renders, keep: Mapping[str, Any] | None) -> dict[str, str]:
    """Networks that trained, chose or filtered a rendered set, and what for."""
    used = {str(name): str(what) for name, what in dict(renders.summary.get(USED, {})).items()}
    if keep and "agreement" in keep:
        used["efficientnet_lite0"] = "features of the filter by agreement"
    elif keep and not keep.get("near_duplicates", True):
        used["efficientnet_lite0"] = "features of the filter of near-duplicates"
    return used


def check_judge(judge: str, used: Mapping[str, str]) -> None:
    """Refuse a judge early whose family had a hand in the images.

    Raises:
        UsageError: it had, or there is none of that name.
    """
    if judge in (AUTO, OWN):
        return
    name = extractor(judge).name
    hands = circular(used, name)
    if hands:
        raise UsageError(
            f"{judge} cannot judge these images: its family had a hand in them ({'; '.join(hands)}). Take --judge own, which "
            "is trained on your real images from scratch, or another family."
        )


def judge_of(
    judge: str,
    used: Mapping[str, str],
    bank: FeatureBank,
    rows_of: Mapping[str, np.ndarray[Any, Any]],
    renders: Renders,
    kept: Sequence[Item],
    images: ImageSet,
    progress: Progress,
) -> Judge | str:
    """The judge that was asked for; with ``"auto"`` the features that are there, unless they had a hand in the images. Why there
    is none, where real images are too few to train one.

    Args:
        judge: ``"auto"``, ``"own"`` or an extractor's name.
        used: see :func:`used_by`.
        bank: features that are there, and
        rows_of: the rows of rendered images in it, by class.
        renders: the rendered set.
        kept: the real images, in the bank's order.
        images: to read them from.
        progress: receives a line where an encoder is trained.
    """
    first = bank.resolutions[0]
    hands = circular(used, bank.extractor.name)
    if judge == AUTO and not hands:
        features = bank.get(first, "mean")
        made = {name: features[rows] for name, rows in rows_of.items() if len(rows)}
        return Judge(bank.name(first), features[: len(kept)], made, "It had no hand in these images.")
    if judge in (AUTO, OWN):
        known = [item.labels[0] if len(item.labels) == 1 else "" for item in kept]
        numbers = {name: k for k, name in enumerate(sorted({*known} - {""}))}
        # Held-out images are what the synthetic ones are compared with: it knows neither.
        fitted = [k for k, item in enumerate(kept) if item.split == "train"]
        labels = [numbers.get(known[k], -1) for k in fitted]
        if judge == AUTO and len(fitted) < FEWEST:
            return (
                f"Not measured: {bank.extractor.name} is no judge here ({'; '.join(hands)}), and {len(fitted)} real training images "
                f"are too few to train another ({FEWEST}). Name one with --judge."
            )
        progress("training an encoder on your real images, to judge by")
        train = plugins.load("trainings", "encoder")
        network, side = train(Lazy(images.image, [kept[k] for k in fitted]), labels), OWN_SIDE
        words = f"It was trained from scratch on the {len(fitted)} real training images."
        if judge == AUTO:
            words += f" {bank.extractor.name} is no judge here: {'; '.join(hands)}."
    else:
        network, side, words = extractor(judge), SIDE, "It was asked for, and had no hand in these images."
    own = FeatureBank(network, resolutions=(0 if network.resizes else side,))
    own.add(Lazy(images.image, kept), cache=False)
    made = {}
    for name in rows_of:
        files = [r for r in renders.records if r.label == name]
        if files:
            rows = own.add(Lazy(lambda r: decode(renders.folder / r.file_name), files), cache=False)
            made[name] = own.get(own.resolutions[0], "mean")[rows]
    return Judge(own.name(own.resolutions[0]), own.get(own.resolutions[0], "mean")[: len(kept)], made, words)


def likeness_blocks(
    judge: Judge | str, kept: Sequence[Item], train: np.ndarray[Any, Any], test: np.ndarray[Any, Any]
) -> list[dict[str, Any]]:
    """KID with its null, near-duplicates, and metrics of fidelity, diversity and memorization beside what held-out real images
    reach, per class."""
    if isinstance(judge, str):
        return [text(judge)]
    names = list(judge.made)

    def real(rows: np.ndarray[Any, Any], name: str) -> Features:
        return judge.real[[int(r) for r in rows if name in kept[int(r)].labels]]

    against = per_class({n: real(np.concatenate([train, test]), n) for n in names}, judge.made, judge.name)
    columns, rows = table_rows(against)
    sides = {n: (real(train, n), real(test, n)) for n in names}
    rates = []
    for n, (fitted, held) in sides.items():
        if len(fitted) > 2:
            own = near_duplicates(fitted, judge.made[n])
            fresh = f"{near_duplicates(fitted, held).share:.0%}" if len(held) else "-"
            rates.append([n, f"{own.share:.0%}", fresh, f"{own.ratio:.2f}"])
    return [
        text(
            f"Judge: {judge.name}. {judge.words} Its distances are no FID. KID near or below that of real halves means "
            "that the sets cannot be told apart at this size."
        ),
        table(columns, rows, "Real: training and held-out images."),
        table(
            [
                "class",
                "near-duplicates among the synthetic",
                "the same among held-out real images",
                "distance to training over distance within it",
            ],
            rates,
            "A near-duplicate lies closer to a training image than 95 % of training images lie to each other. More of them than "
            "held-out real images have mean memorising. "
            "Composites and inpainted images keep a real background, so they lie near it by design.",
        ),
        *_suite_blocks(judge, sides),
    ]


def _suite_blocks(judge: Judge, sides: Mapping[str, tuple[Features, Features]]) -> list[dict[str, Any]]:
    """As many synthetic images of each class as there are held-out ones, where these are enough: more of anything reach more,
    and repeat each other more."""
    names = list(sides)
    counts = {n: len(held) if len(held) >= FEW else len(judge.made[n]) for n, (_, held) in sides.items()}
    made = {
        "synthetic": {n: evenly(judge.made[n], counts[n]) for n in names},
        "held-out real": {n: evenly(sides[n][1], len(judge.made[n])) for n in names},
    }
    values, notes = {}, []
    for kind, fakes in made.items():
        asked = [*SHOWN, "utility"] if kind == "synthetic" else [name for name in SHOWN if name != "memorization"]
        metric = SetQuality(names, judge.real.shape[1], features=judge.name, metrics=asked)
        for number, name in enumerate(names):
            parts: dict[Side, Features] = {"real": sides[name][0], "held_out": sides[name][1], "fake": fakes[name]}
            for side, own in parts.items():
                metric.update(torch.from_numpy(np.asarray(own, np.float32)), torch.full((len(own),), number), side)
        values[kind] = metric.compute()
        notes += metric.notes if kind == "synthetic" else []
    shown = [*names, *([EVERYTHING] if len(names) > 1 else [])]
    rows = []
    for metric_name, words in SHOWN.items():
        cells = []
        for name in shown:
            ending = "" if name == EVERYTHING else f"/{name}"
            found, fresh = (values[kind].get(f"{metric_name}{ending}") for kind in made)
            alike = name != EVERYTHING and len(made["synthetic"][name]) == len(made["held-out real"][name])
            beside = f" ({float(fresh):.2f})" if fresh is not None and alike else ""
            cells.append("-" if found is None else f"{float(found):.2f}{beside}")
        rows.append([words, *cells])
    if "utility" in values["synthetic"]:
        value = f"{float(values['synthetic']['utility']):.2f}"
        rows.append(["utility: learned from synthetic over learned from real", *["-"] * len(names), value])
    heads = [name if name == EVERYTHING else f"{name} (n {len(made['synthetic'][name])})" for name in shown]
    return [
        table(
            ["metric", *heads],
            rows,
            "In brackets what as many held-out real images reach in the place of the synthetic. Held-out images are the measure "
            "of memorization and of utility: 0.5 copies nothing, 1 copies all. Of composites it says little: their backgrounds "
            "are real by design.",
        ),
        *([bullets([f"not given: {note}" for note in notes])] if notes else []),
    ]


def copies_of(
    renders: Renders, wanted: Sequence[str], kept: Sequence[Item], images: ImageSet, progress: Progress
) -> dict[str, Copies]:
    """Copies of training images among the rendered ones, by class; not where images or groups are too few."""
    found = {}
    for name in wanted:
        sides: dict[str, list[Any]] = {"train": [], "test": []}
        groups = []
        for item in kept:
            if (
                item.labels == (name,) and item.split in sides
            ):  # what chooses neither trained the generator nor tests it
                sides[item.split].append(grey_copy(images.image(item)))
                groups += [item.group] if item.split == "train" else []
        made = [grey_copy(decode(renders.folder / r.file_name)) for r in renders.records if r.label == name]
        try:
            fresh = np.stack(sides["test"]) if sides["test"] else None
            if not sides["train"]:
                raise DataError("no training image shows this class alone.")
            found[name] = find_copies(np.stack(sides["train"]), groups, np.stack(made), fresh)
        except DataError as error:
            progress(f"{name}: copies were not looked for: {error}")
    return found


def copies_block(copies: Mapping[str, Copies], traceable: bool) -> list[dict[str, object]]:
    """Table of copies."""
    if traceable:
        return [
            text("Copies were not looked for: composites hold pixels of real images by design, and name their parents.")
        ]
    rows = [
        [name, f"{one.found} of {one.of} [{one.limits[0]:.1%}, {one.limits[1]:.1%}]", f"{one.fresh} of {one.of_fresh}",
         "yes" if one.flagged else "no"]
        for name, one in copies.items()
    ]  # fmt: skip
    note = (
        "A copy is a training image again: as it was, mirrored, turned, or with other light or colour. It lies nearer than half "
        "of what 99 % of images of different groups keep from each other. Blends of several images are not found by this."
    )
    return [
        table(["class", "copies among the synthetic [95 % CI]", "among held-out real images", "flagged"], rows, note)
    ]
