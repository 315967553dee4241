"""From a trial's verdicts to a recipe: the share that most cells chose for a class that helps, else its best arm without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from visynth.core.recipe import ClassRecipe, Recipe
from visynth.core.report import ClassVerdict, table
from visynth.verdict.comparison import IMAGES, Arm, Results
from visynth.verdict.rule import HELPS

RECIPE_TITLE = "What to train with"  # of its section in a report


def recipe_of(
    verdicts: Sequence[ClassVerdict],
    results: Mapping[str, Results],
    rendered: Sequence[str],
    generator: str | None,
    renders: str | None,
    conditions: Mapping[str, Any],
    control: tuple[str, int] | None = None,
) -> Recipe:
    """What to train each measured class with.

    Args:
        verdicts: of all classes.
        results: by class, those that were measured.
        rendered: classes whose renders may be trained on.
        generator: digest of what made them.
        renders: their folder's name.
        conditions: of the trial, for people.
        control: the defect-free class and the number of its real images, where the renders hold some of it with the traces of
            synthesis: as in the measured arm there is one for every three of the synthetic images that were measured with.
    """
    classes = {}
    for verdict in verdicts:
        own = results.get(verdict.label)
        if own is None or verdict.aside:
            continue
        if verdict.answer == HELPS and verdict.label in rendered:
            classes[verdict.label] = _with_synthetic(own, str(verdict.numbers["arm"]), verdict.answer)
        else:
            without = str(verdict.numbers.get("without", "")).replace(" ", "_")
            classic = most_common(own.arms["augment"], "candidate") if without == "augment" else None
            classes[verdict.label] = ClassRecipe(arm=without, classic=classic, answer=verdict.answer)
    used = any(one.share for one in classes.values())
    if used and control is not None:
        name, real = control
        made = max(own.counts["synthetic"] for label, own in results.items() if label in rendered)
        classes[name] = control_recipe(made, real)
    return Recipe(classes, generator if used else None, renders if used else None, conditions)


def control_recipe(synthetic: float, real: int) -> ClassRecipe:
    """Of the defect-free class, whose images with the same seams stand beside so many synthetic ones of a class, one for every
    three, as in the measured arm."""
    made = synthetic / 3
    return ClassRecipe(share=round(made / (made + real), 3), arm="control")


def recipe_table(recipe: Recipe, file: str) -> dict[str, Any]:
    """What to train each class with, in a table."""
    words = {
        **IMAGES.recipes,
        "synthetic": "a balanced sampler",
        "control": "defect-free images with the same seams",
    }
    rows = []
    for name, one in recipe.classes.items():
        share = f"{one.share:.0%} of its samples" if one.share else "none"
        images = "-" if one.images is None else one.images
        rows.append(
            [name, one.answer or "-", share, images, words.get(one.arm, one.arm.replace("_", " ")), one.classic or "-"]
        )
    columns = ["class", "verdict", "synthetic images", "measured with", "with what else", "classic augmentation"]
    note = f"The same is in {file}: WithSynthetic(your_datamodule, renders, recipe=...) takes it as it is."
    return table(columns, rows, note)


def _with_synthetic(results: Results, arm: str, answer: str) -> ClassRecipe:
    cells = results.arms[arm]
    shares = Counter(float(one.chosen.get("share", 0.0)) for one in cells)
    share = max(shares, key=lambda value: (shares[value], -value))  # of equally common ones the smaller
    if not share:  # most cells took no synthetic image: what helped was the arm's freedom to take classic copies
        classic = most_common([one for one in cells if not one.chosen.get("share")], "candidate")
        return ClassRecipe(arm="balanced" if classic is None else "augment", classic=classic, answer=answer)
    return ClassRecipe(
        share=share,
        images=most_common(cells, "images"),
        arm=arm,
        classic=most_common([one for one in cells if one.chosen.get("share") == share], "candidate"),
        answer=answer,
    )


def most_common(cells: Sequence[Arm], key: str) -> Any:
    """What most cells chose; None where most chose nothing."""
    return Counter(one.chosen.get(key) for one in cells).most_common(1)[0][0]
