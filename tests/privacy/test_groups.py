"""Private training where a unit has several rows: a patient, a part, a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from tests.privacy.test_dp import KEY, ROWS, Net, loader, private, rows, trainer, weights
from visynth.core.errors import ConflictError, DataError, UsageError
from visynth.lightning_modules import Diffusion, GeneratorData
from visynth.privacy.poisson import poisson_rows
from visynth.privacy.secret import secret_rng


class Patients(TensorDataset):
    """Rows of patients: the first has half of all, the others three each."""

    @property
    def groups(self) -> list[str]:
        return ["first"] * (ROWS // 2) + [f"p{row // 3}" for row in range(ROWS // 2)]


def test_a_patient_counts_once_however_many_rows_there_are() -> None:
    """By hand: each patient drawn gives one clipped gradient, the mean over its rows in turn."""
    x, y = rows().tensors
    callback = private(steps=3, groups="data", unit="patient", batch_size=8, noise_multiplicity=2, max_grad_norm=0.3)
    torch.manual_seed(0)
    net = Net()
    trainer(callback).fit(net, DataLoader(Patients(x, y), batch_size=8, shuffle=True))
    plan = callback.plan
    assert plan is not None
    names = sorted(set(Patients(x, y).groups))
    assert (plan.units, callback.record()["unit"]) == (21, "patient")
    torch.manual_seed(0)
    other = Net()
    for step in range(3):
        total = [torch.zeros_like(p) for p in other.parameters()]
        for unit in poisson_rows(KEY, step, 21, plan.rate):
            own = [row for row, name in enumerate(Patients(x, y).groups) if name == names[unit]]
            turn = [own[(2 * step + copy) % len(own)] for copy in range(2)]
            other.zero_grad()
            ((other.net(x[turn])[:, 0] - y[turn]) ** 2).mean().backward()
            length = torch.cat([p.grad.reshape(-1) for p in other.parameters() if p.grad is not None]).norm()
            for kept, p in zip(total, other.parameters(), strict=True):
                assert p.grad is not None
                kept += p.grad * min(1.0, 0.3 / (float(length) + 1e-6))
        generator = secret_rng(KEY, f"noise/{step}")
        with torch.no_grad():
            for kept, p in zip(total, other.parameters(), strict=True):
                drawn = torch.from_numpy(generator.standard_normal(tuple(p.shape)).astype(np.float32))
                p -= 0.05 / (1 + step) * (kept + plan.noise * 0.3 * drawn) / plan.batch
    assert torch.allclose(weights(net), weights(other), atol=1e-6)


def test_groups_may_be_listed_and_must_be_there() -> None:
    x, y = rows().tensors
    options: dict[str, Any] = {"steps": 3, "batch_size": 8, "noise_multiplicity": 2}
    found = []
    for groups, data in (("data", Patients(x, y)), (Patients(x, y).groups, rows())):
        torch.manual_seed(0)
        net = Net()
        trainer(private(groups=groups, **options)).fit(net, DataLoader(data, batch_size=8, shuffle=True))
        found.append(weights(net))
    assert torch.equal(*found)
    with pytest.raises(UsageError, match="the data have no groups"):
        trainer(private(groups="data")).fit(Net(), loader())
    with pytest.raises(DataError, match="2 of 120 rows have no group"):
        trainer(private(groups=[None, "", *Patients(x, y).groups[2:]])).fit(Net(), loader())
    with pytest.raises(UsageError, match="2 groups are named for 120 rows"):
        trainer(private(groups=["a", "b"])).fit(Net(), loader())
    with pytest.raises(UsageError, match="below 1/21"):
        trainer(private(groups="data", delta=0.06)).fit(Net(), DataLoader(Patients(x, y), batch_size=8, shuffle=True))


def test_a_resumed_training_has_the_same_groups(tmp_path: Path) -> None:
    x, y = rows().tensors
    groups = Patients(x, y).groups
    trained = trainer(private(groups=groups, steps=6, batch_size=8))
    trained.fit(Net(), loader())
    trained.save_checkpoint(tmp_path / "last.ckpt")
    others = [groups[-1], *groups[1:-1], groups[0]]
    with pytest.raises(ConflictError, match="grouping"):
        trainer(private(groups=others, steps=6, batch_size=8)).fit(
            Net(), loader(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True
        )


def test_groups_of_image_files_are_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for patient in range(5):
            for number in range(3):
                image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
                image.save(tmp_path / label / f"p{patient}_{number}.png")
    data = GeneratorData(
        str(tmp_path), 8, batch_size=4, channels=1, classes=["a", "b"], temper=1.0, group_pattern="(p[0-9])_"
    )
    callback = private(groups="data", unit="patient", steps=2, noise_multiplicity=2, batch_size=3)
    net = Diffusion(width=8, multipliers=[1], attention=[], snapshots=False, warmup=0, dropout=0.0)
    trainer(callback).fit(net, data)
    assert callback.plan is not None
    assert callback.plan.units == 5  # patients, who have images of both classes
    with pytest.raises(UsageError, match="say groups: data"):
        trainer(private(groups=["a"] * 30, steps=2)).fit(
            Diffusion(width=8, multipliers=[1], attention=[], snapshots=False, warmup=0, dropout=0.0), data
        )
    assert "patient" in net.card()["differential privacy"]["sampler"]
