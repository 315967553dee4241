"""Several tables, the DataModule, the sampler, and training on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning
import torch

from tests.ranks import DDP, run_ranks
from tests.tabular.tables import dependent
from visynth.core.errors import DataError, IntegrityError, UsageError
from visynth.tabular import ForeignKey, Masked, Relational, TableData
from visynth.tabular.sampler import SyntheticSampler

TINY = {"steps": 30, "width": 48, "depth": 1, "batch_size": 128}


def shop(people: int = 60) -> dict[str, pd.DataFrame]:
    """Customers, their orders over time, and the items of each order."""
    g = np.random.default_rng(0)
    customers = pd.DataFrame(
        {
            "cid": [f"C{k:04d}" for k in range(people)],
            "sex": g.choice(["f", "m"], people),
            "age": g.integers(18, 80, people),
        }
    )
    orders, items = [], []
    for number in range(people):
        time = pd.Timestamp("2024-01-01") + pd.Timedelta(days=int(g.integers(0, 50)))
        for _ in range(int(g.poisson(2 if customers["sex"][number] == "f" else 4))):
            orders.append((f"O{len(orders):05d}", f"C{number:04d}", time, g.choice(["card", "cash"])))
            time += pd.Timedelta(hours=int(g.integers(1, 90)))
            items += [(orders[-1][0], g.choice(["tea", "milk", "rice"])) for _ in range(int(g.integers(0, 3)))]
    return {
        "customers": customers,
        "orders": pd.DataFrame(orders, columns=["oid", "customer", "time", "paid"]),
        "items": pd.DataFrame(items, columns=["order", "what"]),
    }  # fmt: skip


KEYS = [ForeignKey("items", "order", "orders", "oid"), ForeignKey("orders", "customer", "customers", "cid", "time")]


def test_children_belong_to_parents_and_come_in_order(tmp_path: Path) -> None:
    real = shop()
    model = Relational(KEYS, arguments=TINY).fit(real)
    sample = model.sample(200, seed=3)
    assert {name: list(frame.columns) for name, frame in sample.items()} == {
        n: list(f.columns) for n, f in real.items()
    }
    assert {n: f.dtypes.to_dict() for n, f in sample.items()} == {n: f.dtypes.to_dict() for n, f in real.items()}
    assert len(sample["customers"]) == 200
    assert sample["customers"]["cid"].is_unique
    assert sample["orders"]["oid"].is_unique
    assert set(sample["orders"]["customer"]) <= set(sample["customers"]["cid"])
    assert set(sample["items"]["order"]) <= set(sample["orders"]["oid"])
    steps = sample["orders"].groupby("customer")["time"].diff().dropna()
    assert (steps >= pd.Timedelta(0)).all()
    assert len(sample["orders"]) / 200 == pytest.approx(len(real["orders"]) / 60, rel=0.35)
    loaded = Relational.load(model.save(tmp_path / "shop"))
    for name, frame in loaded.sample(200, seed=3).items():
        assert frame.equals(sample[name])
    assert not loaded.sample(200, seed=4)["orders"].equals(sample["orders"])
    spec = tmp_path / "shop" / "relational.json"
    spec.write_text(spec.read_text().replace('"seed":0', '"seed":1').replace('"seed": 0', '"seed": 1'))
    with pytest.raises(IntegrityError, match="was altered"):
        Relational.load(tmp_path / "shop")


def test_several_tables_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from visynth.cli import main

    for name, frame in shop().items():
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    files = "{" + ", ".join(f"{name}: {tmp_path / name}.csv" for name in shop()) + "}"
    keys = "[{table: orders, column: customer, parent: customers, parent_key: cid, order: time}, "
    keys += "{table: items, column: order, parent: orders, parent_key: oid}]"
    out, rows = str(tmp_path / "generators"), tmp_path / "rows"
    arguments = ["--arguments", "{steps: 5, width: 16, depth: 1}", "--quiet"]
    assert main(["tabular", "fit-tables", "--tables", files, "--keys", keys, "--out", out, *arguments]) == 0
    assert main(["tabular", "sample", out, "--out", str(rows), "--n", "20"]) == 0
    assert "customers.parquet (20 rows)" in capsys.readouterr().out
    orders, customers = (pd.read_parquet(rows / f"{name}.parquet") for name in ("orders", "customers"))
    assert set(orders["customer"]) <= set(customers["cid"])
    assert main(["tabular", "sample", out, "--out", str(rows), "--per-class", "2"]) == 64
    assert main(["tabular", "fit-tables", "--tables", files, "--keys", "[]", "--out", out]) == 64


def test_tables_that_do_not_belong_together_are_refused() -> None:
    real = shop()
    orders = real["orders"].copy()
    orders.loc[[2, 5], "customer"] = "C9999"
    twice = real["customers"].copy()
    twice.loc[1, "cid"] = "C0000"
    with pytest.raises(
        DataError, match=r"(?s)'customer' has no parent in customers.cid in rows 2, 5.*the first: 'C9999'"
    ):
        Relational(KEYS, arguments=TINY).fit({**real, "orders": orders})
    with pytest.raises(DataError, match="key 'cid' stands twice in row 1"):
        Relational(KEYS, arguments=TINY).fit({**real, "customers": twice})
    with pytest.raises(UsageError, match="tables 'items' are missing"):
        Relational(KEYS).fit({name: real[name] for name in ("customers", "orders")})
    with pytest.raises(UsageError, match="table 'orders' has no column 'who'"):
        Relational([ForeignKey("orders", "who", "customers", "cid")]).fit(real)
    for keys, words in (
        ([], "no foreign key"),
        ([ForeignKey("a", "x", "b", "y"), ForeignKey("b", "x", "a", "y")], "the keys go in a circle"),
        ([ForeignKey("a", "x", "b", "y"), ForeignKey("a", "z", "c", "y")], "tables 'a' have more than one parent"),
        ([ForeignKey("a", "x", "b", "y"), ForeignKey("c", "z", "d", "y")], "exactly one table must have no parent"),
    ):
        with pytest.raises(UsageError, match=words):
            Relational(keys)
    with pytest.raises(UsageError, match="ctgan does not draw under any conditions"):
        Relational(KEYS, "ctgan")


def test_a_lightning_training_takes_real_and_synthetic_rows() -> None:
    frame = dependent(300)
    synthetic = frame[frame["kind"] == "c"].sample(90, replace=True, random_state=0).assign(level=3.21)
    data = TableData(frame, "kind", synthetic=synthetic, share=0.4, batch_size=32, seed=1)
    data.setup()
    batches = list(data.train_dataloader())
    marks = torch.cat([batch["synthetic"] for batch in batches])
    assert len(marks) == 210  # as many items as real training rows
    assert abs(marks.float().mean() - 0.4) < 0.1
    assert torch.cat([batch["target"] for batch in batches])[marks].eq(2).all()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert not any(batch["synthetic"].any() for batch in loader)
    plain, none = (TableData(frame, "kind", synthetic=s, share=0, seed=1) for s in (synthetic, None))
    for one in (plain, none):
        one.setup()
    for first, second in zip(plain.train_dataloader(), none.train_dataloader(), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)

    class Linear(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.layer(batch["numbers"]), batch["target"])

        def validation_step(self, batch: Any, index: int) -> None:
            assert not batch["synthetic"].any()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pytorch_lightning.Trainer(max_epochs=1, accelerator="cpu", log_every_n_steps=1, **quiet).fit(Linear(), data)
    with pytest.raises(DataError, match="equal validation or test rows"):
        TableData(frame, "kind", synthetic=frame, seed=1).setup()
    with pytest.raises(UsageError, match=r"share must be in \[0, 1\)"):
        TableData(frame, "kind", share=1.5)


def test_imbalanced_learns_own_checks_pass() -> None:
    import warnings

    from imblearn.utils import estimator_checks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        checks = list(estimator_checks._yield_all_checks(SyntheticSampler(synthesizer="marginals")))
        assert len(checks) >= 15
        for check in checks:
            check("SyntheticSampler", SyntheticSampler(synthesizer="marginals", random_state=0))


def test_the_sampler_stands_in_a_pipeline() -> None:
    from imblearn.pipeline import make_pipeline
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    g = np.random.default_rng(0)
    x = np.concatenate([g.normal(0, 1, (80, 3)), g.normal(3, 1, (12, 3))])
    y = np.array([0] * 80 + [1] * 12)
    pipeline = make_pipeline(SyntheticSampler(synthesizer="copula", random_state=0), LogisticRegression())
    assert cross_val_score(pipeline, x, y, cv=3, scoring="average_precision").mean() > 0.9


def train_on_two_ranks(rank: int, folder: str) -> None:
    torch.manual_seed(0)
    frame = dependent(200)
    for name, model in (("masked", Masked(steps=4, width=16, depth=1, batch_size=64)), ("ctgan", _gan())):
        trainer = pytorch_lightning.Trainer(**{**DDP, "max_epochs": -1, "use_distributed_sampler": False})
        model.fit(frame, trainer=trainer)
        torch.save(model.weights(), Path(folder) / f"{name}-{rank}.pt")


def _gan() -> Any:
    from visynth.tabular import CTGAN

    return CTGAN(steps=2, width=16, batch_size=80, noise_dim=8, pac=4)


@pytest.mark.filterwarnings("ignore")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    run_ranks(train_on_two_ranks, str(tmp_path))
    one = Masked(steps=4, width=16, depth=1, batch_size=64).fit(dependent(200)).weights()
    for name in ("masked", "ctgan"):
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2))
        assert all(
            torch.equal(first[key], second[key]) for key in first if "num_batches" not in key and "running" not in key
        )
    masked = torch.load(tmp_path / "masked-0.pt")
    for key, value in one.items():
        torch.testing.assert_close(masked[key], value, atol=2e-5, rtol=1e-3)
