"""Several tables: parents and children by foreign key, and rows over time (the events of a customer).

A parent's row also says how many children it has. A child's row is drawn given its parent's row, its place among its
siblings and the row before it; where the children have an order in time, what is modelled is the time since the row before,
so that synthetic events come in order. Every synthetic foreign key is the key of a synthetic parent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from visynth.core import plugins
from visynth.core import seeds as seeding
from visynth.core.errors import DataError, IntegrityError, UsageError, choices, raise_all
from visynth.core.files import hash_json, write_json
from visynth.core.folders import new_folder
from visynth.core.progress import Progress, no_progress
from visynth.tabular.base import Synthesizer
from visynth.tabular.columns import Category, Column, Kind, Number, Values
from visynth.tabular.conditions import Allowed, Conditions
from visynth.tabular.frames import check_frame, in_rows, to_pandas
from visynth.tabular.inference import infer
from visynth.tabular.schema import Schema, Table, rows_of, stacked, taken

if TYPE_CHECKING:
    import pandas as pd

SPEC, SCHEMA = "relational.json", "visynth.tables/1"
PARTS = ("table-*",)  # folders that are part of a folder of generators
OURS = "visynth:"  # begins the names of helping columns, and of no user's
PARENT, BEFORE, COUNT = f"{OURS}parent.", f"{OURS}before.", f"{OURS}number of "
PLACE, START, GAP = f"{OURS}place", f"{OURS}start", f"{OURS}since the row before"
STEP = 2**28  # between the numbers of rows at two places of one parent


@dataclass(frozen=True)
class ForeignKey:
    """A child table's rows belong to a parent's.

    Attributes:
        table: name of the child table.
        column: in it, that holds the parent's key.
        parent: name of the parent table.
        parent_key: column of the parent, different in every row.
        order: number or date column by which a parent's children are ordered, such as the time; or None: as they stand.
    """

    table: str
    column: str
    parent: str
    parent_key: str
    order: str | None = None


class Relational:
    """Generators of several tables that belong together.

    Args:
        keys: foreign keys; each table has one parent at most, and none is its own ancestor.
        synthesizer: registered name of a generator that draws under any conditions.
        arguments: of it.
        seed: of the fits.

    Example:
        >>> import pandas
        >>> people = pandas.DataFrame({"id": range(40), "sex": ["f", "m"] * 20})
        >>> orders = pandas.DataFrame({"who": [i for i in range(40) for _ in range(i % 3)], "sum": 5})
        >>> orders["sum"] = [k % 7 for k in range(len(orders))]
        >>> model = Relational([ForeignKey("orders", "who", "people", "id")], arguments={"steps": 2})
        >>> sample = model.fit({"people": people, "orders": orders}).sample(30, seed=1)
        >>> len(sample["people"]), set(sample["orders"]["who"]) <= set(sample["people"]["id"])
        (30, True)
    """

    def __init__(
        self,
        keys: Sequence[ForeignKey | Mapping[str, Any]],
        synthesizer: str = "masked",
        arguments: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.keys = tuple(key if isinstance(key, ForeignKey) else ForeignKey(**key) for key in keys)
        self.synthesizer, self.arguments, self.seed = synthesizer, dict(arguments or {}), seed
        if not self.keys:
            raise UsageError("there is no foreign key: for one table, use a synthesizer.")
        if not plugins.load("synthesizers", synthesizer).imputes:
            raise UsageError(
                f"{synthesizer} does not draw under any conditions, as children need: use 'masked' or 'copula'."
            )
        self.schemas: dict[str, Schema] = {}
        self.generators: dict[str, Synthesizer] = {}
        self.order = _order(self.keys)

    def key(self, table: str) -> ForeignKey | None:
        """The foreign key of a table, or None of the first."""
        return next((key for key in self.keys if key.table == table), None)

    def children(self, table: str) -> list[ForeignKey]:
        """Foreign keys that point at a table."""
        return [key for key in self.keys if key.parent == table]

    # -- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        tables: Mapping[str, Any],
        *,
        kinds: Mapping[str, Mapping[str, Kind]] | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Fit to tables.

        Args:
            tables: frames by name.
            kinds: by table, of columns where the data mislead.
            progress: receives lines.

        Raises:
            DataError: a parent's key that is missing or stands twice, a child without its parent; all problems at once.
            UsageError: unknown tables or columns.
        """
        frames = {name: to_pandas(frame)[0] for name, frame in tables.items()}
        self._check(frames)
        own_kinds = {name: dict((kinds or {}).get(name, {})) for name in self.order}
        for key in self.keys:
            own_kinds[key.table][key.column] = "id"
            own_kinds[key.parent].setdefault(key.parent_key, "id")
        self.schemas = {name: infer(tables[name], own_kinds[name]) for name in self.order}
        values = {name: self.schemas[name].table(frames[name]) for name in self.order}
        for name in self.order:
            for child in self.children(name):
                counts = frames[child.table][child.column].value_counts()
                own = frames[name][child.parent_key].map(counts).fillna(0).to_numpy(dtype=np.float64)
                values[name][COUNT + child.table] = own
        for name in self.order:
            progress(f"{name}: {len(frames[name])} rows")
            wide = self._wide_schema(name)
            table = self._wide_table(name, frames, values)
            made = plugins.make("synthesizers", self.synthesizer, {"seed": self.seed, **self.arguments})
            self.generators[name] = made.fit_table(wide, table, members="none", progress=progress)
        return self

    def _check(self, frames: Mapping[str, pd.DataFrame]) -> None:
        lost = [name for name in self.order if name not in frames]
        if lost:
            raise UsageError(f"tables {choices(lost)} are missing; given are {choices(frames)}.")
        problems: list[str] = []
        for name in self.order:
            check_frame(frames[name], name, least=2)
            ours = [column for column in frames[name].columns if str(column).startswith(OURS)]
            problems += (
                [f"{name}: columns {choices(ours)} begin with {OURS!r}, as helping columns do: rename them"]
                if ours
                else []
            )
        for key in self.keys:
            child, parent = frames[key.table], frames[key.parent]
            for name, frame, column in ((key.table, child, key.column), (key.parent, parent, key.parent_key)):
                if column not in frame.columns:
                    raise UsageError(f"table {name!r} has no column {column!r}; it has {choices(frame.columns)}.")
            if key.order is not None and key.order not in child.columns:
                raise UsageError(f"table {key.table!r} has no column {key.order!r}; it has {choices(child.columns)}.")
            keys = parent[key.parent_key]
            for bad, why in ((keys.isna(), "is missing"), (keys.duplicated() & keys.notna(), "stands twice")):
                if bad.any():
                    problems.append(f"{key.parent}: key {key.parent_key!r} {why} in {in_rows(np.flatnonzero(bad))}")
            orphans = ~child[key.column].isin(keys)
            if orphans.any():
                rows = np.flatnonzero(orphans)
                problems.append(
                    f"{key.table}: {key.column!r} has no parent in {key.parent}.{key.parent_key} in {in_rows(rows)} (the first: "
                    f"{child[key.column].iloc[rows[0]]!r})"
                )
        raise_all("the tables", problems)

    def _own_columns(self, name: str) -> list[Column]:
        """Modelled columns of a table and the numbers of its children."""
        counts = [Number(COUNT + child.table, "integer", "int64", decimals=0) for child in self.children(name)]
        return [*self.schemas[name].modelled, *counts]

    def _wide_schema(self, name: str) -> Schema:
        """What the generator of a table sees."""
        key = self.key(name)
        own = self._own_columns(name)
        if key is None:
            return Schema(tuple(own))
        parent = [replace(c, name=PARENT + c.name) for c in self._own_columns(key.parent)]
        own = [c for c in own if c.name != key.order]
        before = [replace(c, name=BEFORE + c.name, nullable=True) for c in own]
        place: list[Column] = [Number(PLACE, "integer", "int64", decimals=0)]
        if key.order is not None:
            timed = self.schemas[name][key.order]
            place.append(replace(timed, name=START, nullable=True))
            step = getattr(timed, "step", None)
            digits = getattr(timed, "decimals", None) if step is None else 0
            kind: Kind = "numeric" if digits is None or digits else "integer"
            place.append(Number(GAP, kind, "float64", True, decimals=digits))
        return Schema((*parent, *place, *before, *own))

    def _wide_table(self, name: str, frames: Mapping[str, pd.DataFrame], values: Mapping[str, Table]) -> Table:
        key, own = self.key(name), values[name]
        if key is None:
            return {c.name: own[c.name] for c in self._own_columns(name)}
        frame, parent = frames[name], frames[key.parent]
        place_of = {value: row for row, value in enumerate(parent[key.parent_key].tolist())}
        owner = np.array([place_of[value] for value in frame[key.column].tolist()], np.int64)
        times = own[key.order] if key.order is not None else np.arange(len(frame), dtype=np.float64)
        if np.isnan(times).any():
            raise DataError(
                f"{name}: {key.order!r}, which orders the rows, is missing in {in_rows(np.flatnonzero(np.isnan(times)))}."
            )
        order = np.lexsort((times, owner))
        owner, times = owner[order], times[order]
        first = np.concatenate([[True], owner[1:] != owner[:-1]])
        starts = np.maximum.accumulate(np.where(first, np.arange(len(owner)), 0))
        table: Table = {PARENT + c.name: values[key.parent][c.name][owner] for c in self._own_columns(key.parent)}
        table[PLACE] = (np.arange(len(owner)) - starts).astype(np.float64)
        if key.order is not None:
            table[START] = np.where(first, times, np.nan)
            table[GAP] = np.where(first, np.nan, np.diff(times, prepend=times[:1]))
        for column in self._own_columns(name):
            if column.name == key.order:
                continue
            ordered = own[column.name][order]
            table[BEFORE + column.name] = _none_where(np.roll(ordered, 1), first, column)
            table[column.name] = ordered
        return table

    # -- sampling ----------------------------------------------------------------------------------------------------

    def sample(self, n: int, *, seed: int = 0) -> dict[str, Any]:
        """Frames of all tables: ``n`` rows of the first, and their descendants.

        Args:
            n: rows of the table without a parent.
            seed: in [0, 2**63). Equal seeds give equal frames.
        """
        if not self.generators:
            raise UsageError("this Relational has not been fitted: call fit(tables), or load one.")
        values: dict[str, Table] = {}
        owners: dict[str, NDArray[np.int64]] = {}
        for name in self.order:
            key = self.key(name)
            own_seed = seeding.derive("relational", name, seed)
            if key is None:
                values[name] = self.generators[name].rows(np.arange(n), own_seed)[0]
            else:
                values[name], owners[name] = self._children(name, key, values[key.parent], own_seed)
        frames = {}
        for name in self.order:
            rows = np.arange(rows_of(values[name]))
            frames[name] = self.schemas[name].frame(values[name], rows, seeding.derive("keys", name, seed))
        for key in self.keys:
            keys = to_pandas(frames[key.parent])[0][key.parent_key]
            frames[key.table] = _with_column(frames[key.table], key.column, keys.to_numpy()[owners[key.table]])
        return {name: frames[name] for name in self.order}

    def _children(self, name: str, key: ForeignKey, parents: Table, seed: int) -> tuple[Table, NDArray[np.int64]]:
        """Rows of a child table, and the parent row of each."""
        generator = self.generators[name]
        counts = np.maximum(parents[COUNT + name], 0).astype(np.int64)
        own = [c for c in self._own_columns(name) if c.name != key.order]
        pieces, owners, places = [], [], []
        before: Table = {}
        for place in range(int(counts.max(initial=0))):
            rows = np.flatnonzero(counts > place)
            conditions = self._given(key, parents, rows, place, before, own, generator)
            table, _ = generator.rows(place * STEP + rows, seed, conditions)
            piece = {c.name: table[c.name] for c in own}
            if key.order is not None:
                last = before[key.order][rows] if place else 0.0
                times = table[START] if not place else last + np.maximum(table[GAP], 0)
                piece[key.order] = self.schemas[name][key.order].rounded(times)
            before = _spread(piece, rows, len(counts))
            pieces.append(piece)
            owners.append(rows)
            places.append(np.full(len(rows), place))
        if not pieces:
            empty = {
                c.name: np.zeros(0, np.int64 if isinstance(c, Category) else np.float64)
                for c in self._own_columns(name)
            }
            return empty, np.zeros(0, np.int64)
        owner, table = np.concatenate(owners), stacked(pieces)
        order = np.lexsort((np.concatenate(places), owner))
        return taken(table, order), owner[order]

    def _given(
        self, key: ForeignKey, parents: Table, rows: NDArray[np.int64], place: int, before: Table, own: Sequence[Column],
        generator: Synthesizer,
    ) -> Conditions:  # fmt: skip
        """Conditions of the rows at one place: the parent's row, the place, the row before, and that the time is there."""
        every = np.ones(len(rows), bool)
        fixed: dict[str, tuple[Values, NDArray[np.bool_]]] = {}
        for column in self._own_columns(key.parent):
            fixed[PARENT + column.name] = parents[column.name][rows], every
        fixed[PLACE] = np.full(len(rows), float(place)), every
        for column in own:
            blank = np.full(len(rows), -1, np.int64) if isinstance(column, Category) else np.full(len(rows), np.nan)
            fixed[BEFORE + column.name] = (before[column.name][rows] if place else blank), every
        allowed = {}
        if key.order is not None:
            fixed[START if place else GAP] = np.full(len(rows), np.nan), every
            allowed[GAP if place else START] = Allowed(None, 0.0 if place else -np.inf, np.inf)
        return Conditions({n: v for n, v in fixed.items() if n in generator.schema}, allowed)

    # -- storing -----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write the generators of all tables as one folder; it appears complete or not at all."""
        said = {
            "schema": SCHEMA,
            "keys": [asdict(key) for key in self.keys],
            "synthesizer": self.synthesizer,
            "arguments": self.arguments,
            "seed": self.seed,
            "tables": {name: self.schemas[name].to_json() for name in self.order},
            "generators": {name: self.generators[name].digest for name in self.order},
        }
        with new_folder(folder, parts=PARTS) as new:
            for number, name in enumerate(self.order):
                self.generators[name].save(new / f"table-{number}")
            write_json(new / SPEC, {**said, "digest": hash_json(said)})
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Self:
        """Generators from their folder.

        Raises:
            IntegrityError: a file is missing or altered.
        """
        path = Path(folder) / SPEC
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{folder} holds no generators of several tables ({error}).") from error
        digest = said.pop("digest", None)
        if said.get("schema") != SCHEMA or hash_json(said) != digest:
            raise IntegrityError(f"{path} was altered, or is of another schema than {SCHEMA!r}.")
        own = cls(said["keys"], said["synthesizer"], said["arguments"], said["seed"])
        own.schemas = {name: Schema.from_json(schema) for name, schema in said["tables"].items()}
        for number, name in enumerate(own.order):
            own.generators[name] = Synthesizer.load(Path(folder) / f"table-{number}", device)
            if own.generators[name].digest != said["generators"][name]:
                raise IntegrityError(f"{folder}/table-{number} is another generator than {SPEC} says.")
        return own


