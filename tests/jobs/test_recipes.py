"""From verdicts to a recipe: the share that most cells chose, or the best arm without synthesis."""

from __future__ import annotations

import numpy as np

from visynth.core.recipe import read_recipe
from visynth.core.report import ClassVerdict
from visynth.jobs.trial.recipes import recipe_of
from visynth.verdict.comparison import Arm, Results


def results(label: str, shares: list[float], **chosen) -> Results:
    made = Results(label, counts={"synthetic": 60.0})
    scores = np.zeros(3)
    made.arms["synthetic"] = [Arm(scores, 0.5, {"share": share, "images": 60, **chosen}) for share in shares]
    made.arms["augment"] = [Arm(scores, 0.5, {"candidate": name}) for name in ("elastic", "light", "elastic")]
    return made


def verdict(label: str, answer: str, aside: bool = False, **numbers) -> ClassVerdict:
    return ClassVerdict(label, answer, "", "", {"arm": "synthetic", "without": "augment", **numbers}, aside)


def test_each_class_gets_what_was_best(tmp_path) -> None:
    measured = {
        "crack": results("crack", [0.1, 0.1, 0.25, 0.0]),
        "hole": results("hole", [0.1]),
        "stain": results("stain", [0.5]),
    }
    verdicts = [
        verdict("crack", "helps"),
        verdict("hole", "does not"),
        verdict("stain", "helps", aside=True),  # nobody named it: exploratory
        ClassVerdict("good", "not measured", ""),
    ]
    recipe = recipe_of(verdicts, measured, ["crack"], "ab", "renders", {"draws": 10}, ("good", 180))
    assert recipe.shares == {"crack": 0.1, "good": 0.1}  # a control for every three synthetic images: 20 beside 180
    assert recipe.classes["crack"].images == 60
    assert (recipe.classes["hole"].arm, recipe.classes["hole"].classic) == ("augment", "elastic")
    assert set(recipe.classes) == {"crack", "hole", "good"}
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path) == recipe


def test_where_nothing_helps_it_says_so() -> None:
    recipe = recipe_of(
        [verdict("crack", "does not", without="logit adjusted")],
        {"crack": results("crack", [0.1])},
        [],
        "ab",
        "renders",
        {},
    )
    assert recipe.shares == {}
    assert recipe.generator is None
    assert recipe.classes["crack"].arm == "logit_adjusted"


def test_where_most_cells_took_none_there_is_none() -> None:
    made = {"crack": results("crack", [0.0, 0.0, 0.0, 0.5], candidate="light")}
    recipe = recipe_of([verdict("crack", "helps")], made, ["crack"], "ab", "renders", {})
    assert (recipe.shares, recipe.classes["crack"].arm, recipe.classes["crack"].classic) == ({}, "augment", "light")
    even = {"crack": results("crack", [0.25, 0.5, 0.25, 0.5])}
    assert recipe_of([verdict("crack", "helps")], even, ["crack"], "ab", "renders", {}).shares == {"crack": 0.25}
