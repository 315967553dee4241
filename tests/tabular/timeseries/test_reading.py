from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.tabular.timeseries.sets import sessions, visits, waves
from visynth.core.errors import DataError, UsageError
from visynth.tabular.timeseries import cut, from_arrays, read_arrays, read_series
from visynth.tabular.timeseries.cutting import stretches
from visynth.tabular.timeseries.encoding import Encoding, windows_of
from visynth.tabular.timeseries.reading import fitted_to
from visynth.tabular.timeseries.series import joined


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "m": ["a"] * 4 + ["b"] * 4,
            "t": pd.to_datetime(["2024-01-01 00:00", "2024-01-01 00:10", "2024-01-01 00:20", "2024-01-01 00:40"] * 2),
            "x": [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.5],
            "state": ["on", "on", "off", "on", "off", "off", "on", "on"],
            "bad": ["no"] * 4 + ["yes"] * 4,
        }
    )


def test_a_frame_comes_back_as_it_was() -> None:
    series = read_series(visits(), entity="visit", time="at", target="kind")
    back = series.frame()
    pd.testing.assert_frame_equal(back[visits().columns.tolist()], visits(), check_dtype=False)


def test_missing_rows_of_a_regular_series_are_filled_in_and_told() -> None:
    series = read_series(frame(), entity="m", time="t", target="bad")
    assert series.schema.step == 600
    assert series.lengths.tolist() == [5, 5]
    assert np.isnan(series.values(0)[3, 0])
    assert series.channels["state"][3] == -1
    assert any("2 rows are missing between others" in note for note in series.schema.notes)


def test_times_that_are_no_grid_are_irregular() -> None:
    assert sessions().schema.step is None


def test_every_doubt_about_times_is_told_at_once() -> None:
    rows = pd.concat([frame(), frame().iloc[[1, 6]].assign(x=9.0)], ignore_index=True)
    rows.loc[0, "bad"] = "yes"
    with pytest.raises(DataError) as error:
        read_series(rows, entity="m", time="t", target="bad")
    said = str(error.value)
    assert "2 times stand twice within a series" in said
    assert "2024-01-01 00:10:00 of 'a' in rows [1, 8]" in said
    assert "column 'bad' changes within 1 series ('a' has ['yes', 'no']" in said


def test_unequal_lengths_need_times_or_a_word() -> None:
    rows = frame().drop(index=7).drop(columns="t")
    with pytest.raises(DataError, match=r"'b' has 3 rows, 'a' 4\) and no times: name the column of times"):
        read_series(rows, entity="m", target="bad")
    assert read_series(rows, entity="m", target="bad", step=1).lengths.tolist() == [4, 3]


def test_words_that_name_no_column_and_times_that_are_missing() -> None:
    with pytest.raises(UsageError, match=r"no column 'when'(.|\n)*'m' is named twice(.|\n)*step must be above 0"):
        read_series(frame(), entity="m", time="when", target="m", step=0)
    with pytest.raises(DataError, match="rows without a time"):
        read_series(frame().assign(t=frame()["t"].where(frame()["x"] != 2)), entity="m", time="t")
    with pytest.raises(DataError, match="there is no channel"):
        read_series(frame()[["m", "t"]], entity="m", time="t")
    with pytest.raises(DataError, match="no multiples of step=420"):
        read_series(frame(), entity="m", time="t", step=420)


def test_rows_are_put_in_the_order_of_their_times() -> None:
    shuffled = frame().sample(frac=1, random_state=1)
    again = read_series(shuffled, entity="m", time="t", target="bad")
    first = read_series(frame(), entity="m", time="t", target="bad")
    order = [again.names.index(name) for name in first.names]
    assert again.take(order).hashes() == first.hashes()


def test_arrays_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shape"):
        from_arrays(np.zeros((3, 4)))
    with pytest.raises(DataError, match="2 series, but 3 labels"):
        from_arrays(np.zeros((2, 1, 4)), ["a", "b", "c"])
    with pytest.raises(DataError, match="infinite"):
        from_arrays(np.full((2, 1, 4), np.inf))
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 1, 4)), y=np.array(["a", "b"]))
    assert read_arrays(tmp_path / "x.npz", "x", "y").labels() == ["a", "b"]
    with pytest.raises(DataError, match=r"no array 'z'"):
        read_arrays(tmp_path / "x.npz", "x", "z")
    np.savez(tmp_path / "p.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read as arrays"):
        read_arrays(tmp_path / "p.npz", "x")


def test_stretches_of_one_machine_stay_with_their_neighbours() -> None:
    rows = pd.DataFrame({"x": np.arange(1003.0)})
    parts = cut(read_series(rows), 20)
    assert len(parts) == 50
    assert parts.group_names == stretches(["1"] * 50)
    assert len(set(parts.groups)) == 10
    assert list(parts.groups) == sorted(parts.groups, key=lambda name: int(name.split()[1]))
    assert any("3 rows at the ends" in note for note in parts.schema.notes)


def test_taking_and_joining_are_inverse() -> None:
    series = sessions()
    again = joined([series.take([k]) for k in range(len(series))])
    assert again.hashes() == series.hashes()
    assert again.times.tolist() == series.times.tolist()


@pytest.mark.parametrize("series", [waves(), sessions(), read_series(frame(), entity="m", time="t", target="bad")])
def test_encoding_and_back_is_exact(series) -> None:
    encoding = Encoding.of(series, 8)
    x, known = encoding.encode(series)
    table, gaps = encoding.decode(x.astype(np.float64))
    for name, values in series.channels.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-5, atol=1e-5)
    assert known.shape == x.shape
    if series.schema.step is None:
        inside = np.setdiff1d(np.arange(len(gaps)), series.offsets[:-1])
        np.testing.assert_allclose(gaps[inside], np.diff(series.times, prepend=0)[inside], rtol=1e-4)


def test_windows_cover_every_row_and_say_where_a_series_starts_and_ends() -> None:
    series = waves(4, 30)
    starts, owners = windows_of(series, 12)
    for number in range(4):
        own = starts[owners == number] - series.offsets[number]
        assert own[0] == 0
        assert own[-1] == 18
        assert (np.diff(own) <= 12).all()
    windows = Encoding.of(series, 12).windows(series)
    assert windows["ends"].sum() == 4
    assert windows["condition"][:, -1].sum() == 4


def test_series_for_a_generator_must_have_its_terms() -> None:
    series = waves()
    other = from_arrays(np.zeros((2, 2, 24)), ["slow", "odd"], step=2.0)
    with pytest.raises(DataError, match=r"fitted data do not have(.|\n)*step between rows is 2.0"):
        fitted_to(other, series.schema)
    assert fitted_to(series, series.schema).hashes() == series.hashes()
