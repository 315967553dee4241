"""Distances between real and synthetic series, each a function of arrays ``[N, D, L]``, NaN where a value is missing or a series
has ended, or of features ``[N, F]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.tabular.columns import Floats

FOLDS = 5
REPEATS = 3
RESAMPLES = 1000
SAME = 1e-3  # deviations of a channel up to which a value is copied
LAGS = 20
BAND = 0.1  # of the steps: how far a warping path may leave the diagonal
HIDDEN = 100  # random features of the predictor
ORDER = 4  # steps that the predictor sees


@dataclass(frozen=True)
class Score:
    """A figure with a 95 % interval over series."""

    mean: float
    low: float
    high: float


def interval(values: Floats, groups: Sequence[str] | None = None, seed: int = 0) -> Score:
    """Mean with a 95 % interval by the bootstrap over groups, by default over values (Efron 1979, percentiles).

    Example:
        >>> one = interval(np.array([0.0, 1.0] * 50))
        >>> one.mean, 0.35 < one.low < 0.45, 0.55 < one.high < 0.65
        (0.5, True, True)
    """
    _, place = np.unique(np.arange(len(values)) if groups is None else np.array(groups), return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place)
    drawn = seeding.rng(seed, "series/interval").integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Score(float(values.mean()), float(low), float(high))


def discriminative(
    real: Floats, fake: Floats, groups: tuple[Sequence[str], Sequence[str]] | None = None, seed: int = 0
) -> Score:
    """How well a classifier tells synthetic from real series it did not see: ``|accuracy - 0.5|``, 0 is best.

    Yoon, Jarrett and van der Schaar, "Time-series generative adversarial networks" (NeurIPS 2019), section 5, with a
    logistic regression on random kernels in the place of their recurrent network, balanced, cross-validated, several times.

    Args:
        real: features ``[N, F]``.
        fake: features ``[M, F]``.
        groups: of both sides: what is never on both sides of a fold, and resampled together.
        seed: of folds and subsets.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.preprocessing import StandardScaler

    sides = groups or ([str(k) for k in range(len(real))], [str(k) for k in range(len(fake))])
    names = np.array([f"real {name}" for name in sides[0]] + [f"fake {name}" for name in sides[1]])
    whole, few = np.concatenate([real, fake]), min(len(real), len(fake))
    hits, seen = np.zeros(len(whole)), np.zeros(len(whole))
    for repeat in range(REPEATS):
        generator = seeding.rng(seed, f"series/discriminative/{repeat}")
        picked = np.concatenate(
            [generator.permutation(len(real))[:few], len(real) + generator.permutation(len(fake))[:few]]
        )
        x, truth = whole[picked], (picked >= len(real)).astype(np.int64)
        folds = min(FOLDS, *(len(np.unique(names[picked[truth == side]])) for side in (0, 1)))
        if folds < 2:
            return Score(float("nan"), float("nan"), float("nan"))
        parted = StratifiedGroupKFold(folds, shuffle=True, random_state=repeat).split(x, truth, names[picked])
        for train, test in parted:
            if len(np.unique(truth[train])) < 2:
                continue
            scaler = StandardScaler().fit(x[train])
            model = LogisticRegression(C=0.01, max_iter=300, class_weight="balanced")
            model.fit(scaler.transform(x[train]), truth[train])
            hits[picked[test]] += model.predict(scaler.transform(x[test])) == truth[test]
            seen[picked[test]] += 1
    judged = seen > 0
    own = interval(hits[judged] / seen[judged], names[judged].tolist(), seed)
    ends = sorted((abs(own.low - 0.5), abs(own.high - 0.5)))
    low = 0.0 if own.low <= 0.5 <= own.high else ends[0]
    return Score(abs(own.mean - 0.5), low, ends[1])


