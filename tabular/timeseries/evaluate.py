"""The triad for series: fidelity, utility and privacy of a generator beside two that learn nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import DataError
from visynth.core.progress import Progress, no_progress
from visynth.tabular.columns import Floats
from visynth.tabular.timeseries import metrics
from visynth.tabular.timeseries.base import SeriesGenerator
from visynth.tabular.timeseries.baselines import IndependentChannels, WindowBootstrap
from visynth.tabular.timeseries.encoding import windows_of
from visynth.tabular.timeseries.fitted import check_held_out
from visynth.tabular.timeseries.kernels import Eyes, Scales
from visynth.tabular.timeseries.metrics import Score
from visynth.tabular.timeseries.series import Series
from visynth.tabular.timeseries.utility import drawn_for

HELD_OUT = "held-out series (noise floor)"
FITTED = "real series"
FEWEST = 4
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
        """The figures; None where a figure cannot be had."""
        return {name: _known(value) for name, value in asdict(self).items()}


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _known(own) for name, own in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


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
        DataError: held-out series were fitted, or there are too few of a side.
    """
    few = [f"{len(side)} {name}" for name, side in (("fitted", train), ("held-out", held)) if len(side) < FEWEST]
    if few:
        raise DataError(f"measures need {FEWEST} series a side at least, but there are {' and '.join(few)}.")
    check_held_out(generator.fitted, held)
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
        figures[HELD_OUT if name == FITTED else name] = _figures(
            source, train, held, eyes, name != FITTED, window, seed
        )
    return figures


def _figures(
    source: Series, train: Series, held: Series, eyes: Eyes, synthetic: bool, window: int, seed: int
) -> SourceFigures:
    scales = eyes.scales
    real, fake = eyes(held), eyes(source)
    x, y = _equally_long([number_arrays(scales, side) for side in (held, source)])
    copies = closer = None
    if synthetic:
        copies = metrics.copied(_stretches(scales, source, window), _stretches(scales, train, window, overlapping=True))
        sides = [np.nan_to_num(one) for one in _equally_long([number_arrays(scales, s) for s in (source, train, held)])]
        few = [s[seeding.rng(seed, f"series/few/{n}").permutation(len(s))[:MOST]] for n, s in enumerate(sides)]
        closer = metrics.closer_share(few[0], few[1], few[2], seed)
    return SourceFigures(
        metrics.discriminative(
            real, fake, (held.group_names, source.hashes() if synthetic else source.group_names), seed
        ),
        metrics.predictive(y, x, held.group_names, seed),
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
    """Scaled number channels ``[N, D, L]``, NaN where missing or ended; of other series (events alone) all that judges see."""
    whole = scales.arrays(series)
    places, first = [], 0
    for name in series.schema.numbers:
        places.append(first)
        first += 1 + series.schema.channels[name].nullable
    if not places or scales.factor > 1:  # means of several rows have no gaps
        own = whole[:, places] if places else whole
        return np.where(whole[:, -1:] > 0, own, np.nan)
    out = np.full((len(series), len(places), whole.shape[2]), np.nan)
    for number in range(len(series)):
        values = (series.values(number) - scales.means) / scales.deviations
        out[number, :, : len(values)] = values.T
    return out


def _equally_long(arrays: Sequence[Floats]) -> list[Floats]:
    """Arrays with as many steps as the longest, NaN behind a series' end."""
    steps = max(one.shape[2] for one in arrays)
    return [np.pad(one, ((0, 0), (0, 0), (0, steps - one.shape[2])), constant_values=np.nan) for one in arrays]


def _stretches(scales: Scales, series: Series, window: int, overlapping: bool = False) -> Floats:
    """Windows of all series, one after the other or those that generators see, 0 where a value is missing."""
    starts, owners = windows_of(series, window)
    whole = [np.nan_to_num((series.values(k) - scales.means) / scales.deviations) for k in range(len(series))]
    if not overlapping:
        kept = (starts - series.offsets[owners]) % window == 0
        starts, owners = starts[kept], owners[kept]
    out = np.zeros((len(starts), window, len(scales.means)))
    for place, (start, owner) in enumerate(zip(starts.tolist(), owners.tolist(), strict=True)):
        own = whole[owner][start - int(series.offsets[owner]) :][:window]
        out[place, : len(own)] = own
    return out.transpose(0, 2, 1)


def class_recalls(source: Series, held: Series, fake: Floats, real: Floats) -> dict[str, float]:
    """Recall of each class on held-out series, by a classifier that was trained on the source."""
    labels, truth = np.array(source.labels()), np.array(held.labels())
    classes = sorted(set(labels.tolist()))
    if len(classes) < 2:
        return {}
    codes = np.array([classes.index(name) for name in labels])
    guesses = np.array(classes)[metrics.classes_apart(fake, codes, real).argmax(1)]
    return {name: float((guesses[truth == name] == name).mean()) for name in sorted(set(truth.tolist()))}
