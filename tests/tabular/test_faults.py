"""Faults that a reading found, each as the test that would have found it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pytest
import torch

from tests.tabular.tables import dependent
from visynth.core.errors import DataError, UsageError
from visynth.tabular import (
    CTGAN,
    ForeignKey,
    GaussianCopula,
    IndependentMarginals,
    Inequality,
    Masked,
    Relational,
    TableTrial,
    Unique,
    infer,
    oversample,
    read_table,
    run_trial,
)
from visynth.tabular.attacks import attack
from visynth.tabular.bins import Bins
from visynth.tabular.evaluate import check_held_out, triad
from visynth.tabular.mixed import Mixed
from visynth.tabular.utility import rare_class, train_on_synthetic


def test_a_gans_fit_depends_on_its_seed_alone_and_leaves_randomness_alone() -> None:
    digests = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        digests.append(CTGAN(steps=3, width=16, batch_size=50, seed=3).fit(dependent(100)).digest)
        assert torch.equal(torch.get_rng_state(), before)
    assert digests[0] == digests[1]


def test_what_one_row_has_is_not_sampled() -> None:
    kids = [0] * 200 + [1] * 150 + [2] * 100 + [3] * 49 + [17]
    assert Bins.of(np.array(kids, float), 100, 5, 1).encode(np.array([17.0])).tolist() == [3]
    frame = pd.DataFrame({"kids": kids, "x": np.random.default_rng(0).random(500).round(3)})
    for model in (GaussianCopula(), IndependentMarginals()):
        assert 17 not in set(model.fit(frame).sample(20_000)["kids"])
    schema = infer(frame)
    mixed = Mixed.of(schema, schema.table(frame), "quantiles")
    codes, places = mixed.encode(schema.table(frame))
    assert 17 not in set(mixed.decode(codes.astype(np.int64), places)["kids"])


def test_a_category_without_rows_cannot_be_asked_for(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"d": pd.Categorical(["u"] * 150 + ["v"] * 50, categories=["u", "v", "z"]), "y": ["a", "b"] * 100}
    )
    model = Masked(steps=3, width=16, depth=1).fit(frame)
    for one in (model, Masked.load(model.save(tmp_path / "g"))):
        with pytest.raises(UsageError, match="column 'd': no fitted row has 'z'"):
            one.sample(5, conditions={"d": "z"})
        assert set(one.sample(50, conditions={"d": ["z", "v"]})["d"]) == {"v"}


def test_cells_keep_groups_apart_inside_too() -> None:
    frame, seen = dependent(240), []
    groups = [f"g{k // 4}" for k in range(240)]

    class Spy(IndependentMarginals):
        def fit_table(self, schema: Any, table: Any, *arguments: Any, **more: Any) -> Any:
            seen.append(set(table["group"].tolist()))
            return super().fit_table(schema, table, *arguments, **more)

    named = frame.assign(group=groups)
    schema = infer(named, {"group": "categorical"}, "kind")
    rare_class(named, schema, "kind", "b", lambda seed: Spy(seed=seed), draws=1, folds=2, groups=groups)
    inner, outer = seen[0], seen[1]  # the generator for the choice sees whole groups of the cell's training groups
    assert inner < outer
    few = [f"g{k // 200}" for k in range(240)]
    with pytest.raises(DataError, match="has rows of 2 groups: 3 folds need as many"):
        rare_class(named, schema, "kind", "b", lambda seed: Spy(), draws=1, folds=3, groups=few)


def test_copies_are_not_authentic_and_parts_are_drawn_by_chance() -> None:
    frame = dependent(500).sort_values("level", ignore_index=True)
    train, held = frame.iloc[::2].reset_index(drop=True), frame.iloc[1::2].reset_index(drop=True).iloc[:120]

    class Copier(IndependentMarginals):
        def rows(self, numbers: Any, *arguments: Any, **more: Any) -> Any:
            table = self.schema.table(train)
            return {name: values[numbers % len(train)] for name, values in table.items()}, numbers

    measured = triad(Copier().fit(train, target="kind"), train, held)
    assert measured.diversity["marginals"]["authenticity"] == 0.0
    with pytest.raises(DataError, match="are rows that the generator was fitted to"):
        check_held_out(GaussianCopula().fit(train), infer(train), infer(train).table(train.iloc[:40]))


def test_helping_columns_do_not_meet_the_users() -> None:
    people = pd.DataFrame({"id": range(40), "start": np.arange(40) % 7})
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(80) % 50, unit="D")
    visits = pd.DataFrame(
        {"who": np.repeat(range(40), 2), "place": ["a", "b"] * 40, "start": np.arange(80) % 5, "day": days}
    )
    sample = (
        Relational([ForeignKey("visits", "who", "people", "id", "day")], "copula")
        .fit({"people": people, "visits": visits})
        .sample(50)
    )
    assert set(sample["visits"]["place"]) == {"a", "b"}
    assert (sample["visits"]["day"] == sample["visits"]["day"].dt.normalize()).all()
    with pytest.raises(DataError, match="begin with 'visynth:'"):
        Relational([ForeignKey("visits", "who", "people", "id")]).fit(
            {"people": people, "visits": visits.assign(**{"visynth:x": 1})}
        )


def test_files_are_read_without_changing_a_value(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "id,code,price,n,big\n"
        + "".join(f"1234567890123456789{k},{k}2E4,{k}.50,{k},123456789012345678\n" for k in range(1, 9))
    )
    frame = read_table(tmp_path / "t.csv")
    assert frame["id"].iloc[0] == "12345678901234567891"
    assert frame["code"].iloc[0] == "12E4"
    assert frame["price"].tolist()[:2] == [1.5, 2.5]
    assert str(frame["n"].dtype) == "int64"
    assert frame["big"].iloc[0] == 123456789012345678


def test_identifiers_and_unique_keys_hold_over_all_classes() -> None:
    frame = pd.DataFrame(
        {"i": range(60), "y": ["a"] * 40 + ["b"] * 12 + ["c"] * 8, "k": np.arange(60), "x": np.arange(60) % 7}
    )
    frame["k"] = np.random.default_rng(0).permutation(60) * 3
    model = IndependentMarginals().fit(frame, target="y", constraints=[Unique(["k"])])
    balanced = oversample(frame, target="y", generator=model)
    assert balanced["i"].is_unique
    assert balanced["k"].is_unique  # real ones among them
    gaps = pd.DataFrame({"k": [1.5, None, None] + [k / 2 for k in range(20)], "x": range(23)})
    assert (
        Unique(["k"]).broken(infer(gaps).table(gaps), infer(gaps)).sum() == 1
    )  # 1.5 stands twice; missing ones are none


def test_a_class_of_one_row_stops_neither_trees_nor_smote() -> None:
    frame = dependent(200)
    frame.loc[0, "kind"] = "alone"
    schema = infer(frame, target="kind")
    table = schema.table(frame)
    assert 0.5 < train_on_synthetic({"real": table}, table, schema, "kind", seeds=[0])["real"][0] <= 1
    results = rare_class(frame, schema, "kind", "c", lambda seed: IndependentMarginals(), draws=1, folds=2)
    assert "smote" in results.tested


def test_a_condition_has_as_many_digits_as_its_column() -> None:
    frame = pd.DataFrame({"n": np.arange(100) % 9, "p": np.random.default_rng(0).random(100).round(2)})
    model = IndependentMarginals().fit(frame)
    with pytest.raises(UsageError, match=r"(?s)'n' has values like 4, not 4.4.*'p' has values like 0.12, not 0.123"):
        model.sample(3, conditions={"n": 4.4, "p": 0.123})
    assert (model.sample(3, conditions={"p": 0.12})["p"] == 0.12).all()


def test_objects_come_back_as_what_they_were() -> None:
    frame = pd.DataFrame(
        {
            "t": pd.Series(["1", "22", "3"] * 10, dtype=object), "m": pd.Series(["0.50", "?", "1.25"] * 10, dtype=object),
            "d": pd.Series([datetime.date(2024, 1, 5), datetime.date(2024, 3, 1), None] * 10, dtype=object),
            "c": pd.Categorical(["u"] * 30, categories=["u", "v"], ordered=True),
        }
    )  # fmt: skip
    schema = infer(frame)
    pd.testing.assert_frame_equal(schema.frame(schema.table(frame)), frame)
    times = pd.DataFrame(
        {
            "t": pd.Series(
                [datetime.datetime(2024, 1, 5, 5, 30)] * 20 + [datetime.datetime(2024, 1, 6)] * 20, dtype=object
            )
        }
    )
    with pytest.raises(DataError, match=r"convert it with pandas\.to_datetime"):
        infer(times)
    with pytest.raises(DataError, match="categories of type Interval: convert it with astype"):
        infer(pd.DataFrame({"b": pd.cut(np.arange(40), 4)}))
    with pytest.raises(DataError, match="was declared id, but holds datetime64"):
        infer(pd.DataFrame({"d": pd.date_range("2024", periods=30)}), {"d": "id"})
    assert infer(pd.DataFrame({"q": [None] * 20, "x": range(20)}), {"q": "constant"})["q"].kind == "constant"
    with pytest.raises(DataError, match=r"beyond 2\*\*53"):
        infer(pd.DataFrame({"n": [2**60 + 1, 2**60 + 3] * 20}))


def test_an_honest_generator_is_not_called_leaking_by_few_members() -> None:
    """Many synthetic rows share few nearest real ones: these are no independent coins."""
    g, alarms = np.random.default_rng(0), 0
    schema = infer(pd.DataFrame(g.standard_normal((50, 2)), columns=["a", "b"]))
    for seed in range(40):
        members, controls, fake = ({"a": g.standard_normal(n), "b": g.standard_normal(n)} for n in (60, 60, 1500))
        alarms += "distance to closest record" in attack(members, controls, fake, schema, seed=seed).leaks
    assert alarms <= 1


def test_a_trial_refuses_before_it_fits(tmp_path: Path) -> None:
    frame = dependent(60)
    with pytest.raises(UsageError, match="has a column 'synthetic'"):
        run_trial(frame.assign(synthetic=1), "kind", tmp_path / "o")
    with pytest.raises(DataError, match=r"target 'kind' has 1 missing values"):
        oversample(frame.mask(pd.DataFrame({"kind": frame.index == 3}), None), target="kind")
    options = TableTrial("marginals", draws=1, folds=2)
    report = run_trial(polars.from_pandas(dependent(200)), "kind", tmp_path / "p", rare=["b"], options=options)
    assert [v.label for v in report.verdicts] == ["b"]


def test_filling_keeps_the_index_and_the_rules_that_can_be_kept() -> None:
    g = np.random.default_rng(0)
    low = g.integers(0, 50, 200)
    frame = pd.DataFrame({"lo": low, "hi": low + g.integers(0, 20, 200)}).astype("float64")
    model = GaussianCopula().fit(frame, constraints=[Inequality("lo", "hi")])
    holes = frame.copy().set_axis(range(100, 300))
    holes.iloc[::2, 1] = np.nan
    filled = model.impute(holes)
    assert list(filled.index) == list(holes.index)
    assert (filled["lo"] <= filled["hi"]).mean() > 0.99
