"""Measuring: trial, preflight, evaluate, gate."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import Any

from visynth.commands.options import DataOptions
from visynth.commands.printing import printer, verdicts
from visynth.jobs.trial.options import Learned  # light, as its room's options must be


def trial(
    data: DataOptions,
    rare: list[str],
    out: str = "trial",
    good: str | None = None,
    rare_groups: int | None = None,
    draws: int = 10,
    folds: int | None = None,
    synthetic: int = 60,
    render: int = 60,
    minutes: float = 10.0,
    seed: int = 0,
    workers: int = 2,
    learner: str = "frozen",
    others: bool = True,
    dense: bool = True,
    cache: bool = True,
    learned: Learned = "auto",
    learn_size: int = 0,
    metric: str = "ap",
    title: str | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Does synthesis help? From a folder with a rare class to a measured verdict per class.

    Args:
        data: the real images, and how to read them.
        rare: the class or classes that matter, e.g. --rare crack or --rare '[crack, hole]'.
        out: folder for generator/, renders/, report.json, report.html and groups.csv.
        good: the defect-free class; guessed when not given.
        rare_groups: pretend that only so many groups of the rare classes exist in training; the rest serves the oracle.
        draws: repetitions with other folds.
        folds: test folds per draw; by default 2, or 3 for classes of few groups.
        synthetic: synthetic images of a class in each comparison.
        render: synthetic images of each class in renders/.
        minutes: time budget, for which draws and classes are planned; what is left trains a learned generator in each
            cell, if that is 2 minutes for each.
        seed: of everything.
        workers: processes for fitting.
        learner: frozen, finetune, or a training of yours: a configuration with model and data (training.yaml), or the path
            of a LightningModule (my_package.MyModule).
        others: also give verdicts for the classes that were not named.
        dense: also measure a dense head taught by the masks, as a rival.
        cache: keep features of real images on disk ($VISYNTH_CACHE, else the user's cache folder).
        learned: auto, none, inpaint (masks), diffusion (whole images) or projection (variations of real images by a
            StyleGAN2): the generator to train beside composition.
        learn_size: pixels that the learned generator works on; 0 chooses.
        metric: that the verdict is on, named beforehand: ap, recall@fpr (at 5 % false alarms), recall or macro-f1 (of one
            model of all classes); the others are printed beside it.
        title: what the report calls the set, instead of its folder's name.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.jobs.trial.flow import run_trial
    from visynth.jobs.trial.options import TrialOptions

    images = data.read()
    options = TrialOptions(
        rare_groups,
        draws,
        folds,
        synthetic,
        minutes,
        seed,
        workers,
        learner,
        others,
        dense,
        cache,
        learned,
        learn_size,
        metric,
    )
    report = run_trial(
        images,
        rare,
        out,
        options=options,
        good=good,
        grouped=data.grouped(images),
        subject=title or data.title,
        render=render,
        progress=printer(quiet),
    )
    verdicts(report, json)
    return 0


def quickstart(out: str = "quickstart", minutes: float = 4.0, json: bool = False, quiet: bool = False) -> int:
    """A trial on a small built-in set: real textures, simulated defects.

    Args:
        out: folder for the data and the results.
        minutes: time budget.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.jobs.quickstart import TRIAL
    from visynth.jobs.quickstart import quickstart as run

    report = run(out, minutes=minutes, progress=printer(quiet))
    verdicts(report, json)
    print(f"open {Path(out) / TRIAL / 'report.html'}", file=sys.stderr)
    return 0


def preflight(
    data: DataOptions,
    rare: list[str],
    good: str | None = None,
    out: str | None = None,
    json: bool = False,
) -> int:
    """Look at a set: files, groups, near-duplicates, leakage, which synthesizer suits each class.

    Args:
        data: the real images, and how to read them.
        rare: the class or classes that matter.
        good: the defect-free class; guessed when not given.
        out: write groups.csv, the groups used or proposed, into this folder.
        json: print JSON.
    """
    from visynth.core.folders import check_apart, claim_files
    from visynth.jobs.preflight import GROUP_FILES, write_groups
    from visynth.jobs.preflight import preflight as run

    images = data.read()
    if out is not None:
        check_apart(out, images.folders())
        claim_files(out, GROUP_FILES)
    findings = run(
        images,
        rare,
        good=good,
        grouped=data.grouped(images),
    )
    if out is not None:
        write_groups(Path(out), findings)
    if json:
        print(
            dumps(
                {
                    "classes": images.counts(),
                    "groups": findings.images.groups(),
                    "suits": {name: {"kind": s.kind, "reason": s.reason} for name, s in findings.suits.items()},
                    "lines": findings.leak_lines(),
                    "bad_masks": findings.bad_masks,
                    "same_part": [
                        {"groups": list(pair.groups), "images": list(pair.images), "agreeing": pair.alignment.agreeing}
                        for pair in findings.parts.pairs
                    ],
                },
                indent=2,
            )
        )
        return 0
    for block in findings.blocks():
        for line in block.get("lines", []):
            print(f"- {line}")
        for row in [block["columns"], *block["rows"]] if block["kind"] == "table" else []:
            print("  ".join(f"{cell!s:<12}" for cell in row))
    return 0


