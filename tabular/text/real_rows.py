"""Plans from real rows: their cells as the attributes of texts, alone or beside a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from visynth.core import seeds as seeding
from visynth.core.errors import UsageError, choices
from visynth.tabular.text.outputs import json_value
from visynth.tabular.text.plan import Record, TextPlan, even

TEXTS = 100  # where nobody says how many


def records_of_rows(rows: Sequence[Mapping[str, Any]], n: int, seed: int = 0) -> list[Record]:
    """``n`` records with the attributes of real rows, each row as often as any other, but for one.

    Raises:
        UsageError: there are no rows, or n is below 1.

    Example:
        >>> sorted((r.row, r.attributes["city"]) for r in records_of_rows([{"city": "Rome"}, {"city": "Oslo"}], 2))
        [(0, 'Rome'), (1, 'Oslo')]
    """
    if not rows or n < 1:
        raise UsageError(f"a plan of real rows takes rows and n of at least 1, but got {len(rows)} rows and {n}.")
    order = even(list(range(len(rows))), n, seeding.rng(seed, "text/rows"))
    return [Record.of(number, dict(rows[place]), seed, place) for number, place in enumerate(order)]


def planned_records(
    plan: Mapping[str, Any],
    frame: Any = None,
    columns: Sequence[str] | None = None,
    n: int | None = None,
    seed: int = 0,
) -> list[Record]:
    """Records of a plan, of real rows, or of both beside one another.

    Args:
        plan: attributes; see :class:`visynth.tabular.text.plan.TextPlan`.
        frame: of real rows.
        columns: of the frame that become attributes; by default all.
        n: number of records; by default one for each row, or 100.
        seed: of the records.

    Raises:
        UsageError: unknown columns, or names that both have.

    Example:
        >>> import pandas
        >>> made = planned_records({"tone": ["warm", "dry"]}, pandas.DataFrame({"city": ["Rome", "Oslo"]}), n=4)
        >>> sorted((record.attributes["city"], record.attributes["tone"]) for record in made)[0][0]
        'Oslo'
    """
    if n is not None and n < 1:
        raise UsageError(f"n must be at least 1, but got {n}.")
    if frame is None:
        if columns:
            raise UsageError("columns are of rows: give a file of rows.")
        count = TEXTS if n is None else n
        return TextPlan(plan).records(count, seed) if plan else [Record.of(k, {}, seed) for k in range(count)]
    lost = [name for name in columns or () if name not in frame.columns]
    named = list(frame.columns if columns is None else columns)
    both = sorted(set(named) & set(plan))
    if not named:
        raise UsageError(f"no column is used: name some of {choices(frame.columns)} in the prompt, or as columns.")
    if lost or both:
        raise UsageError(
            f"the rows have the columns {choices(frame.columns)}: there is no {choices(lost)}."
            if lost
            else f"{choices(both)} are columns of the rows and attributes of the plan: name the columns to use."
        )
    rows = [{name: json_value(value) for name, value in row.items()} for row in frame[named].to_dict("records")]
    records = records_of_rows(rows, len(rows) if n is None else n, seed)
    if not plan:
        return records
    planned = TextPlan(plan).records(len(records), seed)
    return [
        replace(record, attributes={**record.attributes, **own.attributes})
        for record, own in zip(records, planned, strict=True)
    ]
