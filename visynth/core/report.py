"""The report: one schema for what was measured, as JSON for machines and as one self-contained page for people.

A report is a list of *sections*. Each has a title and blocks; a block is a dict with a ``kind``: ``text``, ``table``,
``arms`` (estimates with intervals, drawn), ``gallery`` (images with captions), ``list``, ``histograms``, ``heatmaps``,
``scatter``, ``lines`` or ``curves`` (see :mod:`visynth.core.charts`). Verdicts stand apart, at
the top, one per class, so that a gate can read them without knowing the sections.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from visynth.core import charts
from visynth.core.errors import IntegrityError
from visynth.core.files import readable_json
from visynth.core.folders import put_files
from visynth.core.pictures import data_uri, fit_square

FILES = ("report.html", "report.json")
SCHEMA = "visynth.report/1"
LEAD = "One answer per class, measured on real images of groups that no training saw. Only a shown benefit is a yes."
ANSWERS = ("helps", "does not", "cannot tell", "undertrained", "not measured")


@dataclass(frozen=True)
class ClassVerdict:
    """The answer for one class.

    Attributes:
        label: class name.
        answer: ``"helps"``, ``"does not"``, ``"cannot tell"``, ``"undertrained"`` or ``"not measured"``.
        reason: one sentence with the numbers.
        next: what to do about it.
        numbers: the figures behind it.
        aside: nobody asked about this class.
    """

    label: str
    answer: str
    reason: str
    next: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    aside: bool = False

    @property
    def headline(self) -> str:
        """The answer first: only a shown benefit is a yes, only a shown harm or nothing to gain is a no."""
        answers = {
            "helps": "yes, synthesis helps",
            "does not": "no, synthesis does not help",
            "cannot tell": "cannot tell, a benefit was not shown",
            "undertrained": "undertrained, the generator saw too few images to be judged",
            "not measured": "not measured",
        }
        return f"{self.label}: {answers[self.answer]}"


@dataclass
class Report:
    """Verdicts, measurements and their conditions.

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
    lead: str = LEAD  # the sentence under the title

    def section(self, title: str, *blocks: Mapping[str, Any]) -> None:
        """Append a section."""
        self.sections.append({"title": title, "blocks": [dict(block) for block in blocks]})

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "subject": self.subject,
            "verdicts": [asdict(v) for v in self.verdicts],
            # Images stay in the page: the JSON is for programs.
            "sections": [
                {**s, "blocks": [{k: v for k, v in b.items() if k != "pictures"} for b in s["blocks"]]}
                for s in self.sections
            ],
            "conditions": self.conditions,
            "lead": self.lead,
        }

    def write(self, folder: str | Path) -> None:
        """Write ``report.json`` and ``report.html`` into a folder, each complete or not at all.

        Raises:
            OutputError: files of these names are there that visynth did not write.
        """
        put_files(folder, {"report.html": page(self).encode(), "report.json": readable_json(self.to_json())})


def read_report(path: str | Path) -> Report:
    """A report from its folder or its JSON file (without images).

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
    lead = data.get("lead", LEAD)
    return Report(data["kind"], data["subject"], verdicts, data["sections"], data["conditions"], lead)


def environment() -> dict[str, str]:
    """Versions that a figure depends on."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in (
        "visynth",
        "torch",
        "pytorch-lightning",
        "numpy",
        "opencv-python-headless",
        "scikit-learn",
        "timm",
        "albumentations",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


# -- blocks ----------------------------------------------------------------------------------------------------------


def text(words: str) -> dict[str, Any]:
    return {"kind": "text", "text": words}


def bullets(lines: Sequence[str]) -> dict[str, Any]:
    return {"kind": "list", "lines": list(lines)}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> dict[str, Any]:
    return {"kind": "table", "columns": list(columns), "rows": [list(row) for row in rows], "note": note}


def arms(title: str, rows: Sequence[Mapping[str, Any]], note: str = "", metric: str = "AP") -> dict[str, Any]:
    """Rows with ``name``, ``mean``, ``low``, ``high``, ``highlight`` and further columns under ``more``."""
    return {"kind": "arms", "title": title, "rows": [dict(row) for row in rows], "note": note, "metric": metric}


def lines(
    title: str,
    points: Sequence[tuple[float, float]],
    others: Mapping[str, float],
    x: str,
    y: str,
    note: str = "",
) -> dict[str, Any]:
    """A curve through points, with further values by name as lines across."""
    return {
        "kind": "lines", "title": title, "points": [list(p) for p in points], "others": dict(others), "x": x, "y": y,
        "note": note,
    }  # fmt: skip


