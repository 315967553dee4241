"""Small charts of a report as inline SVG: histograms of two sides, matrices as heat maps, points of two sides, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

REAL, FAKE, SOFT, LINE = "#5b6573", "#2458b3", "#5b6573", "#dfe3e8"
WIDTH, HEIGHT = 250, 120
LABELS = 6  # along an axis
SHOWN = 14  # characters of a label


def histograms(block: Mapping[str, Any]) -> str:
    """One small chart for each column: shares of real (grey) and synthetic (blue) rows."""
    return f'<div class="charts">{"".join(_histogram(item) for item in block["items"])}</div>{_note(block)}'


def _histogram(item: Mapping[str, Any]) -> str:
    real, fake, labels = item["real"], item["fake"], item["labels"]
    top = max([*real, *fake, 1e-9])
    step = WIDTH / max(len(real), 1)
    bars = []
    for place, (r, f) in enumerate(zip(real, fake, strict=True)):
        for value, colour, shift in ((r, REAL, 0.1), (f, FAKE, 0.5)):
            height = HEIGHT * value / top
            bars.append(
                f'<rect x="{(place + shift) * step:.1f}" y="{HEIGHT - height:.1f}" width="{max(step * 0.38, 0.6):.1f}" '
                f'height="{height:.1f}" fill="{colour}"/>'
            )
    every = max(1, -(-len(labels) // LABELS))
    ticks = "".join(
        f'<text x="{(place + 0.5) * step:.1f}" y="{HEIGHT + 13}" font-size="9" text-anchor="middle" fill="{SOFT}">'
        f"{escape(_short(label, SHOWN if len(labels) <= 3 else 8))}</text>"
        for place, label in enumerate(labels)
        if place % every == 0
    )
    title = escape(item["title"])
    return (
        f'<figure><figcaption>{title}</figcaption><svg width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="-14 0 {WIDTH + 28} {HEIGHT + 18}" role="img" '
        f'aria-label="{title}, real and synthetic"><line x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}" stroke="{LINE}"/>'
        f"{''.join(bars)}{ticks}</svg></figure>"
    )


def heatmaps(block: Mapping[str, Any]) -> str:
    """Square matrices with values in [0, 1] side by side, with one list of names."""
    names, parts = block["names"], []
    for title, matrix in block["matrices"].items():
        parts.append(_heatmap(title, names, matrix))
    return f'<div class="charts wide">{"".join(parts)}</div>{_note(block)}'


def _heatmap(title: str, names: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    count, side, margin = len(names), 320, 96
    step = side / max(count, 1)
    cells = "".join(
        f'<rect x="{margin + j * step:.1f}" y="{i * step:.1f}" width="{step:.2f}" height="{step:.2f}" '
        f'fill="{_shade(value)}"><title>{escape(names[i])}, {escape(names[j])}: {value:.2f}</title></rect>'
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
    )
    size = max(6.0, min(10.0, step * 0.8))
    labels = "".join(
        f'<text x="{margin - 5}" y="{(i + 0.5) * step + size / 3:.1f}" font-size="{size:.1f}" text-anchor="end" '
        f'fill="{SOFT}">{escape(_short(name, 18))}</text>'
        for i, name in enumerate(names)
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg width="{side + margin}" height="{side}" '
        f'viewBox="0 0 {side + margin} {side}" role="img" '
        f'aria-label="{escape(title)}">{cells}{labels}</svg></figure>'
    )


def _shade(value: float) -> str:
    """White at 0, the mark's blue at 1."""
    share = min(max(value, 0.0), 1.0)
    channels = [round(255 + share * (end - 255)) for end in (0x24, 0x58, 0xB3)]
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def scatter(block: Mapping[str, Any]) -> str:
    """Points of real (grey) and synthetic (blue) rows, side by side on one scale."""
    sides = {"real": block["real"], "synthetic": block["fake"]}
    points = [point for side in sides.values() for point in side]
    low = [min(p[axis] for p in points) for axis in (0, 1)]
    span = [max(p[axis] for p in points) - low[axis] or 1.0 for axis in (0, 1)]
    parts = []
    for (name, side), colour in zip(sides.items(), (REAL, FAKE), strict=True):
        dots = "".join(
            f'<circle cx="{300 * (x - low[0]) / span[0]:.1f}" cy="{220 - 220 * (y - low[1]) / span[1]:.1f}" r="1.8" '
            f'fill="{colour}" fill-opacity="0.45"/>'
            for x, y in side
        )
        parts.append(
            f'<figure><figcaption>{escape(name)}</figcaption><svg width="312" height="232" viewBox="-6 -6 312 232" role="img" '
            f'aria-label="{escape(block["title"])}, {escape(name)}">{dots}</svg></figure>'
        )
    return f'<h3>{escape(block["title"])}</h3><div class="charts wide">{"".join(parts)}</div>{_note(block)}'


