"""A generator that a trial trains: which kind, how long, and whether that is long enough to judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visynth.core import plugins
from visynth.core import seeds as seeding
from visynth.core.artifact import SPEC
from visynth.core.errors import DataError, UsageError
from visynth.core.progress import Progress
from visynth.core.stage import Stage
from visynth.generators.base import Generator, load_generator
from visynth.generators.compose_fit import Source
from visynth.jobs.trial.cells import Split
from visynth.jobs.trial.data import TrialData
from visynth.jobs.trial.options import TrialOptions
from visynth.jobs.trial.plan import MARGIN

LEAST = 2.0  # minutes a generator below which a rival of composition is not even begun
SHARE = 0.75  # of the time left goes into training; the rest is for sampling, features and arms
PILOT = 0.3  # minutes of training that tell how fast it is
ARM = {"inpaint": "inpainting", "diffusion": "diffusion", "projection": "projection"}  # registered name -> arm
# Images that a training must have seen before its images look like their class; fewer cannot be judged. From our own
# runs at 32 and 64 pixels (scripts/bench/README.md): below, images were blurs.
NEARLY = 0.8  # of these, in a training that fell short of its plan, is enough all the same
ENOUGH = {"inpaint": 2_000, "diffusion": 20_000, "projection": 4_000}
LOSSES = "loss over training"  # entry of a trained generator's card: pairs of images seen and loss
SEEN, SECONDS = "images seen in training", "seconds of training"  # entries of a trained generator's card


@dataclass(frozen=True)
class TrainingPlan:
    """Minutes of training per generator, and the images that it will see in them.

    Attributes:
        kind: registered trainer.
        minutes: of training for each generator.
        seen: images that each will have seen by then.
        needed: minutes of the whole trial with which each would see enough.
    """

    kind: str
    minutes: float
    seen: int
    needed: float

    @property
    def enough(self) -> bool:
        return self.seen >= ENOUGH[self.kind]

    def shortage(self) -> str:
        """A sentence on the time that is missing."""
        return (
            f"{ARM[self.kind]} would see about {self.seen} images in the {self.minutes:.1f} minutes that each generator "
            f"can be trained, and needs about {ENOUGH[self.kind]} before it can be judged: give about {self.needed:.0f} "
            "minutes (--minutes), fewer --draws and --folds, or a GPU"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Undertrained:
    """A generator that saw too little to be judged: one, of all training images, to look at.

    Attributes:
        plan: what there was time for.
        name: of the kind.
        classes: that it was the only way for.
        generator: the one that was trained in the time that was left.
    """

    plan: TrainingPlan
    name: str
    classes: tuple[str, ...]
    generator: Generator

    @property
    def seen(self) -> int:
        return int(self.generator.card[SEEN])

    def reason(self) -> str:
        return f"{self.plan.shortage()}. Samples after {self.seen} images are below"


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
        progress: receives progress lines.
        stage: keeps the generators, so that a trial that goes on has the same ones.
    """

    kind: str
    classes: tuple[str, ...]
    good: str | None
    minutes: float
    size: int
    seed: int
    cells: int
    progress: Progress
    stage: Stage
    traceable: bool = False
    threads: bool = False
    generators: dict[tuple[int, int], Generator] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ARM[self.kind]

    @property
    def makes_controls(self) -> bool:
        return self.kind != "diffusion"

    @property
    def inputs(self) -> dict[str, Any]:
        return {"kind": self.kind, "minutes": self.minutes, "size": self.size}

    def shortfall(self, splits: Sequence[Split]) -> str | None:
        """A sentence if some generator of these cells saw too little to be judged; a trial that goes on finds them in
        the stage."""
        seen = []
        for split in splits:
            key = split.draw, split.fold
            generator = self.generators.get(key) or load_generator(self._folder(list(key)))
            seen.append(int(generator.card[SEEN]))
        if min(seen) >= NEARLY * ENOUGH[self.kind]:
            return None
        return (
            f"{self.name} saw {min(seen)} images in {self.minutes:.1f} minutes and needs about {ENOUGH[self.kind]} before "
            "it can be judged"
        )

    def _folder(self, place: Any) -> Path:
        return self.stage.path(generator=self.inputs, place=place)

    def fit(self, data: TrialData, name: str, split: Split) -> Generator:
        key = split.draw, split.fold
        if key not in self.generators:
            number = len(self.generators)
            left = (self.cells - number) * self.minutes
            words = f"  training {self.name} {number + 1} of {self.cells} for {self.minutes:.1f} min"
            sources = [data.sources[int(row)] for row in split.train if data.sources[int(row)].label]
            seed = seeding.derive("learned", self.seed, *key) % 2**31
            self.generators[key] = self.kept(sources, seed, list(key), f"{words}, about {left:.0f} min left")
        generator = self.generators[key]
        if name not in generator.classes:
            raise DataError(
                f"{name} has no reliable mask in the training side of draw {split.draw + 1}, fold {split.fold + 1}"
            )
        return generator

    def kept(self, sources: Sequence[Source], seed: int, place: Any, words: str) -> Generator:
        """A trained generator, from the stage where it was trained before."""
        folder = self._folder(place)
        if (folder / SPEC).is_file():
            return load_generator(folder)
        self.progress(words)
        generator = self.train(sources, seed, self.minutes)
        generator.save(folder)
        return generator

    def fit_all(self, data: TrialData) -> Generator:
        """For as long as each of the cells' was trained."""
        sources = data.training_sources()
        words = f"training the final {self.name} generator for {self.minutes:.1f} min on {len(sources)} images"
        generator = self.kept(sources, self.seed, "all", words)
        generator.members = tuple(data.findings.scan.members())
        generator.card |= {"task": self.name, "training images": len(sources), "made by": "visynth trial"}
        return generator

    def train(self, sources: Sequence[Source], seed: int, minutes: float, pilot: bool = False) -> Generator:
        """A generator of some images, trained for some minutes; a pilot does nothing but train."""
        trainer = plugins.load("trainers", self.kind)
        options = {"minutes": minutes, "seed": seed, "size": self.size, "pilot": pilot, "progress": self.progress}
        generator: Generator = trainer(sources, self.classes, self.good, **options)
        return generator


