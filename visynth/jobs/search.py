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
from typing import Any, TypeVar

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
from visynth.jobs.trial.recipes import RECIPE_TITLE, control_recipe, recipe_table
from visynth.mixing.leaks import Accepted
from visynth.verdict import cells as arming
from visynth.verdict.bootstrap import WORDS
from visynth.verdict.cells import Amount, Cell, Tables
from visynth.verdict.comparison import INNER_FOLDS, Results, arm_of, gather, name_of
from visynth.verdict.learners import Items, Learner, better, inner_folds, learner_of
from visynth.verdict.ranking import average_precision
from visynth.verdict.rule import HELPS, Design
from visynth.verdict.summary import arms_block, class_verdict, summarise

REPEATS = 5  # of the inner folds
WITHOUT = ("balanced", "real", "duplicate", "smote", "focal", "ldam")  # arms without synthesis, the default first
Key = TypeVar("Key")
Scores = tuple[float, ...]  # one a repeat, or a part of the validation images


@dataclass(frozen=True)
class Found:
    """What validation chose for a class.

    Attributes:
        without: the best arm without synthesis, a name of :data:`WITHOUT` or ``"augment"``.
        candidate: of classic augmentation, and
        share: of the class's weight to it, where that arm is it.
        amount: of synthetic images; None where none are better in every repeat.
        plain: scores of what was tried without them, by name.
        best: name of the best of these.
        amounts: scores of the amounts that were tried.
        how: where they come from, in words.
    """

    without: str
    candidate: str | None
    share: float
    amount: Amount | None
    plain: Mapping[str, Scores]
    best: str
    amounts: Mapping[Amount, Scores]
    how: str

    @property
    def tried(self) -> dict[str, Scores]:
        """Scores of all that was tried, by name."""
        return {**self.plain, **{f"synthetic: {name_of(amount)}": scores for amount, scores in self.amounts.items()}}


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
    if not getattr(learner_of(learner), "chooses", True):
        raise UsageError(
            f"learner {learner} makes no choices on inner folds, so it cannot be searched with: take frozen."
        )
    setting = open_rendered(
        images, renders, out,
        classes=classes, learner=learner, metric=metric, cache=cache, keep=keep, accept_leaks=accept_leaks, validates=True,
        progress=progress,
    )  # fmt: skip
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
    report.section(RECIPE_TITLE, recipe_table(recipe, RECIPE))
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
        fits = (fitter.fit(tables, items, cell.test, deal, seed) for seed, deal in enumerate(deals))
        return tuple(float(np.mean(one.by_fold)) for one in fits)

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
        scores = fitter.fit(tables, items, cell.test, deal, 0).scores
        return tuple(average_precision(truth[part], scores[part]) for part in parts if truth[part].any())

    return (
        score,
        f"{len(parts)} parts of the data's own validation split, {int(truth.sum())} images of {len(own)} groups",
    )


def _choose(cell: Cell, tables: Tables, score: Callable[[Items], Scores], how: str) -> Found:
    """The best arm without synthesis, and the amount that beats it in every repeat, if any does."""
    built = arming.build_arms(cell, 0, tables)
    plain: dict[str, Scores] = {name: score(built[name]) for name in WITHOUT if name in built}
    classic = {f"augment: {c}, {share:g}": (c, share) for c in cell.augmented for share in (arming.HALF, arming.LESS)}
    plain |= {name: score(arming.augmented_arm(cell, *key)) for name, key in classic.items()}
    best = max(_winners(plain, plain[WITHOUT[0]]), key=lambda name: _mean(plain[name]), default=WITHOUT[0])
    mixed = best if best in classic else max(classic, key=lambda name: _mean(plain[name]), default=None)
    number = len(cell.synthetic.rows) if cell.synthetic is not None else 0
    amounts = {
        amount: score(arming.synthetic_arm(cell, amount))
        for share in arming.SHARES
        for images in ((None, number // arming.FEWER) if number >= arming.FEWER else (None,))
        for candidate in ((None, classic[mixed][0]) if mixed is not None else (None,))
        for amount in [Amount(share, images, candidate)]
        if candidate is None or share + arming.LESS < 1
    }
    amount = max(_winners(amounts, plain[best]), key=lambda one: _mean(amounts[one]), default=None)
    candidate, share = classic.get(best, (None, 0.0))
    return Found("augment" if candidate else best, candidate, share, amount, plain, best, amounts, how)


def _winners(tried: Mapping[Key, Scores], default: Scores) -> list[Key]:
    return [key for key, scores in tried.items() if better(scores, default)]


def _mean(scores: Scores) -> float:
    return float(np.mean(scores))


def _tested(setting: Rendered, name: str, limit: int, found: Found, draws: int, progress: Progress) -> Results:
    """The images as they are, the best arm without synthesis and the recipe, on the test images, by draw."""
    assert found.amount is not None
    cells, outcomes = [], []
    for seed in range(draws):
        cell = setting.cell(name, seed, limit, progress)
        if cell is None or (found.candidate is not None and found.candidate not in cell.augmented):
            continue
        assert cell.synthetic is not None
        small, tables = arming.compact(cell, setting.real.bank.tables())
        built = arming.build_arms(small, seed, tables)
        arms = {"real": built["real"], "synthetic": arming.synthetic_arm(small, found.amount)}
        if found.without == "augment":
            arms["augment"] = arming.augmented_arm(small, str(found.candidate), found.share)
        elif found.without in built:
            arms[found.without] = built[found.without]
        deal = inner_folds(built["real"], sorted({small.groups[row] for row in small.train}), INNER_FOLDS, seed)
        chosen: dict[str, dict[str, Any]] = {
            "augment": {"candidate": found.candidate, "classic share": found.share},
            "synthetic": {"share": found.amount.share, "images": found.amount.images or len(cell.synthetic.rows)},
        }
        outcomes.append(
            {
                arm: arm_of(setting.fitter.fit(tables, items, small.test, deal, seed), chosen.get(arm))
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
    best, made = _mean(found.plain[found.best]), max(map(_mean, found.amounts.values()))
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
    if used and setting.control in setting.real.positive:
        real = int(setting.real.positive[setting.control][setting.train].sum())
        if real:
            classes[setting.control] = control_recipe(max(one.images or 0 for one in used), real)
    renders = setting.renders
    folder = os.path.relpath(renders.folder, out) if used else None  # as it is seen from the recipe's file
    return Recipe(classes, str(renders.plan["generator"]) if used else None, folder)


def _validation_blocks(found: Found) -> list[dict[str, Any]]:
    points = [(0.0, max(map(_mean, found.plain.values())))]
    for share in arming.SHARES:
        own = [_mean(scores) for amount, scores in found.amounts.items() if amount.share == share]
        points += [(share, max(own))] if own else []
    ranked = sorted(found.tried.items(), key=lambda one: -_mean(one[1]))
    rows = [[name, _mean(scores), " ".join(f"{one:.3f}" for one in scores)] for name, scores in ranked]
    return [
        text(f"By {found.how}."),
        lines(
            "Validation AP by the share of the class's weight",
            points,
            {},
            "share",
            "AP",
            "The best of each share; 0 is the best arm without.",
        ),
        table(["tried", "validation AP", "by repeat"], rows),
    ]
