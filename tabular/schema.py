"""The schema of a table: its columns in order, as plain JSON, and the table as numbers and codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError, UsageError, choices, raise_all
from visynth.tabular.columns import Category, Column, Constant, Date, Number, Text, Values, restored
from visynth.tabular.frames import Library, in_library, pandas, to_pandas
from visynth.tabular.identifiers import Identifier

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: tuple[type[Column], ...] = (Number, Category, Date, Constant, Text, Identifier)
Table = dict[str, Values]  # of the modelled columns


@dataclass(frozen=True)
class Schema:
    """Columns of a table.

    Attributes:
        columns: in the frame's order.
        library: of the frame: samples come as the same.
        notes: what was noticed in the data, for people.

    Example:
        >>> import pandas
        >>> from visynth.tabular.inference import infer
        >>> frame = pandas.DataFrame({"age": [31, 40, None], "sex": ["f", "m", "f"]})
        >>> schema = infer(frame)
        >>> [(c.name, c.kind) for c in schema.columns]
        [('age', 'integer'), ('sex', 'categorical')]
        >>> schema.frame(schema.table(frame)).equals(frame) and Schema.from_json(schema.to_json()) == schema
        True
    """

    columns: tuple[Column, ...]
    library: Library = "pandas"
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise UsageError(f"there is no column {name!r}; the columns are {choices(self.names)}.")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def modelled(self) -> list[Column]:
        """Columns that a model sees."""
        return [column for column in self.columns if column.modelled]

    def table(self, frame: Any) -> Table:
        """Numbers and codes of a frame's modelled columns; other columns of the frame are passed over.

        Raises:
            DataError: a column is missing, or holds values that the schema does not allow; all problems at once.
        """
        rows, _ = to_pandas(frame)
        lost = [name for name in self.names if name not in rows.columns and self[name].modelled]
        problems = [f"column {name!r} is missing" for name in lost]
        table: Table = {}
        for column in self.modelled:
            if column.name in lost:
                continue
            try:
                table[column.name] = column.parse(rows[column.name])
            except DataError as error:
                problems.append(str(error).rstrip("."))
        raise_all("the table", problems)
        return table

    def frame(self, table: Mapping[str, Values], rows: NDArray[np.int64] | None = None, seed: int = 0) -> Any:
        """A frame of numbers and codes, with identifiers, constants and empty text beside them.

        Args:
            table: values of the modelled columns, equally long.
            rows: number of each row, from which its identifiers follow; by default 0, 1, ...
            seed: of the identifiers.
        """
        count = len(next(iter(table.values()))) if table else 0 if rows is None else len(rows)
        numbers = np.arange(count) if rows is None else rows
        parts = {}
        for column in self.columns:
            if isinstance(column, Identifier):
                parts[column.name] = column.generate(numbers, seed)
            else:
                parts[column.name] = column.format(table[column.name] if column.modelled else np.zeros(count))
        return in_library(pandas().DataFrame(parts, columns=self.names), self.library)

    def only(self, names: Sequence[str]) -> Schema:
        """The schema of some of its columns."""
        return replace(self, columns=tuple(column for column in self.columns if column.name in names))

    def to_json(self) -> dict[str, Any]:
        return {
            "columns": [column.to_json() for column in self.columns],
            "library": self.library,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Schema:
        return cls(tuple(restored(c, COLUMNS) for c in said["columns"]), said["library"], tuple(said["notes"]))


def stacked(tables: Sequence[Mapping[str, Values]]) -> Table:
    """Rows of several tables, one after the other."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]} if tables else {}


def taken(table: Mapping[str, Values], rows: NDArray[Any]) -> Table:
    """Some rows of a table, by number or by mask."""
    return {name: values[rows] for name, values in table.items()}


def replaced(table: Table, places: NDArray[Any], new: Mapping[str, Values]) -> Table:
    """The table with other values in some rows; its arrays are changed."""
    for name, values in new.items():
        table[name][places] = values
    return table


def rows_of(table: Mapping[str, Values]) -> int:
    """Number of rows."""
    return len(next(iter(table.values()))) if table else 0


def missing_in(values: Values) -> NDArray[np.bool_]:
    """Where a column's value is missing."""
    return np.isnan(values) if values.dtype.kind == "f" else np.asarray(values < 0)


def as_frame(frame: Any) -> pd.DataFrame:
    """A user's table as a pandas frame."""
    return to_pandas(frame)[0]
