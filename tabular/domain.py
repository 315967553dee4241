"""What is known of a table's columns before anybody looks at it: kinds, bounds, categories. What is declared costs nothing.

A file (YAML or JSON) names columns that are known, from a code book or a form; others are learned with noise, from a part of
the budget:

    age: {kind: integer, low: 0, high: 120}
    sex: {kind: categorical, values: [Female, Male]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from visynth.core.errors import DataError, UsageError, choices, raise_all

DeclaredKind = Literal["numeric", "integer", "categorical", "boolean"]


@dataclass(frozen=True)
class Declared:
    """A column that is known.

    Attributes:
        kind: numeric, integer, categorical or boolean.
        low: lowest value of a number; others count as it.
        high: highest one.
        values: of a category.
        nullable: whether values can be missing.
        decimals: digits after the point of numeric values; None: as many as a float has.
    """

    kind: DeclaredKind
    low: float | None = None
    high: float | None = None
    values: tuple[Any, ...] = ()
    nullable: bool = False
    decimals: int | None = None

    @property
    def is_number(self) -> bool:
        return self.kind in ("numeric", "integer")

    @property
    def bounds(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (float(self.low), float(self.high))

    @property
    def unit(self) -> float:
        """Smallest step between two numbers; 0 for any real one."""
        if self.kind == "integer":
            return 1.0
        return 0.0 if self.decimals is None else 10.0**-self.decimals


Domain = Mapping[str, Declared]


def read_domain(source: str | Path | Mapping[str, Any] | None) -> dict[str, Declared]:
    """Declared columns by name.

    Args:
        source: a file, what stands in one, or nothing.

    Raises:
        DataError: no such file, or it is no mapping.
        UsageError: columns that are not declared as they must be; all at once.

    Example:
        >>> read_domain({"age": {"kind": "integer", "low": 0, "high": 120}})["age"].bounds
        (0.0, 120.0)
    """
    if source is None:
        return {}
    said: Any = source
    if isinstance(source, (str, Path)):
        import yaml

        if not Path(source).is_file():
            raise DataError(f"there is no file {source}: a domain is a YAML or JSON file of columns.")
        said = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    if not isinstance(said, Mapping):
        raise DataError(f"a domain is a mapping of columns, but {source} holds a {type(said).__name__}.")
    problems: list[str] = []
    domain = {}
    for name, one in said.items():
        if isinstance(one, Declared):
            domain[str(name)] = one
            continue
        found = _problems(str(name), one)
        problems += found
        if not found:
            domain[str(name)] = Declared(**{**one, "values": tuple(one.get("values", ()))})
    raise_all("the domain", problems, UsageError)
    return domain


def _problems(name: str, one: Any) -> list[str]:
    known = [field.name for field in fields(Declared)]
    if not isinstance(one, Mapping) or set(one) - set(known):
        return [f"column {name!r} is a mapping of {choices(known)}, but got {one!r}"]
    kind, values = one.get("kind"), one.get("values", ())
    if kind not in get_args(DeclaredKind):
        return [f"column {name!r}: kind must be one of {choices(get_args(DeclaredKind))}, but got {kind!r}"]
    problems = []
    low, high = one.get("low"), one.get("high")
    if kind in ("numeric", "integer"):
        if values:
            problems.append(f"column {name!r}: {kind} columns have low and high, not values")
        if (low is None) != (high is None) or (low is not None and not low < high):
            problems.append(f"column {name!r}: give low below high, or neither, but got {low!r} and {high!r}")
        if one.get("decimals") is not None and not 0 <= int(one["decimals"]) <= 9:
            problems.append(f"column {name!r}: decimals must be from 0 to 9, but got {one['decimals']!r}")
    else:
        if low is not None or high is not None or one.get("decimals") is not None:
            problems.append(f"column {name!r}: {kind} columns have values, not low, high or decimals")
        if not isinstance(values, (list, tuple)) or len(set(map(repr, values))) != len(values):
            problems.append(f"column {name!r}: values must be a list without repetitions, but got {values!r}")
        elif kind == "categorical" and any(isinstance(value, bool) for value in values):
            problems.append(
                f"column {name!r}: YAML reads yes, no, on and off as truth values: quote them, in {values!r}"
            )
    return problems