def predictive(fake: Floats, real: Floats, groups: Sequence[str] | None = None, seed: int = 0) -> Score:
    """Error of one-step forecasts on real series by a predictor that saw synthetic ones alone, in deviations of a channel.

    As in Yoon et al. (2019), section 5; the predictor is a ridge regression on the last steps and random rectified features of
    them, which has one solution. Steps with a missing value among them count on neither side.

    Args:
        fake: arrays ``[M, D, L]`` to learn from.
        real: arrays ``[N, D, L]`` to forecast.
        groups: of the real ones, resampled together.
        seed: of the random features.
    """
    errors, counts = np.zeros(len(real)), np.zeros(len(real))
    for repeat in range(REPEATS):
        generator = seeding.rng(seed, f"series/predictive/{repeat}")
        picked = generator.permutation(len(fake))[: max(int(0.8 * len(fake)), 1)]
        weights = generator.standard_normal((ORDER * real.shape[1], HIDDEN)) / np.sqrt(ORDER * real.shape[1])
        x, y, _ = _lagged(fake[picked], weights)
        test, truth, owner = _lagged(real, weights)
        if not len(x) or not len(test):
            return Score(float("nan"), float("nan"), float("nan"))
        gram = x.T @ x + 1e-2 * len(x) * np.eye(x.shape[1]) / x.shape[1]
        off = np.abs(test @ np.linalg.solve(gram, x.T @ y) - truth).mean(1)
        errors += np.bincount(owner, off, len(real))
        counts += np.bincount(owner, minlength=len(real))
    known = counts > 0
    names = None if groups is None else [name for name, own in zip(groups, known, strict=True) if own]
    return interval(errors[known] / counts[known], names, seed)


