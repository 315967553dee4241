"""Have the data moved? A permutation test on features, and the population stability index on counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding

PERMUTATIONS = 999
MOST = 500  # rows of a side; more cost memory and say no more
STABLE = 0.25  # population stability index from which a shift counts as large, by the credit industry's rule of thumb
FEWEST = 10


def mmd_p_value(before: NDArray[Any], now: NDArray[Any], *, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Probability of a kernel distance as large as this one if both sides were drawn from one distribution.

    Squared MMD with KID's kernel, biased (its permutations are all biased alike), under random exchange of rows between
    the sides. The test is exact: at level a it rejects equal distributions in at most a of all cases. Source: Gretton et
    al., "A kernel two-sample test" (JMLR 2012), section 5 and eq. 5; Phipson and Smyth, "Permutation p-values should never
    be zero" (2010), eq. 2.

    Args:
        before: features ``[n, D]``.
        now: features ``[m, D]``.
        permutations: how many.
        seed: of them.

    Example:
        >>> g = np.random.default_rng(1)
        >>> x, y = g.normal(size=(40, 3)), g.normal(size=(40, 3))
        >>> mmd_p_value(x, y) > 0.05, mmd_p_value(x, y + 1) < 0.01
        (True, True)
    """
    generator = seeding.rng(seeding.derive("drift", seed), "permutations")
    x, y = (_some(side, generator) for side in (before, now))
    both = np.concatenate([x, y]).astype(np.float64)
    # Features of an extractor are of any size: the cubic kernel is dominated by the largest unless they are scaled.
    spread = both.std(axis=0)
    both = (both - both.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    gram = (both @ both.T / both.shape[1] + 1) ** 3
    n, total = len(x), len(both)
    # With signs s (1/n before, -1/m now) the squared distance is s' K s: many permutations are one product.
    signs = np.where(np.arange(total) < n, 1 / n, -1 / (total - n))
    own = float(signs @ gram @ signs)
    shuffled = np.stack([generator.permutation(signs) for _ in range(permutations)])
    others = np.einsum("ij,ij->i", shuffled @ gram, shuffled)
    return float((1 + (others >= own - 1e-12 * abs(own)).sum()) / (1 + permutations))


def stability_index(before: Mapping[str, int], now: Mapping[str, int]) -> float:
    """Population stability index of two sets of counts: sum of (q - p) ln(q / p), half a count added to each.

    Example:
        >>> stability_index({"a": 90, "b": 10}, {"a": 90, "b": 10}), round(stability_index({"a": 90, "b": 10}, {"a": 50, "b": 50}), 2)
        (0.0, 0.85)
    """
    names = sorted({*before, *now})
    p, q = (np.array([float(side.get(name, 0)) + 0.5 for name in names]) for side in (before, now))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def drifted(
    before: Mapping[str, NDArray[Any]], now: Mapping[str, NDArray[Any]], alpha: float, seed: int = 0
) -> dict[str, float]:
    """Classes whose features moved, with the p-value of each; the level is shared among the classes (Bonferroni).

    Args:
        before: features by class.
        now: the same of the new data; classes with fewer than 10 rows on a side are not asked.
        alpha: how often at most this says so where nothing moved.
        seed: of the permutations.
    """
    asked = [name for name in before if min(len(before[name]), len(now.get(name, ()))) >= FEWEST]
    if not asked or alpha <= 0:
        return {}
    # A p-value cannot be below 1 / (1 + permutations): enough of them for the level.
    permutations = max(PERMUTATIONS, int(np.ceil(2 * len(asked) / alpha)))
    values = {n: mmd_p_value(before[n], now[n], permutations=permutations, seed=seed) for n in asked}
    return {name: p for name, p in values.items() if p <= alpha / len(asked)}


def _some(rows: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    return rows if len(rows) <= MOST else rows[generator.permutation(len(rows))[:MOST]]
