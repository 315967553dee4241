"""Rules between columns, kept by every row; contradictions told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from visynth.core.errors import DataError, UsageError
from visynth.tabular import (
    Combinations,
    GaussianCopula,
    IndependentMarginals,
    Inequality,
    Masked,
    Range,
    Sum,
    Synthesizer,
    Unique,
)


def orders(rows: int = 300) -> pd.DataFrame:
    g = np.random.default_rng(0)
    net, count = np.round(g.gamma(2, 10, rows), 2), g.integers(1, 9, rows)
    start = pd.Timestamp("2024-01-01") + pd.to_timedelta(g.integers(0, 200, rows), unit="D")
    city = g.choice(["Rome", "Milan", "Oslo"], rows)
    return pd.DataFrame(
        {
            "net": net, "tax": np.round(0.2 * net, 2), "total": np.round(net + np.round(0.2 * net, 2), 2),
            "count": count, "value": np.round(net * count, 2), "city": city,
            "country": np.where(city == "Oslo", "Norway", "Italy"), "start": start,
            "end": start + pd.to_timedelta(g.integers(0, 30, rows), unit="D"),
            "room": g.integers(0, 40, rows), "bed": g.integers(0, 40, rows),
        }
    )  # fmt: skip


RULES = [
    Sum("total", {"net": 1.0, "tax": 1.0}),
    {"kind": "product", "column": "value", "of": ["net", "count"]},
    Combinations(["city", "country"]),
    Inequality("start", "end"),
    Range("count", 1, 8),
]


@pytest.mark.parametrize(
    "model", [IndependentMarginals(), GaussianCopula(), Masked(steps=30, width=48, depth=1)], ids=lambda m: m.network
)
def test_every_row_keeps_every_rule(model: Synthesizer, tmp_path: Any) -> None:
    frame = orders()
    sample = model.fit(frame, constraints=RULES).sample(1500, seed=1)
    assert np.allclose(sample["total"], sample["net"] + sample["tax"], atol=0.0051)
    assert np.allclose(sample["value"], sample["net"] * sample["count"], atol=0.0051)
    assert set(zip(sample["city"], sample["country"], strict=True)) <= set(
        zip(frame["city"], frame["country"], strict=True)
    )
    assert (sample["start"] <= sample["end"]).all()
    loaded = type(model).load(model.save(tmp_path / "g"))
    assert loaded.sample(1500, seed=1).equals(sample)
    assert "total" not in [c.name for c in model.fitted.model_schema.columns]  # computed, not modelled


def test_unique_keys_are_unique_whatever_the_chunks() -> None:
    model = IndependentMarginals().fit(orders().drop_duplicates(["room", "bed"]), constraints=[Unique(["room", "bed"])])
    whole = model.sample(1200, seed=2)
    assert not whole.duplicated(["room", "bed"]).any()
    assert pd.concat(list(model.stream(1200, seed=2, chunk=100)), ignore_index=True).equals(whole)
    small = pd.DataFrame({"a": [0, 1] * 20, "b": np.repeat(np.arange(20), 2)})
    tight = IndependentMarginals().fit(small, constraints=[Unique(["a", "b"])])
    with pytest.raises(DataError, match=r"row 40: no new combination of 'a', 'b'"):
        tight.sample(41)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([Inequality("net", "nothing")], "there is no column 'nothing'"),
        ([Inequality("net", "city")], "column 'city' holds no numbers"),
        ([Combinations(["net", "city"])], "column 'net' is no category"),
        ([{"kind": "other"}], "a constraint's kind must be one of"),
        ([{"kind": "range", "col": 1}], "constraint 'range' has 'column', 'low', 'high', but got 'col'"),
        ([{"kind": "range"}], "constraint 'range' needs more"),
        ([Sum("net", {"tax": 1}), Sum("net", {"total": 1})], "given by more than one formula"),
        ([Sum("net", {"tax": 1}), Sum("tax", {"net": 1})], "need one another in a circle: 'net', 'tax'"),
        ([Inequality("net", "tax", True), Inequality("tax", "net")], "would have to be smaller than themselves"),
        ([Range("net", 5, 1)], "leaves no value"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules: list[Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        IndependentMarginals().fit(orders(), constraints=rules)


def test_real_rows_that_break_a_rule_are_named() -> None:
    frame = orders()
    frame.loc[[7, 9], "end"] = pd.Timestamp("2020-01-01")
    frame.loc[3, "total"] = 0.01
    with pytest.raises(
        DataError, match=r"(?s)2 problems.*Sum\(column='total'.*row 3.*Inequality\(low='start'.*rows 7, 9"
    ):
        IndependentMarginals().fit(frame, constraints=[RULES[0], RULES[3]])
