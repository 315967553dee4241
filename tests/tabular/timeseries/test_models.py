"""What each model of series must learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.ranks import run_ranks
from tests.tabular.killed import killed_at
from tests.tabular.timeseries.sets import sessions, waves
from visynth.cli import main
from visynth.core.errors import Diverged
from visynth.tabular.timeseries import SeriesAR, SeriesDiffusion, SeriesGenerator, TimeVAE, from_arrays, read_arrays
from visynth.tabular.timeseries.metrics import spectrum
from visynth.tabular.timeseries.sessions import check_sessions

MODELS = {
    "ar": lambda: SeriesAR(steps=250, width=48, lr=5e-3),
    "diffusion": lambda: SeriesDiffusion(steps=500, width=64, depth=1, lr=3e-3),
    "vae": lambda: TimeVAE(steps=600, latent=4, lr=2e-3, ema=0.98),
}


def loudest(series) -> np.ndarray:
    """Cycles in a series of its loudest frequency, by series."""
    return np.array([spectrum(series.values(k).T[None])[0].argmax() + 1 for k in range(len(series))])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_classes_keep_their_frequency_and_channels_their_sign(name: str) -> None:
    generator = MODELS[name]().fit(waves(24))
    slow, fast = (generator.sample(16, conditions={"class": label}, seed=1) for label in ("slow", "fast"))
    assert np.mean(loudest(slow) <= 3) > 0.8, loudest(slow)
    assert np.mean(np.abs(loudest(fast) - 6) <= 1) > 0.8, loudest(fast)
    values = np.concatenate([slow.values(k) for k in range(16)])
    assert np.corrcoef(values.T)[0, 1] < -0.6


def test_a_forecast_goes_on_with_the_wave() -> None:
    real = waves(24, 36)
    generator = SeriesDiffusion(steps=600, width=64, depth=1, lr=3e-3).fit(real)
    ahead = generator.forecast(real.piece(0, 30), 6, seed=1)
    error = np.concatenate([ahead.values(k)[:, 0] - real.values(k)[30:36, 0] for k in range(len(real))])
    still = np.concatenate([real.values(k)[29, 0] - real.values(k)[30:36, 0] for k in range(len(real))])
    assert np.abs(error).mean() < 0.5 * np.abs(still).mean()


def test_gaps_are_filled_by_what_stands_around_them() -> None:
    real = waves(24)
    generator = SeriesDiffusion(steps=600, width=64, depth=1, lr=3e-3).fit(real)
    hidden = (np.arange(len(real.times)) % 24 >= 9) & (np.arange(len(real.times)) % 24 < 13)
    holes = {"channel_1": np.where(hidden, np.nan, real.channels["channel_1"]), "channel_2": real.channels["channel_2"]}
    filled = generator.impute(replace(real, channels=holes), seed=1)
    error = filled.channels["channel_1"][hidden] - real.channels["channel_1"][hidden]
    assert np.abs(error).mean() < 0.3  # of a wave between -1 and 1


def test_sessions_learn_events_gaps_and_lengths() -> None:
    real, fresh = sessions(120), sessions(120, seed=9)
    generator = SeriesAR(steps=350, width=48, lr=5e-3).fit(real)
    drawn = generator.sample(120, seed=1)
    figures, floor = check_sessions(fresh, drawn), check_sessions(fresh, real)
    for name, value in figures.items():
        assert value < floor[name] + 0.15, (name, value, floor[name])
    assert (drawn.channels["what"][drawn.offsets[:-1]] == real.channels["what"][0]).all()  # all begin with a view
    views = drawn.channels["what"] == real.channels["what"][0]
    assert np.isnan(drawn.channels["spent"][views]).mean() > 0.9
    gaps = [
        np.diff(g.times).clip(0).mean()
        for g in (generator.sample(60, conditions={"kind": k}) for k in ("slow", "quick"))
    ]
    assert gaps[0] > 1.3 * gaps[1]


def test_a_killed_fit_goes_on_to_the_same_generator(tmp_path, monkeypatch) -> None:
    np.savez(tmp_path / "w.npz", x=np.stack([waves().values(k).T for k in range(12)]), y=np.array(waves().labels()))
    words = ["series", "fit", "--data", str(tmp_path / "w.npz"), "--arrays", "['x','y']", "--out", str(tmp_path / "g")]
    words += ["--arguments", "{steps: 20, width: 16}", "--quiet"]

    killed_at(11, words, monkeypatch)
    assert not (tmp_path / "g").exists()
    assert len(list((tmp_path / "g.work").rglob("last.ckpt"))) == 1
    assert main(words) == 0
    straight = SeriesAR(steps=20, width=16).fit(read_arrays(tmp_path / "w.npz", "x", "y"))
    assert SeriesGenerator.load(tmp_path / "g").digest == straight.digest
    assert not (tmp_path / "g.work").exists()


def worker(rank: int, out: str) -> None:
    from visynth.tabular.training import default_trainer

    generator = SeriesDiffusion(steps=5, width=16, depth=1, heads=2, batch_size=8)
    generator.fit(waves(), trainer=default_trainer(accelerator="cpu", devices=2, strategy="ddp"))
    if rank == 0:
        generator.save(out)


def test_two_processes_train_as_one(tmp_path) -> None:
    run_ranks(worker, str(tmp_path / "g"))
    both = SeriesGenerator.load(tmp_path / "g")
    one = SeriesDiffusion(steps=5, width=16, depth=1, heads=2, batch_size=8).fit(waves())
    for name, own in one.weights().items():
        np.testing.assert_allclose(both.weights()[name].numpy(), own.numpy(), atol=2e-4)


def test_a_training_that_diverges_says_so() -> None:
    with pytest.raises(Diverged, match="Lower the learning rate"):
        TimeVAE(steps=30, lr=1e9).fit(waves())


def test_trend_and_seasons_are_terms_of_their_own() -> None:
    rows = np.arange(20.0)[None, None] * np.linspace(0.5, 1.5, 12)[:, None, None]
    series = from_arrays(rows)
    diffusion = SeriesDiffusion(steps=600, width=32, depth=1, trend=1, seasons=2, lr=3e-3).fit(series)
    assert diffusion.weights()["terms.weight"].abs().sum() > 0
    drawn = diffusion.sample(8, seed=1)
    assert all(np.corrcoef(drawn.values(k)[:, 0], np.arange(20))[0, 1] > 0.8 for k in range(8))
    seasonal = TimeVAE(steps=3, seasons=(6,)).fit(waves())
    assert "season.0.weight" in seasonal.weights()


def test_numbers_of_statics_are_conditions_too() -> None:
    from visynth.tabular.timeseries import read_series

    g, rows = np.random.default_rng(0), []
    for number in range(30):
        level = float(number % 3)
        rows += [{"m": f"m{number}", "t": t, "load": level, "x": 4 * level + g.normal()} for t in range(8)]
    series = read_series(pd.DataFrame(rows), entity="m", time="t", statics=["load"], kinds={"load": "numeric"})
    generator = SeriesAR(steps=150, width=24, lr=5e-3).fit(series)
    means = [np.mean(generator.sample(20, conditions={"load": level}).channels["x"]) for level in (0.0, 2.0)]
    assert means[1] - means[0] == pytest.approx(8, abs=1.5)