def _order(keys: Sequence[ForeignKey]) -> list[str]:
    """Tables with parents before their children."""
    tables = [key.table for key in keys]
    twice = sorted({name for name in tables if tables.count(name) > 1})
    if twice:
        raise UsageError(
            f"tables {choices(twice)} have more than one parent, which is not supported: keep one foreign key."
        )
    roots = list(dict.fromkeys(key.parent for key in keys if key.parent not in tables))
    if len(roots) != 1:
        found = choices(roots) if roots else "none: the keys go in a circle"
        raise UsageError(f"exactly one table must have no parent, but these have none: {found}.")
    order = roots
    while more := [key.table for key in keys if key.parent in order and key.table not in order]:
        order = [*order, *more]
    lost = [name for name in tables if name not in order]
    if lost:
        raise UsageError(f"tables {choices(lost)} go in a circle.")
    return order


def _none_where(values: Values, where: NDArray[np.bool_], column: Column) -> Values:
    return np.where(where, -1 if isinstance(column, Category) else np.nan, values)


def _spread(piece: Table, rows: NDArray[np.int64], count: int) -> Table:
    """Values of some parents' children as one row for each parent."""
    wide = {}
    for name, values in piece.items():
        whole = np.full(count, -1, np.int64) if values.dtype.kind == "i" else np.full(count, np.nan)
        whole[rows] = values
        wide[name] = whole
    return wide


def _with_column(frame: Any, name: str, values: NDArray[Any]) -> Any:
    from visynth.tabular.frames import in_library

    rows, library = to_pandas(frame)
    rows = rows.copy()
    rows[name] = values
    return in_library(rows, library)
