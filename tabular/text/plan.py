"""What each text should be: a balanced design over attributes, so that every combination is covered and none by chance.

An attribute is a list of levels, shares by level, a number of things chosen from a list, a range of whole numbers, or a
table of levels that depend on an earlier attribute. Plans of this kind give more varied texts, with fewer requests, than one
prompt asked again and again: Yu et al., "Large language model as attributed training data generator" (NeurIPS 2023).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, raise_all

MOST_CELLS = 100_000  # of a design that is laid out as a whole
FORMS = "a list of levels, {shares: {level: share}}, {choose: N, of: [...]}, {range: [low, high]} or {given: NAME, table: {...}}"


@dataclass(frozen=True)
class Record:
    """One text to be written.

    Attributes:
        number: of the record in its plan.
        attributes: by name.
        seed: of all that is drawn for it.
        parents: places of the real texts that its prompt shows.
        row: place of the real row whose cells are its attributes, or None.
    """

    number: int
    attributes: Mapping[str, Any]
    seed: int
    parents: tuple[int, ...] = ()
    row: int | None = None

    @classmethod
    def of(cls, number: int, attributes: Mapping[str, Any], seed: int, row: int | None = None) -> Record:
        """The record of a number, from the seed of the whole plan."""
        return cls(number, attributes, seeding.derive("text/record", seed, number), row=row)

    def again(self, round_: int) -> Record:
        """The record with other random numbers, for a text that could not be used."""
        seed = self.seed if round_ == 0 else seeding.derive("text/round", self.seed, round_)
        return replace(self, seed=seed)


def meant(attributes: Mapping[str, Any], label: str, meanings: Mapping[str, str]) -> dict[str, Any]:
    """Attributes with the meaning of a class, for the prompt, where it has one.

    Example:
        >>> meant({"label": "0"}, "0", {"0": "a complaint"}), meant({"label": "1"}, "1", {})
        ({'label': '0', 'meaning': 'a complaint'}, {'label': '1'})
    """
    return {**attributes, "meaning": meanings[label]} if label in meanings else dict(attributes)


@dataclass(frozen=True)
class TextPlan:
    """A design over attributes.

    Args:
        attributes: by name, in the order in which tables may refer to them. Lists are crossed: each combination of their
            levels is a *cell*, and cells get equally many records, but for one. Shares are met exactly, but for rounding;
            chosen things appear equally often; ranges are spread evenly.

    Raises:
        UsageError: attributes that cannot be, all listed together.

    Example:
        >>> plan = TextPlan({"sentiment": ["good", "bad"], "words": {"range": [5, 6]}, "about": {"choose": 1, "of": ["price", "size"]}})
        >>> sorted((r.attributes["sentiment"], r.attributes["words"]) for r in plan.records(4, seed=1))
        [('bad', 5), ('bad', 6), ('good', 5), ('good', 6)]
        >>> plan.cells
        2
    """

    attributes: Mapping[str, Any]

    def __post_init__(self) -> None:
        known: dict[str, set[Any]] = {}
        problems: list[str] = []
        for name, form in self.attributes.items():
            problems += [f"attribute {name!r}: {problem}" for problem in _problems(form, known)]
            known[name] = _levels(form)
        if not self.attributes:
            problems.append("there are no attributes")
        raise_all("the plan", problems, UsageError)

    @property
    def crossed(self) -> dict[str, list[Any]]:
        """The attributes that are lists, with their levels."""
        return {name: list(form) for name, form in self.attributes.items() if _is_list(form)}

    @property
    def cells(self) -> int:
        """Number of combinations of the lists' levels."""
        return math.prod(len(levels) for levels in self.crossed.values())

    def records(self, n: int, seed: int = 0) -> list[Record]:
        """``n`` records; those of one seed are the same in every run.

        Raises:
            UsageError: n is below 1.
        """
        if n < 1:
            raise UsageError(f"n must be at least 1, but got {n}.")
        seeding.checked(seed)
        columns: dict[str, list[Any]] = self._crossed(n, seed)
        # Rows of one cell one after the other: what is spread evenly over rows is spread over each cell as well.
        order = sorted(range(n), key=lambda row: [str(column[row]) for column in columns.values()])
        for name, form in self.attributes.items():
            if name not in columns:
                columns[name] = _column(name, form, order, seed, columns)
        rows = [{name: columns[name][row] for name in self.attributes} for row in range(n)]
        return [Record.of(row, rows[row], seed) for row in range(n)]

    def _crossed(self, n: int, seed: int) -> dict[str, list[Any]]:
        names = self.crossed
        generator = seeding.rng(seed, "text/plan")
        if not names or self.cells > min(n * 100, MOST_CELLS):  # most cells stay empty: each attribute for itself
            return {name: even(levels, n, seeding.rng(seed, f"text/plan/{name}")) for name, levels in names.items()}
        rows = _shuffled(_cells(list(names.values()), n, generator), generator)
        return {name: [row[place] for row in rows] for place, name in enumerate(names)}

    def coverage(self, attributes: Iterable[Mapping[str, Any]]) -> Coverage:
        """How many records each cell of the design has."""
        names = list(self.crossed)
        counts = Counter(tuple(row[name] for name in names) for row in attributes)
        empty: list[tuple[Any, ...]] = []
        if self.cells <= MOST_CELLS:
            empty = [cell for cell in product(*self.crossed.values()) if not counts[cell]]
        return Coverage(tuple(names), self.cells, self.cells - len(empty), tuple(empty), dict(counts))


