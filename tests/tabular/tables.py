"""Tables that tests make: every kind of column, and a dependence that is known."""

from __future__ import annotations

import numpy as np
import pandas as pd

KINDS = {"visits": "integer"}


def every_kind(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """One column of each kind that people's tables have, with missing values among them."""
    g = np.random.default_rng(seed)
    sex = g.choice(["female", "male"], rows, p=[0.6, 0.4])
    income = np.round(np.where(sex == "male", 50, 30) + 10 * g.standard_normal(rows), 2)
    gap = g.random(rows)
    return pd.DataFrame(
        {
            "key": [f"AB-{number:05d}" for number in g.permutation(rows)],
            "sex": sex,
            "city": pd.Categorical(g.choice(["Rome", "Oslo", "Bern"], rows, p=[0.7, 0.2, 0.1])),
            "income": np.where(gap < 0.2, np.nan, income),
            "visits": pd.array(np.where(gap < 0.9, g.poisson(3, rows), 0), dtype="Int64").astype("Int64"),
            "children": pd.Series(g.integers(0, 4, rows), dtype="Int64").mask(pd.Series(g.random(rows) < 0.1)),
            "gain": np.where(g.random(rows) < 0.8, 0, np.round(g.exponential(1000, rows))).astype("int64"),
            "day": [int(d.strftime("%Y%m%d")) for d in pd.Timestamp("2023-01-01") + pd.to_timedelta(g.integers(0, 300, rows), unit="D")],
            "seen": pd.Timestamp("2024-03-01") + pd.to_timedelta(g.integers(0, 10**6, rows), unit="s"),
            "smoker": g.random(rows) < 0.3,
            "price": [f"{value:.2f}" for value in g.gamma(2, 10, rows)],
            "unit": "mm",
            "empty": np.full(rows, np.nan),
            "note": [f"patient number {number} came with a long story about it" for number in range(rows)],
            "answer": g.choice(["yes", None, "no"], rows, p=[0.5, 0.3, 0.2]),
        }
    )  # fmt: skip


def dependent(rows: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Columns that follow from one another: independent marginals cannot pass for them."""
    g = np.random.default_rng(seed)
    kind = g.choice(["a", "b", "c"], rows, p=[0.55, 0.4, 0.05])
    level = np.select([kind == "a", kind == "b"], [0.0, 5.0], 10.0) + g.standard_normal(rows)
    return pd.DataFrame(
        {
            "kind": kind,
            "level": np.round(level, 3),
            "copy": np.where(g.random(rows) < 0.95, np.where(kind == "a", "x", "y"), "z"),
            "double": np.round(2 * level + 0.3 * g.standard_normal(rows), 3),
        }
    )