def choose_kind(data: TrialData, options: TrialOptions) -> str:
    """Registered name of what to train, or "none".

    Raises:
        UsageError: inpainting is asked for, but there are no masks or no defect-free class.
    """
    composable = data.findings.suited("composition")
    kind: str = options.learned
    if kind == "auto":
        masked = data.good is not None and any(name in composable for name in data.rare)
        learnable = any(name in data.findings.suited("learned") for name in data.rare)
        kind = "inpaint" if masked else "diffusion" if learnable else "none"
    if kind == "inpaint" and (not composable or data.good is None):
        raise UsageError(
            "inpainting needs masks (--masks) and a defect-free class (--good); '--learned diffusion' does without."
        )
    return kind


def served_by(kind: str, data: TrialData) -> tuple[str, ...]:
    """Classes that a kind of generator can make."""
    if kind == "none":
        return ()
    return data.findings.suited("composition") if kind == "inpaint" else data.classes


def trained_by(
    kind: str, data: TrialData, options: TrialOptions, cells: int, minutes: float, progress: Progress, stage: Stage
) -> TrainedSynthesizer:
    """The synthesizer that trains a kind of generator for some minutes in each of some cells."""
    size = options.learn_size or _size(data, kind)
    return TrainedSynthesizer(
        kind, served_by(kind, data), data.good, minutes, size, options.seed, cells, progress, stage
    )


def plan_training(
    synthesizer: TrainedSynthesizer, data: TrialData, budget: float, all_cells: int, without: float
) -> TrainingPlan:
    """Train for a moment to see how fast it is, and say what the budget comes to.

    Args:
        synthesizer: with the number of cells.
        data: what there is.
        budget: seconds that are left for training, sampling and the arms of what was trained.
        all_cells: cells of all draws that were asked for: with more minutes, all of them are planned.
        without: minutes that the whole trial takes without training.
    """
    kind, cells = synthesizer.kind, max(synthesizer.cells, 1)
    synthesizer.progress(f"training {ARM[kind]} for {60 * PILOT:.0f} s, to see how fast it is")
    pilot = synthesizer.train(data.training_sources(), synthesizer.seed, PILOT, pilot=True)
    rate = int(pilot.card[SEEN]) / max(float(pilot.card[SECONDS]), 1e-3)
    minutes = SHARE * max(budget - 60 * PILOT, 0) / 60 / cells
    needed = without + (PILOT + all_cells * ENOUGH[kind] / max(rate, 1e-3) / SHARE / 60) / MARGIN
    return TrainingPlan(kind, minutes, round(60 * minutes * rate), needed)


def _size(data: TrialData, kind: str) -> int:
    """64 pixels, or what the images have in multiples of 8 if that is less."""
    if kind == "inpaint":
        return 64
    smallest = int(min(min(s.image.shape[:2]) for s in data.sources))
    return max(8, min(64, smallest // 8 * 8))
