"""The images that a trial measures on: decoded, with masks and features, each once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import plugins
from visynth.core import seeds as seeding
from visynth.core.files import cache_folder, canonical_json
from visynth.data.imageset import Item
from visynth.data.masks import judge, load_mask, remembered
from visynth.data.transforms import CANDIDATES, augment
from visynth.generators.compose_fit import Source
from visynth.jobs.preflight import Preflight
from visynth.jobs.trial.options import TrialOptions
from visynth.metrics.bank import FeatureBank
from visynth.metrics.dense import DenseHead, coverage
from visynth.metrics.extractors import extractor

Say = Callable[[str], None]
COPIES_PER_IMAGE = 4  # augmented copies of each real image, per candidate
KEPT_PER_GROUP = 2  # images of the defect-free class per group in the arms, at most
KEPT = 320  # and in all


@dataclass
class TrialData:
    """What preflight found, and the images that the arms are fitted and tested on.

    Attributes:
        findings: of the preflight; its ``images`` are all images, with groups.
        items: those that are measured on. A row is a place in this list.
        sources: the same, decoded, with masks.
        bank: their features (and those of all images that are made), by row.
        positive: by class, whether each row shows it.
        groups: of each row.
        judge: says why a mask should not be pasted; remembers what it said.
        augmented: ``{(class, candidate): {row: rows of its augmented copies}}``.
    """

    findings: Preflight
    items: list[Item]
    sources: list[Source]
    bank: FeatureBank
    positive: dict[str, NDArray[np.bool_]]
    groups: list[str]
    judge: Callable[[Any, Any], str | None] = field(default_factory=lambda: remembered(judge))
    augmented: dict[tuple[str, str], dict[int, list[int]]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.findings.images.classes

    @property
    def rare(self) -> tuple[str, ...]:
        return self.findings.rare

    @property
    def good(self) -> str | None:
        """The defect-free class, if any."""
        return self.findings.good

    def fingerprint(self) -> str:
        """Hex sha256 of every image, mask, label, group and split that is measured on."""
        digest = sha256()
        for item, source in zip(self.items, self.sources, strict=True):
            digest.update(canonical_json([item.name, list(item.labels), item.group, item.split]).encode())
            digest.update(np.ascontiguousarray(source.image).tobytes())
            digest.update(b"" if source.mask is None else np.packbits(source.mask).tobytes())
        return digest.hexdigest()

    def add_augmented(self, name: str, seed: int) -> None:
        """Augmented copies of every real image of a class, made once: a cell uses those of its own training images."""
        own = np.flatnonzero(self.positive[name]).tolist()
        for candidate in CANDIDATES:
            if (name, candidate) in self.augmented:
                continue
            pairs = [(row, copy) for row in own for copy in range(COPIES_PER_IMAGE)]
            images = [
                augment(self.sources[row].image, candidate, seeding.derive("augment", seed, row, copy, candidate))[0]
                for row, copy in pairs
            ]
            rows = self.bank.add(images, cache=False)
            copies: dict[int, list[int]] = {}
            for (row, _), place in zip(pairs, rows, strict=True):
                copies.setdefault(row, []).append(int(place))
            self.augmented[(name, candidate)] = copies

    def dense_head(self, say: Say) -> DenseHead:
        """The rival that masks teach, over features of every place."""
        say("dense head: features of every place")
        places = self.bank.places([s.image for s in self.sources])
        return DenseHead(places, [None if s.mask is None else coverage(s.mask) for s in self.sources])


def read_trial_data(findings: Preflight, options: TrialOptions, say: Say) -> TrialData:
    """Images in memory and their features; of the defect-free class two images a group are enough to learn from."""
    images = findings.images
    kept: list[Item] = []
    seen: dict[str, int] = {}
    for item in images.items:
        if item.labels == (findings.good,):
            seen[item.group] = seen.get(item.group, 0) + 1
            if seen[item.group] > KEPT_PER_GROUP:
                continue
        kept.append(item)
    plain = [i for i in kept if i.labels == (findings.good,)]
    if len(plain) > KEPT:
        order = seeding.rng(seeding.derive("kept", options.seed), "trial").permutation(len(plain))
        dropped = {plain[i].name for i in order[KEPT:]}
        kept = [i for i in kept if i.name not in dropped]
    sources = [
        Source(i.name, i.labels[0] if len(i.labels) == 1 else "", i.group, images.image(i), load_mask(images, i))
        for i in kept
    ]
    bank = FeatureBank(
        extractor(),
        cache=cache_folder() / "features" if options.cache else None,
        trunk=getattr(plugins.load("learners", options.learner), "trunk", 0),
    )
    say(f"features of {len(kept)} images at {', '.join(bank.name(r) for r in bank.resolutions)}")
    bank.add([s.image for s in sources])
    positive = {name: np.array([name in i.labels for i in kept]) for name in images.classes}
    return TrialData(findings, kept, sources, bank, positive, [i.group for i in kept])
