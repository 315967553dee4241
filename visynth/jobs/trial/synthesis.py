"""What makes synthetic images in a trial: one protocol for composition and for trained generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from visynth.core import plugins
from visynth.core import seeds as seeding
from visynth.core.artifact import SPEC
from visynth.core.errors import DataError, UsageError
from visynth.core.stage import Stage
from visynth.generators.base import Generator, Samples, load_generator
from visynth.generators.compose_fit import fit_composition
from visynth.jobs.trial.cells import Split
from visynth.jobs.trial.data import Say, TrialData
from visynth.jobs.trial.options import TrialOptions
from visynth.verdict.cells import Cell, Extra

LEAST = 2.0  # minutes of training below which a generator is noise, and measuring it a waste
SHARE = 0.75  # of the time left goes into training; the rest is for sampling, features and arms
TRAINED = {"inpaint": "inpainting", "diffusion": "diffusion", "projection": "projection"}  # registered name, arm


@dataclass(frozen=True)
class Final:
    """A generator of every training image, and what was left out of it."""

    generator: Generator
    left_out: Mapping[str, str] = field(default_factory=dict)
    bad_masks: Mapping[str, str] = field(default_factory=dict)


class Synthesizer(Protocol):
    """Fits a generator on the training side of a split, and on all training images at the end.

    Attributes:
        name: of its arm.
        classes: that it can make.
        makes_controls: whether its defect-free images carry the traces of synthesis too, so that these do not spell
            "defect".
        traceable: whether an image names all real images that are in it. Otherwise the network saw every training image
            of the class, so none of its images may help to choose on any of them.
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
    def inputs(self) -> dict[str, Any]:
        """Plain JSON of all that its generators depend on beside the data."""
        ...

    def fit(self, data: TrialData, name: str, split: Split) -> Generator:
        """A generator of a class that knows the split's training side alone."""
        ...

    def fit_all(self, data: TrialData) -> Final:
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

    @property
    def inputs(self) -> dict[str, Any]:
        return {"kind": self.name}

    def fit(self, data: TrialData, name: str, split: Split) -> Generator:
        own = [data.sources[row] for row in split.train if data.sources[row].label in (name, self.good)]
        return fit_composition(own, good=self.good, classes=[name]).generator

    def fit_all(self, data: TrialData) -> Final:
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
        return Final(fitted.generator, fitted.left_out, fitted.bad_masks)


@dataclass
class TrainedSynthesizer:
    """Trains a generator for each draw and fold; every class of the cell shares it.

    Attributes:
        kind: registered trainer.
        classes: what the generators make.
        good: the defect-free class, if any.
        minutes: of training for each.
        size: pixels: the windows' side for inpainting, the images' side for diffusion.
        seed: of the trial.
        cells: how many there will be, for the time left.
        say: receives progress lines.
        stage: keeps the generators, so that a trial that goes on has the same ones.
    """

    kind: str
    classes: tuple[str, ...]
    good: str | None
    minutes: float
    size: int
    seed: int
    cells: int
    say: Say
    stage: Stage
    traceable: bool = False
    generators: dict[tuple[int, int], Generator] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return TRAINED[self.kind]

    @property
    def makes_controls(self) -> bool:
        return self.kind != "diffusion"

    @property
    def inputs(self) -> dict[str, Any]:
        return {"kind": self.kind, "minutes": self.minutes, "size": self.size}

    def fit(self, data: TrialData, name: str, split: Split) -> Generator:
        key = split.draw, split.fold
        folder = self.stage.path(generator=self.inputs, place=key)
        if key not in self.generators and (folder / SPEC).is_file():
            self.generators[key] = load_generator(folder)
        if key not in self.generators:
            number = len(self.generators)
            left = (self.cells - number) * self.minutes
            self.say(
                f"  training {self.name} {number + 1} of {self.cells} for {self.minutes:.1f} min, "
                f"about {left:.0f} min left"
            )
            sources = [data.sources[int(row)] for row in split.train if data.sources[int(row)].label]
            seed = seeding.derive("learned", self.seed, *key) % 2**31
            self.generators[key] = self._train(sources, seed)
            self.generators[key].save(folder)
        generator = self.generators[key]
        if name not in generator.classes:
            raise DataError(
                f"{name} has no reliable mask in the training side of draw {split.draw + 1}, fold {split.fold + 1}"
            )
        return generator

    def fit_all(self, data: TrialData) -> Final:
        """For as long as each of the cells' was trained."""
        sources = data.training_sources()
        self.say(f"training the final {self.name} generator for {self.minutes:.1f} min on {len(sources)} images")
        generator = self._train(sources, self.seed)
        generator.members = tuple(data.findings.scan.members())
        generator.card |= {"task": self.name, "training images": len(sources), "made by": "visynth trial"}
        return Final(generator)

    def _train(self, sources: Sequence[Any], seed: int) -> Generator:
        trainer = plugins.load("trainers", self.kind)
        options = {"minutes": self.minutes, "seed": seed, "size": self.size, "say": self.say}
        generator: Generator = trainer(sources, self.classes, self.good, **options)
        return generator


