"""Retraining a generator of images."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import members as members_file
from visynth.core import seeds as seeding
from visynth.core.artifact import MEMBERS, SPEC
from visynth.core.child import run_command
from visynth.core.codec import decode
from visynth.core.errors import DataError, UsageError, choices
from visynth.core.files import cache_folder, hash_file, hash_json
from visynth.core.folders import put_files
from visynth.core.manifest import Renders
from visynth.core.progress import Progress, no_progress
from visynth.core.report import ClassVerdict, Report
from visynth.data.imageset import ImageSet, Item, Lazy, in_threads
from visynth.generators.base import Generator, load_generator
from visynth.jobs.evaluate import evaluate_renders
from visynth.jobs.held_out import assign_splits
from visynth.jobs.make import fit_compose
from visynth.jobs.retrain.downstream import check_downstream, train_pair
from visynth.jobs.retrain.options import Job
from visynth.jobs.scores import score_renders
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractors import extractor
from visynth.metrics.memorization import near_duplicates
from visynth.render.run import make_plan, render_set
from visynth.verdict.challenge import FROZEN, INSUFFICIENT, PROMOTE, REJECT, Fingerprint, Judgement, Pair
from visynth.verdict.drift import drifted
from visynth.verdict.rule import DOES_NOT, HELPS

FAR = 2.0  # median distance to the nearest real image, over that among real images: noise and blanks have more
AGREEMENT = 0.25  # of what real images reach, where these are told well: less, and a class is not what it says
RELIABLE = 0.7
COPIES = 0.3  # share of near-duplicates of training images that a trained generator may make
DATA = "data.csv"


class ImageSubject:
    """Images in folders or lists; see :class:`visynth.verdict.challenge.Subject`.

    Args:
        images: the data, read. Images without a split of their own get a frozen one: 30 per cent of the groups, by a hash of
            the group's name, are for judging, now and whenever more images come.
        job: how.
        progress: receives lines.
    """

    def __init__(self, images: ImageSet, job: Job, progress: Progress = no_progress) -> None:
        unknown = [name for name in job.classes if name not in images.classes]
        if unknown or not job.classes:
            raise UsageError(
                f"retrain: classes {choices(unknown)} are not in the data, which have {choices(images.classes)}."
            )
        self.images = replace(images, items=tuple(replace(i, split=i.split or frozen_split(i)) for i in images.items))
        self.job, self.progress = job, progress
        self._check_sides()

    def _check_sides(self) -> None:
        lacking = [
            f"{name} has {n} images for {what}"
            for name in self.job.classes
            for what, n in (("training", self._count(name, "train")), ("judging", self._count(name, "test")))
            if n < 2
        ]
        if lacking:
            raise DataError(f"retrain: {'; '.join(lacking)}; at least 2 are needed: more groups, or a split column.")

    def _count(self, name: str, split: str) -> int:
        return sum(item.split == split and name in item.labels for item in self.images.items)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        digests = in_threads(lambda item: hash_file(item.path), self.images.items)
        return {item.name: digest for item, digest in zip(self.images.items, digests, strict=True)}

    def fingerprint(self) -> Fingerprint:
        rows = sorted(
            [i.name, self._hashes[i.name], list(i.labels), i.split, "" if i.mask is None else hash_file(i.mask)]
            for i in self.images.items
        )
        train = [i for i in self.images.items if i.split == "train"]
        items = {n: frozenset(self._hashes[i.name] for i in train if n in i.labels) for n in self.images.classes}
        return Fingerprint(hash_json(rows), Counter(label for i in train for label in i.labels), items)

    def known(self, champion: Path) -> Fingerprint:
        members = [m for m in members_file.read(champion / MEMBERS) if m.split == "train"]
        own = [(m.sha256, m.label.split(",")) for m in members]  # as images of several classes are written there
        counts = Counter(name for _, labels in own for name in labels)
        items = {name: frozenset(digest for digest, labels in own if name in labels) for name in counts}
        return Fingerprint(members_file.merkle_root(members), counts, items)

    def drift(self, champion: Path, alpha: float) -> dict[str, float]:
        """Between the champion's training images that are still here and those that it never saw."""
        seen = {digest for own in self.known(champion).items.values() for digest in own}
        items = [i for i in self.images.items if i.split == "train" and len(i.labels) == 1]
        sides: dict[bool, dict[str, list[Item]]] = {True: {}, False: {}}
        for item in items:
            sides[self._hashes[item.name] in seen].setdefault(item.label, []).append(item)
        new = {name: own for name, own in sides[False].items() if name in sides[True]}
        if not new:
            return {}
        bank = FeatureBank(extractor(), cache=cache_folder() / "features")
        before = {name: self._features(bank, sides[True][name]) for name in new}
        return drifted(before, {name: self._features(bank, own) for name, own in new.items()}, alpha)

    def _features(self, bank: FeatureBank, items: list[Item]) -> NDArray[Any]:
        rows = bank.add(Lazy(self.images.image, items))
        return np.asarray(bank.get(bank.resolutions[0], "mean")[rows])

    def fit(self, folder: Path) -> Path:
        generator = folder / "generator"
        recipe = self.job.generator
        if "compose" in recipe:
            if not (generator / SPEC).is_file():
                self.progress("fitting a composition")
                fit_compose(self.images, generator, **(recipe["compose"] or {}))
            return generator
        if "config" not in recipe:
            raise UsageError("retrain: images take {compose: ...} or {config: ...}; synthesizers are of tables.")
        return self._train(folder, str(recipe["config"]), dict(recipe.get("set") or {}))

    def _train(self, folder: Path, config: str, settings: Mapping[str, Any]) -> Path:
        """``visynth fit`` on the training images, in the run's folder, on as many devices as its configuration says; it goes
        on where it was stopped."""
        put_files(folder, {DATA: self._list(folder)})
        words = ["fit", "-c", config, "--trainer.default_root_dir", str(folder / "training")]
        own = {
            "data.init_args.data": str(folder / DATA),
            "data.init_args.group_pattern": "null",
            "data.init_args.groups": "null",
        }
        for name, value in {**own, **settings}.items():
            words += [f"--{name}", str(value)]
        self.progress(f"training by {config}")
        code = run_command(words)
        if code:
            raise SystemExit(code)
        return folder / "training" / "generator"

    def _list(self, folder: Path) -> bytes:
        """The images as a list with the frozen split; only those of one class are trained on."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "label", "group", "split", "mask"])
        for item in self.images.items:
            mask = "" if item.mask is None else os.path.relpath(item.mask, folder)
            file = os.path.relpath(item.path, folder)
            writer.writerow([file, ";".join(item.labels), item.group or item.name, item.split, mask])
        return text.getvalue().encode()

    def evaluate(self, challenger: Path, champion: Path | None, folder: Path) -> Judgement:
        job = self.job
        renders = self._rendered(load_generator(challenger), folder / "renders")
        against, notes = (None, []) if champion is None else self._comparable(champion, folder)
        report = evaluate_renders(
            self.images,
            renders,
            folder / "report",
            classes=job.classes,
            count=job.count,
            seeds=job.seeds,
            against=against,
            subject=f"{self.images.root.name} (challenger)",
            progress=self.progress,
        )
        outcome, reasons = decide(report, job)
        return Judgement(outcome, [*reasons, *notes], _numbers(report, job.classes), report)

    def _comparable(self, champion: Path, folder: Path) -> tuple[Renders | None, list[str]]:
        """The champion's images, or why it cannot be compared."""
        try:
            assign_splits(self.images, members_file.read(champion / MEMBERS))
        except DataError as error:
            return None, [
                f"the champion was fitted on images that judge; it is not compared ({str(error).splitlines()[0]})"
            ]
        generator = load_generator(champion)
        lacking = [name for name in self.job.classes if name not in generator.classes]
        if lacking:
            return None, [f"the champion does not make {choices(lacking)}; it is not compared"]
        return self._rendered(generator, folder / f"champion_renders-{generator.digest[:16]}"), []

    def _rendered(self, generator: Generator, out: Path) -> Renders:
        """Images of the classes in question, by one plan for every generator."""
        wanted = [name for name in self.job.classes if name in generator.classes]
        self.progress(f"rendering {self.job.count} images of {choices(wanted)}")
        return render_set(generator, make_plan(generator, per_class=self.job.count, classes=wanted), out)

    def _far(self, renders: Renders) -> list[str]:
        """Classes whose images lie far from all real ones."""
        bank = FeatureBank(extractor(), cache=cache_folder() / "features")
        real = self._features(bank, [i for i in self.images.items if i.split == "train"])
        problems = []
        for name in self.job.classes:
            rows = bank.add([decode(renders.folder / r.file_name) for r in renders.records if r.label == name])
            ratio = near_duplicates(real, bank.get(bank.resolutions[0], "mean")[rows]).ratio
            if ratio > FAR:
                problems.append(
                    f"{name}: images lie {ratio:.1f} times as far from the nearest real image as real ones do (at most {FAR:g})"
                )
        return problems

    def check(self, folder: Path) -> None:
        if self.job.downstream is not None:
            self.progress("looking at the downstream training")
            members = self.images.members(lambda item: item.split)
            check_downstream(self.job.downstream, members, folder / "downstream")

    def pair(self, champion: Path | None, folder: Path) -> Pair | None:
        own = self.job.downstream
        return (
            None if own is None else train_pair(own, folder / "renders", champion, folder / "downstream", self.progress)
        )

    def canary(self, generator: Path, folder: Path) -> list[str]:
        """Does it load, make every class in question, and do its images look like their class, but not like copies?"""
        try:
            loaded = load_generator(generator)
            lacking = [name for name in self.job.classes if name not in loaded.classes]
            if lacking:
                return [f"it does not make {choices(lacking)}"]
            plan = make_plan(loaded, per_class=self.job.canary, classes=list(self.job.classes))
            renders = render_set(loaded, plan, folder)
        except DataError as error:  # of the generator; a full disk or a missing package is no fault of it
            return [str(error).splitlines()[0]]
        return [*self._far(renders), *_look(loaded, renders, self.images, self.job, self.progress)]


