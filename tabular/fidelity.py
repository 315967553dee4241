"""Fidelity: how near synthetic columns, pairs of columns and whole rows come to real ones.

Scores are in [0, 1] with 1 the best, errors in percent are ``100 * (1 - score)``. Definitions: shape is one minus the
Kolmogorov-Smirnov statistic (numbers) or the total variation distance (categories); trend is one minus half the difference
of Pearson correlations (two numbers) or the total variation of the joint table (otherwise, numbers in ten bins of equal
width over the real range), as published for tabular generators: Zhang et al., "Mixed-type tabular data synthesis with
score-based diffusion in latent space" (ICLR 2024), appendix E.3. No pair is left out for being weak. A missing value is
one more category, and takes part in a number's shape through the rate of missing values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.tabular.columns import Category, Floats, Values
from visynth.tabular.learners import Boosted, features, two_sample_scores
from visynth.tabular.schema import Schema, Table, missing_in, rows_of, taken

JOINT_BINS = 10
HISTOGRAM_BINS = 20
FOLDS = 3
MOST_ROWS = 20_000  # of each side for the two-sample test


def ks_distance(real: Floats, fake: Floats) -> float:
    """Largest difference between two empirical distribution functions (two-sample Kolmogorov-Smirnov statistic).

    Example:
        >>> ks_distance(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
        0.5
    """
    ordered_real, ordered_fake = np.sort(real), np.sort(fake)
    both = np.concatenate([ordered_real, ordered_fake])
    first = np.searchsorted(ordered_real, both, side="right") / len(real)
    second = np.searchsorted(ordered_fake, both, side="right") / len(fake)
    return float(np.abs(first - second).max())


def total_variation(real: Floats, fake: Floats) -> float:
    """Half the sum of absolute differences of two distributions.

    Example:
        >>> total_variation(np.array([0.5, 0.5]), np.array([1.0, 0.0]))
        0.5
    """
    return float(np.abs(real - fake).sum() / 2)


def jensen_shannon(real: Floats, fake: Floats) -> float:
    """Jensen-Shannon distance, the square root of the divergence in base 2: 0 for equal, 1 for disjoint distributions.

    Example:
        >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
        1.0
    """
    middle = (real + fake) / 2
    divergence = (_entropy_gap(real, middle) + _entropy_gap(fake, middle)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def _entropy_gap(p: Floats, q: Floats) -> float:
    """Kullback-Leibler divergence in bits."""
    own = p > 0
    return float((p[own] * np.log2(p[own] / q[own])).sum())


def wasserstein(real: Floats, fake: Floats) -> float:
    """Wasserstein-1 distance of two samples, in standard deviations of the real one."""
    from scipy.stats import wasserstein_distance

    spread = float(real.std()) or 1.0
    return float(wasserstein_distance(real, fake)) / spread


@dataclass(frozen=True)
class Shape:
    """One column's marginal.

    Attributes:
        score: shape score.
        jensen_shannon: distance over categories or 20 bins of equal real counts, missing values among them.
        wasserstein: in real standard deviations; None for categories.
        missing: share of missing values, real and synthetic.
    """

    score: float
    jensen_shannon: float
    wasserstein: float | None
    missing: tuple[float, float]


def shape(values: Values, fake: Values, categories: int | None) -> Shape:
    """Compare one column.

    Args:
        values: real.
        fake: synthetic.
        categories: number of categories, or None for numbers.
    """
    rates = float(missing_in(values).mean()), float(missing_in(fake).mean())
    if categories is not None:
        first, second = _shares(values + 1, categories + 1), _shares(fake + 1, categories + 1)
        return Shape(1 - total_variation(first, second), jensen_shannon(first, second), None, rates)
    real, other = values[~np.isnan(values)], fake[~np.isnan(fake)]
    edges = np.unique(np.quantile(real, np.linspace(0, 1, HISTOGRAM_BINS + 1))[1:-1]) if len(real) else np.zeros(0)
    first, second = (_shares(_binned(side, edges), len(edges) + 2) for side in (values, fake))
    if not len(real) or not len(other):
        return Shape(1 - total_variation(first, second), jensen_shannon(first, second), None, rates)
    # The distribution over numbers and "missing": the larger of the two differences.
    score = 1 - max(ks_distance(real, other) * (1 - max(rates)), abs(rates[0] - rates[1]))
    return Shape(score, jensen_shannon(first, second), wasserstein(real, other), rates)


def _binned(values: Values, edges: Floats) -> NDArray[np.int64]:
    return np.where(np.isnan(values), 0, np.searchsorted(edges, values, side="right") + 1)


def _shares(codes: NDArray[np.int64], size: int) -> Floats:
    return np.bincount(codes, minlength=size)[:size] / max(len(codes), 1)


def trend(real: Table, fake: Table, schema: Schema, first: str, second: str) -> float:
    """Trend score of one pair of columns."""
    names = (first, second)
    if not any(isinstance(schema[name], Category) for name in names):
        r, s = (_pearson(side[first], side[second]) for side in (real, fake))
        if not (np.isnan(r) or np.isnan(s)):
            return 1 - abs(r - s) / 2
    joint = []
    sizes = [_joint_size(schema, name) for name in names]
    for side in (real, fake):
        codes = [_joint_codes(side[name], real[name], schema, name) for name in names]
        joint.append(_shares(codes[0] * sizes[1] + codes[1], sizes[0] * sizes[1]))
    return 1 - total_variation(*joint)


def _pearson(x: Values, y: Values) -> float:
    both = ~(np.isnan(x) | np.isnan(y))
    if both.sum() < 2 or x[both].std() == 0 or y[both].std() == 0:
        return float("nan")
    return float(np.corrcoef(x[both], y[both])[0, 1])


def _joint_size(schema: Schema, name: str) -> int:
    column = schema[name]
    return len(column.categories) + 1 if isinstance(column, Category) else JOINT_BINS + 1


def _joint_codes(values: Values, real: Values, schema: Schema, name: str) -> NDArray[np.int64]:
    if isinstance(schema[name], Category):
        return values + 1
    edges = (
        np.linspace(np.nanmin(real), np.nanmax(real), JOINT_BINS + 1)[1:-1] if not np.isnan(real).all() else np.zeros(0)
    )
    return _binned(values, edges)


def shapes(real: Table, fake: Table, schema: Schema) -> dict[str, Shape]:
    """Every modelled column's marginal."""
    sizes = {c.name: len(c.categories) if isinstance(c, Category) else None for c in schema.modelled}
    return {name: shape(real[name], fake[name], size) for name, size in sizes.items()}


def trends(real: Table, fake: Table, schema: Schema) -> dict[tuple[str, str], float]:
    """Every pair's trend score."""
    names = [c.name for c in schema.modelled]
    return {(a, b): trend(real, fake, schema, a, b) for a, b in combinations(names, 2)}


def associations(table: Table, schema: Schema) -> tuple[list[str], Floats]:
    """Strength of every pair's association in [0, 1], symmetric with ones on the diagonal.

    Absolute Pearson correlation of two numbers, bias-corrected Cramer's V of two categories (Bergsma, "A bias-correction
    for Cramer's V and Tschuprow's T", J. Korean Stat. Soc. 2013), correlation ratio of a number and a category.
    """
    names = [c.name for c in schema.modelled]
    matrix = np.eye(len(names))
    for i, j in combinations(range(len(names)), 2):
        matrix[i, j] = matrix[j, i] = _association(table[names[i]], table[names[j]])
    return names, matrix


def _association(x: Values, y: Values) -> float:
    kinds = x.dtype.kind + y.dtype.kind
    if kinds == "ff":
        r = _pearson(x, y)
        return 0.0 if np.isnan(r) else abs(r)
    if kinds == "ii":
        return cramers_v(x, y)
    numbers, codes = (x, y) if kinds == "fi" else (y, x)
    return correlation_ratio(codes, numbers)


def cramers_v(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    """Bias-corrected Cramer's V of two category columns.

    Example:
        >>> codes = np.arange(200) % 2
        >>> round(cramers_v(codes, codes), 2), cramers_v(codes, (np.arange(200) // 2) % 2)
        (1.0, 0.0)
    """
    _, rows = np.unique(x, return_inverse=True)
    _, columns = np.unique(y, return_inverse=True)
    r, k, n = int(rows.max()) + 1, int(columns.max()) + 1, len(x)
    if min(r, k) < 2:
        return 0.0
    counts = np.bincount(rows * k + columns, minlength=r * k).reshape(r, k)
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / n
    phi2 = float(((counts - expected) ** 2 / expected).sum()) / n
    phi2 = max(0.0, phi2 - (k - 1) * (r - 1) / (n - 1))
    smaller = min(r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)) - 1
    return float(min(1.0, np.sqrt(phi2 / smaller))) if smaller > 0 else 0.0


def correlation_ratio(codes: NDArray[np.int64], numbers: Floats) -> float:
    """Square root of the share of a number's variance that a category explains.

    Example:
        >>> correlation_ratio(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 3.0, 3.0]))
        1.0
    """
    known = ~np.isnan(numbers)
    values, (_, groups) = numbers[known], np.unique(codes[known], return_inverse=True)
    if not len(values) or values.std() == 0:
        return 0.0
    counts = np.bincount(groups)
    means = np.bincount(groups, values) / counts
    between = float((counts * (means - values.mean()) ** 2).sum())
    return float(np.sqrt(between / ((values - values.mean()) ** 2).sum()))


def two_sample_auc(real: Table, fake: Table, schema: Schema, seed: int = 0) -> dict[str, float]:
    """How well classifiers tell synthetic from real rows: area under the ROC curve, 0.5 where they cannot.

    Boosted trees are the measure; a logistic regression, which published scores call "detection", is beside it to show how
    little it sees. Lopez-Paz and Oquab, "Revisiting classifier two-sample tests" (ICLR 2017); three folds, equal sides.

    Returns:
        ``{"boosted trees": auc, "logistic regression": auc}``.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    count = min(rows_of(real), rows_of(fake), MOST_ROWS)
    sides = [
        taken(side, seeding.rng(seed, f"two-sample/{name}").permutation(rows_of(side))[:count])
        for name, side in (("real", real), ("fake", fake))
    ]
    both = {name: np.concatenate([side[name] for side in sides]) for name in sides[0]}
    truth = np.repeat([0, 1], count)
    x, categorical = features(both, schema)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed % 2**32).split(x, truth))
    scores = np.zeros(len(truth))
    for train, test in folds:
        scores[test] = Boosted(categorical, seed).fit(x[train], truth[train]).probabilities(x[test])[:, 1]
    linear = two_sample_scores(both, schema, truth, folds)
    return {
        "boosted trees": float(roc_auc_score(truth, scores)),
        "logistic regression": float(roc_auc_score(truth, linear)),
    }


def fidelity(real: Table, fake: Table, schema: Schema, seed: int = 0) -> dict[str, Any]:
    """All of it: errors in percent, areas, and the parts behind them.

    Args:
        real: rows that the generator did not see, or saw; the report says which.
        fake: synthetic rows.
        schema: of both.
        seed: of the two-sample test.
    """
    by_column, by_pair = shapes(real, fake, schema), trends(real, fake, schema)
    names, ours = associations(real, schema)
    _, theirs = associations(fake, schema)
    upper = np.triu_indices(len(names), 1)
    return {
        "shape_error": 100 * (1 - float(np.mean([s.score for s in by_column.values()]))),
        "trend_error": 100 * (1 - float(np.mean(list(by_pair.values())))) if by_pair else 0.0,
        "association_error": float(np.abs(ours - theirs)[upper].mean()) if len(names) > 1 else 0.0,
        "jensen_shannon": float(np.mean([s.jensen_shannon for s in by_column.values()])),
        "two_sample": two_sample_auc(real, fake, schema, seed),
        "columns": by_column,
        "pairs": by_pair,
        "associations": (names, ours, theirs),
    }


def summary(measured: Mapping[str, Any]) -> dict[str, float]:
    """The five figures of :func:`fidelity`."""
    return {
        "shape error %": measured["shape_error"],
        "trend error %": measured["trend_error"],
        "association error": measured["association_error"],
        "Jensen-Shannon": measured["jensen_shannon"],
        "two-sample AUC": measured["two_sample"]["boosted trees"],
    }