def composition_of(data: TrialData) -> CompositionSynthesizer | None:
    """Composition, where some class has masks for it."""
    classes = data.findings.suited("composition")
    return CompositionSynthesizer(classes, data.good) if classes and data.good else None


def trained_of(
    data: TrialData, options: TrialOptions, cells: int, budget: float, say: Say, stage: Stage
) -> tuple[TrainedSynthesizer | None, str]:
    """A trained synthesizer, or None with the reason.

    Args:
        data: what there is.
        options: ``learned`` and ``learn_size`` say which and at what size.
        cells: generators to train.
        budget: seconds for training, sampling and arms of the learned generator.
        say: receives progress lines.
        stage: keeps the generators.

    Raises:
        UsageError: inpainting is asked for, but there are no masks or no defect-free class.
    """
    composable = data.findings.suited("composition")
    kind: str = options.learned
    if kind == "auto":
        masked = data.good is not None and any(name in composable for name in data.rare)
        learnable = any(name in data.findings.suited("learned") for name in data.rare)
        kind = "inpaint" if masked else "diffusion" if learnable else "none"
    if kind == "none":
        return None, ""
    if kind == "inpaint" and (not composable or data.good is None):
        raise UsageError(
            "inpainting needs masks (--masks) and a defect-free class (--good); '--learned diffusion' does without."
        )
    minutes = SHARE * budget / 60 / max(cells, 1)
    if minutes < LEAST:
        need = LEAST * cells / SHARE
        return None, (
            f"{TRAINED[kind]} was not trained: {cells} generators (one for each draw and fold) of at least {LEAST:g} "
            f"minutes do not fit into the time left; give about {need:.0f} minutes more (--minutes), or fewer --draws "
            "and --folds"
        )
    classes = composable if kind == "inpaint" else data.classes
    size = options.learn_size or _size(data, kind)
    return TrainedSynthesizer(kind, classes, data.good, minutes, size, options.seed, cells, say, stage), ""


def _size(data: TrialData, kind: str) -> int:
    """64 pixels, or what the images have in multiples of 8 if that is less."""
    if kind == "inpaint":
        return 64
    smallest = int(min(min(s.image.shape[:2]) for s in data.sources))
    return max(8, min(64, smallest // 8 * 8))


def with_synthesis(
    data: TrialData, synthesizer: Synthesizer, name: str, split: Split, cell: Cell, options: TrialOptions
) -> Cell:
    """The cell with synthetic images of its class, and defect-free controls where each image can be traced.

    Every synthesizer gets the same seeds in the same cell.

    Raises:
        VisynthError: there is nothing to fit on the training side.
    """
    generator = synthesizer.fit(data, name, split)
    label, count = generator.classes.index(name), options.synthetic
    controls = max(1, count // 3) if synthesizer.traceable and data.good in generator.classes else 0
    labels = [label] * count + ([generator.classes.index(str(data.good))] * controls if controls else [])
    seeds = [seeding.derive("trial", options.seed, split.draw, split.fold, k) for k in range(len(labels))]
    samples = generator.sample(seeds, labels)
    rows = data.bank.add([samples.crop(k).permute(1, 2, 0).numpy() for k in range(len(samples))], cache=False)
    parents = _parents(data, synthesizer, name, split, samples)
    control = Extra(rows[count:], parents[count:]) if controls else None
    return replace(cell, synthetic=Extra(rows[:count], parents[:count]), control=control)


def _parents(
    data: TrialData, synthesizer: Synthesizer, name: str, split: Split, samples: Samples
) -> list[frozenset[str]]:
    """Per image the groups of the real images behind it."""
    if not synthesizer.traceable:
        seen = frozenset(data.groups[int(row)] for row in split.train if data.positive[name][int(row)])
        return [seen] * len(samples)
    group_of = {source.name: source.group for source in data.sources}
    return [frozenset(group_of[parent] for parent in names) for names in samples.parents or ()]
