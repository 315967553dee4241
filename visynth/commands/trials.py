"""Measuring: trial, preflight, evaluate, gate."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import Any

from visynth.commands.saying import printer, subject, verdicts


def trial(
    data: str,
    rare: list[str],
    out: str = "trial",
    masks: str | None = None,
    mask_suffix: str | None = None,
    groups: str | None = None,
    group_pattern: str | None = None,
    good: str | None = None,
    rare_groups: int | None = None,
    draws: int = 5,
    folds: int = 3,
    synthetic: int = 100,
    render: int = 60,
    minutes: float = 10.0,
    seed: int = 0,
    workers: int = 2,
    learner: str = "frozen",
    others: bool = True,
    dense: bool = True,
    cache: bool = True,
    learned: str = "auto",
    learn_size: int = 0,
    max_bad_fraction: float = 0.05,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Does synthesis help? From a folder with a rare class to a measured verdict per class.

    Args:
        data: class folders, a .csv or .jsonl list, or a COCO .json; give the training part of your data.
        rare: the class or classes that matter, e.g. --rare crack or --rare '[crack, hole]'.
        out: folder for generator/, renders/, report.json, report.html and groups.csv.
        masks: folder of masks that mirrors the images' layout.
        mask_suffix: what mask files have after their images' names, where it is not _mask, _label, _gt or _seg.
        groups: CSV with columns file,group; images of one group (part, scene, patient) stay together.
        group_pattern: regular expression on image names whose first group is the group.
        good: the defect-free class; guessed when not given.
        rare_groups: pretend that only so many groups of the rare classes exist in training; the rest serves the oracle.
        draws: repetitions with other folds.
        folds: test folds per draw.
        synthetic: synthetic images of a class in each comparison.
        render: synthetic images of each class in renders/.
        minutes: time budget; what composition leaves of it trains a learned generator in each cell, if that is 2 minutes for each.
        seed: of everything.
        workers: processes for fitting.
        learner: frozen or finetune.
        others: also give verdicts for the classes that were not named.
        dense: also measure a dense head taught by the masks, as a rival.
        cache: keep features of real images on disk ($VISYNTH_CACHE, else the user's cache folder).
        learned: auto, none, inpaint (masks), diffusion (whole images) or projection (variations of real images by a StyleGAN2): the generator to train beside composition.
        learn_size: pixels that the learned generator works on; 0 chooses.
        max_bad_fraction: share of unusable files up to which they are left out.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.commands.reading import read
    from visynth.trial import run_trial
    from visynth.trial_cells import TrialOptions

    images = read(
        data,
        masks=masks,
        mask_suffix=mask_suffix,
        groups=groups,
        group_pattern=group_pattern,
        max_bad_fraction=max_bad_fraction,
    )
    options = TrialOptions(
        rare_groups, draws, folds, synthetic, minutes, seed, workers, learner, others, dense, cache, learned, learn_size
    )
    grouped = groups is not None or group_pattern is not None or any(item.group for item in images.items)
    report = run_trial(
        images,
        rare,
        out,
        options=options,
        good=good,
        grouped=grouped,
        subject=subject(data),
        render=render,
        say=printer(quiet),
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
    from visynth.quickstart import TRIAL
    from visynth.quickstart import quickstart as run

    report = run(out, minutes=minutes, say=printer(quiet))
    verdicts(report, json)
    print(f"open {Path(out) / TRIAL / 'report.html'}", file=sys.stderr)
    return 0


def preflight(
    data: str,
    rare: list[str],
    masks: str | None = None,
    mask_suffix: str | None = None,
    groups: str | None = None,
    group_pattern: str | None = None,
    good: str | None = None,
    out: str | None = None,
    max_bad_fraction: float = 0.05,
    json: bool = False,
) -> int:
    """Look at a set: files, groups, near-duplicates, leakage, which synthesizer suits each class.

    Args:
        data: class folders, a .csv or .jsonl list, or a COCO .json.
        rare: the class or classes that matter.
        masks: folder of masks that mirrors the images' layout.
        mask_suffix: what mask files have after their images' names, where it is not _mask, _label, _gt or _seg.
        groups: CSV with columns file,group.
        group_pattern: regular expression on image names whose first group is the group.
        good: the defect-free class; guessed when not given.
        out: write groups.csv, the groups used or proposed, into this folder.
        max_bad_fraction: share of unusable files up to which they are left out.
        json: print JSON.
    """
    from visynth.commands.reading import read
    from visynth.folders import check_apart, claim_files
    from visynth.preflight import GROUP_FILES, write_groups
    from visynth.preflight import preflight as run

    images = read(
        data,
        masks=masks,
        mask_suffix=mask_suffix,
        groups=groups,
        group_pattern=group_pattern,
        max_bad_fraction=max_bad_fraction,
    )
    if out is not None:
        check_apart(out, images.folders())
        claim_files(out, GROUP_FILES)
    found = run(
        images,
        rare,
        good=good,
        grouped=groups is not None or group_pattern is not None or any(i.group for i in images.items),
    )
    if out is not None:
        write_groups(Path(out), found)
    if json:
        print(
            dumps(
                {
                    "classes": images.counts(),
                    "groups": found.images.groups(),
                    "suits": found.suits,
                    "lines": found.leak_lines(),
                    "bad_masks": found.bad_masks,
                    "same_part": [
                        {"groups": list(pair.groups), "images": list(pair.images), "agreeing": pair.alignment.agreeing}
                        for pair in found.parts.pairs
                    ],
                },
                indent=2,
            )
        )
        return 0
    for block in found.blocks():
        for line in block.get("lines", []):
            print(f"- {line}")
        for row in [block["columns"], *block["rows"]] if block["kind"] == "table" else []:
            print("  ".join(f"{cell!s:<12}" for cell in row))
    return 0


def evaluate(
    data: str,
    renders: str,
    out: str,
    groups: str | None = None,
    group_pattern: str | None = None,
    classes: list[str] | None = None,
    count: int | None = None,
    seeds: int = 5,
    learner: str = "frozen",
    workers: int = 2,
    cache: bool = True,
    keep: dict[str, Any] | None = None,
    accept_leaks: str | None = None,
    max_bad_fraction: float = 0.05,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure a rendered set on real test images that its generator never saw.

    Args:
        data: the real images, held-out ones among them.
        renders: what 'visynth render' wrote.
        out: folder for report.json and report.html.
        groups: CSV with columns file,group.
        group_pattern: regular expression on image names whose first group is the group.
        classes: which to measure; by default all that can be.
        count: synthetic images per class; by default all there are.
        seeds: paired repetitions.
        learner: frozen or finetune.
        workers: processes for fitting.
        cache: keep features of real images on disk.
        accept_leaks: CSV with the columns candidate,member: pairs of test and training images that you looked at and that are different.
        keep: which rendered images count, e.g. '{review: accepted, copies: false}'; by default all but those that a reviewer rejected.
        max_bad_fraction: share of unusable files up to which they are left out.
        json: print the verdicts as JSON.
        quiet: no progress.
    """
    from visynth.commands.reading import read
    from visynth.evaluate import evaluate_renders

    images = read(data, groups=groups, group_pattern=group_pattern, max_bad_fraction=max_bad_fraction)
    report = evaluate_renders(
        images,
        renders,
        out,
        classes=classes,
        count=count,
        seeds=seeds,
        learner=learner,
        workers=workers,
        cache=cache,
        keep=keep,
        accept_leaks=accept_leaks,
        say=printer(quiet),
    )
    verdicts(report, json)
    return 0


def gate(report: str, classes: list[str] | None = None, fail_on_reject: bool = False) -> int:
    """Turn a report into promote, reject or insufficient evidence, as JSON.

    Args:
        report: report.json or its folder.
        classes: the classes in question; by default all that were measured.
        fail_on_reject: exit 20 on reject and 21 on insufficient evidence.
    """
    from visynth.gate import EXIT_CODES, decide
    from visynth.report import read_report

    decision = decide(read_report(report), classes)
    print(dumps(decision.to_json(), indent=2))
    return EXIT_CODES[decision.outcome] if fail_on_reject else 0
