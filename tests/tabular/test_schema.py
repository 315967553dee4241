"""What kind a column is, the exact way there and back, and input that cannot be modelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pytest

from visynth.core.errors import DataError, OutputError, UsageError
from visynth.tabular import Masked, Schema, infer, read_table, write_table
from visynth.tabular.bins import Bins
from visynth.tabular.discrete import WIDE, Discretizer
from visynth.tabular.identifiers import Identifier


def test_kinds_are_seen_and_said(frame: pd.DataFrame) -> None:
    schema = infer(frame)
    assert {c.name: c.kind for c in schema.columns} == {
        "key": "id", "sex": "categorical", "city": "categorical", "income": "numeric", "visits": "integer",
        "children": "integer", "gain": "integer", "day": "datetime", "seen": "datetime", "smoker": "boolean",
        "price": "numeric", "unit": "constant", "empty": "constant", "note": "text", "answer": "categorical",
    }  # fmt: skip
    assert "key: an identifier, different in every row: regenerated" in schema.notes


def test_values_come_back_exactly(frame: pd.DataFrame) -> None:
    schema = infer(frame)
    back = Schema.from_json(json.loads(json.dumps(schema.to_json()))).frame(schema.table(frame))
    for column in schema.columns:
        if column.kind not in ("id", "text"):
            pd.testing.assert_series_equal(back[column.name], frame[column.name])
    assert list(back.columns) == list(frame.columns)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["007", "012", "100"] * 10, "categorical"),  # not numbers: zeros would be lost
        (["1.50", "2.00", "10.25"] * 10, "numeric"),
        (["1", " ", "30"] * 10, "integer"),
        (["2024-01-31", "2024-02-01", None] * 10, "datetime"),
        (["31/12/2024", "01/01/2025"] * 10, "datetime"),
        ([20240131, 20240201, 19991231] * 10, "datetime"),
        ([1, 2, None] * 10, "integer"),
        ([True, False, None] * 10, "boolean"),
        (
            [pd.Timestamp("2024-05-01 10:00", tz="Europe/Rome"), pd.Timestamp("2024-08-01", tz="Europe/Rome")],
            "datetime",
        ),
        ([f"user{i}@mail.org" for i in range(30)], "id"),
        ([f"+49 30 {i}{i}{i}456" for i in range(10, 40)], "id"),
        ([f"x{i:04d}y" for i in range(30)], "id"),
        (list(range(100, 140)), "id"),
        (["a long sentence number " + "ab" * i for i in range(30)], "text"),
        ([0.5] * 10, "constant"),
    ],
)
def test_awkward_columns_are_understood_and_come_back(values: list[Any], kind: str) -> None:
    frame = pd.DataFrame({"c": values})
    schema = infer(frame)
    assert schema["c"].kind == kind
    if schema["c"].modelled:
        pd.testing.assert_series_equal(schema.frame(schema.table(frame))["c"], frame["c"])


def test_dates_as_whole_numbers_stay_dates() -> None:
    days = [int(d.strftime("%Y%m%d")) for d in pd.date_range("2023-01-01", periods=200)]
    frame = pd.DataFrame({"day": days, "x": np.tile(np.arange(10), 20)})
    sample = Masked(steps=2).fit(frame).sample(200)
    assert sample["day"].dtype == "int64"
    assert sample["day"].between(20230101, 20230719).all()
    assert pd.to_datetime(sample["day"].astype(str), format="%Y%m%d").notna().all()


def test_identifiers_are_new_unique_and_of_the_same_form(frame: pd.DataFrame) -> None:
    schema = infer(frame)
    column = schema["key"]
    assert isinstance(column, Identifier)
    made = column.generate(np.arange(3000), seed=5)
    assert made.is_unique
    assert made.str.fullmatch(r"AB-\d{5}").all()
    assert not made.equals(column.generate(np.arange(3000), seed=6))
    emails = infer(pd.DataFrame({"e": [f"anna{i}@mail.org" for i in range(40)]}))["e"]
    assert isinstance(emails, Identifier)
    assert not emails.generate(np.arange(40), 0).str.contains("anna").any()
    running = infer(pd.DataFrame({"n": np.arange(100)}))["n"]
    assert isinstance(running, Identifier)
    assert running.generate(np.arange(2), 0).tolist() == [100, 101]  # after the real ones


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"a": []}), "it has 0 rows"),
        (pd.DataFrame(), "it has no columns"),
        (pd.DataFrame({"a": [1]}), "it has 1 rows, and a model needs at least 10"),
        (pd.DataFrame([[1, 2]] * 20, columns=["a", "a"]), "columns 'a' stand twice"),
        (pd.DataFrame([[1]] * 20, columns=[0]), "columns 0 have no text as their name"),
        (pd.DataFrame({"a": [1, "two"] * 10}), r"column 'a': mixed types: 10 times (number|text), but"),
        (pd.DataFrame({"a": [1.0, np.inf] * 10}), "column 'a': infinite values in rows 1, 3, 5, 7, 9 and 5 more"),
        (pd.DataFrame({"a": [[1], [2]] * 10}), "column 'a': values of type list in rows 0, 1, 2"),
        (pd.DataFrame({"a": ["1"] * 99 + ["two"]}), r"'a' has mixed types: 99.0% numbers, but 'two' in rows \[99\]"),
        (pd.DataFrame({"a": ["x"] * 20}), "no column to model"),
    ],
)
def test_unusable_frames_are_refused_with_column_and_row(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Masked(steps=1).fit(frame)


def test_all_problems_are_told_at_once() -> None:
    frame = pd.DataFrame({"a": [1.0, np.inf] * 10, "b": [1, "x"] * 10})
    with pytest.raises(DataError, match=r"(?s)2 problems.*'a': infinite.*'b': mixed"):
        Masked(steps=1).fit(frame)


def test_wrong_declarations_are_told_together(frame: pd.DataFrame) -> None:
    with pytest.raises(
        UsageError, match=r"(?s)'nothing', which is no column.*kind 'number' of column 'sex' is none of"
    ):
        infer(frame, {"nothing": "id", "sex": "number"})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="'sex' was declared a number"):
        infer(frame, {"sex": "numeric"})
    with pytest.raises(DataError, match="declared boolean, but has more than two"):
        infer(frame, {"children": "boolean"})


def test_a_frame_that_does_not_fit_the_schema_is_refused(frame: pd.DataFrame) -> None:
    schema = infer(frame)
    other = frame.assign(sex="none", income="much").drop(columns="gain")
    with pytest.raises(
        DataError, match=r"(?s)'gain' is missing.*'sex': values that the fitted.*'none'.*'income': not numbers"
    ):
        schema.table(other)


def test_files_come_back_as_they_were(frame: pd.DataFrame, tmp_path: Path) -> None:
    plain = frame.assign(zip=["00123", "10405"] * 200).drop(columns="seen")
    for name in ("t.csv", "t.parquet"):
        assert write_table([plain.iloc[:100], plain.iloc[100:]], tmp_path / name) == 400
        again = read_table(tmp_path / name)
        assert again["zip"].tolist() == plain["zip"].tolist()
        assert str(again["children"].dtype) == "Int64"
        assert list(again.columns) == list(plain.columns)
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="columns 'a' stand twice"):
        read_table(tmp_path / "twice.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="is empty"):
        read_table(tmp_path / "empty.csv")
    with pytest.raises(DataError, match="there is no file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(UsageError, match=r"read from '.csv', '.parquet'"):
        read_table(_touched(tmp_path / "t.xlsx"))
    with pytest.raises(OutputError, match="there is no folder"):
        write_table([plain], tmp_path / "none" / "t.csv")
    assert not list(tmp_path.glob(".*"))


def _touched(path: Path) -> Path:
    path.touch()
    return path


def test_polars_in_polars_out() -> None:
    frame = polars.DataFrame(
        {"x": [1, None, 3, 4] * 10, "c": ["a", "b", None, "b"] * 10, "f": [0.5, 1.5, 2.5, None] * 10}
    )
    schema = infer(frame)
    assert schema.frame(schema.table(frame)).equals(frame)
    sample = Masked(steps=2).fit(frame).sample(20)
    assert isinstance(sample, polars.DataFrame)
    assert sample.schema == frame.schema


def test_spikes_are_kept_and_no_bin_holds_few_rows() -> None:
    g = np.random.default_rng(0)
    values = np.concatenate([np.zeros(500), np.round(g.lognormal(5, 1, 500))])
    bins = Bins.of(values, most=20, least=10, unit=1)
    assert 0.0 in bins.spikes
    assert bins.size <= 20
    codes = bins.encode(values)
    assert np.bincount(codes, minlength=bins.size).min() >= 10
    drawn = bins.decode(codes, g.random(1000))
    assert (drawn[:500] == 0).all()
    assert (drawn == np.round(drawn)).all()
    assert (bins.encode(drawn)[drawn != 0] == codes[drawn != 0]).mean() > 0.98
    # The largest values are not those of single rows.
    assert drawn.max() <= np.sort(values)[-10]


def test_twenty_thousand_categories_need_no_wide_field() -> None:
    g = np.random.default_rng(0)
    frame = pd.DataFrame({"shop": [f"s{k}" for k in g.integers(0, 3000, 60_000)], "x": g.random(60_000).round(2)})
    schema = infer(frame, {"shop": "categorical"})
    table = schema.table(frame)
    discretizer = Discretizer.of(schema, table)
    assert max(field.size for field in discretizer.fields) <= WIDE
    codes = discretizer.encode(table)
    back = discretizer.decode(codes, g.random(codes.shape))
    assert (back["shop"] == table["shop"]).all()


def test_rare_categories_are_left_out_and_counted_and_too_many_are_refused() -> None:
    frame = pd.DataFrame({"c": ["a"] * 60 + ["b"] * 38 + ["odd", "odder"], "x": np.arange(100) % 7})
    model = Masked(steps=3).fit(frame)
    assert "c: 2 categories of 2 rows, with fewer than 5 each, are too rare" in " ".join(model.fitted.notes)
    assert set(model.sample(500)["c"]) == {"a", "b"}
    kept = Masked(steps=3).fit(frame, target="c")  # of a class column all values are modelled
    assert set(kept.sample(50, conditions={"c": "odd"})["c"]) == {"odd"}
    many = frame.assign(c=["a"] * 40 + [f"v{k}" for k in range(60)])
    pairs = frame.assign(c=["a"] * 40 + [f"v{k // 2}" for k in range(60)])  # a small table may keep what two rows have
    assert Masked(steps=2).fit(pairs).sample(200)["c"].nunique() > 5
    with pytest.raises(DataError, match=r"column 'c': 60% of the rows have a category of fewer than 2 rows"):
        Masked(steps=3).fit(many)
