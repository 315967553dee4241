"""Renders + real data -> report: did this rendered set help, on real test images that its generator never saw?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.codec import decode
from visynth.core.errors import DataError, UsageError, choices, listing
from visynth.core.filters import selected
from visynth.core.folders import check_apart, claim_files
from visynth.core.manifest import Renders, control_class, need_folders, read_renders
from visynth.core.progress import Progress, no_progress
from visynth.core.report import FILES, ClassVerdict, Report, bullets, environment, table
from visynth.data.imageset import ImageSet, Lazy
from visynth.data.transforms import CANDIDATES, backend
from visynth.generators.compose_fit import guess_good
from visynth.jobs.held_out import TRAINING, assign_splits, check_sides, some_groups
from visynth.jobs.likeness import AUTO, check_judge, copies_block, copies_of, judge_of, likeness_blocks, used_by
from visynth.jobs.measured import MeasuredSet, add_features, check_learner, new_bank
from visynth.metrics.bank import FeatureBank
from visynth.mixing.leaks import Accepted
from visynth.verdict.bootstrap import NAMED, WORDS, Bootstrap, compare
from visynth.verdict.cells import Extra
from visynth.verdict.comparison import Results, fit_cells, run_cells
from visynth.verdict.learners import learner_of
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
    if metric not in NAMED:
        raise UsageError(f"metric must be one of {choices(NAMED)}, but got {metric!r}.")
    started = time.monotonic()
    whole = need_folders(renders if isinstance(renders, Renders) else read_renders(renders))
    used = used_by(whole, keep)
    check_judge(judge, used)
    check_apart(out, {*images.folders(), whole.folder})
    out = claim_files(out, FILES)
    renders = selected(whole, keep)
    left_out = len(whole.records) - len(renders.records)
    if left_out:
        progress(
            f"{left_out} of {len(whole.records)} rendered images do not count (rejected by reviewers, or filtered by "
            "keep)"
        )
    progress("fingerprints of the real images")
    before = len(images.bad)
    images, group_of_parent = assign_splits(images, renders.members, accept_leaks)
    near = images.bad[before:]
    if near:
        progress(
            f"{len(near)} test images do not test and are left out (near-duplicates of training images, or of their "
            f"groups):\n{listing([f'{b.name} {b.reason}' for b in near])}"
        )
    by_split = {split: images.select(lambda item, split=split: item.split == split) for split in ("train", "test")}  # type: ignore[misc]
    check_sides(by_split["train"], by_split["test"], renders)

    counts = {split: part.counts() for split, part in by_split.items()}
    possible = [name for name in images.classes if counts["train"][name] and counts["test"][name]]
    rendered, control = renders.counts(), control_class(renders)
    wanted = (
        list(classes) if classes is not None else [name for name in possible if rendered.get(name) and name != control]
    )
    unknown = [name for name in wanted if name not in possible or not rendered.get(name)]
    if unknown or not wanted:
        raise UsageError(
            f"classes {choices(unknown or wanted)} cannot be measured: rendered are {rendered}, "
            f"real training images {counts['train']}, real test images {counts['test']}."
        )

    kept = [item for item in images.items if item.split in ("train", "test")]
    good = control or guess_good(images.classes, {}, images.counts())
    fitter = learner_of(learner)
    bank = new_bank(fitter, cache, patches=learner == "frozen" and good is not None)
    progress(f"features of {len(kept)} real and {len(renders.records)} synthetic images")
    real = MeasuredSet(
        items=kept,
        image=lambda row: images.image(kept[row]),
        bank=bank,
        positive={name: np.array([name in item.labels for item in kept]) for name in images.classes},
        groups=[item.group for item in kept],
        weights=np.ones(len(kept)),
        good=good,
    )
    check_learner(fitter, learner, metric, real)
    add_features(bank, Lazy(images.image, kept), "real images", progress)
    rows_of = _bank_rows(bank, renders)
    other_rows = {} if against is None else _bank_rows(bank, against)
    train = np.array([row for row, item in enumerate(kept) if item.split == "train"], dtype=np.int64)
    test = np.array([row for row, item in enumerate(kept) if item.split == "test"], dtype=np.int64)

    results: dict[str, Results] = {}
    report = Report("utility", subject or renders.folder.name)
    both = control if control and rendered.get(control) else None
    traceable = renders.plan["kind"] == "composite"
    untraced = sum(traceable and not set(r.parents) <= set(group_of_parent) for r in renders.records)
    if untraced:
        progress(f"{untraced} rendered images have parents that are not among these training images, and are left out")
    for name in wanted:
        limit = min(count or rendered.get(name, 0), rendered.get(name, 0))
        real.add_augmented(name, [row for row in train.tolist() if real.positive[name][row]], 0, progress)
        cells, others = [], []
        for seed in range(seeds):
            own = some_groups(real, train, name, not traceable, seed)
            made = partial(_rendered, real, own, group_of_parent, name, seed)
            cell = real.cell(name, draw=seed, train=own, test=test, augmented=limit, seed=seed)
            cell = replace(
                cell,
                synthetic=made(renders, rows_of, name, limit),
                control=None if both is None else made(renders, rows_of, both, max(1, limit // 3)),
            )
            if cell.synthetic is None:
                continue
            cell = real.with_cutmix(cell, name, limit, seed)
            cells.append(real.with_distances(cell))
            if against is not None and len(other_rows.get(name, ())):
                rival = made(against, other_rows, name, limit)
                own_control = None
                if both is not None and len(other_rows.get(both, ())):
                    own_control = made(against, other_rows, both, max(1, limit // 3))
                swapped = replace(cell, synthetic=rival, control=own_control)
                others.append(real.with_distances(swapped) if rival is not None else None)
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

    seen_by = judge_of(judge, used, bank, rows_of, renders, kept, images, progress)
    blocks = []
    copies = {} if traceable else copies_of(renders, wanted, kept, images, progress)
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
    for name in images.classes:
        if name not in wanted and name != control:
            why = _why_not(name, classes, rendered, counts)
            report.verdicts.append(
                ClassVerdict(name, "not measured", why, aside=classes is not None and name not in classes)
            )
    rows = [[name, counts["train"][name], counts["test"][name], rendered.get(name, 0)] for name in images.classes]
    report.section("Images", table(["class", "real, training", "real, test", "synthetic"], rows))
    report.section("Arms", *blocks)
    if duels and against is not None:
        note = f"The other set is {against.folder.name}, of generator {str(against.plan['generator'])[:16]}, on the same cells."
        report.section("Against another generator", table(["class", "AP against it [95 % CI]"], duels, note))
    report.section(
        "Likeness and near-duplicates",
        *likeness_blocks(seen_by, kept, train, test),
        *copies_block(copies, traceable),
    )
    report.section(
        "Reading this",
        bullets(
            [
                f"{left_out} of {len(whole.records)} rendered images do not count: reviewers rejected them, or keep= "
                "filters them out.",
                f"{untraced} rendered images were left out because a parent of theirs is not among the training images.",
                f"{len(near)} test images were left out as near-duplicates of training images"
                + (": " + ", ".join(b.name for b in near[:20]) + "." if near else "."),
                "The test images are real and were never seen by the generator: their fingerprints were compared with "
                "its members.",
            ]
        ),
    )
    report.conditions |= {
        "seeds": f"{seeds}, each with {TRAINING:.0%} of the training groups; one generator, so that intervals are two-way",
        "metric named beforehand": WORDS[metric],
        "features": ", ".join(bank.name(r) for r in bank.resolutions),
        "classic augmentation": f"{backend()}: {', '.join(CANDIDATES)}",
        "judge of likeness": seen_by.name,
        "networks that had a hand in the images": "; ".join(f"{n}: {what}" for n, what in used.items()) or "none known",
        "generator": renders.plan["generator"],
        "seconds": round(time.monotonic() - started),
        **environment(),
    }
    report.write(out)
    progress(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


def _bank_rows(bank: FeatureBank, renders: Renders) -> dict[str, np.ndarray]:
    """Bank rows of a rendered set's images, by class."""
    return {
        name: bank.add(
            Lazy(lambda r: decode(renders.folder / r.file_name), [r for r in renders.records if r.label == name])
        )
        for name in renders.classes
    }


