"""Real texts from people's files: CSV, Parquet and JSON Lines, with a column of texts and perhaps one of classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, UsageError, choices, raise_all
from visynth.tabular.frames import pandas, read_table
from visynth.tabular.text.generator import Example

LARGEST = 100_000  # characters of a text


def read_records(path: str | Path) -> Any:
    """A frame from a CSV, Parquet or JSON Lines file.

    Raises:
        DataError: it cannot be read; lines that are no JSON objects are told together.
    """
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return read_table(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    rows, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"line {number}: no JSON object, but {type(row).__name__}")
    raise_all(str(path), problems)
    return pandas().DataFrame(rows)


def read_examples(
    path: str | Path, text: str = "text", label: str | None = None, attributes: Sequence[str] = ()
) -> list[Example]:
    """Real texts with their classes and further columns.

    Args:
        path: CSV, Parquet or JSON Lines.
        text: column of the texts.
        label: column of the classes.
        attributes: further columns that prompts may use.

    Raises:
        UsageError: columns that are not there.
        DataError: empty or endless texts, missing classes; all problems at once.
    """
    return examples_of(read_records(path), path, text, label, attributes)


def examples_of(
    frame: Any, path: str | Path, text: str = "text", label: str | None = None, attributes: Sequence[str] = ()
) -> list[Example]:
    """Real texts of a frame that was read from a file; see :func:`read_examples`."""
    named = [text, *([label] if label else []), *attributes]
    lost = [name for name in named if name not in frame.columns]
    if lost:
        raise UsageError(f"{path} has no columns {choices(lost)}; the columns are {choices(frame.columns)}.")
    problems = []
    for row, value in enumerate(frame[text].tolist()):
        if not isinstance(value, str) or not value.strip():
            problems.append(f"row {row + 1}: column {text!r} is empty")
        elif len(value) > LARGEST:
            problems.append(f"row {row + 1}: column {text!r} has {len(value)} characters, more than {LARGEST}")
    if label:
        problems += [f"row {row + 1}: column {label!r} is empty" for row in frame.index[frame[label].isna()].tolist()]
    raise_all(str(path), problems)
    if frame.empty:
        raise DataError(f"{path} has no rows.")
    labels = frame[label].astype(str).tolist() if label else [""] * len(frame)
    more = frame[list(attributes)].astype(str).to_dict("records") if attributes else [{}] * len(frame)
    return [Example(t, y, a) for t, y, a in zip(frame[text].tolist(), labels, more, strict=True)]
