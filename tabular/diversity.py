"""Diversity: whether synthetic rows reach all that real rows reach, and do not repeat themselves.

Precision, recall and authenticity: Alaa et al., "How faithful is your synthetic data?" (ICML 2022), with plain scaled
columns instead of a learned embedding; recall's ceiling for real data is about one half, not one.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.tabular.columns import Category, Floats
from visynth.tabular.learners import scaled
from visynth.tabular.schema import Schema, Table, rows_of, stacked, taken

ALPHAS = np.linspace(0, 1, 31)[1:]
MOST_ROWS = 3000  # compared with one another
CLUSTERS = range(2, 9)
SUPPORT = 5  # real rows that a combination needs to count


def category_coverage(real: NDArray[np.int64], fake: NDArray[np.int64]) -> float:
    """Share of a column's real categories that appear.

    Example:
        >>> category_coverage(np.array([0, 1, 2, 2]), np.array([2, 0]))
        0.6666666666666666
    """
    seen = set(real[real >= 0].tolist())
    return len(seen & set(fake.tolist())) / len(seen) if seen else 1.0


def range_coverage(real: Floats, fake: Floats) -> float:
    """Share of a column's real range between the lowest and the highest synthetic value.

    Example:
        >>> range_coverage(np.array([0.0, 10.0]), np.array([1.0, 8.0]))
        0.7
    """
    r, s = real[~np.isnan(real)], fake[~np.isnan(fake)]
    if not len(r) or not len(s):
        return float(len(r) == len(s))
    width = r.max() - r.min()
    if width == 0:
        return float(s.min() <= r.min() <= s.max())
    return float(max(0.0, min(s.max(), r.max()) - max(s.min(), r.min())) / width)


def combination_coverage(real: Table, fake: Table, schema: Schema) -> float:
    """Share of pairs of categories, of which real rows have some, that appear together in synthetic rows."""
    names = [c.name for c in schema.modelled if isinstance(c, Category)]
    wanted = present = 0
    for first, second in combinations(names, 2):
        size = int(max(real[second].max(), fake[second].max())) + 2
        keys = [(side[first] + 1) * size + side[second] + 1 for side in (real, fake)]
        seen, counts = np.unique(keys[0], return_counts=True)
        seen = seen[counts >= SUPPORT]
        wanted += len(seen)
        present += int(np.isin(seen, keys[1]).sum())
    return present / wanted if wanted else 1.0


def modes(real: Floats, fake: Floats, seed: int = 0) -> dict[str, float]:
    """Clusters of the real rows, and how synthetic rows spread over them.

    Args:
        real: scaled columns ``[N, D]``.
        fake: scaled alike ``[M, D]``.
        seed: of the clustering.

    Returns:
        ``clusters`` (chosen by silhouette), ``reached`` (share of clusters with at least a fifth of their real share) and
        ``difference`` (total variation of the shares).
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    best: tuple[float, Any] = (-1.0, None)
    for count in (k for k in CLUSTERS if k < len(real)):
        model = KMeans(count, n_init=3, random_state=seed % 2**32).fit(real)
        if len(set(model.labels_.tolist())) > 1:
            score = float(
                silhouette_score(real, model.labels_, sample_size=min(len(real), 1000), random_state=seed % 2**32)
            )
            best = max(best, (score, model), key=lambda pair: pair[0])
    if best[1] is None:
        return {"clusters": 1, "reached": 1.0, "difference": 0.0}
    count = best[1].n_clusters
    shares = [np.bincount(best[1].predict(side), minlength=count) / len(side) for side in (real, fake)]
    return {
        "clusters": float(count),
        "reached": float(np.mean(shares[1] >= shares[0] / 5)),
        "difference": float(np.abs(shares[0] - shares[1]).sum() / 2),
    }


