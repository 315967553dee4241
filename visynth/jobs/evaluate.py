"""Renders + real data -> report: did this rendered set help, on real test images that its generator never saw?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError
from visynth.core.manifest import Renders
from visynth.core.progress import Progress, no_progress
from visynth.core.report import Report, bullets, environment, table
from visynth.data.imageset import ImageSet
from visynth.data.transforms import CANDIDATES, backend
from visynth.jobs.held_out import TRAINING
from visynth.jobs.likeness import AUTO, copies_block, copies_of, judge_of, likeness_blocks
from visynth.jobs.rendered import bank_rows, open_rendered
from visynth.mixing.leaks import Accepted
from visynth.verdict.bootstrap import WORDS, Bootstrap, compare
from visynth.verdict.comparison import Results, fit_cells, run_cells
from visynth.verdict.rule import Design
from visynth.verdict.summary import arms_block, class_verdict, summarise

OTHER = "other"  # arm of another generator's images, not judged by itself


def evaluate_renders(
    images: ImageSet,
    renders: str | Path | Renders,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    count: int | None = None,
    seeds: int = 10,
    metric: str = "ap",
    learner: str = "frozen",
    judge: str = AUTO,
    workers: int = 2,
    cache: bool = True,
    keep: Mapping[str, Any] | None = None,
    accept_leaks: Accepted = None,
    against: Renders | None = None,
    subject: str = "",
    progress: Progress = no_progress,
) -> Report:
    """Measure a rendered set per class and write ``report.json`` and ``report.html`` to ``out``.

    Args:
        images: real images. Those that the generator was fitted on train the arms; the others test them. A split of
            the data's own decides where it is given, but no image that the generator was fitted on may be tested on.
        renders: the rendered set.
        out: folder of the report.
        classes: which to measure; by default every rendered class that has real training and test images.
        count: synthetic images per class, by default all there are.
        seeds: paired repetitions, each with another 80 % of the training groups, other synthetic images, augmentations and
            inner folds.
        metric: that the verdict is on, named beforehand, see :data:`visynth.verdict.bootstrap.NAMED`.
        learner: as for a trial.
        judge: network whose features tell how alike the images are: ``"own"`` is trained on the real images from scratch, and
            taken by ``"auto"`` where the default features had a hand in the images; else an extractor's name.
        workers: processes for fitting.
        cache: keep features of real images on disk.
        keep: which images count, as for :class:`visynth.WithSynthetic`; by default all but those that a reviewer
            rejected.
        accept_leaks: pairs of test and training images that you looked at and that are different: a CSV with the
            columns candidate and member, or such pairs.
        against: another generator's rendered set of the same classes: the report and the numbers of each verdict tell how
            ``renders`` does against it on the same cells (``against``: difference in AP with its interval).
        subject: what the report is headed with, by default the rendered set's name.
        progress: receives progress lines.

    Raises:
        DataError: test images that the generator was fitted on, or nothing held out to test on.
        UsageError: a metric or class that there is not.
    """
    started = time.monotonic()
    setting = open_rendered(
        images, renders, out,
        classes=classes, learner=learner, metric=metric, judge=judge, cache=cache, keep=keep, accept_leaks=accept_leaks,
        progress=progress,
    )  # fmt: skip
    renders, real, bank = setting.renders, setting.real, setting.real.bank
    wanted, train, test = setting.wanted, setting.train, setting.test
    rendered, fitter, out = setting.rendered, setting.fitter, Path(out)
    other_rows = {} if against is None else bank_rows(bank, against)

    kept, images, used = real.items, setting.images, setting.used
    seen_by = judge_of(judge, used, bank, setting.rows_of, renders, kept, images, progress)  # first: it may refuse

    results: dict[str, Results] = {}
    report = Report("utility", subject or renders.folder.name)
    for name in wanted:
        limit = min(count or rendered.get(name, 0), rendered.get(name, 0))
        cells, others = [], []
        for seed in range(seeds):
            cell = setting.cell(name, seed, limit, progress)
            if cell is None:
                continue
            cells.append(cell)
            if against is not None and len(other_rows.get(name, ())):
                others.append(setting.with_synthetic(cell, name, seed, limit, against, other_rows))
        if not cells:
            raise DataError(f"no rendered image of {name} can be traced to the training groups of any repetition.")
        progress(f"{name}: {len(cells)} seeds")
        results[name] = run_cells(name, cells, bank.tables(), learner=fitter, workers=workers)
        results[name].synthesizer = "the rendered set"
        rivals = [cell for cell in others if cell is not None]
        if rivals and len(rivals) == len(cells):
            outcomes = fit_cells(rivals, bank.tables(), learner=fitter, workers=workers, only=("synthetic",))
            for cell, outcome in zip(cells, outcomes, strict=True):
                results[name].add(cell, OTHER, outcome["synthetic"])

    blocks = []
    copies = {} if setting.traceable else copies_of(renders, wanted, kept, images, progress)
    design = Design(draws=seeds, fewest=3)
    summaries = summarise(results, metric=metric, design=design)
    duels = []
    for name in wanted:
        verdict = class_verdict(results[name], summaries[name])
        if OTHER in results[name].tested:
            tested = results[name].tested
            duel, _ = compare(tested, "synthetic", OTHER, Bootstrap(tested["real"]), metric)
            verdict = replace(verdict, numbers={**verdict.numbers, "against": duel.to_json()})
            duels.append([name, f"{duel.mean:+.3f} [{duel.low:+.3f}, {duel.high:+.3f}]"])
        if name in copies:
            verdict = replace(verdict, numbers={**verdict.numbers, "copies": copies[name].to_json()})
        report.verdicts.append(verdict)
        blocks += arms_block(results[name], summaries[name], learner)
    report.verdicts += setting.not_measured(classes)
    report.section("Images", setting.counts_block())
    report.section("Arms", *blocks)
    if duels and against is not None:
        note = f"The other set is {against.folder.name}, of generator {str(against.plan['generator'])[:16]}, on the same cells."
        report.section("Against another generator", table(["class", "AP against it [95 % CI]"], duels, note))
    report.section(
        "Likeness and near-duplicates",
        *likeness_blocks(seen_by, kept, train, test),
        *copies_block(copies, setting.traceable),
    )
    report.section("Reading this", bullets(setting.told()))
    report.conditions |= {
        "seeds": f"{seeds}, each with {TRAINING:.0%} of the training groups; one generator, so that intervals are two-way",
        "metric named beforehand": WORDS[metric],
        "features": ", ".join(bank.name(r) for r in bank.resolutions),
        "classic augmentation": f"{backend()}: {', '.join(CANDIDATES)}",
        "judge of likeness": seen_by if isinstance(seen_by, str) else seen_by.name,
        "networks that had a hand in the images": "; ".join(f"{n}: {what}" for n, what in used.items()) or "none known",
        "generator": renders.plan["generator"],
        "seconds": round(time.monotonic() - started),
        **environment(),
    }
    report.write(out)
    progress(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report
