"""Metrics of series against closed forms, outside references and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import periodogram

from tests.tabular.timeseries.sets import waves
from visynth.tabular.timeseries import IndependentChannels, WindowBootstrap, from_arrays, metrics
from visynth.tabular.timeseries.augment import augmented
from visynth.tabular.timeseries.evaluate import HELD_OUT, measure_series
from visynth.tabular.timeseries.kernels import Eyes, Kernels


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def walk(phi: float, count: int = 400, steps: int = 400) -> np.ndarray:
    x = noise(count, 1, steps)
    for step in range(1, steps):
        x[:, :, step] += phi * x[:, :, step - 1]
    return x


def test_autocorrelation_of_an_autoregressive_process_is_a_power() -> None:
    found = metrics.autocorrelation(walk(0.7, 100, 3000), 5)[0]
    np.testing.assert_allclose(found, 0.7 ** np.arange(1, 6), atol=0.02)


def test_spectrum_is_scipys_periodogram() -> None:
    x = noise(3, 2, 64)
    _, power = periodogram(x, window=np.hanning(64), detrend="constant", scaling="spectrum", axis=2)
    theirs = power[:, :, 1:-1].mean(0) * np.hanning(64).sum() ** 2 / 2  # one-sided, and as an average
    np.testing.assert_allclose(metrics.spectrum(x)[:, :-1], theirs, rtol=1e-10)


def test_a_channel_that_is_ten_times_as_loud_is_twenty_decibel_away() -> None:
    x = noise(50, 1, 64)
    assert metrics.spectrum_distance(x, x) == 0
    assert metrics.spectrum_distance(x, 10 * x) == pytest.approx(20, abs=0.01)


def test_cross_correlation_is_that_of_numpy() -> None:
    x = noise(5, 3, 40)
    x[:, 2] = x[:, 0] + 0.1 * x[:, 1]
    np.testing.assert_allclose(
        metrics.cross_correlation(x), np.corrcoef(x.transpose(1, 0, 2).reshape(3, -1)), rtol=1e-10
    )
    assert metrics.cross_correlation_distance(x[:, :1], x[:, :1]) == 0


def test_values_of_shifted_normals_have_the_known_distance() -> None:
    x = noise(1, 1, 100_000)
    assert metrics.marginal_ks(x, noise(1, 1, 100_000, seed=1) + 1) == pytest.approx(0.3829, abs=0.01)  # 2 Phi(1/2) - 1


def test_frechet_of_normals_has_its_closed_form() -> None:
    x = noise(200_000, 2)
    y = noise(200_000, 2, seed=1) @ np.diag([2.0, 1.0]) + np.array([0.0, 3.0])
    assert metrics.frechet(x, y) == pytest.approx(9 + 1, abs=0.1)


def plain_dtw(a: np.ndarray, b: np.ndarray, width: int) -> float:
    steps = a.shape[1]
    total = np.full((steps + 1, steps + 1), np.inf)
    total[0, 0] = 0
    for i in range(steps):
        for j in range(max(0, i - width), min(steps, i + width + 1)):
            cost = ((a[:, i] - b[:, j]) ** 2).sum()
            total[i + 1, j + 1] = cost + min(total[i, j + 1], total[i + 1, j], total[i, j])
    return float(np.sqrt(total[steps, steps]))


def test_time_warping_is_the_plain_recursion() -> None:
    a, b = noise(6, 2, 15), noise(6, 2, 15, seed=1)
    theirs = [plain_dtw(x, y, 3) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.dtw(a, b, band=0.2), theirs, rtol=1e-12)
    shifted = np.roll(a, 1, axis=2)
    assert (metrics.dtw(a, shifted, band=0.2) < np.sqrt(((a - shifted) ** 2).sum((1, 2)))).all()


def test_copies_are_nearer_to_what_was_copied() -> None:
    fitted, held = noise(30, 1, 20), noise(30, 1, 20, seed=1)
    share, low, _ = metrics.closer_share(fitted[:20] + 1e-3, fitted, held)
    assert share == low == 1
    share, low, high = metrics.closer_share(noise(60, 1, 20, seed=2), fitted, held)
    assert low < 0.5 < high
    assert metrics.copied(fitted[:4], fitted) == 1
    assert metrics.copied(held[:4], fitted) == 0


def test_a_classifier_cannot_tell_equal_sources_and_tells_others() -> None:
    eyes = Eyes.of(waves(40), count=100)
    same = metrics.discriminative(eyes(waves(40, seed=1)), eyes(waves(40, seed=2)))
    assert same.low == 0
    assert same.mean < 0.2
    other = from_arrays(noise(40, 2, 24), ["slow", "fast"] * 20)
    assert metrics.discriminative(eyes(waves(40, seed=1)), eyes(other)).low > 0.4


def test_a_predictor_learns_what_can_be_learned() -> None:
    known, wild = walk(0.95, 60, 60), noise(60, 1, 60)
    good, bad = metrics.predictive(known[:30], known[30:]), metrics.predictive(wild[:30], known[30:])
    assert good.mean == pytest.approx(np.sqrt(2 / np.pi), abs=0.06)  # of the steps' own noise: mean of |N(0, 1)|
    assert bad.low > good.high


def test_kernels_do_not_depend_on_the_batch_and_see_missing_ends() -> None:
    kernels = Kernels(2, 30, 20)
    x = noise(4, 2, 30)
    np.testing.assert_allclose(kernels(x)[1:2], kernels(x[1:2]), rtol=1e-5, atol=1e-5)
    series = waves()
    assert Eyes.of(series, 5)(series.piece(0, 10)).shape == (12, 10)


def test_augmented_series_keep_class_length_and_ends() -> None:
    real = waves()
    more = augmented(real, 3, seed=1)
    assert more.labels() == [label for label in real.labels() for _ in range(3)]
    assert (more.lengths == real.lengths[0]).all()
    spread = np.corrcoef(more.values(0)[:, 0], real.values(0)[:, 0])[0, 1]
    assert 0.3 < spread < 0.999


def test_the_baselines_stand_where_they_must() -> None:
    train, held = waves(40), waves(40, seed=1)
    figures = measure_series(WindowBootstrap().fit(train), train, held)
    assert list(figures) == [HELD_OUT, "bootstrap", "independent"]
    assert figures[HELD_OUT].copies is None
    assert figures["bootstrap"].copies == 1
    assert figures["bootstrap"].closer[1] > 0.9
    assert figures["independent"].cross_correlation > 0.5 > 5 * figures["bootstrap"].cross_correlation
    assert figures["independent"].copies < 0.2
    assert min(figures["bootstrap"].accuracy.values()) > 0.9
    assert IndependentChannels().fit(train).digest != WindowBootstrap().fit(train).digest
