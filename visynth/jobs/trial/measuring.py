"""A trial under way: every synthesizer on its classes, cell by cell; what is done is on disk."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from visynth.core.errors import DataError, VisynthError
from visynth.core.processes import in_threads
from visynth.core.progress import Progress, time_left
from visynth.core.stage import Stage
from visynth.jobs.preflight import MIN_GROUPS
from visynth.jobs.trial.cells import Headroom, Split, bare_cell, make_splits, real_cells, too_few
from visynth.jobs.trial.data import TrialData
from visynth.jobs.trial.options import TrialOptions
from visynth.jobs.trial.plan import Clock, Cost, TrialPlan, plan_trial
from visynth.jobs.trial.ready import Ready, ready_cells
from visynth.jobs.trial.synthesis import Synthesizer, composition_of
from visynth.jobs.trial.training import (
    ENOUGH,
    LEAST,
    PILOT,
    SHARE,
    TrainedSynthesizer,
    TrainingPlan,
    Undertrained,
    choose_kind,
    plan_training,
    served_by,
    trained_by,
)
from visynth.metrics.dense import DenseHead
from visynth.verdict.cells import Cell
from visynth.verdict.comparison import DENSE, Arm, Outcomes, Results, add_rival, dense_arms, fit_cells, gather
from visynth.verdict.rule import Design

Pairs = Sequence[tuple[Split, Cell]]


@dataclass
class Trial:
    """A trial's data and options, and its results so far.

    Attributes:
        data: the images.
        options: what was asked for.
        stage: where outcomes of cells are kept.
        progress: receives progress lines.
        started: when the trial began.
        results: by class.
        splits_of: by class, the splits that it was measured on.
        synthesizers: by name, those that measured something.
        headroom: by named class.
        undertrained: generators that saw too little to be judged.
        notes: what was not run, and why.
        skipped: by class, why it was not measured.
    """

    data: TrialData
    options: TrialOptions
    stage: Stage
    progress: Progress
    started: Clock = field(default_factory=Clock.now)
    results: dict[str, Results] = field(default_factory=dict)
    splits_of: dict[str, list[Split]] = field(default_factory=dict)
    synthesizers: dict[str, Synthesizer] = field(default_factory=dict)
    headroom: dict[str, Headroom] = field(default_factory=dict)
    undertrained: list[Undertrained] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.splits = make_splits(self.data, self.options)  # those that are planned, once there is a plan
        self.notes += too_few(self.data, self.splits, self.options)

    @cached_property
    def dense_head(self) -> DenseHead:
        return self.data.dense_head(self.progress)

    def measure(self) -> None:
        """Every synthesizer on the classes that it serves: as their synthesis, or as a rival of the one before."""
        for synthesizer, names, splits in self._synthesizers():
            self.synthesizers[synthesizer.name] = synthesizer
            for name in names:
                if name in self.results:
                    self._measure_rival(synthesizer, name)
                else:
                    self._measure_class(synthesizer, name, splits)
        for name in self.data.rare:
            if name not in self.results:
                self._measure_classic(name)

    def design(self) -> Design:
        """How the cells came about, for the rule."""
        return Design(draws=self.options.draws)

    # -- what is measured, and how much of it ------------------------------------------------------------------------

    def _synthesizers(self) -> Iterator[tuple[Synthesizer, Sequence[str], list[Split]]]:
        """Each with its classes, named ones first. What composition leaves of the time trains the next."""
        composition = composition_of(self.data)
        kind = choose_kind(self.data, self.options)
        plan = self._plan(composition, kind)
        self.splits = [split for split in self.splits if split.draw < plan.draws]
        if composition is not None:
            yield composition, [name for name in plan.classes if name in composition.classes], self.splits
        if kind != "none":
            trained = self._trained(kind, plan)
            if trained is not None:  # its minutes were planned to fit
                yield trained, [name for name in self.data.rare if name in trained.classes], self.splits

    def _plan(self, composition: Synthesizer | None, kind: str) -> TrialPlan:
        """Draws and classes that fit, by what a pilot cell costs; a trial that goes on keeps the plan that it began
        with."""
        data, options = self.data, self.options
        groups = data.findings.images.groups()
        composed = () if composition is None else composition.classes
        others = tuple(n for n in composed if n not in data.rare and groups[n] >= MIN_GROUPS) if options.others else ()
        kept = self.stage.get(what="plan")
        if kept is not None:
            plan = TrialPlan.from_json(kept)
        else:
            cost, pilot = self._pilot(composition, (*data.rare, *others))
            plan = plan_trial(
                cost,
                data.rare,
                others,
                draws=options.draws,
                folds=self.folds(),
                seconds=60 * options.minutes,
                trains=kind != "none" and (options.learned != "auto" or bool(self._only_by(kind, composed))),
            )
            # The plan first: a trial that is killed here must not take a cell that it finds for one that costs nothing.
            self.stage.put(plan.to_json(), what="plan")
            if pilot is not None:
                self.stage.put(pilot.outcome, **pilot.key)
        self._tell(plan, (*data.rare, *others))
        return plan

    def _pilot(self, composition: Synthesizer | None, names: Sequence[str]) -> tuple[Cost, Pilot | None]:
        """The first cell that can be run, for what it costs; its outcome is kept."""
        workers = self.options.workers
        if self._has_dense(self.data.rare):
            _ = self.dense_head  # once for all cells
        spent = self._spent()
        composed = () if composition is None else composition.classes
        for name in sorted(names, key=lambda name: name not in composed):  # the dearest cells first
            begun = Clock.now()
            pairs = real_cells(self.data, name, self.splits, self.options, self.progress)
            ready = Clock.now()
            if not pairs:
                continue
            synthesizer = composition if name in composed else None
            split, cell = pairs[0]
            (first,) = self._ready(synthesizer, name, [(split, cell)])
            if isinstance(first.cell, VisynthError):  # nothing to fit on: told when the class is measured
                continue
            (outcome,) = self._fit_cells([first.cell], dense=self._has_dense([name]))
            cost = Cost(spent, ready.since(begun, workers), Clock.now().since(ready, workers))
            return cost, Pilot(_to_json(outcome), {**_key(synthesizer, name, pairs), "place": _place(split)})
        return Cost(spent, 0.0, 0.0), None

    def _trained(self, kind: str, plan: TrialPlan) -> TrainedSynthesizer | None:
        """The synthesizer that trains, if there is time for it to learn something; else what it came to is told, and no
        failure of it costs what was measured before."""
        try:
            return self._planned_training(kind, plan)
        except VisynthError as error:
            why = f"{kind} could not be trained: {str(error).splitlines()[0]}"
            self.notes.append(why)
            self.progress(f"  {why}")
            self.skipped |= dict.fromkeys(self._only_by(kind, self.results), why)
            return None

    def _planned_training(self, kind: str, trial_plan: TrialPlan) -> TrainedSynthesizer | None:
        data, options, progress, left = self.data, self.options, self.progress, trial_plan.left
        cells = len(self.splits)
        only_way = self._only_by(kind, self.results)
        trained = trained_by(kind, data, options, cells, SHARE * left / 60 / max(cells, 1), progress, self.stage)
        if not only_way and trained.minutes < LEAST:
            need = LEAST * cells / SHARE
            self.notes.append(
                f"{trained.name} was not trained: {cells} generators (one for each draw and fold) of at least "
                f"{LEAST:g} minutes do not fit into the time left; give about {need:.0f} minutes more (--minutes), or "
                "fewer --draws and --folds"
            )
            return None
        kept = self.stage.get(what="training")
        if kept is None:
            kept = plan_training(trained, data, left, options.draws * self.folds(), trial_plan.needed).to_json()
            self.stage.put(kept, what="training")
        plan = TrainingPlan(**kept)
        trained.minutes = plan.minutes
        if plan.enough:
            return trained
        progress(f"  {plan.shortage()}")
        self.notes.append(plan.shortage())
        if only_way:
            # All of the time for one generator, to look at.
            trained.minutes = max(min(plan.minutes * cells, plan.minutes * ENOUGH[kind] / max(plan.seen, 1)), PILOT)
            generator = trained.fit_all(data)
            self.undertrained.append(Undertrained(plan, trained.name, only_way, generator))
        return None

    def _only_by(self, kind: str, otherwise: Collection[str]) -> tuple[str, ...]:
        """Named classes that a kind of trained generator can make and nothing else does."""
        served = served_by(kind, self.data)
        return tuple(name for name in self.data.rare if name in served and name not in otherwise)

    def folds(self) -> int:
        """Test folds of each draw."""
        return len({split.fold for split in self.splits})

    def _fit_cells(
        self, cells: Sequence[Cell], only: Sequence[str] | None = None, dense: bool = False
    ) -> list[Outcomes]:
        options = self.options
        engine: dict[str, Any] = {"learner": self.data.learner, "workers": options.workers, "seed": options.seed}
        outcomes = fit_cells(cells, self.data.bank.tables(), only=only, **engine) if cells else []
        if dense and only is None:
            # In threads, since the features of every place are large.
            more = in_threads(lambda cell: dense_arms(cell, self.dense_head, options.seed), cells, options.workers)
            outcomes = [{**one, **other} for one, other in zip(outcomes, more, strict=True)]
        for cell in cells:
            self.data.forget(cell)
        return outcomes

    def _has_dense(self, names: Sequence[str]) -> bool:
        if getattr(self.data.learner, "pixels", False):  # its features are not those of the user's training
            return False
        return self.options.dense and any(self.data.findings.masked.get(name) for name in names)

    def _spent(self) -> float:
        return Clock.now().since(self.started, self.options.workers)

    def _tell(self, plan: TrialPlan, asked: Sequence[str]) -> None:
        options = self.options
        self.progress(
            f"plan: {', '.join(plan.classes) or 'no class'} with {plan.draws} of {options.draws} draws, to end within "
            f"about {options.minutes:g} minutes"
        )
        if plan.draws < options.draws or len(plan.classes) < len(asked):
            self.notes.append(
                f"{plan.draws} of {options.draws} draws were planned, so that the trial ends within "
                f"{options.minutes:g} "
                f"minutes; all that was asked for takes about {plan.needed:g} minutes (--minutes)"
            )
        for name in asked:
            if name not in plan.classes:
                self.skipped[name] = (
                    f"it was not measured: it does not fit into {options.minutes:g} minutes; about {plan.needed:g} "
                    "minutes are needed (--minutes)"
                )

    # -- cells -------------------------------------------------------------------------------------------------------

    def _measure_class(self, synthesizer: Synthesizer, name: str, splits: Sequence[Split]) -> None:
        pairs = real_cells(self.data, name, splits, self.options, self.progress)
        self.progress(f"{name}: {len(pairs)} cells, {self.options.synthetic} synthetic images each")
        fitted = self._fitted(synthesizer, name, pairs)
        measured = [(split, cell, o) for (split, cell) in pairs if isinstance(o := fitted[_place(split)], dict)]
        if len(measured) < len(splits):
            self.notes.append(
                f"{name}: {len(measured)} of {len(splits)} cells were run; the others had no image of the class or no "
                "reliable mask on one side"
            )
        if not measured:
            return
        cells = [cell for _, cell, _ in measured]
        results = gather(name, cells, [o for _, _, o in measured], float(self.options.synthetic))
        results.synthesizer = synthesizer.name
        self.results[name], self.splits_of[name] = results, [split for split, _, _ in measured]
        if DENSE in results.tested:
            results.rivals[DENSE] = synthesizer.name
        elif self._has_dense([name]) and "dense" not in results.tested:
            self.notes.append(
                f"{name}: no dense head: in some cell no training image of the class has a mask to learn from"
            )

    def _measure_rival(self, synthesizer: Synthesizer, name: str) -> None:
        """On the same cells as the class's first synthesizer, or not at all."""
        begun = time.monotonic()
        splits = self.splits_of[name]
        options = self.options
        pairs = [
            (split, bare_cell(self.data, name, split, augmented=options.synthetic, seed=options.seed))
            for split in splits
        ]
        fitted = self._fitted(synthesizer, name, pairs, only=["synthetic"], all_or_none=True)
        failed = [why for why in fitted.values() if isinstance(why, str)]
        if failed:  # what the first one measured must not be lost with it
            self.notes.append(f"{name}: {synthesizer.name} could not be measured: {failed[0]}")
            self.progress(f"  {self.notes[-1]}")
            return
        self.progress(f"  {name}: {synthesizer.name} took {time.monotonic() - begun:.0f} s, training included")
        shortfall = synthesizer.shortfall(splits) if isinstance(synthesizer, TrainedSynthesizer) else None
        if shortfall is not None:
            self.notes.append(f"{name}: {shortfall}, so its arm is left out")
            return
        outcomes = [o for split in splits if isinstance(o := fitted[_place(split)], dict)]
        add_rival(self.results[name], [cell for _, cell in pairs], outcomes, synthesizer.name)

    def _measure_classic(self, name: str) -> None:
        """A named class that nothing was synthesised for still gets its baselines and what is best among them."""
        pairs = real_cells(self.data, name, self.splits, self.options, self.progress)
        if pairs:
            self.progress(f"{name}: {len(pairs)} cells without synthesis")
            self._measure_bare(name, pairs)

    def _measure_bare(self, name: str, pairs: Pairs) -> None:
        outcomes = [o for o in self._fitted(None, name, pairs).values() if isinstance(o, dict)]
        self.results[name] = gather(name, [cell for _, cell in pairs], outcomes, 0.0)

    def _fitted(
        self,
        synthesizer: Synthesizer | None,
        name: str,
        pairs: Pairs,
        only: Sequence[str] | None = None,
        all_or_none: bool = False,
    ) -> dict[tuple[int, int], Outcomes | str]:
        """Outcomes by (draw, fold), or why there is no synthesis; what an earlier start of this trial did is not done
        again."""
        workers = self.options.workers
        key = _key(synthesizer, name, pairs, only)
        fitted: dict[tuple[int, int], Outcomes | str] = {}
        for split, _ in pairs:
            kept = self.stage.get(**key, place=_place(split))
            if kept is not None:
                fitted[_place(split)] = kept if isinstance(kept, str) else _outcomes(kept)
        todo = iter([pair for pair in pairs if _place(pair[0]) not in fitted])
        begun, before = time.monotonic(), len(fitted)
        while block := list(islice(todo, max(workers, 1))):
            ready: list[tuple[Split, Cell]] = []
            for one in self._ready(synthesizer, name, block, all_or_none):
                split = one.split
                if isinstance(one.cell, Cell):
                    ready.append((split, one.cell))
                    continue
                why = str(one.cell).splitlines()[0]
                self.progress(f"  {name}: draw {split.draw + 1}, fold {split.fold + 1} has no synthesis: {why}")
                fitted[_place(split)] = why
                if isinstance(one.cell, DataError):  # anything else may pass
                    self.stage.put(why, **key, place=_place(split))
                if all_or_none:
                    return fitted
            dense = synthesizer is not None and self._has_dense([name])
            outcomes = self._fit_cells([cell for _, cell in ready], only, dense)
            for (split, _), outcome in zip(ready, outcomes, strict=True):
                fitted[_place(split)] = outcome
                self.stage.put(_to_json(outcome), **key, place=_place(split))
            seconds = (time.monotonic() - begun) / (len(fitted) - before) * (len(pairs) - len(fitted))
            if len(pairs) > 1 and synthesizer is not None:
                self.progress(
                    f"  {name}: {len(fitted)} of {len(pairs)} cells by {synthesizer.name}, {time_left(seconds)}"
                )
        return {_place(split): fitted[_place(split)] for split, _ in pairs}

    def _ready(
        self, synthesizer: Synthesizer | None, name: str, pairs: Pairs, all_or_none: bool = False
    ) -> list[Ready]:
        head = self.dense_head if synthesizer is not None and self._has_dense([name]) else None
        return ready_cells(
            self.data, synthesizer, name, pairs, self.options, head=head, all_or_none=all_or_none
        )  # fmt: skip


@dataclass(frozen=True)
class Pilot:
    """The outcome of the first cell, and the key under which it is kept."""

    outcome: dict[str, Any]
    key: dict[str, Any]


def _key(synthesizer: Synthesizer | None, name: str, pairs: Pairs, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Stage key of a class's cells, without their place."""
    augmented = any(cell.augmented for _, cell in pairs)
    inputs = None if synthesizer is None else synthesizer.inputs
    return {"class": name, "synthesizer": inputs, "only": only, "augmented": augmented}


def _place(split: Split) -> tuple[int, int]:
    return split.draw, split.fold


def _to_json(outcomes: Outcomes) -> dict[str, Any]:
    return {name: arm.to_json() for name, arm in outcomes.items()}


def _outcomes(kept: Mapping[str, Any]) -> Outcomes:
    return {name: Arm.from_json(arm) for name, arm in kept.items()}
