"""Rows of a table by a language model: a JSON schema of the columns, examples in the prompt, and a measure of what small models
get wrong, the agreement between columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visynth.core.errors import DataError, UsageError
from visynth.core.report import Report, table, text
from visynth.tabular.balance import check_unmarked
from visynth.tabular.columns import Category, Date, Number, Text
from visynth.tabular.constraints import Rules
from visynth.tabular.counting import IndependentMarginals
from visynth.tabular.fidelity import fidelity, summary
from visynth.tabular.fitted import row_hashes
from visynth.tabular.frames import check_frame, pandas, without
from visynth.tabular.inference import infer
from visynth.tabular.schema import Schema, Table, missing_in, rows_of
from visynth.tabular.text.checks import main_text
from visynth.tabular.text.duplicates import Deduplication
from visynth.tabular.text.examples import read_records
from visynth.tabular.text.generator import Example
from visynth.tabular.text.outputs import json_value
from visynth.tabular.text.plan import Record
from visynth.tabular.text.prompts import Prompt
from visynth.tabular.text.spec import TextSpec, Wanted
from visynth.tabular.text.writing import Written

LEAST_ROWS = 20
MOST_CATEGORIES = 200
LONGEST = 300  # characters of a text cell
PROMPT = Prompt(
    system="You write rows of a table as JSON objects, one a reply. Values are plausible and fit one another.",
    user=(
        "{% if examples is defined %}"
        "Rows of a table:\n{% for example in examples %}{{ example }}\n{% endfor %}\n"
        "Write one more row with the same keys. It is a new one, not one of those."
        "{% else %}Write one row.{% endif %}"
    ),
)


def read_rows(path: str | Path, kinds: Mapping[str, str], drop: Sequence[str]) -> tuple[Any, Schema]:
    """A table's frame and schema from a file.

    Args:
        path: CSV, Parquet or JSON Lines.
        kinds: of columns where the data mislead.
        drop: columns to leave out.

    Raises:
        UsageError: columns that are not there.
        DataError: a table that cannot be.
    """
    frame = without(read_records(path), drop)
    check_unmarked(frame.columns)
    check_frame(frame, least=LEAST_ROWS)
    return frame, infer(frame, kinds)  # type: ignore[arg-type]  # it refuses kinds that there are not


def row_schema(schema: Schema, real: Any) -> dict[str, Any]:
    """JSON schema of a row: categories, ranges and missing values as the real rows have them.

    Args:
        schema: of the table.
        real: its frame.

    Raises:
        UsageError: no column can be asked for, or a column has too many categories.

    Example:
        >>> import pandas
        >>> from visynth.tabular import infer
        >>> frame = pandas.DataFrame({"age": [31, 40, 35], "sex": ["f", "m", "f"]})
        >>> row_schema(infer(frame), frame)["properties"]
        {'age': {'type': 'integer', 'minimum': 31, 'maximum': 40}, 'sex': {'enum': ['f', 'm']}}
    """
    properties = {c.name: _cell(c, real) for c in asked_columns(schema)}
    if not properties:
        raise UsageError("the table has no column to ask for: all are identifiers or constant.")
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def asked_columns(schema: Schema) -> list[Any]:
    """Columns that the model writes: those that are modelled, and texts; identifiers are generated."""
    return [c for c in schema.columns if c.modelled or isinstance(c, Text)]


def _cell(column: Any, real: Any) -> dict[str, Any]:
    if isinstance(column, Category):
        if len(column.categories) > MOST_CATEGORIES:
            raise UsageError(
                f"column {column.name!r} has {len(column.categories)} categories: drop it, or declare it as text."
            )
        own: dict[str, Any] = {"enum": [json_value(value) for value in column.categories]}
    elif isinstance(column, Number):
        values = column.parse(real[column.name])
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        whole = column.kind == "integer"
        own = {
            "type": "integer" if whole else "number",
            "minimum": int(low) if whole else low,
            "maximum": int(high) if whole else high,
        }
    else:
        own = {"type": "string", "minLength": 1, "maxLength": LONGEST if isinstance(column, Text) else 40}
    return {"anyOf": [own, {"type": "null"}]} if column.nullable else own


def row_examples(schema: Schema, real: Any) -> list[Example]:
    """Real rows as JSON lines with the values that the schema asks for, as the prompt shows them."""
    values = schema.table(real)
    columns = {c.name: _cells(c, values, real) for c in asked_columns(schema)}
    rows = zip(*columns.values(), strict=True)
    made = [dict(zip(columns, row, strict=True)) for row in rows]
    # As short as the grammar of constrained replies has them: what is shown or learned is what may be written.
    return [Example(json.dumps(row, ensure_ascii=False, separators=(",", ":"))) for row in made]


def _cells(column: Any, values: Table, real: Any) -> list[Any]:
    """A column's cells as JSON has them."""
    if isinstance(column, Text):
        return [
            None if gone else str(v)
            for v, gone in zip(real[column.name], column.is_missing(real[column.name]), strict=True)
        ]
    own, gone = values[column.name], missing_in(values[column.name])
    if isinstance(column, Category):
        return [None if empty else json_value(column.categories[code]) for code, empty in zip(own, gone, strict=True)]
    if isinstance(column, Number):
        kind = int if column.kind == "integer" else float
        return [None if empty else kind(v) for v, empty in zip(own.tolist(), gone, strict=True)]
    dates = column.format(own).astype(str)
    return [None if empty else text.removesuffix(" 00:00:00") for text, empty in zip(dates, gone, strict=True)]


