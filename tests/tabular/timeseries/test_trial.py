"""The verdict on series, and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.tabular.timeseries.sets import visits, waves
from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.core.report import read_report
from visynth.core.stage import Stage
from visynth.tabular.shares import chosen_shares
from visynth.tabular.timeseries import Series, SeriesGenerator, WindowBootstrap, cut, from_arrays, read_series
from visynth.tabular.timeseries.trial import SeriesTrial, halves, run_series_trial
from visynth.tabular.timeseries.utility import SeriesCells, rare_series

CONFIGS = Path(__file__).parents[3] / "configs"


def hard(count: int = 60, seed: int = 0) -> Series:
    """A rare class that differs from the rest by a faint wave."""
    g = np.random.default_rng(seed)
    x = g.standard_normal((count, 1, 32))
    labels = ["rare" if k % 4 == 0 else "rest" for k in range(count)]
    wave = np.sin(2 * np.pi * np.arange(32) / 8)
    for k in range(0, count, 4):
        x[k, 0] += 0.8 * wave
    return from_arrays(x, labels)


class Oracle(WindowBootstrap):
    """Draws fresh series of the class, or of the other one under its name."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong

    def sample(self, n, *, conditions=None, length=None, seed=0):
        fresh = hard(8 * n, seed=1000 + seed % 1000)
        own = np.array(fresh.labels()) == ("rest" if self.wrong else "rare")
        return fresh.take(np.flatnonzero(own)[:n])


def test_fresh_series_help_and_wrong_ones_are_left_out() -> None:
    cells = SeriesCells(draws=2, synthetic=60, most=8)
    helped = rare_series(hard(96), "rare", lambda seed: Oracle(), cells)
    hurt = rare_series(hard(96), "rare", lambda seed: Oracle(wrong=True), cells)
    assert chosen_shares(helped).get("0", 0) <= 1
    assert chosen_shares(hurt)["0"] >= 3
    apart = {
        arm: np.mean([one.scores[one.truth].mean() - one.scores[~one.truth].mean() for one in cell])
        for arm, cell in helped.tested.items()
    }
    assert min(apart["synthetic"], apart["oracle"]) > apart["balanced"]
    assert set(helped.arms) == {"real", "duplicate", "balanced", "augment", "synthetic", "oracle"}


def test_generators_see_the_training_part_alone() -> None:
    series, seen = hard(32), []

    class Watcher(WindowBootstrap):
        def fit(self, real, **rest):
            seen.append(set(real.names))
            return super().fit(real, **rest)

    results = rare_series(series, "rare", lambda seed: Watcher(), SeriesCells(draws=1, synthetic=4))
    assert len(seen) == 2 * 4  # of each cell: one for the test, one without each of three parts
    for cell, rows in enumerate(results.rows):
        test = {series.names[row] for row in rows}
        assert all(not fitted & test for fitted in seen[4 * cell : 4 * cell + 4])
        assert all(len(part) < len(seen[4 * cell]) for part in seen[4 * cell + 1 : 4 * cell + 4])


def test_entities_stay_together_and_too_few_are_refused() -> None:
    rows = pd.DataFrame({"m": np.repeat(np.arange(8), 20), "x": np.arange(160.0), "bad": np.repeat(["n", "y"] * 4, 20)})
    parts = cut(read_series(rows, entity="m", target="bad"), 5)
    first, second = halves(parts)
    assert not {parts.groups[k] for k in first} & {parts.groups[k] for k in second}
    assert {parts.labels()[k] for k in first} == {parts.labels()[k] for k in second} == {"n", "y"}
    with pytest.raises(DataError, match="series of 4 entities: 2 folds need 8"):
        rare_series(parts, "y", lambda seed: WindowBootstrap(), SeriesCells())
    with pytest.raises(UsageError, match="no class 'odd'"):
        rare_series(parts, "odd", lambda seed: WindowBootstrap(), SeriesCells())


def test_options_are_checked_together() -> None:
    with pytest.raises(UsageError, match=r"model must be one of(.|\n)*minutes must be above 0"):
        SeriesTrial("odd", minutes=0)
    with pytest.raises(UsageError, match=r"draws must be(.|\n)*rare_series must be"):
        SeriesCells(draws=0, most=1)


