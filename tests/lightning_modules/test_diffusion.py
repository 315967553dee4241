"""Training a diffusion generator: the same run whatever it is cut into, and stopped before it spoils anything."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch

from tests.ranks import DDP, TRAINER, run_ranks
from visynth.callbacks.checkpoint import AtomicCheckpointIO, KeepLast
from visynth.core.errors import DataError, Diverged, UsageError
from visynth.generators.base import load_generator
from visynth.generators.diffusion import OPTIONS
from visynth.lightning_modules import Diffusion
from visynth.lightning_modules.data import GeneratorData
from visynth.lightning_modules.facts import Pool, measure
from visynth.lightning_modules.randomness import PositionDropout, dropout_of, use_position_dropout


def data(batch_size: int = 8, **kwargs) -> GeneratorData:
    """Two classes of 8x8 noise, bright and dark."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 128, (30, 1, 8, 8)).astype(np.uint8)
    images[20:] += 100
    labels = np.array([0] * 20 + [1] * 10)
    pool = Pool(images, labels)
    return GeneratorData.of_pool(pool, measure(pool, ["dark", "bright"]), batch_size=batch_size, **kwargs)


def module(**kwargs) -> Diffusion:
    return Diffusion(
        **{"width": 8, "multipliers": [1, 1], "attention": [], "warmup": 16, "lr": 1e-2, "dropout": 0.2, **kwargs}
    )


def trainer(root: Path, steps: int, **kwargs) -> pytorch_lightning.Trainer:
    return pytorch_lightning.Trainer(default_root_dir=root, max_steps=steps, **{**TRAINER, **kwargs})


def train(
    root: Path, steps: int, own: Diffusion | None = None, given: GeneratorData | None = None, **kwargs
) -> Diffusion:
    own = own or module()
    ckpt = kwargs.pop("ckpt_path", None)
    trainer(root, steps, **kwargs).fit(own, given or data(), ckpt_path=ckpt, weights_only=True)
    return own


def equal(a: Diffusion, b: Diffusion) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize("extra", [{}, {"cbdm": 0.5, "weighting": "min_snr", "augment": 0.5}])
def test_k_steps_and_k_more_are_2k_steps_bit_for_bit(tmp_path: Path, extra) -> None:
    whole = train(tmp_path / "whole", 10, module(**extra))
    torch.manual_seed(99)  # the global generator has no say
    saver = {"callbacks": [KeepLast(every_n_steps=5)], "plugins": [AtomicCheckpointIO()], "enable_checkpointing": True}
    train(tmp_path / "parts", 5, module(**extra), **saver)
    torch.manual_seed(7)
    saver["callbacks"] = [KeepLast(every_n_steps=100)]
    parts = train(tmp_path / "parts", 10, module(**extra), ckpt_path=KeepLast.path(tmp_path / "parts"), **saver)
    assert int(parts.images_seen) == 80
    assert equal(whole, parts)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_lightnings_own_last_checkpoint_resumes_exactly_too(tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import ModelCheckpoint

    whole = train(tmp_path / "whole", 8)

    def keep():
        return {
            "callbacks": [ModelCheckpoint(tmp_path / "c", save_last=True, every_n_train_steps=4)],
            "enable_checkpointing": True,
        }

    train(tmp_path / "parts", 4, **keep())
    assert equal(whole, train(tmp_path / "parts", 8, ckpt_path="last", **keep()))


# Adam divides by the size of a gradient, so one that is nothing but rounding moves a weight by a whole step: in float64
# rounding
# stays below Adam's epsilon, and equality can be seen.
DOUBLE = {"precision": "64-true"}


def test_accumulated_gradients_equal_a_large_batch(tmp_path: Path) -> None:
    large = train(tmp_path / "a", 4, given=data(16), **DOUBLE)
    small = train(tmp_path / "b", 4, given=data(8), accumulate_grad_batches=2, **DOUBLE)
    assert int(large.images_seen) == int(small.images_seen) == 64
    assert distance(large.network.state_dict(), small.network.state_dict()) < 1e-5
    assert distance(large.averages.state_dict(), small.averages.state_dict()) < 1e-5


def ddp_worker(rank: int, out: str, augment: float) -> None:
    own = module(cbdm=0.5, augment=augment)
    pytorch_lightning.Trainer(max_steps=4, default_root_dir=out, **DDP, **DOUBLE).fit(own, data(8))
    torch.save(own.state_dict(), f"{out}/{rank}.pt")


@pytest.mark.parametrize("augment", [0.15, 0.0])
def test_two_processes_equal_one_with_the_joined_batch(tmp_path: Path, augment: float) -> None:
    run_ranks(ddp_worker, str(tmp_path), augment)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    joined = train(tmp_path / "one", 4, module(cbdm=0.5, augment=augment), data(16), **DOUBLE).state_dict()
    assert int(ranks[0]["images_seen"]) == int(joined["images_seen"]) == 64
    assert distance(ranks[0], ranks[1]) == 0.0
    assert distance(ranks[0], joined) < 1e-5


def test_a_checkpoint_by_time_waits_for_the_end_of_an_accumulated_step(tmp_path: Path) -> None:
    saves: list[int] = []

    class Watch(KeepLast):
        def _save(self, trainer) -> None:
            saves.append(int(trainer.lightning_module.images_seen))

    train(tmp_path, 3, accumulate_grad_batches=4, callbacks=[Watch(minutes=0.0)], enable_checkpointing=True)
    assert saves[:3] == [32, 64, 96]


def test_without_warm_up_it_trains_too(tmp_path: Path) -> None:
    assert (
        int(train(tmp_path, 2, module(warmup=0), callbacks=[KeepLast()], enable_checkpointing=True).images_seen) == 16
    )


def test_bf16_and_clipping_are_lightnings_own(tmp_path: Path) -> None:
    own = train(tmp_path, 3, precision="bf16-mixed", gradient_clip_val=0.5)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in own.parameters())


