"""Labelled lists: CSV or JSONL with a file column and a label column, and optional group, split and mask columns.

Several labels of one image are written ``"crack;rust"`` in CSV and ``["crack", "rust"]`` in JSONL. Paths are relative to
the list's own folder.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visynth.data.folder import SPLIT_WORDS
from visynth.data.items import BadFile, Item
from visynth.errors import DataError, choices, raise_all

COLUMNS = {
    "file": ("file", "file_name", "filename", "path", "image"),
    "label": ("label", "labels", "class", "classes", "category"),
    "group": ("group", "group_id", "patient", "patient_id"),
    "split": ("split", "subset", "fold"),
    "mask": ("mask", "mask_file", "mask_path"),
}


def read_list(path: Path) -> tuple[list[Item], list[BadFile]]:
    """Items of a CSV or JSONL file. Rows that name a missing file are bad files; malformed rows are an error.

    Raises:
        DataError: no such file, a missing column, or malformed rows (all told at once).
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path} has no rows.")
    names = _columns(path, rows[0][1])
    items, bad, problems, seen = [], [], [], set()
    for number, row in rows:
        file = str(row.get(names["file"]) or "").strip()
        labels = _labels(row.get(names["label"]))
        split = str(row.get(names.get("split", ""), "") or "").strip().lower()
        if not file:
            problems.append(f"row {number}: empty {names['file']}")
        elif split and split not in SPLIT_WORDS:
            problems.append(f"row {number}: split {split!r} is not one of {choices(sorted(set(SPLIT_WORDS.values())))}")
        elif file in seen:
            problems.append(f"row {number}: {file} is listed twice; give one row with all its labels")
        elif not (path.parent / file).is_file():
            bad.append(BadFile(file, "is listed but does not exist"))
        else:
            mask = str(row.get(names.get("mask", ""), "") or "").strip()
            items.append(
                Item(
                    path.parent / file,
                    Path(file).as_posix(),
                    labels,
                    group=_text(row.get(names.get("group", ""))),
                    split=SPLIT_WORDS.get(split, ""),
                    mask=path.parent / mask if mask else None,
                )
            )
        seen.add(file)
    raise_all(str(path), problems)
    return items, bad


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        if path.suffix.lower() == ".csv":
            yield from enumerate(csv.DictReader(stream), 2)
            return
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{path} line {number} is not JSON ({error}).") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path} line {number} must be a JSON object, but is {type(row).__name__}.")
                yield number, row


def _columns(path: Path, row: dict[str, Any]) -> dict[str, str]:
    found = {}
    for role, spellings in COLUMNS.items():
        match = [name for name in row if name and name.lower() in spellings]
        if match:
            found[role] = match[0]
        elif role in ("file", "label"):
            raise DataError(
                f"{path} has columns {choices(row)}, but none for the {role}; name one of them {choices(spellings)}."
            )
    return found


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _labels(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(sorted({str(v) for v in value}))
    return tuple(sorted({part.strip() for part in str("" if value is None else value).split(";") if part.strip()}))
