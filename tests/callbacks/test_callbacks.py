"""Callbacks: metrics to every logger and to disk, real features once, two uneven ranks, and a training that is left
alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from tests.lightning_modules.test_diffusion import data, equal, module
from tests.ranks import DDP, TRAINER, run_ranks
from visynth.callbacks import FIDCallback, KIDCallback, TimeLeft, sampling
from visynth.core.errors import DataError, UsageError
from visynth.metrics.extractors import efficientnet_lite0

SMALL = {"every_n_steps": 2, "max_cost": 1.0, "count": 41, "grid": 2, "resolution": 32, "options": {"steps": 2}}


class Means(nn.Module):
    """Six features: fast, and enough to see differences."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images[:, :1], (2, 3)).flatten(1)


def fit(root: Path, callbacks, steps: int = 4, **kwargs):
    own = module()
    trainer = pytorch_lightning.Trainer(
        **{**TRAINER, **kwargs}, default_root_dir=root, max_steps=steps, callbacks=callbacks, log_every_n_steps=50
    )
    trainer.fit(own, data())
    return own, trainer


def test_values_and_sheets_reach_csv_tensorboard_and_png(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path, name="log"), TensorBoardLogger(tmp_path, name="log", version="version_0")]
    _, trainer = fit(tmp_path, [FIDCallback(features=Means(), **SMALL)], logger=loggers)
    with open(tmp_path / "log" / "version_0" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["2", "4"]
    for name in (
        "kid_Means@32",
        "kid_Means@32_low",
        "kid_Means@32_null",
        "fd_Means@32",
        "near_duplicates",
        "near_duplicates/bright",
    ):
        assert all(np.isfinite(float(row[name])) for row in rows)
    assert not any(name.startswith("fid") for name in rows[0])
    sheets = sorted((tmp_path / "log" / "version_0" / "samples").glob("*.png"))
    assert [sheet.stem for sheet in sheets] == ["00000002", "00000004"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "log" / "version_0"))
    events.Reload()
    assert "samples/FIDCallback" in events.Tags()["images"]
    assert "kid_Means@32" in events.Tags()["scalars"]
    assert "kid_Means@32" in trainer.callback_metrics


def test_the_training_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    plain, _ = fit(tmp_path / "a", [])
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    watched, trainer = fit(tmp_path / "b", [KIDCallback(features=Means(), **SMALL)])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(plain, watched)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    kept = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert not any("KIDCallback" in key for key in kept["callbacks"])
    assert kept["state_dict"].keys() == plain.state_dict().keys()


def test_real_features_are_computed_once_and_read_from_disk_later(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VISYNTH_CACHE", str(tmp_path / "cache"))
    calls: list[int] = []
    before = KIDCallback._compute_reals
    monkeypatch.setattr(KIDCallback, "_compute_reals", lambda self, m, i: calls.append(len(i)) or before(self, m, i))
    first, second = (KIDCallback(**{**SMALL, "count": 20}) for _ in range(2))
    fit(tmp_path / "a", [first])
    fit(tmp_path / "b", [second])
    assert calls == [30]
    assert first.latest[0].real == second.latest[0].real == 20
    assert [q.to_json() for q in first.latest] == [q.to_json() for q in second.latest]
    assert list(
        (tmp_path / "cache" / "quality" / f"efficientnet_lite0@32-{efficientnet_lite0().fingerprint}").iterdir()
    )


def test_two_callbacks_share_what_was_sampled(tmp_path: Path, monkeypatch) -> None:
    calls: list[int] = []
    from visynth.callbacks import quality

    before = quality.sample_images
    monkeypatch.setattr(quality, "sample_images", lambda *a: calls.append(1) or before(*a))
    same = Means()
    fit(tmp_path, [KIDCallback(features=same, **SMALL), FIDCallback(features=same, **SMALL)], steps=2)
    assert len(calls) == 2  # the images and the sheet, once


def test_evaluations_wait_until_they_are_paid_for(tmp_path: Path) -> None:
    dear = KIDCallback(features=Means(), **{**SMALL, "max_cost": 1e-6, "every_n_steps": 1})
    steps: list[int] = []
    dear.evaluate = lambda trainer, pl_module, own=dear.evaluate: (
        steps.append(trainer.global_step) or own(trainer, pl_module)
    )
    fit(tmp_path, [dear], steps=6)
    assert steps == [1]
    dear.every_n_steps = 100
    dear._evaluated = -1
    fit(tmp_path / "short", [dear], steps=3)
    assert steps == [1, 3]  # in a run too short for any, the one at the end


def ddp_worker(rank: int, out: str) -> None:
    own = module()
    watch = KIDCallback(features=Means(), cache=False, **SMALL)
    pytorch_lightning.Trainer(max_steps=2, default_root_dir=out, callbacks=[watch], **DDP).fit(own, data(4))
    torch.save([q.to_json() for q in watch.latest], f"{out}/{rank}.pt")


def test_two_ranks_with_uneven_shares_agree_with_one(tmp_path: Path) -> None:
    run_ranks(ddp_worker, str(tmp_path))  # 41 images: 21 and 20
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0] == ranks[1]
    watch = KIDCallback(features=Means(), cache=False, **SMALL)
    fit(tmp_path / "one", [watch], steps=2)
    for ours, theirs in zip([q.to_json() for q in watch.latest], ranks[0], strict=True):
        assert (ours["made"], ours["real"]) == (theirs["made"], theirs["real"])
        if ours["kid"]:
            assert ours["kid"]["value"] == pytest.approx(theirs["kid"]["value"], abs=1e-3)