@dataclass(frozen=True)
class Coverage:
    """Cells of a design that have texts.

    Attributes:
        names: of the crossed attributes.
        cells: number of combinations.
        covered: of them with at least one text.
        empty: those without.
        counts: texts by combination.
    """

    names: tuple[str, ...]
    cells: int
    covered: int
    empty: tuple[tuple[Any, ...], ...]
    counts: Mapping[tuple[Any, ...], int]


def _is_list(form: Any) -> bool:
    return isinstance(form, (list, tuple))


def _problems(form: Any, known: Mapping[str, set[Any]]) -> list[str]:
    """What is wrong with one attribute."""
    if _is_list(form):
        return _list_problems(form)
    if not isinstance(form, Mapping):
        return [f"got {form!r}, but it must be {FORMS}"]
    keys = set(form)
    if keys == {"shares"}:
        shares = form["shares"]
        good = isinstance(shares, Mapping) and shares and all(_number(v) and 0 <= v < math.inf for v in shares.values())
        return [] if good and sum(shares.values()) > 0 else [f"shares must be numbers by level, but got {shares!r}"]
    if keys == {"choose", "of"}:
        problems = _list_problems(form["of"])
        if not problems and not (_whole(form["choose"]) and 1 <= form["choose"] <= len(form["of"])):
            problems = [f"choose must be from 1 to {len(form['of'])}, but got {form['choose']!r}"]
        return problems
    if keys == {"range"}:
        limits = form["range"]
        good = _is_list(limits) and len(limits) == 2 and all(map(_whole, limits)) and limits[0] <= limits[1]
        return [] if good else [f"range must be two whole numbers, the lower first, but got {limits!r}"]
    if keys == {"given", "table"}:
        return _table_problems(form, known)
    return [f"got {dict(form)!r}, but it must be {FORMS}"]


def _list_problems(levels: Any) -> list[str]:
    if not _is_list(levels) or not levels:
        return [f"levels must be a list that is not empty, but got {levels!r}"]
    odd = [level for level in levels if not _plain(level)]
    if odd:
        return [f"levels must be texts or numbers, but got {odd}"]
    twice = [level for level, count in Counter(map(str, levels)).items() if count > 1]
    return [f"levels {twice} stand there twice"] if twice else []


def _table_problems(form: Mapping[str, Any], known: Mapping[str, set[Any]]) -> list[str]:
    given, table = form["given"], form["table"]
    if not _plain(given) or given not in known:
        return [f"given {given!r} is no attribute before it; those are {list(known)}"]
    if not isinstance(table, Mapping):
        return [f"table must have levels by level of {given!r}, but got {table!r}"]
    problems = [f"table has nothing for {given} = {level!r}" for level in sorted(known[given] - set(table), key=str)]
    problems += [f"table: {given} = {key!r} never happens" for key in sorted(set(table) - known[given], key=str)]
    for key, levels in table.items():
        problems += [f"table, {key!r}: {problem}" for problem in _problems(levels, {})]
    return problems


