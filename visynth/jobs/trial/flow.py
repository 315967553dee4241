"""The front door: from a folder with a rare class to a verdict per class. It calls the stages and sums up.

    preflight -> for each draw and fold: fit on the training groups, sample, features -> arms -> verdicts
              -> one generator on all training images, rendered -> report

What a trial holds constant: test groups are never trained on, composed from or chosen on; every arm has the same real
images, the same total weight and makes its own choices on inner folds; the test is looked at once, by all arms.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, UsageError, VisynthError
from visynth.core.folders import check_apart, claim, new_folder
from visynth.core.report import ClassVerdict, Report, bullets, environment, text
from visynth.data.imageset import ImageSet
from visynth.data.transforms import CANDIDATES, backend
from visynth.jobs.preflight import MIN_GROUPS, preflight, write_groups
from visynth.jobs.trial.cells import Split, bare_cell, has_both_sides, headroom, make_splits, real_cells
from visynth.jobs.trial.data import KEPT_PER_GROUP, Say, TrialData, read_trial_data
from visynth.jobs.trial.options import TrialOptions
from visynth.jobs.trial.outputs import write_outputs
from visynth.jobs.trial.synthesis import Synthesizer, composition_of, trained_of, with_synthesis
from visynth.metrics.dense import DenseHead
from visynth.verdict.cells import Cell
from visynth.verdict.comparison import (
    Results,
    add_dense,
    add_rival,
    arms_block,
    class_verdict,
    macro_f1_table,
    run_cells,
    summarise,
)

PARTS = ("generator*", "renders*")  # folders that a trial writes beside its report
SPARE = 1.3  # times what the last class cost must be left for the next one
AHEAD = 3  # times what a draw's synthesis cost must be left for its arms, too


def run_trial(
    images: ImageSet,
    rare: Sequence[str],
    out: str | Path,
    *,
    options: TrialOptions | None = None,
    good: str | None = None,
    grouped: bool = False,
    subject: str = "",
    render: int = 60,
    say: Say = lambda words: None,
) -> Report:
    """Run a trial and write ``generator/``, ``renders/``, ``report.json``, ``report.html`` and ``groups.csv`` under ``out``.

    Args:
        images: the set, from :func:`visynth.read_images`; give the training part only.
        rare: classes that matter.
        out: folder for the results; those of an older trial are replaced.
        options: draws, folds, budget and more.
        good: the defect-free class; guessed when None.
        grouped: whether the images' groups were given by the user.
        subject: what the report is headed with.
        render: synthetic images per composed class in ``renders/``.
        say: receives progress lines.

    Returns:
        the report, as written.

    Raises:
        OutputError: ``out`` holds something that visynth did not write, or lies among the data.
        DataError, UsageError: what :func:`visynth.jobs.preflight.preflight` and the composition raise.
    """
    options = options or TrialOptions()
    started = time.monotonic()
    check_apart(out, images.folders())
    out = claim(out, PARTS)
    say("preflight: files, groups, near-duplicates")
    findings = preflight(images, rare, good=good, grouped=grouped)
    data = read_trial_data(findings, options, say)
    findings.seconds = time.monotonic() - started
    for line in [*findings.leak_lines(), f"defect-free class: {findings.good or 'none; name it with --good'}"]:
        say(f"  {line}")

    scarcity = f", with {options.rare_groups} training groups of {', '.join(rare)}" if options.rare_groups else ""
    report = Report("trial", (subject or images.root.name) + scarcity)
    trial = Trial(data, options, started + 60 * options.minutes, say)
    findings.warnings.append(headroom(data, trial.splits, options, say))
    trial.measure()
    report.section("Preflight", *findings.blocks(), text(f"Preflight took {findings.seconds:.0f} s."))
    _sum_up(report, trial)

    # The verdicts are safe before anything more is made; what an older trial left goes with it.
    with new_folder(out, parts=PARTS) as folder:
        write_groups(folder, findings)
        report.write(folder)
    try:
        write_outputs(report, data, trial.synthesizers, out, render, options.seed, say)
    except (DataError, UsageError) as error:
        report.section("Not written", text(f"The generator and its renders could not be made: {error}"))
        say(f"generator/ and renders/ could not be made: {error}")
    report.conditions |= _conditions(data, options, time.monotonic() - started)
    report.write(out)
    say(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


@dataclass
class Trial:
    """A trial under way: what is measured, and what came of it.

    Attributes:
        data: the images.
        options: what was asked for.
        deadline: by ``time.monotonic``.
        say: receives progress lines.
        results: by class.
        cells: by class, with the images of its first synthesizer.
        synthesizers: by name, those that measured something.
        notes: what was not run, and why.
        skipped: by class, why it was not measured.
    """

    data: TrialData
    options: TrialOptions
    deadline: float
    say: Say
    results: dict[str, Results] = field(default_factory=dict)
    cells: dict[str, list[tuple[Split, Cell]]] = field(default_factory=dict)
    synthesizers: dict[str, Synthesizer] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @cached_property
    def splits(self) -> list[Split]:
        return make_splits(self.data, self.options)

    @cached_property
    def dense_head(self) -> DenseHead:
        return self.data.dense_head(self.say)

    def measure(self) -> None:
        """Every synthesizer on the classes that it serves: as their synthesis, or as a rival of the one before."""
        for synthesizer, names, deadline in self._synthesizers():
            self.synthesizers[synthesizer.name] = synthesizer
            cost = 0.0
            for name in names:
                if cost and time.monotonic() + SPARE * cost > deadline:  # a class is measured whole or not at all
                    self.skipped[name] = (
                        f"{name} was not measured: the {self.options.minutes:g} minutes were used up (raise --minutes)"
                    )
                    self.notes.append(self.skipped[name])
                    continue
                begun = time.monotonic()
                if name in self.results:
                    self._measure_rival(synthesizer, name)
                else:
                    self._measure_class(synthesizer, name, deadline)
                cost = time.monotonic() - begun if name in self.results else cost
        self._measure_the_rest()

    def _synthesizers(self) -> Iterator[tuple[Synthesizer, list[str], float]]:
        """Each with its classes, named ones first, and its deadline. What composition leaves of the time trains the next."""
        data, options = self.data, self.options
        composition = composition_of(data)
        if composition is not None:
            groups = data.findings.images.groups()
            named = [name for name in data.rare if name in composition.classes]
            others = [n for n in composition.classes if n not in data.rare and groups[n] >= MIN_GROUPS]
            yield composition, [*named, *(others if options.others else [])], self.deadline
        budget = self.deadline - time.monotonic()
        trained, why = trained_of(data, options, len(self.splits), budget, self.say)
        self.notes += [why] if why else []
        if trained is not None:  # its minutes were planned to fit
            yield trained, [name for name in data.rare if name in trained.classes], math.inf

    def _measure_class(self, synthesizer: Synthesizer, name: str, deadline: float) -> None:
        self.say(f"{name}: {len(self.splits)} cells, {self.options.synthetic} synthetic images each")
        pairs = self._synthesise(synthesizer, name, deadline)
        if len(pairs) < len(self.splits):
            self.notes.append(
                f"{name}: {len(pairs)} of {len(self.splits)} cells were run; the others did not fit into the "
                f"{self.options.minutes:g} minutes, or had no image of the class or no reliable mask on one side"
            )
        if not pairs:
            return
        cells = [cell for _, cell in pairs]
        self.cells[name] = pairs
        self.results[name] = self._run(name, cells)
        self.results[name].synthesizer = synthesizer.name
        if self.options.dense and self.data.findings.masked.get(name):
            try:
                add_dense(self.results[name], cells, self.dense_head, self.options.seed)
            except DataError as error:  # a rival the less, not a trial the less
                self.notes.append(f"{name}: no dense head: {error}")

    def _synthesise(self, synthesizer: Synthesizer, name: str, deadline: float) -> list[tuple[Split, Cell]]:
        """Cells with synthetic images; those whose training side has nothing to fit on are left out, and told."""
        begun, done = time.monotonic(), []
        for number, (split, cell) in enumerate(real_cells(self.data, name, self.splits, self.options)):
            spent = time.monotonic() - begun
            ahead = AHEAD * self.options.folds * spent / max(number, 1)
            if number and split.fold == 0 and time.monotonic() + ahead > deadline:
                break
            try:
                done.append((split, with_synthesis(self.data, synthesizer, name, split, cell, self.options)))
            except VisynthError as error:
                why = str(error).splitlines()[0]
                self.say(f"  {name}: draw {split.draw + 1}, fold {split.fold + 1} has no synthesis: {why}")
                continue
            if split.fold == 0:
                self.say(f"  {name}: draw {split.draw + 1} of {self.options.draws}, {spent:.0f} s")
        return done

    def _measure_rival(self, synthesizer: Synthesizer, name: str) -> None:
        """On the same cells as the class's first synthesizer, or not at all."""
        begun = time.monotonic()
        try:
            cells = []
            for split, cell in self.cells[name]:
                bare = bare_cell(self.data, name, split, oracle=cell.has_oracle)
                cells.append(with_synthesis(self.data, synthesizer, name, split, bare, self.options))
                self.say(f"  {name}: {synthesizer.name} in draw {split.draw + 1}, fold {split.fold + 1}")
        except VisynthError as error:  # what the first one measured must not be lost with it
            self.notes.append(f"{name}: {synthesizer.name} could not be measured: {str(error).splitlines()[0]}")
            self.say(f"  {self.notes[-1]}")
            return
        self.say(f"  {name}: {synthesizer.name} took {time.monotonic() - begun:.0f} s, training included")
        add_rival(self.results[name], cells, self.data.bank.tables(), synthesizer.name, **self._engine)

    def _measure_the_rest(self) -> None:
        """The classes without synthesis, for the macro-F1 of the whole decision."""
        longest = max((len(results.rows) for results in self.results.values()), default=0)
        for name in self.data.classes:
            splits = [split for split in self.splits[:longest] if has_both_sides(self.data, name, split)]
            if name not in self.results and longest and len(splits) == longest:
                self.results[name] = self._run(name, [bare_cell(self.data, name, split) for split in splits])

    def _run(self, name: str, cells: Sequence[Cell]) -> Results:
        return run_cells(name, cells, self.data.bank.tables(), **self._engine)

    @property
    def _engine(self) -> dict[str, Any]:
        return {"learner": self.options.learner, "workers": self.options.workers, "seed": self.options.seed}


