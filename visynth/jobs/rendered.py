"""A rendered set beside the real images that it is measured on: who trains, who tests, and cells of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.codec import decode
from visynth.core.errors import UsageError, choices, listing
from visynth.core.filters import selected
from visynth.core.folders import check_apart, claimed_files
from visynth.core.manifest import Renders, control_class, need_folders, read_renders
from visynth.core.progress import Progress, no_progress
from visynth.core.report import FILES, ClassVerdict, table
from visynth.data.imageset import BadFile, ImageSet, Lazy
from visynth.generators.compose_fit import guess_good
from visynth.jobs.held_out import assign_splits, check_sides, some_groups
from visynth.jobs.likeness import AUTO, check_judge, used_by
from visynth.jobs.measured import MeasuredSet, add_features, check_learner, new_bank
from visynth.metrics.bank import FeatureBank
from visynth.mixing.leaks import Accepted
from visynth.verdict.bootstrap import NAMED
from visynth.verdict.cells import Cell, Extra
from visynth.verdict.learners import Learner, learner_of

Rows = np.ndarray[Any, Any]


@dataclass
class Rendered:
    """A rendered set and real images, with the features of all.

    Attributes:
        renders: what counts of the set.
        images: the real images, each with its side and group.
        real: those that train or test, by row.
        fitter: the learner.
        rows_of: bank rows of the rendered images, by class.
        train: rows that train.
        test: rows that test.
        wanted: classes to measure.
        counts: of real images, by side and class.
        rendered: of rendered images, by class.
        control: class of the seam controls, if any.
        group_of_parent: of the members that are among the real images.
        used: networks that had a hand in the images.
        near: test images that were left out as near-duplicates.
        left_out: rendered images that do not count, of how many.
    """

    renders: Renders
    images: ImageSet
    real: MeasuredSet
    fitter: Learner
    rows_of: Mapping[str, Rows]
    train: Rows
    test: Rows
    wanted: list[str]
    counts: Mapping[str, Mapping[str, int]]
    rendered: Mapping[str, int]
    control: str | None
    group_of_parent: Mapping[str, str]
    used: Mapping[str, str]
    near: Sequence[BadFile]
    left_out: tuple[int, int]

    def validation(self, name: str) -> Rows:
        """Rows of the data's own validation split; empty where none of them shows the class. Groups that train were left out of
        it, and those that test are here: a choice on a part is a choice on its other images, too."""
        tested = {self.real.groups[row] for row in self.test.tolist()}
        rows = [k for k, i in enumerate(self.real.items) if i.split == "val" and self.real.groups[k] not in tested]
        shows = any(self.real.positive[name][k] for k in rows)
        return np.array(rows if shows else [], np.int64)

    @property
    def traceable(self) -> bool:
        """Whether each image names the real images behind it."""
        return str(self.renders.plan["kind"]) == "composite"

    @property
    def untraced(self) -> int:
        """Rendered images with a parent that is not among the real training images."""
        known = set(self.group_of_parent)
        return sum(self.traceable and not set(r.parents) <= known for r in self.renders.records)

    def cell(
        self, name: str, seed: int, limit: int, progress: Progress = no_progress, whole: bool = False
    ) -> Cell | None:
        """One comparison of a class: another 80 % of the training groups for each seed, or the ``whole`` of them. None where no
        rendered image can be traced to these groups."""
        real = self.real
        real.add_augmented(name, [row for row in self.train.tolist() if real.positive[name][row]], 0, progress)
        own = self.train if whole else some_groups(real, self.train, name, not self.traceable, seed)
        cell = real.cell(name, draw=seed, train=own, test=self.test, augmented=limit, seed=seed)
        made = self._with_extras(cell, name, seed, limit, self.renders, self.rows_of)
        if made is None:
            return None
        return real.with_distances(real.with_cutmix(made, name, limit, seed))

    def with_synthetic(
        self, cell: Cell, name: str, seed: int, limit: int, renders: Renders, rows_of: Mapping[str, Rows]
    ) -> Cell | None:
        """The same cell with the images of another rendered set."""
        made = self._with_extras(cell, name, seed, limit, renders, rows_of)
        return None if made is None else self.real.with_distances(made)

    def _with_extras(
        self, cell: Cell, name: str, seed: int, limit: int, renders: Renders, rows_of: Mapping[str, Rows]
    ) -> Cell | None:
        def made(of: str, count: int) -> Extra | None:
            return _rendered(self.real, cell.train, self.group_of_parent, name, seed, renders, rows_of, of, count)

        own = made(name, limit)
        if own is None:
            return None
        both = self.control if self.control and len(rows_of.get(self.control, ())) else None
        return replace(cell, synthetic=own, control=None if both is None else made(both, max(1, limit // 3)))

    def counts_block(self) -> dict[str, Any]:
        """Table of the images."""
        rows = [
            [name, self.counts["train"][name], self.counts["test"][name], self.rendered.get(name, 0)]
            for name in self.images.classes
        ]
        return table(["class", "real, training", "real, test", "synthetic"], rows)

    def not_measured(self, asked: Sequence[str] | None) -> list[ClassVerdict]:
        """Verdicts of the classes that were not."""
        return [
            ClassVerdict(
                name,
                "not measured",
                _why_not(name, asked, self.rendered, self.counts),
                aside=asked is not None and name not in asked,
            )
            for name in self.images.classes
            if name not in self.wanted and name != self.control
        ]

    def told(self) -> list[str]:
        """What was left out, and what was compared."""
        left, whole = self.left_out
        return [
            f"{left} of {whole} rendered images do not count: reviewers rejected them, or keep= filters them out.",
            f"{self.untraced} rendered images were left out because a parent of theirs is not among the training images.",
            f"{len(self.near)} test images were left out as near-duplicates of training images"
            + (": " + ", ".join(b.name for b in self.near[:20]) + "." if self.near else "."),
            "The test images are real and were never seen by the generator: their fingerprints were compared with "
            "its members.",
        ]


def open_rendered(
    images: ImageSet,
    renders: str | Path | Renders,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    learner: str = "frozen",
    metric: str = "ap",
    judge: str = AUTO,
    cache: bool = True,
    keep: Mapping[str, Any] | None = None,
    accept_leaks: Accepted = None,
    validates: bool = False,
    progress: Progress = no_progress,
) -> Rendered:
    """Check everything, claim the report's folder, and compute the features of all images; arguments as for
    :func:`visynth.jobs.evaluate.evaluate_renders`. With ``validates`` the images of the validation split are among them.

    Raises:
        DataError: test images that the generator was fitted on, or nothing held out to test on.
        UsageError: a metric, class or judge that there is not.
    """
    if metric not in NAMED:
        raise UsageError(f"metric must be one of {choices(NAMED)}, but got {metric!r}.")
    fitter = learner_of(learner)
    whole = need_folders(renders if isinstance(renders, Renders) else read_renders(renders))
    used = used_by(whole, keep)
    check_judge(judge, used)
    check_apart(out, {*images.folders(), whole.folder})
    with claimed_files(out, FILES):
        renders = selected(whole, keep)
        left_out = len(whole.records) - len(renders.records)
        if left_out:
            progress(
                f"{left_out} of {len(whole.records)} rendered images do not count (rejected by reviewers, or filtered by "
                "keep)"
            )
        progress("fingerprints of the real images")
        before = len(images.bad)
        images, group_of_parent = assign_splits(images, renders.members, accept_leaks)
        near = images.bad[before:]
        if near:
            progress(
                f"{len(near)} test images do not test and are left out (near-duplicates of training images, or of their "
                f"groups):\n{listing([f'{b.name} {b.reason}' for b in near])}"
            )
        by_split = {split: images.select(lambda item, split=split: item.split == split) for split in ("train", "test")}  # type: ignore[misc]
        check_sides(by_split["train"], by_split["test"], renders)

        counts = {split: part.counts() for split, part in by_split.items()}
        possible = [name for name in images.classes if counts["train"][name] and counts["test"][name]]
        rendered, control = renders.counts(), control_class(renders)
        wanted = (
            list(classes)
            if classes is not None
            else [name for name in possible if rendered.get(name) and name != control]
        )
        unknown = [name for name in wanted if name not in possible or not rendered.get(name)]
        if unknown or not wanted:
            raise UsageError(
                f"classes {choices(unknown or wanted)} cannot be measured: rendered are {rendered}, "
                f"real training images {counts['train']}, real test images {counts['test']}."
            )

        sides = ("train", "val", "test") if validates else ("train", "test")
        kept = [item for item in images.items if item.split in sides]
        good = control or guess_good(images.classes, {}, images.counts())
        bank = new_bank(fitter, cache, patches=learner == "frozen" and good is not None)
        progress(f"features of {len(kept)} real and {len(renders.records)} synthetic images")
        real = MeasuredSet(
            items=kept,
            image=lambda row: images.image(kept[row]),
            bank=bank,
            positive={name: np.array([name in item.labels for item in kept]) for name in images.classes},
            groups=[item.group for item in kept],
            weights=np.ones(len(kept)),
            good=good,
        )
        check_learner(fitter, learner, metric, real, progress)
        add_features(bank, Lazy(images.image, kept), "real images", progress)
        train, test = (
            np.array([k for k, i in enumerate(kept) if i.split == side], np.int64) for side in ("train", "test")
        )
        setting = Rendered(
            renders=renders,
            images=images,
            real=real,
            fitter=fitter,
            rows_of=bank_rows(bank, renders),
            train=train,
            test=test,
            wanted=wanted,
            counts=counts,
            rendered=rendered,
            control=control,
            group_of_parent=group_of_parent,
            used=used,
            near=near,
            left_out=(left_out, len(whole.records)),
        )
        if setting.untraced:
            progress(
                f"{setting.untraced} rendered images have parents that are not among these training images, and are left out"
            )
        return setting


def bank_rows(bank: FeatureBank, renders: Renders) -> dict[str, Rows]:
    """Bank rows of a rendered set's images, by class."""
    return {
        name: bank.add(
            Lazy(lambda r: decode(renders.folder / r.file_name), [r for r in renders.records if r.label == name])
        )
        for name in renders.classes
    }