def gallery(captions: Sequence[str], images: Sequence[Any], columns: int, note: str = "") -> dict[str, Any]:
    """RGB uint8 images with captions, ``columns`` in a row."""
    return {"kind": "gallery", "captions": list(captions), "pictures": list(images), "columns": columns, "note": note}


# -- the page ----------------------------------------------------------------------------------------------------------

STYLE = """
:root{--ink:#1c2330;--soft:#5b6573;--line:#dfe3e8;--paper:#fff;--back:#f4f6f8;--yes:#14714a;--no:#a63a1f;
--maybe:#8a6100;--mark:#2458b3}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}h1{font-size:26px;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:18px;
margin:0 0 12px}h3{font-size:15px;margin:18px 0 6px}
p{margin:6px 0}.sub{color:var(--soft);margin-bottom:20px}section{background:var(--paper);
border:1px solid var(--line);border-radius:8px;padding:20px 22px;margin:16px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:14px;margin:18px 0}
.card{background:var(--paper);border:1px solid var(--line);border-left:6px solid var(--maybe);border-radius:8px;
padding:14px 18px}
.card.yes{border-left-color:var(--yes)}.card.no{border-left-color:var(--no)}.card b{font-size:17px}
.card .next{color:var(--soft);margin-top:8px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}th{text-align:left;
font-weight:600;color:var(--soft);border-bottom:1px solid var(--line);padding:5px 12px 5px 0}
td{border-bottom:1px solid var(--line);padding:5px 12px 5px 0;vertical-align:top}tr.mark td{font-weight:600;
color:var(--mark)}.scroll{overflow-x:auto}.arms td{white-space:nowrap}.arms th{vertical-align:bottom;max-width:110px}
.arms td,.arms th{padding-right:14px}.arms .wide{width:240px;max-width:none;padding:0 14px 0 0}
.note{color:var(--soft);font-size:13px;margin-top:8px}.gallery{display:grid;gap:10px}figure{margin:0}
figure img{width:100%;height:auto;border:1px solid var(--line);border-radius:4px;display:block;image-rendering:auto}
.charts{display:flex;flex-wrap:wrap;gap:16px;margin-top:8px}.charts figure{width:250px}.charts.wide figure{width:420px}
.charts svg{width:100%;height:auto}.charts figcaption{font-weight:600}
figcaption{font-size:12px;color:var(--soft);overflow-wrap:break-word;line-height:1.35;margin-top:3px}svg{display:block}
ul{margin:6px 0;padding-left:20px}
details summary{cursor:pointer;color:var(--soft)}
code{background:var(--back);padding:1px 5px;border-radius:4px;font-size:13px;overflow-wrap:anywhere}
"""


def page(report: Report) -> str:
    """The whole document as text."""
    cards = "".join(_card(v) for v in report.verdicts if not v.aside)
    aside = "".join(_card(v) for v in report.verdicts if v.aside)
    more = f'<details><summary>Other classes</summary><div class="cards">{aside}</div></details>' if aside else ""
    sections = "".join(
        f"<section><h2>{escape(s['title'])}</h2>{''.join(_block(b) for b in s['blocks'])}</section>"
        for s in report.sections
    )
    conditions = "".join(
        f"<tr><td>{escape(str(k))}</td><td>{escape(_plain(v))}</td></tr>" for k, v in report.conditions.items()
    )
    asked = f"Does synthesis help on {report.subject}?" if report.verdicts else f"{report.kind}: {report.subject}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1">'
        f"<title>visynth: {escape(report.subject)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(asked[:1].upper() + asked[1:])}</h1>"
        f'<p class="sub">{escape(report.lead)}</p>'
        f'<div class="cards">{cards}</div>{more}{sections}'
        f"<section><h2>Conditions</h2><div class='scroll'><table>{conditions}</table></div></section></main></body></html>\n"
    )


def _card(verdict: ClassVerdict) -> str:
    tone = {"helps": "yes", "does not": "no"}.get(verdict.answer, "maybe")
    more = f'<p class="next">Next: {escape(verdict.next)}.</p>' if verdict.next else ""
    return f'<div class="card {tone}"><b>{escape(verdict.headline)}</b><p>{escape(verdict.reason)}.</p>{more}</div>'