def evaluate(
    renders: str,
    data: DataOptions,
    out: str = "report",
    classes: list[str] | None = None,
    count: int | None = None,
    seeds: int = 10,
    metric: str = "ap",
    learner: str = "frozen",
    judge: str = "auto",
    workers: int = 2,
    cache: bool = True,
    keep: dict[str, Any] | None = None,
    accept_leaks: str | None = None,
    title: str | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure a rendered set on real test images that its generator never saw.

    Args:
        renders: what 'visynth render' wrote.
        data: the real images, held-out ones among them.
        out: folder for report.json and report.html.
        classes: which to measure; by default all that can be.
        count: synthetic images per class; by default all there are.
        seeds: paired repetitions, each with other training groups and synthetic images.
        metric: that the verdict is on, named beforehand: ap, recall@fpr, recall or macro-f1.
        learner: frozen, finetune, or a training of yours: a configuration with model and data (training.yaml), or the path
            of a LightningModule (my_package.MyModule).
        judge: whose features tell how alike the images are: own (an encoder trained on your real images from scratch), an
            extractor's name, or auto (the default features, unless they had a hand in the images).
        workers: processes for fitting.
        cache: keep features of real images on disk.
        accept_leaks: CSV with the columns candidate,member: pairs of test and training images that you looked at and
            that are different.
        keep: which rendered images count, e.g. '{review: accepted, near_duplicates: false}'; by default all but those that a
            reviewer rejected.
        title: what the report calls the set, instead of the rendered set's name.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.jobs.evaluate import evaluate_renders

    images = data.read()
    report = evaluate_renders(
        images,
        renders,
        out,
        classes=classes,
        count=count,
        seeds=seeds,
        metric=metric,
        learner=learner,
        judge=judge,
        workers=workers,
        cache=cache,
        keep=keep,
        accept_leaks=accept_leaks,
        subject=title or "",
        progress=printer(quiet),
    )
    verdicts(report, json)
    return 0


def search(
    renders: str,
    data: DataOptions,
    out: str = "search",
    classes: list[str] | None = None,
    count: int | None = None,
    draws: int = 10,
    metric: str = "ap",
    learner: str = "frozen",
    cache: bool = True,
    keep: dict[str, Any] | None = None,
    accept_leaks: str | None = None,
    title: str | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Choose share, amount and mixture of a rendered set on validation, none included, then open the test once.

    Args:
        renders: what 'visynth render' wrote.
        data: the real images, held-out ones among them; their own split named val is the validation, if they have one.
        out: folder for report.json, report.html and recipe.yaml.
        classes: which to search for; by default all that can be.
        count: synthetic images per class; by default all there are.
        draws: of the training groups that the chosen recipe is tested with.
        metric: that the verdict is on, named beforehand: ap, recall@fpr, recall or macro-f1.
        learner: frozen or finetune.
        cache: keep features of real images on disk.
        keep: which rendered images count, as for evaluate.
        accept_leaks: CSV with the columns candidate,member: pairs that you looked at and that are different.
        title: what the report calls the set, instead of the rendered set's name.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.jobs.search import search_renders

    report = search_renders(
        data.read(),
        renders,
        out,
        classes=classes,
        count=count,
        draws=draws,
        metric=metric,
        learner=learner,
        cache=cache,
        keep=keep,
        accept_leaks=accept_leaks,
        subject=title or "",
        progress=printer(quiet),
    )
    verdicts(report, json)
    return 0


def gate(
    report: str | None = None,
    classes: list[str] | None = None,
    level: float = 0.005,
    renders: str | None = None,
    audit: str | None = None,
    most_advantage: float = 0.2,
    plan: str | None = None,
    groups: str | None = None,
    group_pattern: str | None = None,
    fail_on_reject: bool = False,
) -> int:
    """Turn a report into promote, reject or insufficient evidence per class, as JSON; or plan what a test will see.

    Args:
        report: report.json or its folder, by default 'report'.
        classes: the classes in question; by default those that were named and measured.
        level: one-sided error of a promotion.
        renders: the rendered set that is to be promoted: it must be of the generator that the report speaks of.
        audit: report of 'visynth audit' on the same generator: its attackers' advantage must be shown below most_advantage.
        most_advantage: of membership inference, 2 AUC - 1: 0 is chance, 1 certainty.
        plan: the real images: print, before anybody trains, what a test on them could see of each rare class (--classes), and
            how many more groups a gain of 0.05, 0.1 or 0.2 in AP needs.
        groups: for plan, a CSV with columns file,group, or
        group_pattern: a regular expression on image names whose first group is the group.
        fail_on_reject: exit 20 on reject and 21 on insufficient evidence.
    """
    if plan is not None:
        from visynth.jobs.planning import plan_lines

        data = DataOptions(plan, groups=groups, group_pattern=group_pattern)
        images = data.read()
        for line in plan_lines(images, classes or [], grouped=data.grouped(images)):
            print(line)
        return 0
    from visynth.core.report import read_report
    from visynth.jobs.gate import EXIT_CODES, check_renders, decide, with_audit

    found = read_report(report or "report")
    if renders is not None:
        check_renders(found, renders)
    decision = decide(found, classes, level)
    if audit is not None:
        decision = with_audit(decision, found, read_report(audit), most_advantage)
    print(dumps(decision.to_json(), indent=2))
    return EXIT_CODES[decision.outcome] if fail_on_reject else 0