def _sum_up(report: Report, trial: Trial) -> None:
    data, options = trial.data, trial.options
    measured = {name: r for name, r in trial.results.items() if "synthetic" in r.tested}
    single = [data.classes.index(i.labels[0]) if len(i.labels) == 1 else -1 for i in data.items]
    # Several labels an image: no argmax.
    f1 = macro_f1_table(trial.results, single, data.classes) if -1 not in single else {}
    blocks: list[dict[str, Any]] = []
    for name, results in measured.items():
        summary = summarise(results, seed=options.seed)
        masks = bool(data.findings.masked.get(name))
        report.verdicts.append(class_verdict(results, summary, masks=masks, macro_f1=f1.get(name, {})))
        blocks += arms_block(results, summary, options.learner, f1.get(name, {}))
    for name in data.classes:
        if name in measured or name == data.good:
            continue
        suits = data.findings.suits[name]
        why = "only the named classes were measured" if suits.kind == "composition" else suits.reason
        following = "" if name in trial.skipped else "train without synthetic images of it"
        report.verdicts.append(ClassVerdict(name, "not measured", trial.skipped.get(name, why), following))
    if blocks:
        report.section("Arms", *blocks)
    report.section("Notes", bullets(trial.notes or ["every planned cell was run"]))


def _conditions(data: TrialData, options: TrialOptions, seconds: float) -> dict[str, Any]:
    groups = (
        f"{options.rare_groups} training groups of each rare class per draw"
        if options.rare_groups
        else "all training groups"
    )
    return {
        "images used in the arms": f"{len(data.items)} of {len(data.findings.images)} "
        f"(at most {KEPT_PER_GROUP} per group of the defect-free class)",
        "design": f"{options.draws} draws x {options.folds} folds by group, {groups}",
        "synthetic images per cell": options.synthetic,
        "features": ", ".join(data.bank.name(r) for r in data.bank.resolutions),
        "classic augmentation": f"{backend()}: {', '.join(CANDIDATES)}",
        "intervals": "95 % percentile bootstrap over draws and groups, 1000 replicates, paired between arms",
        "seed": options.seed,
        "cores": os.cpu_count() or 0,
        "seconds": round(seconds),
        **environment(),
    }
