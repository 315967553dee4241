"""Private training: the same as plain training with noise and clipping off, really noised with them, refused where it is not
private, and the same after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from visynth.core.errors import ConflictError, UsageError
from visynth.privacy.accounting import Release, epsilon_of
from visynth.privacy.dp import CHECKPOINT, DifferentialPrivacy
from visynth.privacy.poisson import PlacedRows, PoissonBatches, poisson_rows

KEY = "5a" * 32
ROWS = 120


class Net(pytorch_lightning.LightningModule):
    """A small regression; ``layer`` stands between its two linear layers."""

    def __init__(self, layer: nn.Module | None = None, lr: float = 0.05) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), layer or nn.Tanh(), nn.Linear(6, 1))
        self.lr = lr
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen.append(len(x))
        return ((self.net(x)[:, 0] - y) ** 2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rows() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((ROWS, 3), generator=generator)
    return TensorDataset(x, x.sum(1) + 0.1 * torch.randn(ROWS, generator=generator))


def loader(**kwargs: Any) -> DataLoader[Any]:
    return DataLoader(rows(), **{"batch_size": 30, "shuffle": True, **kwargs})


def trainer(*callbacks: Any, **kwargs: Any) -> pytorch_lightning.Trainer:
    plain = {
        "max_epochs": -1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu",
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pytorch_lightning.Trainer(callbacks=list(callbacks), **{**plain, **kwargs})


def private(**kwargs: Any) -> DifferentialPrivacy:
    return DifferentialPrivacy(**{"epsilon": 8.0, "steps": 6, "unit": "row", "key": KEY, "most_noise": 9.0, **kwargs})


def trained(callback: DifferentialPrivacy, **kwargs: Any) -> Net:
    torch.manual_seed(0)
    net = Net()
    trainer(callback, **kwargs).fit(net, loader())
    return net


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def by_hand(callback: DifferentialPrivacy, bound: float, noise: bool) -> Tensor:
    """The same training by a loop over rows: algorithm 1 of Abadi et al. (2016), one gradient at a time."""
    torch.manual_seed(0)
    net, plan = Net(), callback.plan
    assert plan is not None
    x, y = rows().tensors
    from visynth.privacy.secret import secret_rng

    for step in range(plan.steps):
        total = [torch.zeros_like(p) for p in net.parameters()]
        for row in poisson_rows(KEY, step, ROWS, plan.rate):
            net.zero_grad()
            ((net.net(x[row : row + 1])[0, 0] - y[row]) ** 2).backward()
            length = torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None]).norm()
            for own, p in zip(total, net.parameters(), strict=True):
                assert p.grad is not None
                own += p.grad * min(1.0, bound / (float(length) + 1e-6))
        generator = secret_rng(KEY, f"noise/{step}")
        with torch.no_grad():
            for own, p in zip(total, net.parameters(), strict=True):
                drawn = torch.from_numpy(generator.standard_normal(tuple(p.shape)).astype(np.float32))
                p -= 0.05 / (1 + step) * (own + noise * plan.noise * bound * drawn) / plan.batch
    return weights(net)


def test_a_private_training_is_the_algorithm_by_hand() -> None:
    callback = private(max_grad_norm=0.7)
    net = trained(callback)
    assert torch.allclose(weights(net), by_hand(callback, 0.7, noise=True), atol=1e-6)


def test_noise_is_really_added() -> None:
    callback = private()
    net = trained(callback)
    assert (weights(net) - by_hand(callback, 1.0, noise=False)).norm() > 1e-3
    other = trained(private(key="77" * 32))
    assert (weights(net) - weights(other)).norm() > 1e-3
    assert private(key=None).key != private(key=None).key


def test_noise_has_the_size_that_was_paid_for() -> None:
    """Steps of a module whose gradient is nothing are noise alone."""

    class Still(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return 0.0 * self.net(batch[0]).mean()

    torch.manual_seed(0)
    net, callback = Still(lr=1.0), private(steps=1, batch_size=20)
    before = weights(net)
    net.net[0] = nn.Linear(3, 6000)
    net.net[2] = nn.Linear(6000, 1)
    before = weights(net)
    trainer(callback).fit(net, loader())
    moved = (weights(net) - before).numpy() * 20
    assert callback.plan is not None
    assert moved.std() == pytest.approx(callback.plan.noise * callback.plan.max_grad_norm, rel=0.02)


def test_parts_of_a_batch_sum_to_the_whole() -> None:
    whole, parts = trained(private()), trained(private(physical_batch_size=7))
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)
    assert max(parts.seen) <= 7 < max(whole.seen)


def test_copies_of_a_row_count_once() -> None:
    """Without anything random in a step, copies of a row change nothing; with parts they stay together."""
    once = trained(private())
    for size in (None, 7):
        thrice = trained(private(noise_multiplicity=3, physical_batch_size=size))
        assert torch.allclose(weights(once), weights(thrice), atol=1e-6)


def test_rows_are_drawn_by_chance() -> None:
    sizes = np.array([len(poisson_rows(KEY, step, 1000, 0.03)) for step in range(400)])
    assert sizes.mean() == pytest.approx(30, abs=1.0)
    assert sizes.var() == pytest.approx(1000 * 0.03 * 0.97, rel=0.25)
    drawn = np.concatenate([poisson_rows(KEY, step, 50, 0.2) for step in range(2000)])
    assert np.ptp(np.bincount(drawn, minlength=50)) < 2000 * 0.2 * 0.4
    places = PoissonBatches(PlacedRows(50, 4), 0.2, KEY, lambda: 7, 1).places(7)
    assert len(set(places.tolist())) == len(places)
    assert np.array_equal(places.reshape(-1, 4) // 4 % 50, np.repeat(poisson_rows(KEY, 7, 50, 0.2)[:, None], 4, 1))


def test_a_step_without_any_row_is_noise() -> None:
    callback = private(batch_size=1, steps=12)
    net = trained(callback)
    empty = sum(not len(poisson_rows(KEY, step, ROWS, 1 / ROWS)) for step in range(12))
    assert empty > 0
    assert callback.steps_done == 12
    assert len(net.seen) == 12 - empty
    assert torch.isfinite(weights(net)).all()


def test_epsilon_is_the_accountants_before_and_after_a_kill(tmp_path: Path) -> None:
    whole = private(steps=8)
    net = trained(whole)
    record = whole.record()
    plan = whole.plan
    assert plan is not None
    releases = [Release("training (DP-SGD)", plan.noise, 30 / ROWS, 8)]
    assert record["epsilon"] == epsilon_of(releases, 1e-3)
    assert record["epsilon"] <= 8.0
    assert record["epsilon by prv"] == epsilon_of(releases, 1e-3, "prv") < record["epsilon"]

    class Killed(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                raise KeyboardInterrupt

    torch.manual_seed(0)
    first = private(steps=8)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(first, Killed()).fit(Net(), loader())
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert stored[CHECKPOINT]["steps"] == 3
    assert (
        stored[CHECKPOINT]["epsilon"] == epsilon_of([Release("", plan.noise, 30 / ROWS, 3)], 1e-3) < record["epsilon"]
    )
    again, resumed = Net(), private(steps=8, key=None)
    trainer(resumed).fit(again, loader(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert torch.equal(weights(again), weights(net))
    assert resumed.record() == record
    with pytest.raises(ConflictError, match=r"epsilon: 8\.0 there, 9\.0 here"):
        trainer(private(steps=8, epsilon=9.0)).fit(
            Net(), loader(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True
        )


def test_a_checkpoint_without_privacy_cannot_become_private(tmp_path: Path) -> None:
    plain = trainer(max_steps=1, max_epochs=1)
    plain.fit(Net(), loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ConflictError, match="was not paid for"):
        trainer(private()).fit(Net(), loader(), ckpt_path=str(tmp_path / "plain.ckpt"), weights_only=True)


def test_the_module_is_left_as_it_was() -> None:
    net = trained(private())
    assert not any(hasattr(p, "grad_sample") or hasattr(p, "summed_grad") for p in net.parameters())
    assert "training_step" not in vars(net)
    trainer(max_steps=2).fit(net, loader())  # plain training goes on


def test_what_breaks_the_guarantee_is_refused_all_at_once() -> None:
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

    class Watched(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

        def val_dataloader(self) -> Any:
            return loader(shuffle=False)

    bad = trainer(
        private(), EarlyStopping("loss"), ModelCheckpoint(monitor="loss"), gradient_clip_val=1.0, enable_checkpointing=True,
        accumulate_grad_batches=2,
    )  # fmt: skip
    with pytest.raises(UsageError) as caught:
        bad.fit(Watched(), loader())
    for word in (
        "gradient_clip_val",
        "accumulate_grad_batches",
        "validation on private data",
        "EarlyStopping",
        "ModelCheckpoint",
    ):
        assert word in str(caught.value)
    assert "5 problems" in str(caught.value)


@pytest.mark.parametrize(
    ("net", "data", "words"),
    [
        (
            Net(),
            loader(shuffle=False, sampler=WeightedRandomSampler([1.0] * ROWS, ROWS)),
            "WeightedRandomSampler draws some",
        ),
        (Net(nn.BatchNorm1d(6)), loader(), "running statistics mix the rows"),
    ],
    ids=["weights", "batch norm"],
)
def test_what_is_not_private_is_refused(net: Net, data: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        trainer(private()).fit(net, data)


def test_a_parameter_outside_of_its_layer_is_refused() -> None:
    class Outside(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            hidden = nn.functional.linear(x, self.net[0].weight, self.net[0].bias)
            return ((self.net[2](hidden)[:, 0] - y) ** 2).mean()

    with pytest.raises(UsageError, match="each parameter used by its own layer"):
        trainer(private()).fit(Outside(), loader())


def test_an_epsilon_without_any_use_says_which_is_reachable() -> None:
    with pytest.raises(UsageError, match=r"Reachable so: epsilon \d"):
        trainer(private(epsilon=0.05, most_noise=0.1, steps=1000)).fit(Net(), loader())


def test_delta_above_one_in_n_is_refused() -> None:
    with pytest.raises(UsageError, match="below 1/120"):
        trainer(private(delta=0.01)).fit(Net(), loader())


def test_wrong_options_are_told_together() -> None:
    with pytest.raises(UsageError, match="3 problems"):
        DifferentialPrivacy(epsilon=-1, max_grad_norm=0, steps=0)


def test_a_key_that_was_given_is_told_in_the_record() -> None:
    callback = private()
    trained(callback)
    assert "not private" in callback.record()
    unknown = private(key=None)
    trained(unknown)
    assert "not private" not in unknown.record()


class Pieces(Net):
    """Each row in two pieces, or in two views."""

    def __init__(self, views: bool) -> None:
        super().__init__()
        self.views = views

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, _ = batch
        doubled = torch.cat([x, x + 1]) if self.views else torch.stack([x, x + 1], dim=1).reshape(-1, 3)
        return (self.net(doubled)[:, 0] ** 2).mean()


@pytest.mark.parametrize("views", [True, False])
def test_a_unit_in_several_pieces_is_refused(views: bool) -> None:
    with pytest.raises(UsageError, match="would be clipped piece by piece"):
        trainer(private()).fit(Pieces(views), loader())


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_in_training_mode_is_refused_however_it_is_frozen(affine: bool) -> None:
    layer = nn.BatchNorm1d(6, affine=affine).requires_grad_(False)
    with pytest.raises(UsageError, match="put these layers in eval mode"):
        trainer(private()).fit(Net(layer), loader())


def test_running_statistics_are_refused() -> None:
    with pytest.raises(UsageError, match="running statistics"):
        trainer(private()).fit(Net(nn.InstanceNorm1d(6, track_running_stats=True)), loader())


@pytest.mark.filterwarnings("ignore:Found 1 module")
def test_batch_norm_in_eval_mode_stays_as_it_is() -> None:
    net = Net(nn.BatchNorm1d(6).requires_grad_(False).eval())
    before = net.net[1].running_mean.clone()  # type: ignore[union-attr, operator]
    trainer(private(steps=2)).fit(net, loader())
    assert torch.equal(net.net[1].running_mean, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["one at a time", "in a batch"])
def test_one_row_more_moves_the_sum_by_no_more_than_the_bound(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the noise hides: the same step with and without one row, whose gradient is far above the bound."""
    from visynth.privacy import dp as privately

    sums = {}
    rows_drawn = np.arange(0, ROWS, 4)
    for name, drawn in (("with", rows_drawn), ("without", rows_drawn[rows_drawn != 40])):
        monkeypatch.setattr(
            privately.PoissonBatches, "places", lambda self, step, drawn=drawn: drawn * self.rows.multiplicity
        )
        torch.manual_seed(0)
        callback = private(steps=1, max_grad_norm=0.05, physical_batch_size=1 if where == "one at a time" else None)
        net = Net(lr=1.0)
        before = weights(net)
        trainer(callback).fit(net, loader())
        assert callback.plan is not None
        sums[name] = (before - weights(net)) * callback.plan.batch
    moved = float((sums["with"] - sums["without"]).norm())
    assert 0.049 < moved < 0.05 + 1e-5