def test_a_trial_writes_what_it_promises_and_goes_on(tmp_path: Path, monkeypatch) -> None:
    options = SeriesTrial("ar", {"steps": 4, "width": 8}, cells=SeriesCells(draws=1, synthetic=5), write="balanced")
    lines: list[str] = []
    whole = run_series_trial(hard(), tmp_path / "o", options=options, progress=lines.append)
    assert [v.label for v in whole.verdicts] == ["rare"]
    assert read_report(tmp_path / "o").verdicts == whole.verdicts
    balanced = pd.read_csv(tmp_path / "o" / "balanced.csv")
    assert balanced.groupby("synthetic")["series"].nunique().to_dict() == {False: 60, True: 30}
    assert SeriesGenerator.load(tmp_path / "o" / "generator").classes == ("rare", "rest")
    assert not (tmp_path / "o.work").exists()

    class Stop(Exception):
        pass

    def stopping(line: str) -> None:
        if "cell 1 of 2" in line:
            raise Stop

    with pytest.raises(Stop):
        run_series_trial(hard(), tmp_path / "k", options=options, progress=stopping)
    before, put = Stage.put, []

    def watched(self, value, **key) -> None:
        put.append(key)
        before(self, value, **key)

    monkeypatch.setattr(Stage, "put", watched)
    again = run_series_trial(hard(), tmp_path / "k", options=options)
    assert len(put) == 1  # the other cell was kept
    assert again.verdicts == whole.verdicts


@pytest.mark.data
def test_the_shipped_configuration_runs_in_its_smoke_form(real_data, tmp_path: Path, monkeypatch, capsys) -> None:
    config = CONFIGS / "series" / "basic_motions.yaml"
    monkeypatch.chdir(tmp_path)
    smoke = ["--config", str(config), "--config", str(CONFIGS / "smoke" / "series_trial.yaml")]
    file = str(real_data("tabular") / "basic_motions.npz")
    assert main(["series", "trial", *smoke, "--data", file, "--out", "o", "--quiet", "--json"]) == 0
    assert [v["class"] for v in json.loads(capsys.readouterr().out)] == ["Running"]


def test_the_commands(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    visits(60).to_csv("v.csv", index=False)
    visits(40, seed=1).to_csv("held.csv", index=False)
    data = "--data v.csv --entity visit --time at --target kind"
    fit = f"series fit {data} --out g --arguments {{steps:10,width:16}} --quiet"
    assert main(fit.replace("{steps:10,width:16}", "{'steps':10,'width':16}").split()) == 0, capsys.readouterr().err
    assert main(["series", "sample", "--generator", "g", "--out", "s.csv", "--per-class", "4", "--seed", "1"]) == 0
    drawn = pd.read_csv("s.csv")
    assert drawn.groupby("kind")["visit"].nunique().to_dict() == {"quick": 4, "slow": 4}
    assert (
        main(["series", "stream", "--generator", "g", "--out", "long.parquet", "--length", "90", "--chunk", "40"]) == 0
    )
    assert len(pd.read_parquet("long.parquet")) == 90
    assert main(f"series forecast --generator g {data} --steps 3 --out f.csv".split()) == 0
    assert len(pd.read_csv("f.csv")) == 180
    assert main(["series", "replay", "--generator", "g", "--rate", "20", "--seconds", "20", "--out", "r.csv"]) == 0
    assert len(pd.read_csv("r.csv")) == pytest.approx(400, rel=0.02)
    assert main(f"series evaluate --generator g {data} --holdout held.csv --out e --quiet --json".split()) == 0
    out = capsys.readouterr().out
    figures = json.loads(out[out.index('{"') :])
    assert set(figures) == {"held-out series (noise floor)", "ar", "bootstrap", "independent"}
    page = Path("e/report.html").read_text()
    assert "Events: lengths, gaps" in page
    assert "<polyline" in page
    assert main(f"series evaluate --generator g {data} --holdout v.csv --out e2 --quiet".split()) == 65
    assert "series that the generator was fitted to" in capsys.readouterr().err
    assert main(f"series impute --generator g {data} --out i.csv".split()) == 64
    assert "cannot impute: fit 'diffusion'" in capsys.readouterr().err
    assert main(["series", "fit", "--data", "v.csv", "--entity", "visit", "--out", "g3", "--quiet"]) == 65
    assert "series have unequal lengths" in capsys.readouterr().err
    assert main(["series", "sample", "--generator", "g", "--out", "s.csv"]) == 64
    np.savez("w.npz", x=np.stack([waves().values(k).T for k in range(12)]), y=np.array(waves().labels()))
    assert (
        main(
            [
                "series",
                "fit",
                "--data",
                "w.npz",
                "--arrays",
                "['x','y']",
                "--model",
                "bootstrap",
                "--out",
                "b",
                "--quiet",
            ]
        )
        == 0
    )
    assert main(["series", "fit", "--data", "w.npz", "--out", "b2", "--quiet"]) == 64
    assert "takes --arrays" in capsys.readouterr().err
