"""The report: one schema for what was measured, as JSON for machines and as one self-contained page for people.

A report is a list of *sections*. Each has a title and blocks; a block is a dict with a ``kind``: ``text``, ``table``,
``arms`` (estimates with intervals, drawn), ``gallery`` (pictures with captions) or ``list``. Verdicts stand apart, at the
top, one per class, so that a gate can read them without knowing the sections.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from visynth.errors import IntegrityError
from visynth.files import readable_json
from visynth.folders import put_files

FILES = ("report.html", "report.json")
SCHEMA = "visynth.report/1"
ANSWERS = ("helps", "does not", "cannot tell", "not measured")


@dataclass(frozen=True)
class ClassVerdict:
    """The answer for one class.

    Attributes:
        label: class name.
        answer: ``"helps"``, ``"does not"``, ``"cannot tell"`` or ``"not measured"``.
        reason: one sentence with the numbers.
        next: what to do about it.
        numbers: the figures behind it.
    """

    label: str
    answer: str
    reason: str
    next: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """Yes or no first: only a shown benefit is a yes."""
        word = "yes" if self.answer == "helps" else "no"
        told = {
            "helps": "synthesis helps",
            "does not": "synthesis does not help",
            "cannot tell": "a benefit was not shown",
            "not measured": "not measured",
        }
        return f"{self.label}: {word}, {told[self.answer]}"


@dataclass
class Report:
    """What was measured, under which conditions, and what follows.

    Example:
        >>> report = Report("utility", "tiles", verdicts=[ClassVerdict("crack", "does not", "AP -0.10")])
        >>> report.verdicts[0].headline
        'crack: no, synthesis does not help'
    """

    kind: str
    subject: str
    verdicts: list[ClassVerdict] = field(default_factory=list)
    sections: list[dict[str, Any]] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)

    def section(self, title: str, *blocks: Mapping[str, Any]) -> None:
        """Append a section."""
        self.sections.append({"title": title, "blocks": [dict(block) for block in blocks]})

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "subject": self.subject,
            "verdicts": [asdict(v) for v in self.verdicts],
            # Pictures stay in the page: the JSON is for programs.
            "sections": [
                {**s, "blocks": [{k: v for k, v in b.items() if k != "pictures"} for b in s["blocks"]]}
                for s in self.sections
            ],
            "conditions": self.conditions,
        }

    def write(self, folder: str | Path) -> None:
        """Write ``report.json`` and ``report.html`` into a folder, each complete or not at all.

        Raises:
            OutputError: files of these names are there that visynth did not write.
        """
        from visynth.report_page import page

        put_files(folder, {"report.html": page(self).encode(), "report.json": readable_json(self.to_json())})


def read_report(path: str | Path) -> Report:
    """A report from its folder or its JSON file (without pictures).

    Raises:
        IntegrityError: missing, not JSON, or of another schema.
    """
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{file} cannot be read as a report ({error}).") from error
    if data.get("schema") != SCHEMA:
        raise IntegrityError(f"{file} has schema {data.get('schema')!r}; this version reads {SCHEMA!r}.")
    verdicts = [ClassVerdict(**v) for v in data["verdicts"]]
    return Report(data["kind"], data["subject"], verdicts, data["sections"], data["conditions"])


def environment() -> dict[str, str]:
    """Versions that a figure depends on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("visynth", "torch", "numpy", "opencv-python-headless", "scikit-learn", "timm", "albumentations"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# -- blocks ----------------------------------------------------------------------------------------------------------


def text(words: str) -> dict[str, Any]:
    return {"kind": "text", "text": words}


def bullets(lines: Sequence[str]) -> dict[str, Any]:
    return {"kind": "list", "lines": list(lines)}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> dict[str, Any]:
    return {"kind": "table", "columns": list(columns), "rows": [list(row) for row in rows], "note": note}


def arms(title: str, rows: Sequence[Mapping[str, Any]], note: str = "") -> dict[str, Any]:
    """Rows with ``name``, ``mean``, ``low``, ``high``, ``highlight`` and further columns under ``more``."""
    return {"kind": "arms", "title": title, "rows": [dict(row) for row in rows], "note": note}


def gallery(captions: Sequence[str], pictures: Sequence[Any], columns: int, note: str = "") -> dict[str, Any]:
    """RGB uint8 pictures with captions, ``columns`` in a row."""
    return {"kind": "gallery", "captions": list(captions), "pictures": list(pictures), "columns": columns, "note": note}
