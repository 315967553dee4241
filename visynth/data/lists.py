"""Labelled lists: CSV or JSONL with a file column and a label column, and optional group, split and mask columns.

CSV is read as other tools write it, see :mod:`visynth.data.tables`. Several labels of one image are written
``"crack;rust"`` in CSV and ``["crack", "rust"]`` in JSONL. Paths are relative to the list's own folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, choices, raise_all
from visynth.data.folder import SPLIT_WORDS
from visynth.data.imageset import BadFile, Item
from visynth.data.tables import as_path, present, read_table

COLUMNS = {
    "file": ("file", "file_name", "filename", "path", "image"),
    "label": ("label", "labels", "class", "classes", "category"),
    "group": ("group", "group_id", "patient", "patient_id"),
    "split": ("split", "subset", "fold"),
    "mask": ("mask", "mask_file", "mask_path"),
}


def read_list(path: Path) -> tuple[list[Item], list[BadFile], list[str]]:
    """Items of a CSV or JSONL file, unusable ones, and what is to be told. Rows that name a missing file are bad files;
    malformed rows are an error.

    Raises:
        DataError: no such file, a missing column, or malformed rows (all told at once).
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    columns, rows = _table(path)
    if not rows:
        raise DataError(f"{path} has no rows.")
    names = _columns(path, columns)
    items, bad, problems, seen = [], [], [], set()
    for number, row in rows:
        cell = {role: row.get(column) for role, column in names.items()}
        file, split = as_path(cell.get("file")), present(cell.get("split")).lower()
        if not file:
            problems.append(f"row {number}, column {names['file']!r}: no file")
        elif split and split not in SPLIT_WORDS:
            allowed = choices(sorted(set(SPLIT_WORDS.values())))
            problems.append(f"row {number}, column {names['split']!r}: {split!r} is not one of {allowed}")
        elif file in seen:
            problems.append(f"row {number}: {file} is listed twice; give one row with all its labels")
        elif not (path.parent / file).is_file():
            bad.append(BadFile(file, "is listed but does not exist"))
        else:
            mask = as_path(cell.get("mask"))
            if mask and not (path.parent / mask).is_file():
                problems.append(f"row {number}, column {names['mask']!r}: there is no mask {mask}")
            items.append(
                Item(
                    path.parent / file,
                    file,
                    _labels(cell.get("label")),
                    group=present(cell.get("group")),
                    split=SPLIT_WORDS.get(split, ""),
                    mask=path.parent / mask if mask else None,
                )
            )
        seen.add(file)
    raise_all(str(path), problems)
    bare = sum(not item.labels for item in items)
    return items, bad, [f"{bare} images have no label: they show none of the classes"] if bare else []


def _table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Columns and rows with their numbers; of JSONL the columns are the keys of all rows, not of the first one."""
    if path.suffix.lower() != ".jsonl":
        table = read_table(path)
        return list(table.columns), list(table.rows)
    rows: list[tuple[int, dict[str, Any]]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path} line {number} is not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise DataError(f"{path} line {number} must be a JSON object, but is {type(row).__name__}.")
            rows.append((number, row))
            columns |= dict.fromkeys(row)
    return list(columns), rows


def _columns(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """The column of each role; two columns for one role would be a guess.

    Raises:
        DataError: no column for files or labels, or several for one role.
    """
    roles, problems = {}, []
    for role, spellings in COLUMNS.items():
        match = [name for name in columns if name and name.strip().lower() in spellings]
        if len(match) > 1:
            problems.append(f"the columns {choices(match)} could all be the {role}: leave one of them")
        elif match:
            roles[role] = match[0]
        elif role in ("file", "label"):
            problems.append(
                f"has columns {choices(columns)}, but none for the {role}; name one of them {choices(spellings)}"
            )
    raise_all(str(path), problems)
    return roles


def _labels(value: Any) -> tuple[str, ...]:
    """Class names; only an empty cell has none, since a class may well be called "none"."""
    parts = value if isinstance(value, list) else ("" if value is None or value != value else str(value)).split(";")
    return tuple(sorted({str(part).strip() for part in parts} - {""}))