def _rendered(
    real: MeasuredSet,
    train: np.ndarray,
    group_of_parent: Mapping[str, str],
    label: str,
    seed: int,
    renders: Renders,
    rows_of: Mapping[str, np.ndarray],
    name: str,
    limit: int,
) -> Extra | None:
    """Rendered images of a class, another choice of them for each seed, with the groups of the real images behind them;
    those alone whose every parent is in training: what cannot be traced there could show what the real images do not. None
    where none is."""
    records = [r for r in renders.records if r.label == name]
    order = seeding.rng(seeding.derive("subset", seed, name), "evaluate").permutation(len(records))
    if renders.plan["kind"] != "composite":
        # The network saw every training group of the class: none of its images may help to choose on any of them.
        seen = frozenset(real.groups[row] for row in train if real.positive[label][row])
        chosen, parents = order[:limit], [seen] * min(limit, len(order))
    else:
        every = [frozenset(group_of_parent.get(p, "") for p in records[i].parents) for i in order]
        known = {real.groups[row] for row in train}
        fitting = [k for k, groups in enumerate(every) if groups <= known][:limit]
        chosen, parents = order[fitting], [every[k] for k in fitting]
    if not len(chosen):
        return None
    return Extra(rows_of[name][chosen], parents, real.number(name) if name in real.positive else -1)


def _why_not(
    name: str, asked: Sequence[str] | None, rendered: Mapping[str, int], counts: Mapping[str, Mapping[str, int]]
) -> str:
    """Why a class was not measured."""
    if asked is not None and name not in asked:
        return "it was not asked for"
    if not rendered.get(name):
        return "it was not rendered"
    side = "training" if not counts["train"].get(name) else "test"
    return f"it has no real {side} images"
