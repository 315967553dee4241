"""Sessions and their replay, lidar scans."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tabular.timeseries.sets import sessions
from visynth.core.errors import DataError, UsageError
from visynth.tabular.timeseries import SeriesAR, WindowBootstrap
from visynth.tabular.timeseries.lidar import check_scans, from_scans, to_scans
from visynth.tabular.timeseries.sessions import check_sessions, replay


@pytest.fixture(scope="module")
def model() -> SeriesAR:
    return SeriesAR(steps=60, width=24, lr=5e-3).fit(sessions())


@pytest.mark.parametrize(("rate", "seconds"), [(5.0, 60.0), (40.0, 30.0), (0.5, 400.0)])
def test_a_replay_holds_its_rate(model, rate: float, seconds: float) -> None:
    drawn = replay(model, rate, seconds, seed=3)
    assert drawn.rate == pytest.approx(rate, rel=0.02)
    assert (np.diff(drawn.times) >= 0).all()
    assert 0 <= drawn.times[0] <= drawn.times[-1] < seconds
    thirds = np.histogram(drawn.times, 3, (0, seconds))[0]
    expected = rate * seconds / 3
    assert (np.abs(thirds - expected) < 6 * np.sqrt(4 * expected)).all()  # from the first second to the last


def test_arrivals_keep_the_times_within_a_session(model) -> None:
    drawn = replay(model, 10.0, 60.0, seed=1)
    frame = drawn.frame()
    assert frame.columns.tolist() == ["at", "visit", "kind", "what", "spent"]
    for number in np.unique(drawn.session)[:20]:
        mine = drawn.session == number
        own = drawn.sessions.times[drawn.rows[mine]]
        np.testing.assert_allclose(np.diff(drawn.times[mine]), np.diff(own), atol=1e-6)
    assert (replay(model, 10.0, 60.0, seed=1).times == drawn.times).all()
    with pytest.raises(UsageError, match=r"rate must be above 0(.|\n)*seconds must be above 0"):
        replay(model, 0, -1)
    with pytest.raises(UsageError, match="sessions would be needed"):
        replay(model, 1e9, 60.0)


def test_sessions_are_compared_with_themselves_and_with_others() -> None:
    real = sessions()
    assert set(check_sessions(real, real).values()) == {0.0}
    assert check_sessions(real, WindowBootstrap().fit(real).sample(400, seed=1))["length"] < 0.15


def scans(count: int = 6, steps: int = 10, beams: int = 12, seed: int = 0) -> np.ndarray:
    g = np.random.default_rng(seed)
    walls = 5 + 2 * np.sin(np.linspace(0, 3, beams)) + 0.2 * g.standard_normal((count, 1, 1))
    found = walls + 0.02 * g.standard_normal((count, steps, beams))
    found[:, ::3, 4:7] = np.inf
    found[0, 0, 0] = 0.0
    return found


def test_scans_keep_their_beams_and_drop_outs() -> None:
    raw = scans()
    series = from_scans(raw, most=30.0)
    back = to_scans(series).reshape(raw.shape)
    echo = np.isfinite(raw) & (raw > 0)
    np.testing.assert_array_equal(back[echo], raw[echo])
    assert np.isinf(back[~echo]).all()
    assert series.schema.channels.names[0] == "beam_-90.0"
    with pytest.raises(DataError, match=r"no echo between 0\.0 and 3\.0 in any scan"):
        from_scans(raw, most=3.0)
    with pytest.raises(UsageError, match="most must be above least"):
        from_scans(raw, least=5, most=5)


def test_scans_by_a_model_have_drop_outs_where_real_ones_have() -> None:
    real = from_scans(scans(20), most=30.0)
    figures = check_scans(real, SeriesAR(steps=120, width=48, lr=5e-3).fit(real).sample(20, seed=1))
    assert figures["outside"] == 0
    assert figures["drop-outs"] < 0.15
    assert set(check_scans(real, real).values()) == {0.0}
    far = from_scans(np.random.default_rng(0).permuted(scans(20), axis=2), most=30.0)
    assert check_scans(real, far)["steps"] > 0.2
    assert check_scans(real, far)["runs"] > 0.2
