"""The commands and jobs of tables, as users run them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.tabular.killed import killed_at
from tests.tabular.tables import dependent, every_kind
from visynth.cli import main
from visynth.core.errors import ConflictError, DataError, UsageError
from visynth.core.report import read_report
from visynth.render.stage import DiskStage
from visynth.render.workers import Workers
from visynth.tabular import IndependentMarginals, Masked, Synthesizer, TableTrial, oversample, read_table
from visynth.tabular.balance import Masked as Default
from visynth.tabular.evaluate import triad
from visynth.tabular.render import TableMaker, make_table_plan, render_table
from visynth.tabular.trial import halves
from visynth.tabular.utility import splits

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = Path(os.environ.get("VISYNTH_DATA", "../shared/data"))
TINY = "{steps: 8, width: 32, depth: 1, batch_size: 128}"
SMALL = ["--arguments", TINY, "--draws", "1", "--folds", "2", "--quiet"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    dependent(300).to_csv(path, index=False)
    return path


def test_a_trial_goes_from_a_file_to_a_verdict_and_a_balanced_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trial"
    assert (
        main(["tabular", "trial", str(file), "--target", "kind", "--out", str(out), "--write", "balanced", *SMALL]) == 0
    )
    printed = capsys.readouterr().out
    assert "c: " in printed  # the rarest class
    report = read_report(out)
    assert [v.label for v in report.verdicts] == ["c"]
    page = (out / "report.html").read_text()
    for words in (
        "Fidelity",
        "Diversity",
        "Utility",
        "Privacy",
        "marginals",
        "copula",
        "noise floor",
        "class weights",
        "<svg",
    ):
        assert words in page or words in json.dumps(report.to_json())
    assert "anonym" not in page.lower()
    assert "image" not in report.verdicts[0].reason + report.verdicts[0].next
    balanced = read_table(out / "balanced.csv")
    counts = balanced.groupby("kind")["synthetic"].agg(["size", "sum"])
    assert counts.loc["c", "sum"] > 0
    assert counts.loc[["a", "b"], "sum"].eq(0).all()
    final = Synthesizer.load(out / "generator")
    assert final.fitted.rows == 300
    assert report.conditions["generator"] == final.digest
    assert not out.with_name("trial.work").exists()
    # Again, over its own results; and not over somebody else's.
    assert main(["tabular", "trial", str(file), "--target", "kind", "--out", str(out), *SMALL]) == 0
    (out / "mine.txt").write_text("mine")
    assert main(["tabular", "trial", str(file), "--target", "kind", "--out", str(out), *SMALL]) == 73
    assert (out / "mine.txt").read_text() == "mine"


def test_a_killed_trial_goes_on_with_its_cells(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visynth.tabular import utility

    calls, real = [], utility._cell

    def counted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(utility, "_cell", counted)
    words = ["tabular", "trial", str(file), "--target", "kind", "--out", str(tmp_path / "t"), *SMALL]
    assert main(words) == 130
    assert main(words) == 0
    assert len(calls) == 3  # the first cell was kept


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "tabular").glob("*.yaml")))
def test_every_configuration_runs_in_its_smoke_form(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIGS / "tabular" / f"{name}.yaml"
    said = yaml.safe_load(config.read_text())
    real = DATA / "tabular" / Path(said["data"]).name
    if not real.is_file():
        pytest.skip(f"no {real}")
    frame = read_table(real)
    rare = frame[said["target"]].astype(str).isin(said["rare"])
    few = pd.concat([frame[rare].sample(40, random_state=0), frame[~rare].sample(160, random_state=0)])
    few.to_csv(tmp_path / "few.csv", index=False)
    smoke = ["--config", str(config), "--config", str(CONFIGS / "smoke" / "tabular_trial.yaml")]
    code = main(
        [
            "tabular",
            "trial",
            *smoke,
            "--data",
            str(tmp_path / "few.csv"),
            "--out",
            str(tmp_path / "out"),
            "--quiet",
            "--json",
        ]
    )
    assert code == 0
    assert [v["class"] for v in json.loads(capsys.readouterr().out)] == said["rare"]


def test_fit_sample_impute_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = every_kind(240)
    train, held = frame.iloc[:120], frame.iloc[120:]
    for name, part in (("train", train), ("held", held)):
        part.to_parquet(tmp_path / f"{name}.parquet")
    generator = str(tmp_path / "generator")
    fit = [
        "tabular",
        "fit",
        str(tmp_path / "train.parquet"),
        "--target",
        "sex",
        "--out",
        generator,
        "--arguments",
        TINY,
    ]
    assert main([*fit, "--drop", "note", "--constraints", "[{kind: range, column: gain, low: 0}]"]) == 0
    assert "masked of 120 rows" in capsys.readouterr().out
    assert not Path(generator + ".work").exists()
    out = str(tmp_path / "rows.csv")
    assert (
        main(["tabular", "sample", generator, "--out", out, "--n", "70", "--conditions", "{sex: male}", "--seed", "3"])
        == 0
    )
    assert set(read_table(out)["sex"]) == {"male"}
    assert "rows/s" in capsys.readouterr().err
    assert main(["tabular", "sample", generator, "--out", out, "--per-class", "20", "--quiet"]) == 0
    assert read_table(out)["sex"].value_counts().to_dict() == {"female": 20, "male": 20}
    assert main(["tabular", "sample", generator, "--out", out, "--n", "5", "--per-class", "5"]) == 64
    assert main(["tabular", "sample", generator, "--out", out, "--n", "5", "--conditions", "{sex: none}"]) == 64
    assert "column 'sex' has no value 'none'; it has 'female', 'male'" in capsys.readouterr().err
    filled = str(tmp_path / "filled.parquet")
    assert main(["tabular", "impute", generator, "--data", str(tmp_path / "held.parquet"), "--out", filled]) == 0
    assert read_table(filled)["income"].notna().all()
    report = str(tmp_path / "report")
    words = ["tabular", "evaluate", generator, "--train", str(tmp_path / "train.parquet"), "--out", report, "--quiet"]
    assert main([*words, "--holdout", str(tmp_path / "held.parquet"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures) == {"fidelity", "diversity", "utility", "privacy"}
    assert set(figures["fidelity"]) == {"masked", "copula", "marginals", "held-out rows (noise floor)"}
    # Rows that were fitted are no test.
    assert main([*words, "--holdout", str(tmp_path / "train.parquet")]) == 65
    assert "are rows that the generator was fitted to" in capsys.readouterr().err


def test_wrong_arguments_teach(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "o")
    for words, code, said in (
        (["trial", str(file), "--target", "king", "--out", out], 64, "there are no columns 'king'; the columns are"),
        (
            ["trial", str(file), "--target", "kind", "--rare", "d", "--out", out],
            64,
            "has no value 'd'; it has 'a', 'b', 'c'",
        ),
        (
            ["trial", str(file), "--target", "kind", "--synthesizer", "gan", "--out", out],
            64,
            "synthesizer must be one of",
        ),
        (["trial", "none.csv", "--target", "kind", "--out", out], 65, "there is no file none.csv"),
        (["fit", str(file), "--out", out, "--synthesizer", "gan"], 64, "registered are 'copula', 'ctgan'"),
        (["fit", str(file), "--out", out, "--drop", "king"], 64, "--drop names ['king']"),
        (
            ["fit", str(file), "--out", out, "--synthesizer", "copula", "--trainer", "{devices: 2}"],
            64,
            "is not trained",
        ),
        (["sample", out, "--out", "x.csv", "--n", "3"], 65, "there is no generator folder"),
    ):
        assert main(["tabular", *words, "--quiet"] if words[0] != "sample" else ["tabular", *words]) == code, words
        assert said in capsys.readouterr().err
    assert not Path(out).exists()
    with pytest.raises(UsageError, match=r"(?s)3 problems"):
        TableTrial(draws=0, folds=1, minutes=0)


def test_a_killed_fit_goes_on_to_the_same_generator(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = "{steps: 20, width: 32, depth: 1, batch_size: 64}"
    words = ["tabular", "fit", str(file), "--out", str(tmp_path / "killed"), "--arguments", arguments, "--quiet"]

    killed_at(11, words, monkeypatch)
    assert not (tmp_path / "killed").exists()
    assert len(list((tmp_path / "killed.work").rglob("last.ckpt"))) == 1
    before = file.read_bytes()
    file.write_bytes(before.replace(b"\na,", b"\nb,"))  # other rows, as many: not this fit's
    killed_at(11, words, monkeypatch)
    assert len(list((tmp_path / "killed.work").rglob("last.ckpt"))) == 2
    file.write_bytes(before)
    assert main(words) == 0
    straight = Masked(steps=20, width=32, depth=1, batch_size=64).fit(read_table(file))
    assert Synthesizer.load(tmp_path / "killed").digest == straight.digest
    assert len(list((tmp_path / "killed.work").rglob("last.ckpt"))) == 1  # the other fit's is left


def test_shards_are_the_same_rows_whoever_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = IndependentMarginals().fit(dependent(300), target="kind")
    folder = model.save(tmp_path / "generator")
    plan = make_table_plan(model, per_class=1500, seed=4, shard_size=1024)
    assert plan.shards == 5
    assert render_table(model, plan, tmp_path / "one").finished
    assert render_table(model, plan, tmp_path / "two", engine=Workers(folder, 2)).finished
    one, two = tmp_path / "one", tmp_path / "two"
    for shard in sorted(one.glob("*.parquet")):
        assert shard.read_bytes() == (two / shard.name).read_bytes()
        counts = read_table(shard)["kind"].value_counts()
        assert counts.max() - counts.min() <= 1
    summary = json.loads((one / "summary.json").read_text())
    assert summary["total"] == 4500
    assert summary["counts"] == {"a": 1500, "b": 1500, "c": 1500}
    assert summary == json.loads((two / "summary.json").read_text())
    assert not (tmp_path / "one.work").exists()
    # What is there is kept; the rest is made; what was altered in a finished set is made again.
    stage, maker = DiskStage(tmp_path / "three"), TableMaker(model, plan)
    stage.claim(maker)
    shard = maker.make(3, 0, None)()
    stage.commit(shard, shard.record(plan))
    stamp = next(tmp_path.glob("three.work/shard.000003/*.parquet")).stat().st_mtime_ns
    render_table(model, plan, tmp_path / "three")
    three = tmp_path / "three"
    assert (three / "part-000003.parquet").stat().st_mtime_ns == stamp
    (three / "part-000001.parquet").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="1 files were missing or altered"):
        render_table(model, plan, three)
    assert (three / "part-000001.parquet").read_bytes() == (one / "part-000001.parquet").read_bytes()
    with pytest.raises(ConflictError, match="holds another plan's rows"):
        render_table(model, make_table_plan(model, per_class=9), three)
    assert (
        main(["render", str(folder), "--out", str(tmp_path / "cli"), "--balance", "all", "--to", "200", "--quiet"]) == 0
    )
    assert "in 1 shards; root" in capsys.readouterr().out
    got = pd.concat([dependent(300), read_table(tmp_path / "cli" / "part-000000.parquet")])["kind"].value_counts()
    assert got.to_dict() == {"a": 200, "b": 200, "c": 200} or got["c"] < 200  # a word adds ten times the reals at most
    with pytest.raises(UsageError, match="without a target"):
        make_table_plan(IndependentMarginals().fit(dependent(100)), per_class=3)


def test_balancing_takes_the_words_of_images(tmp_path: Path) -> None:
    frame = dependent(200)
    balanced = oversample(frame, target="kind", balance={"c": 7}, steps=2, width=16, depth=1)
    assert balanced["synthetic"].sum() == 7
    assert set(balanced[balanced["synthetic"]]["kind"]) == {"c"}
    pd.testing.assert_frame_equal(balanced[~balanced["synthetic"]][frame.columns], frame)
    assert Default is Masked
    with pytest.raises(UsageError, match="has a column 'synthetic'"):
        oversample(balanced, target="kind")
    with pytest.raises(UsageError, match="was fitted with target None, not 'kind'"):
        oversample(frame, target="kind", generator=IndependentMarginals().fit(frame))


def test_groups_are_never_on_both_sides() -> None:
    groups = [f"g{k // 5}" for k in range(200)]
    first, second = halves(200, groups, seed=1)
    assert len(first) == len(second) >= 80
    assert not {groups[k] for k in first} & {groups[k] for k in second}
    for cell in splits(np.arange(200) % 10 == 0, 2, 3, groups):  # type: ignore[arg-type]
        assert not {groups[k] for k in cell.train} & {groups[k] for k in cell.test}


def test_the_triad_refuses_rows_that_were_fitted() -> None:
    frame = every_kind(60)
    model = IndependentMarginals().fit(frame, target="sex")
    with pytest.raises(DataError, match="60 of 60 rows to test on are rows that the generator was fitted to"):
        triad(model, frame, frame)


def test_the_readmes_table_section_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (CONFIGS.parent / "README.md").read_text().split("## Tables")[1].split("\n## ")[0]
    command = re.search(r"```bash\nvisynth (.*?)\n```", section)
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert command is not None
    assert code is not None
    monkeypatch.chdir(tmp_path)
    g = np.random.default_rng(0)
    opened = pd.Timestamp("2024-01-01") + pd.to_timedelta(g.integers(0, 90, 200), unit="D")
    frame = pd.DataFrame({"amount": g.gamma(2, 60, 200).round(2), "opened": opened, "shop": g.choice(list("abc"), 200)})
    frame["closed"] = frame["opened"] + pd.to_timedelta(g.integers(1, 9, 200), unit="D")
    frame["fraud"] = np.where(g.random(200) < 0.2, "yes", "no")
    frame.to_csv("transactions.csv", index=False)
    assert main([*command.group(1).split(), *SMALL]) == 0
    names: dict[str, object] = {}
    exec(code.group(1).replace("Masked()", "Masked(steps=5, width=32, depth=1)"), names)
    more = names["more"]
    assert isinstance(more, pd.DataFrame)
    assert len(more) == 500
    assert (more["fraud"] == "yes").all()
    assert (more["amount"] >= 100).all()
    assert (pd.to_datetime(more["opened"]) <= pd.to_datetime(more["closed"])).all()
