"""A recipe: what a trial found best for each class, as a file that a training takes as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, UsageError, choices

SCHEMA = "visynth.recipe/1"
FILE = "recipe.yaml"
HEAD = """\
# What was measured to be best for each class. The shares are taken by
#   WithSynthetic(datamodule, "{renders}", recipe="{file}")
# share: part of the class's samples that is synthetic (0: none), under balanced classes. Yours to add are arm, which says how
# a class was trained where no synthetic images were best, and classic, the augmentation that it had (see
# visynth.data.transforms); images says how many synthetic ones the measured arms had.
"""


@dataclass(frozen=True)
class ClassRecipe:
    """What to train one class with.

    Attributes:
        share: part of its samples that is synthetic, in [0, 1).
        images: how many synthetic images there were to choose from; None where it did not matter.
        arm: that was best: ``"synthetic"``, or one without synthesis.
        classic: candidate of classic augmentation; None for none.
        answer: of the verdict.
    """

    share: float = 0.0
    images: int | None = None
    arm: str = ""
    classic: str | None = None
    answer: str = ""


@dataclass(frozen=True)
class Recipe:
    """What to train each class with.

    Attributes:
        classes: by name.
        generator: digest of the generator that the renders must come from; None where no class has any.
        renders: their folder, relative to the recipe's file.
        conditions: metric, groups, draws and the like, for people.
    """

    classes: Mapping[str, ClassRecipe]
    generator: str | None = None
    renders: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each class that has one above 0."""
        return {name: one.share for name, one in self.classes.items() if one.share > 0}

    def to_yaml(self, file: str = FILE) -> str:
        """The text of a file of that name."""
        import yaml

        body = {
            "schema": SCHEMA,
            "generator": self.generator,
            "renders": self.renders,
            "classes": {name: vars(one) for name, one in self.classes.items()},
            "conditions": dict(self.conditions),
        }
        head = HEAD.format(renders=self.renders or "renders", file=file)
        return head + str(yaml.safe_dump(body, sort_keys=False, allow_unicode=True))


def read_recipe(source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
    """A recipe from its file, or from the same as a mapping.

    Raises:
        DataError: the file cannot be read.
        UsageError: another schema, or entries that cannot be, all told together.

    Example:
        >>> read_recipe({"schema": SCHEMA, "classes": {"crack": {"share": 0.25}}}).shares
        {'crack': 0.25}
    """
    if isinstance(source, Recipe):
        return source
    where = "the recipe"
    if isinstance(source, Mapping):
        given: Any = source
    else:
        import yaml

        file = Path(source)
        file, where = (file / FILE if file.is_dir() else file), f"recipe {source}"
        try:
            given = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{where} cannot be read ({error}).") from error
    if not isinstance(given, Mapping) or given.get("schema") != SCHEMA:
        found = given.get("schema") if isinstance(given, Mapping) else type(given).__name__
        raise UsageError(f"{where} has schema {found!r}; this version reads {SCHEMA!r}.")
    known, problems, classes = set(ClassRecipe.__dataclass_fields__), [], {}
    for name, entry in (given.get("classes") or {}).items():
        own = dict(entry or {})
        unknown = [key for key in own if key not in known]
        if unknown:
            problems.append(f"{name} has {choices(unknown)}; a class takes {choices(sorted(known))}")
            continue
        share = own.get("share", 0.0)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            problems.append(f"{name}'s share must be in [0, 1), but is {share!r}")
            continue
        classes[str(name)] = ClassRecipe(**{**own, "share": float(share)})
    if problems:
        raise UsageError(f"{where}: " + "; ".join(problems) + ".")
    return Recipe(classes, given.get("generator"), given.get("renders"), given.get("conditions") or {})
