"""What a generator knows of the table that it was fitted to: schema, rules, target, fingerprints of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.artifact import PRIVACY, promise
from visynth.core.errors import UsageError, choices, raise_all
from visynth.core.members import Member
from visynth.tabular.columns import Category, Values
from visynth.tabular.conditions import Conditions
from visynth.tabular.constraints import Rules
from visynth.tabular.frames import to_pandas
from visynth.tabular.schema import Schema, Table, missing_in, rows_of


@dataclass(frozen=True)
class Fitted:
    """What a generator knows of its table.

    Attributes:
        schema: of the frame.
        rules: between its columns.
        target: the class column, or None.
        rows: number of rows that were fitted.
        members: fingerprints of them.
        notes: what people should know.
        unseen: by column, codes of categories that no fitted row has.
        privacy: what a private fit spent, and what that rests on; empty without.
    """

    schema: Schema
    rules: Rules = field(default_factory=Rules)
    target: str | None = None
    rows: int = 0
    members: tuple[Member, ...] = ()
    notes: tuple[str, ...] = ()
    unseen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)

    def check_seen(self, conditions: Conditions) -> None:
        """Refuse conditions on categories without a fitted row.

        Raises:
            UsageError: nothing is known of rows that have them.
        """
        problems = []
        for name, codes in self.unseen.items():
            if name in conditions.fixed:
                values, given = conditions.fixed[name]
                asked = sorted(set(np.unique(values[given]).tolist()) & set(codes))
            elif name in conditions.allowed and conditions.allowed[name].values is not None:
                wanted = set(np.asarray(conditions.allowed[name].values).tolist())
                asked = sorted(wanted) if wanted <= set(codes) else []
            else:
                continue
            if asked:
                known = getattr(self.schema[name], "categories", ())
                problems.append(f"column {name!r}: no fitted row has {choices(known[code] for code in asked)}")
        raise_all("conditions", problems, UsageError)

    @property
    def kept_whole(self) -> tuple[str, ...]:
        """Columns of which every category is modelled, however rare: the target."""
        return () if self.target is None else (self.target,)

    @property
    def model_schema(self) -> Schema:
        """Columns that the model sees: computed ones are left out."""
        own = [c.name for c in self.schema.modelled if c.name not in self.rules.computed]
        return self.schema.only(own)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the target's categories."""
        if self.target is None:
            return ()
        column = self.schema[self.target]
        return tuple(map(str, column.categories)) if isinstance(column, Category) else ()


def unseen_codes(schema: Schema, table: Mapping[str, Values]) -> dict[str, tuple[int, ...]]:
    """By column, codes of categories that no row has."""
    unseen: dict[str, tuple[int, ...]] = {}
    for column in schema.modelled:
        if isinstance(column, Category):
            lost = sorted(set(range(len(column.categories))) - set(np.unique(table[column.name]).tolist()))
            unseen |= {column.name: tuple(lost)} if lost else {}
    return unseen


def fingerprints(schema: Schema, table: Table, target: str | None, split: str = "train") -> tuple[Member, ...]:
    """One member a row: a hash of its modelled values, and its class."""
    labels = schema[target].format(table[target]).astype(str).tolist() if target is not None else [""] * rows_of(table)
    return tuple(
        Member(f"row/{number:09d}", label, "", split, mark, "", "")
        for number, (mark, label) in enumerate(zip(row_hashes(schema, table), labels, strict=True))
    )


def row_hashes(schema: Schema, table: Mapping[str, Values]) -> list[str]:
    """Hex hash of each row's modelled values as text, the same for equal rows of any frame."""
    columns = [list(map(str, c.format(table[c.name]).tolist())) for c in schema.modelled]
    return [blake2b("\x1f".join(row).encode(), digest_size=16).hexdigest() for row in zip(*columns, strict=True)]


def holes(schema: Schema, frame: Any) -> tuple[Table, dict[str, NDArray[np.bool_]]]:
    """Values of a frame that may have missing cells anywhere, and where each column has a value."""
    rows, _ = to_pandas(frame)
    lenient = replace(schema, columns=tuple(replace(c, nullable=True) if c.modelled else c for c in schema.columns))
    table = lenient.table(rows)
    return table, {name: ~missing_in(values) for name, values in table.items()}


def card(fits_by: str, fitted: Fitted) -> dict[str, Any]:
    """What people are told of a generator."""
    return {
        "task": "synthetic rows of a table",
        "fitted by": fits_by,
        "rows fitted": fitted.rows,
        "columns": len(fitted.schema.columns),
        "target": fitted.target or "none",
        "notes": list(fitted.notes),
        **(
            {PRIVACY: dict(fitted.privacy)}
            if fitted.privacy
            else {
                "privacy": "fitted without differential privacy: see the attacks in the report of 'visynth tabular trial'"
            }
        ),
        "licence": "as the table that it was fitted to",
        "made by": "visynth tabular",
    }


def readme(network: str, fitted: Fitted, digest: str) -> str:
    """The README of a generator's folder."""
    rows = "".join(
        f"| {c.name} | {c.kind} | {c.dtype} | {'yes' if c.nullable else 'no'} |\n" for c in fitted.schema.columns
    )
    notes = "".join(f"- {note}\n" for note in fitted.notes) or "- none\n"
    members = "`members.jsonl` has a fingerprint of each" if fitted.members else "no fingerprints of them are kept"
    return (
        f"# {network} table generator\n\nFitted to {fitted.rows} rows ({members}). Digest: `{digest}`\n\n"
        f"| column | kind | data type | missing values |\n|---|---|---|---|\n{rows}\n"
        f"Notes:\n\n{notes}\n"
        "Intended use: training data for the table above. Not for evaluation, not as evidence about real people or things. "
        f"{promise({PRIVACY: fitted.privacy})}\n"
    )
