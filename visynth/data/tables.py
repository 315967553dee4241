"""CSV files as people and other tools write them: separators, encodings, index columns, blanks and missing cells."""

from __future__ import annotations

import csv
import io
import posixpath
from dataclasses import dataclass
from pathlib import Path

from visynth.core.errors import DataError, listing

ENCODINGS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
SEPARATORS = (",", ";", "\t", "|")
MISSING = ("nan", "none", "null", "n/a", "<na>")


@dataclass(frozen=True)
class Table:
    """Column names without blanks around them, and rows with the number of the line that each is in; cells that a row
    lacks are ``""``."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]

    def lower(self) -> Table:
        """The same with column names in lower case."""
        rows = tuple((number, {name.lower(): cell for name, cell in row.items()}) for number, row in self.rows)
        return Table(tuple(name.lower() for name in self.columns), rows)


def read_table(path: Path) -> Table:
    """Read a CSV file.

    Comma, semicolon, tab and bar separate, whichever parts the header into most columns; UTF-8, UTF-16 with a mark and
    Latin-1 are read; a first column without a name (an index, as data frames write it) is left out.

    Raises:
        DataError: no such file, no header, columns of one name, or rows with more cells than the header (all listed).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot open {path} ({error.strerror}).") from error
    text = _decoded(data)
    head = next((line for line in text.splitlines() if line.strip()), "")
    if not head:
        raise DataError(f"{path} has no rows.")
    separator = max(SEPARATORS, key=lambda mark: len(next(csv.reader([head], delimiter=mark))))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:  # a quote that is never closed, a cell that never ends
        raise DataError(f"{path} line {reader.line_num} cannot be read as a table ({error}).") from error
    names = lines[0][1]
    places = [place for place, name in enumerate(names) if name and not (place == 0 and name.lower() == "unnamed: 0")]
    columns = tuple(names[place] for place in places)
    problems = [f"the column {name!r} is there twice" for name in sorted({n for n in columns if columns.count(n) > 1})]
    problems += [
        f"row {number} has {len(cells)} cells, the header {len(names)}"
        for number, cells in lines[1:]
        if len(cells) > len(names) and any(cells[len(names) :])
    ]
    if problems:
        raise DataError(f"{path} cannot be read as a table separated by {separator!r}:\n{listing(problems)}")
    rows = []
    for number, cells in lines[1:]:
        padded = [*cells, *[""] * (len(names) - len(cells))]
        rows.append((number, {names[place]: padded[place] for place in places}))
    return Table(columns, tuple(rows))


def present(value: object) -> str:
    """A cell's text, empty where it says that there is none: ``nan``, ``None`` and the like. Not for classes, which may
    be called so.

    Example:
        >>> present(" 7 "), present("NaN"), present(None)
        ('7', '', '')
    """
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in MISSING else text


def as_path(value: object) -> str:
    """A path with forward slashes and without detours, whichever system wrote it.

    Example:
        >>> as_path("./img/../img/a.png")
        'img/a.png'
    """
    text = present(value).replace("\\", "/")
    return posixpath.normpath(text) if text else ""


def _decoded(data: bytes) -> str:
    for mark, encoding in ENCODINGS:
        if data.startswith(mark):
            return data.decode(encoding)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