def _lagged(arrays: Floats, weights: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Features of the last steps, the next step, and the series it is of."""
    order = min(ORDER, arrays.shape[2] - 1)
    lags = [arrays[:, :, k : arrays.shape[2] - order + k] for k in range(order)]
    own = (
        np.concatenate([*lags, *lags[:1] * (ORDER - order)], 1).transpose(0, 2, 1).reshape(-1, ORDER * arrays.shape[1])
    )
    y = arrays[:, :, order:].transpose(0, 2, 1).reshape(-1, arrays.shape[1])
    whole = ~np.isnan(own).any(1) & ~np.isnan(y).any(1)
    own, owner = own[whole], np.repeat(np.arange(len(arrays)), arrays.shape[2] - order)[whole]
    return np.concatenate([np.ones((len(own), 1)), own, np.maximum(own @ weights, 0)], 1), y[whole], owner


def autocorrelation(x: Floats, lags: int = LAGS) -> Floats:
    """Autocorrelation of each channel at lags 1 to ``lags``, mean over series, ``[D, lags]``; NaN is missing.

    Example:
        >>> wave = np.tile([1.0, -1.0], 50)[None, None]
        >>> autocorrelation(wave, 2).round(2).tolist()
        [[-0.99, 0.98]]
    """
    own = np.nan_to_num(x - _mean(x, 2))
    power = (own**2).sum(2)
    lags = min(lags, x.shape[2] - 1)
    rows = [(own[:, :, k:] * own[:, :, :-k]).sum(2) for k in range(1, lags + 1)]
    ratios = np.stack(rows, 2) / np.where(power > 0, power, 1.0)[:, :, None]
    return np.asarray(ratios.mean(0))


def _mean(x: Floats, axis: int) -> Floats:
    """Mean of what is not missing, 0 of nothing, with the axis kept."""
    known = ~np.isnan(x)
    return np.asarray(np.nan_to_num(x).sum(axis, keepdims=True) / np.maximum(known.sum(axis, keepdims=True), 1))


def autocorrelation_distance(real: Floats, fake: Floats, lags: int = LAGS) -> float:
    """Mean absolute difference of autocorrelations."""
    return float(np.abs(autocorrelation(real, lags) - autocorrelation(fake, lags)).mean())


def spectrum(x: Floats) -> Floats:
    """Power at each frequency but zero, mean over series, ``[D, F]``: Hann window, periodogram (Welch 1967, one segment).

    A series that is shorter than others is taken at its own length, and read off at the frequencies of the longest; gaps in it
    are bridged by straight lines.

    Example:
        >>> tone = np.sin(2 * np.pi * 8 * np.arange(64) / 64)[None, None]
        >>> int(spectrum(tone)[0].argmax()) + 1
        8
    """
    steps = x.shape[2]
    if not np.isnan(x).any():
        return np.asarray(_periodogram(x)[:, :, 1:].mean(0))
    grid = np.arange(1, steps // 2 + 1) / steps
    rows = []
    for one in x:
        last = np.flatnonzero(~np.isnan(one).all(0))
        own = one[:, : last[-1] + 1] if len(last) else np.zeros((len(one), 2))
        power = _periodogram(np.stack([_bridged(channel) for channel in own])[None])[0] * steps / own.shape[1]
        rows.append([np.interp(grid, np.fft.rfftfreq(own.shape[1]), channel) for channel in power])
    return np.asarray(np.mean(rows, axis=0))


def _periodogram(x: Floats) -> Floats:
    own = (x - x.mean(2, keepdims=True)) * np.hanning(x.shape[2])
    return np.asarray(np.abs(np.fft.rfft(own, axis=2)) ** 2)


def _bridged(values: Floats) -> Floats:
    known = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), known, values[known]) if len(known) else np.zeros(len(values))


def spectrum_distance(real: Floats, fake: Floats) -> float:
    """Root mean square difference of log power in decibel, over channels and frequencies.

    A frequency below a millionth of a channel's largest real power counts as that.
    """
    first, second = spectrum(real), spectrum(fake)
    floor = np.maximum(first.max(1, keepdims=True) * 1e-6, 1e-12)
    return float(np.sqrt(((10 * np.log10((first + floor) / (second + floor))) ** 2).mean()))


def cross_correlation(x: Floats) -> Floats:
    """Correlation of each pair of channels over the steps of all series where both have a value, ``[D, D]``; 0 with a constant
    channel."""
    rows = x.transpose(1, 0, 2).reshape(x.shape[1], -1)
    known = (~np.isnan(rows)).astype(np.float64)
    own = np.nan_to_num(rows - _mean(rows, 1))
    spread = np.sqrt((own**2) @ known.T)  # of the first of a pair, where the second has a value
    product = spread * spread.T
    return np.asarray(own @ own.T / np.where(product > 1e-9, product, np.inf))


def cross_correlation_distance(real: Floats, fake: Floats) -> float:
    """Mean absolute difference over pairs of channels; 0 with one channel."""
    pairs = np.triu_indices(real.shape[1], 1)
    if not len(pairs[0]):
        return 0.0
    return float(np.abs(cross_correlation(real)[pairs] - cross_correlation(fake)[pairs]).mean())


def marginal_ks(real: Floats, fake: Floats) -> float:
    """Mean Kolmogorov-Smirnov distance of the channels' values."""
    from scipy.stats import ks_2samp

    sides = zip(*(side.transpose(1, 0, 2).reshape(side.shape[1], -1) for side in (real, fake)), strict=True)
    known = [(a[~np.isnan(a)], b[~np.isnan(b)]) for a, b in sides]
    return float(np.mean([ks_2samp(a, b).statistic if len(a) and len(b) else 1.0 for a, b in known]))


def context_fd(real: Floats, fake: Floats) -> float:
    """Fréchet distance of features on the real side's first principal components, one for every five series at most.

    Context-FID (Jeha et al., "PSA-GAN", ICLR 2022) with random kernels in the place of their encoder, so that figures
    compare within one report only.
    """
    few = min(len(real), len(fake))
    dims = int(np.clip(few // 5, 1, min(16, real.shape[1])))
    mean, scale = real.mean(0), np.where(real.std(0) > 1e-9, real.std(0), 1.0)
    x, y = ((side - mean) / scale for side in (real, fake))
    basis = np.linalg.svd(x, full_matrices=False)[2][:dims]
    x, y = x @ basis.T, y @ basis.T
    return float(frechet(x, y)) / dims


def frechet(x: Floats, y: Floats) -> float:
    """Squared Fréchet distance of the normal distributions of two sets of points (Dowson and Landau, 1982).

    Example:
        >>> x = np.array([[-1.0], [1.0]])
        >>> round(frechet(x, x + 3), 6)
        9.0
    """
    from scipy.linalg import sqrtm

    first, second = (np.atleast_2d(np.cov(side, rowvar=False)) for side in (x, y))
    root = np.real(sqrtm(first @ second))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


def dtw(first: Floats, second: Floats, band: float = BAND) -> Floats:
    """Distances by dynamic time warping of pairs of series: root of the least sum of squared differences along a path.

    Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word recognition" (1978), with their band; all
    pairs at once, diagonal by diagonal.

    Args:
        first: arrays ``[P, D, L]``.
        second: arrays ``[P, D, L]``.
        band: how far a path may leave the diagonal, as a share of the steps.

    Example:
        >>> a = np.array([[[0.0, 0, 1, 2, 2]]])
        >>> float(dtw(a, np.array([[[0.0, 1, 1, 2, 2]]]), band=0.4)[0])
        0.0
    """
    steps = first.shape[2]
    width = max(int(np.ceil(band * steps)), 1)
    total = np.full((len(first), steps + 1, steps + 1), np.inf)
    total[:, 0, 0] = 0
    for diagonal in range(2 * steps - 1):
        i = np.arange(max(0, diagonal - steps + 1), min(diagonal, steps - 1) + 1)
        i = i[np.abs(diagonal - 2 * i) <= width]
        j = diagonal - i
        cost = ((first[:, :, i] - second[:, :, j]) ** 2).sum(1)
        before = np.minimum(np.minimum(total[:, i, j + 1], total[:, i + 1, j]), total[:, i, j])
        total[:, i + 1, j + 1] = cost + before
    return np.asarray(np.sqrt(total[:, steps, steps]))


def nearest(series: Floats, others: Floats) -> Floats:
    """Distance by time warping from each series to the nearest of the others ``[N]``."""
    found = np.empty(len(series))
    for number, own in enumerate(series):
        found[number] = dtw(np.broadcast_to(own, others.shape), others).min()
    return found


def closer_share(fake: Floats, fitted: Floats, held: Floats, seed: int = 0) -> tuple[float, float, float]:
    """Share of synthetic series that are nearer to fitted than to held-out ones, equally many of both, with a 95 % interval.

    0.5 where nothing was copied; a tie counts one half.
    """
    few = min(len(fitted), len(held))
    sides = [
        side[seeding.rng(seed, f"series/closer/{n}").permutation(len(side))[:few]]
        for n, side in enumerate((fitted, held))
    ]
    own, other = (nearest(fake, side) for side in sides)
    wins = np.where(own < other - 1e-12, 1.0, np.where(own > other + 1e-12, 0.0, 0.5))
    share, half = float(wins.mean()), float(1.96 * wins.std() / np.sqrt(len(wins)))
    return share, max(share - half, 0.0), min(share + half, 1.0)


def copied(fake: Floats, fitted: Floats) -> float:
    """Share of synthetic windows that equal a fitted one in every value, to a thousandth of a channel's deviation."""
    if not len(fake):
        return 0.0
    return float(np.mean([bool((np.abs(fitted - own).max((1, 2)) < SAME).any()) for own in fake]))


def classes_apart(train: Floats, labels: NDArray[np.int64], test: Floats) -> Floats:
    """Probabilities ``[N, K]`` of each class by a ridge-penalised logistic regression on features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=0.01, max_iter=300, class_weight="balanced").fit(scaler.transform(train), labels)
    return np.asarray(model.predict_proba(scaler.transform(test)))
