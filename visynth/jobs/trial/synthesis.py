"""Learned generators in a trial: one is trained for each draw and fold, on its training side alone, within the time there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from visynth.core import plugins
from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError
from visynth.verdict.cells import Cell, Extra

if TYPE_CHECKING:
    from visynth.generators.base import Generator
    from visynth.jobs.preflight import Preflight
    from visynth.jobs.trial.bench import Workbench

KINDS = ("auto", "none", "inpaint", "diffusion", "projection")
NAMES = {"inpaint": "inpainting", "diffusion": "diffusion", "projection": "projection"}
LEAST = 2.0  # minutes of training below which a generator is noise, and measuring it a waste
SHARE = 0.75  # of the time left goes into training; the rest is for sampling, features and arms


@dataclass
class Studio:
    """Trains and keeps the generators of a trial's cells.

    Attributes:
        kind: registered trainer.
        classes: what the generators make.
        good: the defect-free class, if any.
        minutes: of training for each.
        size: pixels: the windows' side for inpainting, the images' side for diffusion.
        seed: of the trial.
        cells: how many there will be, for the time left.
        say: receives progress lines.
    """

    kind: str
    classes: tuple[str, ...]
    good: str | None
    minutes: float
    size: int
    seed: int
    cells: int
    say: Callable[[str], None]
    made: dict[tuple[int, int], Generator] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The arm's name."""
        return NAMES[self.kind]

    def generator(self, bench: Workbench, draw: int, fold: int, train: Sequence[int]) -> Generator:
        """The generator of a cell, trained when it is first asked for; every class of the cell shares it."""
        if (draw, fold) not in self.made:
            number = len(self.made)
            left = (self.cells - number) * self.minutes
            self.say(
                f"  training {self.name} {number + 1} of {self.cells} for {self.minutes:.1f} min, about {left:.0f} min left"
            )
            sources = [bench.sources[int(row)] for row in train if bench.sources[int(row)].label]
            seed = seeding.derive("learned", self.seed, draw, fold) % 2**31
            self.made[(draw, fold)] = self.train(sources, seed)
        return self.made[(draw, fold)]

    def train(self, sources: Sequence[Any], seed: int) -> Generator:
        """A generator of some training images."""
        trainer = plugins.load("trainers", self.kind)
        made: Generator = trainer(
            sources, self.classes, self.good, minutes=self.minutes, seed=seed, size=self.size, say=self.say
        )
        return made


def open_studio(
    flight: Preflight,
    bench: Workbench,
    kind: str,
    size: int,
    cells: int,
    budget: float,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Studio | None, str]:
    """A studio, or None with the reason.

    Args:
        flight: says what suits.
        bench: the images.
        kind: ``"auto"``, ``"none"``, ``"inpaint"`` or ``"diffusion"``.
        size: pixels, 0 chooses.
        cells: generators to train.
        budget: seconds for training, sampling and arms of the learned generator.
        seed: of the trial.
        say: receives progress lines.
    """
    composable = [n for n in flight.images.classes if flight.suits[n].startswith("composition")]
    learnable = [n for n in flight.rare if flight.suits[n].startswith("a learned generator")]
    if kind == "auto":
        masked = flight.good is not None and any(n in composable for n in flight.rare)
        kind = "inpaint" if masked else "diffusion" if learnable else "none"
    if kind == "none":
        return None, ""
    classes = composable if kind == "inpaint" else list(flight.images.classes)
    if kind == "inpaint" and (not classes or flight.good is None):
        raise UsageError(
            "inpainting needs masks (--masks) and a defect-free class (--good); '--learned diffusion' does without."
        )
    minutes = SHARE * budget / 60 / max(cells, 1)
    if minutes < LEAST:
        need = LEAST * cells / SHARE
        return None, (
            f"{NAMES[kind]} was not trained: {cells} generators (one for each draw and fold) of at least {LEAST:g} minutes do not fit into the "
            f"time left; give about {need:.0f} minutes more (--minutes), or fewer --draws and --folds"
        )
    return Studio(kind, tuple(classes), flight.good, minutes, size or _size(bench, kind), seed, cells, say), ""


def _size(bench: Workbench, kind: str) -> int:
    """64 pixels, or what the images have in multiples of 8 if that is less."""
    if kind == "inpaint":
        return 64
    smallest = int(min(min(s.image.shape[:2]) for s in bench.sources))
    return max(8, min(64, smallest // 8 * 8))


def learned_extra(
    studio: Studio, bench: Workbench, name: str, train: Sequence[int], count: int, draw: int, fold: int, trial_seed: int
) -> Extra:
    """Synthetic images of a class by a cell's generator, with the seeds that composition has in the same cell."""
    generator = studio.generator(bench, draw, fold, train)
    if name not in generator.classes:
        raise DataError(f"{name} has no reliable mask in the training side of draw {draw + 1}, fold {fold + 1}")
    label = generator.classes.index(name)
    made_seeds = [seeding.derive("trial", trial_seed, draw, fold, k) for k in range(count)]
    samples = generator.sample(made_seeds, [label] * count)
    rows = bench.bank.add([samples.crop(k).permute(1, 2, 0).numpy() for k in range(count)], cache=False)
    # The network saw every training group of the class, so none of its images may help to choose on any of them.
    seen = frozenset(bench.groups[int(row)] for row in train if bench.positive[name][int(row)])
    return Extra(rows, [seen] * count)


def learned_cells(
    studio: Studio, bench: Workbench, name: str, cells: Sequence[Cell], count: int, seed: int
) -> tuple[list[Cell], float]:
    """The same cells with learned images as "synthetic", and the seconds that it took."""
    begun = time.monotonic()
    made = []
    for cell in cells:
        extra = learned_extra(studio, bench, name, cell.train.tolist(), count, cell.draw, cell.fold, seed)
        made.append(replace(cell, extras={"synthetic": extra}))
        studio.say(f"  {name}: {studio.name} in draw {cell.draw + 1}, fold {cell.fold + 1}")
    return made, time.monotonic() - begun