def alpha_precision(real: Floats, fake: Floats) -> float:
    """How well synthetic rows fill the shells around the real centre: 1 - mean |P(fake in shell alpha) - alpha| / mean alpha."""
    centre = real.mean(0)
    radii = np.quantile(np.linalg.norm(real - centre, axis=1), ALPHAS)
    inside = np.linalg.norm(fake - centre, axis=1)[:, None] <= radii[None]
    return float(1 - np.abs(inside.mean(0) - ALPHAS).sum() / ALPHAS.sum())


def beta_recall(real: Floats, fake: Floats) -> float:
    """How well real rows are covered by synthetic ones that lie in shells around the synthetic centre."""
    from sklearn.neighbors import NearestNeighbors

    centre = fake.mean(0)
    depth = np.linalg.norm(fake - centre, axis=1)
    radii = np.quantile(depth, ALPHAS)
    own = NearestNeighbors(n_neighbors=2).fit(real).kneighbors(real)[0][:, 1]
    near, rows = NearestNeighbors(n_neighbors=1).fit(fake).kneighbors(real)
    covered = (near[:, 0] <= own)[:, None] & (depth[rows[:, 0]][:, None] <= radii[None])
    return float(1 - np.abs(covered.mean(0) - ALPHAS).sum() / ALPHAS.sum())


def authenticity(real: Floats, fake: Floats) -> float:
    """Share of synthetic rows that are farther from their nearest real row than that row is from its own nearest real one.

    The distance "from its own nearest" is that of the *real* row that is nearest to the synthetic one.

    Example:
        >>> points = np.array([[0.0], [1.0], [10.0], [14.0]])
        >>> authenticity(points, np.array([[0.1], [12.9]])), authenticity(points, points)
        (0.0, 0.0)
        >>> authenticity(points, np.array([[19.0]]))
        1.0
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=2).fit(real)
    own = index.kneighbors(real)[0][:, 1]
    near, rows = index.kneighbors(fake, n_neighbors=1)
    return float(np.mean(near[:, 0] > own[rows[:, 0]]))


def duplicates(table: Table) -> float:
    """Share of rows that repeat an earlier one."""
    matrix = np.stack([np.nan_to_num(np.asarray(v, np.float64), nan=np.inf) for v in table.values()], axis=1)
    return 1 - len(np.unique(matrix, axis=0)) / len(matrix)


def diversity(real: Table, fake: Table, schema: Schema, seed: int = 0, fitted: Table | None = None) -> dict[str, Any]:
    """All of it, by name; coverage of each column under ``columns``.

    Args:
        real: rows to compare with.
        fake: synthetic rows.
        schema: of both.
        seed: of the choice of rows.
        fitted: rows that the generator was fitted to, of which authentic rows are no copies; by default ``real``.
    """
    by_column = {}
    for column in schema.modelled:
        measure = category_coverage if isinstance(column, Category) else range_coverage
        by_column[column.name] = measure(real[column.name], fake[column.name])
    sides = [
        taken(side, seeding.rng(seed, f"diversity/{n}").permutation(rows_of(side))[:MOST_ROWS])
        for n, side in enumerate((real, fake))
    ]
    sides.append(sides[0] if fitted is None else fitted)
    x, y, own = np.split(scaled(stacked(sides), schema), np.cumsum([rows_of(side) for side in sides])[:-1])
    words = [by_column[c.name] for c in schema.modelled if isinstance(c, Category)]
    numbers = [by_column[c.name] for c in schema.modelled if not isinstance(c, Category)]
    found = modes(x, y, seed)
    return {
        "category coverage": float(np.mean(words)) if words else 1.0,
        "range coverage": float(np.mean(numbers)) if numbers else 1.0,
        "pairs of categories": combination_coverage(real, fake, schema),
        "clusters reached": found["reached"],
        "cluster difference": found["difference"],
        "alpha-precision": alpha_precision(x, y),
        "beta-recall": beta_recall(x, y),
        "authenticity": authenticity(own, y),
        "repeated rows": duplicates(fake),
        "repeated real rows": duplicates(real),
        "columns": by_column,
    }
