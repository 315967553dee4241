"""Small series with known properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from visynth.tabular.timeseries import Series, from_arrays, read_series


def waves(count: int = 12, steps: int = 24, seed: int = 0) -> Series:
    """Two classes of sines that differ in frequency; the second channel is the first one's negative."""
    g = np.random.default_rng(seed)
    labels = ["slow", "fast"] * (count // 2)
    t = np.arange(steps)
    rows = []
    for label in labels:
        period = 12 if label == "slow" else 4
        one = np.sin(2 * np.pi * (t / period + g.random())) + 0.05 * g.standard_normal(steps)
        rows.append(np.stack([one, 0.05 * g.standard_normal(steps) - one]))
    return from_arrays(np.stack(rows), labels)


def visits(count: int = 40, seed: int = 0) -> pd.DataFrame:
    """Sessions: a view, then views, a search or a buy; gaps are longer for one kind of user; other lengths."""
    g = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        kind, at = ("slow", "quick")[number % 2], float(g.uniform(0, 1000))
        for event in range(int(g.integers(2, 9))):
            what = "view" if event == 0 else str(g.choice(["view", "search", "buy"], p=[0.5, 0.4, 0.1]))
            spent = None if what == "view" else round(float(g.gamma(2.0, 3.0)), 2)
            rows.append({"visit": f"v{number}", "at": round(at, 3), "kind": kind, "what": what, "spent": spent})
            at += float(g.exponential(8.0 if kind == "slow" else 2.0)) + 0.1
    return pd.DataFrame(rows)


def sessions(count: int = 40, seed: int = 0) -> Series:
    return read_series(visits(count, seed), entity="visit", time="at", target="kind")
