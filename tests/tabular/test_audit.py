"""Audits of table generators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.core.report import read_report
from visynth.tabular import PrivateMarginals, TablePrivacy
from visynth.tabular.audit import audit_table
from visynth.tabular.counting import IndependentMarginals

ROWS = 300


def rows(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, 4)).round(4)
    return pd.DataFrame({**{f"x{i}": x[:, i] for i in range(4)}, "y": np.where(x[:, 0] > 0, "a", "b")})


class Copier(IndependentMarginals):
    """Gives the rows back that it was fitted to."""

    def sample(self, n, *, conditions=None, seed=0):  # type: ignore[no-untyped-def]
        return rows(0).sample(n, replace=True, random_state=seed).reset_index(drop=True)


def test_a_generator_that_gives_rows_back_is_flagged() -> None:
    model = Copier().fit(rows(0), target="y")
    found = audit_table(model, rows(0), rows(1)).conditions["audit"]
    nearest = found["attacks"][0]
    assert nearest["finding"] == "leaks"
    assert nearest["found"]["auc"] > 0.8
    assert nearest["positive"]["leaks"]
    assert not nearest["negative"]["leaks"]
    assert found["leaks"]


class Leaker(IndependentMarginals):
    """Gives the rows that it was fitted to, with noise that is as wide as the rows are apart."""

    def fit(self, frame, **kwargs):  # type: ignore[no-untyped-def]
        self.rows = frame.reset_index(drop=True)
        return super().fit(frame, **kwargs)

    def sample(self, n, *, conditions=None, seed=0):  # type: ignore[no-untyped-def]
        drawn = self.rows.sample(n, replace=True, random_state=seed).reset_index(drop=True)
        noise = np.random.default_rng(seed).normal(0, 0.25, (n, 4))
        for i in range(4):
            low, high = self.rows[f"x{i}"].min(), self.rows[f"x{i}"].max()
            drawn[f"x{i}"] = (drawn[f"x{i}"] + noise[:, i]).clip(low, high).round(4)
        return drawn


def spread(seed: int) -> pd.DataFrame:
    """Rows of very different rarity: how near something is says more of the row than of its membership."""
    rng = np.random.default_rng(seed)
    x = (rng.uniform(-1, 1, (ROWS, 4)) * np.exp(rng.normal(0, 1.2, (ROWS, 1)))).clip(-8, 8).round(4)
    return pd.DataFrame({**{f"x{i}": x[:, i] for i in range(4)}, "y": np.where(x[:, 0] > 0, "a", "b")})


def test_shadow_models_find_what_distances_alone_find_less_well() -> None:
    model = Leaker().fit(spread(0), target="y")
    attacks = {
        one["found"]["attack"]: one
        for one in audit_table(model, spread(0), spread(1), shadows=4).conditions["audit"]["attacks"]
    }
    shadow, nearest = attacks["shadow models"], attacks["distance to the nearest synthetic row"]
    assert shadow["finding"] == "leaks"
    assert shadow["positive"]["leaks"]
    assert shadow["found"]["auc"] > nearest["found"]["auc"]
    blameless = IndependentMarginals().fit(rows(0), target="y")
    report = audit_table(blameless, rows(0), rows(1), shadows=4)
    none = {one["found"]["attack"]: one for one in report.conditions["audit"]["attacks"]}["shadow models"]
    assert none["finding"] != "leaks"
    assert none["positive"]["leaks"]
    assert none["found"]["members"] == none["found"]["controls"] == ROWS // 2
    with pytest.raises(UsageError, match="an even number of at least 4"):
        audit_table(blameless, rows(0), rows(1), shadows=1)
    with pytest.raises(DataError, match="at least 80 rows a side"):
        audit_table(IndependentMarginals().fit(rows(0)[:60], target="y"), rows(0)[:60], rows(1)[:60], shadows=4)


def test_equal_rows_on_both_sides_are_no_leak() -> None:
    """Small categories: half of the held-out rows equal a fitted one, and a generator that only counts gives nothing away."""

    def few(seed: int, count: int = 600) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        return pd.DataFrame(
            {f"c{i}": rng.choice(list("abcd"), count) for i in range(4)} | {"y": rng.choice(list("xy"), count)}
        )

    found = audit_table(IndependentMarginals().fit(few(0), target="y"), few(0), few(1)).conditions["audit"]
    assert found["leaks"] == []
    assert abs(found["attacks"][0]["found"]["auc"] - 0.5) < 0.08


def test_a_holdout_of_another_kind_is_noticed() -> None:
    shifted = rows(1).assign(x1=rows(1)["x1"] + 1.5)
    found = audit_table(IndependentMarginals().fit(rows(0), target="y"), rows(0), shifted).conditions["audit"]
    assert {one["finding"] for one in found["attacks"]} == {"sides differ"}
    assert found["leaks"] == []


def test_fifty_rows_a_side_are_audited() -> None:
    found = audit_table(IndependentMarginals().fit(rows(0)[:50], target="y"), rows(0)[:50], rows(1)[:50]).conditions[
        "audit"
    ]
    assert [one["found"]["attack"] for one in found["attacks"]] == ["distance to the nearest synthetic row"]


def test_a_private_generator_is_at_chance_and_its_claim_stands(tmp_path: Path) -> None:
    domain = {"y": {"kind": "categorical", "values": ["a", "b"]}}
    domain |= {f"x{i}": {"kind": "numeric", "low": -5, "high": 5} for i in range(4)}  # type: ignore[dict-item]
    model = PrivateMarginals(components=100, steps=100).fit(
        rows(0), target="y", privacy=TablePrivacy(epsilon=0.3, domain=domain)
    )
    model.save(tmp_path / "model")
    for seed, name in ((0, "train"), (1, "held")):
        rows(seed).to_parquet(tmp_path / f"{name}.parquet")
    words = [
        "audit",
        str(tmp_path / "model"),
        "--data",
        str(tmp_path / "train.parquet"),
        "--out",
        str(tmp_path / "report"),
        "--quiet",
    ]
    assert main(words) == 64  # without a holdout
    assert main([*words, "--holdout", str(tmp_path / "held.parquet")]) == 0
    found = read_report(tmp_path / "report").conditions["audit"]
    assert not [one for one in found["attacks"] if one["finding"] == "leaks"]
    assert found["refuted"] == []
    assert all(bound[0] <= 0.3 for bound in found["epsilon bounds"].values())
    assert found["claimed"]["epsilon"] <= 0.3
    by_loss = next(one for one in found["attacks"] if "own loss" in one["found"]["attack"])
    assert by_loss["positive"]["auc"] > 0.7  # fitted to a hundred rows without noise


def test_other_rows_are_refused() -> None:
    model = IndependentMarginals().fit(rows(0), target="y")
    with pytest.raises(ValueError, match="are none that the generator was fitted to"):
        audit_table(model, rows(2), rows(1))
    with pytest.raises(ValueError, match="are the same"):
        audit_table(model, rows(0), rows(0))
    with pytest.raises(ValueError, match="at least 20 members"):
        audit_table(model, rows(0), rows(1)[:5])
