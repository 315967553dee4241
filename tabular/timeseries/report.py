"""What was measured on series, as sections of the one report, with pictures of series, autocorrelations and spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visynth.core.report import Report, bullets, table, text
from visynth.tabular.columns import Floats
from visynth.tabular.timeseries import metrics
from visynth.tabular.timeseries.base import SeriesGenerator
from visynth.tabular.timeseries.evaluate import HELD_OUT, SourceFigures, number_arrays
from visynth.tabular.timeseries.kernels import Scales
from visynth.tabular.timeseries.metrics import Score
from visynth.tabular.timeseries.series import Series
from visynth.tabular.timeseries.sessions import check_sessions
from visynth.tabular.timeseries.utility import drawn_for

LEAD = (
    "How near synthetic series come to real ones that no fit saw, what they are worth, and what they give away. Two generators "
    "that learn nothing stand beside: one gives real stretches again, one puts channels of different series together."
)
DRAWN = 3  # series of a side in a chart
CHARTS = 12
POINTS = 150  # of a line


def series_sections(
    report: Report,
    figures: Mapping[str, SourceFigures],
    generator: SeriesGenerator,
    train: Series,
    held: Series,
    seed: int = 0,
) -> None:
    """Add what was measured on a generator."""
    fake = drawn_for(generator, train, len(held), seed)
    report.section(
        "Fidelity: how near synthetic series come to real ones", _fidelity_table(figures), *_charts(train, held, fake)
    )
    if held.schema.step is None:
        said = [f"{name}: {value:.3f}" for name, value in check_sessions(held, fake).items()]
        note = "Distances of synthetic from held-out series, 0 is best: Kolmogorov-Smirnov and total variation."
        report.section("Events: lengths, gaps, and what follows what", bullets(said), text(note))
    if any(own.accuracy for own in figures.values()):
        report.section("Utility: trained on synthetic, tested on real", _utility_table(figures))
    report.section("Privacy: what they give away", _privacy_table(figures))


def figure(score: Score) -> str:
    """A score with its interval.

    Example:
        >>> figure(Score(0.25, 0.2, 0.3))
        '0.250 [0.200, 0.300]'
    """
    if np.isnan(score.mean):
        return "too few complete steps"
    return f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _fidelity_table(figures: Mapping[str, SourceFigures]) -> dict[str, Any]:
    columns = [
        "series", "discriminative", "predictive", "context FD", "autocorrelation", "spectrum, dB", "cross-correlation", "values",
    ]  # fmt: skip
    rows = []
    for name, own in figures.items():
        rest = [own.context_fd, own.autocorrelation, own.spectrum, own.cross_correlation, own.values]
        rows.append([name, figure(own.discriminative), figure(own.predictive), *(round(v, 3) for v in rest)])
    note = (
        "Against held-out real series, 0 is best but for the predictive error. Discriminative: |accuracy - 0.5| of a classifier on "
        "random convolutional kernels. Predictive: one-step error on real series of a predictor that saw these series alone, in "
        "deviations. Context FD: Fréchet distance of the kernels' features on a few principal components; it compares within this "
        "report only. Values: Kolmogorov-Smirnov. Intervals: bootstrap over series."
    )
    return table(columns, rows, note)


def _utility_table(figures: Mapping[str, SourceFigures]) -> dict[str, Any]:
    classes = sorted({name for own in figures.values() for name in own.accuracy})
    rows = [
        ["real series (fitted)" if name == HELD_OUT else name, *(round(own.accuracy.get(c, 0.0), 3) for c in classes),
         round(float(np.mean([own.accuracy.get(c, 0.0) for c in classes])), 3)]
        for name, own in figures.items()
        if own.accuracy
    ]  # fmt: skip
    note = "Recall of each class on held-out real series, and its mean, by a classifier that was trained on these series alone."
    return table(["trained on", *classes, "mean"], rows, note)


def _privacy_table(figures: Mapping[str, SourceFigures]) -> dict[str, Any]:
    rows = [
        [name, f"{own.copies:.1%}", "{:.3f} [{:.3f}, {:.3f}]".format(*own.closer)]
        for name, own in figures.items()
        if own.closer is not None and own.copies is not None
    ]
    note = (
        "Copies: series that equal a fitted one in every value, to a thousandth of its deviation. Nearer: share of series "
        "that are nearer, by dynamic time warping, to "
        "a fitted than to a held-out series; 0.5 where nothing was copied. This is a smoke test: generators that pass it have been "
        "attacked with success, and no noise was added by design."
    )
    return table(["series", "copies", "nearer to fitted than to held-out"], rows, note)


def _charts(train: Series, held: Series, fake: Series) -> list[dict[str, Any]]:
    scales = Scales.of(train)
    names = held.schema.numbers[:CHARTS]
    if not names:
        return []
    classes = sorted(set(held.labels()))[:4]
    items = []
    for label in classes:
        sides = [[k for k, own in enumerate(side.labels()) if own == label][:DRAWN] for side in (held, fake)]
        for name in names[: max(CHARTS // len(classes), 1)]:
            lines = [
                [_line(side.channels[name][side.rows(k)]) for k in own]
                for side, own in zip((held, fake), sides, strict=True)
            ]
            items.append({"title": f"{name}{f', {label}' if label else ''}", "real": lines[0], "fake": lines[1]})
    x, y = (number_arrays(scales, side) for side in (held, fake))
    curves = [
        {
            "kind": "curves",
            "items": items,
            "note": f"Up to {DRAWN} series a side. Grey: held-out real. Blue: synthetic.",
        }
    ]
    functions = (
        ("Autocorrelation by lag", metrics.autocorrelation),
        ("Log power by frequency, dB", lambda own: 10 * np.log10(metrics.spectrum(own) + 1e-12)),
    )
    for title, function in functions:
        first, second = function(x), function(y)
        items = [{"title": name, "real": [_line(first[k])], "fake": [_line(second[k])]} for k, name in enumerate(names)]
        curves.append({"kind": "curves", "items": items, "note": title})
    return curves


def _line(values: Floats | Sequence[float]) -> list[float | None]:
    """Values as a line of a chart; a missing one is None."""
    own = np.asarray(values, np.float64)[:POINTS]
    return [None if np.isnan(value) else round(float(value), 4) for value in own]
