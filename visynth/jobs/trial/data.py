"""The images that a trial measures on: decoded, with masks and features, each once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.files import canonical_json
from visynth.core.progress import Progress
from visynth.data.imageset import ImageSet, Item
from visynth.generators.compose_fit import Source
from visynth.jobs.measured import CUTMIX, MeasuredSet, add_features, check_learner, new_bank
from visynth.jobs.preflight import Preflight
from visynth.jobs.trial.options import TrialOptions
from visynth.metrics.dense import DenseHead, coverage
from visynth.verdict.cells import Cell
from visynth.verdict.learners import Learner, learner_of

KEPT = 320  # images of the defect-free class in the arms, at most, spread over its groups


@dataclass(kw_only=True)
class TrialData(MeasuredSet):
    """Findings of preflight, and the images that the arms are fitted and tested on.

    Attributes:
        findings: of the preflight; its ``images`` are all images, with groups.
        sources: by row, the images with their masks.
        learner: of the arms.
    """

    findings: Preflight
    sources: list[Source]
    learner: Learner
    head: DenseHead | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.findings.images.classes

    @property
    def rare(self) -> tuple[str, ...]:
        return self.findings.rare

    def training_sources(self) -> list[Source]:
        """Images of one class each that generators may learn from; the data's own held-out images are not among
        them."""
        pairs = zip(self.items, self.sources, strict=True)
        return [source for item, source in pairs if item.split in ("", "train") and source.label]

    def fingerprint(self) -> str:
        """Hex sha256 of every image, mask, label, group and split that is measured on."""
        digest = sha256()
        for item, source in zip(self.items, self.sources, strict=True):
            pixels = self.findings.scan.known[item.name].member.pixels
            digest.update(canonical_json([item.name, list(item.labels), item.group, item.split, pixels]).encode())
            digest.update(b"" if source.mask is None else np.packbits(source.mask).tobytes())
        return digest.hexdigest()

    def forget(self, cell: Cell) -> None:
        """Let go of what only a cell's own synthetic images needed."""
        for extra in (cell.synthetic, cell.control, cell.augmented.get(CUTMIX)):
            for row in [] if extra is None else extra.rows.tolist():
                self.bank.patches.pop(row, None)
                self.bank.images.pop(row, None)
                if self.head is not None:
                    self.head.places.pop(row, None)
                    self.head.covered.pop(row, None)

    def dense_head(self, progress: Progress) -> DenseHead:
        """The rival that masks teach, over features of every place."""
        progress("dense head: features of every place")
        places = dict(enumerate(self.bank.places([s.image for s in self.sources])))
        covered = {row: None if s.mask is None else coverage(s.mask) for row, s in enumerate(self.sources)}
        self.head = DenseHead(places, covered)
        return self.head


def measured_items(images: ImageSet, good: str | None, seed: int) -> list[Item]:
    """The images that the arms see: all, but of the defect-free class at most ``KEPT``, one of each group in turn."""
    groups: dict[str, list[str]] = {}
    for item in images.items:
        if item.labels == (good,):
            groups.setdefault(item.group, []).append(item.name)
    order = seeding.rng(seeding.derive("kept", seed), "trial").permutation(sorted(groups)).tolist()
    turns = [(turn, place, name) for place, group in enumerate(order) for turn, name in enumerate(groups[group])]
    kept = {name for _, _, name in sorted(turns)[:KEPT]}
    return [item for item in images.items if item.labels != (good,) or item.name in kept]


def weights_of(images: ImageSet, items: list[Item], good: str | None) -> NDArray[np.float64]:
    """Images of the set that each measured one stands for: with them a test has the prevalence of the data.

    Images of the defect-free class share their group's number, scaled so that all of them stand for the whole class.
    """
    whole = Counter(i.group for i in images.items if i.labels == (good,))
    kept = Counter(i.group for i in items if i.labels == (good,))
    scale = sum(whole.values()) / max(sum(whole[group] for group in kept), 1)
    return np.array([scale * whole[i.group] / kept[i.group] if i.labels == (good,) else 1.0 for i in items])


def read_trial_data(findings: Preflight, options: TrialOptions, progress: Progress) -> TrialData:
    """The measured images, which are those that the scan kept in memory, and their features."""
    images, scan = findings.images, findings.scan
    items = [item for item in images.items if scan.is_kept(item.name)]
    sources = []
    for item in items:
        label, problem = item.labels[0] if len(item.labels) == 1 else "", scan.known[item.name].mask_problem
        sources.append(Source(item.name, label, item.group, scan.kept(item.name), scan.masks.get(item.name), problem))
    learner = learner_of(options.learner)
    bank = new_bank(learner, options.cache, patches=findings.good is not None and options.learner == "frozen")
    data = TrialData(
        findings=findings,
        items=items,
        sources=sources,
        image=lambda row: sources[row].image,
        bank=bank,
        positive={name: np.array([name in i.labels for i in items]) for name in images.classes},
        groups=[i.group for i in items],
        weights=weights_of(images, items, findings.good),
        good=findings.good,
        learner=learner,
    )
    check_learner(learner, options.learner, options.metric, data, progress)  # before anything that takes time
    progress(f"features of {len(items)} images at {', '.join(bank.name(r) for r in bank.resolutions)}")
    add_features(bank, [s.image for s in sources], "features", progress)
    return data