def _block(block: Mapping[str, Any]) -> str:
    blocks = {"text": _text, "list": _list, "table": _table, "arms": _arms, "gallery": _gallery}
    drawn = {
        "histograms": charts.histograms,
        "heatmaps": charts.heatmaps,
        "scatter": charts.scatter,
        "lines": charts.lines,
        "curves": charts.curves,
    }
    return (blocks | drawn)[block["kind"]](block)


def _text(block: Mapping[str, Any]) -> str:
    return f"<p>{escape(block['text'])}</p>"


def _list(block: Mapping[str, Any]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in block["lines"]) + "</ul>"


def _table(block: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{escape(str(c))}</th>" for c in block["columns"])
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_plain(cell))}</td>" for cell in row) + "</tr>" for row in block["rows"]
    )
    return f"<div class='scroll'><table><tr>{head}</tr>{rows}</table></div>{_note(block)}"


def _arms(block: Mapping[str, Any]) -> str:
    """A table whose third column draws each estimate with its interval on one common axis from 0 to 1."""
    more = list(dict.fromkeys(key for row in block["rows"] for key in row.get("more", {})))
    head = (
        f"<th>arm</th><th>{escape(block.get('metric', 'AP'))} [95 % CI]</th><th class='wide'>{_axis()}</th>"
        + "".join(f"<th>{escape(key)}</th>" for key in more)
    )
    rows = []
    for row in block["rows"]:
        cells = "".join(f"<td>{escape(_plain(row.get('more', {}).get(key, '')))}</td>" for key in more)
        limits = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
        tone = ' class="mark"' if row.get("highlight") else ""
        rows.append(
            f"<tr{tone}><td>{escape(row['name'])}</td><td>{row['mean']:.3f}{limits}</td><td "
            f"class='wide'>{_whisker(row)}</td>{cells}</tr>"
        )
    body = f"<div class='scroll'><table class='arms'><tr>{head}</tr>{''.join(rows)}</table></div>"
    return f"<h3>{escape(block['title'])}</h3>{body}{_note(block)}"


WIDTH, TICKS = 240, (0, 0.25, 0.5, 0.75, 1)  # of the common axis


def _x(value: float) -> float:
    return 10 + min(max(value, 0.0), 1.0) * (WIDTH - 20)


def _axis() -> str:
    labels = "".join(
        f'<text x="{_x(v):.1f}" y="11" font-size="11" text-anchor="middle" fill="#5b6573">{v:g}</text>' for v in TICKS
    )
    return f'<svg width="{WIDTH}" height="15" role="img" aria-label="AP from 0 to 1">{labels}</svg>'


def _whisker(row: Mapping[str, Any], height: int = 26) -> str:
    colour, x, width = "#2458b3" if row.get("highlight") else "#5b6573", _x, WIDTH
    grid = "".join(f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="0" y2="{height}" stroke="#eceff2"/>' for v in TICKS)
    bar = (
        ""
        if row["low"] is None
        else f'<line x1="{x(row["low"]):.1f}" x2="{x(row["high"]):.1f}" y1="{height / 2}" y2="{height / 2}" '
        f'stroke="{colour}" stroke-width="2"/>'
    )
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="AP {row["mean"]:.3f}">{grid}{bar}<circle '
        f'cx="{x(row["mean"]):.1f}" cy="{height / 2}" r="4.5" fill="{colour}"/></svg>'
    )


def _gallery(block: Mapping[str, Any]) -> str:
    figures = "".join(
        f'<figure><img alt="{escape(caption)}" src="{data_uri(fit_square(image, min(220, max(image.shape[:2]))))}">'
        f"<figcaption>{_breakable(caption)}</figcaption></figure>"
        for caption, image in zip(block["captions"], block.get("pictures", []), strict=False)
    )
    return (
        '<div class="gallery" '
        f'style="grid-template-columns:repeat({block["columns"]},1fr)">{figures}</div>{_note(block)}'
    )


def _breakable(name: str) -> str:
    """A file's name that breaks after its folders and words, not within them."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _note(block: Mapping[str, Any]) -> str:
    return f'<p class="note">{escape(block["note"])}</p>' if block.get("note") else ""


def _plain(value: Any) -> str:
    """A value as people read it: a small one is not told as none.

    Example:
        >>> _plain(0.0002), _plain([0.5, 0.0]), _plain({"lr": 1.5e-5})
        ('0.0002', '0.500, 0.000', 'lr 1.5e-05')
    """
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.0005 else f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(v) for v in value)
    return str(value)