def test_the_loss_starts_near_one_and_falls(tmp_path: Path) -> None:
    losses: list[float] = []

    class Watch(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            losses.append(float(outputs["loss"]))

    train(tmp_path, 60, module(dropout=0.0, augment=0.0), callbacks=[Watch()])
    assert np.mean(losses[:3]) == pytest.approx(1.0, abs=0.3)
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:3])


@pytest.mark.injected
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_within_one_step_and_keeps_the_state_before(tmp_path: Path, what: str) -> None:
    class Spoil(pytorch_lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 3 and what == "loss":
                pl_module.network.sigma_data = math.nan

        def on_after_backward(self, trainer, pl_module) -> None:
            if trainer.global_step == 3 and what == "gradient":
                next(pl_module.network.parameters()).grad[0] = math.inf

    own = module()
    with pytest.raises(Diverged, match=f"{what} became infinite or not a number.*Lower the learning rate"):
        train(
            tmp_path,
            10,
            own,
            callbacks=[Spoil(), KeepLast()],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=True,
        )
    kept = torch.load(KeepLast.path(tmp_path), weights_only=True)
    assert kept["global_step"] == 3
    assert all(torch.isfinite(t).all() for t in kept["state_dict"].values())
    assert distance(kept["state_dict"], train(tmp_path / "straight", 3).state_dict()) == 0.0
    assert int(kept["state_dict"]["images_seen"]) == 24  # the images of the step that was not made are met again


def test_labels_are_dropped_one_by_one_at_the_given_rate(tmp_path: Path) -> None:
    own = train(tmp_path, 1, module(label_drop=0.3))
    from visynth.lightning_modules.randomness import draw

    dropped, others = own._dropped(torch.ones(2000, dtype=torch.int64), draw(0, range(2000), (1,)))
    assert (dropped == 2).double().mean() == pytest.approx(0.3, abs=0.03)
    assert set(dropped.tolist()) == {1, 2}
    assert (others == 0).double().mean() == pytest.approx(2 / 3, abs=0.04)  # the training prior: 20 of 30


def test_dropout_masks_belong_to_positions() -> None:
    layer = PositionDropout(0.5).train()
    x = torch.ones(3, 64)
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), layer)
    with dropout_of(network, 0, [5, 6, 7]):
        first = layer(x)
    with dropout_of(network, 0, [7, 5]):
        second = layer(x[:2])
    assert torch.equal(first[[2, 0]], second)
    assert not torch.equal(first[0], first[1])
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(layer.eval()(x), x)


def test_dropout_layers_are_replaced_without_renaming_weights() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    names = list(network.state_dict())
    use_position_dropout(network)
    assert isinstance(network[1], PositionDropout)
    assert list(network.state_dict()) == names


class Tuples(pytorch_lightning.LightningDataModule):
    """A user's own datamodule: (float image, label), with no word of its facts."""

    def train_dataloader(self):
        images = torch.rand(16, 1, 8, 8)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(16) % 2), 8)