class Plain(pytorch_lightning.LightningModule):
    """Somebody's own generator: a tensor of floats, no images_seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 64)

    def training_step(self, batch, index):
        return self.layer(torch.zeros(1, 4)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        images = torch.rand(60, 1, 8, 8) * 2 - 1
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(images, torch.arange(60) % 2), 10, shuffle=True
        )

    def sample(self, seeds, labels, **options):
        return torch.tanh(self.layer(torch.randn(len(seeds), 4))).reshape(-1, 1, 8, 8)


def test_any_module_with_sample_will_do(tmp_path: Path) -> None:
    watch = KIDCallback(features=Means(), **{**SMALL, "options": {}})
    pytorch_lightning.Trainer(**TRAINER, default_root_dir=tmp_path, max_steps=2, callbacks=[watch]).fit(Plain())
    assert watch.latest[-1].kid is not None
    assert list((tmp_path / "samples").glob("*.png"))


def test_wrong_input_fails_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no features 'incept'"):
        fit(tmp_path, [KIDCallback(features="incept")])
    trainer = pytorch_lightning.Trainer(**TRAINER, default_root_dir=tmp_path, max_steps=1, callbacks=[KIDCallback()])
    own = Plain()
    own.sample = None
    with pytest.raises(UsageError, match=r"has no sample\(seeds, labels\)"):
        trainer.fit(own)
    for wrong in ({"count": 0}, {"max_cost": 0.0}, {"every_n_steps": 0}, {"grid": -1}):
        with pytest.raises(UsageError, match="count, max_real and every_n_steps must be at least 1"):
            KIDCallback(**wrong)


def test_progress_lines_say_what_is_left(tmp_path: Path, capsys) -> None:
    fit(tmp_path, [TimeLeft(0.0)], steps=3)
    lines = [line for line in capsys.readouterr().err.splitlines() if "images/s" in line]
    assert lines[-1].startswith("24 images, ")
    assert lines[-1].endswith("0 min 00 s left")


# -- ranges are shown or said, never guessed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "scale", "told"),
    [
        (0.0, 1.0, None, "do not show what black and white are"),
        (0.0, 255.0, None, "values from 0 to 255"),
        (-3.0, 3.0, [0, 1], r"far outside value_range=\[0, 1\]"),
    ],
)
def test_a_range_is_never_guessed(low, high, scale, told: str) -> None:
    images = [torch.linspace(low, high, 64).reshape(1, 8, 8)] * 3
    with pytest.raises(DataError, match=told):
        sampling.as_integers(images, scale, "sample()")


def test_networks_without_a_last_tanh_and_untrained_ones_are_taken_as_they_are() -> None:
    loose, young = torch.linspace(-1.43, 1.6, 64).reshape(1, 8, 8), torch.linspace(-0.04, 0.03, 64).reshape(1, 8, 8)
    assert sampling.as_integers([loose], None, "sample()")[0].amax() == 255
    assert set(sampling.as_integers([young], None, "sample()")[0].flatten().tolist()) <= set(range(120, 133))


@pytest.mark.parametrize(("low", "high", "scale"), [(0.0, 1.0, [0, 1]), (0.0, 255.0, [0, 255]), (-1.0, 1.0, None)])
def test_a_range_that_is_shown_or_said_is_used(low, high, scale) -> None:
    found = sampling.as_integers([torch.linspace(low, high, 256).reshape(1, 16, 16)], scale, "sample()")[0]
    assert found.flatten().tolist() == list(range(256))


def test_real_images_of_a_loader_have_their_own_range_and_names() -> None:
    class Data(torch.utils.data.TensorDataset):
        classes = ("good", "crack")

    data = Data(torch.rand(12, 1, 8, 8), torch.arange(12) % 2)
    loader = torch.utils.data.DataLoader(data, 4)
    with pytest.raises(DataError, match=r"real_range=\[0, 1\]"):
        sampling.images_of_loader(loader, 12)
    images, _, names = sampling.images_of_loader(loader, 12, (0.0, 1.0))
    assert names == ("good", "crack")
    assert max(int(image.max()) for image in images) > 200
    with pytest.raises(UsageError, match=r"value_range must be \[black, white\]"):
        KIDCallback(value_range=[1.0, 0.0])