def lines(block: Mapping[str, Any]) -> str:
    """A curve through points, each with its value, and further values as dashed lines across with their names."""
    points, others = block["points"], block["others"]
    values = [y for _, y in points] + list(others.values())
    low, high = min(values), max(values)
    room = max(high - low, 0.02) * 0.25
    low, span = low - room, (high - low) + 2 * room
    left, right = min([x for x, _ in points], default=0.0), max([x for x, _ in points], default=1.0)
    width, height, edge = 460, 190, 44

    def place(x: float, y: float) -> tuple[float, float]:
        return edge + (width - 2 * edge) * (x - left) / ((right - left) or 1.0), 10 + height * (1 - (y - low) / span)

    drawn = [place(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
    parts = [f'<polyline points="{path}" fill="none" stroke="{FAKE}" stroke-width="2"/>'] if len(drawn) > 1 else []
    every = -(-len(points) // 8)  # more numbers than that would run into each other
    for k, ((x, y), (share, value)) in enumerate(zip(drawn, points, strict=True)):
        if k % every:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{FAKE}"/>')
            continue
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{FAKE}"/>',
            f'<text x="{x:.1f}" y="{y - 9:.1f}" font-size="11" text-anchor="middle" fill="{FAKE}">{value:.3f}</text>',
            f'<text x="{x:.1f}" y="{height + 26}" font-size="11" text-anchor="middle" fill="{SOFT}">{share:g}</text>',
        ]
    spots = _apart([place(left, value)[1] for value in others.values()], 13.0)
    for (name, value), spot in zip(others.items(), spots, strict=True):
        y = place(left, value)[1]
        parts += [
            f'<line x1="{edge}" x2="{width - edge + 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="{REAL}" stroke-dasharray="4 4"/>',
            f'<text x="{width - edge + 12}" y="{spot + 4:.1f}" font-size="11" fill="{SOFT}">{escape(name)} {value:.3f}</text>',
        ]
    label = escape(f"{block['y']} by {block['x']}")
    return (
        f'<h3>{escape(block["title"])}</h3><svg width="{width + 150}" height="{height + 46}" role="img" '
        f'viewBox="0 0 {width + 150} {height + 46}" style="max-width:100%" aria-label="{label}">'
        f'<line x1="{edge}" x2="{width - edge}" y1="{height + 10}" y2="{height + 10}" stroke="{LINE}"/>{"".join(parts)}'
        f'<text x="{width / 2:.0f}" y="{height + 42}" font-size="11" text-anchor="middle" fill="{SOFT}">'
        f"{escape(block['x'])}</text></svg>{_note(block)}"
    )


def curves(block: Mapping[str, Any]) -> str:
    """Small charts with several lines each: real (grey) and synthetic (blue) ones on one scale."""
    return f'<div class="charts">{"".join(_curves(item) for item in block["items"])}</div>{_note(block)}'


def _curves(item: Mapping[str, Any]) -> str:
    sides = [(line, REAL) for line in item["real"]] + [(line, FAKE) for line in item["fake"]]
    values = [value for line, _ in sides for value in line if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    span = (high - low) or 1.0
    parts = []
    for line, colour in sides:
        step = WIDTH / max(len(line) - 1, 1)
        whole: list[list[str]] = [[]]
        for place, value in enumerate(line):
            if value is None:  # a gap parts the line
                whole.append([])
            else:
                whole[-1].append(f"{place * step:.1f},{HEIGHT * (1 - (value - low) / span):.1f}")
        parts += [
            f'<polyline points="{" ".join(own)}" fill="none" stroke="{colour}" stroke-opacity="0.7"/>'
            for own in whole
            if own
        ]
    title = escape(item["title"])
    marks = "".join(
        f'<text x="-4" y="{y}" font-size="9" text-anchor="end" fill="{SOFT}">{value:.3g}</text>'
        for y, value in ((9, high), (HEIGHT, low))
    )
    return (
        f'<figure><figcaption>{title}</figcaption><svg width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="-34 0 {WIDTH + 44} {HEIGHT + 4}" role="img" aria-label="{title}, real and synthetic">{marks}{"".join(parts)}'
        "</svg></figure>"
    )


def _apart(places: Sequence[float], least: float) -> list[float]:
    """Places moved down so far that each is apart from the one above it.

    Example:
        >>> _apart([10.0, 12.0, 40.0], 13.0)
        [10.0, 23.0, 40.0]
    """
    found = list(places)
    above = -least
    for k in sorted(range(len(found)), key=lambda k: places[k]):
        above = found[k] = max(places[k], above + least)
    return found


def _short(label: str, length: int) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def _note(block: Mapping[str, Any]) -> str:
    return f'<p class="note">{escape(block["note"])}</p>' if block.get("note") else ""