def test_a_datamodule_of_the_users_own_works_when_the_module_is_told_what_it_gives(tmp_path: Path) -> None:
    told = {"classes": ["a", "b"], "channels": 1, "size": [8, 8], "value_range": [0.0, 1.0]}
    own = train(tmp_path, 2, module(**told), Tuples())
    assert int(own.images_seen) == 16
    with pytest.raises(UsageError, match="give the module classes=, channels= and size="):
        train(tmp_path, 2, module(), Tuples())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"weighting": "snr"}, "weighting must be one of 'edm', 'min_snr'"),
        ({"label_drop": 1.5}, r"label_drop must be in \[0, 1\]"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"ema": 0.5}, "relative width"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"augment_kinds": ["hue"]}, "augment_kinds 'hue' are unknown"),
        ({"sampler": {"sparkle": 1}}, "sampler options 'sparkle' are unknown"),
        ({"sampler": {"steps": 1}}, "steps must be a whole number from 2 to 1000"),
    ],
)
def test_wrong_options_are_told(wrong, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        module(**wrong)


class TestExport:
    def test_a_checkpoint_alone_gives_the_same_images(self, tmp_path: Path) -> None:
        own = train(tmp_path, 3, callbacks=[KeepLast()], plugins=[AtomicCheckpointIO()], enable_checkpointing=True)
        again = Diffusion.load_from_checkpoint(KeepLast.path(tmp_path), weights_only=True)
        assert torch.equal(own.sample([1, 2], [0, 1]).images, again.sample([1, 2], [0, 1]).images)
        loaded = load_generator(own.export(tmp_path / "generator"))
        assert torch.equal(own.sample([1, 2], [0, 1]).images, loaded.sample([1, 2], [0, 1]).images)
        assert loaded.spec.kind == "trained"
        assert "images per class" in loaded.card

    def test_options_change_the_images_and_wrong_ones_are_told(self, tmp_path: Path) -> None:
        own = train(tmp_path, 40)
        plain = own.sample([1], [0]).images
        for change in ({"steps": 5}, {"solver": "heun"}, {"guidance": 3.0}):
            assert not torch.equal(plain, own.sample([1], [0], **change).images)
        assert torch.equal(plain, own.sample([1], [0], **OPTIONS).images)
        with pytest.raises(UsageError, match=r"steps must be.*solver must be.*guidance must be"):
            own.sample([1], [0], steps=0, solver="euler", guidance=-1.0)

    def test_another_width_of_the_average_is_made_of_snapshots(self, tmp_path: Path) -> None:
        own = module(warmup=4)
        weights: list[dict[str, torch.Tensor]] = []

        class Watch(pytorch_lightning.Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
                weights.append({n: p.detach().clone() for n, p in pl_module.network.named_parameters()})

        train(
            tmp_path,
            60,
            own,
            callbacks=[Watch(), KeepLast()],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=True,
        )
        from visynth.networks.ema import gamma_of, power_beta

        direct: dict[str, torch.Tensor] = {}
        for step, values in enumerate(weights, 1):
            beta = power_beta(8 * step, 8, gamma_of(0.07))
            direct = {n: v if step == 1 else torch.lerp(direct[n], v, 1 - beta) for n, v in values.items()}

        def error(std: float) -> float:
            found = dict(own.generator(std).network.named_parameters())
            return sum(float((found[n] - direct[n]).square().sum()) for n in direct) ** 0.5

        assert error(0.07) < 0.5 * min(error(0.05), error(0.10))

    def test_without_snapshots_only_the_held_widths_can_be_had(self, tmp_path: Path) -> None:
        own = train(tmp_path, 2, module(snapshots=False))
        own.generator(0.05)
        with pytest.raises(DataError, match=r"only the averages of std \[0.05, 0.1\] can be had"):
            own.generator(0.07)
        with pytest.raises(UsageError, match=r"must be in \(0, 0.28\]"):
            own.generator(0.5)


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:Starting from v1.9.0:UserWarning")
def test_the_readmes_example_trains(class_folders, monkeypatch) -> None:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    example = readme.read_text().split("```python\n")[2].split("```")[0]
    root = class_folders({"a": 4, "b": 4})
    monkeypatch.chdir(root.parent)
    short = {
        "max_steps=20_000": "max_steps=2, accelerator='cpu', enable_progress_bar=False",
        "size=32": "size=8, batch_size=4",
    }
    short["KIDCallback()"] = "KIDCallback(count=4, options={'steps': 2})"
    for whole, part in short.items():
        assert whole in example
        example = example.replace(whole, part)
    exec(example, {"pytorch_lightning": pytorch_lightning})
    assert load_generator("generator").classes == ("a", "b")


def test_a_generator_that_was_handed_out_does_not_train_on(tmp_path: Path) -> None:
    own = train(tmp_path, 2)
    made = own.generator()
    digest, before = made.digest, made.sample([1], [0], steps=2).images
    train(tmp_path, 4, own)
    assert torch.equal(made.sample([1], [0], steps=2).images, before)
    made._digest = None
    assert made.digest == digest
    assert own.generator().digest != digest