def _levels(form: Any) -> set[Any]:
    """Values that an attribute can have, where others may depend on them."""
    if _is_list(form):
        return {level for level in form if _plain(level)}
    if isinstance(form, Mapping) and isinstance(form.get("shares"), Mapping):
        return set(form["shares"])
    if isinstance(form, Mapping) and isinstance(form.get("table"), Mapping):
        return {level for own in form["table"].values() for level in _levels(own)}
    return set()


def _plain(level: Any) -> bool:
    return level is None or isinstance(level, (str, int, float, bool))


def _column(name: str, form: Any, order: Sequence[int], seed: int, columns: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Values of an attribute that is not crossed, for records that are filled in an order."""
    generator = seeding.rng(seed, f"text/plan/{name}")
    column: list[Any] = [None] * len(order)
    levels = form["table"] if "given" in form else {None: form}
    for level, own in levels.items():
        places = [place for place in order if level is None or columns[form["given"]][place] == level]
        for place, value in zip(places, _values(own, len(places), generator), strict=True):
            column[place] = value
    return column


def _values(form: Any, n: int, generator: np.random.Generator) -> list[Any]:
    if _is_list(form):
        return _blocks(form, n, generator)
    if "shares" in form:
        levels, shares = list(form["shares"]), np.array(list(form["shares"].values()), float)
        counts = _rounded(shares / shares.sum() * n)
        return _shuffled([level for level, count in zip(levels, counts, strict=True) for _ in range(count)], generator)
    if "range" in form:
        low, high = form["range"]
        return _blocks(list(range(low, high + 1)), n, generator)
    return _subsets(list(form["of"]), int(form["choose"]), n, generator)


def _cells(levels: Sequence[Sequence[Any]], n: int, generator: np.random.Generator) -> list[tuple[Any, ...]]:
    """``n`` cells, each as often as any other but for one, and so are the levels of each attribute.

    Steps of one level in every attribute at once visit each level equally often; after as many steps as the least common
    multiple of their numbers they would come back, and go on from a cell that was not met yet.
    """
    sizes = [len(own) for own in levels]
    turn = math.lcm(*sizes)
    cells: list[tuple[Any, ...]] = []
    while len(cells) < n:
        orders = [generator.permutation(size) for size in sizes]
        met = np.zeros(math.prod(sizes), bool)
        for start in generator.permutation(len(met)):
            if met[start] or len(cells) >= n:
                continue
            first = np.unravel_index(int(start), sizes)
            steps = [
                tuple((int(place) + k) % size for place, size in zip(first, sizes, strict=True)) for k in range(turn)
            ]
            met[np.ravel_multi_index(tuple(np.array(steps).T), sizes)] = True
            cells += [
                tuple(own[order[p]] for own, order, p in zip(levels, orders, step, strict=True)) for step in steps
            ]
    return cells[:n]


def even(levels: Sequence[Any], n: int, generator: np.random.Generator) -> list[Any]:
    """``n`` levels in random order, each as often as any other but for one."""
    return _shuffled(_blocks(levels, n, generator), generator)


def _blocks(levels: Sequence[Any], n: int, generator: np.random.Generator) -> list[Any]:
    """``n`` levels: all of them in random order, then all of them again."""
    order: list[Any] = []
    while len(order) < n:
        order += [levels[place] for place in generator.permutation(len(levels))]
    return order[:n]


def _subsets(things: list[Any], size: int, n: int, generator: np.random.Generator) -> list[list[Any]]:
    """``n`` lists of so many different things: always of those that were chosen least."""
    used = np.zeros(len(things))
    rows = []
    for _ in range(n):
        order = np.lexsort((generator.random(len(things)), used))[:size]
        used[order] += 1
        rows.append([things[place] for place in sorted(order)])
    return rows


def _rounded(wanted: Any) -> list[int]:
    """Whole numbers of the same sum, by the largest remainders."""
    whole = np.floor(wanted).astype(int)
    missing = round(float(wanted.sum())) - int(whole.sum())
    whole[np.argsort(-(wanted - whole), kind="stable")[:missing]] += 1
    return [int(value) for value in whole]


def _shuffled(values: list[Any], generator: np.random.Generator) -> list[Any]:
    return [values[place] for place in generator.permutation(len(values))]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
