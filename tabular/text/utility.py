"""Utility: what synthetic texts of a rare class are worth to a classifier, on real texts that nothing saw.

In every cell (a draw and a fold) prompts show texts of the cell's training part alone. The class's training texts are dealt into
parts, and the prompt of a record shows texts of one part: on inner folds, a part is held out together with all that was
written from it. So how much of the class's weight synthetic texts get, nothing among the choices, is chosen without a look
at the test part, and without writing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, UsageError, choices, raise_all
from visynth.core.progress import Progress, no_progress
from visynth.core.stage import Stage
from visynth.tabular.shares import Fits, best, run_cells
from visynth.tabular.text.augment import augmented
from visynth.tabular.text.embedding import Weighted
from visynth.tabular.text.generator import Example, showing, text_hash
from visynth.tabular.text.plan import Record
from visynth.tabular.utility import Split
from visynth.verdict.comparison import Results, Wording

Ints = NDArray[np.int64]
SHARES = (0.0, 0.1, 0.25, 0.5)  # of the class's weight that synthetic texts may get
CLASSIC = (0.25, 0.5)  # that augmented ones may get
PARTS = 4  # of a class's training texts
VARIANTS = 4  # augmented ones of each text
LEAST = 4  # texts of the class in a fold

TEXTS = Wording(
    items="texts",
    groups="texts",
    recipes={
        "real": "the texts as they are",
        "duplicate": "random over-sampling",
        "balanced": "class weights",
        "augment": "words swapped and left out (EDA)",
    },
    helps="add the synthetic texts of balanced.jsonl (field 'synthetic') to your training texts, and keep your own validation as it is",
    precision=0.5,
)
Write = Callable[[Sequence[Example], Sequence[Record], str, int], Sequence[tuple[int, str]]]


@dataclass(frozen=True)
class TextCells:
    """How the cells are made.

    Attributes:
        draws: repetitions with other folds.
        folds: test parts of each.
        texts: synthetic ones to write in a cell.
        shown: real texts in a prompt.
        most: pretend that only so many texts of the class exist in training; the rest serves the oracle.
        seed: of everything.
    """

    draws: int = 5
    folds: int = 2
    texts: int = 60
    shown: int = 5
    most: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"draws": 1, "folds": 2, "texts": 1, "shown": 1}
        problems = [
            f"{n} must be at least {k}, but got {getattr(self, n)}" for n, k in least.items() if getattr(self, n) < k
        ]
        if self.most is not None and self.most < 2:
            problems.append(f"rare_texts must be at least 2, but got {self.most}")
        raise_all("the options", problems, UsageError)


def rare_texts(
    examples: Sequence[Example],
    label: str,
    write: Write,
    cells: TextCells,
    *,
    stage: Stage | None = None,
    progress: Progress = no_progress,
) -> Results:
    """Every arm on every cell for one class against the rest.

    Args:
        examples: real texts with their classes; equal texts stay together.
        label: the class.
        write: writes a text for each record from (training texts, records, name of the cell, seed): pairs of the place of a
            record, and its text. A record's ``parents`` are places in the training texts.
        cells: how many, and what is in them.
        stage: keeps finished cells.
        progress: receives lines.

    Raises:
        DataError: no such class, or too few texts of it.
    """
    positive = np.array([example.label == label for example in examples])
    if not positive.any():
        raise DataError(
            f"no text has the label {label!r}; the labels are {choices(sorted({e.label for e in examples}))}."
        )
    if positive.sum() < LEAST * cells.folds:
        raise DataError(
            f"class {label!r} has {int(positive.sum())} texts: {cells.folds} folds need {LEAST * cells.folds}."
        )
    groups = [text_hash(example.text) for example in examples]
    results = Results(label, wording=TEXTS, synthesizer="language model")

    def outcome_of(split: Split, seed: int) -> dict[str, Any]:
        cell = _Cell(examples, positive, split.train, split.test, label, cells, seed)
        return cell.outcome(write, f"{label}-{split.draw}-{split.fold}")

    run_cells(results, positive, groups, cells, outcome_of, stage, progress)
    return results


class _Cell:
    """One comparison of arms."""

    def __init__(
        self,
        examples: Sequence[Example],
        positive: NDArray[np.bool_],
        train: Ints,
        test: Ints,
        label: str,
        cells: TextCells,
        seed: int,
    ) -> None:
        self.label, self.cells, self.seed = label, cells, seed
        generator = seeding.rng(seed, "text/cell")
        own = generator.permutation(train[positive[train]])
        kept = own if cells.most is None else own[: cells.most]
        self.more = own[len(kept) :]  # for the oracle alone
        self.train = np.sort(np.concatenate([kept, train[~positive[train]]]))
        self.test = test
        self.real = [examples[row] for row in self.train]
        self.positive = positive[self.train]
        self.parts = np.zeros(len(self.train), np.int64)
        for side in (True, False):
            places = generator.permutation(np.flatnonzero(self.positive == side))
            self.parts[places] = np.arange(len(places)) % self.count
        self.examples = examples

    @property
    def count(self) -> int:
        """Parts into which the training texts are dealt."""
        return int(np.clip(self.positive.sum(), 2, PARTS))

    def records(self) -> list[Record]:
        """Records whose prompts show texts of the class, of one part each."""
        made = []
        for number in range(self.cells.texts):
            own = np.flatnonzero(self.positive & (self.parts == number % self.count))
            made.append(showing(Record.of(number, {"label": self.label}, self.seed), own.tolist(), self.cells.shown))
        return made

    def outcome(self, write: Write, name: str) -> dict[str, Any]:
        """Scores of every arm on the test part, its inner score and what was chosen, as plain JSON."""
        written = list(write(self.real, self.records(), name, self.seed))
        own = np.flatnonzero(self.positive)
        variants = augmented([self.real[place].text for place in own], VARIANTS, self.seed)
        plain = self._fits()
        classic = self._fits(variants, np.repeat(self.parts[own], VARIANTS), plain.penalty)
        parts = np.array([place % self.count for place, _ in written], np.int64)
        synthetic = self._fits([said for _, said in written], parts, plain.penalty)
        shares = {share: (synthetic if share else plain) for share in (SHARES if written else SHARES[:1])}
        arms: dict[str, list[Any]] = {
            "real": [plain.tested(balanced=False), None, {}],
            "duplicate": [plain.tested(repeat=True), None, {}],
            "balanced": [plain.tested(), None, {}],
            "augment": best(dict.fromkeys(CLASSIC, classic), "candidate"),
            "synthetic": best(shares),
        }
        if len(self.more):
            oracle = self._fits(
                [self.examples[row].text for row in self.more], np.full(len(self.more), -1), plain.penalty
            )
            arms["oracle"] = [oracle.tested(share=len(self.more) / (len(self.more) + len(own))), None, {}]
        return {"arms": arms, "synthetic": len(written), "train": int(self.positive.sum())}

    def _fits(self, extra: Sequence[str] = (), parts: Ints | None = None, penalty: float | None = None) -> Fits:
        """Fits on the training texts and some extra ones of the class, by the words of these and no others."""
        texts = [*(example.text for example in self.real), *extra]
        x = Weighted(texts)([*texts, *(self.examples[row].text for row in self.test)])
        own = np.zeros(0, np.int64) if parts is None else parts
        places: dict[int | None, Ints] = {None: np.arange(len(own))}
        places |= {part: np.flatnonzero(own != part) for part in range(self.count)}
        return Fits(x, self.positive, self.parts, places, penalty)
