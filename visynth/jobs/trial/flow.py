"""The front door: from a folder with a rare class to a verdict per class. It calls the stages and sums up.

    preflight -> for each draw and fold: fit on the training groups, sample, features -> arms -> verdicts
              -> one generator on all training images, rendered -> report

What a trial holds constant: test groups are never trained on, composed from or chosen on; every arm has the same real
images, the same total weight and makes its own choices on inner folds; the test is looked at once, by all arms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, UsageError
from visynth.core.folders import check_apart, claim, new_folder, work_folder
from visynth.core.progress import Progress, no_progress
from visynth.core.report import ClassVerdict, Report, bullets, environment, text
from visynth.core.stage import Stage
from visynth.data.imageset import ImageSet
from visynth.data.transforms import CANDIDATES, backend
from visynth.jobs.preflight import preflight, write_groups
from visynth.jobs.trial.cells import headroom
from visynth.jobs.trial.data import KEPT, TrialData, measured_items, read_trial_data
from visynth.jobs.trial.measuring import Trial
from visynth.jobs.trial.options import TrialOptions
from visynth.jobs.trial.outputs import write_outputs
from visynth.jobs.trial.plan import Clock
from visynth.jobs.trial.training import TrainedSynthesizer
from visynth.verdict.bootstrap import WORDS
from visynth.verdict.rule import HELPS
from visynth.verdict.summary import arms_block, class_verdict, summarise, summarise_classic

PARTS = ("generator*", "renders*")  # folders that a trial writes beside its report


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
    progress: Progress = no_progress,
) -> Report:
    """Run a trial and write ``generator/``, ``renders/``, ``recipe.yaml``, ``report.json``, ``report.html`` and
    ``groups.csv`` under ``out``.

    Args:
        images: the set, from :func:`visynth.read_images`; give the training part only.
        rare: classes that matter.
        out: folder for the results; those of an older trial are replaced.
        options: draws, folds, budget and more.
        good: the defect-free class; guessed when None.
        grouped: whether the images' groups were given by the user.
        subject: what the report is headed with.
        render: synthetic images per composed class in ``renders/``.
        progress: receives progress lines.

    Returns:
        the report, as written.

    Raises:
        OutputError: ``out`` holds something that visynth did not write, or lies among the data.
        DataError, UsageError: what :func:`visynth.jobs.preflight.preflight` and the composition raise.
    """
    options = options or TrialOptions()
    started, clock = time.monotonic(), Clock.now()
    check_apart(out, images.folders())
    out = claim(out, PARTS)
    progress("preflight: files, groups, near-duplicates")
    findings = preflight(
        images,
        rare,
        good=good,
        grouped=grouped,
        keep=lambda images, good: {item.name for item in measured_items(images, good, options.seed)},
    )
    data = read_trial_data(findings, options, progress)
    findings.seconds = time.monotonic() - started
    for line in [*findings.leak_lines(), f"defect-free class: {findings.good or 'none; name it with --good'}"]:
        progress(f"  {line}")

    scarcity = f", with {options.rare_groups} training groups of {', '.join(rare)}" if options.rare_groups else ""
    report = Report("trial", (subject or images.root.name) + scarcity)
    stage = Stage(work_folder(out), _inputs(data, options))
    trial = Trial(data, options, stage, progress, clock)
    trial.headroom = headroom(data, trial.splits, options, progress)
    findings.warnings.extend(room.words for room in trial.headroom.values())
    trial.measure()
    report.section("Preflight", *findings.blocks(), text(f"Preflight took {findings.seconds:.0f} s."))
    _sum_up(report, trial)

    report.conditions |= _conditions(data, options, trial.folds(), time.monotonic() - started)
    # The verdicts are safe before anything more is made; what an older trial left goes with it.
    with new_folder(out, parts=PARTS) as folder:
        write_groups(folder, findings)
        report.write(folder)
    try:
        write_outputs(
            report, data, trial.synthesizers, trial.undertrained, out, render, options.seed, progress, trial.results
        )
    except (DataError, UsageError) as error:
        report.section("Not written", text(f"The generator and its renders could not be made: {error}"))
        progress(f"generator/ and renders/ could not be made: {error}")
    report.conditions |= {"seconds": round(time.monotonic() - started)}
    report.write(out)
    stage.clear()
    progress(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


def _sum_up(report: Report, trial: Trial) -> None:
    data, options = trial.data, trial.options
    measured = {name: r for name, r in trial.results.items() if "synthetic" in r.tested}
    summaries = summarise(measured, named=data.rare, metric=options.metric, design=trial.design(), seed=options.seed)
    blocks: list[dict[str, Any]] = []
    for name, results in measured.items():
        verdict = class_verdict(results, summaries[name])
        report.verdicts.append(_unless_undertrained(verdict, trial, results.synthesizer))
        blocks += arms_block(results, summaries[name], options.learner)
    for name in data.classes:
        if name in measured or name == data.good:
            continue
        suits = data.findings.suits[name]
        why = "only the named classes were measured" if suits.kind == "composition" else suits.reason
        answer, reason = "not measured", trial.skipped.get(name, why)
        following, best = "train without synthetic images of it", ""
        for short in trial.undertrained:
            if name in short.classes:
                answer, reason = "undertrained", short.reason()
                following = "look at the samples, and give the trial the time that it needs"
                if trial.headroom[name].gain <= 0:
                    following = "rather not: there is no headroom, not even more real images raise AP here"
        if name in data.rare and name in trial.results:
            best, recipe, block = summarise_classic(trial.results[name], options.learner, options.metric, options.seed)
            following += f"; best without synthesis was {recipe}"
            blocks.append(block)
        numbers = {"without": best.replace("_", " ")} if best else {}
        report.verdicts.append(ClassVerdict(name, answer, reason, following, numbers, aside=name not in data.rare))
    if blocks:
        report.section("Arms", *blocks)
    report.section("Notes", bullets(trial.notes or ["every planned cell was run"]))


def _unless_undertrained(verdict: ClassVerdict, trial: Trial, name: str) -> ClassVerdict:
    """The verdict; of a generator that saw too little it says nothing, but that it helps all the same."""
    synthesizer = trial.synthesizers[name]
    if not isinstance(synthesizer, TrainedSynthesizer) or verdict.answer == HELPS:
        return verdict
    shortfall = synthesizer.shortfall(trial.splits_of[verdict.label])
    if shortfall is None:
        return verdict
    return replace(verdict, answer="undertrained", reason=f"{shortfall}; as it is: {verdict.reason}")


def _inputs(data: TrialData, options: TrialOptions) -> dict[str, Any]:
    """Everything that outcomes and plan depend on, for the stage."""
    asked = {k: v for k, v in asdict(options).items() if k not in ("workers", "cache", "metric")}
    named = {"rare": list(data.rare), "good": data.good}  # they decide folds, scarcity and the plan
    learner = getattr(data.learner, "inputs", None)  # a file may have changed under its name
    return {"data": data.fingerprint(), "options": asked, "learner": learner, **named, **environment()}


def _conditions(data: TrialData, options: TrialOptions, folds: int, seconds: float) -> dict[str, Any]:
    capped = len(data.items) < len(data.findings.images)
    groups = (
        f"{options.rare_groups} training groups of each rare class per draw"
        if options.rare_groups
        else "all training groups"
    )
    return {
        "images used in the arms": f"{len(data.items)} of {len(data.findings.images)}"
        + (f" (at most {KEPT} defect-free ones, weighted so that tests have the data's prevalence)" if capped else ""),
        "design": f"{options.draws} draws x {folds} folds by group, {groups}",
        "synthetic images per cell": options.synthetic,
        "features": ", ".join(data.bank.name(r) for r in data.bank.resolutions),
        "classic augmentation": f"{backend()}: {', '.join(CANDIDATES)}",
        "metric named beforehand": WORDS[options.metric],
        "intervals": "95 %, percentile bootstrap over draws and groups (1000 replicates), paired between arms; verdicts "
        "by the wider one of that and a two-way t interval",
        "features that trained or chose": ", ".join(data.bank.name(r) for r in data.bank.resolutions),
        "seed": options.seed,
        "cores": os.cpu_count() or 0,
        "seconds": round(seconds),
        **environment(),
    }
