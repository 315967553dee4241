"""Histograms with noise: what a private fit may know of single columns, and columns drawn from them in place of the real ones.

Each row falls into one cell of a histogram, so a histogram changes by one in one cell when a row comes or goes, and Gaussian
noise on all cells makes it private (Dwork and Roth, "The algorithmic foundations of differential privacy", 2014, appendix A).
Everything that is computed from it afterwards is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visynth.tabular.columns import Codes, Floats

START, SPLIT, LEVELS = 64, 64, 3  # cells at first, parts of a cell, histograms of a column
HEAVY = 1 / 100  # share of the rows from which a cell is split
SURE = 4.0  # standard deviations of the noise that are not noise
EXPONENTS = range(-20, 41)  # powers of two in which numbers without bounds lie


@dataclass(frozen=True)
class Cells:
    """Half-open cells of numbers, rising, with the noisy share of the rows in each; the rest is missing.

    Attributes:
        lows: lower ends ``[C]``.
        highs: upper ends ``[C]``.
        shares: ``[C]``, with ``missing`` they add up to one.
        missing: share of missing values.
        unit: smallest step between two values; 0 for any real number.
    """

    lows: Floats
    highs: Floats
    shares: Floats
    missing: float
    unit: float

    def values(self, count: int) -> Floats:
        """So many values whose histogram this is, rising, the missing ones last (NaN).

        Example:
            >>> cells = Cells(np.array([0.0, 10.0]), np.array([10.0, 11.0]), np.array([0.5, 0.25]), 0.25, 1.0)
            >>> cells.values(8).tolist()
            [1.0, 3.0, 6.0, 8.0, 10.0, 10.0, nan, nan]
        """
        gone = round(count * self.missing)
        ends = np.concatenate([[0.0], np.cumsum(self.shares)])
        total = ends[-1] or 1.0
        at = (np.arange(count - gone) + 0.5) / max(count - gone, 1) * total
        cell = np.clip(np.searchsorted(ends, at, side="right") - 1, 0, len(self.lows) - 1)
        inside = (at - ends[cell]) / np.maximum(self.shares[cell], 1e-300)
        values = self.lows[cell] + np.clip(inside, 0, 1 - 1e-9) * (self.highs[cell] - self.lows[cell])
        if self.unit:
            values = np.floor(values / self.unit + 1e-6) * self.unit
        return np.concatenate([values, np.full(gone, np.nan)])


def histograms_of_number(bounded: bool) -> int:
    """Histograms that :func:`number_cells` takes."""
    return LEVELS + (not bounded)


def number_cells(
    values: Floats,
    bounds: tuple[float, float] | None,
    unit: float,
    noise: float,
    generator: np.random.Generator,
) -> Cells:
    """Cells of a column: wide ones first, those with many rows split again.

    Args:
        values: ``[N]``, NaN where missing; those outside of the bounds count as the nearest bound.
        bounds: lowest and highest value, where they are known; else powers of two are searched for them.
        unit: smallest step between two values; 0 for any real number.
        noise: standard deviation on each count of each of :func:`histograms_of_number` histograms.
        generator: of the noise.

    Example:
        >>> values = np.repeat([0.0, 5000.0, 9999.0], [900, 90, 10])
        >>> cells = number_cells(values, (0, 99_999), 1.0, 0.5, np.random.default_rng(0))
        >>> found = cells.values(1000)
        >>> abs(int((found == 0).sum()) - 900) < 20, abs(float(np.mean(found)) - 549.99) < 100
        (True, True)
    """
    gone = np.isnan(values)
    present = values[~gone]
    if bounds is None:
        lows, highs = _powers(unit)
        counts = _counts(present, lows, highs) + noise * generator.standard_normal(len(lows))
        kept = np.flatnonzero(counts > SURE * noise)
        if not len(kept):
            kept = np.array([int(np.argmax(counts))])
        bounds = float(lows[kept[0]]), float(highs[kept[-1]]) - unit
    low, high = bounds
    top = high + unit if unit else np.nextafter(high, np.inf)
    present = np.clip(present, low, high)
    lows, highs = _parts(low, top, START, unit)
    counted = np.append(_counts(present, lows, highs), gone.sum())
    counted = summing_to(counted + noise * generator.standard_normal(len(counted)), float(len(values)))
    counts, missing = counted[:-1], float(counted[-1]) if counted[-1] > SURE * noise else 0.0
    for _ in range(LEVELS - 1):
        heavy = counts > max(HEAVY * counts.sum(), SURE * noise)
        heavy &= (highs - lows) > (unit * 1.5 if unit else 0.0)
        parts = [
            _parts(a, b, SPLIT, unit) if h else (np.array([a]), np.array([b]))
            for a, b, h in zip(lows, highs, heavy, strict=True)
        ]
        owner = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
        lows, highs = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        fine = _counts(present, lows, highs) + noise * generator.standard_normal(len(lows))
        counts = np.concatenate(
            [
                summing_to(fine[owner == cell], counts[cell]) if heavy[cell] else counts[cell : cell + 1]
                for cell in range(len(parts))
            ]
        )
    total = counts.sum() + missing
    return Cells(lows, highs, counts / total, missing / total, unit)


def known_categories(
    codes: Codes, count: int, noise: float, threshold: float, generator: np.random.Generator
) -> tuple[NDArray[np.int64], Floats]:
    """Categories that many rows have, rising, and their noisy counts: those of few rows stay unknown.

    Only categories that occur are looked at. One that a single row has is told with the probability that its noise exceeds
    the threshold: "stability-based histograms", Korolova et al., "Releasing search queries and clicks privately" (WWW 2009);
    with Gaussian noise: Gopi et al., "Differentially private set union" (ICML 2020), section 5.

    Args:
        codes: ``[N]``, -1 where missing.
        count: categories that occur.
        noise: standard deviation.
        threshold: least noisy count.
        generator: of the noise.
    """
    counts = np.bincount(codes[codes >= 0], minlength=count) + noise * generator.standard_normal(count)
    kept = np.flatnonzero(counts >= threshold)
    return kept, counts[kept]


def threshold_for(noise: float, delta: float) -> float:
    """Noisy count that a single row exceeds with probability ``delta``.

    Example:
        >>> round(threshold_for(10.0, 0.001), 1)
        31.9
    """
    from scipy.stats import norm

    return float(1 + noise * norm.isf(delta))


def _powers(unit: float) -> tuple[Floats, Floats]:
    """Cells by powers of two of both signs, with one around zero."""
    powers = np.array([2.0**k for k in EXPONENTS if not unit or 2.0**k >= unit])
    edges = np.concatenate([-powers[::-1], powers])
    if unit:
        edges = np.unique(np.round(edges / unit) * unit)
    return edges[:-1], edges[1:]


def _parts(low: float, high: float, most: int, unit: float) -> tuple[Floats, Floats]:
    """A cell in at most so many parts, cut at multiples of the unit."""
    edges = np.linspace(low, high, most + 1)
    if unit:
        edges = np.unique(np.concatenate([[low], low + np.round((edges - low) / unit) * unit, [high]]))
    return edges[:-1], edges[1:]


def _counts(values: Floats, lows: Floats, highs: Floats) -> Floats:
    place = np.searchsorted(lows, values, side="right") - 1
    inside = (place >= 0) & (values < highs[np.maximum(place, 0)])
    return np.bincount(place[inside], minlength=len(lows)).astype(np.float64)


def summing_to(counts: Floats, total: float) -> Floats:
    """The nearest counts of at least 0 that add up to a total which is known: "Norm-Sub", Wang et al., "Locally differentially
    private frequency estimation with consistency" (NDSS 2020).

    Example:
        >>> summing_to(np.array([7.0, 4.0, -2.0]), 9.0).tolist()
        [6.0, 3.0, 0.0]
    """
    falling = np.sort(counts)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(counts) + 1)
    kept = np.flatnonzero(falling - excess > 0)
    return np.asarray(np.maximum(counts - excess[kept[-1] if len(kept) else 0], 0.0))
