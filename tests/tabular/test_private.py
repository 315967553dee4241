"""Private fits of tables: what is learned of the rows is paid for, and what comes out of it is of use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from visynth.core import plugins
from visynth.core.errors import UsageError
from visynth.privacy.accounting import Release, epsilon_of
from visynth.tabular import Masked, PrivateMarginals, Synthesizer, TablePrivacy
from visynth.tabular.domain import read_domain
from visynth.tabular.histograms import histograms_of_number, known_categories, number_cells, threshold_for
from visynth.tabular.private import OTHER, prepare

ROWS = 4000
DOMAIN: dict[str, Any] = {"kind": {"kind": "categorical", "values": ["good", "bad"]}}
PRIVATE = {
    "masked": {"steps": 30, "width": 32, "depth": 1, "batch_size": 400, "most_bins": 12},
    "tvae": {"steps": 30, "width": 32, "latent": 8, "batch_size": 400},
    "diffusion": {"steps": 30, "width": 32, "depth": 1, "batch_size": 400, "sampling_steps": 4},
    "dp_marginals": {"components": 200, "steps": 250},
}


def machines(count: int = ROWS, seed: int = 0) -> pd.DataFrame:
    """Wear goes with age, and failure with wear; one machine is of a maker that nobody else has."""
    rng = np.random.default_rng(seed)
    age = rng.integers(0, 40, count)
    wear = age / 40 + 0.1 * rng.standard_normal(count)
    maker = rng.choice(["north", "south", "west"], count, p=[0.6, 0.3, 0.1]).astype(object)
    maker[7] = "unique"
    heat = np.where(maker == "west", 90.0, 60.0) + rng.standard_normal(count)
    heat[rng.random(count) < 0.05] = np.nan
    kind = np.where(wear + 0.1 * rng.standard_normal(count) > 0.7, "bad", "good")
    return pd.DataFrame({"age": age, "wear": wear, "maker": maker, "heat": heat, "kind": kind})


def privately(name: str, epsilon: float = 20.0, **kwargs: Any) -> Synthesizer:
    options = TablePrivacy(epsilon=epsilon, domain=DOMAIN, **kwargs)
    return plugins.load("synthesizers", name)(**PRIVATE[name]).fit(machines(), target="kind", privacy=options)


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_fit_says_what_it_spent_and_keeps_nothing_else(name: str, tmp_path: Path) -> None:
    model = privately(name)
    spent = model.fitted.privacy
    releases = [Release(**release) for release in spent["releases"]]
    assert spent["epsilon"] == epsilon_of(releases, spent["delta"]) <= 20.0
    assert spent["epsilon"] > 18  # the budget is used
    model_release = "counts of pairs of columns" if name == "dp_marginals" else "training"
    assert [r.what.split(" (")[0] for r in releases] == ["preprocessing", model_release]
    assert spent["delta"] == 1e-4
    model.save(tmp_path / name)
    loaded = Synthesizer.load(tmp_path / name)
    assert loaded.fitted.privacy == spent
    assert loaded.fitted.members == ()
    assert loaded.sample(200, seed=1).equals(model.sample(200, seed=1))
    text = "".join(p.read_text(errors="ignore") for p in (tmp_path / name).iterdir())
    assert "unique" not in text
    assert "with differential privacy: epsilon" in (tmp_path / name / "README.md").read_text()
    sample = loaded.sample(600, seed=2)
    assert set(sample["maker"].dropna()) <= {"north", "south", "west"}
    assert set(sample["kind"]) <= {"good", "bad"}
    assert sample["age"].dtype == machines()["age"].dtype
    assert len(loaded.sample(30, conditions={"kind": "bad"}, seed=3)) == 30


def test_marginals_keep_what_belongs_together() -> None:
    sample = privately("dp_marginals", epsilon=4.0).sample(4000, seed=5)
    real = machines()
    assert np.corrcoef(sample["age"], sample["wear"])[0, 1] == pytest.approx(
        np.corrcoef(real["age"], real["wear"])[0, 1], abs=0.1
    )
    assert (sample["kind"] == "bad").mean() == pytest.approx((real["kind"] == "bad").mean(), abs=0.03)
    west = sample["maker"] == "west"
    assert sample["heat"][west].mean() > sample["heat"][~west].mean() + 15
    assert sample["heat"].isna().mean() == pytest.approx(0.05, abs=0.03)


def test_less_epsilon_is_more_noise() -> None:
    few, many = (privately("dp_marginals", epsilon=epsilon).fitted.privacy["releases"] for epsilon in (1.0, 10.0))
    assert few[0]["noise"] > 5 * many[0]["noise"]
    assert few[1]["noise"] > 5 * many[1]["noise"]


def test_nothing_of_one_row_reaches_the_stand_ins() -> None:
    """Beside the noise of their key, stand-ins depend on counts alone: a changed row moves one count a histogram."""
    options = TablePrivacy(epsilon=5.0, domain=DOMAIN)
    prepared = prepare(machines(), options, "kind")
    assert OTHER in prepared.schema["maker"].categories  # type: ignore[attr-defined]
    assert "unique" not in prepared.schema["maker"].categories  # type: ignore[attr-defined]
    assert all(len(values) == 20_000 for values in prepared.stand_ins.values())
    assert any("too few" in remark for remark in prepared.remarks)
    own = prepared.releases[0]
    levels = sum(histograms_of_number(False) for _ in ("age", "wear", "heat")) + 1  # and the list of makers
    assert (own.rate, own.steps, own.delta) == (1.0, levels, pytest.approx(0.1 * prepared.delta))
    assert epsilon_of([own], prepared.delta) <= 0.15 * 5.0


def test_what_is_declared_is_free() -> None:
    domain = DOMAIN | {
        "age": {"kind": "integer", "low": 0, "high": 50},
        "maker": {"kind": "categorical", "values": ["north", "south", "west"]},
    }
    frame = machines()[["age", "maker", "kind"]]
    prepared = prepare(frame, TablePrivacy(epsilon=1.0, domain=domain), "kind")
    assert prepared.releases[0].steps == histograms_of_number(True)
    assert prepared.releases[0].delta == 0.0
    assert any("not among the declared values" in remark for remark in prepared.remarks)
    words = frame[["maker", "kind"]]
    assert prepare(words, TablePrivacy(epsilon=1.0, domain={k: domain[k] for k in words}), "kind").releases == ()


def test_cells_of_a_column_follow_its_counts() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([np.zeros(9000), rng.integers(2000, 2100, 900), np.full(100, 99_999)]).astype(float)
    for bounds in ((0.0, 99_999.0), None):
        found = number_cells(values, bounds, 1.0, 3.0, np.random.default_rng(2)).values(10_000)
        assert (found == 0).mean() == pytest.approx(0.9, abs=0.01)
        assert ((found >= 1900) & (found < 2200)).mean() == pytest.approx(0.09, abs=0.02)
        assert (found > 90_000).mean() == pytest.approx(0.01, abs=0.005)
    real = rng.standard_normal(5000)
    found = number_cells(real, None, 0.0, 5.0, np.random.default_rng(3)).values(5000)
    assert np.abs(np.quantile(found, [0.1, 0.5, 0.9]) - np.quantile(real, [0.1, 0.5, 0.9])).max() < 0.1


def test_a_category_of_one_row_is_told_as_seldom_as_its_delta_says() -> None:
    codes, noise, delta = np.zeros(1, np.int64), 5.0, 0.05
    threshold = threshold_for(noise, delta)
    listed = [len(known_categories(codes, 1, noise, threshold, np.random.default_rng(seed))[0]) for seed in range(2000)]
    assert np.mean(listed) == pytest.approx(delta, abs=0.015)


def test_a_killed_fit_goes_on_with_its_key(tmp_path: Path) -> None:
    key = str(tmp_path / "run" / "key")
    first, second = (privately("dp_marginals", key_file=key) for _ in range(2))
    assert first.digest == second.digest
    assert (tmp_path / "run" / "key").stat().st_mode & 0o077 == 0
    assert privately("dp_marginals").digest != first.digest


@pytest.mark.parametrize("name", ["ctgan", "copula", "marginals"])
def test_models_without_a_private_fit_say_which_have_one(name: str) -> None:
    with pytest.raises(UsageError, match="has no private fit: take 'masked'"):
        plugins.load("synthesizers", name)().fit(
            machines(50), target="kind", privacy=TablePrivacy(epsilon=3.0, domain=DOMAIN)
        )


def test_what_reads_the_rows_without_paying_is_refused() -> None:
    frame = machines(200)
    with pytest.raises(UsageError, match="declare the target 'kind'"):
        PrivateMarginals().fit(frame, target="kind", privacy=TablePrivacy(epsilon=3.0))
    with pytest.raises(UsageError, match="constraints are checked on every row"):
        PrivateMarginals().fit(
            frame, target="kind", privacy=TablePrivacy(epsilon=3.0, domain=DOMAIN),
            constraints=[{"kind": "inequality", "low": "age", "high": "wear"}],
        )  # fmt: skip
    dated = frame.assign(day=pd.date_range("2024-01-01", periods=200))
    with pytest.raises(ValueError, match="dates are not modelled privately"):
        PrivateMarginals().fit(dated, target="kind", privacy=TablePrivacy(epsilon=3.0, domain=DOMAIN))
    domain = {"kind": {"kind": "categorical", "values": ["good", "worse"]}}
    with pytest.raises(ValueError, match=r"rows have 'bad', which are not declared"):
        PrivateMarginals().fit(frame, target="kind", privacy=TablePrivacy(epsilon=3.0, domain=domain))
    with pytest.raises(UsageError, match="Reachable so"):
        Masked(steps=5000).fit(frame[["age", "kind"]], target="kind", privacy=TablePrivacy(epsilon=0.3, domain=DOMAIN))


def test_a_domain_tells_all_its_problems() -> None:
    with pytest.raises(UsageError) as caught:
        read_domain(
            {
                "a": {"kind": "integer", "low": 5, "high": 1},
                "b": {"kind": "text"},
                "c": {"kind": "categorical", "low": 1},
                "d": {"sort": 1},
            }
        )
    assert "4 problems" in str(caught.value)
    with pytest.raises(ValueError, match="there is no file"):
        read_domain("nowhere.yaml")


def test_a_rows_random_numbers_are_its_own() -> None:
    """Those of the others in its batch would change with a row that is left out, and the sum by more than the bound."""
    from visynth.privacy.poisson import PlacedRows, PoissonBatches
    from visynth.tabular.training import PoissonStream

    for name in ("masked", "tvae", "diffusion"):
        model: Any = plugins.load("synthesizers", name)(**PRIVATE[name]).fit(machines(200), target="kind")
        batches = PoissonBatches(PlacedRows(200, 2), 0.5, "3c" * 32, lambda: 4, 1)
        stream = PoissonStream(model.encode(model.schema.table(machines(200))), model, batches)
        places = batches.places(4)
        whole, without = stream._noise(places), stream._noise(np.delete(places, [6, 7]))
        for key, values in whole.items():
            assert np.array_equal(np.delete(values.numpy(), [6, 7], axis=0), without[key].numpy()), (name, key)
            assert len(values) == len(places)


def test_one_key_is_of_one_fit(tmp_path: Path) -> None:
    """The same key for another epsilon: other noise, so that two fits cannot be subtracted."""
    key = str(tmp_path / "key")
    drawn = []
    for epsilon in (5.0, 10.0):
        prepared = prepare(machines(), TablePrivacy(epsilon=epsilon, domain=DOMAIN, key_file=key), "kind", None, "a")
        drawn.append(prepared.key)
    assert drawn[0] != drawn[1]
    again = prepare(machines(), TablePrivacy(epsilon=5.0, domain=DOMAIN, key_file=key), "kind", None, "a")
    assert again.key == drawn[0]
    changed = machines()
    changed.loc[3, "age"] += 1
    assert prepare(changed, TablePrivacy(epsilon=5.0, domain=DOMAIN, key_file=key), "kind", None, "a").key != drawn[0]
    (tmp_path / "key").write_text("short")
    with pytest.raises(ValueError, match="holds no key"):
        prepare(machines(), TablePrivacy(epsilon=5.0, domain=DOMAIN, key_file=key), "kind")


def test_neighbours_have_the_same_schema_and_pay_the_same() -> None:
    """One cell that is missing, one maker that nobody else has: nothing of it is seen in what is stored."""
    plain = machines().astype({"age": "Int64"})
    others = []
    for column, value in (("age", pd.NA), ("maker", "unheard of"), ("wear", np.nan), ("heat", 1e9)):
        changed = plain.copy()
        changed.loc[11, column] = value
        others.append(changed)
    options = TablePrivacy(epsilon=5.0, domain=DOMAIN)
    first = prepare(plain, options, "kind")
    for changed in others:
        second = prepare(changed, options, "kind")
        assert [(c.name, c.kind, c.dtype, c.nullable) for c in second.schema.columns] == [
            (c.name, c.kind, c.dtype, c.nullable) for c in first.schema.columns
        ]
        assert second.schema["maker"] == first.schema["maker"]
        assert second.releases == first.releases


def test_what_is_drawn_fits_its_data_type() -> None:
    frame = machines(400).assign(flag=[True, False] * 200)[["age", "flag", "kind"]]
    domain = DOMAIN | {
        "age": {"kind": "integer", "low": 0, "high": 50, "nullable": True},
        "flag": {"kind": "boolean", "values": [True, False], "nullable": True},
    }
    model = PrivateMarginals(**PRIVATE["dp_marginals"]).fit(
        frame, target="kind", privacy=TablePrivacy(epsilon=1.0, domain=domain)
    )
    sample = model.sample(800)
    assert (str(sample["age"].dtype), str(sample["flag"].dtype)) == ("Int64", "boolean")


def test_a_target_and_one_column_keep_what_joins_them() -> None:
    frame = pd.DataFrame({"x": ["a", "b"] * 1000, "y": ["c", "d"] * 1000})
    domain = {name: {"kind": "categorical", "values": sorted(set(frame[name]))} for name in frame}
    model = PrivateMarginals(components=50, steps=300).fit(
        frame, target="y", privacy=TablePrivacy(epsilon=5.0, domain=domain)
    )
    sample = model.sample(500)
    assert ((sample["x"] == "a") == (sample["y"] == "c")).mean() > 0.95


def test_a_csv_has_no_data_types(tmp_path: Path) -> None:
    from visynth.cli import main

    machines(300).to_csv(tmp_path / "machines.csv", index=False)
    (tmp_path / "domain.yaml").write_text("kind: {kind: categorical, values: [good, bad]}\n")
    words = [
        "tabular", "fit", "--data", str(tmp_path / "machines.csv"), "--target", "kind", "--synthesizer", "dp_marginals",
        "--arguments", "{components: 50, steps: 30}", "--privacy.epsilon", "200", "--privacy.domain",
        str(tmp_path / "domain.yaml"), "--out", str(tmp_path / "model"), "--quiet",
    ]  # fmt: skip
    assert main(words) == 64
    assert not (tmp_path / "model").exists()
    kinds = "{age: integer, wear: numeric, maker: categorical, heat: numeric}"
    assert main([*words, "--kinds", kinds]) == 0
    assert Synthesizer.load(tmp_path / "model").fitted.privacy["epsilon"] <= 200
    assert not (tmp_path / "model.work").exists()  # the key is gone with the fit
    assert main([*words, "--kinds", kinds]) == 78  # each fit spends its epsilon