def frozen_split(item: Item) -> str:
    """``"test"`` or ``"train"`` by the group's name alone, so that it never changes.

    Example:
        >>> item = Item(Path("a.png"), "a.png", ("crack",), group="part 7")
        >>> frozen_split(item) == frozen_split(replace(item, name="b.png")) in ("train", "test")
        True
    """
    return "test" if seeding.derive("frozen", item.group or item.name) % 100 < FROZEN else "train"


def decide(report: Report, job: Job) -> tuple[str, list[str]]:
    """From the report of a challenger to an outcome; see :class:`visynth.jobs.retrain.options.Policy`."""
    verdicts = {v.label: v for v in report.verdicts if v.label in job.classes}
    reasons = [f"{name}: {v.answer} ({v.reason})" for name, v in verdicts.items()]
    worse = [name for name, v in verdicts.items() if _high(v.numbers.get("against")) < 0]
    if worse:
        return REJECT, [*reasons, f"worse than the champion on {choices(worse)}"]
    copied = [name for name, v in verdicts.items() if (v.numbers.get("copies") or {}).get("flagged")]
    if copied:
        return REJECT, [*reasons, f"synthetic {choices(copied)} are copies of training images"]
    if job.policy.require == "no harm":
        harmed = [name for name, v in verdicts.items() if _high(v.numbers.get("difference")) < 0]
        if harmed:
            return REJECT, [*reasons, f"shown to harm {choices(harmed)}"]
        return (PROMOTE if verdicts else INSUFFICIENT), reasons
    answers = {v.answer for v in verdicts.values()}
    if DOES_NOT in answers:
        return REJECT, reasons
    return (PROMOTE if answers == {HELPS} else INSUFFICIENT), reasons


