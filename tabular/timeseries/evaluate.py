"""The triad for series: fidelity, utility and privacy of a generator beside two that learn nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.progress import Progress, no_progress
from visynth.tabular.columns import Floats
from visynth.tabular.timeseries import metrics
from visynth.tabular.timeseries.base import SeriesGenerator, check_held_out
from visynth.tabular.timeseries.baselines import IndependentChannels, WindowBootstrap
from visynth.tabular.timeseries.kernels import Eyes, Scales
from visynth.tabular.timeseries.metrics import Score
from visynth.tabular.timeseries.series import Series
from visynth.tabular.timeseries.utility import drawn_for

HELD_OUT = "held-out series (noise floor)"
FITTED = "real series"
MOST = 60  # series a side that warping distances are worked out for


@dataclass(frozen=True)
class SourceFigures:
    """What was measured on one source of series, against held-out real ones.

    Attributes:
        discriminative: ``|accuracy - 0.5|`` of a classifier.
        predictive: error of one-step forecasts by a predictor that saw the source alone.
        context_fd: Fréchet distance of features.
        autocorrelation: mean absolute difference.
        spectrum: difference of log power in decibel.
        cross_correlation: mean absolute difference over pairs of channels.
        values: mean Kolmogorov-Smirnov distance of the channels' values.
        accuracy: of a classifier that was trained on the source, by class; empty without a target.
        closer: share of series nearer to fitted than to held-out ones, with its interval.
        copies: share of series that equal a fitted one; None of real ones.
    """

    discriminative: Score
    predictive: Score
    context_fd: float
    autocorrelation: float
    spectrum: float
    cross_correlation: float
    values: float
    accuracy: Mapping[str, float]
    closer: tuple[float, float, float] | None
    copies: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_series(
    generator: SeriesGenerator,
    train: Series,
    held: Series,
    *,
    seed: int = 0,
    others: Mapping[str, SeriesGenerator] | None = None,
    progress: Progress = no_progress,
) -> dict[str, SourceFigures]:
    """Measure a generator, the two baselines, and real series beside held-out ones.

    Args:
        generator: fitted to ``train``.
        train: the series that it was fitted to.
        held: real series of other entities.
        seed: of samples and measures.
        others: further generators by name, fitted to ``train``.
        progress: receives lines.

    Returns:
        Figures by source.

    Raises:
        DataError: held-out series were fitted.
    """
    check_held_out(generator, held)
    window = generator.encoding.window
    sources: dict[str, Series] = {FITTED: train}
    generators = {generator.network: generator, **(others or {})}
    for kind in (WindowBootstrap, IndependentChannels):
        if kind.network not in generators:
            generators[kind.network] = kind().fit(train, window=window, members="none")
    for name, one in generators.items():
        sources[name] = drawn_for(one, train, len(train), seed)
    eyes = Eyes.of(train, seed=seed)
    figures = {}
    for name, source in sources.items():
        progress(f"  measuring {name}")
        figures[HELD_OUT if name == FITTED else name] = _figures(source, train, held, eyes, name != FITTED, seed)
    return figures


def _figures(source: Series, train: Series, held: Series, eyes: Eyes, synthetic: bool, seed: int) -> SourceFigures:
    scales = eyes.scales
    real, fake = eyes(held), eyes(source)
    x, y = (number_arrays(scales, side) for side in (held, source))
    copies = closer = None
    if synthetic:
        sides = [number_arrays(scales, side) for side in (source, train, held)]
        copies = metrics.copied(sides[0], sides[1])
        few = [s[seeding.rng(seed, f"series/few/{n}").permutation(len(s))[:MOST]] for n, s in enumerate(sides)]
        closer = metrics.closer_share(few[0], few[1], few[2], seed)
    return SourceFigures(
        metrics.discriminative(real, fake, seed),
        metrics.predictive(y, x, seed),
        metrics.context_fd(real, fake),
        metrics.autocorrelation_distance(x, y),
        metrics.spectrum_distance(x, y),
        metrics.cross_correlation_distance(x, y),
        metrics.marginal_ks(x, y),
        class_recalls(source, held, fake, real),
        closer,
        copies,
    )


def number_arrays(scales: Scales, series: Series) -> Floats:
    """Scaled number channels ``[N, D, steps]``, of other series (events alone) all that judges see."""
    whole = scales.arrays(series)
    places, first = [], 0
    for name in series.schema.numbers:
        places.append(first)
        first += 1 + series.schema.channels[name].nullable
    return np.asarray(whole[:, places] if places else whole)


def class_recalls(source: Series, held: Series, fake: Floats, real: Floats) -> dict[str, float]:
    """Recall of each class on held-out series, by a classifier that was trained on the source."""
    labels, truth = np.array(source.labels()), np.array(held.labels())
    classes = sorted(set(labels.tolist()))
    if len(classes) < 2:
        return {}
    codes = np.array([classes.index(name) for name in labels])
    guesses = np.array(classes)[metrics.classes_apart(fake, codes, real).argmax(1)]
    return {name: float((guesses[truth == name] == name).mean()) for name in sorted(set(truth.tolist()))}
