"""The error tree. Every error carries the exit code that the command line ends with (BSD sysexits).

    VisynthError                     70   a bug, or something nobody foresaw
    ├── UsageError (ValueError)      64   an argument that cannot be right: what came, what is allowed, what to do
    │   └── MissingExtra             64   an optional package is not installed
    ├── DataError (ValueError)       65   the input data are bad; all problems of one input are told together
    │   └── IntegrityError           65   a folder of ours was altered, cut short or is of another schema
    ├── OutputError (OSError)        73   cannot write where asked
    ├── OutOfMemory                  70   memory ran out: what was committed is kept
    ├── Diverged                     70   a training left the finite numbers; its last finite state is kept
    ├── LockedError                  75   another process is at work here; try again later
    ├── UnavailableError             75   a server does not answer, or not as it should; try again later
    └── ConflictError                78   the output folder holds work of another plan or configuration

Example:
    >>> raise_all("labels.csv", ["row 3: no such file 'a.png'", "row 9: empty label"])
    Traceback (most recent call last):
    visynth.core.errors.DataError: labels.csv has 2 problems:
      - row 3: no such file 'a.png'
      - row 9: empty label
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SHOWN = 12  # problems listed in full; the rest are counted


class VisynthError(Exception):
    exit_code = 70


class UsageError(VisynthError, ValueError):
    exit_code = 64


class MissingExtra(UsageError):
    pass


class DataError(VisynthError, ValueError):
    exit_code = 65


class IntegrityError(DataError):
    pass


class OutputError(VisynthError, OSError):
    exit_code = 73


class OutOfMemory(VisynthError):
    exit_code = 70


class Diverged(VisynthError):
    exit_code = 70


class LockedError(VisynthError):
    exit_code = 75


class UnavailableError(VisynthError):
    exit_code = 75


class ConflictError(VisynthError):
    exit_code = 78


def listing(problems: Sequence[str], shown: int = SHOWN) -> str:
    """Problems as an indented list that stays readable when there are thousands."""
    lines = [f"  - {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  - and {len(problems) - shown} more")
    return "\n".join(lines)


def raise_all(where: str, problems: Sequence[str], kind: type[VisynthError] = DataError) -> None:
    """Raise one error that tells every problem of an input, or return when there is none."""
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise kind(f"{where} has {count}:\n{listing(problems)}")


def choices(words: Iterable[object]) -> str:
    """Allowed values, quoted and joined, for the end of an error message."""
    return ", ".join(repr(word) for word in words)