def _high(interval: Any) -> float:
    """Upper end of an interval; infinite where it is not known."""
    value = interval.get("high") if isinstance(interval, Mapping) else None
    return float("inf") if value is None else float(value)


def _numbers(report: Report, classes: tuple[str, ...]) -> dict[str, Any]:
    def own(verdict: ClassVerdict) -> dict[str, Any]:
        keys = ("difference", "against", "baseline", "arms")
        return {"answer": verdict.answer, **{k: verdict.numbers[k] for k in keys if k in verdict.numbers}}

    return {v.label: own(v) for v in report.verdicts if v.label in classes}


def _look(generator: Generator, renders: Renders, images: ImageSet, job: Job, progress: Progress) -> list[str]:
    scores = score_renders(images, renders, progress=progress)
    problems = []
    for name in job.classes:
        own = [scores.images[record.file_name] for record in renders.records if record.label == name]
        agreement, real = float(np.mean([score["agreement"] for score in own])), scores.real.get(name)
        trained = generator.spec.kind == "trained"  # edits of real images look like their backgrounds, too
        if trained and real is not None and real >= RELIABLE and agreement < AGREEMENT * real:
            problems.append(
                f"{name}: images agree with their class by {agreement:.2f}, real ones by {real:.2f}; at least a quarter of "
                "that is asked"
            )
        copies = float(np.mean([bool(score["copy"]) for score in own]))
        if trained and copies > COPIES:
            problems.append(
                f"{name}: {copies:.0%} of the images are near-duplicates of training images (at most {COPIES:.0%})"
            )
    return problems