@pytest.mark.parametrize("parts", [None, 64])
def test_in_bfloat16_too(parts: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose gradients are alike: rounded to 16 bits, one of 512 would move their sum by far more than the bound."""
    from visynth.privacy import dp as privately

    x = torch.ones((512, 3)) + 0.01 * torch.arange(512)[:, None] / 512
    sums = []
    for rows_drawn in (np.arange(512), np.arange(511)):
        monkeypatch.setattr(privately.PoissonBatches, "places", lambda self, step, drawn=rows_drawn: drawn)
        torch.manual_seed(0)
        net = Net(lr=1.0)
        before = weights(net)
        callback = private(steps=1, max_grad_norm=1e-2, physical_batch_size=parts)
        data = DataLoader(TensorDataset(x, 50 * x.sum(1)), batch_size=128, shuffle=True)
        trainer(callback, precision="bf16-mixed").fit(net, data)
        assert callback.plan is not None
        sums.append((before - weights(net)).double() * callback.plan.batch)
    moved = float((sums[0] - sums[1]).norm())
    assert 0.9e-2 < moved < 1.1e-2  # the sum is had to within the rounding of weights of 1


def test_a_row_without_a_finite_gradient_adds_nothing() -> None:
    class Broken(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, _ = batch
            scale = torch.where(x[:, 0] == rows().tensors[0][:, 0].max(), float("inf"), 1.0)
            return (self.net(x)[:, 0] * scale).mean()

    torch.manual_seed(0)
    net = Broken()
    trainer(private(batch_size=ROWS, steps=1)).fit(net, loader())
    assert torch.isfinite(weights(net)).all()


def test_what_follows_a_private_figure_is_refused() -> None:
    class Falling(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "loss"}}

    with pytest.raises(UsageError, match="ReduceLROnPlateau follows a figure"):
        trainer(private()).fit(Falling(), loader())
    from lightning.pytorch.callbacks import EarlyStopping as Other
    from pytorch_lightning.callbacks import GradientAccumulationScheduler

    for callback, word in (
        (Other("loss"), "EarlyStopping"),
        (GradientAccumulationScheduler({1: 2}), "adds noise to each part"),
    ):
        with pytest.raises(UsageError, match=word):
            trainer(private(), callback).fit(Net(), loader())
    with pytest.raises(UsageError, match="bf16-true rounds"):
        trainer(private(), precision="bf16-true").fit(Net(), loader())


def test_a_refusal_leaves_the_module_alone() -> None:
    net = Net()
    with pytest.raises(UsageError, match="below 1/120"):
        trainer(private(delta=0.5)).fit(net, loader())
    assert not {"configure_optimizers", "training_step"} & set(vars(net))
    trainer(max_steps=1).fit(net, loader())


def test_lists_of_one_optimiser_and_one_schedule_are_taken() -> None:
    class Lists(Net):
        def configure_optimizers(self) -> Any:
            found = super().configure_optimizers()
            return [found["optimizer"]], [found["lr_scheduler"]]

    torch.manual_seed(0)
    net = Lists()
    trainer(private()).fit(net, loader())
    assert torch.equal(weights(net), weights(trained(private())))