def said_row(line: str) -> str:
    """Values of a row that stands in a JSON line, as :func:`main_text` has those of a reply."""
    return main_text(json.loads(line))


def rows_spec(
    schema: Mapping[str, Any], *, shown: int = 5, prompt: Prompt | None = None, attempts: int = 3, rounds: int = 3
) -> TextSpec:
    """The generator of rows.

    Args:
        schema: from :func:`row_schema`.
        shown: real rows in each prompt.
        prompt: instead of the built-in one, over ``examples``.
        attempts: at a row, the first and those with the error told.
        rounds: in which rows that could not be had are written anew.
    """
    wanted = Wanted(run=None, boilerplate=False, personal_data=False)
    # Equal rows are as real as others: dropping them would bend frequencies.
    equal_rows = Deduplication(equal=False, minhash=None, cosine=None)
    return TextSpec(
        prompt or PROMPT,
        {},
        None,
        schema,
        wanted,
        equal_rows,
        shown=shown,
        attempts=attempts,
        rounds=rounds,
    )


def row_records(n: int, seed: int = 0) -> list[Record]:
    """Records without attributes."""
    return [Record.of(number, {}, seed) for number in range(n)]


class FitsTable:
    """Refuses rows that the table's columns or rules do not allow.

    Args:
        schema: of the table.
        rules: between its columns.
        real: its rows; dates must lie between theirs.
    """

    def __init__(self, schema: Schema, rules: Rules, real: Any) -> None:
        self.schema, self.rules = schema, rules
        values = schema.table(real)
        dates = [c for c in schema.modelled if isinstance(c, Date)]
        self.limits = {c.name: (np.nanmin(values[c.name]), np.nanmax(values[c.name])) for c in dates}

    def __call__(self, fields: Mapping[str, Any], record: Record) -> str:
        try:
            values = parsed_rows(self.schema, [fields])
        except DataError as error:
            return str(error).replace("\n", " ")
        for name, (low, high) in self.limits.items():
            if values[name][0] < low or values[name][0] > high:
                first, last = self.schema[name].format(np.array([low, high])).astype(str)
                return f"column {name!r} must be from {first} to {last}"
        for constraint in self.rules.constraints:
            if Rules((constraint,)).broken(values, self.schema).any():
                return f"it breaks the rule {constraint}"
        return ""


def parsed_rows(schema: Schema, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Model values of rows as the model wrote them.

    Raises:
        DataError: values that a column does not allow.
    """
    columns = {}
    for column in schema.modelled:
        values = [row[column.name] for row in rows]
        if column.missing is not None:
            values = [column.missing if value is None else value for value in values]
        series = pandas().Series(values, name=column.name, dtype=object)
        if isinstance(column, Date) and column.is_number:
            series = pandas().to_numeric(series, errors="coerce")
        columns[column.name] = series
    return schema.table(pandas().DataFrame(columns))


def rows_frame(schema: Schema, written: Written, seed: int = 0) -> Any:
    """The table's frame of what was written, with its data types; identifiers are generated."""
    rows = [one.fields for one in written.texts]
    values = parsed_rows(schema, rows)
    numbers = np.array([one.record.number for one in written.texts], np.int64)
    frame = schema.frame(values, numbers, seed)
    for column in schema.columns:
        if isinstance(column, Text):
            frame[column.name] = [row[column.name] for row in rows]
    return frame


def consistency_section(
    report: Report, schema: Schema, rules: Rules, shown: Any, held: Any, written: Written, seed: int
) -> None:
    """Add whether the columns of the rows agree as those of real rows do, beside rows whose columns are drawn independently."""
    fake, real = parsed_rows(schema, [one.fields for one in written.texts]), schema.table(held)
    marginals = IndependentMarginals().fit(shown, schema=schema, members="none")
    count = rows_of(fake)
    sources = {
        "by the language model": fake,
        "columns drawn independently": marginals.rows(np.arange(count), seed)[0],
        "other real rows (noise floor)": schema.table(shown.iloc[:count] if count < len(shown) else shown),
    }
    rows = []
    for name, source in sources.items():
        own = summary(fidelity(real, source, schema, seed))
        rows.append([name, rows_of(source), *(round(value, 3) for value in own.values())])
    note = (
        "Against held-out real rows. A valid row says nothing of whether its cells fit one another: that is the trend error, which must "
        "be below that of independent columns."
    )
    blocks = [table(["rows", "number", *own], rows, note)]
    marks = set(row_hashes(schema, schema.table(shown)))
    copied = [float(np.mean([mark in marks for mark in row_hashes(schema, side)])) for side in (fake, real)]
    blocks.append(
        text(f"Rows equal to a row that may have been shown: {copied[0]:.1%}; of held-out real rows: {copied[1]:.1%}.")
    )
    if rules.constraints:
        kept = float((~rules.broken(fake, schema)).mean())
        blocks.append(text(f"Rules between columns: {kept:.1%} of the rows keep all {len(rules.constraints)}."))
    report.section("Do the cells of a row fit one another?", *blocks)
