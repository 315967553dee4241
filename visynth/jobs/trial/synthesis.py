"""Synthesizers of a trial: one protocol for composition and for trained generators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from visynth.core import seeds as seeding
from visynth.generators.base import Generator, Samples
from visynth.generators.compose_fit import fit_composition
from visynth.jobs.trial.cells import Split
from visynth.jobs.trial.data import TrialData
from visynth.jobs.trial.options import TrialOptions
from visynth.metrics.dense import DenseHead, coverage
from visynth.verdict.cells import Cell, Extra


class Synthesizer(Protocol):
    """Fits a generator on the training side of a split, and on all training images at the end.

    Attributes:
        name: of its arm.
        classes: that it can make.
        makes_controls: whether its defect-free images carry the traces of synthesis too, so that these do not spell
            "defect".
        traceable: whether an image names all real images that are in it. Otherwise the network saw every training image
            of the class, so none of its images may help to choose on any of them.
        threads: whether several of its generators may be fitted and sampled at once, each on one core.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def makes_controls(self) -> bool: ...
    @property
    def traceable(self) -> bool: ...
    @property
    def threads(self) -> bool: ...
    @property
    def inputs(self) -> dict[str, Any]:
        """Plain JSON of all that its generators depend on beside the data."""
        ...

    def fit(self, data: TrialData, name: str, split: Split) -> Generator:
        """A generator of a class that knows the split's training side alone."""
        ...

    def fit_all(self, data: TrialData) -> Generator:
        """The generator that the user gets, fitted on every training image that the trial measured with."""
        ...


@dataclass(frozen=True)
class CompositionSynthesizer:
    """Real defects by mask on defect-free images.

    Attributes:
        classes: that have masks to compose by.
        good: the defect-free class.
    """

    classes: tuple[str, ...]
    good: str
    name: str = "composition"
    makes_controls: bool = True
    traceable: bool = True
    threads: bool = True

    @property
    def inputs(self) -> dict[str, Any]:
        return {"kind": self.name}

    def fit(self, data: TrialData, name: str, split: Split) -> Generator:
        own = [data.sources[row] for row in split.train if data.sources[row].label in (name, self.good)]
        return fit_composition(own, good=self.good, classes=[name]).generator

    def fit_all(self, data: TrialData) -> Generator:
        sources = data.training_sources()
        card = {
            "task": "composition",
            "training images": len(sources),
            "licence": "as the images that it was made from",
            "made by": "visynth trial",
        }
        fitted = fit_composition(
            [source for source in sources if source.label in (*self.classes, self.good)],
            good=self.good,
            classes=list(self.classes),
            members=data.findings.scan.members(),
            card=card,
        )
        return fitted.generator


def composition_of(data: TrialData) -> CompositionSynthesizer | None:
    """Composition, where some class has masks for it."""
    classes = data.findings.suited("composition")
    return CompositionSynthesizer(classes, data.good) if classes and data.good else None


def sampled(data: TrialData, synthesizer: Synthesizer, name: str, split: Split, options: TrialOptions) -> Samples:
    """Synthetic images of a class by a generator that knows the split's training side alone, and behind them defect-free
    controls where each image can be traced. Every synthesizer gets the same seeds in the same cell.

    Raises:
        VisynthError: there is nothing to fit on the training side.
    """
    generator = synthesizer.fit(data, name, split)
    label, count = generator.classes.index(name), options.synthetic
    controls = max(1, count // 3) if synthesizer.traceable and data.good in generator.classes else 0
    labels = [label] * count + ([generator.classes.index(str(data.good))] * controls if controls else [])
    seeds = [seeding.derive("trial", options.seed, split.draw, split.fold, k) for k in range(len(labels))]
    return generator.sample(seeds, labels)


def with_synthesis(
    data: TrialData,
    synthesizer: Synthesizer,
    name: str,
    split: Split,
    cell: Cell,
    samples: Samples,
    count: int,
    head: DenseHead | None = None,
) -> Cell:
    """The cell with synthetic images of its class, and what is behind them as defect-free controls.

    Args:
        data: gets their features.
        synthesizer: that made them.
        name: the class.
        split: that they were made for.
        cell: of that split.
        samples: see :func:`sampled`.
        count: of the class, before the controls.
        head: a dense one gets their features of every place, and their masks where they have some.
    """
    images = [samples.crop(k).permute(1, 2, 0).numpy() for k in range(len(samples))]
    seen = None if head is None or samples.masks is None else head.places
    rows = data.bank.add(images, cache=False, places=seen)
    if head is not None and samples.masks is not None:
        for k, row in enumerate(rows.tolist()):
            height, width = images[k].shape[:2]
            head.covered[row] = coverage(samples.masks[k, :height, :width].numpy().astype(bool)) if k < count else None
    parents = _parents(data, synthesizer, name, split, samples)
    control = Extra(rows[count:], parents[count:], data.number(str(data.good))) if len(rows) > count else None
    return replace(cell, synthetic=Extra(rows[:count], parents[:count], data.number(name)), control=control)


def _parents(
    data: TrialData, synthesizer: Synthesizer, name: str, split: Split, samples: Samples
) -> list[frozenset[str]]:
    """Per image the groups of the real images behind it."""
    if not synthesizer.traceable:
        seen = frozenset(data.groups[int(row)] for row in split.train if data.positive[name][int(row)])
        return [seen] * len(samples)
    return [frozenset(data.group_of[parent] for parent in names) for names in samples.parents or ()]
