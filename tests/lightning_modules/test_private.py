"""Image generators under differential privacy: gradients of single images are their own, and nothing of the data is exported
beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch

from visynth.core.errors import UsageError
from visynth.generators.base import load_generator
from visynth.lightning_modules import Diffusion, GeneratorData
from visynth.lightning_modules.facts import Pool, measure
from visynth.privacy import optimizer as private_optimizer
from visynth.privacy.dp import DifferentialPrivacy

SIZE = 8


def data(temper: float = 1.0, seed: int = 0) -> GeneratorData:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (48, 1, SIZE, SIZE)).astype(np.uint8)
    pool = Pool(images, rng.integers(0, 2, 48))
    return GeneratorData.of_pool(pool, measure(pool, ["a", "b"]), batch_size=12, temper=temper, epoch_images=96)


def module(**kwargs: Any) -> Diffusion:
    return Diffusion(**{"width": 8, "multipliers": [1, 2], "attention": [4], "snapshots": False, "warmup": 0, **kwargs})


def fit(net: Diffusion, callback: DifferentialPrivacy, source: GeneratorData, **kwargs: Any) -> None:
    trainer = pytorch_lightning.Trainer(
        max_epochs=-1, callbacks=[callback, *kwargs.pop("callbacks", [])], logger=False, enable_checkpointing=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **kwargs,
    )  # fmt: skip
    trainer.fit(net, source)


def private(**kwargs: Any) -> DifferentialPrivacy:
    return DifferentialPrivacy(**{"epsilon": 50.0, "steps": 3, "most_noise": 9.0, "key": "12" * 32, **kwargs})


def test_an_images_gradient_is_that_of_a_batch_of_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout, augmentation, attention and dropped labels included."""
    caught: list[list[torch.Tensor]] = []
    plain = private_optimizer.PrivateOptimizer.clip_and_accumulate

    def watch(self: Any) -> None:
        caught.append([self._get_flat_grad_sample(p).clone() for p in self.params])
        plain(self)

    monkeypatch.setattr(private_optimizer.PrivateOptimizer, "clip_and_accumulate", watch)
    gradients = {}
    for size in (None, 1):
        caught.clear()
        fit(module(augment=0.5, dropout=0.3), private(steps=1, physical_batch_size=size), data())
        rows = [torch.cat([part[i].reshape(-1) for part in found]) for found in caught for i in range(len(found[0]))]
        gradients[size] = torch.stack(rows)
    assert gradients[1].shape == gradients[None].shape
    assert len(gradients[1]) > 4
    assert torch.allclose(gradients[1], gradients[None], atol=1e-4 * float(gradients[1].abs().max()))
    assert gradients[1].std(0).max() > 0


def test_the_exported_generator_knows_its_epsilon_and_no_image(tmp_path: Path) -> None:
    net, callback = module(), private(noise_multiplicity=2)
    fit(net, callback, data())
    folder = net.export(tmp_path / "generator")
    card = json.loads((folder / "generator.json").read_text())["card"]
    assert card["differential privacy"] == json.loads(json.dumps(callback.record()))
    assert card["differential privacy"]["noise multiplicity"] == 2
    assert card["differential privacy"]["epsilon"] <= 50
    assert not {"images per class", "training images", "images seen in training"} & set(card)
    assert (folder / "members.jsonl").read_text() == ""
    assert load_generator(folder).sample([1, 2], [0, 1], steps=2).images.shape == (2, 1, SIZE, SIZE)
    arguments = json.loads((folder / "generator.json").read_text())["arguments"]
    assert (arguments["sigma_data"], list(arguments["mean"])) == (0.5, [0.0])  # not those of the images


def test_a_killed_run_exports_what_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = module()
    fit(whole, private(steps=4), data())

    class Killed(pytorch_lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                trainer.should_stop = True

    fit(module(), private(steps=4), data(), callbacks=[Killed()])
    again, callback = module(), private(steps=4)
    trainer = pytorch_lightning.Trainer(
        max_epochs=-1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(again, data(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert again.generator().digest == whole.generator().digest
    assert callback.steps_done == 4


def test_what_draws_rare_classes_more_often_is_refused() -> None:
    with pytest.raises(UsageError, match="temper draws rare classes more often"):
        fit(module(), private(), data(temper=0.5))


def test_statistics_of_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="cbdm"):
        fit(module(cbdm=1.0), private(), data())


def test_measuring_against_the_private_images_is_refused() -> None:
    from visynth.callbacks import KIDCallback

    with pytest.raises(UsageError, match="KIDCallback measures against the private images"):
        fit(module(), private(), data(), callbacks=[KIDCallback(count=8)])


def test_steps_without_any_image_are_noise() -> None:
    net, callback = module(), private(steps=6, batch_size=1)
    fit(net, callback, data())
    assert callback.steps_done == 6
    assert int(net.images_seen) == 6  # of the plan, not of what was drawn
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_module_is_private_from_its_first_step_to_its_last() -> None:
    from visynth.core.errors import ConflictError

    net = module()
    fit(net, private(), data())
    with pytest.raises(ConflictError, match="would make the stated epsilon wrong"):
        pytorch_lightning.Trainer(
            max_steps=1, logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(net, data())  # fmt: skip
    with pytest.raises(ConflictError, match="was trained already"):
        fit(net, private(), data())
