"""How much of a rendered set to mix in, for each class: chosen on validation, none included; then the test is opened once.

Validation is the data's own, where they have a split of that name; else inner folds of the training groups, dealt out several
times over, with nothing made from a held-out group. Synthetic images are taken only where they beat the best arm without them
in every repeat: few groups make noisy folds, and whoever takes the best of many means mostly takes noise. Where they do not,
the test stays closed. Where they do, the one recipe that was chosen meets the one arm without synthesis that was best on
validation, trained on other draws of the training groups, on the test images: one look, for all of them together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from visynth.core.errors import DataError, UsageError
from visynth.core.folders import put_files
from visynth.core.manifest import Renders
from visynth.core.progress import Progress, no_progress
from visynth.core.recipe import FILE as RECIPE
from visynth.core.recipe import ClassRecipe, Recipe
from visynth.core.report import ClassVerdict, Report, bullets, environment, lines, table, text
from visynth.data.imageset import ImageSet
from visynth.data.splits import group_folds
from visynth.jobs.likeness import copies_block, copies_of
from visynth.jobs.rendered import Rendered, open_rendered
from visynth.mixing.leaks import Accepted
from visynth.verdict import cells as arming
from visynth.verdict.bootstrap import WORDS
from visynth.verdict.cells import Amount, Cell, Tables
from visynth.verdict.comparison import INNER_FOLDS, Results, arm_of, gather
from visynth.verdict.learners import Items, Learner, Outcome, better, inner_folds
from visynth.verdict.ranking import average_precision
from visynth.verdict.rule import HELPS, Design
from visynth.verdict.summary import arms_block, class_verdict, summarise

REPEATS = 5  # of the inner folds
WITHOUT = ("balanced", "real", "duplicate", "smote", "focal", "ldam")  # arms without synthesis, the default first
Scores = tuple[float, ...]  # one a repeat, or a part of the validation images


@dataclass(frozen=True)
class Found:
    """What validation chose for a class.

    Attributes:
        without: the best arm without synthesis, a name of :data:`WITHOUT` or ``"augment"``.
        candidate: of classic augmentation, and
        share: of the class's weight to it, where that arm is it.
        amount: of synthetic images; None where none are better in every repeat.
        tried: scores by what was tried.
        how: where they come from, in words.
    """

    without: str
    candidate: str | None
    share: float
    amount: Amount | None
    tried: Mapping[str, Scores]
    how: str


def search_renders(
    images: ImageSet,
    renders: str | Path | Renders,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    count: int | None = None,
    draws: int = 10,
    metric: str = "ap",
    learner: str = "frozen",
    cache: bool = True,
    keep: Mapping[str, Any] | None = None,
    accept_leaks: Accepted = None,
    subject: str = "",
    progress: Progress = no_progress,
) -> Report:
    """Choose, open the test once, and write ``report.json``, ``report.html`` and ``recipe.yaml`` to ``out``.

    Args:
        images: real images, see :func:`visynth.jobs.evaluate.evaluate_renders`.
        renders: the rendered set.
        out: folder for the results.
        classes: which to search for; by default every rendered class that has real training and test images.
        count: synthetic images per class, by default all there are.
        draws: of the training groups that the chosen recipe is tested with.
        metric: that the verdict is on, named beforehand.
        learner: as for a trial; one that makes no choices on inner folds cannot be searched with.
        cache: keep features of real images on disk.
        keep: which images count, as for :class:`visynth.WithSynthetic`.
        accept_leaks: pairs of test and training images that you looked at and that are different.
        subject: what the report is headed with.
        progress: receives progress lines.

    Raises:
        DataError: nothing to choose or to test on.
        UsageError: a metric, class or learner that there is not.
    """
    started, out = time.monotonic(), Path(out)
    setting = open_rendered(
        images, renders, out,
        classes=classes, learner=learner, metric=metric, cache=cache, keep=keep, accept_leaks=accept_leaks, validates=True,
        progress=progress,
    )  # fmt: skip
    if not getattr(setting.fitter, "chooses", True):
        raise UsageError(
            f"learner {learner} makes no choices on inner folds, so it cannot be searched with: take frozen."
        )
    report = Report("search", subject or setting.renders.folder.name)
    found: dict[str, Found] = {}
    blind: dict[str, str] = {}  # classes without anything to choose on, and why
    results: dict[str, Results] = {}
    limits = {name: min(count or setting.rendered[name], setting.rendered[name]) for name in setting.wanted}
    for name, limit in limits.items():  # all of them before the test is opened for any
        progress(f"{name}: searching on validation")
        try:
            found[name] = _searched(setting, name, limit, progress)
        except DataError as error:
            blind[name] = str(error).removesuffix(".")
            progress(f"  {error}")
    if not found:
        raise DataError("nothing could be chosen: " + "; ".join(blind.values()) + ".")
    for name, one in found.items():
        if one.amount is not None:
            progress(f"{name}: opening the test, {draws} draws")
            results[name] = _tested(setting, name, limits[name], one, draws, progress)
    copies = (
        {} if setting.traceable else copies_of(setting.renders, list(results), setting.real.items, images, progress)
    )
    summaries = summarise(results, metric=metric, design=Design(draws=draws, fewest=3)) if results else {}
    blocks = []
    for name in setting.wanted:
        if name in results:
            verdict = class_verdict(results[name], summaries[name])
            if name in copies:
                verdict = replace(verdict, numbers={**verdict.numbers, "copies": copies[name].to_json()})
            report.verdicts.append(verdict)
            blocks += arms_block(results[name], summaries[name], learner)
        elif name in found:
            report.verdicts.append(_none(name, found[name]))
        else:
            report.verdicts.append(
                ClassVerdict(name, "not measured", blind[name], "train without synthetic images of it")
            )
    report.verdicts += setting.not_measured(classes)
    recipe = _recipe(setting, found, report.verdicts, limits, out)
    report.section("What to train with", _recipe_table(recipe))
    for name, one in found.items():
        report.section(f"Validation: {name}", *_validation_blocks(one))
    if blocks:
        report.section("The test, opened once", *blocks, *copies_block(copies, setting.traceable))
    report.section("Images", setting.counts_block())
    opened = ", ".join(results) or "no class"
    report.section(
        "Reading this",
        bullets(
            [
                f"The test was opened once, for {opened}: the recipe and the arm that it meets were chosen on validation before.",
                "Where nothing synthetic beat the best arm without it in every repeat of validation, the test stayed closed.",
                *setting.told(),
            ]
        ),
    )
    bank = setting.real.bank
    report.conditions |= {
        "metric named beforehand": WORDS[metric],
        "draws of the test": draws if results else "none",
        "synthetic images that count": "those that a reviewer did not reject"
        if keep is None
        else f"keep={dict(keep)}, in a training, too",
        "features": ", ".join(bank.name(r) for r in bank.resolutions),
        "generator": setting.renders.plan["generator"],
        "seconds": round(time.monotonic() - started),
        **environment(),
    }
    recipe = replace(recipe, conditions=dict(report.conditions))
    report.write(out)
    put_files(out, {RECIPE: recipe.to_yaml().encode()})
    progress(f"done in {time.monotonic() - started:.0f} s: {out / 'report.html'}")
    return report


def _searched(setting: Rendered, name: str, limit: int, progress: Progress) -> Found:
    """The choice for a class; no test row is in what it is given."""
    cell = setting.cell(name, 0, limit, progress, whole=True)
    if cell is None:
        raise DataError(f"no rendered image of {name} can be traced to the training groups.")
    validation = setting.validation(name)
    # Rows that are scored: those of validation, else a training row, which nobody looks at. The test stays closed.
    cell = replace(cell, test=validation if len(validation) else cell.train[:1], anomaly=None)
    cell = setting.real.with_distances(cell)
    small, tables = arming.compact(cell, setting.real.bank.tables())
    if len(validation):
        return _choose(small, tables, *_on_validation(small, tables, setting.fitter))
    folded = _on_folds(small, tables, setting.fitter)
    if folded is None:
        raise DataError(
            f"{name}: nothing to choose on. The generator saw every training image of the class (or there is one group of it), "
            "and the data have no validation split: hold some groups out as val, before the generator is fitted."
        )
    return _choose(small, tables, *folded)


def _on_folds(cell: Cell, tables: Tables, fitter: Learner) -> tuple[Callable[[Items], Scores], str] | None:
    """A score for each repeat: the mean over that deal of inner folds. None where no synthetic image would be trained on."""
    real = arming.real_items(cell)
    groups = sorted({cell.groups[row] for row in cell.train})
    deals = [inner_folds(real, groups, INNER_FOLDS, repeat) for repeat in range(REPEATS)]
    made = arming.synthetic_arm(cell, Amount())
    held = {frozenset(h) for deal in deals for h in deal}
    if not held or all((made.real | np.array([bool(p & h) for p in made.parents])).all() for h in held):
        return None

    def score(items: Items) -> Scores:
        return tuple(float(np.mean(_fit(fitter, cell, tables, items, deal, k).by_fold)) for k, deal in enumerate(deals))

    return score, f"{REPEATS} deals of {INNER_FOLDS} inner folds of {len(groups)} training groups"


def _on_validation(cell: Cell, tables: Tables, fitter: Learner) -> tuple[Callable[[Items], Scores], str]:
    """A score for each part of the validation groups."""
    truth, groups = cell.test_truth(), np.array(cell.test_groups())
    own = sorted(set(groups[truth]))
    parts = [np.arange(len(truth))]
    if len(own) > 1:
        folds = min(INNER_FOLDS, len(own))
        parts = [test for _, test in group_folds(truth.astype(str).tolist(), groups.tolist(), folds, 0)]
    real = arming.real_items(cell)
    deal = inner_folds(real, sorted({cell.groups[row] for row in cell.train}), INNER_FOLDS, 0)

    def score(items: Items) -> Scores:
        scores = _fit(fitter, cell, tables, items, deal, 0).scores
        return tuple(average_precision(truth[part], scores[part]) for part in parts if truth[part].any())

    return (
        score,
        f"{len(parts)} parts of the data's own validation split, {int(truth.sum())} images of {len(own)} groups",
    )


def _fit(
    fitter: Learner, cell: Cell, tables: Tables, items: Items, deal: Sequence[frozenset[str]], seed: int
) -> Outcome:
    return fitter.fit(tables, items, cell.test, deal, seed)


def _choose(cell: Cell, tables: Tables, score: Callable[[Items], Scores], how: str) -> Found:
    """The best arm without synthesis, and the amount that beats it in every repeat, if any does."""
    built = arming.build_arms(cell, 0, tables)
    tried: dict[str, Scores] = {name: score(built[name]) for name in WITHOUT if name in built}
    classic = {(c, share): f"augment: {c}, {share:g}" for c in cell.augmented for share in (arming.HALF, arming.LESS)}
    for (candidate, share), name in classic.items():
        tried[name] = score(arming.augmented_arm(cell, candidate, share))
    without = _improved(tried, WITHOUT[0])
    chosen = next((key for key, name in classic.items() if name == without), None)
    mixed = chosen or max(classic, key=lambda key: float(np.mean(tried[classic[key]])), default=None)
    number = len(cell.synthetic.rows) if cell.synthetic is not None else 0
    amounts = {
        f"synthetic: {share:g}, {images or number} images" + (f", with {candidate}" if candidate else ""): Amount(
            share, images, candidate
        )
        for share in arming.SHARES
        for images in ((None, number // arming.FEWER) if number >= arming.FEWER else (None,))
        for candidate in ((None, mixed[0]) if mixed is not None else (None,))
        if candidate is None or share + arming.LESS < 1
    }
    tried |= {name: score(arming.synthetic_arm(cell, amount)) for name, amount in amounts.items()}
    winners = [name for name in amounts if better(tried[name], tried[without])]
    best = max(winners, key=lambda name: float(np.mean(tried[name])), default=None)
    return Found(
        "augment" if chosen else without,
        chosen[0] if chosen else None,
        chosen[1] if chosen else 0.0,
        None if best is None else amounts[best],
        tried,
        how,
    )


def _improved(tried: Mapping[str, Scores], default: str) -> str:
    found = [name for name, scores in tried.items() if better(scores, tried[default])]
    return max(found, key=lambda name: float(np.mean(tried[name])), default=default)


def _tested(setting: Rendered, name: str, limit: int, found: Found, draws: int, progress: Progress) -> Results:
    """The images as they are, the best arm without synthesis and the recipe, on the test images, by draw."""
    assert found.amount is not None
    cells, outcomes = [], []
    for seed in range(draws):
        cell = setting.cell(name, seed, limit, progress)
        if cell is None or (found.candidate is not None and found.candidate not in cell.augmented):
            continue
        small, tables = arming.compact(cell, setting.real.bank.tables())
        built = arming.build_arms(small, seed, tables)
        arms = {"real": built["real"], "synthetic": arming.synthetic_arm(small, found.amount)}
        if found.without == "augment":
            arms["augment"] = arming.augmented_arm(small, str(found.candidate), found.share)
        elif found.without in built:
            arms[found.without] = built[found.without]
        deal = inner_folds(built["real"], sorted({small.groups[row] for row in small.train}), INNER_FOLDS, seed)
        told: dict[str, dict[str, Any]] = {
            "augment": {"candidate": found.candidate, "classic share": found.share},
            "synthetic": {"share": found.amount.share, "images": found.amount.images or len(cell.synthetic.rows)},  # type: ignore[union-attr]
        }
        outcomes.append(
            {
                arm: arm_of(_fit(setting.fitter, small, tables, items, deal, seed), told.get(arm))
                for arm, items in arms.items()
            }
        )
        cells.append(cell)
    if not cells:
        raise DataError(f"no rendered image of {name} can be traced to the training groups of any draw.")
    results = gather(name, cells, outcomes, float(limit))
    results.synthesizer = "the rendered set"
    return results


def _none(name: str, found: Found) -> ClassVerdict:
    best = float(
        np.mean(found.tried[_improved({k: v for k, v in found.tried.items() if "synthetic" not in k}, WITHOUT[0])])
    )
    made = max(float(np.mean(v)) for k, v in found.tried.items() if k.startswith("synthetic"))
    words = found.without if found.candidate is None else f"classic augmentation with {found.candidate}"
    return ClassVerdict(
        name,
        "not measured",
        f"validation found no amount of synthetic images that is better than {words} in every repeat (AP {best:.3f}; the best "
        f"amount {made:.3f}), so the test stayed closed",
        f"train with {words}, and without synthetic images",
        {"without": found.without},
    )


def _recipe(
    setting: Rendered,
    found: Mapping[str, Found],
    verdicts: Sequence[ClassVerdict],
    limits: Mapping[str, int],
    out: Path,
) -> Recipe:
    answers = {verdict.label: verdict.answer for verdict in verdicts}
    classes: dict[str, ClassRecipe] = {}
    for name, one in found.items():
        if one.amount is not None and answers[name] == HELPS:
            count = one.amount.images or limits[name]
            classes[name] = ClassRecipe(one.amount.share, count, "synthetic", one.amount.classic, HELPS)
        else:
            classes[name] = ClassRecipe(arm=one.without, classic=one.candidate, answer=answers[name])
    used = [one for one in classes.values() if one.share]
    if used and setting.control is not None:
        made = max(one.images or 0 for one in used) / 3
        real = (
            int(setting.real.positive[setting.control][setting.train].sum())
            if setting.control in setting.real.positive
            else 0
        )
        if real:
            classes[setting.control] = ClassRecipe(share=round(made / (made + real), 3), arm="control")
    renders = setting.renders
    folder = os.path.relpath(renders.folder, out) if used else None  # as it is seen from the recipe's file
    return Recipe(classes, str(renders.plan["generator"]) if used else None, folder)


def _recipe_table(recipe: Recipe) -> dict[str, Any]:
    rows = [
        [name, one.answer or "-", f"{one.share:.0%} of its samples" if one.share else "none", one.images or "-",
         one.arm.replace("_", " "), one.classic or "-"]
        for name, one in recipe.classes.items()
    ]  # fmt: skip
    columns = ["class", "verdict", "synthetic images", "measured with", "with what else", "classic augmentation"]
    return table(
        columns,
        rows,
        f"The same is in {RECIPE}: WithSynthetic(your_datamodule, renders, recipe=...) takes it as it is.",
    )


def _validation_blocks(found: Found) -> list[dict[str, Any]]:
    means = {name: float(np.mean(scores)) for name, scores in found.tried.items()}
    plain = [(0.0, max(v for k, v in means.items() if not k.startswith("synthetic")))]
    for share in arming.SHARES:
        own = [v for k, v in means.items() if k.startswith(f"synthetic: {share:g},")]
        plain += [(share, max(own))] if own else []
    rows = [
        [name, means[name], " ".join(f"{one:.3f}" for one in found.tried[name])]
        for name in sorted(means, key=lambda name: -means[name])
    ]
    return [
        text(f"By {found.how}."),
        lines(
            "Validation AP by the share of the class's weight",
            plain,
            {},
            "share",
            "AP",
            "The best of each share; 0 is the best arm without.",
        ),
        table(["tried", "validation AP", "by repeat"], rows),
    ]