def _rendered(
    real: MeasuredSet,
    train: np.ndarray,
    group_of_parent: Mapping[str, str],
    label: str,
    seed: int,
    renders: Renders,
    rows_of: Mapping[str, np.ndarray],
    name: str,
    limit: int,
) -> Extra | None:
    """Rendered images of a class, another choice of them for each seed, with the groups of the real images behind them;
    those alone whose every parent is in training: what cannot be traced there could show what the real images do not. None
    where none is."""
    records = [r for r in renders.records if r.label == name]
    order = seeding.rng(seeding.derive("subset", seed, name), "evaluate").permutation(len(records))
    if renders.plan["kind"] != "composite":
        # The network saw every training group of the class: none of its images may help to choose on any of them.
        seen = frozenset(real.groups[row] for row in train if real.positive[label][row])
        chosen, parents = order[:limit], [seen] * min(limit, len(order))
    else:
        every = [frozenset(group_of_parent.get(p, "") for p in records[i].parents) for i in order]
        known = {real.groups[row] for row in train}
        fitting = [k for k, groups in enumerate(every) if groups <= known][:limit]
        chosen, parents = order[fitting], [every[k] for k in fitting]
    if not len(chosen):
        return None
    return Extra(rows_of[name][chosen], parents, real.number(name) if name in real.positive else -1)


def _why_not(
    name: str, asked: Sequence[str] | None, rendered: Mapping[str, int], counts: Mapping[str, Mapping[str, int]]
) -> str:
    """Why a class was not measured."""
    if asked is not None and name not in asked:
        return "it was not asked for"
    if not rendered.get(name):
        return "it was not rendered"
    side = "training" if not counts["train"].get(name) else "test"
    return f"it has no real {side} images"
