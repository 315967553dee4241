"""Data that mislead: what must be refused, told or kept apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pytest

from tests.tabular.timeseries.sets import visits, waves
from visynth.core.errors import DataError, UsageError
from visynth.core.stage import Stage
from visynth.tabular.timeseries import (
    IndependentChannels,
    Series,
    SeriesAR,
    SeriesDiffusion,
    SeriesGenerator,
    TimeVAE,
    WindowBootstrap,
    cut,
    from_arrays,
    read_series,
)
from visynth.tabular.timeseries.encoding import Encoding
from visynth.tabular.timeseries.evaluate import measure_series
from visynth.tabular.timeseries.kernels import Scales
from visynth.tabular.timeseries.metrics import discriminative, marginal_ks, predictive
from visynth.tabular.timeseries.reading import fitted_to
from visynth.tabular.timeseries.sessions import replay
from visynth.tabular.timeseries.trial import SeriesTrial, planned, run_series_trial
from visynth.tabular.timeseries.utility import SeriesCells, _Cell


def machines(count: int = 4, rows: int = 6, **columns: object) -> pd.DataFrame:
    own = {"m": np.repeat([f"m{k}" for k in range(count)], rows), "t": np.tile(np.arange(rows), count)}
    x = np.random.default_rng(0).normal(size=count * rows).round(2)
    return pd.DataFrame({**own, "x": x, **columns})


def test_a_series_without_a_class_is_not_given_one() -> None:
    with pytest.raises(DataError, match=r"1 series have no class \(the first: \[1\]\)"):
        from_arrays(np.zeros((3, 1, 4)), ["a", None, "b"])


def test_counters_identifiers_and_personal_data_are_asked_about() -> None:
    with pytest.raises(DataError, match="column 'rowid' looks like an identifier or a counter"):
        read_series(machines(rowid=np.arange(24)), entity="m", time="t")
    rows = machines(rowid=np.arange(24))
    assert "rowid" in read_series(rows, entity="m", time="t", kinds={"rowid": "numeric"}).schema.numbers
    people = machines(email=np.repeat([f"p{k}@x.org" for k in range(4)], 6))
    with pytest.raises(DataError, match="'email' holds personal data, which samples would repeat"):
        read_series(people, entity="m", time="t", statics=["email"])


def test_names_that_would_clash_are_refused() -> None:
    with pytest.raises(UsageError, match="'step' would clash"):
        read_series(machines(step=1.0), entity="m")
    with pytest.raises(DataError, match="names of channels must differ"):
        from_arrays(np.zeros((2, 2, 4)), channels=["a", "a"])


@pytest.mark.parametrize("values", [np.arange(24) % 7, np.arange(24) % 2 == 0, np.array(["u", "v"] * 12)])
def test_missing_rows_of_whole_numbers_and_truth_values_stay_missing(values: np.ndarray) -> None:
    rows = machines(own=values).drop(index=[2, 9])
    series = read_series(rows, entity="m", time="t")
    frame = series.frame()
    assert frame["own"].isna().sum() == 2
    again = frame["own"].dropna().tolist()
    assert again == rows["own"].tolist()
    assert SeriesAR(steps=2, width=8).fit(series).sample(3).frame()["own"].dtype == frame["own"].dtype


def test_times_that_drift_lose_no_row() -> None:
    parts = [machines(1, 3000), machines(1, 3000).assign(m="other", t=np.arange(3000) * 1.0005)]
    series = read_series(pd.concat(parts, ignore_index=True), entity="m", time="t")
    assert sorted(np.concatenate([series.values(0), series.values(1)])[:, 0].tolist()) == sorted(
        [*parts[0]["x"], *parts[1]["x"]]
    )


def test_what_is_no_grid_is_told_and_a_step_is_never_passed_over() -> None:
    rows = machines()
    rows.loc[5, "t"] = 100_000
    series = read_series(rows, entity="m", time="t")
    assert series.schema.step is None
    assert any("gaps between rows are modelled" in note for note in series.schema.notes)
    with pytest.raises(DataError, match="most of them missing"):
        read_series(rows, entity="m", time="t", step=1)


def test_cutting_tells_what_it_leaves_out_and_never_a_class() -> None:
    rows = pd.concat([machines(2, 30), machines(1, 5).assign(m="short")], ignore_index=True)
    assert any(
        "1 series shorter than 10 rows are left out ('short')" in n
        for n in cut(read_series(rows, entity="m", time="t"), 10).schema.notes
    )
    rows["bad"] = np.where(rows["m"] == "short", "yes", "no")
    with pytest.raises(DataError, match="no series of class 'yes' has 10 rows"):
        cut(read_series(rows, entity="m", time="t", target="bad"), 10)


def test_rows_without_times_are_regular_and_polars_comes_back() -> None:
    series = read_series(machines().drop(columns="t"), entity="m")
    assert series.schema.step == 1
    assert isinstance(read_series(polars.from_pandas(machines()), entity="m", time="t").frame(), polars.DataFrame)


def test_a_gap_that_the_fitted_series_never_have_is_unknown_and_filled() -> None:
    kinds = np.array(["a"] * 20 + ["z"] * 4)
    series = read_series(machines(kind=kinds), entity="m", time="t")
    holes = replace(
        series, channels={**series.channels, "kind": np.where(np.arange(24) % 2 == 0, -1, series.channels["kind"])}
    )
    encoding = Encoding.of(series, 6)
    x, known = encoding.encode(fitted_to(holes, series.schema))
    span = next(c.span for c in encoding.channels if c.categories)
    assert not known[::2, span].any()
    assert not x[::2, span].any()
    filled = SeriesDiffusion(steps=2, width=8, depth=1, heads=2, sampling_steps=2).fit(series).impute(holes, seed=1)
    assert (filled.channels["kind"] >= 0).all()
    assert (filled.channels["kind"][1::2] == series.channels["kind"][1::2]).all()


def test_missing_statics_can_be_saved(tmp_path: Path) -> None:
    rows = machines(load=np.repeat([1.5, np.nan, 2.5, 3.5], 6))
    series = read_series(rows, entity="m", time="t", statics=["load"], kinds={"load": "numeric"})
    generator = SeriesAR(steps=2, width=8).fit(series)
    generator.save(tmp_path / "g")
    assert SeriesGenerator.load(tmp_path / "g").digest == generator.digest
    assert np.isnan(SeriesGenerator.load(tmp_path / "g").fitted.statics["load"][1])


@pytest.mark.parametrize("kind", [WindowBootstrap, IndependentChannels])
def test_baselines_keep_every_static(kind: type[SeriesGenerator]) -> None:
    rows = machines(8, 4, who=np.repeat(["buyer", "looker"] * 4, 4))
    rows["x"] = np.where(rows["who"] == "buyer", 100.0, 0.0)
    series = read_series(rows, entity="m", time="t", statics=["who"])
    assert set(kind().fit(series).sample(20, conditions={"who": "buyer"}).channels["x"].tolist()) == {100.0}


def test_times_of_a_stream_do_not_depend_on_its_pieces_and_go_on() -> None:
    rows = visits()
    rows["at"] = rows["at"].round().astype(int) + rows.groupby("visit").cumcount()  # whole seconds, none twice
    irregular = SeriesAR(steps=5, width=8).fit(read_series(rows, entity="visit", time="at", target="kind"))
    times = [np.concatenate([p.times for p in irregular.stream(chunk=c, length=40, seed=2)]) for c in (1, 7, 40)]
    assert times[0].tolist() == times[1].tolist() == times[2].tolist()
    regular = SeriesAR(steps=2, width=8).fit(waves())
    steps = np.concatenate([p.frame()["step"] for p in regular.stream(chunk=3, length=9)])
    assert steps.tolist() == list(range(9))
    assert regular.forecast(waves().take([0]), 2).frame()["step"].tolist() == [24, 25]


def test_ends_of_series_are_not_lost_among_overlapping_windows() -> None:
    g = np.random.default_rng(0)
    rows = [pd.DataFrame({"m": f"m{k}", "x": g.normal(size=n)}) for k, n in enumerate(g.integers(40, 120, 20))]
    series = read_series(pd.concat(rows, ignore_index=True), entity="m", step=1)
    windows = Encoding.of(series, 24).windows(series)
    last = windows["weight"][np.arange(len(windows["steps"])), windows["steps"] - 1] * windows["ends"]
    assert last.sum() == pytest.approx(20)
    assert windows["weight"].sum() == pytest.approx(len(series.times), rel=1e-5)


def test_windows_that_are_shorter_than_series_are_told() -> None:
    assert any("drawn as windows of 12 rows" in note for note in TimeVAE(steps=2).fit(waves(), window=12).fitted.notes)


def test_copies_are_found_in_series_that_are_put_together() -> None:
    train, held = waves(20, 48), waves(20, 48, seed=1)
    figures = measure_series(WindowBootstrap().fit(train, window=16), train, held)
    assert figures["bootstrap"].copies == 1
    with pytest.raises(DataError, match="4 series a side at least, but there are 1 held-out"):
        measure_series(WindowBootstrap().fit(train), train, held.take([0]))


def test_padding_and_gaps_are_no_values() -> None:
    g = np.random.default_rng(0)
    real, far = g.normal(size=(19, 1, 500)), g.normal(size=(19, 1, 500)) + 5
    real[:, :, 20:] = far[:, :, 20:] = np.nan
    assert marginal_ks(real, far) > 0.95
    holes = np.where(g.random((19, 1, 500)) < 0.05, np.nan, g.normal(size=(19, 1, 500)))
    assert predictive(holes, holes).mean == pytest.approx(np.sqrt(2 / np.pi), abs=0.05)


def test_judges_see_long_series_to_their_end() -> None:
    x = np.zeros((2, 1, 1000))
    x[1, 0, 600:] = np.sin(np.arange(400))
    series = from_arrays(x)
    arrays = Scales.of(series).arrays(series)
    assert np.abs(arrays[1, 0, 300:]).sum() > 10
    assert Scales.of(series).arrays(series.piece(0, 600)).shape == arrays.shape


def test_an_interval_of_equal_sources_holds_nothing_as_often_as_it_says() -> None:
    g = np.random.default_rng(0)
    missed = sum(discriminative(g.normal(size=(40, 30)), g.normal(size=(40, 30)), seed=k).low > 0 for k in range(12))
    assert missed <= 3


def test_inner_parts_keep_entities_together() -> None:
    rows = machines(24, 20, bad=np.repeat(["no", "no", "yes"] * 8, 20))
    parts = cut(read_series(rows, entity="m", time="t", target="bad"), 5)
    positive = np.array(parts.labels()) == "yes"
    train = np.arange(len(parts))
    cell = _Cell(parts, positive, train[:72], train[72:], "yes", SeriesCells(most=3), lambda seed: WindowBootstrap(), 1)
    of_group: dict[str, set[int]] = {}
    for row, part in zip(cell.train, cell.parts, strict=True):
        of_group.setdefault(parts.groups[row], set()).add(int(part))
    assert all(len(own) == 1 for own in of_group.values())
    assert len({parts.groups[k] for k in cell.train[cell.positive]}) == 3
    assert not {parts.groups[k] for k in cell.more} & {parts.groups[k] for k in cell.train}


def test_a_plan_outlives_a_kill(tmp_path: Path) -> None:
    options, lines = SeriesTrial("ar", {"width": 8}, minutes=0.05), []
    _, first = planned(waves(), 1, options, Stage(tmp_path / "w", {"a": 1}), lines.append)
    Stage(tmp_path / "w", {"a": 1}).put(777, plan="steps")
    _, second = planned(waves(), 1, options, Stage(tmp_path / "w", {"a": 1}), lines.append)
    assert first is not None
    assert second == 777
    assert len(lines) == 1


def test_a_trial_refuses_before_its_first_cell(tmp_path: Path) -> None:
    rows = machines(24, 8, bad=np.repeat(["no", "odd", "yes"] * 8, 8), synthetic=0.3)
    series = read_series(rows, entity="m", time="t", target="bad")
    with pytest.raises(UsageError, match="has a column 'synthetic'"):
        run_series_trial(series, tmp_path / "o")
    own = read_series(rows.drop(columns="synthetic"), entity="m", time="t", target="bad")
    with pytest.raises(DataError, match=r"class 'odd' has(.|\n)*class 'yes' has"):
        run_series_trial(own, tmp_path / "o", rare=["odd", "yes"], options=SeriesTrial(cells=SeriesCells(folds=3)))
    assert not (tmp_path / "o").exists()


class Heavy(WindowBootstrap):
    """Sessions whose gaps have a heavy tail."""

    def sample(self, n, *, conditions=None, length=None, seed=0) -> Series:
        frames = []
        for number in range(n):
            g = np.random.default_rng([seed, number])
            frames.append(
                pd.DataFrame({"s": str(number), "t": np.cumsum(g.lognormal(0, 1.5, 6)).round(6), "x": g.normal(size=6)})
            )
        return read_series(pd.concat(frames, ignore_index=True), entity="s", time="t", kinds={"t": "numeric"})


def test_a_replay_of_sessions_with_heavy_tails_holds_its_rate() -> None:
    for seed in range(3):
        assert replay(Heavy(), 10.0, 30.0, seed=seed).rate == pytest.approx(10.0, rel=0.02)
